"""What Airflow costs: a backfill by its scheduler against the same stages as a plain program, in pairs.

Airflow's time is that of the run, from the scheduler's start of it to its end; the plain program's is that
of the whole process, Python's start included. Airflow is not running while the plain program is. Its
scheduler rests for a second between two looks at the database, which is Airflow's default and that of
docker-compose.yml; the local stack's rests for less, for the sake of people who watch short runs.

The stages' times are from the reports, the tasks of all chunks added up. In Airflow these overlap, and an
extract that waits for its turn at the device counts its wait.
"""

import shutil
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import Figure
from benchmarks.volume import CATEGORY, VolumeShop, volume_shop
from local_stack.airflow import Airflow
from tasks import files
from tasks.errors import RunFailedError
from tasks.inference.model import load
from tasks.settings import Settings

ITEMS = 5_000
BACKFILL = "category_backfill"
SCHEDULER = {"AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "1"}

Run = tuple[float, dict[str, Any]]
"""Seconds and the report."""


def measure(photos: Path, rounds: int) -> list[Figure]:
    """Backfill all items both ways, `rounds` times, each time into a fresh index.

    Raises:
        FeatureIndexError: a run failed, or did not index every item.
    """
    with volume_shop(photos) as shop:
        # The first run with a model has to learn its digest and to freeze its graph.
        load(Settings.load())
        ways: dict[str, Callable[[str], Run]] = {
            "plain program": shop.run,
            "Airflow": lambda name: _airflow(shop, name),
        }
        runs: dict[str, list[Run]] = {way: [] for way in ways}
        for number in range(rounds):
            # Neither way is always first, since machines get warm and caches fill.
            for way in list(ways)[:: -1 if number % 2 else 1]:
                print(f"round {number + 1} of {rounds}, {way} ...", end=" ", file=sys.stderr, flush=True)
                shop.stock([shop.url(item) for item in range(ITEMS)])
                seconds, report = ways[way](f"round-{number + 1}")
                print(f"{seconds:.1f} s", file=sys.stderr, flush=True)
                if report["counts"] != {"indexed": ITEMS}:
                    raise RunFailedError(
                        f"The {way} was to index {ITEMS} items and reports {report['counts']}: the times "
                        "cannot be compared."
                    )
                runs[way].append((seconds, report))

    times = {way: [seconds for seconds, _ in of_way] for way, of_way in runs.items()}
    pairs = list(zip(times["plain program"], times["Airflow"], strict=True))
    figures = [Figure(f"{way}, median of {rounds}", median(times[way]), "s") for way in ways]
    figures.append(Figure("Airflow / plain program, median", median(a / p for p, a in pairs), at_most=1.10))
    figures.append(Figure("items", ITEMS))
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


def _airflow(shop: VolumeShop, name: str) -> Run:
    airflow = Airflow.start(shop.folder / "airflow", shop_env={**shop.environment, **SCHEDULER})
    try:
        airflow.unpause(BACKFILL)
        run_id = airflow.trigger(BACKFILL, run_id=name, conf={"category_ids": [CATEGORY]})
        state = airflow.wait(BACKFILL, run_id, every=10)  # seldom, since it takes the time that is measured
        run = airflow._call("GET", f"/api/v2/dags/{BACKFILL}/dagRuns/{run_id}")
    finally:
        airflow.stop()
    folder = shop.folder / "data" / BACKFILL / run_id
    report = files.read_json(folder / "report.json")
    if state != "success":
        raise RunFailedError(f"Airflow's run failed: {'; '.join(report['reasons'])}.")
    shutil.rmtree(folder / report["plan"])
    start, end = (datetime.fromisoformat(run[name]) for name in ("start_date", "end_date"))
    return (end - start).total_seconds(), report
