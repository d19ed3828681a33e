"""The kill test: run after run whose tasks are killed, each to end like an undisturbed one."""

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from tqdm import tqdm

from local_stack.elasticsearch import Elasticsearch, data_folder, server_url_from_environment
from local_stack.process import interrupt_when_told_to_end
from tasks.errors import FeatureIndexError
from tasks.files import atomic_write
from tasks.search.client import client
from tasks.settings import REPOSITORY
from tasks.shop.connections import SEARCH, Connection
from tests.torture import airflow_rounds, stage_rounds
from tests.torture.kills import Kill, drawn
from tests.torture.outcome import TortureError
from tests.torture.results import Results
from tests.torture.shop import Shop, running_shop

STAGES, AIRFLOW = "stages", "airflow"
WAYS = {STAGES: stage_rounds.WAYS, AIRFLOW: airflow_rounds.WAYS}

LONG = 60
"""Runs."""
PAGE = REPOSITORY / "docs" / "torture.md"
"""The last result of a long one."""

CHUNKS = 2
PICTURES_IN_CHUNK = 30

Run = Callable[[int, Sequence[Kill]], list[Kill]]
"""A round of that number with these kills; returns those that hit."""


def main() -> int:
    """The command; 0 when every run ended as it must."""
    arguments = _parser().parse_args()
    interrupt_when_told_to_end()
    results = Results(arguments.seed)
    print(f"Seed {arguments.seed}.", file=sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    try:
        with _shop(folder) as shop:
            _Torture(shop, arguments, results).run()
    except (TortureError, FeatureIndexError) as error:
        print(f"{error}\nIts files are in {folder}.", file=sys.stderr)
        if results.failure is None:
            return 1
    except KeyboardInterrupt:
        shutil.rmtree(folder)
        print("\nStopped; everything it started has ended.", file=sys.stderr)
        return 130
    else:
        shutil.rmtree(folder)
    page = results.page(WAYS)
    print(page)
    if arguments.rounds >= LONG and not arguments.only:
        with atomic_write(PAGE) as temporary:
            temporary.write_text(page, encoding="utf-8")
    return 1 if results.failure else 0


class _Torture:
    """The rounds of both parts."""

    def __init__(self, shop: Shop, arguments: argparse.Namespace, results: Results) -> None:
        self._shop = shop
        self._seed = arguments.seed
        self._only = arguments.only
        self._results = results
        of_airflow = arguments.rounds // 4
        self._goals = {STAGES: arguments.rounds - of_airflow, AIRFLOW: of_airflow}
        self._bar = tqdm(total=1 if self._only else arguments.rounds, unit="run", file=sys.stderr)

    def run(self) -> None:
        """First the stages' processes, then Airflow."""
        with self._bar:
            self._bar.set_description("undisturbed")
            stages = stage_rounds.StageRounds(self._shop)
            for number in self._numbers(STAGES):
                self._round(STAGES, number, stages.run)
            if self._has(AIRFLOW):
                self._bar.set_description("Airflow, undisturbed")
                with airflow_rounds.running_airflow(self._shop, stages.undisturbed) as airflow:
                    for number in self._numbers(AIRFLOW):
                        self._round(AIRFLOW, number, airflow.run)

    def _has(self, part: str) -> bool:
        return self._only[0] == part if self._only else self._goals[part] > 0

    def _numbers(self, part: str) -> Iterator[int]:
        """Until enough rounds were hit; or the one that is asked for."""
        if self._only:
            yield from [self._only[1]] * self._has(part)
            return
        for number in count():
            if self._results.rounds[part] >= self._goals[part]:
                return
            yield number

    def _round(self, part: str, number: int, run: Run) -> None:
        kills = drawn(self._seed, part, number, CHUNKS, WAYS[part])
        title = f"{part}-{number} ({'; '.join(map(str, kills))})"
        self._bar.set_description(f"{part}-{number}")
        try:
            hits = run(number, kills)
        except TortureError as error:
            self._results.failure = title
            again = f"--seed {self._seed} --only {part}-{number}"
            raise TortureError(f"\n{title}:\n{error}\nOnce more: python -m tests.torture {again}") from error
        self._results.add(part, kills, hits)
        self._bar.update(bool(hits))


@contextmanager
def _shop(folder: Path) -> Iterator[Shop]:
    """The shop with its servers; Elasticsearch is the one of ELASTICSEARCH_URL where that is set."""
    server = None
    url = server_url_from_environment()
    if url is None:
        server = Elasticsearch.start(data_folder(folder), folder / "elasticsearch.log")
        url = server.url
    try:
        with (
            client(Connection.parse(SEARCH, url, named="ELASTICSEARCH_URL")) as search,
            running_shop(folder, search, url, CHUNKS, PICTURES_IN_CHUNK) as shop,
        ):
            yield shop
    finally:
        if server is not None:
            server.stop()
            shutil.rmtree(data_folder(folder))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture",
        description=__doc__,
        epilog="It ends with 0 when all went well, else with 1. "
        f"From {LONG} runs on, the result is also written to {PAGE.relative_to(REPOSITORY)}.",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=80,
        metavar="N",
        help="runs in which a kill hits, a quarter of them by Airflow (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=random.randrange(1_000_000),
        metavar="N",
        help="what the kills are drawn from (default: another each time)",
    )
    parser.add_argument(
        "--only", type=_name, metavar="NAME", help="one round alone, such as stages-12 or airflow-3"
    )
    return parser


def _name(text: str) -> tuple[str, int]:
    part, _, number = text.partition("-")
    if part not in WAYS or not number.isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text!r} is no round; they are named as {STAGES}-12 and {AIRFLOW}-3"
        )
    return part, int(number)


if __name__ == "__main__":
    sys.exit(main())
