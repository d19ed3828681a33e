import random
import re
import resource
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks import files
from tasks.errors import ServiceUnavailableError
from tasks.runs import packs
from tests.interpreter import output_of

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
        "invalid": "item_id is empty" if number % 11 == 0 else None,
        "origin": None if number % 5 == 0 else "changed",
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

    def noted(self: pq.ParquetFile, group: int, **how: Any) -> pa.Table:
        read.append(group)
        return really(self, group, **how)

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
        (packs.FEATURES, {"sha256": "s", "feature": feature.tobytes()}),
    ):
        path = tmp_path / f"{len(row)}.parquet"
        with packs.writing(path, schema) as pack:
            pack.add(row)
            pack.add({})
        first, empty = packs.rows(path)
        assert set(first) == set(schema.names)
        assert {value for name, value in first.items() if name not in row} == {None}
        assert set(empty.values()) == {None}
    assert np.array_equal(np.frombuffer(first["feature"], "<f4"), feature)


def test_large_pictures_are_written_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "pictures.parquet"
    with packs.writing(path, packs.PICTURES) as pack:
        for number in range(9):
            pack.add({"img_url": str(number), "content": bytes([number]) * 1_000_000})
            [unfinished] = tmp_path.iterdir()
            assert unfinished.stat().st_size >= number // 4 * 4_000_000, "memory holds 4 MB at most"
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
from tasks.runs import packs
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
        output = output_of(script, tmp_path / "pack.parquet", rows)
        assert "pack.parquet cannot be written" in output
        assert "File too large" in output
        assert list(tmp_path.iterdir()) == []


def test_a_row_of_the_wrong_type_is_an_error_and_no_pack(tmp_path: Path) -> None:
    with (
        pytest.raises(pa.ArrowException),
        packs.writing(tmp_path / "pack.parquet", packs.FEATURES) as pack,
    ):
        pack.add({"sha256": "s", "feature": b"too short"})
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


# Packs that can be trusted ------------------------------------------------------------------------


ROWS: dict[str, tuple[pa.Schema, list[dict[str, Any]]]] = {
    "items": (packs.ITEMS, [item(number) for number in range(9)]),
    "resolved": (packs.ITEM_IDS, [{"item_id": f"{number}"} for number in range(9)]),
    "pictures": (
        packs.PICTURES,
        [{"img_url": "u", "content": b"JPEG" * 30, "sha256": "s"}, {"status": "gone"}],
    ),
    "features": (packs.FEATURES, [{"sha256": "s", "feature": b"half" * 2048}, {"status": "corrupt"}]),
    "outcomes": (packs.OUTCOMES, [OUTCOME | {"item_id": f"{number}"} for number in range(9)]),
}


def leave(path: Path, **statistics: Any) -> Path:
    """A small pack of the kind that the name says."""
    schema, its_rows = ROWS[path.stem]
    with packs.writing(path, schema) as pack:
        for row in its_rows:
            pack.add(row)
        pack.statistics |= {"seconds": 1.5} | statistics
    return path


def test_a_pack_of_another_release_is_made_again_and_still_tells_of_its_work(tmp_path: Path) -> None:
    """Features were lists of numbers before they were bytes, and an upgrade may meet a run at any stage."""
    path = tmp_path / "features.parquet"
    numbers = pa.list_(pa.field("element", pa.float32()), 4)
    older = pa.schema([("sha256", pa.string()), ("feature", numbers)])
    with packs.writing(path, older) as pack:
        pack.add({"sha256": "s", "feature": [0.5] * 4})
        pack.statistics["seconds"] = 7.5
    for read in (lambda: list(packs.rows(path)), lambda: packs.slice_of(path, 0, 9)):
        with pytest.raises(packs.DamagedPackError, match=r"another release wrote it.* clear `extract`"):
            read()
    assert packs.statistics(path)["seconds"] == 7.5
    assert packs.finished_or_moved_aside(path) is None
    assert not path.exists(), "moved aside"


