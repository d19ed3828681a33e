"""What the tests of several stages share."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.inference.model import Model, feature_version, load
from tasks.settings import Settings
from tests.scripted_server import ScriptedServer
from tests.shop_fixtures import CATALOGUE_KINDS, CatalogueBuilder, SmallShop, remember_model


@pytest.fixture
def image_server() -> Iterator[ScriptedServer]:
    """An HTTP server on the loopback interface that answers as the test scripts it."""
    with ScriptedServer() as server:
        yield server


@pytest.fixture(params=CATALOGUE_KINDS)
def catalogue(
    request: pytest.FixtureRequest, new_catalogue: Callable[..., CatalogueBuilder]
) -> CatalogueBuilder:
    """An empty catalogue of each kind in turn."""
    return new_catalogue(request.param)


@pytest.fixture(params=("sqlite", "timestamptz", "datetime(6)"), ids=("sqlite", "postgresql", "mariadb"))
def shop(request: pytest.FixtureRequest, new_shop: Callable[[str], SmallShop]) -> SmallShop:
    """An empty shop, with SQLite, PostgreSQL and MariaDB."""
    return new_shop(request.param)


@pytest.fixture(scope="session")
def met_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The built model's feature version, and a data dir that remembers it."""
    data_dir = tmp_path_factory.mktemp("met_model")
    remember_model(data_dir)
    return feature_version(Settings(data_dir=data_dir)), data_dir


@pytest.fixture
def model_version(met_model: tuple[str, Path], tmp_path: Path) -> str:
    """The built model's feature version; a shop's data dir remembers it, so nothing has to load it."""
    version, data_dir = met_model
    shutil.copytree(data_dir, tmp_path / "var")
    return version


@pytest.fixture(scope="session")
def loaded_model(met_model: tuple[str, Path]) -> Model:
    """The real model, loaded once for the runs inside this process."""
    return load(Settings(data_dir=met_model[1]))
