"""Features like the network's, of items in categories that can mostly be told apart."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.inference.model import Identity
from tasks.space.snapshot import writing

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
