"""What bfloat16 changes in the features of a real shop's photos, beside what Elasticsearch's int8 changes.

Features of the same photos are computed in float32 and in bfloat16. Neighbours are by exact cosine, but for
those of int8: these are Elasticsearch's own, of the float32 features in an int8_hnsw index so small that its
search compares with every vector.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from elasticsearch import helpers
from numpy.typing import NDArray

from benchmarks.figures import Figure
from benchmarks.retrieval import NEIGHBOURS, agreement, approximate_neighbours, exact_neighbours
from benchmarks.shop import BenchmarkShop, running_shop
from tasks.errors import ConfigurationError
from tasks.inference.model import DIMENSIONS, load
from tasks.machine import multiplies_bfloat16
from tasks.pictures.picture import decode, to_tensor
from tasks.search.mapping import FEATURE, VERSION
from tasks.settings import Settings

_AT_ONCE = 50
_VERSION = "float32"


def measure(photos: Path) -> list[Figure]:
    """Compute all photos both ways, and search with both.

    Raises:
        ConfigurationError: this CPU does not compute in bfloat16.
        ServiceUnavailableError: Elasticsearch did not come up, or does not answer.
    """
    if not multiplies_bfloat16():
        raise ConfigurationError("This CPU does not compute in bfloat16: there is nothing to compare.")
    with running_shop(photos) as shop:
        exact, reduced, categories = _features(photos)
        before, after = exact_neighbours(exact), exact_neighbours(reduced)
        by_int8 = _int8_neighbours(shop, exact)
    cosine = (exact * reduced).sum(axis=1) / (np.linalg.norm(exact, axis=1) * np.linalg.norm(reduced, axis=1))
    (first, precision), (first_after, precision_after) = (
        agreement(categories, neighbours) for neighbours in (before, after)
    )
    kept, kept_by_int8 = _overlap(before, after), _overlap(before, by_int8)
    return [
        Figure("photos", len(exact)),
        Figure("cosine of bfloat16 with float32, median", float(np.median(cosine)), at_least=0.9997),
        Figure("cosine of bfloat16 with float32, lowest", float(cosine.min()), at_least=0.998),
        Figure("1-NN accuracy, float32", first),
        Figure("1-NN accuracy, bfloat16", first_after, at_least=round(first - 0.005, 4)),
        Figure("precision at 5, float32", precision),
        Figure("precision at 5, bfloat16", precision_after, at_least=round(precision - 0.005, 4)),
        Figure("of the 5 nearest, kept by Elasticsearch's int8", kept_by_int8),
        Figure("of the 5 nearest, kept by bfloat16", kept, at_least=round(kept_by_int8, 4)),
    ]


def _features(photos: Path) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.str_]]:
    items = pandas.read_csv(photos / "items.csv", dtype=str)
    settings = Settings.load()
    models = [load(settings.model_copy(update={"precision": name})) for name in ("float32", "bfloat16")]
    features: tuple[list[Any], list[Any]] = ([], [])
    for start in range(0, len(items), _AT_ONCE):
        print(f"{start} of {len(items)} photos ...", file=sys.stderr, flush=True)
        paths = (photos / path for path in items["img_path"].str.lstrip("/")[start : start + _AT_ONCE])
        batch = np.stack([to_tensor(decode(path.read_bytes(), settings.max_image_pixels)) for path in paths])
        for model, of_model in zip(models, features, strict=True):
            of_model.append(model.compute(batch))
    exact, reduced = map(np.concatenate, features)
    return exact, reduced, items["category_id"].to_numpy(np.str_)


def _int8_neighbours(shop: BenchmarkShop, features: NDArray[np.float32]) -> NDArray[np.intp]:
    shop.search.indices.delete(index=shop.index, ignore_unavailable=True)
    vector = {
        "type": "dense_vector",
        "dims": DIMENSIONS,
        "similarity": "cosine",
        "index_options": {"type": "int8_hnsw"},
    }
    mappings = {"properties": {FEATURE: vector, VERSION: {"type": "keyword"}}}
    shop.search.indices.create(index=shop.index, mappings=mappings, settings={"number_of_shards": 1})
    ids = [str(number) for number in range(len(features))]
    documents = (
        {"_index": shop.index, "_id": item, FEATURE: feature.tolist(), VERSION: _VERSION}
        for item, feature in zip(ids, features, strict=True)
    )
    helpers.bulk(shop.search, documents, chunk_size=_AT_ONCE, refresh=True)
    return approximate_neighbours(shop, ids, features, _VERSION)


def _overlap(one: NDArray[np.intp], other: NDArray[np.intp]) -> float:
    both = [len(set(a) & set(b)) for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    return float(np.mean(both)) / NEIGHBOURS
