"""What this machine lets a process use, and locks on what is there once."""

import fcntl
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def cores(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> int:
    """How many cores this process may use: those it may run on, or fewer where the CPU quota of a container,
    or of another control group that it is in, is less; a part of a core counts as one.
    """
    return min([len(os.sched_getaffinity(0)), *map(math.ceil, _quotas(groups, mounted))])


def _quotas(groups: Path, mounted: Path) -> list[float]:
    """In cores, of the control groups that this process is in; see cgroups(7)."""
    quotas = []
    with suppress(OSError, ValueError):
        for line in groups.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = mounted / controllers
            # Within a container the path may be the host's, of which only the top is to be seen.
            for folder in (group := top / path.lstrip("/"), *group.parents):
                with suppress(OSError, ValueError):
                    quota, period = _quota(folder)
                    if quota > 0:
                        quotas.append(quota / period)
                if folder == top:
                    break
    return quotas


def _quota(group: Path) -> tuple[int, int]:
    """Microseconds of CPU in each period of so many.

    Raises:
        OSError: it has none.
        ValueError: it is not limited.
    """
    if (unified := group / "cpu.max").exists():
        quota, period = unified.read_text().split()
        return int(quota), int(period)
    return int((group / "cpu.cfs_quota_us").read_text()), int((group / "cpu.cfs_period_us").read_text())


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
