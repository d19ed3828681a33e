"""The concurrency limit of a server: how many requests at once, and how long each may take."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tasks.serve.answers import refused

G = TypeVar("G")
T = TypeVar("T")


class ConcurrencyLimit:
    """A number of threads, one for each request. It belongs to the event loop that asks."""

    def __init__(self, most: int, seconds: float) -> None:
        """At most `most` requests at once, each answered within `seconds`."""
        self.most = most
        self.running = 0
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="request")

    async def run(self, work: Callable[[], T]) -> T:
        """Do the work of one request, unless the limit is reached.

        A request counts until its work is over, however early it was answered: the limit bounds the memory
        that requests hold.

        Raises:
            InferenceError: the limit is reached, it takes too long, or the server ends; or what the work
                raised.
        """
        self._enter()
        return await self._result_of(work)

    async def run_after_reading(self, read: Callable[[], Awaitable[G]], work: Callable[[G], T]) -> T:
        """The same where something has to be read first, which takes memory: not beyond the limit.

        Raises:
            InferenceError: as `run` does; or what reading raised.
        """
        self._enter()
        try:
            async with asyncio.timeout(self._seconds):
                given = await read()
        except BaseException as error:
            self.running -= 1
            if isinstance(error, TimeoutError):
                raise refused("too_slow", f"It takes longer than {self._seconds:g} s to arrive.") from None
            raise
        return await self._result_of(lambda: work(given))

    def close(self) -> None:
        """Begin nothing any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _enter(self) -> None:
        if self.running >= self.most:
            raise refused("busy", f"{self.running} requests are under way, and no more are taken.")
        self.running += 1

    async def _result_of(self, work: Callable[[], T]) -> T:
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
        self.running -= 1
        if not done.cancelled():
            done.exception()  # seen, also where nobody waits for it any more
