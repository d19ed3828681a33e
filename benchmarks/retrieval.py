"""Are the features good for search? Each photo looks for its nearest others; those of its category count.

The features are read back from Elasticsearch, where a backfill has put them. Exact cosine similarity in
NumPy says what the features are worth, and Elasticsearch's approximate kNN what searches get of it. In an
index as small as 1,000 documents that kNN compares with every vector: what it loses there, it loses to
int8, and nothing to its graph.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from elasticsearch import helpers
from numpy.typing import NDArray

from benchmarks.figures import Figure
from benchmarks.shop import BenchmarkShop
from tasks.inference.model import feature_version
from tasks.search.mapping import FEATURE, VERSION
from tasks.settings import Settings

NEIGHBOURS = 5
NUM_CANDIDATES = 100
"""Candidates a shard that Elasticsearch's kNN considers."""

_SEARCHES_AT_ONCE = 50


def measure(shop: BenchmarkShop) -> list[Figure]:
    """Search with each photo of a shop that is backfilled for the others."""
    documents = shop.search.count(index=shop.index)["count"]
    ids, categories, features = read_back(shop)
    exact = exact_neighbours(features)
    approximate = approximate_neighbours(shop, ids, features, feature_version(Settings.load()))
    exact_first, exact_precision = agreement(categories, exact)
    first, precision = agreement(categories, approximate)
    both = [len(set(a) & set(b)) for a, b in zip(exact.tolist(), approximate.tolist(), strict=True)]
    # Rounded, because a difference of two sums can come out just above the number that it means.
    difference = round(max(abs(first - exact_first), abs(precision - exact_precision)), 9)
    knn = f"approximate (num_candidates {NUM_CANDIDATES})"
    return [
        Figure("documents", documents),
        Figure("documents with a feature", len(ids), at_least=documents),
        Figure("1-NN accuracy, exact", exact_first, at_least=0.735),
        Figure("precision at 5, exact", exact_precision, at_least=0.70),
        Figure(f"1-NN accuracy, {knn}", first),
        Figure(f"precision at 5, {knn}", precision),
        Figure("largest difference of approximate from exact", difference, at_most=0.01),
        Figure("recall at 5 of approximate against exact", float(np.mean(both)) / NEIGHBOURS),
    ]


def read_back(shop: BenchmarkShop) -> tuple[list[str], NDArray[np.str_], NDArray[np.float32]]:
    """Ids, categories [n] and features [n, 2048] of the documents that have a feature."""
    query = {"query": {"exists": {"field": FEATURE}}, "fields": [FEATURE], "_source": ["category_id"]}
    hits = sorted(helpers.scan(shop.search, index=shop.index, query=query, size=500), key=lambda h: h["_id"])
    return (
        [hit["_id"] for hit in hits],
        np.array([hit["_source"]["category_id"] for hit in hits]),
        np.array([hit["fields"][FEATURE] for hit in hits], np.float32),
    )


def exact_neighbours(features: NDArray[np.float32]) -> NDArray[np.intp]:
    """For each of the features [n, 2048] the nearest others by cosine, nearest first [n, 5]."""
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarities = directions @ directions.T
    np.fill_diagonal(similarities, -np.inf)
    return np.argsort(-similarities, axis=1, kind="stable")[:, :NEIGHBOURS]


def approximate_neighbours(
    shop: BenchmarkShop, ids: Sequence[str], features: NDArray[np.float32], version: str
) -> NDArray[np.intp]:
    """As `exact_neighbours`, by Elasticsearch's kNN as a shop's search would ask it."""
    rows = {item_id: row for row, item_id in enumerate(ids)}
    neighbours = []
    for start in range(0, len(ids), _SEARCHES_AT_ONCE):
        page = range(start, min(start + _SEARCHES_AT_ONCE, len(ids)))
        searches: list[dict[str, Any]] = []
        for row in page:
            knn = {
                "field": FEATURE,
                "query_vector": features[row].tolist(),
                "k": NEIGHBOURS + 1,  # the photo itself is one
                "num_candidates": NUM_CANDIDATES,
                "filter": {"term": {VERSION: version}},
            }
            searches += [{}, {"knn": knn, "size": NEIGHBOURS + 1, "_source": False}]
        answers = shop.search.msearch(index=shop.index, searches=searches)["responses"]
        for row, answer in zip(page, answers, strict=True):
            found = [rows[hit["_id"]] for hit in answer["hits"]["hits"]]
            neighbours.append([other for other in found if other != row][:NEIGHBOURS])
    return np.array(neighbours)


def agreement(categories: NDArray[np.str_], neighbours: NDArray[np.intp]) -> tuple[float, float]:
    """1-NN accuracy and precision at 5 of the neighbours [n, 5]."""
    same = categories[neighbours] == categories[:, np.newaxis]
    return float(same[:, 0].mean()), float(same.mean())
