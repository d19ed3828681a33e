"""Stage 2: fetch each distinct URL of a chunk once, in parallel, and leave a pack of pictures."""

import hashlib
import time
from collections.abc import Iterator
from typing import Any

from tasks.fetching.answers import Fetched
from tasks.fetching.downloads import Downloads
from tasks.progress import Progress, silent
from tasks.runs import packs
from tasks.runs.run import Chunk
from tasks.settings import Settings

Row = dict[str, Any]
"""A row of packs.PICTURES."""

WRITING = "writing"
COMPUTING = "computing"


def run(chunk: Chunk, settings: Settings, progress: Progress = silent) -> dict[str, Any]:
    """Fetch the chunk's pictures, or take the pack that is there already.

    Returns:
        The stage's statistics: items, pictures, bytes, requests, seconds, and as `time_breakdown` which
        seconds went where, see `_time_breakdown`.

    Raises:
        ConfigurationError: FEATURES_CA_FILE cannot be read.
        ServiceUnavailableError: the data dir cannot be read or written.
    """
    if (done := packs.finished_or_moved_aside(chunk.pictures)) is not None:
        return done
    began, computed = time.monotonic(), time.thread_time()
    items = packs.slice_of(chunk.plan.items, chunk.start, chunk.stop)
    urls = {item["img_url"] for item in items if item["invalid"] is None}
    total_bytes = requests = 0
    downloads = Downloads(settings, chunk.plan.folder / "circuits")
    try:
        with packs.writing(chunk.pictures, packs.PICTURES) as pack:
            for row, made in progress(_fetch_all(urls, downloads), "download", len(urls)):
                pack.add(row)
                total_bytes += len(row.get("content", b""))
                requests += made
            seconds = time.monotonic() - began
            pack.statistics |= {
                "items": len(items),
                "pictures": len(urls),
                "bytes": total_bytes,
                "requests": requests,
                "seconds": seconds,
                "time_breakdown": _time_breakdown(seconds, time.thread_time() - computed, downloads),
            }
    finally:
        downloads.close()
    return packs.statistics(chunk.pictures)


def _fetch_all(urls: set[str | None], downloads: Downloads) -> Iterator[tuple[Row, int]]:
    """Fetch every URL; yield the row of each and the requests made."""
    # In an order that has nothing to do with their names, and is the same when the chunk is done again: a
    # folder of bad pictures is met here and there, not in one piece.
    for url in sorted(urls, key=_scattered):
        if (answer := downloads.add(url)) is not None:
            yield _row(url, answer), 0
    while downloads.waiting:
        for url, fetched, requests in downloads.step():
            yield _row(url, fetched), requests


def _scattered(url: str | None) -> bytes:
    return hashlib.blake2b((url or "").encode(errors="surrogatepass"), digest_size=8).digest()


def _row(url: str | None, fetched: Fetched) -> Row:
    if fetched.status is not None:
        return {"img_url": url, "status": fetched.status, "reason": fetched.reason}
    sha256 = hashlib.sha256(fetched.content).hexdigest()
    return {"img_url": url, "content": fetched.content, "sha256": sha256}


def _time_breakdown(seconds: float, computing: float, downloads: Downloads) -> dict[str, float]:
    """Where the stage's seconds went; the causes sum to them, and the largest is what to look at.

    Computing is one core's. Writing is what the pack's disk took besides. The seconds in which there was
    nothing to do but wait are divided by what the places for transfers waited for, as libcurl states it of
    each transfer: names, connections, handshakes, the first byte or the rest of an answer; or hosts that may
    not be asked yet, for their rate, pauses or an open circuit.
    """
    waiting = min(downloads.idle_seconds, seconds - computing)
    total = sum(downloads.seconds.values())
    shares = {cause: spent / total for cause, spent in downloads.seconds.items()} if total else {}
    return {
        COMPUTING: computing,
        WRITING: seconds - computing - (waiting if shares else 0.0),
        **{cause: waiting * share for cause, share in shares.items()},
    }
