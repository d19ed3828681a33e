"""The ledger: the items that have no feature although they were tried, when to try them again, and the nights
that succeeded."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypedDict

import sqlalchemy as sa

from tasks.errors import ConfigurationError
from tasks.runs.run import IsActive, Plan, never_active
from tasks.settings import Settings
from tasks.shop.catalogue import EARLIEST, LATEST
from tasks.shop.connections import LEDGER, Connection
from tasks.shop.database import Database, Transaction, batched
from tasks.statuses import Status

log = logging.getLogger(__name__)

_LONGEST_WAIT_HOURS = 24
_WRITTEN_AT_ONCE = 1_000
_READ_AT_ONCE = 5_000
_SCHEMA = ("schema_1", "schema_2")
"""What each version adds to the one before."""
_SWEEP_HOURS = 23.5
"""A retry begins each hour, some seconds late."""
_REMEDY = (
    "The user of feature_ledger needs the right to create tables there and has to own those that are there, "
    "or, once an owner has run sql/ledger/schema_*.sql as docs/access.md says, select, insert, update and "
    "delete on failures, failure_counts, recorded_plans, covered_nights and ledger_state; a SQLite file and "
    "its folder must be writable."
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
    plan_id: str
    """The plan that wrote it last."""
    planned_at: datetime
    """When that was made."""


class Due(NamedTuple):
    """The items that are due."""

    failures: list[Failure]
    """Those to try again now, those of one URL together."""
    beyond: int
    """So many more are due."""


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

    def due(self, now: datetime, at_most: int, is_active: IsActive = never_active) -> Due:
        """The items to try again by `now`, at most so many, the longest due first.

        Args:
            is_active: tells of which runs the items are not to be taken.
        """
        active = _ActivePlans(self._runs_of_plans, is_active)
        taken: list[Failure] = []
        values: dict[str, Any] = {"now": self._database.time(now), "left_out": []}
        after = EARLIEST, ""
        while room := at_most - len(taken):
            last_at, last_id = self._database.time(after[0]), after[1]
            asked = min(room, _READ_AT_ONCE)
            rows = self._read("due", **values, after_next_at=last_at, after_item_id=last_id, at_most=asked)
            page = [_failure(row) for row in rows]
            taken += active.none_of(page)
            values["left_out"] = sorted(active.plan_ids)
            if len(page) < asked:
                break
            after = page[-1].next_at or now, page[-1].item_id
        beyond = self._read("count_due", **values)[0][0] - len(taken) if not room else 0
        taken.sort(key=lambda failure: (failure.img_url or "", failure.item_id))
        return Due(taken, max(beyond, 0))

    def given_up(self) -> Iterator[Failure]:
        """The items that no schedule tries again."""
        return self._failures("given_up", lambda last: {"after_item_id": last.item_id if last else ""})

    def sweep_is_due(self, now: datetime) -> bool:
        """Whether it is a day since a retry looked through what is given up."""
        swept_at = next((row.swept_at for row in self._read("state")), None)
        return swept_at is None or _utc(swept_at) <= now - timedelta(hours=_SWEEP_HOURS)

    def matching(
        self,
        *,
        category_ids: Sequence[str] = (),
        statuses: Sequence[Status] = (),
        item_ids: Sequence[str] = (),
        is_active: IsActive = never_active,
    ) -> Iterator[Failure]:
        """The items that match every filter given, due or not, given up or not; without filters all.

        Those of one URL come together.

        Args:
            is_active: tells of which runs the items are not to be taken.
        """

        def after(last: Failure | None) -> dict[str, str]:
            return {
                "after_img_url": (last and last.img_url) or "",
                "after_item_id": last.item_id if last else "",
            }

        active = _ActivePlans(self._runs_of_plans, is_active)
        filters = _given(category_ids=list(category_ids), statuses=[status.value for status in statuses])
        # A statement takes only so many values.
        for some in batched(sorted(set(item_ids)), _READ_AT_ONCE) if item_ids else [[]]:
            found = self._failures("matching", after, **filters, **_given(item_ids=some))
            for failures in batched(found, _READ_AT_ONCE):
                yield from active.none_of(failures)

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
            at_most=at_most,
            **_given(category_id=category_id, status=status and status.value, item_id=item_id),
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
        found = self._read("covered_until", dag=dag, before=began)
        return _utc(found[0].ends_at) if found and found[0].ends_at else None

    def uncover(self, dag: str, run: str) -> None:
        """Take back that a night succeeded, where that was recorded."""
        if self._has_no_file():
            return
        with self._database.transaction() as transaction:
            transaction.run("begin")
            if _version(transaction) is not None:
                _bring_up_to_date(transaction)
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
            recording.end()
        log.info("Ledger: %d failures written, %d removed", recording.written, recording.removed)

    def _failures(
        self, statement: str, after: Callable[[Failure | None], dict[str, str]], **parameters: Any
    ) -> Iterator[Failure]:
        """A statement's rows, page by page, each `after` the last row of the one before.

        Between pages nothing is held: in SQLite a reader that takes its time would keep writers out.
        """
        last = None
        while True:
            rows = self._read(statement, **parameters, **after(last), at_most=_READ_AT_ONCE)
            for row in rows:
                last = _failure(row)
                yield last
            if len(rows) < _READ_AT_ONCE:
                return

    def _runs_of_plans(self, plan_ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        rows = self._read("runs_of_plans", plan_ids=list(plan_ids))
        return {row.plan_id: (row.dag, row.run) for row in rows}

    def _read(self, statement: str, **parameters: Any) -> Sequence[sa.Row[Any]]:
        if self._has_no_file():
            return []
        with self._database.transaction() as transaction:
            version = _version(transaction)
            if version is None:
                return []
            if version == len(_SCHEMA):
                return transaction.run(statement, parameters).all()
        with self._database.transaction() as transaction:
            transaction.run("begin")
            _bring_up_to_date(transaction)
            return transaction.run(statement, parameters).all()

    def _has_no_file(self) -> bool:
        file = self._database.file
        return file is not None and not file.is_file()


class _ActivePlans:
    """Those plans whose runs are at work, as far as it was asked for them."""

    def __init__(
        self, runs_of: Callable[[Sequence[str]], dict[str, tuple[str, str]]], is_active: IsActive
    ) -> None:
        self._runs_of = runs_of
        self._is_active = is_active
        self._known: set[str] = set()
        self.plan_ids: set[str] = set()

    def none_of(self, failures: Sequence[Failure]) -> list[Failure]:
        """The failures that are none of these plans'."""
        new = {failure.plan_id for failure in failures} - self._known
        if new:
            runs = self._runs_of(sorted(new))
            self.plan_ids |= {plan_id for plan_id, run in runs.items() if self._is_active(*run)}
            self._known |= new
        return [failure for failure in failures if failure.plan_id not in self.plan_ids]


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
        _bring_up_to_date(transaction)
        run = {"dag": plan.request.dag, "run": plan.request.run}
        noted = transaction.run("add_plan", self._plan | run | {"now": database.time(now)})
        self._again = noted.rowcount == 0
        if plan.swept:
            transaction.run("note_sweep", {"swept_at": self._plan["planned_at"]})
        self._counts: Counter[tuple[str, bool]] = Counter()

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
        self._remove([rows[item_id] for item_id in better])
        if worse:
            self._transaction.run("put", worse)
            self._uncount(rows[new["item_id"]] for new in worse if new["item_id"] in rows)
            self._counts.update((new["status"], new["next_at"] is None) for new in worse)
            self.written += len(worse)

    def resolve_items(self, item_ids: Sequence[str]) -> None:
        """Remove the rows of items that need nothing more."""
        rows = self._rows(item_ids)
        self._remove([row for row in rows.values() if not self._is_later(row)])

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

    def end(self) -> None:
        """Write how many failures there are now."""
        changed = [
            {"status": status, "waiting": self._counts[status, False], "given_up": self._counts[status, True]}
            for status in sorted({status for status, _ in self._counts})
        ]
        if changed:
            self._transaction.run("add_counts", changed)

    def _remove(self, rows: Sequence[sa.Row[Any]]) -> None:
        if rows:
            self._transaction.run("remove", {"item_ids": [row.item_id for row in rows]})
            self._uncount(rows)
            self.removed += len(rows)

    def _uncount(self, rows: Iterable[sa.Row[Any]]) -> None:
        self._counts.subtract((row.status, row.next_at is None) for row in rows)

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
            before, first_at = 0, self._now
        elif not own:
            before, first_at = row.attempts, _utc(row.first_at)
        elif (row.status, row.reason) != (outcome.status, reason):
            before, first_at = row.attempts - _attempts(row.status), _utc(row.first_at)
        else:
            return None
        attempts = before + _attempts(outcome.status)
        next_at = self._next_at(outcome.status, attempts, first_at)
        return self._plan | {
            "item_id": outcome.item_id,
            "category_id": _storable(outcome.category_id),
            "img_url": img_url,
            "status": outcome.status.value,
            "reason": reason,
            "attempts": attempts,
            "first_at": self._time(first_at),
            "last_at": self._time(self._now),
            "next_at": self._time(next_at) if next_at else None,
        }

    def _next_at(self, status: Status, attempts: int, first_at: datetime) -> datetime | None:
        first = self._settings.retry_first_hours
        if status is Status.CIRCUIT_OPEN:
            return self._now  # the next retry has it among the first
        if status is Status.UNFINISHED:
            # As long as it has failed by now, which doubles with each wait, since no attempts are counted.
            hours = first + (self._now - first_at) / timedelta(hours=1)
        elif not status.retried or attempts >= self._settings.retry_attempts:
            return None
        else:
            # Doubled often enough, even without overflow.
            hours = first * 2.0 ** min(attempts - 1, 64)
        return self._now + timedelta(hours=min(hours, _LONGEST_WAIT_HOURS))


