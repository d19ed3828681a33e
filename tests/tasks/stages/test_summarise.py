"""Tests of tasks/stages/summarise.py: the counts, the report and when a run fails."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import hypothesis
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.errors import RunFailedError, ServiceUnavailableError
from tasks.runs import packs, reports
from tasks.runs.category_names import CategoryNames
from tasks.runs.run import Plan, Request, Retry
from tasks.settings import Settings
from tasks.shop.connections import LEDGER, Connection
from tasks.shop.ledger import Ledger
from tasks.stages import summarise
from tasks.statuses import FAILURES, FINE, Status

NOON = datetime(2026, 10, 1, 12, tzinfo=UTC)
VERSION = "inception_v3-0123456789ab-pad299"


def make_plan(folder, chunks, *, current=0, request=None, origins_of_items=(), **fields):
    """A plan on disk whose chunk i ends with chunks[i]: a list of statuses, or how far it came.

    (number of items, "nothing" | "download" | "extract") is a chunk that did not finish.
    """
    sizes = [len(chunk) if isinstance(chunk, list) else chunk[0] for chunk in chunks]
    bounds = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
    plan = Plan(
        folder=folder / "var" / "nightly" / "r" / "plan-1",
        request=request or Request("nightly", "r", NOON - timedelta(days=1), NOON),
        feature_version=VERSION,
        planned=bounds[-1] + current,
        current=current,
        created_at=datetime.now(UTC),
        bounds=tuple(bounds),
        labels=tuple(f"chunk {number}" for number in range(len(sizes))),
        **fields,
    )
    with packs.writing(plan.items, packs.ITEMS) as pack:
        for number in range(bounds[-1]):
            row = {"item_id": f"i{number}", "img_url": f"u{number}", "category_id": "00000010"}
            pack.add(row | {"origin": origins_of_items[number] if origins_of_items else None})
    plan.save()
    for chunk, ended in zip(plan.chunks, chunks, strict=True):
        statuses, reached = (ended, "index") if isinstance(ended, list) else ([], ended[1])
        if reached in ("download", "extract", "index"):
            with packs.writing(chunk.pictures, packs.PICTURES) as pack:
                pack.statistics |= {"seconds": 2.0, "bytes": 1000, "requests": 7}
        if reached in ("extract", "index"):
            with packs.writing(chunk.features, packs.FEATURES) as pack:
                pack.statistics |= {"seconds": 4.0, "waited": 1.5, "precision": "float32", "device": "cpu"}
                pack.statistics["incomplete"] = 1 + chunk.number
                pack.statistics["time_breakdown"] = {"computing": 2.5, f"only of {chunk.number}": 0.5}
        if reached == "index":
            with packs.writing(chunk.outcomes, packs.OUTCOMES) as pack:
                for offset, status in enumerate(statuses):
                    number = chunk.start + offset
                    pack.add(
                        {
                            "item_id": f"i{number}",
                            "img_url": f"u{number}",
                            "status": status,
                            "reason": f"r{number}",
                        }
                    )
                pack.statistics |= {"seconds": 0.5}
    return plan


def settings_of(folder, **changes):
    return Settings(data_dir=folder / "var", **changes)


def report_of(folder, dag="nightly", run="r"):
    return json.loads((folder / "var" / dag / run / "report.json").read_text())


def run(plan, settings, folder):
    """The report, and the error's message where the run failed."""
    try:
        summarise.run(plan, settings, Ledger(None, settings))
        message = None
    except RunFailedError as error:
        message = str(error)
    return report_of(folder), message


# In the order of the enum: a set's differs from process to process, and with it what Hypothesis draws.
ends = [status for status in Status if status not in (Status.CURRENT, Status.UNFINISHED)]
chunk_ends = st.lists(
    st.lists(st.sampled_from(ends), min_size=1, max_size=8)
    | st.tuples(st.integers(1, 8), st.sampled_from(["nothing", "download", "extract"])),
    max_size=4,
)


def test_a_report_names_the_categories_that_were_asked_for(tmp_path):
    settings = settings_of(tmp_path)
    CategoryNames({"00000010": "t-shirt", "00000020": "hat"}).save(settings)
    for asked in ({"category_ids": ("00000010", "00000030")}, {"retry": Retry(("00000010", "00000030"))}):
        request = Request("nightly", "r", dry_run=True, **asked)
        report, _ = run(make_plan(tmp_path, [[Status.INDEXED]], request=request), settings, tmp_path)
        assert report["category_names"] == {"00000010": "t-shirt"}
        assert "categories: 00000010 t-shirt, 00000030\n" in reports.described(report)
    report, _ = run(make_plan(tmp_path, [[Status.INDEXED]]), settings, tmp_path)
    assert report["category_names"] is None
    assert "categories" not in reports.described(report)


