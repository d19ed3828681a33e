"""A run on disk: what was asked for, its plans, their chunks and where each stage's file lies.

    <data dir>/<dag>/<run>/report.json
    <data dir>/<dag>/<run>/plan-<id>/plan.json, items.parquet, resolved.parquet
    <data dir>/<dag>/<run>/plan-<id>/chunk-0000/pictures.parquet, features.parquet, outcomes.parquet
    <data dir>/<dag>/<run>/plan-<id>/circuits/<host's hash>.json

Every planning makes a new plan id, so nothing of an earlier plan is taken for this one's work.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Self
from zoneinfo import ZoneInfo

from tasks import files
from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.settings import Settings
from tasks.statuses import Status


class Origin(StrEnum):
    """Why a run of times takes an item. The values are what reports and pages show."""

    def __new__(cls, value: str, meaning: str = "") -> Self:
        """Make a member whose value is `value` alone."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    meaning: str
    CHANGED = "changed", "Registered or changed in the run's own interval."
    CAUGHT_UP = (
        "caught_up",
        "Registered or changed before it: in a night that was missed, or the day of overlap.",
    )
    RECONCILED = "reconciled", "Its document lacked a current feature, and nothing explains why."


IsActive = Callable[[str, str], bool]
"""Whether a run, by the names of its DAG and its own, is queued or running."""


def never_active(_dag: str, _run: str) -> bool:
    """What is known of runs where Airflow is not asked."""
    return False


@dataclass(frozen=True)
class Retry:
    """Which of the ledger's items a run tries again: those that match all that is given, given up or not;
    with nothing given, those that are due."""

    category_ids: tuple[str, ...] = ()
    statuses: tuple[Status, ...] = ()
    item_ids: tuple[str, ...] = ()

    @property
    def chosen(self) -> bool:
        """Whether a person chose them, rather than the schedule."""
        return bool(self.category_ids or self.statuses or self.item_ids)


@dataclass(frozen=True)
class Request:
    """What a run was asked to do.

    `dag` and `run` name its folder. With `category_ids` it takes the items of these categories
    registered in [start, end), either end open when None; with `retry`, items of the ledger; with
    `all_items`, the whole catalogue; with none of them, the items changed in [start, end).
    """

    dag: str
    run: str
    start: datetime | None = None
    end: datetime | None = None
    category_ids: tuple[str, ...] = ()
    retry: Retry | None = None
    all_items: bool = False
    force: bool = False
    dry_run: bool = False
    interval: tuple[datetime, datetime] | None = None
    """The scheduled interval, where the items planned reach further back."""
    scheduled: bool = False
    """Whether the interval is the schedule's own: when such a run ends well, the next one begins where it
    ended."""
    reconcile: bool = False
    """Whether to take, after what changed, items whose documents lost their feature."""
    notices: tuple[str, ...] = ()

    @property
    def of_times(self) -> bool:
        """Whether it takes what changed in a range of time."""
        return not (self.category_ids or self.retry or self.all_items)

    def __post_init__(self) -> None:
        for name in (self.dag, self.run):
            if not re.fullmatch(r"(?!\.+$)[A-Za-z0-9_.~:+@ -]+", name):
                raise ConfigurationError(f"{name!r} cannot name a folder; give the run another name.")
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ConfigurationError(
                f"The range ends before it starts: from {self.start.isoformat()} to {self.end.isoformat()}."
            )

        if self.all_items and (self.category_ids or self.retry or self.start or self.end):
            raise ConfigurationError(
                "A run of all items takes neither categories nor times: leave them out, or take these alone."
            )

    def folder(self, data_dir: Path) -> Path:
        """Where this run's plans and its report are."""
        return data_dir / self.dag / self.run

    def to_json(self) -> dict[str, Any]:
        """Plain values, times in ISO 8601."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of to_json."""
        interval, retry = value["interval"], value["retry"]
        return cls(
            dag=value["dag"],
            run=value["run"],
            start=_time(value["start"]),
            end=_time(value["end"]),
            category_ids=tuple(value["category_ids"]),
            retry=Retry(
                tuple(retry["category_ids"]), tuple(map(Status, retry["statuses"])), tuple(retry["item_ids"])
            )
            if retry
            else None,
            # Plans of an earlier version do not say it, nor what stands below.
            all_items=value.get("all_items", False),
            force=value["force"],
            dry_run=value["dry_run"],
            interval=(datetime.fromisoformat(interval[0]), datetime.fromisoformat(interval[1]))
            if interval
            else None,
            scheduled=value.get("scheduled", False),
            reconcile=value.get("reconcile", False),
            notices=tuple(value["notices"]),
        )


