"""The ledger: the items that have no feature although they were tried, when to try them again, and the nights
that succeeded."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

import sqlalchemy as sa

from tasks.runs.run import Plan
from tasks.settings import Settings
from tasks.shop.catalogue import LATEST
from tasks.shop.connections import LEDGER, Connection
from tasks.shop.database import Database, Transaction, batched
from tasks.statuses import Status

log = logging.getLogger(__name__)

_LONGEST_WAIT_HOURS = 24
_WRITTEN_AT_ONCE = 1_000
_READ_AT_ONCE = 5_000
_TABLES = ("failures", "recorded_plans", "covered_nights")
_CREATION = (
    "create_failures",
    "create_failures_next_at",
    "create_failures_last_at",
    "create_failures_status",
    "create_recorded_plans",
    "create_covered_nights",
)
_REMEDY = (
    "The user of feature_ledger needs the right to create tables there, or, once an owner has run "
    "sql/ledger/create_*.sql, select, insert, update and delete on failures, recorded_plans and "
    "covered_nights; a SQLite file and its folder must be writable."
)


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """What became of one item of a plan."""

    item_id: str
    category_id: str | None
    img_url: str | None
    status: Status
    reason: str | None


@dataclass(frozen=True, slots=True)
class Failure:
    """An item in the ledger. Times are UTC; without `next_at` no schedule tries it again."""

    item_id: str
    category_id: str | None
    img_url: str | None
    status: Status
    reason: str | None
    attempts: int
    """Runs that tried this URL; one that did not finish, or never asked for it, is not counted."""
    first_at: datetime
    last_at: datetime
    next_at: datetime | None
    planned_at: datetime
    """When the run that wrote it was planned."""


class Count(TypedDict):
    """How many failures of one status there are."""

    waiting: int
    """For a retry."""
    given_up: int
    """By the schedule; any of them can be retried by hand."""


class Ledger:
    """The ledger behind the connection feature_ledger; without one, a SQLite file in the data dir.

    Every method that reads or writes raises ConfigurationError when the ledger cannot be used as it is, and
    ServiceUnavailableError when it does not answer. Reading one that nothing was written to gives nothing.
    """

    def __init__(self, connection: Connection | None, settings: Settings) -> None:
        default = Connection(LEDGER, "sqlite", schema=str(settings.data_dir / "ledger.db"))
        self._database = Database(connection or default, "ledger", remedy=_REMEDY)
        self._settings = settings

    def due(self, now: datetime) -> Iterator[Failure]:
        """The items to try again by `now`, those of one URL together."""
        return self._failures("due", now=self._database.time(now))

    def given_up(self) -> Iterator[Failure]:
        """The items that no schedule tries again, those of one URL together."""
        return self._failures("given_up")

    def matching(
        self,
        *,
        category_ids: Sequence[str] = (),
        statuses: Sequence[Status] = (),
        item_ids: Sequence[str] = (),
    ) -> Iterator[Failure]:
        """The items that match every filter given, due or not, given up or not; without filters all.

        Those of one URL come together.
        """
        # A statement takes only so many values.
        for some in batched(sorted(set(item_ids)), _READ_AT_ONCE) if item_ids else [[]]:
            yield from self._failures(
                "matching",
                any_category=not category_ids,
                category_ids=list(category_ids),
                any_status=not statuses,
                statuses=[status.value for status in statuses],
                any_item=not item_ids,
                item_ids=some,
            )

    def page(
        self,
        *,
        category_id: str = "",
        status: Status | None = None,
        item_id: str = "",
        latest_first: bool = True,
        after: tuple[datetime, str] | None = None,
        at_most: int = 50,
    ) -> list[Failure]:
        """Some of the items that match every filter given, in the order in which a person reads them.

        Args:
            latest_first: the last to fail first; else by item id.
            after: `last_at` and item id of the failure that the page before ended with; by item id, the
                time does not matter.
        """
        last_at, last_id = after or (LATEST, "")
        position: dict[str, Any] = {"after_item_id": last_id}
        if latest_first:
            position["after_last_at"] = self._database.time(last_at)
        rows = self._read(
            "page_by_last" if latest_first else "page_by_item",
            any_category=not category_id,
            category_id=category_id,
            any_status=status is None,
            status=status.value if status else "",
            any_item=not item_id,
            item_id=item_id,
            at_most=at_most,
            **position,
        )
        return [_failure(row) for row in rows]

    def counts(self) -> dict[Status, Count]:
        """How many items there are by status, in the order of the statuses."""
        rows = {row.status: row for row in self._read("counts")}
        return {
            status: Count(waiting=rows[status].waiting, given_up=rows[status].given_up)
            for status in Status
            if status in rows
        }

    def covered_until(self, dag: str, before: datetime) -> datetime | None:
        """The end of the last night of a DAG that succeeded, UTC; None where the ledger knows none.

        Args:
            before: nights that began then or later do not count.
        """
        began = self._database.time(before)
        found = self._read("covered_until", table="covered_nights", dag=dag, before=began)
        return _utc(found[0].ends_at) if found and found[0].ends_at else None

    def uncover(self, dag: str, run: str) -> None:
        """Take back that a night succeeded, where that was recorded."""
        if self._has_no_file():
            return
        with self._database.transaction() as transaction:
            transaction.run("begin")
            if transaction.holds("covered_nights"):
                transaction.run("uncover_night", {"dag": dag, "run": run})

    def record(
        self,
        plan: Plan,
        outcomes: Iterable[ItemOutcome],
        resolved: Iterable[str] = (),
        now: datetime | None = None,
        *,
        failed: bool = False,
    ) -> None:
        """Take over what became of a plan's items: all of it or, when anything goes wrong, nothing.

        A plan recorded again replaces what it wrote, where no later plan has written since, and adds nothing:
        an item without a row has succeeded in the meantime. An outcome that it wrote before changes nothing.

        Args:
            outcomes: every item of the plan, streamed; must not read this ledger.
            resolved: items that need no feature any more or have it, by id; likewise.
            now: when the items failed that do; the present by default.
            failed: whether the run does; a scheduled night that does not is one that succeeded.
        """
        with self._database.transaction() as transaction:
            recording = _Recording(
                transaction, self._database, self._settings, plan, now or datetime.now(UTC)
            )
            for page in batched(outcomes, _WRITTEN_AT_ONCE):
                recording.take(page)
            for item_ids in batched(resolved, _WRITTEN_AT_ONCE):
                recording.resolve_items(item_ids)
            recording.cover(failed)
        log.info("Ledger: %d failures written, %d removed", recording.written, recording.removed)

    def _failures(self, statement: str, **parameters: Any) -> Iterator[Failure]:
        """A statement's rows, page by page.

        Between pages nothing is held: in SQLite a reader that takes its time would keep writers out.
        """
        after = {"after_img_url": "", "after_item_id": ""}
        while True:
            page = self._read(statement, **parameters, **after, at_most=_READ_AT_ONCE)
            yield from map(_failure, page)
            if len(page) < _READ_AT_ONCE:
                return
            after = {"after_img_url": page[-1].img_url or "", "after_item_id": page[-1].item_id}

    def _read(self, statement: str, *, table: str = "failures", **parameters: Any) -> Sequence[sa.Row[Any]]:
        if self._has_no_file():
            return []
        with self._database.transaction() as transaction:
            return transaction.run(statement, parameters).all() if transaction.holds(table) else []

    def _has_no_file(self) -> bool:
        file = self._database.file
        return file is not None and not file.is_file()


class _Recording:
    """One plan on its way into the ledger, within a transaction that no other recording overlaps."""

    def __init__(
        self, transaction: Transaction, database: Database, settings: Settings, plan: Plan, now: datetime
    ) -> None:
        self._transaction = transaction
        self._settings = settings
        self._time = database.time
        self._request = plan.request
        self._plan = {"plan_id": plan.folder.name, "planned_at": database.time(plan.created_at)}
        self._order = plan.created_at, plan.folder.name
        self._now = now
        self.written = self.removed = 0
        transaction.run("begin")
        # Not created blindly: that takes rights that no one needs once they are there.
        if not all(map(transaction.holds, _TABLES)):
            for statement in _CREATION:
                transaction.run(statement)
        noted = transaction.run("add_plan", self._plan | {"now": database.time(now)})
        self._again = noted.rowcount == 0

    def take(self, outcomes: Sequence[ItemOutcome]) -> None:
        """Write what failed and remove what no longer does."""
        rows = self._rows([outcome.item_id for outcome in outcomes])
        better: list[str] = []
        worse: list[dict[str, Any]] = []
        for outcome in outcomes:
            row = rows.get(outcome.item_id)
            if row is not None and self._is_later(row):
                continue
            if not (outcome.status.failure or outcome.status.retried):
                better += [outcome.item_id] if row is not None else []
            elif new := self._next_row(outcome, row):
                worse.append(new)
        self._remove(better)
        if worse:
            self._transaction.run("put", worse)
            self.written += len(worse)

    def resolve_items(self, item_ids: Sequence[str]) -> None:
        """Remove the rows of items that need nothing more."""
        rows = self._rows(item_ids)
        self._remove([item_id for item_id, row in rows.items() if not self._is_later(row)])

    def cover(self, failed: bool) -> None:
        """Note whether the run, where it is a scheduled night, succeeded."""
        request = self._request
        if not request.scheduled or request.interval is None:
            return
        run = {"dag": request.dag, "run": request.run}
        if failed:
            self._transaction.run("uncover_night", run)
            return
        starts_at, ends_at = map(self._time, request.interval)
        night = {"starts_at": starts_at, "ends_at": ends_at, "now": self._time(self._now)}
        self._transaction.run("cover_night", run | night)

    def _rows(self, item_ids: Sequence[str]) -> dict[str, sa.Row[Any]]:
        rows = self._transaction.run("of_items", {"item_ids": list(item_ids)})
        return {row.item_id: row for row in rows}

    def _remove(self, item_ids: list[str]) -> None:
        if item_ids:
            self._transaction.run("remove", {"item_ids": item_ids})
            self.removed += len(item_ids)

    def _is_later(self, row: sa.Row[Any]) -> bool:
        """Whether a plan made after this one wrote the row."""
        return (_utc(row.planned_at), row.plan_id) > self._order

    def _next_row(self, outcome: ItemOutcome, row: sa.Row[Any] | None) -> dict[str, Any] | None:
        """What the failed outcome makes of an item's row; None: nothing."""
        img_url, reason = _storable(outcome.img_url), _storable(outcome.reason)
        own = row is not None and row.plan_id == self._plan["plan_id"]
        if self._again and not own:
            return None
        if row is None or row.img_url != img_url:
            before, first_at = 0, self._time(self._now)
        elif not own:
            before, first_at = row.attempts, row.first_at
        elif (row.status, row.reason) != (outcome.status, reason):
            before, first_at = row.attempts - _attempts(row.status), row.first_at
        else:
            return None
        attempts = before + _attempts(outcome.status)
        next_at = self._next_at(outcome.status, attempts)
        return self._plan | {
            "item_id": outcome.item_id,
            "category_id": _storable(outcome.category_id),
            "img_url": img_url,
            "status": outcome.status.value,
            "reason": reason,
            "attempts": attempts,
            "first_at": first_at,
            "last_at": self._time(self._now),
            "next_at": self._time(next_at) if next_at else None,
        }

    def _next_at(self, status: Status, attempts: int) -> datetime | None:
        first = self._settings.retry_first_hours
        if status is Status.CIRCUIT_OPEN:
            return self._now  # the next retry has it among the first
        if status is Status.UNFINISHED:
            return self._now + timedelta(hours=first)
        if not status.retried or attempts >= self._settings.retry_attempts:
            return None
        # Doubled often enough, even without overflow.
        hours = first * 2.0 ** min(attempts - 1, 64)
        return self._now + timedelta(hours=min(hours, _LONGEST_WAIT_HOURS))


def _attempts(status: str) -> int:
    """How much an outcome adds to an item's attempts: nothing where the item was not tried."""
    return 0 if status in (Status.UNFINISHED, Status.CIRCUIT_OPEN) else 1


def _storable(text: str | None) -> str | None:
    """What strangers wrote, without the one character that PostgreSQL does not take."""
    return text and text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _failure(row: sa.Row[Any]) -> Failure:
    return Failure(
        item_id=row.item_id,
        category_id=row.category_id,
        img_url=row.img_url,
        status=Status(row.status),
        reason=row.reason,
        attempts=row.attempts,
        first_at=_utc(row.first_at),
        last_at=_utc(row.last_at),
        next_at=None if row.next_at is None else _utc(row.next_at),
        planned_at=_utc(row.planned_at),
    )


def _utc(stored: str | datetime) -> datetime:
    """A time as the database holds it, with its zone."""
    if isinstance(stored, str):
        return datetime.fromisoformat(stored).replace(tzinfo=UTC)
    return stored.astimezone(UTC)
