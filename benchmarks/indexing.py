"""The index stage against Elasticsearch's own helper with JSON lists, on the same documents and vectors.

Both give existing documents their feature by partial update. The stage reads each document first, guards
its write by the sequence number, looks afterwards what the index holds, and writes the outcomes; the helper
does none of that. It has the client as it comes, and not ours, which puts requests into JSON faster.

On a machine that others keep busy, the ratio of the rates depends on them: the helper's work is spread over
two programs, and the scheduler gives each its share. The ratio of CPU times does not.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from elasticsearch import Elasticsearch, helpers
from numpy.typing import NDArray

from benchmarks.cpu import elasticsearch_seconds
from benchmarks.figures import Figure
from benchmarks.volume import CATEGORY, VolumeShop, volume_shop
from tasks.errors import RunFailedError
from tasks.runs import packs
from tasks.runs.run import Chunk, Plan, Request
from tasks.search.index import SearchIndex
from tasks.search.mapping import AT, FEATURE, IMAGE, URL, VERSION
from tasks.settings import Settings
from tasks.shop.connections import SEARCH, Connection, Services
from tasks.stages import index

DOCUMENTS = 5_000

_WARMING_UP = 2
"""Rounds."""

_Work = Callable[[], None]
_VERSION = "inception_v3-0123456789ab-random"


@dataclass(frozen=True)
class _Cost:
    """What it took to write all documents, in seconds."""

    wall: float
    ours: float
    """CPU time of this process."""
    server: float
    """CPU time of Elasticsearch."""


def measure(photos: Path, rounds: int) -> list[Figure]:
    """Write the same features both ways, `rounds` times, each time into a fresh index.

    Rounds before them do not count: Elasticsearch compiles its code as it runs.

    Raises:
        FeatureIndexError: a document did not get its feature.
    """
    # As spread as real ones, and no two alike.
    features = np.random.default_rng(5).gamma(0.5, 0.8, (DOCUMENTS, 2048)).astype(np.float32)
    costs: dict[str, list[_Cost]] = {"index stage": [], "parallel_bulk": []}
    with volume_shop(photos) as shop:
        urls = [shop.url(number) for number in range(DOCUMENTS)]
        for number in range(1 - _WARMING_UP, rounds + 1):
            # Neither way is always first.
            for way in list(costs)[:: -1 if number % 2 else 1]:
                work = (
                    _stage(shop, urls, features, number)
                    if way == "index stage"
                    else _helper(shop, urls, features)
                )
                shop.stock(urls)
                SearchIndex(Connection.from_environment(SEARCH), shop.index).prepare()
                cost = _cost(shop, work)
                which = f"round {number} of {rounds}" if number > 0 else "to warm up"
                print(f"{which}, {way}: {DOCUMENTS / cost.wall:.0f}/s", file=sys.stderr, flush=True)
                held = shop.search.count(index=shop.index, query={"exists": {"field": FEATURE}})["count"]
                if held != DOCUMENTS:
                    raise RunFailedError(f"The {way} left {held} of {DOCUMENTS} documents with a feature.")
                if number > 0:
                    costs[way].append(cost)
    pairs = list(zip(*costs.values(), strict=True))
    figures = [
        Figure(f"{way}, documents/s, median of {rounds}", median(DOCUMENTS / cost.wall for cost in found))
        for way, found in costs.items()
    ]
    figures.append(
        Figure(
            "index stage / parallel_bulk with JSON lists, 4 threads, median",
            median(helper.wall / stage.wall for stage, helper in pairs),
            at_least=3.0,
        )
    )
    figures.append(
        Figure(
            "CPU of parallel_bulk / of the index stage, both ends, median",
            median((helper.ours + helper.server) / (stage.ours + stage.server) for stage, helper in pairs),
        )
    )
    for way, found in costs.items():
        for whose in ("ours", "server"):
            spent = median(getattr(cost, whose) for cost in found) / DOCUMENTS
            process = "our process" if whose == "ours" else "Elasticsearch"
            figures.append(Figure(f"{way}: ms of CPU a document, {process}", spent * 1000))
    return figures


def _cost(shop: VolumeShop, work: _Work) -> _Cost:
    server, ours, wall = elasticsearch_seconds(shop.search), time.process_time(), time.monotonic()
    work()
    return _Cost(
        time.monotonic() - wall, time.process_time() - ours, elasticsearch_seconds(shop.search) - server
    )


def _stage(shop: VolumeShop, urls: Sequence[str], features: NDArray[np.float32], number: int) -> _Work:
    chunk = _chunk(shop, urls, features, f"round-{number}")

    def work() -> None:
        statistics = index.run(chunk, Settings.load(), Services.from_environment())
        if statistics["counts"] != {"indexed": DOCUMENTS}:
            raise RunFailedError(f"The index stage reports {statistics['counts']}.")

    return work


def _helper(shop: VolumeShop, urls: Sequence[str], features: NDArray[np.float32]) -> _Work:
    def actions() -> Iterator[dict[str, Any]]:
        for number, (url, feature) in enumerate(zip(urls, features, strict=True)):
            yield {
                "_op_type": "update",
                "_index": shop.index,
                "_id": f"{number:010}",
                "doc": {
                    FEATURE: feature.tolist(),
                    VERSION: _VERSION,
                    URL: url,
                    IMAGE: f"{number:064}",
                    AT: "2026-10-01T00:00:00+00:00",
                },
            }

    def work() -> None:
        server = shop.environment[f"AIRFLOW_CONN_{SEARCH.upper()}"]
        with Elasticsearch(server, request_timeout=60) as client:
            for _ in helpers.parallel_bulk(client, actions(), thread_count=4):
                pass
        shop.search.indices.refresh(index=shop.index)

    return work


def _chunk(shop: VolumeShop, urls: Sequence[str], features: NDArray[np.float32], name: str) -> Chunk:
    """A chunk whose pictures and features are there already."""
    request = Request("benchmark", name, category_ids=(CATEGORY,))
    plan = Plan(
        folder=request.folder(shop.folder / "data") / "plan-000000000000",
        request=request,
        feature_version=_VERSION,
        planned=len(urls),
        current=0,
        created_at=datetime.now(UTC),
        bounds=(0, len(urls)),
        labels=("all",),
    )
    (chunk,) = plan.chunks
    with packs.writing(plan.items, packs.ITEMS) as items:
        for number, url in enumerate(urls):
            items.add(
                {
                    "item_id": f"{number:010}",
                    "item_name": f"item {number}",
                    "category_id": CATEGORY,
                    "img_url": url,
                }
            )
    with packs.writing(chunk.pictures, packs.PICTURES) as pictures:
        for number, url in enumerate(urls):
            pictures.add({"img_url": url, "sha256": f"{number:064}", "content": b""})
    with packs.writing(chunk.features, packs.FEATURES) as pack:
        for number, feature in enumerate(features):
            pack.add({"sha256": f"{number:064}", "feature": feature.astype(packs.FEATURE).tobytes()})
    plan.save()
    return chunk
