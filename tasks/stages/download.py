"""Stage 2: fetch each distinct URL of a chunk once, in parallel, and leave a pack of pictures."""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.fetching.addresses import RefusedURLError
from tasks.fetching.fetch import Fetched, Fetcher, check_url
from tasks.fetching.hosts import HostQueues
from tasks.machine import on_one_core
from tasks.progress import Progress, silent
from tasks.runs import packs
from tasks.runs.run import Chunk
from tasks.settings import Settings

Row = dict[str, Any]
"""A row of packs.PICTURES."""

WAITING_FOR_SERVERS = "waiting for image servers"
WAITING_FOR_TURNS = "waiting for hosts' turns"
WRITING = "writing"
COMPUTING = "computing"


def run(chunk: Chunk, settings: Settings, progress: Progress = silent) -> dict[str, Any]:
    """Fetch the chunk's pictures, or take the pack that is there already.

    Returns:
        The stage's statistics: items, pictures, bytes, requests, seconds, and `time_breakdown`, the
        seconds by cause: see `TimeBreakdown`.

    Raises:
        ServiceUnavailableError: the data dir cannot be read or written.
    """
    if (done := packs.finished_or_moved_aside(chunk.pictures)) is not None:
        return done
    breakdown = TimeBreakdown()
    items = packs.slice_of(chunk.plan.items, chunk.start, chunk.stop)
    urls = list(dict.fromkeys(item["img_url"] for item in items))
    total_bytes = requests = 0
    with on_one_core(), packs.writing(chunk.pictures, packs.PICTURES) as pack:
        for row, attempts in progress(
            _fetch_all(urls, settings, chunk.plan.folder / "left_alone", breakdown), "download", len(urls)
        ):
            pack.add(row)
            total_bytes += len(row.get("content", b""))
            requests += attempts
        seconds, by_cause = breakdown.result()
        pack.statistics |= {
            "items": len(items),
            "pictures": len(urls),
            "bytes": total_bytes,
            "requests": requests,
            "seconds": seconds,
            "time_breakdown": by_cause,
        }
    return packs.statistics(chunk.pictures)


class TimeBreakdown:
    """Tells where the stage's seconds go; safe to share between threads.

    The seconds in which its threads computed come first: they take turns at Python's interpreter, so that a
    second of one is a second for all. The others are divided by what the downloading threads
    spent theirs on: requests, hosts that may not be asked yet (their rate, pauses, places), and handing
    pictures over to the pack's writer when it is behind. The causes sum to the stage's seconds, and the
    largest is what to look at: more chunks at once help computing, more downloads at once help where
    servers are waited for.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._computed = -time.thread_time()
        self._spent: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, spent: Mapping[str, float]) -> None:
        """Take in the seconds that a thread spent, by cause; called by itself, when it is done."""
        with self._lock:
            self._spent.update(spent)
            self._computed += time.thread_time()

    def result(self) -> tuple[float, dict[str, float]]:
        """The seconds until now, and the same by cause; for the thread that made it."""
        seconds = time.monotonic() - self._began
        # Without a core of their own two threads may compute at once, as when hashing.
        computing = min(self._computed + time.thread_time(), seconds)
        waits = {name: self._spent[name] for name in (WAITING_FOR_SERVERS, WAITING_FOR_TURNS, WRITING)}
        # Without any thread all that is left is the pack.
        total = sum(waits.values())
        shares = {name: wait / total for name, wait in waits.items()} if total else {WRITING: 1.0}
        left = seconds - computing
        return seconds, {COMPUTING: computing, **{name: left * share for name, share in shares.items()}}


def _fetch_all(
    urls: Sequence[str | None], settings: Settings, left_alone: Path, breakdown: TimeBreakdown
) -> Iterator[tuple[Row, int]]:
    """Fetch every URL with `settings.downloads` threads; yield the row of each and the requests made."""
    hosts = HostQueues(settings, left_alone)
    for url in urls:
        try:
            answer = hosts.add(check_url(url))
        except RefusedURLError as error:
            answer = Fetched(status=error.status, reason=error.reason)
        if answer is not None:
            yield _row(url, answer), 0
    fetcher = Fetcher(settings)
    results = _Results(settings.downloads)
    threads = [
        threading.Thread(target=_fetch_from, args=(hosts, fetcher, results, breakdown), daemon=True)
        for _ in range(min(settings.downloads, hosts.waiting))
    ]
    remaining = hosts.waiting
    for thread in threads:
        thread.start()
    try:
        while remaining:
            for result in results.take(at_least=min(remaining, max(1, settings.downloads // 2))):
                if isinstance(result, BaseException):
                    raise result
                yield result
                remaining -= 1
    finally:
        hosts.close()
        results.close()
        for thread in threads:
            thread.join()


class _Results:
    """What the threads hand over to the pack's writer, and errors; it has room for so many.

    They are pictures, and their bytes are what memory holds: those that the writer took last count until it
    takes the next. It takes many at once, since to be woken for each would cost everybody two turns at the
    interpreter.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._waiting: list[tuple[Row, int] | BaseException] = []
        self._taken = 0
        self._wanted = 1
        self._closed = False
        lock = threading.Lock()
        self._enough = threading.Condition(lock)
        self._free = threading.Condition(lock)

    def put(self, result: tuple[Row, int] | BaseException) -> None:
        """Hand one over once there is room; after the end it is nobody's."""
        with self._free:
            while len(self._waiting) + self._taken >= self._room and not self._closed:
                self._free.wait()
            self._waiting.append(result)
            if len(self._waiting) >= self._wanted or isinstance(result, BaseException):
                self._wanted = 0
                self._enough.notify()

    def take(self, at_least: int) -> list[tuple[Row, int] | BaseException]:
        """All that waits, once it is so many or there is an error among it."""
        with self._enough:
            self._wanted, self._taken = at_least, 0
            self._free.notify_all()
            while len(self._waiting) < self._wanted:
                self._enough.wait()
            results, self._waiting = self._waiting, []
            self._taken = len(results)
            return results

    def close(self) -> None:
        """Let every thread go that waits for room."""
        with self._free:
            self._closed = True
            self._free.notify_all()


def _fetch_from(hosts: HostQueues, fetcher: Fetcher, results: _Results, breakdown: TimeBreakdown) -> None:
    """One thread's work."""
    spent = {WAITING_FOR_SERVERS: 0.0, WAITING_FOR_TURNS: 0.0, WRITING: 0.0}
    since = time.monotonic()

    def spent_on(cause: str) -> None:
        nonlocal since
        now = time.monotonic()
        spent[cause] += now - since
        since = now

    try:
        while (job := hosts.take()) is not None:
            spent_on(WAITING_FOR_TURNS)
            fetched = fetcher.fetch(job.url)
            spent_on(WAITING_FOR_SERVERS)
            for url, answer, attempts in hosts.finish(job, fetched):
                # Hashed here: the one thread that writes is what all the others would wait for.
                results.put((_row(url, answer), attempts))
            spent_on(WRITING)
        spent_on(WAITING_FOR_TURNS)
    except BaseException as error:  # a thread's error belongs to the stage
        results.put(error)
    finally:
        breakdown.add(spent)


def _row(url: str | None, fetched: Fetched) -> Row:
    if fetched.status is not None:
        return {"img_url": url, "status": fetched.status, "reason": fetched.reason}
    sha256 = hashlib.sha256(fetched.content).hexdigest()
    return {"img_url": url, "content": fetched.content, "sha256": sha256}
