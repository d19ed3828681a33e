"""Progress of long work: a bar at a terminal, a line in Airflow's UI, nothing in a log file."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

_SECONDS_BETWEEN = 5.0
"""A person who watches needs no more, and each report costs Airflow a write."""


class Progress(Protocol):
    """Wraps the results of a stage as they come, to show how far it is."""

    def __call__(self, results: Iterable[T], stage: str, total: int) -> Iterable[T]:
        """Pass `results` on; there will be `total` of them, 0 if nobody knows."""


def silent(results: Iterable[T], stage: str, total: int) -> Iterable[T]:  # noqa: ARG001
    """Show nothing."""
    return results


def bar(results: Iterable[T], stage: str, total: int) -> Iterator[T]:
    """Show a bar on standard error, where that is a terminal."""
    from tqdm import tqdm

    shown: Any = tqdm(
        results, desc=f"{stage:<9}", total=total or None, unit="", leave=True, disable=not sys.stderr.isatty()
    )
    yield from shown


def reported(report: Callable[[str], None], every: float = _SECONDS_BETWEEN) -> Progress:
    """Report in words how far the stage is, every so many seconds and at its end.

    Should `report` fail, it is not called again: the work is worth more than its progress.
    """

    def reporting(results: Iterable[T], stage: str, total: int) -> Iterator[T]:  # noqa: ARG001
        started = last = time.monotonic()
        failed = False

        def say(done: int, now: float) -> None:
            nonlocal last, failed
            last = now
            if failed:
                return
            try:
                report(_how_far(done, total, now - started))
            except Exception:
                log.warning("The progress cannot be reported; the work goes on.", exc_info=True)
                failed = True

        done = 0
        for result in results:
            yield result
            done += 1
            if (now := time.monotonic()) - last >= every:
                say(done, now)
        say(done, time.monotonic())

    return reporting


def _how_far(done: int, total: int, seconds: float) -> str:
    rate = done / seconds if seconds > 0 else 0.0
    words = [f"{done:,} of {total:,} done" if total else f"{done:,} done", f"{rate:.1f}/s"]
    if 0 < done < total:
        words.append(f"{(total - done) / rate:.0f} s left")
    return ", ".join(words)
