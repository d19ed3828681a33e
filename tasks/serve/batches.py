"""Lets threads that have one thing each share the work on many."""

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batches(Generic[T, R]):
    """Work on what waits, as much of it at once as is worthwhile, the moment a worker is free for it.

    Nothing waits for company: where little is asked for, batches are small, and where much is, they grow by
    themselves, since more comes while the workers are busy.
    """

    def __init__(
        self, work: Callable[[Sequence[T]], Sequence[R]], *, sizes: Sequence[int], workers: int = 1
    ) -> None:
        """Start the workers.

        Args:
            work: gives a result for each of a batch, in order; threads call it at the same time.
            sizes: those that a batch may have, ascending from 1.
            workers: threads, which divide what waits among them.
        """
        self._work = work
        self._sizes = sizes
        self._workers = workers
        self._waiting: deque[tuple[T, Future[R]]] = deque()
        self._closed = False
        self._changed = threading.Condition()
        for _ in range(workers):
            threading.Thread(target=self._run, daemon=True).start()

    def __call__(self, thing: T) -> R:
        """The result for one thing; raises what the work on its batch raised."""
        result: Future[R] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("nothing is taken any more")
            self._waiting.append((thing, result))
            self._changed.notify()
        return result.result()

    def close(self) -> None:
        """Take nothing any more; what waits is still worked on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while batch := self._next():
            try:
                results = self._work([thing for thing, _ in batch])
                for (_, waiting), result in zip(batch, results, strict=True):
                    waiting.set_result(result)
            except BaseException as error:  # it belongs to those who asked
                for _, waiting in batch:
                    if not waiting.done():
                        waiting.set_exception(error)

    def _next(self) -> list[tuple[T, Future[R]]]:
        """What to work on; nothing once it is over."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            # Its share, not all of it: another worker may be free the next moment.
            share = -(-len(self._waiting) // self._workers)
            fitting = bisect_right(self._sizes, share)
            return [self._waiting.popleft() for _ in range(self._sizes[fitting - 1] if fitting else 0)]
