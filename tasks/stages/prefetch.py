"""Work in threads: on one thing while the one before is in use, or on several at once."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
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


def several_at_once(
    work: Callable[[T], R], things: Iterable[T], at_once: int, name: str, stop: Callable[[], None]
) -> Iterator[R]:
    """What the work on each thing gave, as it is done, so many being worked on at once.

    The first error ends all: no work goes on when it comes out of here.

    Args:
        name: that of the threads.
        stop: called after an error, tells the work that is under way to end soon.
    """
    with ThreadPoolExecutor(at_once, thread_name_prefix=name) as pool:
        try:
            under_way: set[Future[R]] = set()
            for thing in things:
                under_way.add(pool.submit(work, thing))
                if len(under_way) == at_once:
                    done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while under_way:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BaseException:
            stop()
            raise
