"""What it takes to find candidates for near-duplicates, and how it grows with the pictures of the shop.

The codes are synthetic: of groups that differ in few bits, as near-duplicates do, and in some more, as what
looks alike does. Everything else that a night does grows with its new pictures alone, but for reading the
documents' groups.
"""

import sys
import time
from statistics import median

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Figure
from tasks.duplicates.candidates import near
from tasks.duplicates.find import BITS, CANDIDATES

SMALL, LARGE = 100_000, 1_000_000
NIGHT = 1_000
_ALIKE = 20
"""Pictures that look alike."""


def measure(rounds: int) -> list[Figure]:
    """Compare a night's pictures with those of a small and of a large shop."""
    figures, seconds = [], {}
    for count in (SMALL, LARGE):
        known, new = codes(count), codes(NIGHT)
        took = []
        for number in range(rounds):
            started = time.process_time()
            near(new, known, BITS, CANDIDATES)
            took.append(time.process_time() - started)
            print(f"{count:,} pictures, round {number + 1}: {took[-1]:.1f} s", file=sys.stderr, flush=True)
        seconds[count] = median(took)
        figures.append(Figure(f"{NIGHT:,} new pictures compared with {count:,}, CPU", seconds[count], "s"))
    growth = seconds[LARGE] / seconds[SMALL]
    first = seconds[LARGE] * LARGE / NIGHT / 2 / 3_600
    return [
        *figures,
        Figure(f"the same, {LARGE:,} / {SMALL:,}", growth, at_most=1.2 * LARGE / SMALL),
        Figure(f"all {LARGE:,} with one another for the first time, hours of one core, from that", first),
    ]


def codes(count: int) -> NDArray[np.uint8]:
    """Codes [n, 16] in groups; n is a multiple of 1,000."""
    rng = np.random.default_rng(1)  # of few the first of many
    return np.concatenate([_thousand(rng) for _ in range(count // 1_000)])


def _thousand(rng: np.random.Generator) -> NDArray[np.uint8]:
    leaders = rng.integers(0, 256, (1_000 // _ALIKE, 16), np.uint8)
    differing = rng.random((1_000, 128)) < rng.choice([0.05, 0.2, 0.4], (1_000, 1))
    found: NDArray[np.uint8] = np.repeat(leaders, _ALIKE, axis=0) ^ np.packbits(differing, axis=1)
    return found
