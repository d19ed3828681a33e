"""Run reports: where they lie, and what the recent ones let us expect of the next run."""

import itertools
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks import files
from tasks.runs import Request
from tasks.settings import Settings

STAGES = ("download", "extract", "index")

_RECENT = 20
_SHOWN_FAILURES = 5


def path(request: Request, settings: Settings) -> Path:
    """Where a run's report is."""
    return request.folder(settings.data_dir) / "report.json"


def recent(settings: Settings) -> Iterator[dict[str, Any]]:
    """All DAGs' reports, newest first; one that cannot be read, or is removed by now, is passed over."""
    found = []
    for report in settings.data_dir.glob("*/*/report.json"):
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


def described(report: dict[str, Any]) -> str:
    """A report in a few lines for a terminal."""
    lines = [f"planned   {report['planned']}"]
    lines += [f"  {status:<22}{count:>8}" for status, count in report["counts"].items()]
    for failure in report.get("failures", [])[:_SHOWN_FAILURES]:
        reason = f": {failure['reason']}" if failure["reason"] else ""
        lines.append(f"    {failure['item_id']}  {failure['status']}{reason}")
    for stage, measured in report.get("stages", {}).items():
        if measured["items"] and measured["items_per_second"]:
            what = "images/s" if stage in ("download", "extract") else "items/s"
            lines.append(
                f"{stage:<10}{measured['seconds']:>8.1f} s {measured['items_per_second']:>10.1f} {what}"
            )
    if bottleneck := _bottleneck(report.get("stages", {})):
        lines.append(bottleneck)
    if expected := report.get("expected"):
        if expected["from_runs"]:
            lines.append(
                f"expected  {expected['bytes'] / 1e6:.1f} MB, {expected['seconds']:.0f} s "
                f"(as in {expected['from_runs']} recent runs)"
            )
        else:
            lines.append("expected  unknown: no recent run to go by")
    return "\n".join(lines)


def _bottleneck(stages: dict[str, Any]) -> str | None:
    """Of the stage that took longest, what most of its time went by with; None where no stage has told."""
    split = {name: stage["split"] for name, stage in stages.items() if stage.get("split")}
    if not split:
        return None
    longest = max(split, key=lambda name: stages[name]["seconds"])
    part = max(split[longest], key=split[longest].__getitem__)
    return f"bottleneck: {longest}, {part} {split[longest][part]:.1f} s"
