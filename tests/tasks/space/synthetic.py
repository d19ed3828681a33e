"""Features like the network's, of items in categories that can mostly be told apart."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.inference.model import Identity
from tasks.space.categories import CategoryModel
from tasks.space.published import Space
from tasks.space.snapshot import writing
from tasks.space.vectors import Codes, Compact

MODEL = Identity("some-version", "3c00" * 16)


def features_of(categories: list[str], seed: int = 0, dims: int = 2048) -> NDArray[np.float32]:
    """[n, dims], none below zero: a category's own mean, and much noise."""
    rng = np.random.default_rng(seed)
    means = {name: np.random.default_rng(hash_of(name)).gamma(0.6, 0.6, dims) for name in set(categories)}
    rows = [means[name] * rng.gamma(0.7, 1.0, dims) + rng.gamma(0.3, 0.4, dims) for name in categories]
    return np.array(rows, np.float32)


def hash_of(name: str) -> int:
    """The same in each process."""
    return sum(ord(letter) * 31**place for place, letter in enumerate(name))


def shop(counts: dict[str, int]) -> tuple[list[str], list[str]]:
    """Ids and categories of so many items each, the categories taking turns."""
    categories = [name for number in range(max(counts.values())) for name in counts if number < counts[name]]
    return [f"item-{number:05}" for number in range(len(categories))], categories


def write(path: Path, ids: list[str], categories: list[str], features: NDArray[np.float32]) -> Path:
    """A snapshot, written in pieces."""
    with writing(path, MODEL) as writer:
        for begin in range(0, len(ids), 700):
            some = slice(begin, begin + 700)
            writer.add(ids[some], categories[some], [f"{i}.jpg" for i in ids[some]], features[some])
    return path


def some_space(model: Identity = MODEL, seed: int = 0) -> Space:
    """A space that nothing was learnt for, one for each seed."""
    rng = np.random.default_rng(seed)
    directions, _ = np.linalg.qr(rng.normal(size=(2048, 128)))
    compact = Compact(np.full(2048, 0.017, np.float32), directions.astype(np.float32))
    chance = CategoryModel(("hat", "shoe"), np.zeros((2, 2048), np.float32), np.zeros(2, np.float32))
    return Space(model, compact, Codes(np.eye(128, dtype=np.float32)), chance, {"seed": seed})


def compact_of(space: Space, feature: NDArray[np.float32]) -> NDArray[np.float64]:
    """A compact vector by its definition: the square root at length 1, centred, projected, at length 1."""
    root = np.sqrt(feature.astype(np.float64))
    projected = (root / np.sqrt(root @ root) - space.compact.mean) @ space.compact.directions
    return np.asarray(projected / np.sqrt(projected @ projected))
