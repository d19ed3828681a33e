"""`make demo`: one night and a backfill through Airflow's scheduler, and pictures of what came of it."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from local_stack import stack
from local_stack.airflow import Progress
from local_stack.contact_sheet import contact_sheet, photo_sheet
from local_stack.process import interrupt_when_told_to_end
from local_stack.stack import Stack
from tasks import files
from tasks.errors import ConfigurationError, FeatureIndexError, RunFailedError
from tasks.runs import reports
from tasks.search.document_fields import DocumentFields
from tasks.search.queries import ItemQueries
from tasks.shop.connections import SEARCH, Connection
from tasks.space import fit
from tasks.stages import compact

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
        _say("The backfill and the contact sheets need the demo's own shop; they are left out.")
        return
    night = shop.newest_night()
    zone = running.settings.time_zone
    day = night[0].astimezone(zone).date()
    report = _run(running, NIGHTLY, f"The night of {day} ({zone})", {}, interval=night)
    category_ids, since = shop.most_items()
    title = f"Backfill of {len(category_ids)} categories, items since {since.astimezone(zone):%Y-%m-%d %H:%M}"
    _run(running, BACKFILL, title, backfill_conf(category_ids, since))
    settings, index = running.settings, queries(running)
    path = contact_sheet(index, report["feature_version"], shop, settings.data_dir / "contact_sheet.png")
    _say(f"\nContact sheet: {path}\n")
    learn(running, _say)
    try:
        path = photo_sheet(index, settings, shop, since, settings.data_dir / "contact_sheet_photos.png")
    except ConfigurationError as error:
        _say(f"No second contact sheet, of photos that are in no index. {error}")
    else:
        _say(f"\nContact sheet of photos that are in no index: {path}")


def backfill_conf(category_ids: Sequence[str], since: datetime) -> dict[str, Any]:
    """What a backfill of these categories is started with, of items registered since then."""
    return {"category_ids": list(category_ids), "registered_from": since.isoformat()}


def queries(running: Stack) -> ItemQueries:
    """The shop's index."""
    settings = running.settings
    return ItemQueries(Connection.from_environment(SEARCH), settings.index, DocumentFields.of(settings))


def learn(running: Stack, say: Callable[[str], None]) -> None:
    """Do what the DAGs feature_space and compact_vectors do, and say what came of it; too few items are no
    error here."""
    try:
        fit.take_snapshot(queries(running), running.settings)
        say(fit.described(fit.fit(running.settings)))
    except (ConfigurationError, RunFailedError) as error:
        say(f"No feature space was published. {error}")
    else:
        say(compact.described(compact.run(running.settings, Connection.from_environment(SEARCH))))


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
