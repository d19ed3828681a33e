"""One attempt at one task in a process of its own, as Airflow gives it one.

    python -m tests.torture.attempt plan '{"dag": …}'    prints the plan's folder at the end
    python -m tests.torture.attempt extract FOLDER 2     a stage of a chunk
    python -m tests.torture.attempt summarise FOLDER

What a stage imports is imported before it says BEGUN: a kill after that hits the stage at work.
"""

import importlib
import json
import sys
from pathlib import Path

from tasks.runs.run import Chunk, Plan, Request
from tasks.settings import Settings
from tasks.shop.connections import Services
from tasks.shop.ledger import Ledger
from tasks.stages import download, extract, index, plan, summarise

BEGUN = "begun"

_HEAVY = {"plan": ["elasticsearch"], "extract": ["tensorflow", "tensorflow_hub"], "index": ["elasticsearch"]}


def main(stage: str, what: str, number: str = "0") -> None:
    """Do one stage."""
    settings, services = Settings.load(), Services.from_environment()
    for module in _HEAVY.get(stage, []):
        importlib.import_module(module)
    print(BEGUN, flush=True)
    if stage == "plan":
        print(plan.run(Request.from_json(json.loads(what)), settings, services).folder)
        return
    planned = Plan.load(Path(what))
    chunk = Chunk(planned, int(number))
    if stage == "download":
        download.run(chunk, settings)
    elif stage == "extract":
        extract.run(chunk, settings)
    elif stage == "index":
        index.run(chunk, settings, services)
    else:
        summarise.run(planned, settings, Ledger(services.ledger, settings))


if __name__ == "__main__":
    main(*sys.argv[1:])
