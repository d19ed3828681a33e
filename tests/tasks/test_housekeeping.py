"""Tests of tasks/housekeeping.py, on folders as runs leave them."""

import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tasks import files, housekeeping
from tasks.errors import ServiceUnavailableError
from tasks.runs import packs
from tasks.runs.run import Plan
from tasks.settings import Settings

NOW = datetime.now(UTC)
HOURS = 1 / 24
IDS = (f"{number:012x}" for number in range(10**9))


def settings_of(data_dir: Path, **changes: Any) -> Settings:
    return Settings(data_dir=data_dir, **changes)


def nobody(dag: str, run: str) -> bool:  # noqa: ARG001
    return False


def write(path: Path, days: float, content: str = "x") -> Path:
    """A file written `days` before NOW."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    written = (NOW - timedelta(days=days)).timestamp()
    os.utime(path, (written, written))
    return path


def leave_plan(run: Path, days: float, *, size: int = 1_000, reported: bool = True) -> Path:
    """A plan of `size` bytes whose newest file was written so long ago; `reported`: its run ended then."""
    plan = run / f"plan-{next(IDS)}"
    write(plan / "plan.json", days + 2, "x" * (size // 2))
    write(plan / "chunk-0000" / "pictures.parquet", days + 1, "x" * (size - size // 2))
    write(plan / "chunk-0001" / "outcomes.parquet", days, "")
    if reported:
        leave_report(run, days, plan.name)
    return plan


def leave_report(run: Path, days: float, plan: str = "") -> Path:
    report = {"dag": run.parent.name, "run": run.name, "plan": plan}
    return write(run / "report.json", days, json.dumps(report))


def tree(folder: Path) -> dict[str, Any]:
    """All that is in a folder, and of each file its content; links are not followed."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


# What goes and what stays -------------------------------------------------------------------------


def test_a_plan_goes_when_its_newest_file_is_too_old(tmp_path: Path) -> None:
    old = leave_plan(tmp_path / "nightly" / "old", 7 + HOURS)
    young = leave_plan(tmp_path / "nightly" / "young", 7 - HOURS)
    done = housekeeping.run(settings_of(tmp_path, keep_days=7), nobody, NOW)
    assert not old.exists()
    assert young.exists()
    assert old.with_name("report.json").exists(), "the report stays longer"
    assert done == {
        "removed": 1, "removed_bytes": 1_000, "kept": 1, "kept_bytes": 1_000, "active": 0, "active_bytes": 0,
        "reports": 0, "left_overs": 0,
    }  # fmt: skip


def test_the_oldest_plans_go_while_all_together_are_too_large(tmp_path: Path) -> None:
    first, second, third = (
        leave_plan(tmp_path / dag / "r", days) for dag, days in (("b", 3), ("a", 2), ("c", 1))
    )
    housekeeping.run(settings_of(tmp_path, keep_bytes=3_000), nobody, NOW)
    assert first.exists(), "3,000 bytes are not more than 3,000"
    done = housekeeping.run(settings_of(tmp_path, keep_bytes=2_999), nobody, NOW)
    assert [plan.exists() for plan in (first, second, third)] == [False, True, True]
    assert (done["removed"], done["kept_bytes"]) == (1, 2_000)
    housekeeping.run(settings_of(tmp_path, keep_bytes=0), nobody, NOW)
    assert not third.exists()


def test_where_a_running_runs_plan_is_the_oldest_the_next_one_goes(tmp_path: Path) -> None:
    running, older, newest = (
        leave_plan(tmp_path / "d" / run, days) for run, days in (("r", 3), ("o", 2), ("n", 1))
    )
    done = housekeeping.run(settings_of(tmp_path, keep_bytes=2_000), lambda _, run: run == "r", NOW)
    assert [plan.exists() for plan in (running, older, newest)] == [True, False, True]
    assert (done["active"], done["active_bytes"], done["removed"], done["kept"]) == (1, 1_000, 1, 2)


def test_no_plan_of_a_running_run_goes_however_old_and_large(tmp_path: Path) -> None:
    plans = [leave_plan(tmp_path / "d" / "r", days) for days in (900, 30, 2)]
    done = housekeeping.run(settings_of(tmp_path, keep_bytes=0), lambda *run: run == ("d", "r"), NOW)
    assert all(plan.exists() for plan in plans)
    assert (done["active"], done["removed"]) == (3, 0)


