"""Starts and stops the whole shop: catalogue, pictures, image server, Elasticsearch, Airflow, inference."""

import hashlib
import os
import re
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from local_stack import airflow, image_server, inference
from local_stack.airflow import Airflow
from local_stack.elasticsearch import Elasticsearch, data_folder, server_url_from_environment
from local_stack.process import free_port, port_from_environment, require_free, stop_group
from local_stack.shop import Shop
from tasks import files
from tasks.errors import ConfigurationError
from tasks.search.client import client
from tasks.search.document_fields import DocumentFields
from tasks.settings import REPOSITORY, Settings
from tasks.shop.connections import CATALOGUE, SEARCH, Connection

if TYPE_CHECKING:
    import elasticsearch

CATALOGUE_VARIABLE = f"AIRFLOW_CONN_{CATALOGUE.upper()}"
SEARCH_VARIABLE = f"AIRFLOW_CONN_{SEARCH.upper()}"


@dataclass
class Stack:
    """A running shop."""

    folder: Path
    shop: Shop | None
    """None where the environment names another catalogue."""
    settings: Settings
    """As the DAGs see them."""
    search: "elasticsearch.Elasticsearch"
    airflow: Airflow

    @classmethod
    def start(
        cls,
        images: Path | None,
        *,
        say: Callable[[str], None],
        stays: bool,
        folder: Path | None = None,
        airflow_port: int | None = None,
        airflow_path: str = "",
        airflow_settings: Mapping[str, str] | None = None,
    ) -> "Stack":
        """Start what the environment does not name already, and fill it.

        Args:
            images: a folder with items.csv; None renders the pictures.
            say: takes a line about what goes on.
            stays: the servers are to outlive this process, until `stop`, and to serve the HTTP API.
            folder: the shop's state; None takes its place in var/.
            airflow_port: None takes any free one.
            airflow_path: where the UI is on that port, as /shop/airflow.
            airflow_settings: variables for this Airflow alone.

        Raises:
            ConfigurationError: something a person has to change, such as a taken port.
            ServiceUnavailableError: a server did not come up.
        """
        folder = folder or shop_folder(images)
        _refuse_running(folder)
        _stop_recorded(folder)
        if airflow_port is not None:
            require_free(airflow_port, "Airflow's UI", "AIRFLOW_PORT")
        if images is not None and not os.environ.get(CATALOGUE_VARIABLE):
            Shop.from_folder(folder, images)  # what is wrong with it is said before anything starts
        record = _Record(folder, stays)
        try:
            # Its end waits for what is still starting, so that nothing starts after the clean-up.
            with ThreadPoolExecutor(2) as threads:
                elasticsearch: Future[str] = threads.submit(_search_url, folder, record, say)
                shop = _shop(folder, images, record, say)
                defaults = {"FEATURES_DATA_DIR": str(folder)}
                if shop is not None:
                    defaults |= {
                        "FEATURES_IMAGE_HOSTS": shop.image_hosts,
                        CATALOGUE_VARIABLE: f"sqlite:///{shop.catalog_path.resolve()}",
                        "FEATURES_CATEGORY_NAMES_SQL": str(Path(__file__).with_name("category_names.sql")),
                    }
                defaults[SEARCH_VARIABLE] = elasticsearch.result()
                # This process sees the shop as the DAGs do; what was set already stays.
                for name, value in defaults.items():
                    os.environ[name] = os.environ.get(name) or value
                settings = Settings.load()
                search = client(Connection.from_environment(SEARCH))
                say("Starting Airflow ...")
                running = threads.submit(
                    Airflow.start,
                    folder / "airflow",
                    shop_env=defaults | dict(airflow_settings or {}),
                    port=airflow_port,
                    root_path=airflow_path,
                )
                if stays:
                    _serve(folder, settings, record)
                fields = DocumentFields.of(settings)
                if shop is not None and (written := shop.write_documents(search, settings.index, fields)):
                    say(f"The shop's core server wrote {written} documents to {settings.index}.")
                return cls(folder, shop, settings, search, running.result())
        except BaseException:
            stop(folder)
            raise


def shop_folder(images: Path | None) -> Path:
    """Where a shop's state is: shops never mix, however alike their folders are named."""
    if images is None:
        return REPOSITORY / "var" / "rendered"
    path = images.resolve()
    name = re.sub(r"[^A-Za-z0-9_-]", "_", path.name) or "shop"
    return REPOSITORY / "var" / f"{name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:6]}"


