"""Tests of tasks/reports.py: what recent reports let us expect, and how one reads at a terminal."""

import json
import os

from tasks import reports
from tasks.runs import Request
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
    def stage(seconds, **split):
        return {"items": 9, "seconds": seconds, "items_per_second": 9 / seconds} | (
            {"split": split} if split else {}
        )

    report = {
        "planned": 9,
        "counts": {"indexed": 9},
        "stages": {
            "plan": stage(70.0),
            "download": stage(20.0, network=19.0),
            "extract": stage(60.0, starting=4.5, computing=51.26, decoding=12.0),
        },
    }
    assert reports.described(report).splitlines()[-1] == "bottleneck: extract, computing 51.3 s"
    del report["stages"]["extract"]["split"]
    assert reports.described(report).splitlines()[-1] == "bottleneck: download, network 19.0 s"
    del report["stages"]["download"]["split"]
    assert "bottleneck" not in reports.described(report)


def test_a_preview_in_a_few_lines():
    preview = {"planned": 12, "counts": {"current": 3, "to_do": 9}}
    known = preview | {"expected": {"bytes": 2_500_000, "seconds": 61.2, "from_runs": 4}}
    unknown = preview | {"expected": {"bytes": None, "seconds": None, "from_runs": 0}}
    assert reports.described(known).splitlines()[-1].endswith("2.5 MB, 61 s (as in 4 recent runs)")
    assert "unknown" in reports.described(unknown).splitlines()[-1]
