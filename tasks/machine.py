"""What this machine's processor offers."""

import os
from contextlib import suppress
from pathlib import Path

_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0))


def bfloat16_is_fast(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies bfloat16 itself; where it has to convert, float32 is faster."""
    with suppress(OSError):
        for line in cpuinfo.read_text(errors="replace").splitlines():
            name, _, flags = line.partition(":")
            if name.strip() == "flags":
                return not _BFLOAT16_FLAGS.isdisjoint(flags.split())
    return False
