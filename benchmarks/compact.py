"""Compact vectors: what searches by them find in Elasticsearch, what they take there, and how long it takes
to write them into all documents of a large index.

Found: each photo of a real shop, in five folds by a hash of its id, is searched with among the other folds,
from which the space was learnt; those of its category count. Written: into synthetic documents, by a process
of its own, into ten times the documents against once.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from elasticsearch import helpers
from numpy.typing import NDArray

from benchmarks import free_model
from benchmarks.figures import Figure
from benchmarks.memory import peak_of
from benchmarks.retrieval import NEIGHBOURS, NUM_CANDIDATES, read_back
from benchmarks.shop import BenchmarkShop, running_shop, variables_set
from benchmarks.volume import CATEGORY, VolumeShop, volume_shop
from tasks.errors import RunFailedError
from tasks.inference.model import DIMENSIONS, Identity, identity
from tasks.search.index import SearchIndex
from tasks.search.mapping import COMPACT, FEATURE, URL, VERSION, of_space, of_version
from tasks.settings import Settings
from tasks.shop.connections import SEARCH, Connection, Services
from tasks.space import vectors
from tasks.space.categories import CategoryModel
from tasks.space.evaluation import FOLDS, fold
from tasks.space.published import Reader, Space, publish
from tasks.space.vectors import Codes, Compact
from tasks.stages import compact

FEW = 100_000
MANY = 1_000_000
"""Synthetic documents."""

_SEARCHES_AT_ONCE = 50
_AT_ONCE = 1_000


def measure(photos: Path, few: int = FEW, many: int = MANY) -> list[Figure]:
    """Search a shop of the photos, then fill `few` synthetic documents and `many`.

    Raises:
        FeatureIndexError: a run failed, or not every document has its compact vector.
    """
    with running_shop(photos) as shop:
        shop.backfill()
        figures = found(shop)
    with volume_shop(photos) as volume:
        free_model.save(volume.folder / "free_model")
        with variables_set({"FEATURES_MODEL_DIR": str(volume.folder / "free_model")}):
            return figures + _written(volume, few, many)


def found(shop: BenchmarkShop) -> list[Figure]:
    """What both kinds of vectors find in a shop that is backfilled, and the memory that they take there."""
    settings, services = Settings.load(), Services.from_environment()
    documents = shop.search.count(index=shop.index)["count"]
    ids, categories, features = read_back(shop)
    of_ids = dict(zip(ids, categories.tolist(), strict=True))
    folds = np.array([fold(item_id) for item_id in ids])
    hits: dict[str, list[list[bool]]] = {FEATURE: [], COMPACT: []}
    for number in range(FOLDS):
        publish(_space(identity(settings), [features[folds != number]]), settings)
        compact.run(settings, services.search)
        space = Reader(settings, identity(settings)).space
        held_out = np.flatnonzero(folds == number)
        among = {
            "bool": {
                "filter": [of_version(space.model.version), of_space(space.version)],
                "must_not": {"ids": {"values": [ids[row] for row in held_out]}},
            }
        }
        vectors = {FEATURE: features[held_out], COMPACT: space.compact.vectors(features[held_out])}
        for field, queries in vectors.items():
            nearest = _nearest(shop, field, queries, among)
            hits[field] += [
                [of_ids[item_id] == categories[row] for item_id in neighbours]
                for row, neighbours in zip(held_out, nearest, strict=True)
            ]
    first = {field: float(np.mean([of_query[0] for of_query in rows])) for field, rows in hits.items()}
    precision = {field: float(np.mean(rows)) for field, rows in hits.items()}
    held = _memory(shop)
    return [
        Figure("documents", documents),
        Figure("items searched with", len(hits[COMPACT]), at_least=documents),
        Figure("1-NN accuracy, features", first[FEATURE]),
        Figure("1-NN accuracy, compact vectors", first[COMPACT], at_least=first[FEATURE]),
        Figure("precision at 5, features", precision[FEATURE]),
        Figure("precision at 5, compact vectors", precision[COMPACT], at_least=precision[FEATURE]),
        Figure("bytes of a feature's int8 vector", held[FEATURE]),
        Figure("bytes of a compact int8 vector", held[COMPACT]),
        Figure("memory of int8 vectors, features / compact", held[FEATURE] / held[COMPACT], at_least=15.0),
    ]


def _space(model: Identity, pages: Iterable[NDArray[np.float32]]) -> Space:
    """One whose compact vectors are learnt from these features, and nothing else."""
    none = CategoryModel(("a", "b"), np.zeros((2, 2048), np.float32), np.zeros(2, np.float32))
    return Space(model, Compact.learnt(pages), Codes(np.eye(128, dtype=np.float32)), none)


def _nearest(
    shop: BenchmarkShop, field: str, queries: NDArray[np.float32], among: Mapping[str, Any]
) -> list[list[str]]:
    """The ids of the nearest documents to each of the queries, as a shop's search would ask for them."""
    found = []
    for start in range(0, len(queries), _SEARCHES_AT_ONCE):
        searches: list[dict[str, Any]] = []
        for query in queries[start : start + _SEARCHES_AT_ONCE]:
            knn = {
                "field": field,
                "query_vector": query.tolist(),
                "k": NEIGHBOURS,
                "num_candidates": NUM_CANDIDATES,
                "filter": among,
                "rescore_vector": {"oversample": 3.0},
            }
            searches += [{}, {"knn": knn, "size": NEIGHBOURS, "_source": False}]
        answers = shop.search.msearch(index=shop.index, searches=searches)["responses"]
        found += [[hit["_id"] for hit in answer["hits"]["hits"]] for answer in answers]
    return found


