"""Work on one thing, in a thread, while the one before is in use."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetched(
    thread: ThreadPoolExecutor, work: Callable[[T], R], things: Iterable[T]
) -> Iterator[tuple[T, R]]:
    """Each thing in order with what the work on it gave, that on the next one being handed to the thread."""
    begun = ((thing, thread.submit(work, thing)) for thing in things)
    # A pair is there once the later of the two is begun.
    for present, _ in pairwise(chain(begun, [None])):
        assert present is not None
        thing, done = present
        yield thing, done.result()
