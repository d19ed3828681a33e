"""What Airflow costs: a backfill by its scheduler against the same stages as a plain program, in pairs.

Airflow's time is that of the run, from the scheduler's start of it to its end; the plain program's is that
of the whole process, Python's start included. Airflow is not running while the plain program is.

The stages' times are from the reports, the tasks of all chunks added up. In Airflow these overlap, and an
extract that waits for its turn at the device counts its wait.
"""

import subprocess
import sys
import time
from datetime import datetime
from statistics import median
from typing import Any

from benchmarks.figures import Figure
from benchmarks.shop import BenchmarkShop
from local_stack.airflow import Airflow
from tasks import files
from tasks.__main__ import DAG as PLAIN
from tasks.errors import RunFailedError
from tasks.model import feature_version
from tasks.settings import REPOSITORY, Settings

BACKFILL = "category_backfill"

Run = tuple[float, dict[str, Any]]
"""Seconds and the report."""


def measure(shop: BenchmarkShop, rounds: int) -> list[Figure]:
    """Backfill every category both ways, `rounds` times, each time into a fresh index.

    Raises:
        FeatureIndexError: a run failed, or did not index every item.
    """
    # The first run with a model has to learn its digest, which takes one of the two ten seconds more.
    feature_version(Settings.load())
    ways = {"plain program": _plain, "Airflow": _airflow}
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    for number in range(rounds):
        # Neither way is always first, since machines get warm and caches fill.
        for way in list(ways)[:: -1 if number % 2 else 1]:
            print(f"round {number + 1} of {rounds}, {way} ...", end=" ", file=sys.stderr, flush=True)
            documents = shop.renew_index()
            seconds, report = ways[way](shop, f"round-{number + 1}")
            print(f"{seconds:.1f} s", file=sys.stderr, flush=True)
            if report["counts"] != {"indexed": documents}:
                raise RunFailedError(
                    f"The {way} was to index {documents} items and reports {report['counts']}: the times "
                    "cannot be compared. Mend the pictures that failed, or leave them out."
                )
            runs[way].append((seconds, report))

    times = {way: [seconds for seconds, _ in of_way] for way, of_way in runs.items()}
    pairs = list(zip(times["plain program"], times["Airflow"], strict=True))
    figures = [Figure(f"{way}, median of {rounds}", median(times[way]), "s") for way in ways]
    figures.append(Figure("Airflow / plain program, median", median(a / p for p, a in pairs), at_most=1.25))
    figures += [
        Figure(f"round {number}: {airflow:.1f} s / {plain:.1f} s", airflow / plain)
        for number, (plain, airflow) in enumerate(pairs, start=1)
    ]
    for way, of_way in runs.items():
        figures += [
            Figure(
                f"{way}: {stage}, tasks added up",
                median(report["stages"][stage]["seconds"] for _, report in of_way),
                "s",
            )
            for stage in of_way[0][1]["stages"]
        ]
    return figures


def _plain(shop: BenchmarkShop, name: str) -> Run:
    categories = [argument for category_id in shop.category_ids for argument in ("--category", category_id)]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tasks", "run", "--run", name, *categories],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
    )
    seconds = time.monotonic() - started
    if done.returncode != 0:
        raise RunFailedError(f"The plain program failed.\n{done.stdout}")
    return seconds, files.read_json(shop.data_dir / PLAIN / name / "report.json")


def _airflow(shop: BenchmarkShop, name: str) -> Run:
    airflow = Airflow.start(shop.folder / "airflow", shop_env=shop.environment)
    try:
        airflow.unpause(BACKFILL)
        conf = {"category_ids": list(shop.category_ids)}
        run_id = airflow.trigger(BACKFILL, run_id=name, conf=conf)
        state = airflow.wait(BACKFILL, run_id)
        run = airflow._call("GET", f"/api/v2/dags/{BACKFILL}/dagRuns/{run_id}")
    finally:
        airflow.stop()
    report = files.read_json(shop.data_dir / BACKFILL / run_id / "report.json")
    if state != "success":
        raise RunFailedError(f"Airflow's run failed: {'; '.join(report['reasons'])}.")
    start, end = (datetime.fromisoformat(run[name]) for name in ("start_date", "end_date"))
    return (end - start).total_seconds(), report
