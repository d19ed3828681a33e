"""Stage 2: fetch each distinct URL of a chunk once, in parallel, and leave a pack of pictures."""

import hashlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tasks import packs
from tasks.addresses import RefusedURLError
from tasks.fetch import Fetched, Fetcher, check_url
from tasks.hosts import HostQueues, Result
from tasks.progress import Progress, silent
from tasks.runs import Chunk
from tasks.settings import Settings


def run(chunk: Chunk, settings: Settings, progress: Progress = silent) -> dict[str, Any]:
    """Fetch the chunk's pictures, or take the pack that is there already.

    Returns:
        The stage's statistics: items, bytes, seconds, requests.

    Raises:
        ServiceUnavailableError: the data dir cannot be read or written.
    """
    if (done := packs.finished(chunk.pictures)) is not None:
        return done
    started = time.monotonic()
    items = packs.slice_of(chunk.plan.items, chunk.start, chunk.stop)
    urls = list(dict.fromkeys(item["img_url"] for item in items))
    total_bytes = requests = 0
    with packs.writing(chunk.pictures, packs.PICTURES) as pack:
        for url, fetched, attempts in progress(
            _fetch_all(urls, settings, chunk.plan.folder / "left_alone"), "download", len(urls)
        ):
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


def _fetch_all(
    urls: Sequence[str | None], settings: Settings, left_alone: Path
) -> Iterator[tuple[str | None, Fetched, int]]:
    """Fetch every URL with `settings.downloads` threads; yield each with its result and requests made."""
    hosts = HostQueues(settings, left_alone)
    for url in urls:
        try:
            answer = hosts.add(check_url(url))
        except RefusedURLError as error:
            answer = Fetched(status=error.status, reason=error.reason)
        if answer is not None:
            yield url, answer, 0
    fetcher = Fetcher(settings)
    # Bounded: pictures wait here for the pack's writer, and their bytes are what memory holds.
    results: queue.Queue[Result | BaseException] = queue.Queue(settings.downloads)
    threads = [
        threading.Thread(target=_fetch_from, args=(hosts, fetcher, results), daemon=True)
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


def _fetch_from(hosts: HostQueues, fetcher: Fetcher, results: "queue.Queue[Result | BaseException]") -> None:
    """One thread's work."""
    try:
        while (job := hosts.take()) is not None:
            for result in hosts.finish(job, fetcher.fetch(job.url)):
                results.put(result)
    except BaseException as error:  # a thread's error belongs to the stage
        results.put(error)


def _drain(results: "queue.Queue[Result | BaseException]") -> None:
    while not results.empty():
        results.get_nowait()