def test_airflow_is_asked_only_about_plans_that_would_go(tmp_path: Path) -> None:
    asked = []
    leave_plan(tmp_path / "d" / "young", 1)
    leave_plan(tmp_path / "d" / "manual__2026-09-01T00:00:00+00:00", 8)
    leave_report(tmp_path / "d" / "only a report", 400)
    housekeeping.run(settings_of(tmp_path), lambda *run: bool(asked.append(run)), NOW)
    assert asked == [("d", "manual__2026-09-01T00:00:00+00:00")]


def test_nothing_more_goes_when_airflow_does_not_answer(tmp_path: Path) -> None:
    plans = [leave_plan(tmp_path / "d" / str(days), days) for days in (30, 20, 10)]

    def is_active(_: str, run: str) -> bool:
        if run == "20":
            raise ConnectionError("no answer")
        return False

    with pytest.raises(ConnectionError, match="no answer"):
        housekeeping.run(settings_of(tmp_path), is_active, NOW)
    assert [plan.exists() for plan in plans] == [False, True, True]


@pytest.mark.parametrize("report", [None, "another plan", "no JSON", "a list"])
def test_a_plan_that_no_report_names_stays_for_a_day(tmp_path: Path, report: str | None) -> None:
    run = tmp_path / "command_line" / "r"
    at_work, given_up = (
        leave_plan(run, days, reported=False) for days in (24 * HOURS - 0.01, 24 * HOURS + 0.01)
    )
    if report == "another plan":
        leave_report(run, 0, "plan-" + "f" * 12)
    elif report:
        write(run / "report.json", 0, "[]" if report == "a list" else "no JSON")
    done = housekeeping.run(settings_of(tmp_path, keep_bytes=0), nobody, NOW)
    assert at_work.exists()
    assert not given_up.exists()
    assert (done["active"], done["removed"]) == (1, 1)

    leave_report(run, 0, at_work.name)
    housekeeping.run(settings_of(tmp_path, keep_bytes=0), nobody, NOW)
    assert not at_work.exists(), "it is finished now"


def test_a_plan_without_files_has_the_age_of_its_folder(tmp_path: Path) -> None:
    plan = tmp_path / "d" / "r" / "plan-0123456789ab"
    plan.mkdir(parents=True)
    now = datetime.now(UTC)
    housekeeping.run(settings_of(tmp_path), nobody, now + timedelta(days=6))
    assert plan.exists()
    housekeeping.run(settings_of(tmp_path), nobody, now + timedelta(days=8))
    assert list(tmp_path.iterdir()) == []


def test_reports_go_after_their_time_and_empty_folders_with_them(tmp_path: Path) -> None:
    gone = leave_report(tmp_path / "nightly" / "gone", 366)
    kept = leave_report(tmp_path / "nightly" / "kept", 364)
    alone = leave_report(tmp_path / "backfill" / "alone", 366)
    with_note = leave_report(tmp_path / "retry" / "with a note", 366)
    note = write(with_note.with_name("note.txt"), 0)
    done = housekeeping.run(settings_of(tmp_path), nobody, NOW)
    assert done["reports"] == 3
    assert not gone.parent.exists()
    assert kept.exists()
    assert not alone.parent.parent.exists()
    assert list(with_note.parent.iterdir()) == [note]


def test_a_run_without_anything_left_leaves_no_folder(tmp_path: Path) -> None:
    leave_plan(tmp_path / "command_line" / "r", 8, reported=False)
    housekeeping.run(settings_of(tmp_path), nobody, NOW)
    assert list(tmp_path.iterdir()) == []


plans = st.lists(
    st.tuples(
        st.integers(0, 240).map(lambda hours: hours + 0.5),
        st.integers(0, 5).map(lambda size: size * 100),
        st.sampled_from(["finished", "unfinished", "running"]),
    ),
    max_size=7,
    unique_by=lambda plan: plan[0],
)


