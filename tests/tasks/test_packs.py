import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks import packs
from tasks.errors import ServiceUnavailableError
from tasks.settings import REPOSITORY

OUTCOME = {
    "item_id": "007",
    "img_url": "http://cdn.example.com/상의.jpg",
    "status": "indexed",
    "reason": None,
}


def item(number: int) -> dict[str, Any]:
    return {
        "item_id": f"{number:08}",
        "item_name": f"이름 {number}",
        "category_id": "00000030",
        "img_url": None if number % 7 == 0 else f"http://cdn.example.com/{number}.jpg",
    }


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A pack of several row groups, and its rows."""
    path = tmp_path_factory.mktemp("packs") / "items.parquet"
    written = [item(number) for number in range(1_234)]
    with packs.writing(path, packs.ITEMS) as pack:
        for row in written:
            pack.add(row)
    assert pq.ParquetFile(path).num_row_groups == 3
    return path, written


def test_rows_come_back_in_order(many: tuple[Path, list[dict[str, Any]]]) -> None:
    path, written = many
    for at_once in (1, 500, 10_000):
        assert list(packs.rows(path, at_once=at_once)) == written
    assert [row["item_id"] for row in packs.rows(path, ["item_id"])] == [row["item_id"] for row in written]
    assert set(next(packs.rows(path, ["item_id"]))) == {"item_id"}
    assert max(batch.num_rows for batch in packs.batches(path, at_once=100)) <= 100


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(st.integers(0, 1_300), st.integers(0, 1_300))
def test_a_slice_is_the_lists_slice(many: tuple[Path, list[dict[str, Any]]], start: int, stop: int) -> None:
    path, written = many
    assert packs.slice_of(path, start, stop) == written[start:stop]


@pytest.mark.parametrize("start", [0, 499, 500, 501, 999, 1_000, 1_233])
@pytest.mark.parametrize("length", [0, 1, 2, 500, 501])
def test_a_slice_at_the_groups_edges(
    many: tuple[Path, list[dict[str, Any]]], start: int, length: int
) -> None:
    path, written = many
    assert packs.slice_of(path, start, start + length) == written[start : start + length]


def test_a_slice_reads_only_the_groups_it_lies_in(
    many: tuple[Path, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    really = pq.ParquetFile.read_row_group

    def noted(self: pq.ParquetFile, group: int) -> pa.Table:
        read.append(group)
        return really(self, group)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    packs.slice_of(many[0], 500, 1_000)
    assert read == [1]


def test_statistics_survive(tmp_path: Path) -> None:
    path = tmp_path / "pack.parquet"
    measured = {"items": 3, "seconds": 1.25, "device": "cpu", "label": "상의", "none": None}
    with packs.writing(path, packs.OUTCOMES) as pack:
        pack.add(OUTCOME)
        pack.statistics |= measured
    assert packs.statistics(path) == measured
    assert list(packs.rows(path)) == [OUTCOME]


def test_of_two_live_attempts_the_first_to_finish_stays(tmp_path: Path) -> None:
    path = tmp_path / "pack.parquet"
    with packs.writing(path, packs.OUTCOMES) as late:
        late.add(OUTCOME | {"item_id": "late"})
        with packs.writing(path, packs.OUTCOMES) as first:
            first.add(OUTCOME | {"item_id": "first"})
    assert [row["item_id"] for row in packs.rows(path)] == ["first"]
    assert list(tmp_path.iterdir()) == [path]


def test_an_empty_pack_is_a_pack(tmp_path: Path) -> None:
    path = tmp_path / "pack.parquet"
    with packs.writing(path, packs.FEATURES) as pack:
        pack.statistics["pictures"] = 0
    assert list(packs.rows(path)) == []
    assert packs.slice_of(path, 0, 10) == []
    assert packs.statistics(path) == {"pictures": 0}


def test_bytes_and_vectors_come_back_exactly(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9
    feature = np.random.default_rng(1).random(2048, np.float32)
    for schema, row in (
        (packs.PICTURES, {"img_url": "u", "content": content, "sha256": "s"}),
        (packs.FEATURES, {"sha256": "s", "feature": feature}),
    ):
        path = tmp_path / f"{len(row)}.parquet"
        with packs.writing(path, schema) as pack:
            pack.add(row)
            pack.add({})
        first, empty = packs.rows(path)
        assert set(first) == set(schema.names)
        assert {value for name, value in first.items() if name not in row} == {None}
        assert set(empty.values()) == {None}
    assert np.array_equal(np.array(first["feature"], np.float32), feature)


def test_large_pictures_are_written_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "pictures.parquet"
    with packs.writing(path, packs.PICTURES) as pack:
        for number in range(9):
            pack.add({"img_url": str(number), "content": bytes([number]) * 8_000_000})
            [unfinished] = tmp_path.iterdir()
            assert unfinished.stat().st_size >= number // 4 * 32_000_000, "memory holds 32 MB at most"
    assert pq.ParquetFile(path).num_row_groups == 3
    assert [row["content"][0] for row in packs.rows(path, at_once=1)] == list(range(9))


def test_a_block_that_fails_leaves_no_pack(tmp_path: Path) -> None:
    def write_and_fail() -> None:
        with packs.writing(tmp_path / "pack.parquet", packs.OUTCOMES) as pack:
            for _ in range(1_000):
                pack.add(OUTCOME)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_and_leaves_no_pack(tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk: both fail in the middle of a write."""
    script = """
import os, resource, sys
from pathlib import Path
from tasks import packs
from tasks.errors import ServiceUnavailableError
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    with packs.writing(Path(sys.argv[1]), packs.PICTURES) as pack:
        for _ in range(int(sys.argv[2])):
            pack.add({"content": os.urandom(100_000)})
except ServiceUnavailableError as error:
    print(error)
"""
    for rows in ("20", "600"):  # written when the block ends, and while it still runs
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "pack.parquet"), rows],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "pack.parquet cannot be written" in done.stdout
        assert "File too large" in done.stdout
        assert list(tmp_path.iterdir()) == []


