"""A file of features as an index: how long it takes to write, and to search on one core.

    python -m benchmarks.feature_file write FILE ITEMS     writes a file; the last line is JSON
    python -m benchmarks.feature_file search FILE          searches it

Items are of 1,000 kinds, each spread about a feature of its own; queries are items of these kinds that the
file does not hold.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.figures import Figure
from benchmarks.memory import peak_of
from tasks.inference.model import DIMENSIONS, Identity
from tasks.settings import REPOSITORY
from tasks.space.search import ByCodes, Found, add_codes, exact
from tasks.space.snapshot import ROWS_AT_ONCE, Floats, Snapshot, writing

SIZES = 100_000, 1_000_000
TOP, CANDIDATES = 10, 100
QUERIES = 30

_KINDS = 1_000


def measure() -> list[Figure]:
    """Write files of both sizes, and search them."""
    figures, peaks = [], []
    small, large = SIZES
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        for items in SIZES:
            file, said = Path(temporary) / "features.h5", Path(temporary) / "said"
            print(f"a file of {items:,} features ...", file=sys.stderr, flush=True)
            peak, _ = peak_of(
                [sys.executable, "-m", "benchmarks.feature_file", "write", file, str(items)], said
            )
            wrote = json.loads(said.read_text().splitlines()[-1])
            found = _searched(file)
            file.unlink()
            peaks.append(peak)
            figures += [
                Figure(f"{items:,} features: written", wrote["rows"], "s"),
                Figure(f"{items:,} features: codes learnt and written", wrote["codes"], "s"),
                Figure(f"{items:,} features: memory of writing, MB", peak / 1e6),
                Figure(f"{items:,} features: opened", found["start"], "s", at_most=1.0),
                Figure(
                    f"{items:,} features: exact search, one core, ms",
                    found["exact"],
                    at_most=60 if items == small else None,
                ),
                Figure(
                    f"{items:,} features: {CANDIDATES} candidates by codes, one core, ms",
                    found["codes"],
                    at_most=2 if items == small else 10,
                ),
                Figure(f"{items:,} features: recall at {TOP} by codes", found["recall"]),
            ]
    return [
        *figures,
        Figure(f"memory of writing, {large:,} / {small:,} features", peaks[1] / peaks[0], at_most=1.2),
    ]


def _searched(file: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.feature_file", "search", file],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=REPOSITORY,
        # NumPy's own threads would take the other cores.
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _kinds() -> Floats:
    return np.random.default_rng(3).gamma(0.5, 0.6, (_KINDS, DIMENSIONS)).astype(np.float32)


def _features(number: int, count: int) -> Floats:
    """So many items [count, 2048], others for each number: none of a feature's values is below zero."""
    random, kinds = np.random.default_rng((7, number)), _kinds()
    spread = random.gamma(4.0, 0.25, (count, DIMENSIONS)).astype(np.float32)
    features: Floats = kinds[random.integers(_KINDS, size=count)] * spread
    return features


def _write(path: Path, items: int) -> dict[str, float]:
    generating = 0.0

    def pages() -> Iterator[tuple[int, Floats]]:
        nonlocal generating
        for begin in range(0, items, ROWS_AT_ONCE):
            started = time.monotonic()
            page = _features(begin, min(ROWS_AT_ONCE, items - begin))
            generating += time.monotonic() - started
            yield begin, page

    started = time.monotonic()
    with writing(path, Identity("benchmark")) as writer:
        for begin, page in pages():
            names = [f"{begin + row:010}" for row in range(len(page))]
            writer.add(names, ["00000010"] * len(page), [f"http://shop/{name}.jpg" for name in names], page)
        written = time.monotonic()
        add_codes(writer)
    return {"rows": written - started - generating, "codes": time.monotonic() - written}


def _search(path: Path) -> dict[str, float]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    queries = _features(-1 % 2**32, QUERIES)
    started = time.monotonic()
    with Snapshot(path) as snapshot:
        by_codes = ByCodes(snapshot)
        start = time.monotonic() - started

        def ways(search: Callable[[Floats], list[Found]]) -> tuple[float, list[set[str]]]:
            seconds, found = [], []
            for query in queries:
                began = time.monotonic()
                nearest = search(query)
                seconds.append(time.monotonic() - began)
                found.append({item.name for item in nearest})
            return median(seconds) * 1000, found

        all_ms, truth = ways(lambda query: exact(snapshot, query, TOP))
        codes_ms, found = ways(lambda query: by_codes.nearest(query, TOP, CANDIDATES))
    recall = float(np.mean([len(a & b) / TOP for a, b in zip(truth, found, strict=True)]))
    return {"start": start, "exact": all_ms, "codes": codes_ms, "recall": recall}


def main() -> None:
    """Write or search; the last line is JSON."""
    work, path, *items = sys.argv[1:]
    result: dict[str, Any] = _write(Path(path), int(items[0])) if work == "write" else _search(Path(path))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