@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(plans, st.integers(1, 9), st.integers(0, 1_500))
def test_any_plans(
    tmp_path: Path, plans: list[tuple[float, int, str]], keep_days: int, keep_bytes: int
) -> None:
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    left = {}
    for number, (hours, size, state) in enumerate(plans):
        run = tmp_path / "data" / "d" / f"{number} {state}"
        left[number] = leave_plan(run, hours / 24, size=size, reported=state == "finished")

    done = housekeeping.run(
        settings_of(tmp_path / "data", keep_days=keep_days, keep_bytes=keep_bytes),
        lambda _, run: run.endswith("running"),
        NOW,
    )

    may_go = {
        n
        for n, (hours, _, state) in enumerate(plans)
        if state == "finished" or (state == "unfinished" and hours > 24)
    }
    gone = {number for number, plan in left.items() if not plan.exists()}
    stay = set(left) - gone
    assert gone <= may_go
    assert all(plans[n][0] < keep_days * 24 for n in stay & may_go), "none that may go is too old"
    bytes_left = sum(plans[n][1] for n in stay)
    young_gone = [plans[n] for n in gone if plans[n][0] < keep_days * 24]
    if bytes_left > keep_bytes:
        assert not stay & may_go, "too much is left only where nothing more may go"
    if young_gone:
        last = min(young_gone)
        assert bytes_left + last[1] > keep_bytes, "the last one that went had to"
        assert all(plans[n][0] < last[0] for n in stay & may_go), "the oldest went first"
    assert (done["removed"], done["kept"]) == (len(gone), len(stay))
    assert (done["removed_bytes"], done["kept_bytes"]) == (sum(plans[n][1] for n in gone), bytes_left)


# What was abandoned -------------------------------------------------------------------------------


def abandon(path: Path) -> Path:
    """The temporary file of a writer that was killed."""
    with files.atomic_write(path) as temporary:
        temporary.write_text("half")
    return path.rename(temporary)


def test_abandoned_files_go_after_a_day(tmp_path: Path) -> None:
    run = tmp_path / "d" / "r"
    plan = leave_plan(run, -9)
    chunk = plan / "chunk-0000"
    abandoned = [
        abandon(run / "file.json"),
        abandon(plan / "items.parquet"),
        abandon(chunk / "features.parquet"),
    ]
    for name in ("damaged.parquet", "folder.parquet"):
        path = chunk / name
        path.mkdir() if "folder" in name else write(path, 300)
        if path.is_dir():
            write(path / "inside", 0)
        identity = files.identity(path)
        assert identity
        aside = files.move_aside(path, identity)
        assert aside
        abandoned.append(aside)
    others = tree(tmp_path).keys() - {str(path.relative_to(tmp_path)) for path in abandoned}

    now = datetime.now(UTC)
    assert housekeeping.run(settings_of(tmp_path), nobody, now + timedelta(hours=23))["left_overs"] == 0
    assert all(path.exists() for path in abandoned), "somebody may be at it"
    done = housekeeping.run(settings_of(tmp_path), nobody, now + timedelta(hours=25))
    assert done["left_overs"] == 5
    assert tree(tmp_path).keys() == {name for name in others if not name.endswith("/inside")}


def test_what_a_housekeeping_left_that_was_stopped_goes_at_once(tmp_path: Path) -> None:
    plan = leave_plan(tmp_path / "d" / "r", 8, reported=False)
    plan.rename(plan.with_name(f".expired-{plan.name}"))
    assert housekeeping.run(settings_of(tmp_path), nobody, NOW)["left_overs"] == 1
    assert list(tmp_path.iterdir()) == []


# What is not ours ---------------------------------------------------------------------------------


def test_what_else_is_in_the_data_dir_stays(tmp_path: Path) -> None:
    data = tmp_path / "data"
    years = 5_000.0
    elsewhere = leave_plan(tmp_path / "elsewhere" / "d" / "r", years).parent
    hexadecimal = "0123456789ab"
    for name in (
        "ledger.db", "contact_sheet.png", f"plan-{hexadecimal}", "known_models/d2e2", "report.json",
        "airflow/airflow.db", "airflow/logs/dag_id=d/run_id=r/attempt=1.log", "airflow/report.json",
        f"d/plan-{hexadecimal}/plan.json", f"shop/d/r/plan-{hexadecimal}/plan.json", "shop/d/r/report.json",
        f"d/file/plan-{hexadecimal}", "d/short/plan-0123456789a/x", "d/long/plan-0123456789abc/x",
        "d/capitals/plan-0123456789AB/x", "d/number/plan-1/x", f"d/other/my-plan-{hexadecimal}/x",
        f"pictures/tops/.a.jpg.{'0' * 32}", f"d/expired/.expired-plan-{hexadecimal}", "d/empty/note.txt",
    ):  # fmt: skip
        write(data / name, years)
    write(data / "tool" / "output" / "report.json", years, '{"dag": "d", "run": "r"}')
    (data / "d" / "nothing").mkdir()
    (data / "elasticsearch").symlink_to(elsewhere.parent)
    (data / "d" / "linked run").symlink_to(elsewhere)
    (data / "d" / "linked plan").mkdir()
    (data / "d" / "linked plan" / f"plan-{hexadecimal}").symlink_to(next(elsewhere.glob("plan-*")))
    (data / "d" / "linked report").mkdir()
    its_report = write(elsewhere / "its report", years, '{"dag": "d", "run": "linked report"}')
    (data / "d" / "linked report" / "report.json").symlink_to(its_report)
    os.utime(data / "d" / "linked report" / "report.json", (0, 0), follow_symlinks=False)
    (data / "broken link").symlink_to("nowhere")
    before = tree(tmp_path)

    later = datetime.now(UTC) + timedelta(days=2)
    done = housekeeping.run(settings_of(data, keep_bytes=0), nobody, later)

    assert tree(tmp_path) == before
    assert set(done.values()) == {0}


