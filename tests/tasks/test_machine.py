"""What a machine's own description of its processor tells us."""

from pathlib import Path

import pytest

from tasks.machine import bfloat16_is_fast


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
    assert bfloat16_is_fast(tmp_path / "cpuinfo") is fast


def test_without_a_list_of_flags_it_does_not(tmp_path: Path) -> None:
    assert not bfloat16_is_fast(tmp_path / "none")