@dataclass(frozen=True)
class Plan:
    """What one planning found: the items to do, split into chunks, and what is already current."""

    folder: Path
    request: Request
    feature_version: str
    planned: int
    """Catalogue rows selected, those already current included."""
    current: int
    """Of these, the ones whose feature is already current."""
    created_at: datetime
    bounds: tuple[int, ...] = ()
    """Chunk i holds the rows [bounds[i], bounds[i + 1]) of items.parquet."""
    labels: tuple[str, ...] = ()
    """What is in each chunk, for a person."""
    notices: tuple[str, ...] = ()
    seconds: float = 0.0
    time_breakdown: Mapping[str, float] = field(default_factory=dict)
    """The seconds by what was done: "reading the catalogue", and "asking Elasticsearch" meanwhile."""
    origins: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """In a run of times: `planned` and `current` by Origin."""
    without_feature: Mapping[str, int] = field(default_factory=dict)
    """In a run that reconciles: the documents without a current feature, by what becomes of them."""
    preview: Mapping[str, Any] = field(default_factory=dict)
    """In a dry run: the expected traffic and time."""
    swept: bool = False
    """Whether a retry looked through what is given up, too."""
    fingerprint: str = ""
    """Of the model that the features will be of; empty in a plan of an earlier release."""

    @property
    def items(self) -> Path:
        """The rows to do, in chunk order."""
        return self.folder / "items.parquet"

    @property
    def resolved(self) -> Path:
        """The ledger's items that are current by now, or have left the catalogue; none but in a retry."""
        return self.folder / "resolved.parquet"

    @property
    def chunks(self) -> "list[Chunk]":
        """The chunks in order."""
        return [Chunk(self, number) for number in range(len(self.bounds) - 1)]

    def save(self) -> None:
        """Write plan.json, last: its presence says that the plan is complete."""
        values = {key: _plain(value) for key, value in asdict(self).items() if key != "folder"}
        files.write_json(self.folder / "plan.json", values | {"request": self.request.to_json()})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a saved plan.

        Raises:
            ServiceUnavailableError: it is not in the data dir that this process sees, or damaged.
        """
        path = folder / "plan.json"
        try:
            value = files.read_json(path)
        except (OSError, ValueError) as error:
            raise ServiceUnavailableError(
                f"{path} cannot be read: {error}. Every worker needs the same FEATURES_DATA_DIR; if the plan "
                "has expired (FEATURES_KEEP_DAYS) or is damaged, clear the run's `plan` task: it does again "
                "what is not current."
            ) from None
        return cls(
            folder=folder,
            request=Request.from_json(value.pop("request")),
            created_at=datetime.fromisoformat(value.pop("created_at")),
            bounds=tuple(value.pop("bounds")),
            labels=tuple(value.pop("labels")),
            notices=tuple(value.pop("notices")),
            **value,
        )


@dataclass(frozen=True)
class Chunk:
    """A part of a plan that the stages work on as one."""

    plan: Plan
    number: int

    @property
    def start(self) -> int:
        """Its first row in items.parquet."""
        return self.plan.bounds[self.number]

    @property
    def stop(self) -> int:
        """The row after its last."""
        return self.plan.bounds[self.number + 1]

    @property
    def label(self) -> str:
        """What is in it, for a person."""
        return self.plan.labels[self.number]

    @property
    def folder(self) -> Path:
        """Where its stages' files are."""
        return self.plan.folder / f"chunk-{self.number:04}"

    @property
    def pictures(self) -> Path:
        """What download leaves."""
        return self.folder / "pictures.parquet"

    @property
    def features(self) -> Path:
        """What extract leaves."""
        return self.folder / "features.parquet"

    @property
    def outcomes(self) -> Path:
        """What index leaves: every item's status."""
        return self.folder / "outcomes.parquet"


def parse_time(text: str, name: str, zone: ZoneInfo) -> datetime:
    """Read an ISO 8601 date or time; one that names no zone is of `zone`.

    Raises:
        ConfigurationError: naming the parameter.
    """
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is None:
            time = time.replace(tzinfo=zone)
        time.astimezone(UTC)  # as the catalogue compares it; not every time of year 1 or 9999 has one
    except (ValueError, OverflowError):
        raise ConfigurationError(
            f"{name}: {text!r} is neither a date nor a time, such as 2026-10-02 or 2026-10-02T09:00:00+09:00."
        ) from None
    return time


def check_category_ids(category_ids: Sequence[str], settings: Settings) -> None:
    """Refuse what a person gave as the id of a category and cannot be one.

    Raises:
        ConfigurationError: naming the first that FEATURES_CATEGORY_PATTERN does not match.
    """
    for category_id in category_ids:
        if not settings.is_category_id(category_id):
            raise ConfigurationError(
                f"The category id {category_id!r} does not match FEATURES_CATEGORY_PATTERN, "
                f"{settings.category_pattern!r}. Correct the id, or set the pattern to what the shop's ids "
                "look like."
            )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(element) for element in value]
    if isinstance(value, Mapping):
        return {key: _plain(element) for key, element in value.items()}
    return value
