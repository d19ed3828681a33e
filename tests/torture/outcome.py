"""What a run leaves, and whether that is what it has to leave."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from elasticsearch import Elasticsearch

from tasks.runs.run import Plan
from tasks.search.mapping import AT, FEATURE
from tasks.settings import Settings
from tasks.shop.ledger import Ledger
from tests.scripted_server import Request

TOLERANCE = 1e-4
"""How far a float of a feature may be from another run's: other batches sum in another order."""


class TortureError(Exception):
    """Something is not as it has to be."""


@dataclass(frozen=True)
class Outcome:
    """What is the same after every run, however often it was killed."""

    counts: Mapping[str, int]
    """The report's."""
    statuses: Mapping[str, str]
    """Of every item."""
    ledger: Mapping[str, tuple[str, int]]
    """Status and attempts of every item that the ledger holds."""
    mapping: Mapping[str, Any]
    documents: Mapping[str, Mapping[str, Any]]
    """Every document of the index; of the time of its feature only that there is one."""
    vectors: Mapping[str, np.ndarray]


def read(search: Elasticsearch, index: str, run_folder: Path, data_dir: Path) -> tuple[Outcome, Plan]:
    """The outcome of the run in `run_folder`, and the plan that it ended with."""
    report = json.loads((run_folder / "report.json").read_text())
    plan = Plan.load(run_folder / report["plan"])
    statuses = {
        row["item_id"]: row["status"]
        for chunk in plan.chunks
        for row in pq.read_table(chunk.outcomes, columns=["item_id", "status"]).to_pylist()
    }
    (described,) = search.indices.get_mapping(index=index).values()
    search.indices.refresh(index=index)
    hits = search.search(index=index, size=10_000, fields=[FEATURE])["hits"]["hits"]
    outcome = Outcome(
        counts=report["counts"],
        statuses=statuses,
        ledger={
            failure.item_id: (failure.status, failure.attempts)
            for failure in Ledger(None, Settings(data_dir=data_dir)).matching()
        },
        mapping=described["mappings"],
        documents={hit["_id"]: hit["_source"] | {AT: AT in hit["_source"]} for hit in hits},
        vectors={hit["_id"]: np.array(hit["fields"][FEATURE], np.float32) for hit in hits if "fields" in hit},
    )
    return outcome, plan


def require_expected(undisturbed: Outcome, statuses: Mapping[str, str]) -> None:
    """Refuse an undisturbed run whose items ended otherwise than the shop was made for.

    Raises:
        TortureError: naming an item.
    """
    _require_same("statuses", undisturbed.statuses, statuses)
    _require_same("counts", undisturbed.counts, Counter(statuses.values()))


def require_equal(found: Outcome, undisturbed: Outcome) -> None:
    """Refuse an outcome that is not the undisturbed one.

    Raises:
        TortureError: naming what differs.
    """
    for name in ("counts", "statuses", "ledger", "mapping", "documents"):
        _require_same(name, getattr(found, name), getattr(undisturbed, name))
    _require_same(
        "documents with a feature", dict.fromkeys(found.vectors), dict.fromkeys(undisturbed.vectors)
    )
    far = {
        item_id: distance
        for item_id, vector in found.vectors.items()
        if not (distance := abs(vector - undisturbed.vectors[item_id]).max()) <= TOLERANCE
    }
    if far:
        raise TortureError(f"features differ from the undisturbed ones, by up to: {far}")


def require_not_fetched_again(
    plan: Plan, requests: Sequence[Request], began: Mapping[str, float] | None = None
) -> None:
    """Refuse a run that asked for a picture after its chunk's download was finished.

    Args:
        began: attempts that had another one beside them, by their User-Agent, with the time of their begin
            by time.monotonic(). It counts in the place of their requests': none of them can know that the
            other has finished meanwhile.

    Raises:
        TortureError: naming the pictures.
    """
    to_wall_clock = time.time() - time.monotonic()
    for chunk in plan.chunks:
        finished = chunk.pictures.stat().st_mtime - to_wall_clock
        urls = pq.read_table(chunk.pictures, columns=["img_url"])["img_url"].to_pylist()
        again = [
            f"{request.path} {request.at - finished:.3f} s later"
            for request in requests
            if (began or {}).get(request.headers["User-Agent"], request.at) > finished
            and any(url.endswith(request.path) for url in urls)
        ]
        if again:
            raise TortureError(f"the download of chunk {chunk.number} was finished, yet: {', '.join(again)}")


def require_each_fetched_once(requests: Sequence[Request]) -> None:
    """Refuse an undisturbed run that asked for anything twice.

    Raises:
        TortureError: naming it.
    """
    twice = {path: count for path, count in Counter(r.path for r in requests).items() if count > 1}
    if twice:
        raise TortureError(f"asked for more than once: {twice}")


def require_whole_files(folder: Path) -> None:
    """Refuse a file, at the path where others look for it, that is not whole.

    Raises:
        TortureError: naming it.
    """
    for path in folder.rglob("[!.]*.*"):
        try:
            if path.suffix == ".parquet":
                pq.read_table(path)
                if b"statistics" not in pq.read_metadata(path).metadata:
                    raise ValueError("it has no statistics")
            elif path.suffix == ".json":
                json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise TortureError(f"{path} is not whole: {error}") from error


def _require_same(name: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    differing = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
    if differing:
        key = min(differing)
        raise TortureError(
            f"{name}: {len(differing)} differ from the undisturbed run's; {key} is {found.get(key)!r} and "
            f"should be {expected.get(key)!r}"
        )
