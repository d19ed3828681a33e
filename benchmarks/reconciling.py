"""What it takes a night to bring lost features back, and to find that none is lost.

As a program, `python -m benchmarks.reconciling NAME`, it plans one such night, for its memory to be measured.
"""

import os
import sqlite3
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from elasticsearch import helpers

from benchmarks.figures import Figure
from benchmarks.memory import peak_of
from benchmarks.volume import CATEGORY, VolumeShop, volume_shop
from tasks.errors import RunFailedError
from tasks.inference.model import feature_version
from tasks.runs.run import Plan, Request
from tasks.search.document_fields import USUAL_FIELDS
from tasks.search.index import SearchIndex
from tasks.search.mapping import FEATURE, URL, VERSION
from tasks.settings import Settings
from tasks.shop.connections import SEARCH, Connection, Services
from tasks.stages import plan

DOCUMENTS = 1_000_000
LOST = 1_000
FEW, MANY = 1_000, 50_000
"""Items registered in a night."""

_START = datetime(2026, 10, 1, tzinfo=UTC)
_TURNS = 5


def measure(photos: Path, rounds: int) -> list[Figure]:
    """Plan nights in which nothing was lost, and one after a thousand documents were written anew.

    Raises:
        FeatureIndexError: a plan is not what it should be.
    """
    with volume_shop(photos) as shop:
        version = feature_version(Settings.load())
        print(f"writing {DOCUMENTS:,} documents ...", file=sys.stderr, flush=True)
        _stock(shop, version)
        many = _nothing_lost(MANY, rounds)
        _write(shop, range(DOCUMENTS - MANY, DOCUMENTS - FEW), version)
        few, lost = _nothing_lost(FEW, rounds), _lost(shop, rounds)
        # The other stages do not know of it, and are measured in an index that takes features.
        shop.stock([shop.url(number) for number in range(FEW)])
        night, _ = shop.run("night")
    with_, without = (figure.value / 1000 for figure in few[:2])
    whole = Figure(
        f"a whole night of {FEW:,} items, none of {DOCUMENTS:,} documents lost: with / without",
        (night + with_ - without) / night,
        at_most=1.1,
    )
    return [whole, *few, *many, *lost]


def _nothing_lost(items: int, rounds: int) -> list[Figure]:
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds * _TURNS + 1):
        for reconcile in (True, False)[:: 1 if number % 2 else -1]:
            started = time.monotonic()
            planned = _planned("none lost", items, reconcile)
            if number:  # the first fills the caches
                seconds[reconcile].append(time.monotonic() - started)
            if planned.planned != items:
                raise RunFailedError(f"{planned.planned} items are planned, not {items}.")
    without, with_ = median(seconds[False]), median(seconds[True])
    what = f"a night of {items:,} items planned, none of {DOCUMENTS:,} documents lost"
    return [
        Figure(f"{what}, ms", with_ * 1000),
        Figure(f"{what}, without looking for them, ms", without * 1000),
        Figure(f"{what}: with / without", with_ / without),
    ]


def _lost(shop: VolumeShop, rounds: int) -> list[Figure]:
    _write(shop, range(0, DOCUMENTS - MANY, (DOCUMENTS - MANY) // LOST), None)
    seconds = []
    for _ in range(rounds):
        started = time.monotonic()
        planned = _planned("lost", FEW, reconcile=True)
        seconds.append(time.monotonic() - started)
        if planned.origins["reconciled"]["planned"] != LOST or planned.planned != FEW + LOST:
            raise RunFailedError(f"{planned.origins} are planned, {LOST} of them reconciled were to be.")
    what = f"{LOST:,} of {DOCUMENTS:,} documents lost"
    peaks = {}
    for name, items in {"looking": Settings.load().reconcile_items, "not looking": 0}.items():
        os.environ["FEATURES_RECONCILE_ITEMS"] = str(items)
        peaks[name], _ = peak_of([sys.executable, "-m", "benchmarks.reconciling", name], shop.folder / "said")
    del os.environ["FEATURES_RECONCILE_ITEMS"]
    return [
        Figure(f"{what}: planned with a night of 1,000 items, ms", median(seconds) * 1000),
        Figure(f"{what}: planning's memory, MB", peaks["looking"] / 1e6),
        Figure(
            f"{what}: planning's memory, with / without looking",
            peaks["looking"] / peaks["not looking"],
            at_most=1.1,
        ),
    ]


def _planned(name: str, items: int, reconcile: bool) -> Plan:
    """A night's plan; the last items of the catalogue are of the night, one a second."""
    end = _START + timedelta(seconds=DOCUMENTS)
    start = end - timedelta(seconds=items)
    # As a scheduled night does, it begins a day before its own interval.
    request = Request(
        "benchmark",
        name,
        start,
        end,
        interval=(start + timedelta(seconds=items // 2), end),
        reconcile=reconcile,
    )
    return plan.run(request, Settings.load(), Services.from_environment())


def _stock(shop: VolumeShop, version: str) -> None:
    """A catalogue whose items were registered one a second, and documents; the newest lack a feature."""
    with closing(sqlite3.connect(shop.folder / "catalogue.db")) as catalogue, catalogue:
        catalogue.execute("delete from items")
        catalogue.executemany(
            "insert into items values (?, ?, ?, ?, ?, null)",
            (
                (
                    *_row(shop, number).values(),
                    f"{_START + timedelta(seconds=number):%Y-%m-%d %H:%M:%S.000000}",
                )
                for number in range(DOCUMENTS)
            ),
        )
    # Bytes take a quarter of the disk, and what is asked for is whether there is a vector.
    vector = {"type": "dense_vector", "dims": 2048, "element_type": "byte", "similarity": "cosine"}
    properties = USUAL_FIELDS.properties() | {FEATURE: vector | {"index_options": {"type": "flat"}}}
    shop.search.indices.create(
        index=shop.index, mappings={"properties": properties}, settings={"refresh_interval": "-1"}
    )
    SearchIndex(Connection.from_environment(SEARCH), shop.index).prepare()
    _write(shop, range(DOCUMENTS - MANY), version)
    _write(shop, range(DOCUMENTS - MANY, DOCUMENTS), None)


def _write(shop: VolumeShop, numbers: range, version: str | None) -> None:
    """Write documents whole, with a feature where a version is given."""
    documents = (_document(shop, number, version) for number in numbers)
    for _ in helpers.parallel_bulk(shop.search, documents, thread_count=2, chunk_size=1_000):
        pass
    shop.search.indices.refresh(index=shop.index)


def _row(shop: VolumeShop, number: int) -> dict[str, str]:
    return {
        "item_id": f"{number:010}",
        "item_name": f"item {number}",
        "category_id": CATEGORY,
        "img_url": shop.url(number),
    }


_VECTOR = bytes(range(1, 129)).hex() * 16


def _document(shop: VolumeShop, number: int, version: str | None) -> dict[str, Any]:
    row = _row(shop, number)
    ours = {FEATURE: _VECTOR, VERSION: version, URL: row["img_url"]} if version else {}
    return {"_index": shop.index, "_id": row["item_id"], "_source": row | ours}


if __name__ == "__main__":
    _planned(sys.argv[1], FEW, reconcile=True)
