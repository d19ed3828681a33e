"""Tests of tasks/inference/graph.py: graphs that are kept, and what the CPU can do; test_model.py computes
with them."""

from pathlib import Path

import pytest

from tasks.inference.graph import kept

pytestmark = pytest.mark.model

CONTENT = bytes(range(256)) * 40


def made_once(path: Path, content: bytes = CONTENT, made_from: str = "one") -> int:
    """How often a graph is made where one may be kept; what comes is always right."""
    made = []

    def make() -> bytes:
        made.append(content)
        return content

    assert kept(path, made_from, make) == content
    return len(made)


def test_a_graph_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "graphs" / "one"
    assert [made_once(path), made_once(path)] == [1, 0]
    assert [file.name for file in path.parent.iterdir()] == ["one"]


def test_where_none_can_be_kept_it_is_made_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    path = tmp_path / "file" / "one"
    assert [made_once(path), made_once(path)] == [1, 1]
    assert f"{path} cannot be written" in caplog.text


@pytest.mark.parametrize("position", [0, 31, 32, 5_000, -1])
def test_one_wrong_bit_makes_it_anew(position: int, tmp_path: Path) -> None:
    path = tmp_path / "one"
    made_once(path)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[position] ^= 4
    path.write_bytes(damaged)

    assert [made_once(path), made_once(path)] == [1, 0]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"torn", CONTENT], ids=["empty", "torn", "no checksum"])
def test_what_is_no_kept_graph_makes_it_anew(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_bytes(content)
    assert [made_once(path), made_once(path)] == [1, 0]


def test_a_graph_of_another_model_is_not_taken_and_gives_way(tmp_path: Path) -> None:
    path = tmp_path / "one"
    made_once(path, b"the graph of another model", made_from="another")
    assert [made_once(path), made_once(path)] == [1, 0]
