"""What the tests of faults share."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from elastic_transport import Urllib3HttpNode

from tasks.inference.model import Identity
from tasks.shop.connections import Services
from tests.fault_proxy import FaultProxy
from tests.shop_fixtures import FEATURE_VERSION, SmallShop, search_connection


@pytest.fixture
def proxy(elasticsearch_url: str) -> Iterator[FaultProxy]:
    """A proxy before Elasticsearch."""
    with FaultProxy(elasticsearch_url) as proxy:
        yield proxy


@pytest.fixture
def proxied_shop(sqlite_shop: SmallShop, proxy: FaultProxy) -> SmallShop:
    """An empty shop whose Elasticsearch the stages reach through the proxy, and the test itself directly."""
    services = Services(sqlite_shop.services.catalogue, search_connection(proxy.url))
    return replace(sqlite_shop, services=services)


@pytest.fixture
def chosen_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are made for features that a test chose, so that no model has to be loaded."""
    monkeypatch.setattr("tasks.stages.plan.identity", lambda _: Identity(FEATURE_VERSION))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Bulk retries without their pauses, which are noted here."""
    noted: list[float] = []
    monkeypatch.setattr("elasticsearch.helpers.actions.time", SimpleNamespace(sleep=noted.append))
    return noted


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """impatient(kind): from now on, clients wait half a second for an answer to this kind of request."""
    kinds: set[str] = set()
    patient = Urllib3HttpNode.perform_request

    def perform_request(self: Any, method: str, target: str, **options: Any) -> Any:
        if any(kind in target for kind in kinds):
            options["request_timeout"] = 0.5
        return patient(self, method, target, **options)

    monkeypatch.setattr(Urllib3HttpNode, "perform_request", perform_request)
    return kinds.add