@hypothesis.settings(deadline=None, max_examples=40)  # each writes its files and a ledger of its own
@given(chunk_ends, st.integers(0, 20))
def test_counts_sum_to_planned_whatever_happened(tmp_path_factory, chunks, current):
    folder = tmp_path_factory.mktemp("sum")
    report, message = run(make_plan(folder, chunks, current=current), settings_of(folder), folder)

    assert sum(report["counts"].values()) == report["planned"]
    assert set(report["counts"]) <= {status.value for status in Status}
    unfinished = sum(chunk[0] for chunk in chunks if isinstance(chunk, tuple))
    assert report["counts"].get("unfinished", 0) == unfinished
    assert report["counts"].get("current", 0) == current
    if unfinished:
        assert message
    assert report["state"] == ("failed" if message else "success")


def test_statuses_are_fine_or_failures():
    assert set(Status) == FINE | FAILURES
    assert not FINE & FAILURES
    assert {"indexed", "current", "waiting_for_document", "superseded"} == FINE


@given(st.integers(1, 200), st.integers(0, 100))
@example(planned=100, percent=29)  # 0.29 * 100 is a little less than 29 in floats
@example(planned=100, percent=57)
@example(planned=200, percent=0)
@example(planned=7, percent=100)
def test_exactly_the_budget_passes_and_one_more_fails(planned, percent):
    """The reasons of the module itself, since hundreds of packs would say no more."""
    settings = Settings(failure_budget=percent / 100)
    plan = Plan(Path("unused"), Request("nightly", "r", NOON), VERSION, planned, 0, NOON)
    allowed = int(Decimal(percent) * planned / 100)
    counts = Counter({Status.GONE: allowed, Status.INDEXED: planned - allowed})
    assert summarise._reasons_to_fail(counts, plan, settings) == []
    if allowed < planned:
        counts = Counter({Status.GONE: allowed + 1, Status.INDEXED: planned - allowed - 1})
        assert summarise._reasons_to_fail(counts, plan, settings) != []


def test_the_budget_is_of_all_planned_items(tmp_path):
    statuses = [Status.INDEXED] * 3 + [Status.GONE] * 1
    plan = make_plan(tmp_path, [statuses], current=16)  # 1 of 20
    report, message = run(plan, settings_of(tmp_path), tmp_path)
    assert message is None
    assert report["counts"] == {"current": 16, "indexed": 3, "gone": 1}
    assert report["reasons"] == []

    tmp_path /= "again"
    plan = make_plan(tmp_path, [[*statuses, Status.CORRUPT]], current=15)  # 2 of 20
    report, message = run(plan, settings_of(tmp_path), tmp_path)
    assert report["state"] == "failed"
    assert "2 of 20 items failed" in message
    assert "1 gone" in message
    assert "1 corrupt" in message
    assert "5.0%" in message
    assert str(tmp_path / "var" / "nightly" / "r" / "report.json") in message


def test_waiting_and_superseded_items_cost_no_budget(tmp_path):
    plan = make_plan(tmp_path, [[Status.WAITING_FOR_DOCUMENT, Status.SUPERSEDED]])
    _, message = run(plan, settings_of(tmp_path, failure_budget=0), tmp_path)
    assert message is None


def test_an_unfinished_chunk_fails_the_run_within_any_budget(tmp_path):
    plan = make_plan(tmp_path, [[Status.INDEXED] * 5, (3, "download"), [Status.INDEXED]], current=1)
    report, message = run(plan, settings_of(tmp_path, failure_budget=1), tmp_path)
    assert report["counts"] == {"current": 1, "indexed": 6, "unfinished": 3}
    assert "3 of 10 items are unfinished" in message
    assert [failure["item_id"] for failure in report["failures"]] == ["i5", "i6", "i7"]
    assert "chunk 1 (chunk 1) did not finish; done so far: download" in report["failures"][0]["reason"]


