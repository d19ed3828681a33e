"""Stage 2: fetch each distinct URL of a chunk once, in parallel, and leave a pack of pictures."""

import hashlib
import heapq
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tasks import packs
from tasks.addresses import RefusedURLError
from tasks.fetch import Fetched, Fetcher, check_url
from tasks.progress import Progress, silent
from tasks.runs import Chunk
from tasks.settings import Settings

_FIRST_BACK_OFF = 0.5
_LONGEST_BACK_OFF = 30.0
"""Seconds. A host that asks for more is left to a later run."""


def run(chunk: Chunk, settings: Settings, progress: Progress = silent) -> dict[str, Any]:
    """Fetch the chunk's pictures, or take the pack that is there already.

    Returns:
        The stage's statistics: items, bytes, seconds, requests.

    Raises:
        ServiceUnavailableError: the data dir cannot be read or written.
    """
    if chunk.pictures.exists():
        return packs.statistics(chunk.pictures)
    started = time.monotonic()
    items = packs.slice_of(chunk.plan.items, chunk.start, chunk.stop)
    urls = list(dict.fromkeys(item["img_url"] for item in items))
    total_bytes = requests = 0
    with packs.writing(chunk.pictures, packs.PICTURES) as pack:
        for url, fetched, attempts in progress(_fetch_all(urls, settings), "download", len(urls)):
            row: dict[str, Any] = {"img_url": url}
            if fetched.status is None:
                row |= {"content": fetched.content, "sha256": hashlib.sha256(fetched.content).hexdigest()}
            else:
                row |= {"status": fetched.status, "reason": fetched.reason}
            pack.add(row)
            total_bytes += len(fetched.content)
            requests += attempts
        pack.statistics |= {
            "items": len(items),
            "pictures": len(urls),
            "bytes": total_bytes,
            "requests": requests,
            "seconds": time.monotonic() - started,
        }
    return packs.statistics(chunk.pictures)


def _fetch_all(urls: Sequence[str | None], settings: Settings) -> Iterator[tuple[str | None, Fetched, int]]:
    """Fetch every URL with `settings.downloads` threads; yield each with its result and requests made."""
    hosts = HostQueues(settings.downloads_per_host, settings.requests_per_second_per_host)
    for url in urls:
        try:
            hosts.add(check_url(url))
        except RefusedURLError as error:
            yield url, Fetched(status=error.status, reason=error.reason), 0
    fetcher = Fetcher(settings)
    # Bounded: pictures wait here for the pack's writer, and their bytes are what memory holds.
    results: queue.Queue[tuple[str, Fetched, int] | BaseException] = queue.Queue(settings.downloads)
    left_alone: dict[str, Fetched] = {}
    threads = [
        threading.Thread(
            target=_fetch_from, args=(hosts, left_alone, fetcher, settings, results), daemon=True
        )
        for _ in range(min(settings.downloads, hosts.waiting))
    ]
    remaining = hosts.waiting
    for thread in threads:
        thread.start()
    try:
        while remaining:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            yield result
            remaining -= 1
    finally:
        hosts.close()
        while any(thread.is_alive() for thread in threads):
            _drain(results)
            threads[0].join(0.01)
            threads = [thread for thread in threads if thread.is_alive()]


def _fetch_from(
    hosts: "HostQueues",
    left_alone: dict[str, Fetched],
    fetcher: Fetcher,
    settings: Settings,
    results: "queue.Queue[Any]",
) -> None:
    """One thread's work. `left_alone` holds, of each host that asked for more patience than a run has,
    the answer that said so: it stands for all that the host still has waiting."""
    try:
        while (job := hosts.take()) is not None:
            fetched = left_alone.get(job.host)
            if fetched is None:
                fetched = fetcher.fetch(job.url)
                job.attempts += 1
            asked_for = fetched.retry_after or 0.0
            if asked_for > _LONGEST_BACK_OFF:
                left_alone[job.host] = fetched
            else:
                hosts.pause(job.host, asked_for)
            back_off = _back_off(fetched, job.attempts, settings)
            if back_off is not None:
                hosts.put_back(job, back_off)
            else:
                hosts.done(job)
                results.put((job.url, fetched, job.attempts))
    except BaseException as error:  # a thread's error belongs to the stage
        results.put(error)


