"""The rows that score best, found in a stream of pages."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Best:
    """For each of some queries the rows with the highest scores so far."""

    def __init__(self, queries: int, most: int) -> None:
        """Begin without rows; at most so many of each query are kept."""
        self.scores: Floats = np.full((queries, most), -np.inf, np.float32)
        """[queries, most], highest first; minus infinity where there are fewer rows."""
        self.rows = np.full((queries, most), -1, np.int64)
        """Which rows they are of; -1 where there are fewer."""
        self.cosines: Floats = np.full((queries, most), -np.inf, np.float32)
        """Of them, where others than the scores were given."""

    def add(self, scores: Floats, first_row: int, cosines: Floats | None = None) -> None:
        """Take in the scores [queries, n] of the rows from `first_row` on; minus infinity is out."""
        found = scores.shape[1]
        rows = np.broadcast_to(np.arange(first_row, first_row + found), scores.shape)
        everything = np.concatenate([self.scores, scores], axis=1)
        # Equal scores keep the order of their rows, so that a search gives the same twice.
        order = np.argsort(-everything, axis=1, kind="stable")[:, : self.scores.shape[1]]

        def best(before: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
            return np.take_along_axis(np.concatenate([before, new], axis=1), order, axis=1)

        self.scores = np.take_along_axis(everything, order, axis=1)
        self.rows = np.where(np.isinf(self.scores), -1, best(self.rows, rows))
        self.cosines = best(self.cosines, scores if cosines is None else cosines)

    def by_cosine(self, most: int) -> "Best":
        """The best of the kept ones by their cosines."""
        found = Best(len(self.rows), most)
        order = np.argsort(-self.cosines, axis=1, kind="stable")[:, :most]
        found.scores = found.cosines = np.take_along_axis(self.cosines, order, axis=1)
        found.rows = np.take_along_axis(self.rows, order, axis=1)
        return found
