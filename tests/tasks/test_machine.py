"""What the machine's processor offers, and one core of it."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.machine import cores, multiplies_bfloat16, on_one_core, processor


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


def started_from_here(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_on_one_core_are_this_thread_and_those_it_starts_and_only_meanwhile() -> None:
    before = os.sched_getaffinity(0)
    seen: list[set[int]] = []

    def look() -> None:
        seen.append(os.sched_getaffinity(0))

    for number in range(2 * len(before)):
        with on_one_core(number):
            look()
            started_from_here(look)
            assert cores() == 1
    assert seen[::2] == seen[1::2], "what a thread starts is where it is"
    assert sorted(seen[::2], key=min) == [{core} for core in sorted(before) for _ in range(2)], "each in turn"

    with pytest.raises(KeyError), on_one_core(1):
        raise KeyError
    look()
    started_from_here(look)
    assert seen[-2:] == [before, before]


def test_a_machine_that_does_not_let_us_choose_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    before = cores()
    with on_one_core(0):
        assert cores() == before
