"""A whole run without Airflow.

While the features of one chunk are computed, the pictures of those after it are fetched, the next one makes
ready for the device, and the features of the one before are written. The model is loaded while the first
pictures are fetched.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from tasks import download, extract, index, plan, summarise
from tasks.connections import Services
from tasks.errors import FeatureIndexError
from tasks.ledger import Ledger
from tasks.model import load
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
    together = _Together()
    progress = together.watched(progress)

    def prepare() -> None:
        if not all(chunk.features.exists() for chunk in chunks):
            load(settings)

    with (
        ThreadPoolExecutor(1, "download") as downloads,
        # One more than can compute at once: it makes ready, and waits for the device.
        ThreadPoolExecutor(2, "extract") as extracts,
        ThreadPoolExecutor(1, "index") as writes,
    ):
        done = [writes.submit(together.do, prepare)]  # there is nothing to write yet
        for chunk in chunks:
            fetched = downloads.submit(together.do, download.run, chunk, settings, progress)
            computed = extracts.submit(together.do, extract.run, chunk, settings, progress, after=fetched)
            done.append(
                writes.submit(together.do, index.run, chunk, settings, services, progress, after=computed)
            )
        together.wait(done)


class _StoppedError(Exception):
    """Another stage has failed, or somebody has had enough."""


class _Together:
    """Work in several threads, which the first error of any of it ends."""

    def __init__(self) -> None:
        self._errors: list[BaseException] = []

    def do(self, stage: Callable[..., Any], *arguments: Any, after: Future[None] | None = None) -> None:
        """Do it, in the thread that calls, once what it comes after is done."""
        try:
            if after is not None:
                after.result()
            if self._errors:
                raise _StoppedError
            stage(*arguments)
        except BaseException as error:
            self._errors.append(error)
            raise

    def watched(self, progress: Progress) -> Progress:
        """The same progress, which ends a stage at its next result once there is an error."""

        def ending(results: Iterable[T], stage: str, total: int) -> Iterator[T]:
            for result in progress(results, stage, total):
                if self._errors:
                    raise _StoppedError
                yield result

        return ending

    def wait(self, futures: Iterable[Future[None]]) -> None:
        """Wait until all is done; raise the first error, since the others are its consequences."""
        try:
            for future in futures:
                future.result()
        except BaseException as error:
            self._errors.append(error)
        if self._errors:
            raise self._errors[0]
