"""Which items look alike: exact search, to hold Elasticsearch's approximate one against."""

import heapq
import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ServiceUnavailableError
from tasks.search.queries import ItemQueries, Neighbour, Scope

# Each reads all its features from Elasticsearch, 8 KB an item; the machine has other work.
_turn = threading.Lock()


@dataclass(frozen=True, slots=True)
class Exact:
    """What comparing with every feature found."""

    compared: int
    neighbours: tuple[Neighbour, ...]
    """Nearest first."""


def exact_nearest(index: ItemQueries, feature: NDArray[np.float32], scope: Scope, at_most: int) -> Exact:
    """The nearest items to a feature [dims] by cosine, computed here from every feature of the scope.

    It takes memory for one page of them at a time, and one search at a time.

    Raises:
        ServiceUnavailableError: another exact search is under way, or Elasticsearch does not answer.
    """
    if not _turn.acquire(blocking=False):
        raise ServiceUnavailableError("Another exact search is under way. Try again in a few seconds.")
    try:
        direction = feature / np.linalg.norm(feature)
        nearest: list[tuple[float, str]] = []
        compared = 0
        for item_ids, features in index.features(scope):
            compared += len(item_ids)
            cosines = (features @ direction) / np.linalg.norm(features, axis=1)
            best = np.argsort(-cosines)[:at_most].tolist()
            nearest = heapq.nlargest(at_most, nearest + [(float(cosines[n]), item_ids[n]) for n in best])
    finally:
        _turn.release()
    items = index.items([item_id for _, item_id in nearest])
    found = (Neighbour(items[item_id], cosine) for cosine, item_id in nearest if item_id in items)
    return Exact(compared, tuple(found))
