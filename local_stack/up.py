"""`make up` and `make down`: the same shop as the demo's, left running behind Airflow's UI."""

import argparse
import sys
from pathlib import Path

from local_stack import stack
from local_stack.airflow import Airflow
from local_stack.demo import BACKFILL, NIGHTLY, backfill_conf, learn
from local_stack.process import interrupt_when_told_to_end, port_from_environment
from local_stack.stack import Stack
from tasks.errors import ConfigurationError, FeatureIndexError
from tasks.inference.model import identity
from tasks.search.client import address
from tasks.shop.connections import SEARCH, Connection
from tasks.space.published import published

AIRFLOW_PORT = 8080

RETRY = "retry_failed_images"
HOUSEKEEPING = "picture_features_housekeeping"
SPACE = "feature_space"
COMPACT = "compact_vectors"


def main() -> int:
    """The command; 0 when it did what was asked."""
    arguments = _parser().parse_args()
    interrupt_when_told_to_end()
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
    """Start the shop, leave it running, and say where it is; one that runs already is left as it is."""
    airflow = Airflow.running(stack.shop_folder(images) / "airflow")
    if airflow is None:
        port = port_from_environment("AIRFLOW_PORT", AIRFLOW_PORT)
        running = Stack.start(images, say=print, stays=True, airflow_port=port)
        airflow = running.airflow
        try:
            airflow.unpause(BACKFILL)
            _prepare_photos(running)
            for dag_id in (NIGHTLY, RETRY, HOUSEKEEPING, SPACE, COMPACT):
                airflow.unpause(dag_id)
        except BaseException:
            stack.stop(running.folder)
            raise
        print("\nThe nightly run starts by itself where a night is due, the hourly ones at their minute.")
    else:
        print("The shop runs already.")
        if stack.serve_again(stack.shop_folder(images), airflow.environment):
            print("Its inference process had ended and runs again.")
    variable = stack.SEARCH_VARIABLE
    search = Connection.parse(SEARCH, airflow.environment[variable], named=variable)
    print(
        f"""
Airflow        {airflow.url}
  log in as    {airflow.username}
  password     {airflow.password}
Elasticsearch  {address(search)}
API            {airflow.url}/feature-index/api
Reports        {airflow.environment["FEATURES_DATA_DIR"]}/<dag>/<run>/report.json

Press Trigger on {BACKFILL} to see its form. `bin/airflow` talks to this Airflow; `make down` ends it all."""
    )


def _prepare_photos(running: Stack) -> None:
    """Fill most of the stack's own shop and learn a feature space, which search by photo needs, unless one is
    published.
    """
    if running.shop is None:
        return
    try:
        published(running.settings, identity(running.settings))
    except ConfigurationError:
        print("Filling the index, and learning what search by photo needs ...")
        airflow = running.airflow
        airflow.wait(BACKFILL, airflow.trigger(BACKFILL, conf=backfill_conf(*running.shop.most_items())))
        learn(running, print)


def down() -> None:
    """End every shop that runs."""
    stopped = [folder.name for folder in stack.running_shops() if stack.stop(folder)]
    print(f"Ended: {', '.join(stopped)}." if stopped else "Nothing was running.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make up", description=__doc__)
    parser.add_argument(
        "--images", type=Path, help="a folder with items.csv and its pictures, instead of rendered ones"
    )
    parser.add_argument("--down", action="store_true", help="end what runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
