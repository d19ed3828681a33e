"""What it takes to find out what there is to do: where all is current, and in a large catalogue."""

import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import numpy as np
import pandas
import sqlalchemy as sa
from elasticsearch import helpers

from benchmarks import postgresql
from benchmarks.figures import Figure
from benchmarks.volume import CATEGORY, VolumeShop, volume_shop
from local_stack import mariadb
from local_stack.shop import SCHEMA
from tasks.errors import ConfigurationError, RunFailedError
from tasks.inference.model import feature_version
from tasks.runs.run import Request
from tasks.search.index import SearchIndex
from tasks.search.mapping import FEATURE, FIELDS, URL, VERSION
from tasks.settings import Settings
from tasks.shop.catalogue import Catalogue
from tasks.shop.connections import CATALOGUE, SEARCH, Connection, Services
from tasks.stages import plan

CURRENT = 100_000
SMALL, LARGE = 50_000, 5_000_000
NIGHT = 1_000

_GETS = 2_000
_NIGHTS_A_ROUND = 5
_START = datetime(2026, 10, 1, tzinfo=UTC)
_END = _START + timedelta(days=1)

_FILL = """
insert into items
select {padded}, 'item ' || i, '{category}', 'https://cdn.example.com/' || (i * 7919 % {size}) || '.jpg',
    case when i > {size} - {night} then {in_the_night} else {before} end,
    case when i % 10 = 0 and i <= {size} - {night} then {before} end
from {numbers}
"""
"""Rows 1 to {size}: the last of them registered in the night, a tenth of the others changed before it."""


def measure(photos: Path, rounds: int) -> list[Figure]:
    """Plan where nothing is to do, and a night in a small and a large catalogue of each kind.

    Raises:
        FeatureIndexError: a plan is not what it should be, or there is no MariaDB server.
    """
    if problem := mariadb.missing():
        raise ConfigurationError(f"{problem}.")
    with volume_shop(photos) as shop:
        feature_version(Settings.load())
        return [*_nothing_to_do(shop, rounds), *_a_night(shop, rounds)]


# Where all is current ---------------------------------------------------------------------------