def test_a_row_of_the_wrong_type_is_an_error_and_no_pack(tmp_path: Path) -> None:
    with (
        pytest.raises(pa.ArrowException),
        packs.writing(tmp_path / "pack.parquet", packs.FEATURES) as pack,
    ):
        pack.add({"sha256": "s", "feature": [1.0, 2.0]})
    assert list(tmp_path.iterdir()) == []


def reading(path: Path) -> list[Any]:
    """Read a pack in each way there is; every one has to say the same of a file it cannot read."""
    messages = []
    for read in (
        lambda: list(packs.rows(path)),
        lambda: packs.slice_of(path, 0, 2_000),
        lambda: packs.statistics(path),
    ):
        with pytest.raises(ServiceUnavailableError) as refused:
            read()
        messages.append(str(refused.value))
    return messages


def test_a_pack_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    for message in reading(tmp_path / "pack.parquet"):
        assert str(tmp_path / "pack.parquet") in message
        assert "FEATURES_DATA_DIR" in message
        assert "clear the run's `plan` task" in message


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 0.9999])
def test_a_pack_cut_short_says_what_to_do(
    many: tuple[Path, list[dict[str, Any]]], tmp_path: Path, share: float
) -> None:
    content = many[0].read_bytes()
    path = tmp_path / "pack.parquet"
    path.write_bytes(content[: int(len(content) * share)])
    assert all("cannot be read" in message for message in reading(path))


def test_what_is_no_pack_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "pack.parquet"
    for content in (b"no Parquet at all", b"PAR1" + bytes(100) + b"PAR1"):
        path.write_bytes(content)
        assert all("cannot be read" in message for message in reading(path))
    path.unlink()
    path.mkdir()
    assert all("cannot be read" in message for message in reading(path))


def test_a_pack_with_holes_says_what_to_do(many: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    """A disk that lost blocks gives zeros in the middle of a file."""
    content = bytearray(many[0].read_bytes())
    content[100 : len(content) // 2] = bytes(len(content) // 2 - 100)
    path = tmp_path / "pack.parquet"
    path.write_bytes(content)
    with pytest.raises(ServiceUnavailableError, match="cannot be read"):
        list(packs.rows(path))
    with pytest.raises(ServiceUnavailableError, match="cannot be read"):
        packs.slice_of(path, 0, 2_000)
