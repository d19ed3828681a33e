"""A whole run without Airflow.

While the features of one chunk are computed, the pictures of the next one are fetched, and those of the one
before are written. The model is loaded while the first ones are fetched.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from tasks.errors import FeatureIndexError
from tasks.inference.model import load
from tasks.progress import Progress, silent
from tasks.runs.run import Chunk, Request
from tasks.settings import Settings
from tasks.shop.connections import Services
from tasks.shop.ledger import Ledger
from tasks.stages import download, extract, index, plan, summarise
from tasks.stages.prefetch import prefetched

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

    def fetch(chunk: Chunk) -> None:
        download.run(chunk, settings, progress)

    def prepare() -> None:
        if not all(chunk.features.exists() for chunk in chunks):
            load(settings)

    with ThreadPoolExecutor(1, "download") as downloads, ThreadPoolExecutor(1, "index") as writes:
        try:
            beside: Future[Any] = writes.submit(prepare)  # there is nothing to write yet
            for chunk, _ in prefetched(downloads, fetch, chunks):
                extract.run(chunk, settings, progress)
                beside.result()
                beside = writes.submit(index.run, chunk, settings, services, progress)
            beside.result()
        except BaseException:
            stopped.set()
            raise


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