def test_links_in_a_plan_go_and_what_they_point_to_stays(tmp_path: Path) -> None:
    photo = write(tmp_path / "photos" / "a.jpg", 0)
    plan = leave_plan(tmp_path / "data" / "d" / "r", 8)
    (plan / "photos").symlink_to(photo.parent)
    (plan / "chunk-0000" / "a.jpg").symlink_to(photo)
    (plan / "broken").symlink_to("nowhere")
    # A link's own time is that of now; only what it points to could be set.
    housekeeping.run(settings_of(tmp_path / "data", keep_bytes=0), nobody, datetime.now(UTC))
    assert not plan.exists()
    assert photo.read_text() == "x"


def test_without_a_data_dir_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert set(housekeeping.run(settings_of(tmp_path / "none"), nobody).values()) == {0}


def test_a_data_dir_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceUnavailableError, match=re.escape(f"{tmp_path / 'file'} cannot be read")):
        housekeeping.run(settings_of(write(tmp_path / "file", 0)), nobody)


# What cannot go -----------------------------------------------------------------------------------


@contextmanager
def as_ordinary_user(folder: Path) -> Iterator[None]:
    """Without root's right to write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, -1)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="housekeeping-") as name:
        yield Path(name)


def test_what_cannot_go_is_named_and_the_rest_goes(open_folder: Path) -> None:
    held, *others = (leave_plan(open_folder / "d" / str(days), days) for days in (30, 20, 10))
    closed_run = leave_plan(open_folder / "e" / "closed", 15)
    closed_report = leave_report(open_folder / "f" / "closed", 400)
    closed = [held / "chunk-0000", closed_run.parent, closed_report.parent]
    not_ours = write(open_folder / "lost+found" / "1" / "plan-0123456789ab" / "plan.json", 30)
    settings = settings_of(open_folder)
    with as_ordinary_user(open_folder):
        for folder in closed:
            folder.chmod(0o500)
        not_ours.parent.parent.chmod(0o0)
        with pytest.raises(ServiceUnavailableError) as refused:
            housekeeping.run(settings, nobody, NOW)
        not_ours.parent.parent.chmod(0o700)
        assert not_ours.exists()
        shutil.rmtree(not_ours.parent.parent.parent)
        message = str(refused.value)
        assert f"{held.parent / f'.expired-{held.name}'} (Permission denied)" in message
        assert f"{closed_run} (Permission denied)" in message
        assert f"{closed_report} (Permission denied)" in message
        assert message.count("Permission denied") == 3
        assert "'removed': 2" in message
        assert not held.exists(), "no stage finds a part of it"
        assert not any(plan.exists() for plan in others)
        assert closed_run.exists()

        for folder in (held.parent / f".expired-{held.name}" / "chunk-0000", *closed[1:]):
            folder.chmod(0o700)
        done = housekeeping.run(settings, nobody, NOW)
        assert (done["removed"], done["reports"], done["left_overs"]) == (1, 1, 1)
    assert not (open_folder / "f").exists()
    assert not list(open_folder.glob("*/*/*plan-*"))


def test_a_plan_that_cannot_be_looked_into_is_named_and_stays(open_folder: Path) -> None:
    plan = leave_plan(open_folder / "d" / "r", 30)
    with as_ordinary_user(open_folder):
        (plan / "chunk-0000").chmod(0o0)
        with pytest.raises(ServiceUnavailableError, match=re.escape(f"{plan} (Permission denied)")):
            housekeeping.run(settings_of(open_folder), nobody, NOW)
        (plan / "chunk-0000").chmod(0o700)
    assert plan.exists(), "nobody knows how old it is"


def test_of_many_that_cannot_go_some_are_named(open_folder: Path) -> None:
    plans = [leave_plan(open_folder / "d" / str(number), 30) for number in range(13)]
    with as_ordinary_user(open_folder):
        for plan in plans:
            plan.parent.chmod(0o500)
        with pytest.raises(ServiceUnavailableError, match=r"and 3 more\. Give this user"):
            housekeeping.run(settings_of(open_folder), nobody, NOW)
        for plan in plans:
            plan.parent.chmod(0o700)


# What goes on meanwhile ---------------------------------------------------------------------------


def planned(data_dir: Path) -> Plan:
    """A finished run's plan with its items and one chunk, too old to keep."""
    from tests.plans import plan_over

    plan = plan_over(data_dir, ["http://cdn.example.com/1.jpg"])
    folder = plan.folder.with_name("plan-0123456789ab")
    plan.folder.rename(folder)
    return Plan.load(folder)


