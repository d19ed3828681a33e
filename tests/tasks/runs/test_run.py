"""Tests of tasks/runs/run.py: what a run is on disk, and what it may be asked for."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.runs.run import Plan, Request, Retry, check_category_ids, parse_time
from tasks.settings import Settings
from tasks.statuses import Status

SEOUL = timezone(timedelta(hours=9))

zones = st.sampled_from([UTC, SEOUL, timezone(timedelta(hours=-3, minutes=-30))])
times = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=zones)
names = st.from_regex(r"[a-z][A-Za-z0-9_.~:+@ -]{0,40}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


categories = st.lists(texts, max_size=3).map(tuple)
retries = st.builds(
    Retry,
    category_ids=categories,
    statuses=st.lists(st.sampled_from(list(Status)), max_size=2).map(tuple),
    item_ids=st.lists(texts, max_size=2).map(tuple),
)


@st.composite
def requests(draw):
    bounds = sorted(draw(st.lists(times, min_size=2, max_size=2, unique=True)))
    all_items = draw(st.booleans())
    start, end = (bound if not all_items and draw(st.booleans()) else None for bound in bounds)
    return Request(
        dag=draw(names),
        run=draw(names),
        start=start,
        end=end,
        category_ids=() if all_items else draw(categories),
        retry=None if all_items else draw(st.none() | retries),
        all_items=all_items,
        force=draw(st.booleans()),
        dry_run=draw(st.booleans()),
        interval=draw(st.none() | st.tuples(times, times)),
        scheduled=draw(st.booleans()),
        notices=tuple(draw(st.lists(texts, max_size=3))),
    )


@given(requests())
def test_a_request_comes_back_from_json(request):
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_a_request_of_an_earlier_version_is_read():
    stored = Request("nightly", "r").to_json()
    for name in ("scheduled", "reconcile", "all_items"):
        del stored[name]
    assert Request.from_json(stored) == Request("nightly", "r")


@pytest.mark.parametrize(
    "also", [{"category_ids": ("all",)}, {"retry": Retry()}, {"start": datetime(2026, 10, 1, tzinfo=UTC)}]
)
def test_all_items_are_not_some_of_them(also):
    with pytest.raises(ConfigurationError, match="neither categories nor times"):
        Request("backfill", "r", all_items=True, **also)


@given(requests(), times, st.lists(texts, max_size=4), st.integers(0, 10**9))
def test_a_plan_comes_back_from_its_folder(tmp_path_factory, request, created_at, labels, planned):
    plan = Plan(
        folder=tmp_path_factory.mktemp("plan"),
        request=request,
        feature_version="inception_v3-0123456789ab-pad299",
        planned=planned,
        current=planned // 2,
        created_at=created_at,
        bounds=tuple(range(len(labels) + 1)) if labels else (),
        labels=tuple(labels),
        notices=("ü",),
        seconds=1.25,
        preview={"bytes": None, "seconds": 1.5, "from_runs": 3},
    )
    plan.save()
    loaded = Plan.load(plan.folder)
    assert loaded == plan
    assert [chunk.label for chunk in loaded.chunks] == labels
    assert [(chunk.start, chunk.stop) for chunk in loaded.chunks] == [(n, n + 1) for n in range(len(labels))]


def test_a_plan_that_this_worker_does_not_see(tmp_path):
    with pytest.raises(ServiceUnavailableError, match=re.escape(str(tmp_path / "plan.json"))) as failed:
        Plan.load(tmp_path)
    assert "FEATURES_DATA_DIR" in str(failed.value)


@pytest.mark.parametrize("content", [b"", b'{"request": ', b"\xff\xfe"])
def test_a_damaged_plan_says_what_to_clear(tmp_path, content):
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(ServiceUnavailableError, match="clear the run's `plan` task"):
        Plan.load(tmp_path)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "...", "a/b", "../a", "/etc", "a\\b", "a\0b", "a\nb", "ä", "a\n", "%2e%2e", "a?b"]
)
def test_names_that_cannot_be_folders_are_refused(name):
    for dag, run in ((name, "r"), ("d", name)):
        with pytest.raises(ConfigurationError, match="cannot name a folder"):
            Request(dag, run)


@given(names, names)
def test_a_run_s_folder_is_two_below_the_data_dir(dag, run):
    folder = Request(dag, run).folder(Path("/data"))
    assert folder.parent.parent == Path("/data")
    assert ".." not in folder.parts


@pytest.mark.parametrize(
    "run", ["manual__2026-10-01T12:00:00.123456+00:00", "scheduled__2026-10-01T15:00:00+00:00_x.y~z", "a b"]
)
def test_airflow_s_run_ids_are_taken(run):
    assert Request("nightly_feature_index", run).run == run


@pytest.mark.parametrize(
    "category_id", ["", "30", "0000003", "000000300", "0000003a", "٠٠٠٠٠٠٣٠", "00000030\n", "' or 1=1"]
)
def test_by_default_a_category_id_is_8_digits(category_id):
    with pytest.raises(ConfigurationError, match=re.escape(f"{category_id!r} does not match")) as refused:
        check_category_ids(("00000010", category_id), Settings())
    assert "FEATURES_CATEGORY_PATTERN" in str(refused.value)
    check_category_ids(("00000010", "00000020"), Settings())


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("[a-z]+(/[a-z]+)*", ["shoes/boots", "shoes"], ["shoes/", "Shoes", "shoes/boots\n"]),
        ("[0-9]+|[a-z]+", ["7", "kids"], ["7kids", "kids7"]),
        (r"[\w '\"-]+", ["신발 'a\"", "d'été"], ["a/b"]),
    ],
)
def test_the_pattern_has_to_match_all_of_a_category_id(pattern, good, bad):
    settings = Settings(category_pattern=pattern)
    check_category_ids(good, settings)
    for category_id in bad:
        with pytest.raises(ConfigurationError, match=re.escape(repr(category_id))):
            check_category_ids([category_id], settings)


def test_a_plan_is_read_whatever_the_pattern_is_by_now(tmp_path, monkeypatch):
    request = Request("d", "r", category_ids=("shoes/boots",), retry=Retry(category_ids=("d'été",)))
    plan = Plan(tmp_path, request, "v", planned=0, current=0, created_at=datetime.now(UTC))
    plan.save()
    monkeypatch.setenv("FEATURES_CATEGORY_PATTERN", "[0-9]{8}")
    assert Plan.load(tmp_path).request == request


def test_a_range_must_hold_something():
    noon = datetime(2026, 10, 1, 12, tzinfo=UTC)
    for end in (noon, noon - timedelta(seconds=1), noon.astimezone(SEOUL)):
        with pytest.raises(ConfigurationError, match="ends before it starts"):
            Request("d", "r", start=noon, end=end)
    Request("d", "r", start=noon, end=noon + timedelta(microseconds=1))
    Request("d", "r", start=noon)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-10-02", "2026-10-01T15:00:00+00:00"),
        ("2026-10-02T09:00:00", "2026-10-02T00:00:00+00:00"),
        ("2026-10-02T09:00:00Z", "2026-10-02T09:00:00+00:00"),
        ("2026-10-02T09:00:00.000001-05:00", "2026-10-02T14:00:00.000001+00:00"),
    ],
)
def test_a_time_without_a_zone_is_the_shop_s(text, expected):
    assert parse_time(text, "--from", ZoneInfo("Asia/Seoul")).astimezone(UTC).isoformat() == expected


@pytest.mark.parametrize(("text", "expected"), [("2026-07-01", "22:00"), ("2026-12-01", "23:00")])
def test_a_zone_has_its_summer_time(text, expected):
    time = parse_time(text, "--from", ZoneInfo("Europe/Berlin")).astimezone(UTC)
    assert f"{time:%H:%M}" == expected


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "2026-10-32", "1790000000", "0001-01-01"])
def test_what_is_no_time_is_named(text):
    with pytest.raises(ConfigurationError, match=f"registered_from: '{text}'"):
        parse_time(text, "registered_from", ZoneInfo("Asia/Seoul"))