def test_the_report_has_all_that_the_contract_names(tmp_path):
    statuses = [Status.INDEXED, Status.INDEXED, Status.GONE, Status.WAITING_FOR_DOCUMENT]
    plan = make_plan(tmp_path, [statuses, (2, "extract")], current=4, notices=("a notice",), seconds=0.25)
    report, _ = run(plan, settings_of(tmp_path), tmp_path)

    assert (report["dag"], report["run"], report["plan"]) == ("nightly", "r", "plan-1")
    assert report["interval"] == {"start": "2026-09-30T12:00:00+00:00", "end": "2026-10-01T12:00:00+00:00"}
    assert report["category_ids"] is None
    assert report["feature_version"] == VERSION
    assert (report["precision"], report["device"]) == ("float32", "cpu")
    assert report["planned"] == 10
    assert report["counts"] == {
        "current": 4,
        "indexed": 2,
        "waiting_for_document": 1,
        "gone": 1,
        "unfinished": 2,
    }
    assert (report["bytes"], report["requests"], report["chunks"]) == (2000, 14, 2)
    assert report["incomplete_pictures"] == 3
    assert report["stages"] == {
        "plan": {"items": 10, "seconds": 0.25, "items_per_second": 40.0},
        "download": {"items": 6, "seconds": 4.0, "items_per_second": 1.5},
        "extract": {
            "items": 6,
            "seconds": 8.0,
            "items_per_second": 0.75,
            "waited_seconds": 3.0,
            "time_breakdown": {"computing": 5.0, "only of 0": 0.5, "only of 1": 0.5},
        },
        "index": {"items": 4, "seconds": 0.5, "items_per_second": 8.0},
    }
    # What failed comes before what only waits.
    statuses = [failure["status"] for failure in report["failures"]]
    assert statuses == ["gone", "unfinished", "unfinished", "waiting_for_document"]
    assert report["failures"][0] == {"item_id": "i2", "img_url": "u2", "status": "gone", "reason": "r2"}
    assert report["notices"] == ["a notice"]
    assert datetime.fromisoformat(report["started_at"]) == plan.created_at
    took = datetime.fromisoformat(report["finished_at"]) - plan.created_at
    assert report["seconds"] == pytest.approx(took.total_seconds(), abs=0.002)


def test_the_report_tells_the_scheduled_interval_and_what_was_read(tmp_path):
    request = Request(
        "nightly", "r", NOON - timedelta(days=3), NOON, interval=(NOON - timedelta(days=1), NOON)
    )
    report, _ = run(make_plan(tmp_path, [], request=request), settings_of(tmp_path), tmp_path)
    assert report["interval"]["start"] == "2026-09-30T12:00:00+00:00"
    assert report["start"] == "2026-09-28T12:00:00+00:00"


def test_changed_caught_up_and_reconciled_are_told_apart(tmp_path):
    """Each origin's counts add up to what it planned, and all of them to the run's."""
    done = [[Status.INDEXED, Status.GONE, Status.INDEXED], [Status.INDEXED, Status.WAITING_FOR_DOCUMENT]]
    without = {
        "documents": 9,
        "planned": 1,
        "on_record": 4,
        "left_catalogue": 2,
        "reconciled": 2,
        "next_nights": 0,
    }
    plan = make_plan(
        tmp_path,
        [*done, (1, "download")],
        current=5,
        origins_of_items=["changed", "caught_up", "changed", "reconciled", "reconciled", "changed"],
        origins={
            "changed": {"planned": 6, "current": 3},
            "caught_up": {"planned": 3, "current": 2},
            "reconciled": {"planned": 2, "current": 0},
        },
        without_feature=without,
    )
    report, _ = run(plan, settings_of(tmp_path), tmp_path)
    assert report["origins"] == {
        "changed": {"planned": 6, "counts": {"current": 3, "indexed": 2, "unfinished": 1}},
        "caught_up": {"planned": 3, "counts": {"current": 2, "gone": 1}},
        "reconciled": {"planned": 2, "counts": {"indexed": 1, "waiting_for_document": 1}},
    }
    assert report["planned"] == 11 == sum(of_it["planned"] for of_it in report["origins"].values())
    assert report["without_feature"] == without


def test_a_preview_tells_the_origins_too(tmp_path):
    request = Request("nightly", "r", NOON - timedelta(days=1), NOON, dry_run=True)
    origins = {"changed": {"planned": 3, "current": 2}, "reconciled": {"planned": 1, "current": 0}}
    report, _ = run(
        make_plan(tmp_path, [], request=request, origins=origins), settings_of(tmp_path), tmp_path
    )
    assert report["origins"] == {
        "changed": {"planned": 3, "counts": {"current": 2, "to_do": 1}},
        "reconciled": {"planned": 1, "counts": {"current": 0, "to_do": 1}},
    }


