"""A shop of its own for the benchmarks: catalogue, image server, Elasticsearch; gone when they are done."""

import os
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from elasticsearch import Elasticsearch as Client

from local_stack import image_server
from local_stack.elasticsearch import Elasticsearch, data_folder, server_url_from_environment
from local_stack.shop import Shop
from tasks.runs.run import Request
from tasks.search.client import client
from tasks.search.index import SearchIndex
from tasks.settings import Settings
from tasks.shop.connections import CATALOGUE, SEARCH, Connection, Services
from tasks.stages.pipeline import run


@dataclass(frozen=True)
class BenchmarkShop:
    """A running shop, which this process and those it starts find in their environment."""

    folder: Path
    """A temporary folder; benchmarks may write there too."""
    environment: Mapping[str, str]
    """The variables that name the shop."""
    category_ids: tuple[str, ...]
    """Every category of the catalogue."""
    search: Client
    index: str
    _shop: Shop

    @property
    def data_dir(self) -> Path:
        """Where runs leave their reports."""
        return Path(self.environment["FEATURES_DATA_DIR"])

    def renew_index(self) -> int:
        """Begin again with the core server's documents alone, and return how many there are."""
        self.search.indices.delete(index=self.index, ignore_unavailable=True)
        return self._shop.write_documents(self.search, self.index)

    def backfill(self) -> None:
        """Begin again, and give every document its feature.

        Raises:
            FeatureIndexError: the run failed.
        """
        self.renew_index()
        request = Request("benchmark", f"backfill-{uuid.uuid4().hex}", category_ids=self.category_ids)
        run(request, Settings.load(), Services.from_environment())
        self.search.indices.refresh(index=self.index)


@contextmanager
def running_shop(photos: Path) -> Iterator[BenchmarkShop]:
    """Start a shop of the pictures and the items.csv in `photos`; everything of it ends with the block.

    Elasticsearch is the server of ELASTICSEARCH_URL where that is set; the index is one of our own.

    Raises:
        ConfigurationError: naming what is wrong with the folder.
        ServiceUnavailableError: a server did not come up, or does not answer.
    """
    with ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        shop = Shop.from_folder(folder, photos)
        # A process of its own: in a thread it would compete with what is measured for one interpreter.
        server = image_server.start(shop.image_root, shop.image_port, folder / "image_server.log")
        ending.callback(server.stop)
        environment = surroundings(folder, shop.catalog_path, shop.image_hosts, ending)
        search, index = index_of_our_own(environment, ending)
        yield BenchmarkShop(folder, environment, _category_ids(shop), search, index, shop)


def surroundings(folder: Path, catalogue: Path, image_hosts: str, ending: ExitStack) -> dict[str, str]:
    """The variables that name a shop, set until the end; Elasticsearch is started where none is named.

    Raises:
        ServiceUnavailableError: Elasticsearch did not come up.
    """
    environment = {
        f"AIRFLOW_CONN_{CATALOGUE.upper()}": f"sqlite:///{catalogue}",
        f"AIRFLOW_CONN_{SEARCH.upper()}": server_url_from_environment()
        or _start_elasticsearch(folder, ending),
        "FEATURES_DATA_DIR": str(folder / "data"),
        "FEATURES_IMAGE_HOSTS": image_hosts,
        "FEATURES_INDEX": f"benchmark-{uuid.uuid4().hex[:12]}",
    }
    ending.enter_context(variables_set(environment))
    return environment


def index_of_our_own(environment: Mapping[str, str], ending: ExitStack) -> tuple[Client, str]:
    """A client and the index of FEATURES_INDEX, which is deleted at the end.

    Raises:
        ServiceUnavailableError: Elasticsearch does not answer.
    """
    index = environment["FEATURES_INDEX"]
    connection = Connection.from_environment(SEARCH)
    SearchIndex(connection, index).check()  # says what is wrong with the server of ELASTICSEARCH_URL
    search = ending.enter_context(client(connection))
    ending.callback(search.indices.delete, index=index, ignore_unavailable=True)
    return search, index


def _start_elasticsearch(folder: Path, ending: ExitStack) -> str:
    data = data_folder(folder)
    # It may lie outside the temporary folder.
    ending.callback(shutil.rmtree, data, ignore_errors=True)
    server = Elasticsearch.start(data, folder / "elasticsearch.log")
    ending.callback(server.stop)
    return server.url


def _category_ids(shop: Shop) -> tuple[str, ...]:
    with closing(sqlite3.connect(shop.catalog_path)) as catalogue:
        rows = catalogue.execute("select distinct category_id from items order by category_id")
        return tuple(category_id for (category_id,) in rows)


@contextmanager
def variables_set(values: Mapping[str, str]) -> Iterator[None]:
    """Set these variables, over those of the user, whose own shop is none of a benchmark's business."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
