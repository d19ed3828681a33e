"""What the tests of several stages share."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.connections import Services
from tasks.model import feature_version
from tasks.settings import Settings
from tests.scripted_server import ScriptedServer
from tests.shop_fixtures import (
    CATALOGUE_KINDS,
    CatalogueBuilder,
    SmallShop,
    postgres_catalogue,
    search_connection,
    sqlite_catalogue,
)


@pytest.fixture
def image_server() -> Iterator[ScriptedServer]:
    """An HTTP server on the loopback interface that answers as the test scripts it."""
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def new_catalogue(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., CatalogueBuilder]:
    """Makes an empty catalogue: new_catalogue(kind), kind being one of CATALOGUE_KINDS."""

    def make(kind: str, **options: Any) -> CatalogueBuilder:
        if kind == "sqlite":
            return sqlite_catalogue(tmp_path / "catalog.db", **options)
        return postgres_catalogue(request.getfixturevalue("postgres_url"), kind, **options)

    return make


@pytest.fixture(params=CATALOGUE_KINDS)
def catalogue(
    request: pytest.FixtureRequest, new_catalogue: Callable[..., CatalogueBuilder]
) -> CatalogueBuilder:
    """An empty catalogue of each kind in turn."""
    return new_catalogue(request.param)


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


@pytest.fixture(params=("sqlite", "timestamptz"), ids=("sqlite", "postgresql"))
def shop(request: pytest.FixtureRequest, new_shop: Callable[[str], SmallShop]) -> SmallShop:
    """An empty shop, with SQLite and with PostgreSQL."""
    return new_shop(request.param)


@pytest.fixture
def sqlite_shop(new_shop: Callable[[str], SmallShop]) -> SmallShop:
    """An empty shop for tests that the kind of catalogue does not touch."""
    return new_shop("sqlite")


@pytest.fixture(scope="session")
def met_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The built model's feature version, and a data dir that remembers it."""
    data_dir = tmp_path_factory.mktemp("met_model")
    return feature_version(Settings(data_dir=data_dir)), data_dir


@pytest.fixture
def model_version(met_model: tuple[str, Path], tmp_path: Path) -> str:
    """The built model's feature version; a shop's data dir remembers it, so nothing has to load it."""
    version, data_dir = met_model
    shutil.copytree(data_dir, tmp_path / "var")
    return version
