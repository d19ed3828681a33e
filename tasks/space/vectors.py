"""Compact vectors and codes of features: the same neighbours in a sixteenth of the memory, or in 16 bytes.

A feature's square root, centred, is projected on the 128 directions in which the shop's features differ most
(PCA), and taken at length 1. Its code is the signs of that, turned so that signs lose least (iterative
quantisation: Gong and Lazebnik, CVPR 2011).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

COMPACT = 128
"""Numbers in a compact vector, and bits in a code."""
_ITERATIONS = 50
_SMALLEST = 1e-12


def roots(features: Floats) -> Floats:
    """The square roots of features [n, dims], at length 1: what is linear in them tells categories apart
    better than in the features. The network gives no number below zero.
    """
    return _unit(np.sqrt(np.maximum(features, 0.0)))


@dataclass(frozen=True)
class Compact:
    """The projection to compact vectors."""

    mean: Floats
    """Of the square roots [dims]."""
    directions: Floats
    """[dims, 128], orthonormal."""

    @classmethod
    def learnt(cls, pages: Iterable[Floats]) -> "Compact":
        """Learn it from pages of features [n, dims] in one pass, with memory for one page.

        Raises:
            ValueError: fewer than two features.
        """
        count, total, products = 0, None, None
        for page in pages:
            rooted = roots(page).astype(np.float64)
            if total is None or products is None:
                total, products = np.zeros(rooted.shape[1]), np.zeros((rooted.shape[1],) * 2)
            count += len(rooted)
            total += rooted.sum(axis=0)
            products += rooted.T @ rooted
        if total is None or products is None or count < 2:
            raise ValueError("directions cannot be learnt from fewer than two features")
        mean = total / count
        _, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
        directions = np.ascontiguousarray(vectors[:, ::-1][:, :COMPACT])
        # A direction and its opposite serve alike; one is chosen, so that learning twice gives the same.
        directions *= np.sign(directions[np.abs(directions).argmax(axis=0), range(directions.shape[1])])
        return cls(mean.astype(np.float32), directions.astype(np.float32))

    def centred(self, features: Floats) -> Floats:
        """The square roots [n, dims] of features, centred, each of length 1."""
        return _unit(roots(features) - self.mean)

    def vectors(self, features: Floats) -> Floats:
        """Compact vectors [n, 128] of features [n, dims], each of length 1."""
        return _unit((roots(features) - self.mean) @ self.directions)


@dataclass(frozen=True)
class Codes:
    """The turn after which the signs of compact vectors are their codes."""

    rotation: Floats
    """[128, 128]."""

    @classmethod
    def learnt(cls, vectors: Floats) -> "Codes":
        """Learn it from compact vectors [n, 128]: a sample of some thousands is enough."""
        start = np.random.default_rng(0).normal(size=(vectors.shape[1],) * 2)
        rotation, _ = np.linalg.qr(start)
        for _ in range(_ITERATIONS):
            signs = np.where(vectors @ rotation > 0, 1.0, -1.0)
            left, _, right = np.linalg.svd(vectors.T @ signs)
            rotation = left @ right
        return cls(rotation.astype(np.float32))

    def of(self, vectors: Floats) -> NDArray[np.uint8]:
        """The codes [n, 16] of compact vectors [n, 128]: bits in bytes."""
        return np.packbits(vectors @ self.rotation > 0, axis=1)


def distances(code: NDArray[np.uint8], codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """How many bits differ between a code [16] and each of `codes` [n, 16]."""
    words, (first, second) = codes.view(np.uint64), code.view(np.uint64)
    # Column by column: along an axis of two NumPy would take several times as long.
    counted: NDArray[np.uint8] = np.bitwise_count(words[:, 0] ^ first)
    counted += np.bitwise_count(words[:, 1] ^ second)
    return counted


def fewest(differing: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """The rows of the `count` smallest of some distances [n], in order, and all that are as near as the last
    of them. Distances are few different numbers, so that counting each is faster than sorting.
    """
    upto = np.bincount(differing, minlength=COMPACT + 1).cumsum()
    return np.flatnonzero(differing <= np.searchsorted(upto, min(count, len(differing))))


def _unit(vectors: NDArray[Any]) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Floats = (vectors / np.maximum(lengths, _SMALLEST)).astype(np.float32)
    return found
