"""Removes what runs have left in the data dir: plans by age and size, reports by age, and what was abandoned.

Only what a run wrote is touched, whatever else shares the data dir: `<data dir>/<dag>/<run>/plan-<12 hex>`,
the `report.json` beside it, in them the names that tasks/files.py gives, and the two folders above once they
are empty. Links are not followed.

A plan of a running run stays. Nobody can keep an operator from clearing a task of a finished run in the very
moment after we asked whether it runs; asking once more would only move that moment. So we ask once, right
before the plan goes, and make it harmless to be wrong: the plan goes in one step, renamed, and is removed
under the new name. A stage finds all of its plan or nothing. Where it finds nothing, or cannot leave its
pack there any more, it fails and says so; clearing `plan` then plans anew, in a folder of its own.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from tasks import files
from tasks.errors import ServiceUnavailableError
from tasks.runs.run import IsActive
from tasks.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

_PLAN = re.compile(r"plan-[0-9a-f]{12}")
_EXPIRED = ".expired-"
_REPORT = "report.json"
_DAY = 86_400.0
_AT_WORK = 24 * 3_600.0
"""Seconds. Who has written nothing for so long is not at work any more: the longest task may take 6 hours."""
_SHOWN = 10


@dataclass(frozen=True)
class _Plan:
    folder: Path
    written: float
    """When the newest of its files was, in seconds since 1970."""
    size: int
    """Bytes of all its files."""


@dataclass
class _Run:
    """A folder in which a plan or a report was found."""

    folder: Path
    plans: list[_Plan] = field(default_factory=list)
    reported: float | None = None
    """When its report was written."""


def run(settings: Settings, is_active: IsActive, now: datetime | None = None) -> dict[str, int]:
    """Remove what has expired by `now`, or else by the clock.

    A plan expires FEATURES_KEEP_DAYS after its newest file was written; while all of them together exceed
    FEATURES_KEEP_BYTES the oldest goes, too. Plans of active runs stay. So does one that no report names,
    for a day after it was last written to: nobody has finished it, and of a run without Airflow nothing else
    tells. Reports expire after FEATURES_KEEP_REPORTS_DAYS; a file that was not finished or was moved aside as
    damaged, a day after that.

    `is_active` is asked only about runs whose plan would go otherwise, right before it goes.

    Returns:
        Plans `removed`, `kept` and, among these, `active` ones that were to go, each with its `…_bytes`;
        `reports` and `left_overs` removed.

    Raises:
        ServiceUnavailableError: something could not be removed; all the rest is done.
    """
    return _Housekeeper(settings, is_active, (now or datetime.now(UTC)).timestamp()).clean()


class _Housekeeper:
    def __init__(self, settings: Settings, is_active: IsActive, now: float) -> None:
        self._settings = settings
        self._is_active = is_active
        self._now = now
        self._left_overs = 0
        self._failed: list[str] = []

    def clean(self) -> dict[str, int]:
        data_dir = self._settings.data_dir
        try:
            dags = _folders(data_dir)
        except OSError as error:
            raise ServiceUnavailableError(f"{data_dir} cannot be read: {error.strerror}.") from None
        runs = [
            run for dag in dags for folder in self._of(_folders, dag) for run in self._of(self._look, folder)
        ]
        done = self._expire_plans([plan for run in runs for plan in run.plans])
        done["reports"] = self._expire_reports(runs)
        done["left_overs"] = self._left_overs
        for run in runs:
            with suppress(OSError):  # which is how a folder stays that is not empty
                run.folder.rmdir()
                run.folder.parent.rmdir()
        log.info("Housekeeping in %s: %s", data_dir, done)
        if self._failed:
            more = f" and {len(self._failed) - _SHOWN} more" if len(self._failed) > _SHOWN else ""
            raise ServiceUnavailableError(
                f"Expired, but cannot be removed: {'; '.join(self._failed[:_SHOWN])}{more}. "
                f"Give this user the rights to that, or remove it by hand. All the rest is done: {done}"
            )
        return done

    def _of(self, look: Callable[[Path], list[T]], folder: Path) -> list[T]:
        """What `look` finds in a folder that need not be ours."""
        try:
            return look(folder)
        except PermissionError:
            return []  # we can look into what we wrote
        except OSError as error:
            self._note(folder, error)
            return []

    def _look(self, folder: Path) -> list[_Run]:
        """What a run has left in `folder`, less what was abandoned there; [] if it is no run's folder."""
        run, ours = _Run(folder), False
        left_over: list[Path] = []
        for entry in _entries(folder):
            path = folder / entry.name
            if _PLAN.fullmatch(entry.name.removeprefix(_EXPIRED)) and entry.is_dir(follow_symlinks=False):
                ours = True
                if entry.name.startswith(_EXPIRED):
                    left_over.append(path)  # of a housekeeping that was stopped
                elif plan := self._measured(path):
                    run.plans.append(plan)
            elif entry.name == _REPORT and entry.is_file(follow_symlinks=False):
                ours = True
                run.reported = entry.stat(follow_symlinks=False).st_mtime
            elif self._abandoned(entry):
                left_over.append(path)
        if ours:
            self._left_overs += sum(map(self._remove, left_over))
        return [run] if ours else []

    def _measured(self, folder: Path) -> _Plan | None:
        """A plan's size and age, less what was abandoned in it; None if it cannot be looked at."""
        written, size = 0.0, 0
        try:
            for entry in _files(folder):
                if self._abandoned(entry):
                    self._left_overs += self._remove(Path(entry))
                elif status := _status(entry):
                    written = max(written, status.st_mtime)
                    size += status.st_size
            return _Plan(folder, written or folder.stat().st_mtime, size)
        except FileNotFoundError:
            return None  # another attempt of ours was quicker
        except OSError as error:
            self._note(folder, error)
            return None

    def _abandoned(self, entry: "os.DirEntry[str]") -> bool:
        if not files.is_left_over(entry.name):
            return False
        status = _status(entry)
        # Not the time of writing, which stays when a damaged file is moved aside.
        return status is not None and status.st_ctime < self._now - _AT_WORK

    def _expire_plans(self, plans: Sequence[_Plan]) -> dict[str, int]:
        oldest = self._now - self._settings.keep_days * _DAY
        size = sum(plan.size for plan in plans)
        removed, active = set(), set()
        for plan in sorted(plans, key=lambda plan: plan.written):
            if plan.written >= oldest and size <= self._settings.keep_bytes:
                break
            if self._at_work_on(plan):
                active.add(plan)
            elif self._expire(plan):
                removed.add(plan)
                size -= plan.size
        done: dict[str, int] = {}
        for what, which in (("removed", removed), ("kept", set(plans) - removed), ("active", active)):
            done |= {what: len(which), f"{what}_bytes": sum(plan.size for plan in which)}
        return done

    def _at_work_on(self, plan: _Plan) -> bool:
        run = plan.folder.parent
        if plan.written >= self._now - _AT_WORK and _read(run / _REPORT).get("plan") != plan.folder.name:
            return True
        return self._is_active(run.parent.name, run.name)

    def _expire(self, plan: _Plan) -> bool:
        expired = plan.folder.with_name(_EXPIRED + plan.folder.name)
        try:
            plan.folder.rename(expired)
        except FileNotFoundError:
            return True  # another attempt of ours was quicker
        except OSError as error:
            self._note(plan.folder, error)
            return False
        return self._remove(expired)

    def _expire_reports(self, runs: Sequence[_Run]) -> int:
        oldest = self._now - self._settings.keep_reports_days * _DAY
        return sum(
            self._remove(run.folder / _REPORT)
            for run in runs
            if run.reported is not None and run.reported < oldest and _is_own_report(run.folder)
        )

    def _remove(self, path: Path) -> bool:
        """Remove a file, or a folder with all that is in it, and note what cannot go."""
        errors: list[OSError] = []
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, onerror=lambda *failed: errors.append(failed[2][1]))
        else:
            try:
                path.unlink()
            except OSError as error:
                errors.append(error)
        errors = [error for error in errors if not isinstance(error, FileNotFoundError)]
        if errors:
            self._note(path, errors[0])
        return not errors

    def _note(self, path: Path, error: OSError) -> None:
        self._failed.append(f"{path} ({error.strerror or error})")


def _entries(folder: Path) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _folders(folder: Path) -> list[Path]:
    return [folder / entry.name for entry in _entries(folder) if entry.is_dir(follow_symlinks=False)]


def _files(folder: Path) -> "Iterator[os.DirEntry[str]]":
    """All below a folder but the folders; a damaged folder that was moved aside counts as a file."""
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False) and not files.is_left_over(entry.name):
            yield from _files(folder / entry.name)
        else:
            yield entry


def _status(entry: "os.DirEntry[str]") -> os.stat_result | None:
    """None if it has gone since it was listed, as a file being written does when it is finished."""
    try:
        return entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None


def _read(report: Path) -> dict[str, Any]:
    try:
        value = files.read_json(report)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_own_report(run: Path) -> bool:
    """Whether the report in this folder is a run's, rather than something else of that name."""
    value = _read(run / _REPORT)
    return (value.get("dag"), value.get("run")) == (run.parent.name, run.name)
