"""`make up` and `make down`: the same shop as the demo's, left running behind Airflow's UI."""

import argparse
import os
import signal
import sys
from pathlib import Path

from local_stack import stack
from local_stack.demo import BACKFILL, NIGHTLY
from local_stack.stack import Stack
from tasks.errors import ConfigurationError, FeatureIndexError

AIRFLOW_PORT = 8080


def main() -> int:
    """The command; 0 when it did what was asked."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if arguments.down:
            down()
        else:
            up(arguments.images)
    except FeatureIndexError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; what had been started has ended.", file=sys.stderr)
        return 130
    return 0


def up(images: Path | None) -> None:
    """Start the shop, leave it running, and say where it is."""
    running = Stack.start(images, say=print, stays=True, airflow_port=_airflow_port())
    for dag_id in (NIGHTLY, BACKFILL):
        running.airflow.unpause(dag_id)
    print(
        f"""
Airflow        {running.airflow.url}
  log in as    {running.airflow.username}
  password     {running.airflow.password}
Elasticsearch  {running.search_url}, index {running.settings.index}
Reports        {running.settings.data_dir}/<dag>/<run>/report.json

The nightly run has started by itself. Press Trigger on {BACKFILL} to see its form.
`bin/airflow` talks to this Airflow; `make down` ends it all."""
    )


def down() -> None:
    """End every shop that runs."""
    stopped = [folder.name for folder in stack.running_shops() if stack.stop(folder)]
    print(f"Ended: {', '.join(stopped)}." if stopped else "Nothing was running.")


def _airflow_port() -> int:
    value = os.environ.get("AIRFLOW_PORT", str(AIRFLOW_PORT))
    if not value.isdigit() or not 0 < int(value) < 65536:
        raise ConfigurationError(f"AIRFLOW_PORT={value!r} is not a port; use a number from 1 to 65535.")
    return int(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make up", description=__doc__)
    parser.add_argument(
        "--images", type=Path, help="a folder with items.csv and its pictures, instead of rendered ones"
    )
    parser.add_argument("--down", action="store_true", help="end what runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
