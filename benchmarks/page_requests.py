"""Times Airflow's answers to the pages: python -m benchmarks.page_requests INDEX ROUNDS NAME=PATH ...

A process of its own, since Airflow takes its settings when it is imported. It is Airflow's whole application
with its log-in, asked without a network between. Prints what it found as JSON.
"""

import json
import sys
import time
from collections import Counter
from statistics import median
from typing import Any

import elastic_transport
import sqlalchemy as sa
from airflow.api_fastapi.app import create_app, get_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from fastapi.testclient import TestClient

from tasks.errors import RunFailedError
from tasks.search.client import client
from tasks.shop.connections import SEARCH, Connection

WARM_UP = 3


def main() -> None:
    index, rounds, *pages = sys.argv[1:]
    asked = _counted()
    app = create_app("core")
    token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="benchmark", role="viewer"))
    airflow = TestClient(app, cookies={"_token": token})
    search = client(Connection.from_environment(SEARCH))
    found = {}
    for name, path in (page.split("=", 1) for page in pages):
        seconds = []
        for number in range(WARM_UP + int(rounds)):
            # An index that is written to has a new answer to every question.
            search.indices.clear_cache(index=index, request=True)
            asked.clear()
            started = time.monotonic()
            answer = airflow.get(f"/feature-index{path}")
            if number >= WARM_UP:
                seconds.append(time.monotonic() - started)
            if answer.status_code != 200:
                raise RunFailedError(f"{path} answered {answer.status_code}: {answer.text}")
        found[name] = {
            "median": median(seconds),
            "slowest": max(seconds),
            "elasticsearch": asked["elasticsearch"],
            "database": asked["database"],
        }
    print(json.dumps(found))


def _counted() -> Counter[str]:
    """A count of the requests to Elasticsearch and of the statements to any database from now on."""
    asked: Counter[str] = Counter()
    perform = elastic_transport.Transport.perform_request

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked["elasticsearch"] += 1
        return perform(self, *args, **kwargs)

    elastic_transport.Transport.perform_request = counting  # type: ignore[method-assign]
    sa.event.listen(sa.engine.Engine, "before_cursor_execute", lambda *_: asked.update(["database"]))
    return asked


if __name__ == "__main__":
    main()