def test_a_category_s_report(tmp_path):
    request = Request("nightly", "r", category_ids=("00000010", "00000030"), force=True)
    report, _ = run(make_plan(tmp_path, [], request=request), settings_of(tmp_path), tmp_path)
    assert report["category_ids"] == ["00000010", "00000030"]
    assert report["interval"] is None
    assert report["force"] is True


def test_only_the_first_failures_are_named(tmp_path):
    plan = make_plan(tmp_path, [[Status.GONE] * 30, [Status.INDEXED] * 5])
    report, message = run(plan, settings_of(tmp_path), tmp_path)
    assert [failure["item_id"] for failure in report["failures"]] == [f"i{number}" for number in range(20)]
    assert "30 gone" in message


def test_an_empty_plan_succeeds(tmp_path):
    report, message = run(make_plan(tmp_path, []), settings_of(tmp_path), tmp_path)
    assert message is None
    assert (report["planned"], report["counts"], report["chunks"]) == (0, {}, 0)


def test_a_run_without_a_plan_fails_with_a_report(tmp_path):
    settings = settings_of(tmp_path)
    with pytest.raises(RunFailedError, match="planning did not finish"):
        summarise.run_without_plan("nightly", "r", settings, Ledger(None, settings))
    report = report_of(tmp_path)
    assert (report["planned"], report["counts"], report["state"]) == (0, {}, "failed")


def test_a_scheduled_night_is_covered_as_long_as_it_succeeded(tmp_path):
    settings = settings_of(tmp_path)
    ledger = Ledger(None, settings)
    interval = (NOON - timedelta(days=1), NOON)
    request = Request("nightly", "r", *interval, interval=interval, scheduled=True)
    good = make_plan(tmp_path / "good", [[Status.INDEXED] * 3], request=request)
    bad = make_plan(tmp_path / "bad", [[Status.INDEXED], (2, "download")], request=request)

    run(bad, settings, tmp_path)
    assert ledger.covered_until("nightly", NOON) is None
    run(good, settings, tmp_path)
    assert ledger.covered_until("nightly", NOON) == NOON
    with pytest.raises(RunFailedError):
        summarise.run_without_plan("nightly", "r", settings, ledger)
    assert ledger.covered_until("nightly", NOON) is None


def test_a_preview_s_report(tmp_path):
    request = Request("nightly", "r", category_ids=("00000010",), dry_run=True)
    preview = {"bytes": 10, "seconds": 2.0, "from_runs": 1}
    plan = make_plan(tmp_path, [[Status.INDEXED] * 0], request=request, current=3, preview=preview)
    report, message = run(plan, settings_of(tmp_path), tmp_path)
    assert message is None
    assert report["counts"] == {"current": 3, "to_do": 0}
    assert report["expected"] == preview
    assert report["dry_run"] is True


def test_summarising_again_gives_the_same_counts(tmp_path):
    plan = make_plan(tmp_path, [[Status.INDEXED] * 3])
    first, _ = run(plan, settings_of(tmp_path), tmp_path)
    again, _ = run(Plan.load(plan.folder), settings_of(tmp_path), tmp_path)
    changing = ("finished_at", "seconds")
    assert {k: v for k, v in first.items() if k not in changing} == {
        k: v for k, v in again.items() if k not in changing
    }


def held(folder):
    """What the ledger holds."""
    return {row.item_id: row for row in Ledger(None, settings_of(folder)).matching()}


def test_the_ledger_holds_what_has_no_feature(tmp_path):
    plan = make_plan(
        tmp_path,
        [[Status.INDEXED, Status.GONE, Status.WAITING_FOR_DOCUMENT], (1, "download"), [Status.TOO_LARGE]],
    )
    run(plan, settings_of(tmp_path, failure_budget=1), tmp_path)
    rows = held(tmp_path)
    assert {item_id: row.status for item_id, row in rows.items()} == {
        "i1": "gone",
        "i2": "waiting_for_document",
        "i3": "unfinished",
        "i4": "too_large",
    }
    assert (rows["i1"].img_url, rows["i1"].category_id, rows["i1"].reason) == ("u1", "00000010", "r1")
    # Only a person can mend a picture that is too large.
    assert {item_id for item_id, row in rows.items() if row.next_at is None} == {"i4"}