def _nothing_to_do(shop: VolumeShop, rounds: int) -> list[Figure]:
    print(f"writing {CURRENT:,} documents that are current ...", file=sys.stderr, flush=True)
    _make_current(shop)
    request = Request("benchmark", "current", category_ids=(CATEGORY,))
    planning, getting = [], []
    for number in range(rounds + 1):
        started = time.monotonic()
        planned = plan.run(request, Settings.load(), Services.from_environment())
        planning.append(CURRENT / (time.monotonic() - started))
        if (planned.planned, planned.current) != (CURRENT, CURRENT):
            raise RunFailedError(f"{planned.current} of {planned.planned} items are current, not all.")
        started = time.monotonic()
        for item in range(0, CURRENT, CURRENT // _GETS):
            shop.search.get(index=shop.index, id=f"{item:010}", source_includes=[VERSION, URL])
        getting.append(_GETS / (time.monotonic() - started))
        which = f"round {number} of {rounds}" if number else "to warm up"
        print(f"{which}: {planning[-1]:.0f}/s, {getting[-1]:.0f}/s", file=sys.stderr, flush=True)
    ratio = median(a / b for a, b in zip(planning[1:], getting[1:], strict=True))
    return [
        Figure(f"planning {CURRENT:,} items that are current, items/s", median(planning[1:])),
        Figure(f"one GET an item, items/s (of {_GETS:,})", median(getting[1:])),
        Figure("planning / one GET an item, median", ratio, at_least=50),
    ]


def _make_current(shop: VolumeShop) -> None:
    urls = [shop.url(number) for number in range(CURRENT)]
    shop.stock(urls)
    # Planning looks for a vector and not into it, so none of the time goes into a graph.
    flat = FIELDS[FEATURE] | {"index_options": {"type": "int8_flat"}}
    shop.search.indices.put_mapping(index=shop.index, properties={FEATURE: flat})
    SearchIndex(Connection.from_environment(SEARCH), shop.index).prepare()
    shop.search.indices.put_settings(index=shop.index, settings={"refresh_interval": "-1"})
    version = feature_version(Settings.load())
    vectors = [
        helpers.pack_dense_vector(vector)
        for vector in np.random.default_rng(6).random((100, 2048), np.float32)
    ]
    updates = (
        {
            "_op_type": "update",
            "_index": shop.index,
            "_id": f"{number:010}",
            "doc": {FEATURE: vectors[number % len(vectors)], VERSION: version, URL: url},
        }
        for number, url in enumerate(urls)
    )
    for _ in helpers.parallel_bulk(shop.search, updates, thread_count=4):
        pass
    shop.search.indices.refresh(index=shop.index)


# A night in a large catalogue -------------------------------------------------------------------


def _a_night(shop: VolumeShop, rounds: int) -> list[Figure]:
    figures = []
    kinds = {"SQLite": _sqlite, "PostgreSQL": _postgresql, "MariaDB": _mariadb}
    for kind, catalogues in kinds.items():
        print(f"filling {kind} with {SMALL:,} and {LARGE:,} items ...", file=sys.stderr, flush=True)
        with catalogues(shop) as found:
            rows = [
                {"round": number, "size": size} | _of_a_night(found[size])
                for number in range(rounds + 1)
                for size in (SMALL, LARGE)[:: -1 if number % 2 else 1]
            ]
        # The first round fills the caches.
        seconds = pandas.DataFrame(rows).query("round > 0").pivot(index="round", columns="size")
        print(f"{kind}, seconds:\n{seconds}", file=sys.stderr, flush=True)
        for what, goal in {"a night planned": 1.5, "its rows read": None}.items():
            of_size = seconds[what]
            figures += [
                Figure(f"{kind}: {what}, {NIGHT:,} items of {size:,}, ms", milliseconds)
                for size, milliseconds in (of_size.median() * 1000).items()
            ]
            ratio = float((of_size[LARGE] / of_size[SMALL]).median())
            figures.append(Figure(f"{kind}: {what}, {LARGE:,} / {SMALL:,}", ratio, at_most=goal))
    return figures


def _of_a_night(connection: Connection) -> dict[str, float]:
    """Seconds to plan the night, and to read its rows alone: medians of a few."""
    services = Services(connection, Connection.from_environment(SEARCH))
    request = Request("benchmark", "night", _START, _END)

    def planned() -> int:
        return plan.run(request, Settings.load(), services).planned

    def read() -> int:
        return sum(1 for _ in Catalogue(connection).changed(_START, _END))

    return {"a night planned": _median_seconds(planned), "its rows read": _median_seconds(read)}


def _median_seconds(work: Callable[[], int]) -> float:
    seconds = []
    for _ in range(_NIGHTS_A_ROUND):
        started = time.monotonic()
        found = work()
        seconds.append(time.monotonic() - started)
        if found != NIGHT:
            raise RunFailedError(f"The night has {found} items, not {NIGHT}.")
    return median(seconds)


@contextmanager
def _sqlite(shop: VolumeShop) -> Iterator[Mapping[int, Connection]]:
    time_ = f"strftime('%Y-%m-%d %H:%M:%f000', '{_START:%Y-%m-%d}', ({{}}) || ' seconds')"
    paths = {size: shop.folder / f"night-{size}.db" for size in (SMALL, LARGE)}
    for size, path in paths.items():
        with closing(sqlite3.connect(path)) as database:
            database.execute("pragma journal_mode = off")
            database.execute("pragma synchronous = off")
            table, *indexes = (statement for statement in SCHEMA.split(";") if statement.strip())
            database.execute(table)
            database.execute(
                _FILL.format(
                    size=size,
                    night=NIGHT,
                    category=CATEGORY,
                    padded="printf('%010d', i)",
                    before=time_.format(f"({size} - i) * -36"),
                    in_the_night=time_.format("i % 86400"),
                    numbers="(with recursive n(i) as "
                    f"(select 1 union all select i + 1 from n where i < {size}) select i from n)",
                )
            )
            for index in indexes:
                database.execute(index)
            database.commit()
    yield {size: Connection(CATALOGUE, "sqlite", schema=str(path)) for size, path in paths.items()}
    for path in paths.values():
        path.unlink()


@contextmanager
def _postgresql(_: VolumeShop) -> Iterator[Mapping[int, Connection]]:
    with postgresql.running() as server:
        yield {size: _filled_postgresql(server, size) for size in (SMALL, LARGE)}


def _filled_postgresql(server: sa.URL, size: int) -> Connection:
    """A database of `size` items."""
    fill = _FILL.format(
        size=size,
        night=NIGHT,
        category=CATEGORY,
        padded="lpad(i::text, 10, '0')",
        before=f"timestamptz '{_START}' - ({size} - i) * interval '36 seconds'",
        in_the_night=f"timestamptz '{_START}' + i % 86400 * interval '1 second'",
        numbers=f"generate_series(1::bigint, {size}) as numbers(i)",
    )
    statements = (
        "create table items (item_id text primary key, item_name text, category_id text, img_url text, "
        "registered_at timestamptz not null, updated_at timestamptz)",
        fill,
        "create index on items (updated_at)",
        "create index on items (registered_at)",
        "create index on items (category_id)",
        "vacuum analyze items",
    )
    return postgresql.new_database(server, f"night_{size}", statements, CATALOGUE)


@contextmanager
def _mariadb(_: VolumeShop) -> Iterator[Mapping[int, Connection]]:
    with mariadb.running() as socket:
        yield {size: _filled_mariadb(socket, size) for size in (SMALL, LARGE)}


def _filled_mariadb(socket: str, size: int) -> Connection:
    """A database of `size` items."""
    import pymysql

    database = f"night_{size}"
    midnight = f"timestamp '{_START:%Y-%m-%d %H:%M:%S}'"
    fill = _FILL.format(
        size=size,
        night=NIGHT,
        category=CATEGORY,
        padded="lpad(i, 10, '0')",
        before=f"{midnight} - interval ({size} - i) * 36 second",
        in_the_night=f"{midnight} + interval i % 86400 second",
        numbers=f"(select seq as i from seq_1_to_{size}) as numbers",
    )
    with closing(pymysql.connect(unix_socket=socket, autocommit=True)) as connection:
        for statement in (
            f"create database {database}",
            f"use {database}",
            "create table items (item_id varchar(20) primary key, item_name text, category_id varchar(20), "
            "img_url varchar(2000), registered_at datetime(6) not null, updated_at datetime(6))",
            "set sql_mode = concat(@@sql_mode, ',PIPES_AS_CONCAT')",
            fill,
            "create index items_updated_at on items (updated_at)",
            "create index items_registered_at on items (registered_at)",
            "create index items_category_id on items (category_id)",
            "analyze table items",
        ):
            connection.cursor().execute(statement)
    return Connection(CATALOGUE, "mysql", schema=database, extra={"unix_socket": socket})
