"""A shop of any number of items, for benchmarks that need volume: distinct copies of a few photos."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elasticsearch import Elasticsearch as Client
from elasticsearch import helpers

from benchmarks.rivals import python_with
from benchmarks.shop import index_of_our_own, surroundings
from local_stack.process import Server, free_port
from local_stack.shop import SCHEMA
from tasks import files
from tasks.__main__ import DAG
from tasks.errors import RunFailedError
from tasks.settings import REPOSITORY

CATEGORY = "00000010"
"""All items are of this one."""

_START_SECONDS = 20


@dataclass(frozen=True)
class VolumeShop:
    """A running shop whose items a benchmark chooses by their URLs."""

    folder: Path
    environment: Mapping[str, str]
    search: Client
    index: str
    server: Server
    host: str
    """The photo server's; `other_host` is another name of the same."""
    other_host: str

    def url(self, number: int, kind: str = "photo") -> str:
        """The URL of a picture; see benchmarks/photo_server.py."""
        return f"http://{self.host}/{kind}/{number}"

    def stock(self, urls: Sequence[str]) -> None:
        """Begin again with an item for each URL: the catalogue, and the core server's documents."""
        rows = [(f"{number:010}", f"item {number}", CATEGORY, url) for number, url in enumerate(urls)]
        with closing(sqlite3.connect(self.folder / "catalogue.db")) as catalogue, catalogue:
            catalogue.execute("DELETE FROM items")
            catalogue.executemany(
                "INSERT INTO items VALUES (?, ?, ?, ?, '2026-10-01 00:00:00.000000', NULL)", rows
            )
        self.search.indices.delete(index=self.index, ignore_unavailable=True)
        columns = ("item_id", "item_name", "category_id", "img_url")
        documents = (
            {"_index": self.index, "_id": row[0], "_source": dict(zip(columns, row, strict=True))}
            for row in rows
        )
        helpers.bulk(self.search, documents, chunk_size=2_000, refresh=True)

    def run(self, name: str, **settings: str) -> tuple[float, dict[str, Any]]:
        """Run all items by `python -m tasks`; the seconds it took, Python's start included, and the report.

        `settings` are environment variables. The packs are removed, since they would fill the disk.

        Raises:
            RunFailedError: with what the run said.
        """
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "tasks", "run", "--run", name, "--category", CATEGORY],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | settings,
            cwd=REPOSITORY,
        )
        seconds = time.monotonic() - started
        if done.returncode != 0:
            raise RunFailedError(f"The run {name} failed.\n{done.stdout}")
        run = self.folder / "data" / DAG / name
        report: dict[str, Any] = files.read_json(run / "report.json")
        shutil.rmtree(run / report["plan"])
        return seconds, report


@contextmanager
def photo_server(
    photos: Path, folder: Path, latency: float, certificate: Path | None = None, *, http2: bool = False
) -> Iterator[tuple[Server, int]]:
    """Run benchmarks/photo_server.py and give its port; `latency` is seconds before each answer, and with a
    `certificate` it serves over TLS. With `http2` it is benchmarks/http2_server.py, which needs one.

    Raises:
        ServiceUnavailableError: it did not come up, or cannot be installed.
    """
    port, milliseconds = free_port(), str(latency * 1000)
    command = [
        sys.executable,
        "-m",
        "benchmarks.photo_server",
        photos,
        str(port),
        "--latency-ms",
        milliseconds,
    ]
    if certificate is not None:
        command += ["--certificate", certificate]
    if http2:
        command = [
            python_with("granian"),
            "-m",
            "benchmarks.http2_server",
            photos,
            str(port),
            certificate,
            milliseconds,
        ]
    server = Server.start_listening(
        "The photo server",
        command,
        port,
        folder / "photo_server.log",
        cwd=REPOSITORY,
        seconds=_START_SECONDS,
    )
    try:
        yield server, port
    finally:
        server.stop()


@contextmanager
def volume_shop(
    photos: Path, *, latency: float = 0.0, image_hosts: Sequence[str] = ()
) -> Iterator[VolumeShop]:
    """Start a shop without items; everything of it ends with the block.

    Args:
        photos: a folder with JPEG files anywhere below it.
        latency: seconds before each picture's answer.
        image_hosts: hosts as FEATURES_IMAGE_HOSTS lists them, besides that of the photos.

    Raises:
        ServiceUnavailableError: a server did not come up, or does not answer.
    """
    with ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        server, port = ending.enter_context(photo_server(photos, folder, latency))
        with closing(sqlite3.connect(folder / "catalogue.db")) as catalogue:
            catalogue.executescript(SCHEMA)
        hosts = ",".join([f"127.0.0.1:{port}", f"localhost:{port}", *image_hosts])
        environment = surroundings(folder, folder / "catalogue.db", hosts, ending)
        search, index = index_of_our_own(environment, ending)
        yield VolumeShop(folder, environment, search, index, server, f"127.0.0.1:{port}", f"localhost:{port}")
