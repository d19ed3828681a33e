"""The shop's nights: the intervals between two times of FEATURES_NIGHTLY_SCHEDULE, in FEATURES_TIME_ZONE."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from croniter import croniter

from tasks.settings import Settings

_OVERLAP = timedelta(days=1)


def last_night(now: datetime, settings: Settings) -> tuple[datetime, datetime]:
    """The last complete night before `now`: its start and end, UTC."""
    times = _times(now, settings)
    end = next(times)
    return next(times), end


def last_due(now: datetime, settings: Settings) -> datetime:
    """When the schedule last came before `now`, UTC: the night that ends then is due."""
    return next(_times(now, settings))


def caught_up(start: datetime, covered_until: datetime | None) -> datetime:
    """Where a scheduled night that would start at `start` begins to read the catalogue.

    From the end of the last successful night, never later than its own start, less a day of overlap for
    rows that reached the catalogue late; what is current is skipped, so the overlap costs little.
    """
    return min(start, covered_until or start) - _OVERLAP


def _times(now: datetime, settings: Settings) -> Iterator[datetime]:
    """The times of the schedule, from the last one that is not after `now` backwards."""
    zone = settings.time_zone
    # A schedule knows minutes, and gives what is before a time.
    minute = now.astimezone(zone).replace(tzinfo=None, second=0, microsecond=0) + timedelta(minutes=1)
    schedule = croniter(settings.nightly_schedule, minute)
    while True:
        local: datetime = schedule.get_prev(datetime)
        # What clocks show twice, or never, is the later of the two readings, as it is for Airflow.
        time = max(local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        if time <= now:
            yield time
