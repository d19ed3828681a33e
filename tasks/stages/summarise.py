"""Stage 5: count every planned item by status, write the report and the ledger, and fail a run that must
fail."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from tasks import files
from tasks.errors import RunFailedError
from tasks.runs import packs, reports
from tasks.runs.category_names import CategoryNames
from tasks.runs.run import Chunk, Plan, Request
from tasks.settings import Settings
from tasks.shop.ledger import ItemOutcome, Ledger
from tasks.statuses import FAILURES, Status

log = logging.getLogger(__name__)

_FIRST_FAILURES = 20
"""How many of the items that got no feature the report names; the counts cover all."""


def run(plan: Plan, settings: Settings, ledger: Ledger) -> dict[str, Any]:
    """Write the report of a planned run, record the ledger, and return the report.

    A retry that the schedule started and that had nothing to do leaves none.

    Raises:
        RunFailedError: an item is unfinished, or more failed than FEATURES_FAILURE_BUDGET allows. The
            report and the ledger are written.
        ServiceUnavailableError: the data dir or the ledger cannot be read or written.
    """
    report = _begin(plan.request, settings) | {
        "plan": plan.folder.name,
        "feature_version": plan.feature_version,
        "planned": plan.planned,
        "started_at": plan.created_at.isoformat(),
        "notices": list(plan.notices),
        "without_feature": dict(plan.without_feature) or None,
    }
    if plan.request.dry_run:
        report |= {
            "counts": {"current": plan.current, "to_do": plan.planned - plan.current},
            "origins": {
                origin: {
                    "planned": counts["planned"],
                    "counts": {"current": counts["current"], "to_do": counts["planned"] - counts["current"]},
                }
                for origin, counts in plan.origins.items()
            },
            "expected": dict(plan.preview),
        }
        _write(report, plan.request, settings, [])
        return report

    counts = Counter({Status.CURRENT: plan.current})
    by_origin = {
        origin: Counter({Status.CURRENT: planned["current"]}) for origin, planned in plan.origins.items()
    }
    failures: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for outcome, origin in _outcomes(plan):
        counts[outcome.status] += 1
        if origin in by_origin:
            by_origin[origin][outcome.status] += 1
        into = failures if outcome.status in FAILURES else others
        if outcome.status is not Status.INDEXED and len(into) < _FIRST_FAILURES:
            into.append(_named(outcome))
    report |= {
        "counts": _by_status(counts),
        "origins": {
            origin: {"planned": counted.total(), "counts": _by_status(counted)}
            for origin, counted in by_origin.items()
        },
        "failures": (failures + others)[:_FIRST_FAILURES],
        **_measured(plan),
    }
    reasons = _reasons_to_fail(counts, plan, settings)
    # Before the ledger, which may not answer: the report is what a person looks for.
    if plan.planned or not _is_hourly(plan.request) or reports.path(plan.request, settings).exists():
        _write(report, plan.request, settings, reasons)
    resolved = (row["item_id"] for row in packs.rows(plan.resolved)) if plan.request.retry else ()
    ledger.record(plan, (outcome for outcome, _ in _outcomes(plan)), resolved, failed=bool(reasons))
    if reasons:
        raise _failed(reasons, plan.request, settings)
    return report


def run_without_plan(dag: str, run: str, settings: Settings, ledger: Ledger) -> NoReturn:
    """Write the report of a run whose planning failed, be it over what it was asked to do.

    Raises:
        RunFailedError: always, once the report is there and the ledger no longer says that the run, a night
            that ran before, succeeded.
        ServiceUnavailableError: the data dir or the ledger cannot be read or written.
    """
    request = Request(dag, run)
    report = _begin(request, settings) | {"planned": 0, "counts": {}, "failures": [], "notices": []}
    reasons = ["planning did not finish; its log says why"]
    _write(report, request, settings, reasons)
    ledger.uncover(dag, run)
    raise _failed(reasons, request, settings)


def _is_hourly(request: Request) -> bool:
    """Whether nobody asked for the run: a report of nothing each hour would only be in the way."""
    return request.retry is not None and request.scheduled


def _begin(request: Request, settings: Settings) -> dict[str, Any]:
    asked = request.category_ids or (request.retry.category_ids if request.retry else ())
    interval = request.interval or ((request.start, request.end) if request.of_times else None)
    return {
        "dag": request.dag,
        "run": request.run,
        "interval": {"start": _iso(interval[0]), "end": _iso(interval[1])} if interval else None,
        "category_ids": list(request.category_ids) or None,
        "category_names": CategoryNames.load(settings).among(asked) or None,
        "all_items": request.all_items,
        "retry": request.to_json()["retry"],
        "start": _iso(request.start),
        "end": _iso(request.end),
        "force": request.force,
        "dry_run": request.dry_run,
    }


def _write(report: dict[str, Any], request: Request, settings: Settings, reasons: list[str]) -> None:
    now = datetime.now(UTC)
    started = datetime.fromisoformat(report["started_at"]) if "started_at" in report else now
    report |= {
        "state": "failed" if reasons else "success",
        "reasons": reasons,
        "finished_at": now.isoformat(),
        "seconds": round((now - started).total_seconds(), 3),
    }
    path = reports.path(request, settings)
    files.write_json(path, report)
    log.info("Report: %s", path)


def _failed(reasons: list[str], request: Request, settings: Settings) -> RunFailedError:
    return RunFailedError(f"The run failed: {'; '.join(reasons)}. Report: {reports.path(request, settings)}")


def _by_status(counts: Counter[Status]) -> dict[str, int]:
    return {status.value: counts[status] for status in Status if counts[status]}


def _outcomes(plan: Plan) -> Iterator[tuple[ItemOutcome, str | None]]:
    """What became of every item to do, and its origin; unfinished where its chunk did not get to its end."""
    for chunk in plan.chunks:
        items = packs.slice_of(plan.items, chunk.start, chunk.stop)
        ends: Iterator[tuple[Status, str | None]]
        if chunk.outcomes.exists():
            # In the order of the items.
            ends = ((Status(row["status"]), row["reason"]) for row in packs.rows(chunk.outcomes))
        else:
            unfinished = Status.UNFINISHED, _how_far(chunk)
            ends = ((Status.INVALID_ROW, why) if (why := item["invalid"]) else unfinished for item in items)
        for item, (status, reason) in zip(items, ends, strict=True):
            outcome = ItemOutcome(
                item_id=item["item_id"],
                category_id=item["category_id"],
                img_url=item["img_url"],
                status=status,
                reason=reason,
            )
            yield outcome, item["origin"]


def _how_far(chunk: Chunk) -> str:
    stage = "extract" if chunk.features.exists() else "download" if chunk.pictures.exists() else "nothing"
    return f"chunk {chunk.number} ({chunk.label}) did not finish; done so far: {stage}"


def _named(outcome: ItemOutcome) -> dict[str, Any]:
    return {
        "item_id": outcome.item_id,
        "img_url": outcome.img_url,
        "status": outcome.status,
        "reason": outcome.reason,
    }


def _measured(plan: Plan) -> dict[str, Any]:
    """Bytes, precision and each stage's work over all chunks, from the packs' own statistics."""
    stages: dict[str, Any] = {"plan": _rate(plan.planned, plan.seconds) | _breakdown(plan.time_breakdown)}
    precisions, devices = set(), set()
    total_bytes = requests = incomplete = 0
    for stage, file in zip(reports.STAGES, ("pictures", "features", "outcomes"), strict=True):
        items, seconds = 0, 0.0
        waited: list[float] = []
        breakdown: Counter[str] = Counter()
        for chunk in plan.chunks:
            pack: Path = getattr(chunk, file)
            if pack.exists():
                statistics = packs.statistics(pack)
                items += chunk.stop - chunk.start
                seconds += statistics["seconds"]
                waited += [statistics["waited"]] if "waited" in statistics else []
                breakdown.update(statistics.get("time_breakdown", {}))
                total_bytes += statistics.get("bytes", 0)
                requests += statistics.get("requests", 0)
                incomplete += statistics.get("incomplete", 0)
                precisions.add(statistics.get("precision"))
                devices.add(statistics.get("device"))
        stages[stage] = _rate(items, seconds) | _breakdown(breakdown)
        if waited:  # for a device that another chunk had
            stages[stage]["waited_seconds"] = round(sum(waited), 3)
    return {
        "bytes": total_bytes,
        "requests": requests,
        "incomplete_pictures": incomplete,
        "chunks": len(plan.chunks),
        "precision": ", ".join(sorted(filter(None, precisions))) or None,
        "device": ", ".join(sorted(filter(None, devices))) or None,
        "stages": stages,
    }


def _rate(items: int, seconds: float) -> dict[str, Any]:
    """Items, seconds of work added up over the chunks, and items per second of one worker."""
    return {
        "items": items,
        "seconds": round(seconds, 3),
        "items_per_second": round(items / seconds, 2) if seconds else None,
    }


def _breakdown(seconds: Mapping[str, float]) -> dict[str, Any]:
    """Seconds by what they went by with, where that is known."""
    return {"time_breakdown": {name: round(value, 3) for name, value in seconds.items()}} if seconds else {}


def _reasons_to_fail(counts: Counter[Status], plan: Plan, settings: Settings) -> list[str]:
    reasons = []
    planned = plan.planned
    if unfinished := counts[Status.UNFINISHED]:
        reasons.append(
            f"{unfinished} of {planned} items are unfinished, because a task of their chunk failed"
        )
    failed = {status: counts[status] for status in FAILURES - {Status.UNFINISHED} if counts[status]}
    # A retry has only items that failed before: their share says nothing, and what is given up is listed.
    total = 0 if plan.request.retry else sum(failed.values())
    # The share, rounded once: budget * planned can come out below the whole number that it means.
    if total and total / planned > settings.failure_budget:
        by_reason = ", ".join(
            f"{count} {status}" for status, count in sorted(failed.items(), key=lambda f: -f[1])
        )
        reasons.append(
            f"{total} of {planned} items failed ({by_reason}), more than the budget of "
            f"{settings.failure_budget:.1%} (FEATURES_FAILURE_BUDGET)"
        )
    return reasons


def _iso(time: datetime | None) -> str | None:
    return time.isoformat() if time else None
