"""Tests of tasks/runs/nights.py: which night is the last one, in any zone and by any schedule."""

from datetime import UTC, datetime, timedelta

import pytest

from tasks.runs.nights import caught_up, last_due, last_night
from tasks.settings import Settings


# Seoul's days, written down by hand: it is nine hours ahead of UTC all year round.
@pytest.mark.parametrize(
    ("now", "start", "end"),
    [
        ("2026-10-02T15:00:00+00:00", "2026-10-01T15:00:00+00:00", "2026-10-02T15:00:00+00:00"),
        ("2026-10-02T14:59:59.999999+00:00", "2026-09-30T15:00:00+00:00", "2026-10-01T15:00:00+00:00"),
        ("2026-10-03T09:00:00+09:00", "2026-10-01T15:00:00+00:00", "2026-10-02T15:00:00+00:00"),
        ("2027-01-01T00:30:00+09:00", "2026-12-30T15:00:00+00:00", "2026-12-31T15:00:00+00:00"),
        ("2026-12-31T23:30:00-05:00", "2026-12-30T15:00:00+00:00", "2026-12-31T15:00:00+00:00"),
        ("2028-03-01T12:00:00+09:00", "2028-02-28T15:00:00+00:00", "2028-02-29T15:00:00+00:00"),
    ],
)
def test_by_default_nights_are_days_of_seoul(now, start, end):
    found = last_night(datetime.fromisoformat(now), Settings())
    assert [time.isoformat() for time in found] == [start, end]


@pytest.mark.parametrize(
    ("start", "last_end", "expected"),
    [
        # The night before succeeded.
        ("2026-10-05T15:00", "2026-10-05T15:00", "2026-10-04T15:00"),
        # Three nights were missed.
        ("2026-10-05T15:00", "2026-10-02T15:00", "2026-10-01T15:00"),
        # Nothing has ever run.
        ("2026-10-05T15:00", None, "2026-10-04T15:00"),
        # A later night ran first, as when an old one is cleared.
        ("2026-10-05T15:00", "2026-10-09T15:00", "2026-10-04T15:00"),
        # Across years.
        ("2027-01-02T15:00", "2026-12-30T15:00", "2026-12-29T15:00"),
        ("2027-01-01T15:00", "2025-01-01T15:00", "2024-12-31T15:00"),
    ],
)
def test_caught_up(start, last_end, expected):
    start, last_end, expected = (
        time and datetime.fromisoformat(time).replace(tzinfo=UTC) for time in (start, last_end, expected)
    )
    assert caught_up(start, last_end) == expected


BERLIN = {"time_zone": "Europe/Berlin"}
AT_HALF_PAST_TWO = BERLIN | {"nightly_schedule": "30 2 * * *"}
HAVANA = {"time_zone": "America/Havana"}
WORKING_DAYS = {"time_zone": "UTC", "nightly_schedule": "0 3 * * 1-5"}


@pytest.mark.parametrize(
    ("settings", "now", "start", "end"),
    [
        # Summer time began on 29 March and ended on 25 October, each at 01:00 UTC: one night is shorter by an
        # hour, the other longer.
        (BERLIN, "2026-03-30T09:00", "2026-03-28T23:00", "2026-03-29T22:00"),
        (BERLIN, "2026-10-26T09:00", "2026-10-24T22:00", "2026-10-25T23:00"),
        # 02:30 comes not at all on the one day, and twice on the other: the later reading counts.
        (
            AT_HALF_PAST_TWO,
            "2026-03-29T09:00",
            "2026-03-28T01:30",
            "2026-03-29T01:30",
        ),
        (
            AT_HALF_PAST_TWO,
            "2026-10-25T09:00",
            "2026-10-24T00:30",
            "2026-10-25T01:30",
        ),
        (
            AT_HALF_PAST_TWO,
            "2026-10-25T00:45",
            "2026-10-23T00:30",
            "2026-10-24T00:30",
        ),
        # Havana's clocks go from 0:00 to 1:00, and later from 1:00 to 0:00: midnight is what is shifted.
        (HAVANA, "2026-03-08T12:00", "2026-03-07T05:00", "2026-03-08T05:00"),
        (HAVANA, "2026-11-01T12:00", "2026-10-31T04:00", "2026-11-01T05:00"),
        (HAVANA, "2026-11-01T04:30", "2026-10-30T04:00", "2026-10-31T04:00"),
        # Working days alone: a Monday's night begins on Friday.
        (
            WORKING_DAYS,
            "2026-10-05T03:00",
            "2026-10-02T03:00",
            "2026-10-05T03:00",
        ),
        ({"time_zone": "Asia/Kathmandu"}, "2026-10-02T18:15", "2026-10-01T18:15", "2026-10-02T18:15"),
    ],
)
def test_nights_are_the_schedule_s_in_the_shop_s_zone(settings, now, start, end):
    found = last_night(datetime.fromisoformat(now).replace(tzinfo=UTC), Settings(**settings))
    assert [f"{time:%Y-%m-%dT%H:%M}" for time in found] == [start, end]
    assert all(time.tzinfo is UTC for time in found)


@pytest.mark.parametrize("zone", ["Asia/Seoul", "Europe/Berlin", "America/Havana", "Australia/Lord_Howe"])
@pytest.mark.parametrize("schedule", ["0 0 * * *", "30 2 * * *", "15 1,13 * * *", "0 4 * * 1-5"])
def test_airflow_s_intervals_are_the_same(zone, schedule):
    """A night that is run by hand is one that the schedule has run or missed."""
    from airflow.sdk import timezone
    from airflow.timetables.interval import CronDataIntervalTimetable

    airflow_s = CronDataIntervalTimetable(schedule, zone)
    settings = Settings(time_zone=zone, nightly_schedule=schedule)
    # Around the hours at which clocks are changed somewhere, and on common days.
    for day in (
        datetime(2026, *date, tzinfo=UTC) for date in ((3, 7), (3, 28), (4, 4), (7, 1), (10, 24), (10, 31))
    ):
        for now in (day + timedelta(hours=hours, minutes=40) for hours in range(0, 60, 2)):
            interval = airflow_s.infer_manual_data_interval(run_after=timezone.coerce_datetime(now))
            # At an hour that comes twice it infers what is not over, at one that never comes what is empty.
            if interval.start < interval.end <= now:
                assert last_night(now, settings) == (interval.start, interval.end), now


def test_a_night_is_due_when_the_schedule_comes():
    settings = Settings(time_zone="Europe/Berlin", nightly_schedule="30 2 * * *")
    on_time = datetime(2026, 7, 2, 0, 30, tzinfo=UTC)
    assert last_due(on_time, settings) == on_time
    assert last_due(on_time - timedelta(microseconds=1), settings) == on_time - timedelta(days=1)
