"""Run reports: where they lie, and what the recent ones let us expect of the next run."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from tasks import files
from tasks.runs.category_names import CategoryNames
from tasks.runs.labels import named_host
from tasks.runs.nights import last_due
from tasks.runs.run import Request
from tasks.settings import Settings

STAGES = ("download", "extract", "index")

_RECENT = 20
_SHOWN_FAILURES = 5


def path(request: Request, settings: Settings) -> Path:
    """Where a run's report is."""
    return request.folder(settings.data_dir) / "report.json"


def read(request: Request, settings: Settings) -> dict[str, Any] | None:
    """A run's report; None where there is none yet, or it cannot be read."""
    with suppress(OSError, ValueError):
        report: dict[str, Any] = files.read_json(path(request, settings))
        return report
    return None


def recent(settings: Settings, dag: str = "*") -> Iterator[dict[str, Any]]:
    """The reports of one DAG, or of all, newest first; one that cannot be read, or is removed by now, is
    passed over."""
    found = []
    for report in settings.data_dir.glob(f"{dag}/*/report.json"):
        with suppress(OSError):
            found.append((report.stat().st_mtime, report))
    for _, report in sorted(found, reverse=True):
        with suppress(OSError, ValueError):
            yield files.read_json(report)


def expectation(settings: Settings, to_do: int) -> dict[str, Any]:
    """The traffic and time that `to_do` items will take, going by the recent runs that did any work.

    Returns:
        bytes, seconds and the number of runs it is taken from; bytes and seconds are null without any.
    """
    # A retry has mostly what failed, and says little of other runs.
    worked = (
        report
        for report in recent(settings)
        if report.get("bytes") and report["counts"].get("indexed") and not report.get("retry")
    )
    runs = list(itertools.islice(worked, _RECENT))
    items = sum(report["stages"]["download"]["items"] for report in runs)
    if not items:
        return {"bytes": None, "seconds": None, "from_runs": 0}
    return {
        "bytes": round(to_do * sum(report["bytes"] for report in runs) / items),
        "seconds": round(to_do * sum(report["seconds"] for report in runs) / items, 1),
        "from_runs": len(runs),
    }


def overdue_run(nights: Sequence[dict[str, Any]], now: datetime, settings: Settings) -> str | None:
    """What is wrong with the nightly runs as a whole, in a sentence; None where the last one is on time.

    Args:
        nights: the nightly DAG's reports.
    """
    ends = [
        datetime.fromisoformat(report["interval"]["end"])
        for report in nights
        if report["state"] == "success" and report["interval"] and report["interval"]["end"]
    ]
    if not ends:
        return "No nightly run has succeeded yet. Unpause nightly_feature_index, or check why it fails."
    covered = max(ends)
    if covered < last_due(now - timedelta(hours=settings.nightly_deadline_hours), settings):
        return (
            "The nightly run is overdue: the last successful one covers changes until "
            f"{covered.astimezone(UTC):%Y-%m-%d %H:%M} UTC. Check whether nightly_feature_index is paused or "
            "fails."
        )
    return None


class Gap(NamedTuple):
    """Why documents have no current feature: the parts add up to them."""

    documents: int
    on_record: int | None
    """A failure on record explains it; None where that was not asked for, and `to_come` has them, too."""
    left_catalogue: int
    """Their items were in the catalogue no more when the last night was planned."""
    to_come: int
    """They are new, changed or lost since, or left over: the next night has to do with them."""


def gap(documents: int, on_record: int | None, nights: Sequence[dict[str, Any]]) -> Gap:
    """Explain that so many documents have no current feature.

    Args:
        on_record: so many of them have a failure on record, where that is known.
        nights: the nightly DAG's reports, newest first.
    """
    # Of all that was counted before, some documents may have gone, or got their feature, since.
    explained = min(on_record or 0, documents)
    known = (without["left_catalogue"] for report in nights if (without := report.get("without_feature")))
    left = min(next(known, 0), documents - explained)
    return Gap(documents, None if on_record is None else explained, left, documents - explained - left)


class Bottleneck(NamedTuple):
    """What took most of a run's time."""

    stage: str
    part: str | None
    """Of the stage's time breakdown; None where it has none."""
    seconds: float
    """Of the part, else of the stage."""


def bottleneck(report: dict[str, Any]) -> Bottleneck | None:
    """The stage that took most of a run's work, and in it the longest part; None where nothing was done."""
    stages = report.get("stages", {})
    stage = max(stages, key=lambda name: stages[name]["seconds"], default=None)
    if stage is None or not stages[stage]["seconds"]:
        return None
    breakdown: dict[str, float] = stages[stage].get("time_breakdown", {})
    part = max(breakdown, key=breakdown.__getitem__, default=None)
    return Bottleneck(stage, part, breakdown[part] if part else stages[stage]["seconds"])


@dataclass(frozen=True, slots=True)
class Group:
    """Items that a report names, alike in status, host and reason."""

    status: str
    host: str
    reason: str
    items: tuple[dict[str, Any], ...]


def grouped_failures(report: dict[str, Any]) -> list[Group]:
    """The items without a feature that a report names, those alike together, the largest group first."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for item in report.get("failures", []):
        key = (item["status"], named_host(item["img_url"]), item["reason"] or "")
        groups.setdefault(key, []).append(item)
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return [Group(*key, tuple(items)) for key, items in ordered]


def named_categories(report: dict[str, Any]) -> list[str]:
    """The categories that a run was asked for, as people know them."""
    asked = report.get("category_ids") or (report.get("retry") or {}).get("category_ids") or []
    return [CategoryNames(report.get("category_names")).of(category_id) for category_id in asked]


def _categories(report: dict[str, Any]) -> list[str]:
    # Who asked knows the ids.
    return [f"categories: {', '.join(named_categories(report))}"] if report.get("category_names") else []


def described(report: dict[str, Any]) -> str:
    """A report in a few lines for a terminal."""
    lines = [*_categories(report), f"planned   {report['planned']}"]
    lines += [f"  {status:<22}{count:>8}" for status, count in report["counts"].items()]
    if len(origins := report.get("origins", {})) > 1:
        lines.append(", ".join(f"{origin} {of_it['planned']}" for origin, of_it in origins.items()))
    if without := report.get("without_feature"):
        parts = ", ".join(f"{name} {count}" for name, count in without.items() if name != "documents")
        lines.append(f"documents without a feature: {without['documents']} ({parts})")
    for failure in report.get("failures", [])[:_SHOWN_FAILURES]:
        reason = f": {failure['reason']}" if failure["reason"] else ""
        lines.append(f"    {failure['item_id']}  {failure['status']}{reason}")
    if incomplete := report.get("incomplete_pictures"):
        lines.append(f"pictures without their last rows, computed as browsers show them: {incomplete}")
    for stage, measured in report.get("stages", {}).items():
        if measured["items"] and measured["items_per_second"]:
            what = "images/s" if stage in ("download", "extract") else "items/s"
            lines.append(
                f"{stage:<10}{measured['seconds']:>8.1f} s {measured['items_per_second']:>10.1f} {what}"
            )
    if (longest := bottleneck(report)) and longest.part:
        lines.append(f"bottleneck: {longest.stage}, {longest.part} {longest.seconds:.1f} s")
    if expected := report.get("expected"):
        if expected["from_runs"]:
            lines.append(
                f"expected  {expected['bytes'] / 1e6:.1f} MB, {expected['seconds']:.0f} s "
                f"(as in {expected['from_runs']} recent runs)"
            )
        else:
            lines.append("expected  unknown: no recent run to estimate from")
    return "\n".join(lines)
