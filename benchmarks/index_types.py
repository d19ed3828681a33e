"""What Elasticsearch's index types for vectors take and give, side by side on the same features.

The queries are real photos, half of the shop's, that are not in the index. The index holds the other half
and synthetic features: mixtures of two photos of one category with noise. Only so many make the search
approximate at all: in a small index Elasticsearch compares with every vector.
"""

import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np
from elasticsearch import ApiError, helpers
from numpy.typing import NDArray

from benchmarks.cpu import elasticsearch_seconds
from benchmarks.figures import Figure
from benchmarks.retrieval import read_back
from benchmarks.shop import BenchmarkShop
from tasks.errors import RunFailedError
from tasks.search.mapping import FEATURE, FIELDS

DOCUMENTS = 20_000
NEIGHBOURS = 10
NUM_CANDIDATES = 100
OVERSAMPLE = 3.0
"""Times as many neighbours as wanted are compared again by their raw vectors."""

TYPES = ("int8_hnsw", "bbq_hnsw", "hnsw", "bbq_disk")

_OFF_HEAP = {
    "total_vec_size_bytes": "raw vectors",
    "total_veq_size_bytes": "int8 vectors",
    "total_veb_size_bytes": "binary vectors",
    "total_vex_size_bytes": "graph",
}
_NOISE = 0.25
"""Of the logarithm of each of a synthetic feature's numbers: no two are alike."""


def measure(shop: BenchmarkShop) -> list[Figure]:
    """Compute the photos' features, then index the same vectors under each type and search them.

    A type that the server's licence does not include is left out.

    Raises:
        FeatureIndexError: the backfill failed, or an index does not hold every document.
    """
    shop.backfill()
    _, categories, photos = read_back(shop)
    queries, held = photos[::2], photos[1::2]
    features = np.concatenate([held, _synthetic(held, categories[1::2], DOCUMENTS - len(held))])
    exact = _exact(features, queries)
    figures = [
        Figure("documents", DOCUMENTS),
        Figure("of these real photos", len(held)),
        Figure("queries, real photos that are not in the index", len(queries)),
    ]
    for index_type in TYPES:
        figures += _measured(shop, index_type, features, queries, exact)
    return figures


def _synthetic(
    features: NDArray[np.float32], categories: NDArray[np.str_], count: int
) -> NDArray[np.float32]:
    """Features [count, 2048], each of two of `features` [n, 2048] of one category."""
    rng = np.random.default_rng(7)
    first = rng.integers(len(features), size=count)
    second = np.empty_like(first)
    for category in np.unique(categories):
        chosen = categories[first] == category
        second[chosen] = rng.choice(np.flatnonzero(categories == category), chosen.sum())
    share = rng.random((count, 1), np.float32)
    mixed = share * features[first] + (1 - share) * features[second]
    noise = np.exp(_NOISE * rng.standard_normal(mixed.shape, np.float32))
    return (mixed * noise).astype(np.float32)


def _exact(features: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.intp]:
    """For each of the queries [m, 2048] its nearest features by cosine [m, 10]."""
    directions = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, features)]
    return np.argsort(-(directions[0] @ directions[1].T), axis=1, kind="stable")[:, :NEIGHBOURS]


