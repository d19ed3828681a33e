"""`python -m tasks`: whole runs without Airflow, what the ledger holds, and search in a file."""

import argparse
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks import progress, statuses
from tasks.errors import FeatureIndexError
from tasks.runs import reports
from tasks.runs.nights import last_night
from tasks.runs.run import Request, Retry, check_category_ids, parse_time
from tasks.search.document_fields import DocumentFields
from tasks.search.queries import ItemQueries
from tasks.settings import Settings
from tasks.shop.connections import Services, ledger_from_environment, search_from_environment
from tasks.shop.ledger import Ledger
from tasks.stages import pipeline
from tasks.statuses import Status

DAG = "command_line"
"""The name its runs have in the data dir."""


def main() -> int:
    """Do as told on the command line; 0 when it succeeded."""
    arguments = _parser().parse_args()
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    # The client warns of every attempt that fails, with a traceback; the error at the end says it all.
    for chatty in ("elastic_transport", "absl"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    command: Callable[[argparse.Namespace], None] = arguments.command
    try:
        command(arguments)
    except FeatureIndexError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Nothing is half-written; the same command does the rest.", file=sys.stderr)
        return 130
    return 0


def _run(arguments: argparse.Namespace) -> None:
    now = datetime.now(UTC)
    settings = Settings.load()
    start = parse_time(arguments.start, "--from", settings.time_zone) if arguments.start else None
    end = parse_time(arguments.end, "--to", settings.time_zone) if arguments.end else None
    if not (arguments.category or arguments.all or start or end):
        start, end = last_night(now, settings)
    request = Request(
        dag=DAG,
        run=arguments.run or _name(now),
        start=start,
        end=end,
        category_ids=tuple(arguments.category),
        all_items=arguments.all,
        force=arguments.force,
        dry_run=arguments.dry_run,
        reconcile=arguments.reconcile,
    )
    _done(request, settings)


def _retry(arguments: argparse.Namespace) -> None:
    request = Request(DAG, arguments.run or _name(datetime.now(UTC)), retry=_chosen(arguments))
    _done(request, Settings.load())


def _done(request: Request, settings: Settings) -> None:
    report = pipeline.run(request, settings, Services.from_environment(), progress.bar)
    print(reports.described(report))


def _failures(arguments: argparse.Namespace) -> None:
    chosen, settings = _chosen(arguments), Settings.load()
    check_category_ids(chosen.category_ids, settings)
    ledger = Ledger(ledger_from_environment(), settings)
    shown = 0
    for failure in ledger.matching(
        category_ids=chosen.category_ids, statuses=chosen.statuses, item_ids=chosen.item_ids
    ):
        if arguments.given_up and failure.next_at is not None:
            continue
        shown += 1
        next_at = f"{failure.next_at:%Y-%m-%d %H:%M}" if failure.next_at else "given up"
        print(
            *(failure.item_id, failure.category_id, failure.status, failure.attempts, next_at),
            *(failure.img_url, failure.reason),
            sep="\t",
        )
    print(f"{shown} items", file=sys.stderr)


def _space(arguments: argparse.Namespace) -> None:
    from tasks.space import fit

    settings = Settings.load()
    if not arguments.no_snapshot:
        fit.take_snapshot(_queries(settings), settings, progress.bar)
    print(fit.described(fit.fit(settings)))


def _compact(arguments: argparse.Namespace) -> None:  # noqa: ARG001
    from tasks.stages import compact

    print(compact.described(compact.run(Settings.load(), search_from_environment(), progress.bar)))


def _duplicates(arguments: argparse.Namespace) -> None:  # noqa: ARG001
    from tasks.duplicates import find
    from tasks.inference.model import identity

    settings = Settings.load()
    report = find.find(search_from_environment(), identity(settings), settings, progress.bar)
    print(find.described(report))


def _export(arguments: argparse.Namespace) -> None:
    from tasks import offline

    settings = Settings.load()
    if arguments.folder is not None:
        exported = offline.export_folder(arguments.folder, arguments.to, settings, progress.bar)
    else:
        exported = offline.export_index(_queries(settings), arguments.to, settings, progress.bar)
    for path, reason in exported.refused.items():
        print(path, reason, sep="\t")
    print(f"{exported.items} items in {arguments.to}, {len(exported.refused)} refused", file=sys.stderr)


def _find(arguments: argparse.Namespace) -> None:
    from tasks import offline

    found = offline.find(
        arguments.photo,
        arguments.file,
        Settings.load(),
        top=arguments.top,
        candidates=arguments.candidates,
        sheet_to=arguments.sheet,
    )
    for item in found:
        print(f"{item.cosine:.4f}\t{item.name}")


def _statuses(arguments: argparse.Namespace) -> None:  # noqa: ARG001
    print(statuses.table())


def _queries(settings: Settings) -> ItemQueries:
    return ItemQueries(search_from_environment(), settings.index, DocumentFields.of(settings))


def _name(now: datetime) -> str:
    return now.strftime("%Y-%m-%dT%H:%M:%S")


def _chosen(arguments: argparse.Namespace) -> Retry:
    return Retry(tuple(arguments.category), tuple(map(Status, arguments.status)), tuple(arguments.item))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tasks",
        description="Adds picture features to the shop's Elasticsearch documents, without Airflow.",
        epilog="The shop is named by AIRFLOW_CONN_SHOP_CATALOG and AIRFLOW_CONN_SHOP_SEARCH (or "
        "ELASTICSEARCH_URL), as for Airflow; settings are FEATURES_*, such as FEATURES_IMAGE_HOSTS.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("run", help="plan, download, extract, index and summarise, in order")
    one.set_defaults(command=_run)
    one.add_argument(
        "--from",
        dest="start",
        metavar="TIME",
        help="items changed from this time on (ISO 8601; FEATURES_TIME_ZONE is the zone of one without)",
    )
    one.add_argument(
        "--to", dest="end", metavar="TIME", help="and before this one; both left out: last night"
    )
    _add_repeatable(one, "--category", "ID", "items of this category instead")
    one.add_argument("--all", action="store_true", help="all items of the catalogue instead: the first fill")
    one.add_argument(
        "--reconcile", action="store_true", help="then also items whose documents lost their feature"
    )
    one.add_argument("--force", action="store_true", help="fetch and compute again what is current")
    one.add_argument("--dry-run", action="store_true", help="count what there is to do; touch nothing")

    again = commands.add_parser("retry", help="try again the items of the ledger that are due, or these")
    again.set_defaults(command=_retry)
    for command in (one, again):
        command.add_argument(
            "--run", metavar="NAME", help="the run's name in the data dir (default: the time)"
        )

    failures = commands.add_parser("failures", help="list the items of the ledger, tab-separated")
    failures.set_defaults(command=_failures)
    failures.add_argument("--given-up", action="store_true", help="only those that no schedule tries again")
    for command in (again, failures):
        _add_repeatable(command, "--category", "ID", "only items of this category")
        _add_repeatable(command, "--status", "STATUS", "only items that ended so", choices=list(Status))
        _add_repeatable(command, "--item", "ID", "only this item")

    space = commands.add_parser("space", help="learn the feature space from the index, and publish it")
    space.set_defaults(command=_space)
    space.add_argument(
        "--no-snapshot", action="store_true", help="learn from the last snapshot instead of a new one"
    )

    compact = commands.add_parser(
        "compact", help="write the space's compact vectors into all documents, from their features"
    )
    compact.set_defaults(command=_compact)

    duplicates = commands.add_parser(
        "duplicates", help="bring items that show the same picture into groups, in the index"
    )
    duplicates.set_defaults(command=_duplicates)

    export = commands.add_parser("export", help="write features into a file that `find` searches")
    export.set_defaults(command=_export)
    export.add_argument("--to", type=Path, required=True, metavar="FILE", help="such as features.h5")
    export.add_argument(
        "--from",
        dest="folder",
        type=Path,
        metavar="FOLDER",
        help="of all pictures below a folder, computed here (default: those of the shop's index)",
    )

    find = commands.add_parser("find", help="the items of such a file that are nearest to a photo")
    find.set_defaults(command=_find)
    find.add_argument("photo", type=Path)
    find.add_argument("--in", dest="file", type=Path, required=True, metavar="FILE", help="made by `export`")
    find.add_argument("--top", type=_positive, default=3, metavar="N", help="how many (default: 3)")
    find.add_argument(
        "--candidates",
        type=_positive,
        metavar="N",
        help="compare only these many, whose 128-bit codes are nearest (default: all)",
    )
    find.add_argument("--sheet", type=Path, metavar="PNG", help="draw the photo and what is found there")

    table = commands.add_parser("statuses", help="what each status means, as a table")
    table.set_defaults(command=_statuses)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _add_repeatable(
    parser: argparse.ArgumentParser, option: str, metavar: str, help_text: str, **more: Any
) -> None:
    parser.add_argument(
        option, action="append", default=[], metavar=metavar, help=f"{help_text}; repeatable", **more
    )


if __name__ == "__main__":
    sys.exit(main())