def stop(folder: Path) -> bool:
    """End what runs of the shop in `folder`, whoever started it; tells whether anything did.

    Another Ctrl-C meanwhile is ignored: it would leave servers behind.
    """
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        was_running = Airflow.running(folder / "airflow") is not None
        airflow.stop(folder / "airflow")
        return _stop_recorded(folder) or was_running
    finally:
        signal.signal(signal.SIGINT, interrupted)


def serve_again(folder: Path, environment: Mapping[str, str]) -> bool:
    """Start the inference process of a running shop, with its Airflow's environment, unless it is there."""
    record = _Record.of(folder)
    if record.has("inference"):
        return False
    os.environ |= environment
    _serve(folder, Settings.load(), record)
    return True


def running_shops() -> list[Path]:
    """Folders of the shops that `make up` left running, or that an interrupted start left behind."""
    var = REPOSITORY / "var"
    ours = {path.parent for path in var.glob("*/processes.json")}
    return sorted(ours | {path.parent.parent for path in var.glob("*/airflow/processes.json")})


def _shop(folder: Path, images: Path | None, record: "_Record", say: Callable[[str], None]) -> Shop | None:
    if os.environ.get(CATALOGUE_VARIABLE):
        say(f"Using the catalogue of {CATALOGUE_VARIABLE}; no shop is built.")
        return None
    if images is not None:
        shop = Shop.from_folder(folder, images)
    else:
        if not (folder / "shop.json").exists():
            say("Rendering the shop's pictures ...")
        shop = Shop.rendered(folder, now=datetime.now(UTC))
    require_free(shop.image_port, "the shop's image server", "IMAGE_PORT")
    server = image_server.start(shop.image_root, shop.image_port, folder / "image_server.log")
    record.add("image server", server.process.pid)
    return shop


def _serve(folder: Path, settings: Settings, record: "_Record") -> None:
    server = inference.start(settings, folder / "inference.log")
    record.add("inference", server.process.pid)


def _search_url(folder: Path, record: "_Record", say: Callable[[str], None]) -> str:
    if os.environ.get(SEARCH_VARIABLE):
        say(f"Using the Elasticsearch of {SEARCH_VARIABLE}.")
        return os.environ[SEARCH_VARIABLE]
    if url := server_url_from_environment():
        say("Using the Elasticsearch of ELASTICSEARCH_URL.")
        return url
    port = port_from_environment("ELASTICSEARCH_PORT", free_port())
    server = Elasticsearch.start(data_folder(folder), folder / "elasticsearch.log", port=port)
    record.add("Elasticsearch", server.pid)
    return server.url


def _refuse_running(folder: Path) -> None:
    recorded = _recorded(folder)
    owner = recorded.get("owner")
    if any(_is_alive(entry) for entry in recorded.get("servers", {}).values()) and (
        owner is None or _is_alive(owner)
    ):
        raise ConfigurationError(
            f"The shop in {folder} runs already. Use it as it is, or end it with `make down` first."
            if owner is None
            else f"The shop in {folder} is in use by another `make demo`, process {owner[0]}."
        )


def _stop_recorded(folder: Path) -> bool:
    stopped = False
    for pid, started in _recorded(folder).get("servers", {}).values():
        if _is_alive((pid, started)):
            stop_group(pid)
            stopped = True
    (folder / "processes.json").unlink(missing_ok=True)
    return stopped


class _Record:
    """Which processes belong to the shop, with their start times, since ids are used again."""

    def __init__(self, folder: Path, stays: bool) -> None:
        self._path = folder / "processes.json"
        self._values: dict[str, object] = {"owner": None if stays else _identity(os.getpid())}
        self._servers: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, folder: Path) -> "_Record":
        """The record of a shop that was left running."""
        record = cls(folder, stays=True)
        record._servers.update(_recorded(folder).get("servers", {}))
        return record

    def has(self, name: str) -> bool:
        """Whether that server runs."""
        return name in self._servers and _is_alive(self._servers[name])

    def add(self, name: str, pid: int) -> None:
        with self._lock:  # servers start side by side
            self._servers[name] = _identity(pid)
            files.write_json(self._path, self._values | {"servers": self._servers})


def _recorded(folder: Path) -> dict[str, dict[str, tuple[int, float]]]:
    try:
        return files.read_json(folder / "processes.json")
    except FileNotFoundError:
        return {}


def _identity(pid: int) -> tuple[int, float]:
    return pid, psutil.Process(pid).create_time()


def _is_alive(identity: tuple[int, float]) -> bool:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(identity[0])
        return process.create_time() == identity[1] and process.status() != psutil.STATUS_ZOMBIE
    return False