def _measured(
    shop: BenchmarkShop,
    index_type: str,
    features: NDArray[np.float32],
    queries: NDArray[np.float32],
    exact: NDArray[np.intp],
) -> list[Figure]:
    print(f"{index_type} ...", end=" ", file=sys.stderr, flush=True)
    index = f"{shop.index}-{index_type}"
    mapping = FIELDS[FEATURE] | {"index_options": {"type": index_type}}
    try:
        try:
            shop.search.indices.create(index=index, mappings={"properties": {FEATURE: mapping}})
            before = elasticsearch_seconds(shop.search)
            indexing = _indexed(shop, index, features)
            indexing_cpu = elasticsearch_seconds(shop.search) - before
        except (ApiError, helpers.BulkIndexError) as error:
            told = error.errors if isinstance(error, helpers.BulkIndexError) else error
            if "non-compliant" not in str(told):
                raise
            print("not in the server's licence", file=sys.stderr, flush=True)
            return []
        started, before = time.monotonic(), elasticsearch_seconds(shop.search)
        shop.search.options(request_timeout=3600).indices.forcemerge(index=index, max_num_segments=1)
        merging, merging_cpu = time.monotonic() - started, elasticsearch_seconds(shop.search) - before
        shop.search.indices.refresh(index=index)
        stats = shop.search.indices.stats(index=index)["indices"][index]["primaries"]
        if stats["docs"]["count"] != DOCUMENTS:
            raise RunFailedError(f"{index} holds {stats['docs']['count']} documents, not {DOCUMENTS}.")
        found = [
            figure
            for oversample in (None, OVERSAMPLE)
            for figure in _found(shop, index, queries, exact, index_type, oversample)
        ]
    finally:
        shop.search.indices.delete(index=index, ignore_unavailable=True)
    print(f"{DOCUMENTS / indexing:.0f}/s", file=sys.stderr, flush=True)
    off_heap = stats["dense_vector"]["off_heap"]
    return [
        Figure(f"{index_type}: documents/s indexed, 4 threads", DOCUMENTS / indexing),
        Figure(f"{index_type}: CPU of it, ms a document", indexing_cpu / DOCUMENTS * 1000),
        Figure(f"{index_type}: merge into one segment", merging, "s"),
        Figure(f"{index_type}: CPU of the merge, ms a document", merging_cpu / DOCUMENTS * 1000),
        Figure(f"{index_type}: bytes a document on disk", round(stats["store"]["size_in_bytes"] / DOCUMENTS)),
        *(
            Figure(f"{index_type}: bytes a document of the {part}", round(off_heap[size] / DOCUMENTS))
            for size, part in _OFF_HEAP.items()
            if off_heap.get(size)
        ),
        *found,
    ]


def _indexed(shop: BenchmarkShop, index: str, features: NDArray[np.float32]) -> float:
    """Seconds to write all, until searches see them."""

    def actions() -> Iterator[dict[str, Any]]:
        for number, feature in enumerate(features):
            yield {"_index": index, "_id": str(number), FEATURE: helpers.pack_dense_vector(feature)}

    started = time.monotonic()
    for _ in helpers.parallel_bulk(shop.search, actions(), thread_count=4, chunk_size=250):
        pass
    shop.search.indices.refresh(index=index)
    return time.monotonic() - started


def _found(
    shop: BenchmarkShop,
    index: str,
    queries: NDArray[np.float32],
    exact: NDArray[np.intp],
    index_type: str,
    oversample: float | None,
) -> list[Figure]:
    """How many of each query's nearest are found, and how long one search takes."""
    recalls, seconds = [], []
    for query, nearest in zip(queries, exact.tolist(), strict=True):
        knn: dict[str, Any] = {
            "field": FEATURE,
            "query_vector": query.tolist(),
            "k": NEIGHBOURS,
            "num_candidates": NUM_CANDIDATES,
        }
        if oversample:
            knn["rescore_vector"] = {"oversample": oversample}
        started = time.monotonic()
        answer = shop.search.search(index=index, knn=knn, size=NEIGHBOURS, source=False)
        seconds.append(time.monotonic() - started)
        found = {int(hit["_id"]) for hit in answer["hits"]["hits"]}
        recalls.append(len(found.intersection(nearest)) / NEIGHBOURS)
    how = f"rescored, oversample {oversample:g}" if oversample else "default"
    return [
        Figure(f"{index_type}: recall at {NEIGHBOURS}, {how}", float(np.mean(recalls))),
        Figure(f"{index_type}: one search, {how}, ms", median(seconds) * 1000),
    ]