def _memory(shop: BenchmarkShop) -> dict[str, float]:
    """Bytes of a quantised vector of each field, as Elasticsearch's statistics of the index have them."""
    shop.search.indices.refresh(index=shop.index)
    stats = shop.search.indices.stats(index=shop.index, metric="dense_vector")
    off_heap = stats["indices"][shop.index]["primaries"]["dense_vector"]["off_heap"]["fielddata"]
    # Documents of before an update may still be there, so the vectors are counted by their floats.
    return {
        field: off_heap[field]["veq_size_bytes"] / (off_heap[field]["vec_size_bytes"] / (4 * dimensions))
        for field, dimensions in ((FEATURE, DIMENSIONS), (COMPACT, vectors.COMPACT))
    }


def _written(shop: VolumeShop, few: int, many: int) -> list[Figure]:
    figures: list[Figure] = []
    seconds, peaks = {}, {}
    for documents in (few, many):
        print(f"writing {documents:,} documents ...", file=sys.stderr, flush=True)
        _stock(shop, documents)
        peaks[documents], result = _filled(shop)
        if result["counts"] != {"indexed": documents}:
            raise RunFailedError(f"Of {documents} documents {result['counts']} got their compact vector.")
        seconds[documents] = float(result["seconds"])
        _, again = _filled(shop)
        figures += [
            Figure(f"{documents:,} documents: written, documents/s", documents / seconds[documents]),
            Figure(f"{documents:,} documents: seconds", seconds[documents], "s"),
            Figure(f"{documents:,} documents: MB", peaks[documents] / 1e6),
            Figure(f"{documents:,} documents: again, nothing to do", float(again["seconds"]), "s"),
        ]
    per_document = (seconds[many] / many) / (seconds[few] / few)
    return [
        *figures,
        Figure(f"time a document: {many:,} / {few:,} documents", per_document, at_most=1.5),
        Figure(f"memory: {many:,} / {few:,} documents", peaks[many] / peaks[few], at_most=1.1),
    ]


def _filled(shop: VolumeShop) -> tuple[int, dict[str, Any]]:
    """The peak in bytes of a process that writes the compact vectors, and what it returned."""
    peak, said = peak_of([sys.executable, "-m", "benchmarks.compact"], shop.folder / "said")
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    return peak, result


def _stock(shop: VolumeShop, documents: int) -> None:
    """An index of so many documents with synthetic features, and a space learnt from the first of them."""
    shop.search.indices.delete(index=shop.index, ignore_unavailable=True)
    SearchIndex(Connection.from_environment(SEARCH), shop.index).prepare()
    settings = Settings.load()
    model = identity(settings)
    publish(_space(model, (_features(range(n, n + _AT_ONCE)) for n in range(0, 5_000, _AT_ONCE))), settings)
    for _ in helpers.parallel_bulk(
        shop.search, _documents(shop, documents, model), thread_count=2, chunk_size=250
    ):
        pass
    shop.search.indices.refresh(index=shop.index)


def _documents(shop: VolumeShop, documents: int, model: Identity) -> Iterator[dict[str, Any]]:
    for begin in range(0, documents, _AT_ONCE):
        numbers = range(begin, min(begin + _AT_ONCE, documents))
        for number, feature in zip(numbers, _features(numbers), strict=True):
            yield {
                "_index": shop.index,
                "_id": f"{number:010}",
                "item_id": f"{number:010}",
                "category_id": CATEGORY,
                "img_url": shop.url(number),
                FEATURE: helpers.pack_dense_vector(feature),
                VERSION: model.version,
                URL: shop.url(number),
            }


def _features(numbers: Sequence[int]) -> NDArray[np.float32]:
    """Features [n, 2048] like the network's; the same for the same numbers."""
    features = np.random.default_rng(numbers[0]).standard_exponential((len(numbers), 2048), np.float32)
    return np.square(features) * np.float32(0.2)


if __name__ == "__main__":
    print(json.dumps(compact.run(Settings.load(), Services.from_environment().search)))
