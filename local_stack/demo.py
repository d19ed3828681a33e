"""`make demo`: one night and one category through Airflow's scheduler, and a picture of what came of it."""

import argparse
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from local_stack import stack
from local_stack.airflow import Progress
from local_stack.contact_sheet import contact_sheet
from local_stack.process import interrupt_when_told_to_end
from local_stack.stack import Stack
from tasks import files
from tasks.errors import FeatureIndexError, RunFailedError
from tasks.runs import reports
from tasks.search.document_fields import DocumentFields
from tasks.search.queries import ItemQueries
from tasks.shop.connections import SEARCH, Connection

NIGHTLY = "nightly_feature_index"
BACKFILL = "category_backfill"

_SHOWN = {
    "plan": "plan",
    "features.download": "download",
    "features.extract": "extract",
    "features.index": "index",
    "summarise": "summarise",
}


def main() -> int:
    """The command; 0 when both runs succeeded."""
    arguments = _parser().parse_args()
    interrupt_when_told_to_end()
    started = time.monotonic()
    try:
        demonstrate(arguments.images)
    except FeatureIndexError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; everything it started has ended. `make demo` goes on from here.", file=sys.stderr)
        return 130
    print(f"\nAll of it took {time.monotonic() - started:.0f} s. Look around in the UI with `make up`.")
    return 0


def demonstrate(images: Path | None) -> None:
    """Run the demo and end everything it started.

    Raises:
        FeatureIndexError: a server did not come up, or a run failed.
    """
    running = Stack.start(
        images,
        say=_say,
        stays=False,
        # Only the runs we start; `make up` lets the schedule make its own.
        airflow_settings={"AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False"},
    )
    try:
        _show(running)
    finally:
        _say("Stopping the servers ...")
        stack.stop(running.folder)


def _show(running: Stack) -> None:
    shop = running.shop
    for dag_id in (NIGHTLY, BACKFILL):
        running.airflow.unpause(dag_id)
    if shop is None:
        _run(running, NIGHTLY, "The last complete night", {})
        _say("The backfill and the contact sheet need the demo's own shop; they are left out.")
        return
    night = shop.newest_night()
    zone = running.settings.time_zone
    day = night[0].astimezone(zone).date()
    report = _run(running, NIGHTLY, f"The night of {day} ({zone})", {}, interval=night)
    category_id = shop.first_category()
    name = shop.category_names().get(category_id, "")
    _run(running, BACKFILL, f"Backfill of category {category_id} {name}", {"category_ids": [category_id]})
    path = contact_sheet(
        ItemQueries(
            Connection.from_environment(SEARCH), running.settings.index, DocumentFields.of(running.settings)
        ),
        report["feature_version"],
        shop,
        running.settings.data_dir / "contact_sheet.png",
    )
    _say(f"\nContact sheet: {path}")


def _run(
    running: Stack,
    dag_id: str,
    title: str,
    conf: dict[str, Any],
    interval: tuple[datetime, datetime] | None = None,
) -> dict[str, Any]:
    print(f"\n{title}: {dag_id}")
    run_id = running.airflow.trigger(dag_id, conf=conf, data_interval=interval)
    shown = _ProgressLine()
    state = running.airflow.wait(dag_id, run_id, shown.update)
    shown.end()
    path = running.settings.data_dir / dag_id / run_id / "report.json"
    if not path.exists():
        raise RunFailedError(f"{dag_id} left no report; its logs are in {running.airflow.home / 'logs'}.")
    report: dict[str, Any] = files.read_json(path)
    print(reports.described(report))
    print(f"report    {path}")
    if state != "success":
        raise RunFailedError(f"{dag_id} failed: {'; '.join(report['reasons'])}")
    return report


class _ProgressLine:
    """One line that follows the run: at a terminal rewritten, in a log file a line a change."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._last = ""

    def update(self, progress: Progress) -> None:
        stages = []
        for task_id, name in _SHOWN.items():
            states = progress.get(task_id)
            if states:
                ended = sum(states[state] for state in ("success", "failed", "upstream_failed", "skipped"))
                going = " ..." if states["running"] else ""
                stages.append(f"{name} {ended}/{sum(states.values())}{going}")
        line = "  ".join(stages)
        if sys.stdout.isatty():
            print(f"\r\033[K  {time.monotonic() - self._started:4.0f} s  {line}", end="", flush=True)
        elif line != self._last:
            print(f"  {time.monotonic() - self._started:4.0f} s  {line}", flush=True)
        self._last = line

    def end(self) -> None:
        if sys.stdout.isatty():
            print()


def _say(line: str) -> None:
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument(
        "--images", type=Path, help="a folder with items.csv and its pictures, instead of rendered ones"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
