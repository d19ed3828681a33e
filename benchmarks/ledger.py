"""Does the ledger hold five million failures? What an hour's retry and the page of failures take with them.

Each ledger is made as the releases left it that kept no version, so that opening it brings it up to date. All
its failures but a third, which are given up, are due.
"""

import json
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median

from elasticsearch import helpers

from benchmarks import postgresql
from benchmarks.figures import Figure
from benchmarks.volume import VolumeShop, volume_shop
from local_stack.shop import SCHEMA
from tasks.errors import RunFailedError
from tasks.inference.model import feature_version
from tasks.runs.run import Request, Retry
from tasks.search.index import SearchIndex
from tasks.settings import REPOSITORY, Settings
from tasks.shop.connections import CATALOGUE, LEDGER, SEARCH, Connection, Services
from tasks.shop.ledger import Ledger
from tasks.stages import plan
from tasks.statuses import Status

FAILURES = 5_000_000
CATEGORIES = 400
DOCUMENTS = 100_000
"""Of the items that failed first, all that one retry takes among them."""
READS = 20
"""Of each page, after one that is not counted."""

_STATUSES = [status.value for status in Status if status.failure or status.retried]
_SCHEMA = REPOSITORY / "sql" / "ledger" / "schema_1.sql"
_FILL = """
insert into failures
select {id}, {category}, 'https://pictures.example/' || {id} || '.jpg', {status}, 'the server answered 404',
    1, {failed_at}, {failed_at}, case when n % 3 > 0 then {failed_at} end, 'plan-' || n % 100, {failed_at}
from {numbers}
"""
"""One a second."""
_FILL_CATALOGUE = """
insert into items
with recursive numbers (n) as (select 0 union all select n + 1 from numbers where n + 1 < {count})
select printf('%010d', n), 'item ' || n, printf('%08d', n % {categories}),
    'https://pictures.example/' || printf('%010d', n) || '.jpg', '2020-01-01 00:00:00.000000', null
from numbers
"""


def measure(photos: Path, rounds: int) -> list[Figure]:
    """Plan the hourly retry and read the page of failures, with a ledger in each database.

    Raises:
        FeatureIndexError: a server did not come up, or a plan is not what it should be.
    """
    with volume_shop(photos) as shop:
        feature_version(Settings.load())
        print(f"filling the catalogue with {FAILURES:,} items ...", file=sys.stderr, flush=True)
        _fill_shop(shop)
        figures = [Figure("failures in each ledger", FAILURES)]
        for kind, ledgers in {"SQLite": _sqlite, "PostgreSQL": _postgresql}.items():
            print(f"filling {kind} ...", file=sys.stderr, flush=True)
            with ledgers(shop) as connection:
                figures += [
                    Figure(f"{kind}: {figure.name}", figure.value, figure.unit, at_most=figure.at_most)
                    for figure in _measured(connection, rounds)
                ]
        return figures


def fill_sqlite(file: Path, count: int) -> None:
    """A ledger with so many failures, as the releases left it that kept no version."""
    with closing(sqlite3.connect(file)) as ledger, ledger:
        ledger.executescript(_SCHEMA.read_text())
        ledger.execute(
            _FILL.format(
                id="printf('%010d', n)",
                category=f"printf('%08d', n % {CATEGORIES})",
                status=f"json_extract('{json.dumps(_STATUSES)}', '$[' || (n % {len(_STATUSES)}) || ']')",
                failed_at="datetime('2020-01-01', n || ' seconds') || '.000000'",
                numbers="(with recursive numbers (n) as (select 0 union all "
                f"select n + 1 from numbers where n + 1 < {count}) select n from numbers)",
            )
        )


