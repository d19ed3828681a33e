"""The shop of `make up`, smaller, and a browser before it."""

import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from unittest import mock

import pytest

from local_stack import browser, stack
from local_stack.browser import Browser
from local_stack.demo import BACKFILL
from local_stack.shop import Shop
from local_stack.stack import Stack
from local_stack.up import RETRY
from tasks.shop.connections import LEDGER
from tests.shop_fixtures import remember_model

ITEMS = 140
PATH = "/shop/airflow"
"""Where Airflow is on its host. Without a path it is in the tests of the pages."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """The drawn shop with Airflow, which starts no run by itself."""
    if problem := browser.missing():
        # Where nobody would notice what is skipped, it fails.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(problem)
    elasticsearch_url = request.getfixturevalue("elasticsearch_url")
    folder = tmp_path_factory.mktemp("browser")
    remember_model(folder)
    Shop.rendered(folder, now=datetime.now(UTC), items=ITEMS)
    index = f"browser-{uuid.uuid4().hex}"
    # Whatever else is set, as a stack does, goes again once the servers have it.
    with mock.patch.dict(os.environ, {"ELASTICSEARCH_URL": elasticsearch_url, "FEATURES_INDEX": index}):
        for name in (stack.CATALOGUE_VARIABLE, stack.SEARCH_VARIABLE, f"AIRFLOW_CONN_{LEDGER.upper()}"):
            os.environ.pop(name, None)
        started = Stack.start(
            None,
            folder=folder,
            say=lambda _: None,
            stays=True,
            airflow_path=PATH,
            airflow_settings={
                "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",
                # One bad item is a large share of a category as small as these.
                "FEATURES_FAILURE_BUDGET": "0.5",
            },
        )
    try:
        for dag_id in (BACKFILL, RETRY):
            started.airflow.unpause(dag_id)
        yield started
    finally:
        stack.stop(folder)
        started.search.indices.delete(index=index, ignore_unavailable=True)
        started.search.close()


@pytest.fixture(scope="module")
def window(running: Stack) -> Iterator[Browser]:
    """A browser in which nobody has logged in yet."""
    with Browser.opened(running.airflow.url) as opened:
        yield opened


@pytest.fixture(scope="module")
def admin(running: Stack, window: Browser) -> Browser:
    """The browser of somebody who has logged in on Airflow's page."""
    window.open("/plugin/feature-index")
    window.log_in(running.airflow.username, running.airflow.password)
    return window
