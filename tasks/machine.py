"""What this machine's processor offers, and locks on what is there once."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold this machine's lock of that name, which ends with the process, however that ends.

    Raises:
        OSError: the folder for temporary files does not let us.
    """
    # Each user's own: another user's file in the temporary folder cannot be opened.
    path = Path(tempfile.gettempdir()) / f"picture-feature-index-{os.getuid()}-{name}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name and all that it can do, in one line; empty where the machine does not say."""
    described = _described(cpuinfo)
    return " ".join(described[key] for key in ("model name", "flags") if key in described)


def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies bfloat16 itself; where it has to convert, float32 is always faster."""
    return not _BFLOAT16_FLAGS.isdisjoint(_described(cpuinfo).get("flags", "").split())


def _described(cpuinfo: Path) -> dict[str, str]:
    """What the machine says of its first core, by name."""
    described: dict[str, str] = {}
    with suppress(OSError):
        for line in cpuinfo.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            described.setdefault(name.strip(), value.strip())
    return described