def _back_off(fetched: Fetched, attempts: int, settings: Settings) -> float | None:
    """Seconds until this URL is worth another request; None when it is not."""
    if not fetched.worth_retrying or attempts >= settings.download_attempts:
        return None
    if fetched.retry_after is not None:
        return fetched.retry_after if fetched.retry_after <= _LONGEST_BACK_OFF else None
    # Jitter keeps the chunks of a run from coming back all at once.
    pause: float = min(_FIRST_BACK_OFF * 2 ** (attempts - 1), _LONGEST_BACK_OFF) * random.uniform(0.5, 1.5)  # noqa: S311
    return pause


def _drain(results: "queue.Queue[Any]") -> None:
    while not results.empty():
        results.get_nowait()


@dataclass
class Job:
    """A URL on its way."""

    url: str
    host: str
    attempts: int = 0


@dataclass
class _Host:
    jobs: deque[Job] = field(default_factory=deque)
    in_flight: int = 0
    ready_at: float = 0.0
    queued: bool = False


class HostQueues:
    """Hands out URLs so that no host gets more at once, or more a second, than it should.

    A thread never waits for a busy host while another host has work.
    """

    def __init__(self, at_once: int, per_second: float) -> None:
        self._at_once = at_once
        self._gap = 1.0 / per_second
        self._hosts: dict[str, _Host] = {}
        self._ready: list[tuple[float, str]] = []
        """Hosts that have a job and a free place, by when they may get it."""
        self._later: list[tuple[float, int, Job]] = []
        """Jobs that wait for another try."""
        self._order = 0
        self._unfinished = 0
        self._changed = threading.Condition()

    @property
    def waiting(self) -> int:
        """Jobs that are not done yet."""
        return self._unfinished

    def add(self, url: str) -> None:
        """Queue a URL."""
        with self._changed:
            self._unfinished += 1
            self._queue(Job(url, urlsplit(url).netloc.lower()))

    def take(self) -> Job | None:
        """The next job, once its host may get it; None when all are done or the queues are closed."""
        with self._changed:
            while self._unfinished > 0:
                now = time.monotonic()
                while self._later and self._later[0][0] <= now:
                    self._queue(heapq.heappop(self._later)[2])
                if self._ready and self._ready[0][0] <= now:
                    name = heapq.heappop(self._ready)[1]
                    host = self._hosts[name]
                    host.queued = False
                    if host.ready_at <= now:
                        return self._hand_out(name, now)
                    self._offer(name)  # it asked to be left alone after it was queued
                    continue
                next_times = [heap[0][0] for heap in (self._ready, self._later) if heap]
                self._changed.wait(min(next_times) - now if next_times else None)
            return None

    def pause(self, name: str, seconds: float) -> None:
        """Hand out no job of this host for `seconds`."""
        with self._changed:
            host = self._hosts[name]
            host.ready_at = max(host.ready_at, time.monotonic() + seconds)

    def put_back(self, job: Job, seconds: float) -> None:
        """Hand a job out again, after `seconds` at the earliest."""
        with self._changed:
            self._order += 1
            heapq.heappush(self._later, (time.monotonic() + seconds, self._order, job))
            self._release(job.host)

    def done(self, job: Job) -> None:
        """A job has its result."""
        with self._changed:
            self._unfinished -= 1
            self._release(job.host)

    def close(self) -> None:
        """Let every waiting thread go; nothing more is handed out."""
        with self._changed:
            self._unfinished = 0
            self._changed.notify_all()

    def _hand_out(self, name: str, now: float) -> Job:
        host = self._hosts[name]
        host.in_flight += 1
        host.ready_at = now + self._gap
        job = host.jobs.popleft()
        self._offer(name)
        return job

    def _queue(self, job: Job) -> None:
        self._hosts.setdefault(job.host, _Host()).jobs.append(job)
        self._offer(job.host)

    def _release(self, name: str) -> None:
        self._hosts[name].in_flight -= 1
        self._offer(name)
        self._changed.notify_all()

    def _offer(self, name: str) -> None:
        host = self._hosts[name]
        if host.jobs and not host.queued and host.in_flight < self._at_once:
            host.queued = True
            heapq.heappush(self._ready, (host.ready_at, name))
            self._changed.notify()
