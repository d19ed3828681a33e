"""Every stage on a disk that is full or hands back something else than was written: a clear error, nothing
half-written, and the same result as ever once it is done again with room, or once what the error names was
cleared."""

import errno
import hashlib
import itertools
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from tasks import files
from tasks.errors import ServiceUnavailableError
from tasks.inference.model import load
from tasks.pictures.picture import decode, to_tensor
from tasks.runs import packs
from tasks.runs.run import Chunk, Plan, Request
from tasks.search.index import SearchIndex
from tasks.settings import Settings
from tasks.shop.ledger import Ledger
from tasks.stages import download, extract, index, plan, summarise
from tasks.statuses import Status
from tests.scripted_server import Reply, ScriptedServer
from tests.shop_fixtures import SmallShop
from tests.tasks.stages.test_extract import own_lock, picture, tiny  # noqa: F401

ITEMS = 6
Features = NDArray[np.float32]


class Run:
    """A planned run of one chunk of real pictures, whose stages a test does as it likes."""

    def __init__(self, shop: SmallShop, server: ScriptedServer, model: tuple[Path, Features]) -> None:
        self.shop = shop
        self.server = server
        self.settings: Settings = shop.settings(
            image_hosts=(server.host,), model_dir=model[0], batch_size=4, precision="float32"
        )
        self.kernel = model[1]
        self.ids = [f"{number:03}" for number in range(ITEMS)]
        for number, item_id in enumerate(self.ids):
            shop.stock(item_id, img_url=server.url(f"/{item_id}"))
            self.serve(item_id, picture(number))
        SearchIndex(shop.services.search, shop.index).prepare()
        request = Request("nightly", "r", category_ids=("00000010",))
        self.plan: Plan = plan.run(request, self.settings, shop.services)
        self.chunk: Chunk = self.plan.chunks[0]

    def serve(self, item_id: str, content: bytes) -> None:
        self.server.answer(f"/{item_id}", Reply(body=content))

    def do(self, stage: str) -> dict[str, Any]:
        if stage == "download":
            return download.run(self.chunk, self.settings)
        if stage == "extract":
            return extract.run(self.chunk, self.settings)
        if stage == "index":
            return index.run(self.chunk, self.settings, self.shop.services)
        return summarise.run(self.plan, self.settings, Ledger(None, self.settings))

    def expected(self, contents: list[bytes]) -> list[Features]:
        """The tiny model's features, computed without the model."""
        return [to_tensor(decode(content, 1_000_000)).mean(axis=(0, 1)) @ self.kernel for content in contents]

    def check(self, stage: str, contents: list[bytes] | None = None) -> None:
        """Whether a stage left what it should of these pictures, or else of those served at first."""
        contents = contents or [picture(number) for number in range(ITEMS)]
        hashes = [hashlib.sha256(content).hexdigest() for content in contents]
        if stage == "download":
            rows = {row["img_url"]: row for row in packs.rows(self.chunk.pictures)}
            urls = [self.server.url(f"/{item_id}") for item_id in self.ids]
            assert [(rows[url]["content"], rows[url]["sha256"]) for url in urls] == list(
                zip(contents, hashes, strict=True)
            )
        elif stage == "extract":
            rows = packs.rows(self.chunk.features)
            features = {row["sha256"]: np.frombuffer(row["feature"], "<f4") for row in rows}
            assert set(features) == set(hashes)
            for sha256, feature in zip(hashes, self.expected(contents), strict=True):
                np.testing.assert_allclose(features[sha256], feature, rtol=1e-4)
        elif stage == "index":
            outcomes = [(row["item_id"], row["status"]) for row in packs.rows(self.chunk.outcomes)]
            assert outcomes == [(item_id, Status.INDEXED) for item_id in self.ids]
            for item_id, feature in zip(self.ids, self.expected(contents), strict=True):
                np.testing.assert_allclose(self.shop.vector(item_id), feature, rtol=1e-4)
        else:
            report = files.read_json(self.settings.data_dir / "nightly" / "r" / "report.json")
            assert report["counts"] == {"indexed": ITEMS}
            assert list(Ledger(None, self.settings).matching()) == []


STAGES = ("download", "extract", "index", "summarise")


@pytest.fixture
def planned_run(
    sqlite_shop: SmallShop,
    image_server: ScriptedServer,
    tiny: tuple[Path, Features],  # noqa: F811
) -> Run:
    return Run(sqlite_shop, image_server, tiny)


