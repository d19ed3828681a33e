"""The numbers of the README, measured here and now on a real shop's photos."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    airflow_cost,
    api,
    compact,
    download,
    duplicates,
    failing_items,
    feature_file,
    feed,
    index_types,
    indexing,
    ledger,
    memory,
    model_speed,
    pages,
    photo_search,
    pipeline,
    planning,
    precision,
    reconciling,
    retrieval,
    space,
)
from benchmarks.figures import Figure, table
from benchmarks.record import record
from benchmarks.shop import running_shop
from local_stack.process import interrupt_when_told_to_end
from tasks.errors import ConfigurationError, FeatureIndexError
from tasks.settings import REPOSITORY

PHOTOS = REPOSITORY.parent / "shared" / "data" / "shop"


def _retrieval(arguments: argparse.Namespace) -> list[Figure]:
    with running_shop(arguments.photos) as shop:
        shop.backfill()
        return retrieval.measure(shop)


def _index_types(arguments: argparse.Namespace) -> list[Figure]:
    with running_shop(arguments.photos) as shop:
        return index_types.measure(shop)


BENCHMARKS: dict[str, Callable[[argparse.Namespace], list[Figure]]] = {
    "pipeline": lambda arguments: pipeline.measure(arguments.photos, arguments.rounds),
    "feed": lambda arguments: feed.measure(arguments.photos, arguments.rounds),
    "model_speed": lambda arguments: model_speed.measure(arguments.photos, arguments.rounds),
    "download": lambda arguments: download.measure(arguments.photos, arguments.rounds),
    "indexing": lambda arguments: indexing.measure(arguments.photos, arguments.rounds),
    "planning": lambda arguments: planning.measure(arguments.photos, arguments.rounds),
    "reconciling": lambda arguments: reconciling.measure(arguments.photos, arguments.rounds),
    "duplicates": lambda arguments: duplicates.measure(arguments.rounds),
    "api": lambda arguments: api.measure(arguments.photos),
    "space": lambda arguments: space.measure(arguments.photos),
    "compact": lambda arguments: compact.measure(arguments.photos),
    "photo_search": lambda arguments: photo_search.measure(arguments.photos),
    "feature_file": lambda _: feature_file.measure(),
    "airflow_cost": lambda arguments: airflow_cost.measure(arguments.photos, arguments.rounds),
    "memory": lambda arguments: memory.measure(arguments.photos),
    "precision": lambda arguments: precision.measure(arguments.photos),
    "retrieval": _retrieval,
    "index_types": _index_types,
    "ledger": lambda arguments: ledger.measure(arguments.photos, arguments.rounds),
    "pages": lambda arguments: pages.measure(arguments.rounds),
    "failing_items": lambda arguments: failing_items.measure(arguments.photos),
}


def main() -> int:
    """The command; 0 when every goal is met."""
    arguments = _parser().parse_args()
    interrupt_when_told_to_end()
    try:
        figures = _measure(arguments)
    except FeatureIndexError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; everything it started has ended.", file=sys.stderr)
        return 130
    return 0 if all(figure.met for found in figures.values() for figure in found) else 1


def _measure(arguments: argparse.Namespace) -> dict[str, list[Figure]]:
    """Run the benchmarks one after another, showing each one's table as it comes."""
    if not (arguments.photos / "items.csv").is_file():
        raise ConfigurationError(
            f"There is no {arguments.photos / 'items.csv'}. The benchmarks need a shop's photos: name their "
            "folder with --photos FOLDER."
        )
    figures = {}
    for name in dict.fromkeys(arguments.benchmarks or BENCHMARKS):
        figures[name] = BENCHMARKS[name](arguments)
        print(f"\n{table(name, figures[name])}", flush=True)
        if arguments.record:  # each at once: all of them take an hour
            record({name: figures[name]}, list(BENCHMARKS))
    return figures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="It ends with 0 when every goal is met, else with 1.",
    )
    parser.add_argument(
        "benchmarks",
        nargs="*",
        type=_name,
        metavar="NAME",
        help=f"{', '.join(BENCHMARKS)}; none: all of them",
    )
    parser.add_argument(
        "--photos",
        type=Path,
        default=PHOTOS,
        metavar="FOLDER",
        help="a folder with items.csv and its pictures (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=_rounds,
        default=3,
        metavar="N",
        help="rounds that medians are taken of (default: %(default)s)",
    )
    parser.add_argument(
        "--record", action="store_true", help="keep the figures in docs/ and in the README's table"
    )
    return parser


def _name(text: str) -> str:
    if text not in BENCHMARKS:
        raise argparse.ArgumentTypeError(f"there is no benchmark {text}, only {', '.join(BENCHMARKS)}")
    return text


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
