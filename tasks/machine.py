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
