"""`python -m tasks run …`: every stage of a run in order, without Airflow."""

import argparse
import contextlib
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from tasks import download, extract, index, plan, progress, reports, summarise
from tasks.connections import Services
from tasks.errors import FeatureIndexError
from tasks.runs import Request, last_night, parse_time
from tasks.settings import Settings

DAG = "command_line"
"""The name its runs have in the data dir."""


def main() -> int:
    """Run as told on the command line; 0 when the run succeeded."""
    arguments = _parser().parse_args()
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    # The client warns of every attempt that fails, with a traceback; the error at the end says it all.
    for chatty in ("elastic_transport", "absl"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    try:
        report = run(_request(arguments), Settings.load(), Services.from_environment())
    except FeatureIndexError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Nothing is half-written; the same command does the rest.", file=sys.stderr)
        return 130
    print(reports.described(report))
    return 0


def run(request: Request, settings: Settings, services: Services) -> dict[str, Any]:
    """Plan, then download, extract and index chunk by chunk, then summarise; returns the report.

    Raises:
        FeatureIndexError: as the stages do.
    """
    planned = plan.run(request, settings, services, progress.bar)
    try:
        for chunk in planned.chunks:
            download.run(chunk, settings, progress.bar)
            extract.run(chunk, settings, progress.bar)
            index.run(chunk, settings, services, progress.bar)
    except BaseException:
        # The report tells what is unfinished; why it is, the stage's own error says best.
        with contextlib.suppress(FeatureIndexError):
            summarise.run(planned, settings)
        raise
    return summarise.run(planned, settings)


def _request(arguments: argparse.Namespace) -> Request:
    now = datetime.now(UTC)
    start = parse_time(arguments.start, "--from") if arguments.start else None
    end = parse_time(arguments.end, "--to") if arguments.end else None
    if not arguments.category and start is None and end is None:
        start, end = last_night(now)
    return Request(
        dag=DAG,
        run=arguments.run or now.strftime("%Y-%m-%dT%H:%M:%S"),
        start=start,
        end=end,
        category_ids=tuple(arguments.category),
        force=arguments.force,
        dry_run=arguments.dry_run,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tasks",
        description="Adds picture features to the shop's Elasticsearch documents, without Airflow.",
        epilog="The shop is named by AIRFLOW_CONN_SHOP_CATALOG and AIRFLOW_CONN_SHOP_SEARCH (or "
        "ELASTICSEARCH_URL), as for Airflow; settings are FEATURES_*, such as FEATURES_IMAGE_HOSTS.",
    )
    commands = parser.add_subparsers(required=True, metavar="run")
    one = commands.add_parser("run", help="plan, download, extract, index and summarise, in order")
    one.add_argument(
        "--from", dest="start", metavar="TIME", help="items changed from this time on (ISO 8601)"
    )
    one.add_argument(
        "--to", dest="end", metavar="TIME", help="and before this one; both left out: last night"
    )
    one.add_argument(
        "--category",
        action="append",
        default=[],
        metavar="ID",
        help="items of this category instead; repeatable",
    )
    one.add_argument("--force", action="store_true", help="fetch and compute again what is current")
    one.add_argument("--dry-run", action="store_true", help="count what there is to do; touch nothing")
    one.add_argument("--run", metavar="NAME", help="the run's name in the data dir (default: the time)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
