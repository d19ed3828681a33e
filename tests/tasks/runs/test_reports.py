"""Tests of tasks/runs/reports.py: what recent reports let us expect, and how one reads at a terminal."""

import json
import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks.runs import reports
from tasks.runs.run import Request
from tasks.settings import Settings


def write(settings, run, report, *, dag="nightly", age=0):
    path = reports.path(Request(dag, run), settings)
    path.parent.mkdir(parents=True)
    path.write_text(report if isinstance(report, str) else json.dumps(report))
    os.utime(path, (1_790_000_000 - age, 1_790_000_000 - age))


def done(items, byte_count, seconds):
    return {
        "counts": {"indexed": items},
        "bytes": byte_count,
        "seconds": seconds,
        "stages": {"download": {"items": items}},
    }


def test_a_report_is_where_the_contract_says(tmp_path):
    path = reports.path(Request("nightly", "run 1"), Settings(data_dir=tmp_path))
    assert path == tmp_path / "nightly" / "run 1" / "report.json"


def test_recent_ones_are_the_newest_of_all_dags_newest_first(tmp_path):
    settings = Settings(data_dir=tmp_path)
    for age in range(25):
        write(settings, f"r{age}", {"age": age}, dag="nightly" if age % 2 else "backfill", age=age * 60)
    assert [report["age"] for report in reports.recent(settings)] == list(range(25))


def test_what_cannot_be_read_is_passed_over(tmp_path):
    settings = Settings(data_dir=tmp_path)
    write(settings, "cut", '{"planned": 3', age=1)
    write(settings, "bytes", "x", age=2)
    (tmp_path / "nightly" / "bytes" / "report.json").write_bytes(b"\xff\xfe\xfa")
    write(settings, "good", {"planned": 3}, age=3)
    assert list(reports.recent(settings)) == [{"planned": 3}]


def test_expectation_goes_by_the_runs_that_did_work(tmp_path):
    settings = Settings(data_dir=tmp_path)
    write(settings, "large", done(300, 30_000_000, 60))
    write(settings, "small", done(100, 2_000_000, 40), dag="backfill")
    write(settings, "preview", {"counts": {"current": 5, "to_do": 7}, "seconds": 1000})
    write(settings, "nothing to do", done(0, 0, 1000))
    write(settings, "no plan", {"counts": {}, "planned": 0, "seconds": 1000})
    write(settings, "retry", done(100, 9_000_000, 900) | {"retry": {"statuses": []}}, dag="retry")
    # An hourly retry leaves many that did nothing, and newer ones.
    for hour in range(24):
        write(settings, f"hour {hour}", done(0, 0, 1) | {"retry": {"statuses": []}}, dag="retry", age=-hour)

    # 32 MB and 100 s for 400 items; so 80 kB and a quarter of a second each.
    assert reports.expectation(settings, 1000) == {"bytes": 80_000_000, "seconds": 250.0, "from_runs": 2}
    assert reports.expectation(settings, 0) == {"bytes": 0, "seconds": 0.0, "from_runs": 2}


def test_without_recent_runs_nothing_is_expected(tmp_path):
    expected = {"bytes": None, "seconds": None, "from_runs": 0}
    assert reports.expectation(Settings(data_dir=tmp_path / "new"), 10) == expected


def test_a_report_in_a_few_lines():
    report = {
        "planned": 12,
        "counts": {"current": 3, "indexed": 7, "gone": 2},
        "failures": [
            {"item_id": "0007", "status": "gone", "reason": "the server answered 404"},
            {"item_id": "KR-1", "status": "waiting_for_document", "reason": None},
            *({"item_id": f"more-{n}", "status": "gone", "reason": "r"} for n in range(9)),
        ],
        "stages": {
            "plan": {"items": 12, "seconds": 0.5, "items_per_second": 24.0},
            "download": {"items": 9, "seconds": 3.0, "items_per_second": 3.0},
            "extract": {"items": 0, "seconds": 0.0, "items_per_second": None},
        },
    }
    lines = reports.described(report).splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["planned", "12"],
        ["current", "3"],
        ["indexed", "7"],
        ["gone", "2"],
    ]
    assert lines[4].split() == ["0007", "gone:", "the", "server", "answered", "404"]
    assert lines[5].split() == ["KR-1", "waiting_for_document"]
    assert sum("more-" in line for line in lines) == 3  # five in all
    assert lines[-2].split() == ["plan", "0.5", "s", "24.0", "items/s"]
    assert lines[-1].split() == ["download", "3.0", "s", "3.0", "images/s"]


def test_the_bottleneck_is_the_largest_part_of_the_longest_stage():
    def stage(seconds, **breakdown):
        return {"items": 9, "seconds": seconds, "items_per_second": 9 / seconds} | (
            {"time_breakdown": breakdown} if breakdown else {}
        )

    report = {
        "planned": 9,
        "counts": {"indexed": 9},
        "stages": {
            "plan": stage(10.0),
            "download": stage(20.0, network=19.0),
            "extract": stage(60.0, starting=4.5, computing=51.26, decoding=12.0),
        },
    }
    assert reports.described(report).splitlines()[-1] == "bottleneck: extract, computing 51.3 s"
    assert reports.bottleneck(report) == ("extract", "computing", 51.26)
    del report["stages"]["extract"]["time_breakdown"]
    assert reports.bottleneck(report) == ("extract", None, 60.0)
    assert "bottleneck" not in reports.described(report)


