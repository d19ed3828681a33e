"""What the machine's processor offers."""

from pathlib import Path

import pytest

from tasks.machine import multiplies_bfloat16, processor


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
