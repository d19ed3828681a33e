"""How good a space is, on items that it was not learnt from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.space.categories import ranked, within
from tasks.space.nearest import Best
from tasks.space.published import Space
from tasks.space.snapshot import Snapshot
from tasks.space.vectors import Floats, distances

FOLDS = 5
MOST_QUERIES = 500
"""Held-out items that are searched with, at most."""
CANDIDATES = 100
"""Rows whose codes are nearest, of which the features are compared."""
_BINS = 10
_NEAR = 5
_RECALLED = 10


def fold(item_id: str) -> int:
    """Which fifth of the items one belongs to, by a hash of its id: the same in every shop and year."""
    digest = hashlib.sha256(item_id.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest) % FOLDS


@dataclass(frozen=True)
class Queries:
    """Held-out items that are searched with."""

    features: Floats
    """[n, dims], each of length 1."""
    categories: Sequence[str]


def evaluated(
    space: Space, snapshot: Snapshot, held_out: NDArray[np.bool_], queries: Queries
) -> dict[str, float]:
    """What a space does for items that are not in the gallery, which is every row that is not `held_out`.

    Args:
        space: learnt without the rows held out.
        snapshot: all items.
        held_out: [rows].
        queries: some of the held-out items, of categories that the space knows.

    Returns:
        `accuracy` and `top_2` of the predicted category; `calibration_error`, the expected one of ten bins;
        `precision` at 5 of plain search, of `compact` search and of search `near` within the predicted
        categories, where `near_any` is the share of queries with one of the true category among them; the
        recall at 10 of compact search and of 100 candidates by their codes, against plain search.
    """
    probabilities = space.categories.probabilities(queries.features)
    found = _searched(space, snapshot, held_out, queries, probabilities)
    truth = np.array(queries.categories, object)
    all_categories = np.array([*snapshot.categories(), ""], object)  # row -1 is none

    def hits(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.asarray(all_categories[rows[:, :_NEAR]] == truth[:, None])

    plain, compact, near, by_codes = (found[name] for name in ("plain", "compact", "near", "by_codes"))
    return {
        **predicted(probabilities, space.categories.categories, truth),
        "first_plain": float(hits(plain)[:, 0].mean()),
        "first_compact": float(hits(compact)[:, 0].mean()),
        "precision_plain": float(hits(plain).mean()),
        "precision_compact": float(hits(compact).mean()),
        "precision_near": float(hits(near).mean()),
        "near_any": float(hits(near).any(axis=1).mean()),
        "recall_compact": _recall(compact, plain),
        "recall_codes": _recall(by_codes, plain),
    }


def predicted(probabilities: Floats, categories: Sequence[str], truth: NDArray[Any]) -> dict[str, float]:
    """How good predicted probabilities [queries, categories] are: `accuracy`, `top_2` and
    `calibration_error`, see `evaluated`.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    right = np.array(categories, object)[order[:, :2]] == truth[:, None]
    sure = probabilities.max(axis=1)
    bins = np.minimum((sure * _BINS).astype(int), _BINS - 1)
    error = sum(
        abs(sure[bins == number].sum() - right[bins == number, 0].sum()) for number in range(_BINS)
    ) / len(truth)
    return {
        "accuracy": float(right[:, 0].mean()),
        "top_2": float(right.any(axis=1).mean()),
        "calibration_error": float(error),
    }


def _searched(
    space: Space, snapshot: Snapshot, held_out: NDArray[np.bool_], queries: Queries, probabilities: Floats
) -> dict[str, NDArray[np.int64]]:
    """The nearest rows [queries, 10] by each way of searching, in one pass over the snapshot."""
    count = len(queries.features)
    plain, compact, near = Best(count, _RECALLED), Best(count, _RECALLED), Best(count, _RECALLED)
    candidates = Best(count, CANDIDATES)
    vectors = space.compact.vectors(queries.features)
    codes = space.codes.of(vectors)
    allowed = [set(within(ranked(of_query, space.categories.categories))) for of_query in probabilities]
    for begin, page in snapshot.pages():
        out = held_out[begin : begin + len(page)]
        scores = np.where(out, -np.inf, queries.features @ page.T).astype(np.float32)
        plain.add(scores, begin)
        page_vectors = space.compact.vectors(page)
        compact.add(np.where(out, -np.inf, vectors @ page_vectors.T), begin)
        categories = snapshot.categories(slice(begin, begin + len(page)))
        fits = np.array([[category in wanted for category in categories] for wanted in allowed])
        near.add(np.where(fits, scores, -np.inf), begin)
        page_codes = space.codes.of(page_vectors)
        differing = np.array([distances(code, page_codes) for code in codes], np.float32)
        candidates.add(np.where(out, -np.inf, -differing), begin, scores)
    return {
        "plain": plain.rows,
        "compact": compact.rows,
        "near": near.rows,
        "by_codes": candidates.by_cosine(_RECALLED).rows,
    }


def _recall(found: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    """The share of the exact neighbours that were found."""
    shares = [np.isin(right[right >= 0], mine).mean() for mine, right in zip(found, exact, strict=True)]
    return float(np.mean(shares))
