"""How long work shows that it goes on: a bar at a terminal, nothing in a log file."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


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