def tree(folder: Path) -> dict[Path, tuple[int, int]]:
    """What is in a folder, by identity and size, but for the ledger, which may have no tables yet."""
    return {
        path: (path.lstat().st_ino, path.lstat().st_size)
        for path in folder.rglob("*")
        if path.name != "ledger.db"
    }


# A full disk --------------------------------------------------------------------------------------


Fault = Callable[[pytest.MonkeyPatch], AbstractContextManager[None]]


@contextmanager
def limit_kept() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def leave_room_for(size: int) -> None:
    """Let no file grow beyond `size` bytes, which stands for the disk: a write fails in its middle."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def first(act: Callable[[], None], real: Callable[..., Any]) -> Callable[..., Any]:
    """Do that first, and then what a function does."""

    def both(*arguments: Any, **named: Any) -> Any:
        act()
        return real(*arguments, **named)

    return both


@contextmanager
def no_room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For any file, from when the stage comes to make one: other things it needs count as files, too."""
    with monkeypatch.context() as patch, limit_kept():
        patch.setattr(sys, "dont_write_bytecode", True)  # a module imported now must not be cached cut short
        patch.setattr(files, "atomic_write", first(lambda: leave_room_for(0), files.atomic_write))
        yield


@contextmanager
def room_for_a_part(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of each file, which shows when the stage is at work."""
    with monkeypatch.context() as patch, limit_kept():
        patch.setattr(sys, "dont_write_bytecode", True)
        for owner, name in ((packs.Writer, "add"), (files, "write_json")):
            patch.setattr(owner, name, first(lambda: leave_room_for(500), getattr(owner, name)))
        yield


@contextmanager
def no_quota(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Said only in the end, as network file systems do."""

    def fsync(_: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


faults = pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(no_room, "File too large", id="no room"),
        pytest.param(room_for_a_part, "File too large", id="room for a part"),
        pytest.param(no_quota, "Disk quota exceeded", id="no quota"),
    ],
)


@faults
def test_each_stage_on_a_full_disk(
    planned_run: Run, monkeypatch: pytest.MonkeyPatch, fault: Fault, reason: str
) -> None:
    # Several row groups, so that some are written while the stage is at work.
    monkeypatch.setattr(packs, "_ROWS_IN_GROUP", 2)
    made = ("pictures.parquet", "features.parquet", "outcomes.parquet", "report.json")
    load(planned_run.settings)  # as after any earlier run, the model's graph is kept
    for stage, name in zip(STAGES, made, strict=True):
        before = tree(planned_run.settings.data_dir)
        for _ in range(2):
            with fault(monkeypatch), pytest.raises(ServiceUnavailableError) as refused:
                planned_run.do(stage)
            message = str(refused.value)
            assert f"{name} cannot be written: " in message
            assert reason in message
            assert "Make room" in message
        assert tree(planned_run.settings.data_dir).keys() - before.keys() <= {planned_run.chunk.folder}
        planned_run.do(stage)
        planned_run.check(stage)