def _version(transaction: Transaction) -> int | None:
    """A ledger's version: None where there is no ledger yet, 0 where a release made it that kept none."""
    if not transaction.holds("ledger_state"):
        return 0 if transaction.holds("failures") else None
    version: int = transaction.run("state").one().version
    if version > len(_SCHEMA):
        raise ConfigurationError(
            f"The ledger has version {version}, and this release knows {len(_SCHEMA)}: a later one has used "
            "it. Run that one everywhere, or restore the ledger from before."
        )
    return version


def _bring_up_to_date(transaction: Transaction) -> None:
    """Make a ledger, or what an earlier release lacks of it; in a transaction that no other one overlaps."""
    # What is there is not created again: that takes rights that no one needs any more.
    for script in _SCHEMA[_version(transaction) or 0 :]:
        transaction.run_script(script)


def _given(**filters: Any) -> dict[str, Any]:
    """Those that are not empty."""
    return {name: value for name, value in filters.items() if value}


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
        plan_id=row.plan_id,
        planned_at=_utc(row.planned_at),
    )


def _utc(stored: str | datetime) -> datetime:
    """A time as the database holds it, with its zone."""
    if isinstance(stored, str):
        return datetime.fromisoformat(stored).replace(tzinfo=UTC)
    return stored.astimezone(UTC)
