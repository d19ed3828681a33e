"""A server that several processes of tests share."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

Start = Callable[[Path], AbstractContextManager[str]]
"""Starts a server in a folder and gives its address; it ends with the block."""


@contextmanager
def shared(folder: Path, start: Start) -> Iterator[str]:
    """The address of the server of `folder`: the first process starts it, and ends it after the last.

    Who uses it holds a lock, which goes with its process however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    address = folder / "address"
    with (folder / "starting").open("w") as starting, (folder / "used").open("w") as used:
        fcntl.flock(starting, fcntl.LOCK_EX)
        if address.exists():
            fcntl.flock(used, fcntl.LOCK_SH)
            fcntl.flock(starting, fcntl.LOCK_UN)
            yield address.read_text()
            return
        with start(folder) as url:
            address.write_text(url)
            fcntl.flock(starting, fcntl.LOCK_UN)
            try:
                yield url
            finally:
                fcntl.flock(starting, fcntl.LOCK_EX)
                fcntl.flock(used, fcntl.LOCK_EX)
                address.unlink()
