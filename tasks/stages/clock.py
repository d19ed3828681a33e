"""What the time of a stage goes into."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up seconds by what they were spent on, in any thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def measured(self, what: str) -> Iterator[None]:
        """Count the seconds of the block, however it ends, to `what`."""
        started = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[what] = self.seconds.get(what, 0.0) + time.monotonic() - started
