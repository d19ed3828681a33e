"""Do the Feature index pages stay fast? A million documents, five million failures, a hundred reports.

The documents have vectors of eight numbers instead of 2048, which changes nothing but how long it takes to
make them and to compare two. What exact search costs with whole features is measured beside it, on as many
documents as it takes at most.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from elasticsearch import Elasticsearch, helpers

from benchmarks.figures import Figure
from benchmarks.ledger import CATEGORIES, fill_sqlite
from benchmarks.shop import index_of_our_own, surroundings
from local_stack import airflow
from local_stack.process import free_port
from tasks import files
from tasks.errors import RunFailedError
from tasks.inference.model import feature_version
from tasks.runs import reports
from tasks.runs.run import Request
from tasks.search.document_fields import DocumentFields
from tasks.search.exact import exact_nearest
from tasks.search.mapping import FEATURE, FIELDS, VERSION
from tasks.search.queries import ItemQueries, Scope
from tasks.settings import REPOSITORY, Settings
from tasks.shop.connections import SEARCH, Connection
from tasks.shop.ledger import Ledger

DOCUMENTS = 1_000_000
FAILURES = 5_000_000
REPORTS = 100
DIMENSIONS = 8
REQUESTS = 30
"""To each page, after three that are not counted."""

_GARMENTS = ("shirt", "coat", "dress", "skirt", "jumper", "scarf", "boots", "hat", "bag", "trousers")
_COLOURS = ("black", "white", "red", "green", "blue", "yellow", "grey", "brown", "pink", "violet")
_DAG = "nightly_feature_index"
_ITEM = "0000000007"


def measure(rounds: int) -> list[Figure]:
    """Make all of it, then ask for each page some tens of times.

    Raises:
        FeatureIndexError: a server did not come up, or a page did not answer.
    """
    with ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        environment = surroundings(folder, folder / "catalogue.db", "pictures.example", ending)
        search, index = index_of_our_own(environment, ending)
        settings = Settings.load()
        version = feature_version(settings)
        exact = _exact(search, index, version, rounds)
        search.indices.delete(index=index)
        started = time.monotonic()
        _fill(search, index, _documents(version, DOCUMENTS, DIMENSIONS, gaps=True), DIMENSIONS)
        _fill_ledger(settings)
        _write_reports(settings)
        making = time.monotonic() - started
        found = _asked(folder, environment, index)
    return [
        Figure("documents", DOCUMENTS),
        Figure("failures in the ledger", FAILURES),
        Figure("making them", making, "s"),
        Figure("slowest page, median ms", max(page["median"] for page in found.values()) * 1000, at_most=300),
        Figure(
            f"slowest request to any page, ms, {REQUESTS} each",
            max(page["slowest"] for page in found.values()) * 1000,
            at_most=300,
        ),
        *(
            figure
            for name, page in found.items()
            for figure in (
                Figure(f"{name}: median ms", page["median"] * 1000),
                Figure(f"{name}: slowest ms", page["slowest"] * 1000),
                Figure(f"{name}: requests to Elasticsearch", page["elasticsearch"]),
                Figure(f"{name}: statements to databases", page["database"]),
            )
        ),
        *exact,
    ]


def _documents(version: str, count: int, dimensions: int, *, gaps: bool) -> Iterator[dict[str, Any]]:
    """Documents as the core server and the runs leave them; with gaps, one in ten has no feature yet."""
    rng = np.random.default_rng(7)
    for start in range(0, count, 10_000):
        features = rng.random((10_000, dimensions), np.float32)
        for number, feature in enumerate(features, start):
            item_id = f"{number:010}"
            colour = _COLOURS[number // 7 % len(_COLOURS)]
            document = {
                "_id": item_id,
                "item_id": item_id,
                "item_name": f"{colour} {_GARMENTS[number % len(_GARMENTS)]} {number}",
                "category_id": f"{number % CATEGORIES:08}",
                "img_url": f"https://pictures.example/{item_id}.jpg",
            }
            if not (gaps and number % 10 == 9):
                document |= {FEATURE: helpers.pack_dense_vector(feature), VERSION: version}
            yield document


def _fill(search: Elasticsearch, index: str, documents: Iterator[dict[str, Any]], dimensions: int) -> None:
    """Make the index of these documents, searched as a whole."""
    vector = FIELDS[FEATURE] | {"dims": dimensions}
    search.indices.create(
        index=index,
        mappings={"properties": DocumentFields.of(Settings()).properties() | FIELDS | {FEATURE: vector}},
        settings={"refresh_interval": "-1", "translog.durability": "async"},
    )
    actions = ({"_index": index, **document} for document in documents)
    for _ in helpers.parallel_bulk(search, actions, thread_count=4, chunk_size=2_000):
        pass
    search.indices.refresh(index=index)


def _fill_ledger(settings: Settings) -> None:
    """A ledger with its failures."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    fill_sqlite(settings.data_dir / "ledger.db", FAILURES)
    Ledger(None, settings).counts()  # which brings it up to date