def test_documents_that_were_written_before_the_disk_was_full_are_not_written_again(
    planned_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in ("download", "extract"):
        planned_run.do(stage)
    with no_room(monkeypatch), pytest.raises(ServiceUnavailableError, match=r"outcomes\.parquet"):
        planned_run.do("index")
    written = planned_run.shop.sequence_numbers()
    planned_run.do("index")
    planned_run.check("index")
    assert planned_run.shop.sequence_numbers() == written


def test_a_ledger_without_room(planned_run: Run) -> None:
    """The report is smaller than the ledger, so there may be room for the one and none for the other."""
    planned_run.server.answer("/003", Reply(404))
    for stage in ("download", "extract", "index"):
        planned_run.do(stage)
    budget = planned_run.settings.model_copy(update={"failure_budget": 1.0})

    def run() -> dict[str, Any]:
        return summarise.run(planned_run.plan, budget, Ledger(None, budget))

    with limit_kept():
        leave_room_for(4_000)
        with pytest.raises(ServiceUnavailableError, match=r"ledger .*ledger\.db"):
            run()
    assert list(Ledger(None, budget).matching()) == []
    assert run()["counts"] == {"indexed": ITEMS - 1, "gone": 1}
    assert [(failure.item_id, failure.attempts) for failure in Ledger(None, budget).matching()] == [
        ("003", 1)
    ]


def planning(shop: SmallShop) -> Plan:
    request = Request("nightly", "r", category_ids=("00000010",))
    return plan.run(request, shop.settings(), shop.services)


@faults
def test_planning_on_a_full_disk(
    sqlite_shop: SmallShop, model_version: str, monkeypatch: pytest.MonkeyPatch, fault: Fault, reason: str
) -> None:
    ids = [f"{number:03}" for number in range(ITEMS)]
    sqlite_shop.stock(*ids)
    with (
        fault(monkeypatch),
        pytest.raises(ServiceUnavailableError, match=rf"\.parquet cannot be written: .*{reason}"),
    ):
        planning(sqlite_shop)
    folder = sqlite_shop.data_dir / "nightly" / "r"
    left = [path for path in folder.rglob("*") if not path.is_dir()]
    assert all(
        path.name.endswith(".parquet") and packs.finished_or_moved_aside(path) is not None for path in left
    )

    planned = planning(sqlite_shop)
    assert Plan.load(planned.folder) == planned
    assert planned.feature_version == model_version
    assert [row["item_id"] for row in packs.rows(planned.items)] == ids


@pytest.mark.usefixtures("model_version")
def test_a_plan_whose_last_file_finds_no_room_is_no_plan(
    sqlite_shop: SmallShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite_shop.stock("1")
    with limit_kept(), monkeypatch.context() as patch:
        patch.setattr(files, "write_json", first(lambda: leave_room_for(10), files.write_json))
        with pytest.raises(ServiceUnavailableError, match=r"plan\.json cannot be written"):
            planning(sqlite_shop)
    (folder,) = (sqlite_shop.data_dir / "nightly" / "r").iterdir()
    with pytest.raises(ServiceUnavailableError, match="cannot be read"):
        Plan.load(folder)
    assert planning(sqlite_shop).planned == 1


# Something else than was written ------------------------------------------------------------------


def flip_a_bit_in_each_column(path: Path) -> None:
    content = bytearray(path.read_bytes())
    group = pq.read_metadata(path).row_group(0)
    for number in range(group.num_columns):
        column = group.column(number)
        start = column.dictionary_page_offset or column.data_page_offset
        content[start + column.total_compressed_size - 1] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "flipped": flip_a_bit_in_each_column,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a broken link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


def test_each_stage_says_what_to_clear_when_it_cannot_read_what_it_needs(planned_run: Run) -> None:
    chunk = planned_run.chunk
    made = {"download": chunk.pictures, "extract": chunk.features, "index": chunk.outcomes}
    for stage in made:
        planned_run.do(stage)
    good = {path: path.read_bytes() for path in (chunk.plan.items, *made.values())}
    needs = [
        (chunk.plan.items, "clear the run's `plan` task", ("download", "index", "summarise")),
        (chunk.pictures, "clear `download` of chunk-0000 with", ("extract", "index")),
        (chunk.features, "clear `extract` of chunk-0000 with", ("index",)),
        (chunk.outcomes, "clear `index` of chunk-0000 with", ("summarise",)),
    ]
    for needed, remedy, stages in needs:
        for damage, stage in itertools.product(DAMAGES, stages):
            if (damage, needed) == ("a broken link", chunk.outcomes):
                continue  # to summarise it is what a missing pack is: items that are unfinished
            DAMAGES[damage](needed)
            for undone in STAGES[STAGES.index(stage) : 3]:
                made[undone].unlink()
            before = tree(planned_run.settings.data_dir)
            with pytest.raises(ServiceUnavailableError) as refused:
                planned_run.do(stage)
            assert f"{needed} cannot be read" in str(refused.value), (damage, stage)
            assert remedy in str(refused.value), (damage, stage)
            assert tree(planned_run.settings.data_dir) == before, (damage, stage)
            needed.rmdir() if needed.is_dir() else needed.unlink()
            for path, content in good.items():
                path.write_bytes(content)


@pytest.mark.parametrize("damage", ["cut short", "flipped", "a broken link"])
def test_clearing_what_the_error_names_does_it_again(
    planned_run: Run, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = dict(zip(STAGES, ("pictures", "features", "outcomes"), strict=False))
    for stage in made:
        planned_run.do(stage)
    contents = [picture(number) for number in range(ITEMS)]
    for number, (stage, pack) in enumerate(made.items()):
        # What was fetched cannot always be fetched again.
        contents[number] = picture(100 + number) if stage == "download" else contents[number]
        planned_run.serve(planned_run.ids[number], contents[number])
        DAMAGES[damage](getattr(planned_run.chunk, pack))
        if stage != "index":
            planned_run.chunk.outcomes.unlink()
        for again in list(made)[number:]:
            planned_run.do(again)
            planned_run.check(again, contents)
        assert f"{pack}.parquet cannot be read" in caplog.text
    planned_run.do("summarise")
    planned_run.check("summarise")
