"""A whole run without Airflow.

While the features of one chunk are computed, the pictures of the next one are fetched, and those of the one
before are written.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, pairwise
from typing import Any, TypeVar

from tasks import download, extract, index, plan, summarise
from tasks.connections import Services
from tasks.errors import FeatureIndexError
from tasks.ledger import Ledger
from tasks.progress import Progress, silent
from tasks.runs import Chunk, Request
from tasks.settings import Settings

T = TypeVar("T")


def run(
    request: Request, settings: Settings, services: Services, progress: Progress = silent
) -> dict[str, Any]:
    """Plan, then download, extract and index every chunk, then summarise; returns the report.

    Raises:
        FeatureIndexError: as the stages do.
    """
    ledger = Ledger(services.ledger, settings)
    planned = plan.run(request, settings, services, progress)
    try:
        _features(planned.chunks, settings, services, progress)
    except BaseException:
        # The report tells what is unfinished; why it is, the stage's own error says best.
        with contextlib.suppress(FeatureIndexError):
            summarise.run(planned, settings, ledger)
        raise
    return summarise.run(planned, settings, ledger)


def _features(chunks: Sequence[Chunk], settings: Settings, services: Services, progress: Progress) -> None:
    """Do the stages of every chunk; the first error ends them all."""
    stopped = threading.Event()
    progress = _until(stopped, progress)
    with ThreadPoolExecutor(1, "download") as downloads, ThreadPoolExecutor(1, "index") as writes:
        try:
            written: Future[Any] | None = None
            for chunk in _downloaded(chunks, settings, progress, downloads):
                extract.run(chunk, settings, progress)
                if written is not None:
                    written.result()
                written = writes.submit(index.run, chunk, settings, services, progress)
            if written is not None:
                written.result()
        except BaseException:
            stopped.set()
            raise


def _downloaded(
    chunks: Sequence[Chunk], settings: Settings, progress: Progress, thread: ThreadPoolExecutor
) -> Iterator[Chunk]:
    """Each chunk once its pictures are there, those of the next one being on their way."""
    begun = ((chunk, thread.submit(download.run, chunk, settings, progress)) for chunk in chunks)
    # A pair is there once the later of the two is begun.
    for present, _ in pairwise(chain(begun, [None])):
        assert present is not None
        chunk, done = present
        done.result()
        yield chunk


class _StoppedError(Exception):
    """Another stage has failed, or somebody has had enough."""


def _until(stopped: threading.Event, progress: Progress) -> Progress:
    """The same progress, which ends a stage at its next result once that is asked for."""

    def watched(results: Iterable[T], stage: str, total: int) -> Iterator[T]:
        for result in progress(results, stage, total):
            if stopped.is_set():
                raise _StoppedError
            yield result

    return watched