@pytest.mark.parametrize("kind", ROWS)
def test_whichever_bit_flips_a_reader_gets_what_was_written_or_an_error(tmp_path: Path, kind: str) -> None:
    path = leave(tmp_path / f"{kind}.parquet")
    reads = (
        lambda path: list(packs.rows(path)),
        packs.statistics,
        lambda path: packs.slice_of(path, 1, 5),
    )
    written = [repr(read(path)) for read in reads]
    good = path.read_bytes()
    header = range(4 * 8, 40 * 8)  # of the first page, which no checksum of Parquet's covers
    noticed = 0
    for bit in (*header, *random.Random(kind).sample(range(40 * 8, len(good) * 8), 400)):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        for read, expected in zip(reads, written, strict=True):
            try:
                assert repr(read(path)) == expected, f"bit {bit}"
            except packs.DamagedPackError:
                noticed += 1
    assert noticed > 200


def flip_in_the_first_column(path: Path) -> None:
    """Flip a bit of a value."""
    column = pq.read_metadata(path).row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[start + column.total_compressed_size - 1] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "flipped": flip_in_the_first_column,
    "no Parquet": lambda path: path.write_text("<html>"),
    "no pack": lambda path: pq.write_table(pa.table({"item_id": ["1"]}), path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a broken link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_pack_is_moved_aside_and_done_again(
    tmp_path: Path, damage: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    path = leave(tmp_path / "outcomes.parquet")
    damage(path)
    content = path.read_bytes() if path.is_file() else None

    assert packs.finished_or_moved_aside(path) is None

    (aside,) = tmp_path.iterdir()
    assert re.fullmatch(r"\.outcomes\.parquet\.damaged-[0-9a-f]{32}", aside.name)
    assert (aside.read_bytes() if aside.is_file() else None) == content
    (record,) = caplog.records
    assert (record.levelname, str(path) in record.message, aside.name in record.message) == (
        "WARNING",
        True,
        True,
    )

    leave(path, again=True)
    assert packs.finished_or_moved_aside(path) == {"seconds": 1.5, "again": True}
    assert {*tmp_path.iterdir()} == {path, aside}


def test_a_pack_that_is_good_or_not_there_is_left_as_it_is(
    tmp_path: Path, many: tuple[Path, list[dict[str, Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    assert packs.finished_or_moved_aside(tmp_path / "outcomes.parquet") is None
    assert packs.finished_or_moved_aside(tmp_path / "nowhere" / "outcomes.parquet") is None
    assert list(tmp_path.iterdir()) == []
    for kind in ROWS:
        path = leave(tmp_path / f"{kind}.parquet", kind=kind)
        before = path.stat()
        assert packs.finished_or_moved_aside(path) == {"seconds": 1.5, "kind": kind}
        assert path.stat() == before
    assert packs.finished_or_moved_aside(many[0]) == {}
    assert not caplog.records


def test_a_pack_that_cannot_be_opened_now_is_not_taken_for_damaged(tmp_path: Path) -> None:
    path = leave(tmp_path / "outcomes.parquet")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        with pytest.raises(ServiceUnavailableError, match="Too many open files"):
            packs.finished_or_moved_aside(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert packs.finished_or_moved_aside(path) == {"seconds": 1.5}


def test_a_pack_that_memory_is_too_small_for_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def iter_batches(*_: Any, **__: Any) -> Any:
        raise pa.ArrowMemoryError("malloc of size 32000000 failed")

    path = leave(tmp_path / "outcomes.parquet")
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
        with pytest.raises(MemoryError):
            packs.finished_or_moved_aside(path)
    assert packs.finished_or_moved_aside(path) == {"seconds": 1.5}


def test_features_that_have_lost_their_pictures_are_moved_aside(tmp_path: Path) -> None:
    """Other pictures may come for the same URLs, and nobody would compute their features."""
    pictures, features, outcomes = (leave(tmp_path / f"{kind}.parquet") for kind in list(ROWS)[2:])
    assert packs.finished_or_moved_aside(pictures)
    assert features.exists()

    flip_in_the_first_column(pictures)
    assert packs.finished_or_moved_aside(pictures) is None
    assert {path.name for path in tmp_path.glob("[!.]*")} == {outcomes.name}
    assert len(list(tmp_path.glob(".features.parquet.damaged-*"))) == 1

    leave(features)
    assert packs.finished_or_moved_aside(pictures) is None, "it is not there"
    assert not features.exists()
    flip_in_the_first_column(outcomes)
    assert packs.finished_or_moved_aside(leave(features))
    assert packs.finished_or_moved_aside(outcomes) is None
    assert features.exists()


@pytest.mark.parametrize("outlived", [False, True])
def test_the_features_of_another_attempts_pictures_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outlived: bool
) -> None:
    pictures, features = tmp_path / "pictures.parquet", tmp_path / "features.parquet"
    really = files.identity

    def identity_as_another_attempt_comes(path: Path) -> files.Identity | None:
        found = really(path)
        if path == pictures:
            if outlived:
                features.rename(tmp_path / "moved by the other")
            leave(features, newer=True)
        return found

    if outlived:
        leave(features)
    monkeypatch.setattr(files, "identity", identity_as_another_attempt_comes)
    assert packs.finished_or_moved_aside(pictures) is None
    monkeypatch.undo()
    assert packs.finished_or_moved_aside(features) == {"seconds": 1.5, "newer": True}
    assert not list(tmp_path.glob(".*"))


def test_a_good_pack_that_comes_between_look_and_move_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = leave(tmp_path / "outcomes.parquet")
    flip_in_the_first_column(path)
    really = Path.rename
    others = []

    def rename_after_another_attempt(self: Path, target: Path) -> Path:
        if self == path and not others:
            really(path, tmp_path / "moved by the other")
            others.append(leave(path, other=True).stat().st_ino)
        return really(self, target)

    monkeypatch.setattr(Path, "rename", rename_after_another_attempt)
    assert packs.finished_or_moved_aside(path) == {"seconds": 1.5, "other": True}
    assert [path.stat().st_ino] == others
    assert {found.name for found in tmp_path.iterdir()} == {path.name, "moved by the other"}


def test_attempts_at_once_never_lose_a_finished_pack(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.parquet"
    attempts = 4
    together = threading.Barrier(attempts)

    def attempt(number: int) -> tuple[bool, int]:
        together.wait()
        redone = packs.finished_or_moved_aside(path) is None
        if redone:
            leave(path, by=number)
        return redone, path.stat().st_ino

    with ThreadPoolExecutor(attempts) as pool:
        for _ in range(40):
            path.unlink(missing_ok=True)
            flip_in_the_first_column(leave(path))
            results = list(pool.map(attempt, range(attempts)))
            assert any(redone for redone, _ in results)
            assert {inode for _, inode in results} == {path.stat().st_ino}, "all see the same pack"
            assert packs.finished_or_moved_aside(path)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("chunk-0003/pictures.parquet", "clear `download` of chunk-0003 with everything downstream"),
        ("chunk-0012/features.parquet", "clear `extract` of chunk-0012 with everything downstream"),
        ("chunk-0000/outcomes.parquet", "clear `index` of chunk-0000 with everything downstream"),
        ("items.parquet", "clear the run's `plan` task"),
        ("resolved.parquet", "clear the run's `plan` task"),
    ],
)
def test_what_cannot_be_read_says_which_task_to_clear(tmp_path: Path, name: str, remedy: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    for content in (None, b"damaged"):
        if content:
            path.write_bytes(content)
        for message in reading(path):
            assert str(path) in message
            assert remedy in message