def long_after() -> datetime:
    return datetime.now(UTC) + timedelta(days=30)


def test_a_plan_disappears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(tmp_path)
    whole = tree(plan.folder)
    seen = []
    really = shutil.rmtree

    def watched(path: Path, **how: Any) -> None:
        assert tree(path) == whole, "it was still whole when it lost its name"
        seen.append(plan.folder.exists())
        really(path, **how)

    monkeypatch.setattr(shutil, "rmtree", watched)

    def is_active(*_: str) -> bool:
        assert tree(plan.folder) == whole
        return False

    housekeeping.run(settings_of(tmp_path), is_active, long_after())
    assert seen == [False]


def test_a_stage_that_starts_then_finds_nothing_and_says_so(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    housekeeping.run(settings_of(tmp_path), nobody, long_after())
    for read in (lambda: Plan.load(plan.folder), lambda: list(packs.rows(plan.items))):
        with pytest.raises(ServiceUnavailableError, match="cannot be read"):
            read()


def test_a_stage_at_work_then_fails_and_leaves_nothing(tmp_path: Path) -> None:
    chunk = planned(tmp_path).chunks[0]

    def work(meanwhile: Callable[[], Any]) -> None:
        with packs.writing(chunk.outcomes, packs.OUTCOMES) as pack:
            meanwhile()
            pack.add({"item_id": "1", "status": "indexed"})

    with pytest.raises(ServiceUnavailableError, match=r"outcomes\.parquet cannot be written"):
        work(lambda: housekeeping.run(settings_of(tmp_path), nobody, long_after()))
    assert list(tmp_path.rglob("*")) == []


def test_files_that_come_and_go_meanwhile_are_no_error(tmp_path: Path) -> None:
    chunk = planned(tmp_path).chunks[0]
    done = threading.Event()

    def work() -> None:
        for _ in range(150):
            with packs.writing(chunk.outcomes, packs.OUTCOMES) as pack:
                pack.add({"item_id": "1"})
            chunk.outcomes.unlink()
        done.set()

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    looks = 0
    while not done.is_set():
        assert housekeeping.run(settings_of(tmp_path), nobody)["kept"] == 1
        looks += 1
    worker.join()
    assert looks > 10
    assert chunk.plan.items.exists()


def test_a_plan_that_goes_while_we_look_at_it_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_plan(tmp_path / "d" / "r", 30)
    stays = leave_plan(tmp_path / "d" / "stays", 1)
    really = housekeeping._files

    def as_it_goes(folder: Path) -> Any:
        if folder.parent.name == "r":
            shutil.rmtree(folder)
        return really(folder)

    monkeypatch.setattr(housekeeping, "_files", as_it_goes)
    assert housekeeping.run(settings_of(tmp_path), nobody)["kept"] == 1
    assert stays.exists()


def test_two_at_once_do_not_hinder_each_other(tmp_path: Path) -> None:
    for number in range(40):
        leave_plan(tmp_path / "d" / str(number), 30)
    kept = leave_plan(tmp_path / "d" / "kept", 1)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(housekeeping.run, settings_of(tmp_path), nobody, NOW) for _ in range(2)]
    assert all(one.result()["kept"] >= 1 for one in both)
    assert list(tmp_path.glob("*/*/*plan-*")) == [kept]