def test_an_operator_s_second_go_at_a_failed_chunk_clears_its_items(tmp_path):
    plan = make_plan(tmp_path, [(2, "extract")])
    _, message = run(plan, settings_of(tmp_path), tmp_path)
    assert "2 of 2 items are unfinished" in message
    assert set(held(tmp_path)) == {"i0", "i1"}
    make_plan(tmp_path / "done", [[Status.INDEXED, Status.GONE]])
    done = tmp_path / "done" / "var" / "nightly" / "r" / "plan-1" / "chunk-0000" / "outcomes.parquet"
    done.rename(plan.chunks[0].outcomes)

    report, _ = run(plan, settings_of(tmp_path), tmp_path)
    assert report["counts"] == {"indexed": 1, "gone": 1}
    assert {item_id: row.status for item_id, row in held(tmp_path).items()} == {"i1": "gone"}


def test_a_retry_has_no_budget_but_must_finish(tmp_path):
    request = Request("retry", "r", retry=Retry(statuses=(Status.GONE,)))

    def plan_of(folder, chunks):
        plan = make_plan(folder, chunks, request=request)
        with packs.writing(plan.resolved, packs.ITEM_IDS):
            pass
        return plan

    plan = plan_of(tmp_path / "gone", [[Status.GONE] * 3])
    summarise.run(plan, settings_of(tmp_path), Ledger(None, settings_of(tmp_path)))
    report = report_of(tmp_path, "retry")
    assert (report["state"], report["counts"]) == ("success", {"gone": 3})
    assert report["retry"] == {"category_ids": [], "statuses": ["gone"], "item_ids": []}
    assert report["interval"] is None

    plan = plan_of(tmp_path / "dead", [(3, "download")])
    with pytest.raises(RunFailedError, match="3 of 3 items are unfinished"):
        summarise.run(plan, settings_of(tmp_path), Ledger(None, settings_of(tmp_path)))


def test_a_retry_clears_what_is_settled(tmp_path):
    settings = settings_of(tmp_path)
    run(make_plan(tmp_path, [[Status.GONE, Status.GONE, Status.CORRUPT]]), settings, tmp_path)
    assert set(held(tmp_path)) == {"i0", "i1", "i2"}
    plan = make_plan(tmp_path / "retry", [[Status.INDEXED]], request=Request("retry", "r", retry=Retry()))
    with packs.writing(plan.resolved, packs.ITEM_IDS) as pack:
        pack.add({"item_id": "i2"})
    summarise.run(plan, settings, Ledger(None, settings))
    assert set(held(tmp_path)) == {"i1"}


@pytest.mark.parametrize(
    ("scheduled", "chunks", "before", "reports"),
    [
        (True, [], None, 0),
        (True, [[Status.GONE]], None, 1),
        (False, [], None, 1),
        # As after its plan was cleared: what it reported then is not so any more.
        (True, [], [[Status.GONE]], 1),
    ],
    ids=["nothing to do", "something to do", "nothing to do by hand", "nothing left to do"],
)
def test_an_hour_in_which_nothing_was_due_leaves_no_report(tmp_path, scheduled, chunks, before, reports):
    settings = settings_of(tmp_path)
    settings.data_dir.mkdir()  # as planning leaves it
    request = Request("retry", "r", retry=Retry(), scheduled=scheduled)
    for number, of_plan in enumerate([chunks] if before is None else [before, chunks]):
        plan = make_plan(tmp_path / str(number), of_plan, request=request)
        with packs.writing(plan.resolved, packs.ITEM_IDS):
            pass
        returned = summarise.run(plan, settings, Ledger(None, settings))
    written = list(settings.data_dir.glob("*/*/report.json"))
    assert len(written) == reports
    assert returned["planned"] == sum(map(len, chunks))
    if written:
        assert report_of(tmp_path, "retry")["planned"] == returned["planned"]


def test_a_preview_tells_the_ledger_nothing(tmp_path):
    request = Request("nightly", "r", category_ids=("00000010",), dry_run=True)
    run(make_plan(tmp_path, [], request=request, current=3), settings_of(tmp_path), tmp_path)
    assert not (tmp_path / "var" / "ledger.db").exists()


def test_the_report_is_there_even_when_the_ledger_does_not_answer(tmp_path):
    nowhere = Connection(LEDGER, "postgres", host="127.0.0.1", port=1, login="us", password="s3cret")
    settings = settings_of(tmp_path)
    with pytest.raises(ServiceUnavailableError) as failed:
        summarise.run(make_plan(tmp_path, [[Status.INDEXED]]), settings, Ledger(nowhere, settings))
    assert "feature_ledger" in str(failed.value)
    assert "s3cret" not in str(failed.value)
    assert report_of(tmp_path)["counts"] == {"indexed": 1}