def test_a_preview_in_a_few_lines():
    preview = {"planned": 12, "counts": {"current": 3, "to_do": 9}}
    known = preview | {"expected": {"bytes": 2_500_000, "seconds": 61.2, "from_runs": 4}}
    unknown = preview | {"expected": {"bytes": None, "seconds": None, "from_runs": 0}}
    assert reports.described(known).splitlines()[-1].endswith("2.5 MB, 61 s (as in 4 recent runs)")
    assert "unknown" in reports.described(unknown).splitlines()[-1]


def test_a_report_is_read_by_its_run_and_absent_where_there_is_none(tmp_path):
    settings = Settings(data_dir=tmp_path)
    write(settings, "r1", {"planned": 3})
    write(settings, "broken", "{")
    assert reports.read(Request("nightly", "r1"), settings) == {"planned": 3}
    assert reports.read(Request("nightly", "r2"), settings) is None
    assert reports.read(Request("nightly", "broken"), settings) is None


def night(end, state="success"):
    return {"state": state, "interval": {"start": None, "end": end.isoformat() if end else None}}


@pytest.mark.parametrize(
    ("nights", "said"),
    [
        ([], "No nightly run has succeeded"),
        ([night(datetime(2026, 10, 2, 15, tzinfo=UTC), "failed")], "No nightly run has succeeded"),
        ([{"state": "success", "interval": None}], "No nightly run has succeeded"),
        ([night(datetime(2026, 10, 2, 15, tzinfo=UTC))], None),
        ([night(datetime(2026, 10, 1, 15, tzinfo=UTC)), night(None)], "until 2026-10-01 15:00 UTC"),
    ],
)
def test_a_night_is_overdue_six_hours_after_the_next_one_was_due(nights, said):
    # The next one ended on 3 October at midnight in Seoul, 15:00 UTC.
    now = datetime(2026, 10, 3, 20, 59, 59, tzinfo=UTC)
    warning = reports.overdue_run(nights, now, Settings())
    assert warning is None if said is None else said in warning
    if said is None:
        assert "overdue" in reports.overdue_run(nights, now + timedelta(seconds=1), Settings())
        assert "overdue" in reports.overdue_run(nights, now, Settings(nightly_deadline_hours=5.9))


def test_where_nights_are_days_apart_one_is_overdue_days_later():
    settings = Settings(time_zone="Europe/Berlin", nightly_schedule="0 3 * * 1-5")
    friday = [night(datetime(2026, 10, 2, 1, tzinfo=UTC))]
    assert reports.overdue_run(friday, datetime(2026, 10, 5, 6, 59, tzinfo=UTC), settings) is None
    assert "overdue" in reports.overdue_run(friday, datetime(2026, 10, 5, 7, tzinfo=UTC), settings)


def test_a_run_that_did_nothing_has_no_bottleneck():
    assert reports.bottleneck({"stages": {"plan": {"seconds": 0.0}}}) is None
    assert reports.bottleneck({}) is None


def test_failures_are_grouped_by_status_host_and_reason():
    def item(item_id, url, status="gone", reason="404"):
        return {"item_id": item_id, "img_url": url, "status": status, "reason": reason}

    failures = [
        item("1", "http://b/1.jpg"),
        item("2", "http://user:secret@a:8080/2.jpg"),
        item("3", "http://a:8080/3.jpg"),
        item("4", "http://a:8080/4.jpg", reason=None),
        item("5", None, "invalid_url"),
        item("6", "http://[bad", "invalid_url"),
    ]
    groups = reports.grouped_failures({"failures": failures})
    assert [(g.status, g.host, g.reason, [i["item_id"] for i in g.items]) for g in groups] == [
        ("gone", "a:8080", "404", ["2", "3"]),
        ("invalid_url", "no host", "404", ["5", "6"]),
        ("gone", "a:8080", "", ["4"]),
        ("gone", "b", "404", ["1"]),
    ]
    assert reports.grouped_failures({}) == []


# Documents without a feature --------------------------------------------------------------------


def lacking(left: int | None) -> dict[str, Any]:
    return {"without_feature": None if left is None else {"documents": 9, "left_catalogue": left}}


@pytest.mark.parametrize(
    ("documents", "on_record", "nights", "parts"),
    [
        (0, 0, [], (0, 0, 0)),
        (7, 0, [], (0, 0, 7)),
        (7, 3, [lacking(2)], (3, 2, 2)),
        (7, 3, [lacking(None), lacking(2), lacking(5)], (3, 2, 2)),
        (7, 3, [{}, lacking(4)], (3, 4, 0)),
        # Less is left than there was.
        (3, 3, [lacking(4)], (3, 0, 0)),
        (3, 5, [lacking(4)], (3, 0, 0)),
        (5, 3, [lacking(4)], (3, 2, 0)),
        (7, None, [lacking(2)], (None, 2, 5)),
    ],
)
def test_the_gap_is_explained_to_the_last_document(
    documents: int, on_record: int | None, nights: list[dict[str, Any]], parts: tuple[int | None, int, int]
) -> None:
    gap = reports.gap(documents, on_record, nights)
    assert (gap.on_record, gap.left_catalogue, gap.to_come) == parts
    assert (gap.on_record or 0) + gap.left_catalogue + gap.to_come == gap.documents == documents


def test_a_terminal_shows_why_items_were_taken() -> None:
    report = {
        "planned": 3,
        "counts": {"indexed": 3},
        "origins": {"changed": {"planned": 1}, "reconciled": {"planned": 2}},
        "without_feature": {"documents": 5, "planned": 1, "on_record": 2, "reconciled": 2},
    }
    lines = reports.described(report).splitlines()
    assert lines[2:] == [
        "changed 1, reconciled 2",
        "documents without a feature: 5 (planned 1, on_record 2, reconciled 2)",
    ]