def _measured(connection: Connection, rounds: int) -> list[Figure]:
    catalogue, search = map(Connection.from_environment, (CATALOGUE, SEARCH))
    services = Services(catalogue, search, connection)
    settings = Settings.load()
    ledger = Ledger(connection, settings)
    upgraded = _seconds(ledger.counts)
    if sum(sum(count.values()) for count in ledger.counts().values()) != FAILURES:
        raise RunFailedError("The ledger has lost failures while it was brought up to date.")

    started = time.monotonic()
    first = plan.run(Request("benchmark", "retry", retry=Retry()), settings, services)
    sweeping = time.monotonic() - started
    ledger.record(first, [])  # so that the sweep is done for today
    hours = []
    for number in range(rounds):
        started = time.monotonic()
        planned = plan.run(Request("benchmark", f"retry {number}", retry=Retry()), settings, services)
        hours.append(time.monotonic() - started)
        if planned.planned != min(settings.retry_items, FAILURES - -(-FAILURES // 3)) or planned.swept:
            raise RunFailedError(f"The retry planned {planned.planned} items.")

    middle = ledger.page(at_most=1)[0].last_at
    category = f"{7:08}"
    reads: dict[str, Callable[[], object]] = {
        "counts": ledger.counts,
        "the last failures": lambda: ledger.page(at_most=51),
        "failures in the middle": lambda: ledger.page(at_most=51, after=(middle, "5")),
        "failures by item": lambda: ledger.page(at_most=51, latest_first=False),
        "failures of a status": lambda: ledger.page(at_most=51, status=Status.GONE),
        "failures of no such status": lambda: ledger.page(at_most=51, status=Status.INDEXED),
        "failures of a category": lambda: ledger.page(at_most=51, category_id=category),
        "failures of no such category": lambda: ledger.page(at_most=51, category_id="none"),
        "failures of a status and a category": lambda: ledger.page(
            at_most=51, status=Status.GONE, category_id=category
        ),
        "failures of no such status, by item": lambda: ledger.page(
            at_most=51, status=Status.INDEXED, latest_first=False
        ),
        "failures of no such item": lambda: ledger.page(at_most=51, item_id="none"),
    }
    medians = {}
    for name, read in reads.items():
        read()
        medians[name] = median(_seconds(read) for _ in range(READS)) * 1000
    return [
        Figure("brought up to date", upgraded, "s"),
        Figure(f"an hour's retry planned, {planned.planned:,} items", median(hours), "s", at_most=60),
        Figure("the same with the day's look through what is given up", sweeping, "s"),
        Figure("slowest read of the page of failures, median ms", max(medians.values()), at_most=300),
        *(Figure(f"{name}, ms", milliseconds) for name, milliseconds in medians.items()),
    ]


def _seconds(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _fill_shop(shop: VolumeShop) -> None:
    """An item for each failure, and the core server's documents of those that failed first."""
    with closing(sqlite3.connect(shop.folder / "catalogue.db")) as catalogue, catalogue:
        catalogue.executescript(SCHEMA)
        catalogue.execute(_FILL_CATALOGUE.format(count=FAILURES, categories=CATEGORIES))
    SearchIndex(Connection.from_environment(SEARCH), shop.index).prepare()
    documents = (
        {
            "_index": shop.index,
            "_id": f"{number:010}",
            "item_id": f"{number:010}",
            "img_url": f"https://pictures.example/{number:010}.jpg",
        }
        for number in range(min(DOCUMENTS, FAILURES))
    )
    helpers.bulk(shop.search, documents, chunk_size=2_000, refresh=True)


@contextmanager
def _sqlite(shop: VolumeShop) -> Iterator[Connection]:
    file = shop.folder / "ledger.db"
    fill_sqlite(file, FAILURES)
    yield Connection(LEDGER, "sqlite", schema=str(file))
    file.unlink()


@contextmanager
def _postgresql(_: VolumeShop) -> Iterator[Connection]:
    statuses = ", ".join(f"'{status}'" for status in _STATUSES)
    fill = _FILL.format(
        id="lpad(n::text, 10, '0')",
        category=f"lpad((n % {CATEGORIES})::text, 8, '0')",
        status=f"(array[{statuses}])[n % {len(_STATUSES)} + 1]",
        failed_at="timestamptz '2020-01-01 00:00:00+00' + n * interval '1 second'",
        numbers=f"generate_series(0, {FAILURES - 1}) as numbers(n)",
    )
    with postgresql.running() as server:
        statements = (_SCHEMA.read_text(), fill, "vacuum analyze failures")
        yield postgresql.new_database(server, "ledger", statements, LEDGER)
