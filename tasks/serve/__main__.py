"""The inference process behind the HTTP API: python -m tasks.serve.

It holds the model, and listens on a Unix socket that is its user's alone. Who may ask is decided before it,
by the routes in plugins/. One is enough for a device.
"""

import argparse
import fcntl
import logging
import os
import resource
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import uvicorn

from tasks.errors import ConfigurationError, FeatureIndexError
from tasks.search.document_fields import DocumentFields
from tasks.search.index import SearchIndex
from tasks.search.queries import ItemQueries
from tasks.serve.api import Service, create_app
from tasks.serve.client import Inference
from tasks.serve.concurrency import ConcurrencyLimit
from tasks.serve.features import Features
from tasks.serve.photos import PhotoSearch
from tasks.serve.saving import Saving
from tasks.settings import Settings
from tasks.shop.connections import SEARCH, Connection

log = logging.getLogger(__name__)

_ENDING = 5
"""Seconds that requests under way have to end in."""
_STACK_BYTES = 1 << 20
"""Of each thread: what they may grow to counts as data already."""
_LONGEST_PATH = 107
"""Bytes of a Unix socket's path; the kernel's own limit."""


def main() -> int:
    """The command; 0 when it was told to end, or the process that was asked answers."""
    parser = argparse.ArgumentParser(prog="python -m tasks.serve", description=__doc__)
    parser.epilog = (
        "It reads the settings FEATURES_… and the connection AIRFLOW_CONN_SHOP_SEARCH from the environment."
    )
    parser.add_argument("--health", action="store_true", help="ask the process that runs how it is")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for name in ("elastic_transport", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if arguments.health:
            print(Inference(Settings.load()).request("GET", "/health").body.decode())
        else:
            serve(Settings.load())
    except FeatureIndexError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        log.info("Ended.")
    return 0


def serve(settings: Settings) -> None:
    """Serve until a signal ends it.

    Raises:
        KeyboardInterrupt: the signal came.
        ConfigurationError: something a person has to set right, such as another process at the socket.
        ServiceUnavailableError: decoders cannot be started on this machine.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (settings.serve_memory, settings.serve_memory))
    threading.stack_size(_STACK_BYTES)
    connection = Connection.from_environment(SEARCH, or_url_in="ELASTICSEARCH_URL")
    path = settings.data_dir / settings.serve_socket
    with ExitStack() as ending:
        ending.enter_context(_held(path))
        features = ending.enter_context(Features(settings))
        model = features.model.identity
        fields = DocumentFields.of(settings)
        documents = Saving(SearchIndex(connection, settings.index, fields), model, settings, create=False)
        ending.callback(documents.close)
        whole = Saving(SearchIndex(connection, settings.serve_index, fields), model, settings, create=True)
        ending.callback(whole.close)
        queries = ItemQueries(connection, settings.index, fields)
        photos = PhotoSearch(queries, model, settings)
        limit = ConcurrencyLimit(settings.serve_requests, settings.serve_timeout)
        ending.callback(limit.close)
        listening = ending.enter_context(_listening(path))
        config = uvicorn.Config(
            create_app(Service(features, documents, whole, photos, limit, settings)),
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=_ENDING,
        )
        log.info(
            "Serving %s on the %s (%s) at %s", model, features.model.device, features.model.precision, path
        )
        uvicorn.Server(config).run([listening])


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold the lock that says a process is at this socket; it ends with the process, however that ends.

    Raises:
        ConfigurationError: another process has it.
    """
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise ConfigurationError(
            f"{path} is too long for a socket: {_LONGEST_PATH} bytes are the most. Set "
            "FEATURES_SERVE_SOCKET to a shorter one, for Airflow's API server too."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"Another process serves at {path} already. End it first, or give this one a "
                "FEATURES_SERVE_SOCKET of its own."
            ) from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A socket at `path` for this user alone; gone with the block."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigurationError(
                f"{path} is there and is no socket. Set FEATURES_SERVE_SOCKET to another path."
            )
        path.unlink()  # a process that died left it
    with socket.socket(socket.AF_UNIX) as listening:
        others = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(others)
        try:
            yield listening
        finally:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