def _write_reports(settings: Settings) -> None:
    """Reports as runs leave them, each naming a hundred failures."""
    failures = [
        {
            "item_id": f"{number:010}",
            "img_url": f"https://pictures.example/{number:010}.jpg",
            "status": "gone",
            "reason": "the server answered 404",
        }
        for number in range(100)
    ]
    for number in range(REPORTS):
        report = {
            "dag": _DAG,
            "run": f"run-{number}",
            "interval": {"start": "2026-10-01T00:00:00+00:00", "end": "2026-10-02T00:00:00+00:00"},
            "state": "success",
            "dry_run": False,
            "planned": 10_000,
            "counts": {"current": 4_000, "indexed": 5_900, "gone": 100},
            "failures": failures,
            "notices": [],
            "reasons": [],
            "seconds": 300.0,
            "bytes": 400_000_000,
            "finished_at": "2026-10-02T00:05:00+00:00",
            "stages": {
                stage: {"items": 6_000, "seconds": 300.0, "items_per_second": 20.0}
                for stage in ("plan", "download", "extract", "index")
            },
        }
        path = reports.path(Request(_DAG, report["run"]), settings)
        path.parent.mkdir(parents=True)
        files.write_json(path, report)


def _asked(folder: Path, environment: dict[str, str], index: str) -> dict[str, dict[str, Any]]:
    """What each page takes, by its name."""
    pages = {
        "coverage": "/",
        "backfill of a gap": "/backfill?category_id=00000009",
        "runs": "/runs",
        "a run": f"/runs/{_DAG}/run-7",
        "failures": "/failures",
        "failures of a status": "/failures?status=gone",
        "failures of a category": "/failures?category_id=00000009",
        "failures of no item": "/failures?item_id=none&status=gone",
        "items found by name": "/similar?q=blue+sh",
        "items found by id": f"/similar?q={_ITEM}",
        "similar items": f"/similar?item_id={_ITEM}",
        "similar items of a category": f"/similar?item_id={_ITEM}&category_id=00000013",
    }
    home = folder / "airflow"
    home.mkdir()
    whole = os.environ | airflow.environment(home, shop_env=environment, port=free_port())
    subprocess.run(
        [*airflow.COMMAND, "db", "migrate"], env=whole, cwd=folder, check=True, capture_output=True
    )
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.page_requests", index, str(REQUESTS)]
        + [f"{name}={path}" for name, path in pages.items()],
        env=whole,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RunFailedError(f"The pages were not measured.\n{done.stderr}")
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _exact(search: Elasticsearch, index: str, version: str, rounds: int) -> list[Figure]:
    """What comparing with as many whole features as is allowed takes, and what approximate search misses."""
    count = Settings.load().exact_search_documents
    dimensions = FIELDS[FEATURE]["dims"]
    _fill(search, index, _documents(version, count, dimensions, gaps=False), dimensions)
    shop = ItemQueries(Connection.from_environment(SEARCH), index)
    scope = Scope(version)
    feature = np.random.default_rng(1).random(dimensions, np.float32)
    exact = [_seconds(lambda: exact_nearest(shop, feature, scope, 12)) for _ in range(rounds)]
    tracemalloc.start()
    exact_nearest(shop, feature, scope, 12)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return [
        Figure("exact search: documents of 2048 numbers", shop.count(scope)),
        Figure("exact search", median(exact), "s"),
        Figure("exact search: memory it takes, MB", peak / 1_000_000),
        Figure(
            "approximate search there, ms",
            median(_seconds(lambda: shop.nearest(feature, scope, 12)) for _ in range(REQUESTS)) * 1000,
        ),
    ]


def _seconds(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started
