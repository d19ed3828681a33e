"""What the machine's processor offers."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tasks.machine import cores, multiplies_bfloat16, processor
from tasks.settings import REPOSITORY

_TOPS = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
"""Of control groups version 1, and of version 2."""


@pytest.mark.parametrize(
    ("cpuinfo", "fast"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n", True),
        ("processor\t: 0\nflags\t\t: fpu amx_tile amx_bf16 amx_int8\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", False),
        ("processor\t: 0\nmodel name\t: with avx512_bf16\nflags\t\t: fpu\n", False),
        ("", False),
    ],
)
def test_the_cpu_s_flags_tell_whether_it_multiplies_bfloat16(
    cpuinfo: str, fast: bool, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert multiplies_bfloat16(tmp_path / "cpuinfo") is fast


def test_without_a_list_of_flags_it_does_not(tmp_path: Path) -> None:
    assert not multiplies_bfloat16(tmp_path / "none")


def test_a_processor_is_its_name_and_what_it_can_do(tmp_path: Path) -> None:
    """A virtual machine may hide what another one on the same CPU shows."""
    described = []
    for number, flags in enumerate(["fpu avx512_bf16 amx_bf16", "fpu avx512_bf16"]):
        cpuinfo = tmp_path / str(number)
        core = "processor\t: {}\nmodel name\t: A CPU\ncpu MHz\t\t: {}\nflags\t\t: {}\n\n"
        cpuinfo.write_text("".join(core.format(one, 2_000 + one, flags) for one in range(2)))
        described.append(processor(cpuinfo))
    assert described == ["A CPU fpu avx512_bf16 amx_bf16", "A CPU fpu avx512_bf16"]
    assert processor(tmp_path / "none") == ""


def control_groups(folder: Path, lines: str, files: dict[str, str]) -> tuple[Path, Path]:
    """What /proc/self/cgroup and /sys/fs/cgroup would be."""
    (folder / "self").write_text(lines)
    for name, content in files.items():
        path = folder / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder / "self", folder / "mounted"


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        pytest.param("0::/\n", {"cpu.max": "200000 100000\n"}, 2, id="a container's own"),
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, 8, id="no limit"),
        pytest.param("0::/\n", {"cpu.max": "150000 100000\n"}, 2, id="a core and a half"),
        pytest.param("0::/\n", {"cpu.max": "5000 100000\n"}, 1, id="a twentieth"),
        pytest.param("0::/\n", {"cpu.max": "9900000 100000\n"}, 8, id="more than there are"),
        pytest.param("0::/\n", {}, 8, id="the machine's own top group has no file"),
        pytest.param(
            "0::/work.slice/celery.service\n",
            {"work.slice/celery.service/cpu.max": "max 100000\n", "work.slice/cpu.max": "300000 100000\n"},
            3,
            id="a group above it",
        ),
        pytest.param(
            "0::/work.slice/celery.service\n",
            {"work.slice/celery.service/cpu.max": "400000 100000", "work.slice/cpu.max": "600000 100000"},
            4,
            id="the least of several",
        ),
        pytest.param(
            "0::/kubepods/of-the-host\n", {"cpu.max": "200000 100000\n"}, 2, id="a path of the host"
        ),
        pytest.param(
            "4:memory:/\n2:cpu,cpuacct:/docker/1\n0::/\n",
            {
                "cpu,cpuacct/docker/1/cpu.cfs_quota_us": "500000\n",
                "cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000\n",
            },
            5,
            id="version 1",
        ),
        pytest.param(
            "1:cpu:/\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            8,
            id="version 1, no limit",
        ),
        pytest.param("nonsense", {"cpu.max": "nonsense"}, 8, id="nonsense"),
    ],
)
def test_cores_are_those_that_a_quota_leaves(
    lines: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert cores(*control_groups(tmp_path, lines, files)) == expected


def test_cores_in_a_control_group_of_this_machine() -> None:
    """The kernel's own files: half of what there is, as a container's quota would have it."""
    every = len(os.sched_getaffinity(0))
    group = next((top / f"cores-{os.getpid()}" for top in _TOPS if os.access(top, os.W_OK)), None)
    if group is None or every < 2:
        pytest.skip("this user can make no control group, or there is one core")
    try:
        group.mkdir()
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{every // 2 * 50_000} 50000")
        else:
            (group / "cpu.cfs_period_us").write_text("50000")
            (group / "cpu.cfs_quota_us").write_text(str(every // 2 * 50_000))
    except OSError as error:
        with suppress(OSError):
            group.rmdir()
        pytest.skip(f"this machine's control groups cannot be used: {error}")
    try:
        program = (
            f"import os; open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
            "from tasks.machine import cores; print(cores())"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY
        )
        assert int(done.stdout) == every // 2
    finally:
        group.rmdir()
