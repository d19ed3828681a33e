"""What the machine's processor offers, and one core of it."""

import os
import tempfile
import threading
from pathlib import Path
from typing import Any

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


def look(seen: list[set[int]]) -> None:
    """Note on which cores this thread may be, and one that it starts."""
    seen.append(os.sched_getaffinity(0))
    thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
    thread.start()
    thread.join()


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_on_one_core_are_this_thread_and_those_it_starts_and_only_meanwhile() -> None:
    before = os.sched_getaffinity(0)
    seen: list[set[int]] = []
    with on_one_core():
        look(seen)
        assert cores() == 1
    assert seen == [seen[0]] * 2
    assert seen[0] < before or len(before) == 1
    with pytest.raises(KeyError), on_one_core():
        raise KeyError
    look(seen)
    assert seen[2:] == [before, before]


def test_each_task_has_another_core_until_none_is_left() -> None:
    before = os.sched_getaffinity(0)
    seen: list[set[int]] = []
    ready, done = threading.Barrier(len(before) + 2), threading.Event()

    def task() -> None:
        with on_one_core():
            seen.append(os.sched_getaffinity(0))
            ready.wait(10)
            done.wait(10)

    tasks = [threading.Thread(target=task) for _ in range(len(before) + 1)]
    for one in tasks:
        one.start()
    ready.wait(10)
    done.set()
    for one in tasks:
        one.join()
    if len(before) > 1:
        assert sorted(cores for cores in seen if len(cores) == 1) == [{core} for core in sorted(before)]
    assert before in seen, "the last one goes wherever it is put"
    with on_one_core():
        assert cores() == 1, "they are free again"


@pytest.mark.parametrize("refused", [(os, "sched_setaffinity"), (os, "open")], ids=["cores", "locks"])
def test_a_machine_that_does_not_let_us_choose_is_used_as_it_is(
    refused: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    before = cores()
    monkeypatch.setattr(*refused, refuse)
    with on_one_core():
        assert cores() == before
