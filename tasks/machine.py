"""What this machine's processor offers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def on_one_core(number: int) -> Iterator[None]:
    """Keep this thread, and those that it starts meanwhile, on one of the cores that it may use.

    For threads that take turns at Python's interpreter, and so at one core's worth of time, anyway: to hand
    a turn over to another core takes long, above all on a virtual machine that has to wake it up.

    Args:
        number: which one, counted round; what runs side by side takes different ones.
    """
    allowed = sorted(os.sched_getaffinity(0))
    # Where the machine does not let us, it only takes longer.
    with suppress(OSError):
        os.sched_setaffinity(0, {allowed[number % len(allowed)]})
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, allowed)


def bfloat16_is_fast(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies bfloat16 itself; where it has to convert, float32 is faster."""
    with suppress(OSError):
        for line in cpuinfo.read_text(errors="replace").splitlines():
            name, _, flags = line.partition(":")
            if name.strip() == "flags":
                return not _BFLOAT16_FLAGS.isdisjoint(flags.split())
    return False
