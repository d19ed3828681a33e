"""One stage of a run over all its chunks, in a process of its own: python -m benchmarks.one_stage STAGE PLAN.

PLAN is the folder that the stage `plan` prints. It stays in one process for all chunks, where Airflow gives
each a new one, so that whatever a stage does not give back shows.
"""

import sys
from pathlib import Path

from benchmarks.volume import CATEGORY
from tasks.runs.run import Plan, Request
from tasks.settings import Settings
from tasks.shop.connections import Services
from tasks.shop.ledger import Ledger
from tasks.stages import download, extract, index, plan, summarise


def main() -> None:
    stage, given = sys.argv[1:]
    settings, services = Settings.load(), Services.from_environment()
    if stage == "plan":
        request = Request("benchmark", given, category_ids=(CATEGORY,))
        print(plan.run(request, settings, services).folder)
        return
    planned = Plan.load(Path(given))
    if stage == "summarise":
        counts = summarise.run(planned, settings, Ledger(services.ledger, settings))["counts"]
        print(counts.get("indexed", 0))
        return
    for chunk in planned.chunks:
        if stage == "index":
            index.run(chunk, settings, services)
        else:
            {"download": download, "extract": extract}[stage].run(chunk, settings)


if __name__ == "__main__":
    main()
