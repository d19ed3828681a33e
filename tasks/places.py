"""Bounds how many requests are worked on at once in a server, and how long each may take."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tasks.answers import refused

G = TypeVar("G")
T = TypeVar("T")


class Places:
    """So many threads, one for each request. It belongs to the event loop that asks."""

    def __init__(self, most: int, seconds: float) -> None:
        """At most so many requests at once, each answered after so many seconds."""
        self.most = most
        self.taken = 0
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="request")

    async def carry_out(self, work: Callable[[], T]) -> T:
        """Do the work of one request, if there is a place for it.

        The place is free when the work is over, however early it was answered: what it holds in memory is
        bounded by the places.

        Raises:
            InferenceError: there is no place, it takes too long, or the server ends; or what the work raised.
        """
        self._take()
        return await self._carried_out(work)

    async def carry_out_on(self, read: Callable[[], Awaitable[G]], work: Callable[[G], T]) -> T:
        """The same where something has to be read first, which takes memory: not without a place.

        Raises:
            InferenceError: as `carry_out` does; or what reading raised.
        """
        self._take()
        try:
            async with asyncio.timeout(self._seconds):
                given = await read()
        except BaseException as error:
            self.taken -= 1
            if isinstance(error, TimeoutError):
                raise refused("too_slow", f"It takes longer than {self._seconds:g} s to arrive.") from None
            raise
        return await self._carried_out(lambda: work(given))

    def close(self) -> None:
        """Begin nothing any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> None:
        if self.taken >= self.most:
            raise refused("busy", f"{self.taken} requests are under way, and no more are taken.")
        self.taken += 1

    async def _carried_out(self, work: Callable[[], T]) -> T:
        done = asyncio.get_running_loop().run_in_executor(self._threads, work)
        done.add_done_callback(self._over)
        try:
            return await asyncio.wait_for(asyncio.shield(done), self._seconds)
        except asyncio.CancelledError:
            raise refused("unavailable", "The process is ending.") from None
        except TimeoutError:
            if done.done():
                raise  # the work's own
            raise refused("too_slow", f"It takes longer than {self._seconds:g} s.") from None

    def _over(self, done: "asyncio.Future[Any]") -> None:
        self.taken -= 1
        if not done.cancelled():
            done.exception()  # seen, also where nobody waits for it any more
