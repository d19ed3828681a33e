"""The index stage against Elasticsearch's own helper with JSON lists, on the same documents and vectors.

Both give existing documents their feature by partial update. The stage reads each document first, guards the
write by its sequence number and counts afterwards what the index holds; the helper does none of that.
"""

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from elasticsearch import helpers
from numpy.typing import NDArray

from benchmarks.figures import Figure
from benchmarks.volume import CATEGORY, VolumeShop, volume_shop
from tasks import index, packs
from tasks.connections import SEARCH, Connection, Services
from tasks.errors import RunFailedError
from tasks.runs import Chunk, Plan, Request
from tasks.search import AT, FEATURE, IMAGE, URL, VERSION, SearchIndex
from tasks.settings import Settings

DOCUMENTS = 5_000

_VERSION = "inception_v3-0123456789ab-random"


def measure(photos: Path, rounds: int) -> list[Figure]:
    """Write the same features both ways, `rounds` times, each time into a fresh index.

    Raises:
        FeatureIndexError: a document did not get its feature.
    """
    # Not negative, as features are; not compressible, which JSON would profit from.
    features = np.random.default_rng(5).random((DOCUMENTS, 2048), np.float32)
    rates: dict[str, list[float]] = {"index stage": [], "parallel_bulk": []}
    with volume_shop(photos) as shop:
        urls = [shop.url(number) for number in range(DOCUMENTS)]
        for number in range(rounds):
            for way in list(rates)[:: -1 if number % 2 else 1]:
                shop.stock(urls)
                SearchIndex(Connection.from_environment(SEARCH), shop.index).prepare()
                write = _by_stage if way == "index stage" else _by_helper
                seconds = write(shop, urls, features, f"round-{number}")
                rates[way].append(DOCUMENTS / seconds)
                print(f"round {number + 1}, {way}: {rates[way][-1]:.0f}/s", file=sys.stderr, flush=True)
                held = shop.search.count(index=shop.index, query={"exists": {"field": FEATURE}})["count"]
                if held != DOCUMENTS:
                    raise RunFailedError(f"The {way} left {held} of {DOCUMENTS} documents with a feature.")
    ratio = median(a / b for a, b in zip(*rates.values(), strict=True))
    return [
        *(Figure(f"{way}, documents/s, median of {rounds}", median(found)) for way, found in rates.items()),
        Figure("index stage / parallel_bulk with JSON lists, 4 threads", ratio, at_least=3.0),
    ]


def _by_stage(shop: VolumeShop, urls: list[str], features: NDArray[np.float32], name: str) -> float:
    chunk = _chunk(shop, urls, features, name)
    started = time.monotonic()
    index.run(chunk, Settings.load(), Services.from_environment())
    return time.monotonic() - started


def _chunk(shop: VolumeShop, urls: list[str], features: NDArray[np.float32], name: str) -> Chunk:
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
            pack.add({"sha256": f"{number:064}", "feature": feature})
    plan.save()
    return chunk


def _by_helper(shop: VolumeShop, urls: list[str], features: NDArray[np.float32], name: str) -> float:  # noqa: ARG001
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

    started = time.monotonic()
    for _ in helpers.parallel_bulk(shop.search, actions(), thread_count=4):
        pass
    shop.search.indices.refresh(index=shop.index)
    return time.monotonic() - started
