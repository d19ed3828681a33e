"""Which attempts of a round are killed, and when: drawn from the seed, so that a round can be repeated."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

FILES = {
    "plan": "plan-*/plan.json",
    "download": "plan-*/chunk-{:04}/pictures.parquet",
    "extract": "plan-*/chunk-{:04}/features.parquet",
    "index": "plan-*/chunk-{:04}/outcomes.parquet",
    "summarise": "report.json",
}
"""What each stage leaves in the run's folder."""
STAGES = tuple(FILES)

THIRDS = ("start", "middle", "end")
DONE = "once its file is there"
"""The stage ends as soon as it can after that; a kill before is the last that a retry must not undo."""
MOMENTS = (*THIRDS, DONE)

_MOST = 3
"""Kills in a round: as many as a task has retries, so that one task may get them all."""
_LOOK_SECONDS = 0.002

Task = tuple[str, int]
"""A stage and its chunk; plan and summarise have the chunk 0."""


@dataclass(frozen=True)
class Kill:
    """What is done to one attempt at a task."""

    task: Task
    way: str
    moment: str
    share: float = 0.0
    """Of the stage's usual duration, the share that has passed by then; of no use for DONE."""
    pause: float = 0.0
    """Where it is only stopped, the share of that duration that its retry is ahead when it continues."""

    @property
    def stage(self) -> str:
        """The stage that it hits."""
        return self.task[0]

    def __str__(self) -> str:
        when = self.moment if self.moment == DONE else f"at {self.share:.0%}"
        return f"{self.stage} {self.task[1]} {when}: {self.way}"

    def comes(self, run_folder: Path, delay: float, alive: Callable[[], bool]) -> bool:
        """Wait for the moment; tells whether the attempt is alive then.

        Args:
            run_folder: where the stage leaves its file.
            delay: seconds from now until the share of the usual duration has passed.
        """
        until = time.monotonic() + delay
        before = self._files(run_folder)
        while alive():
            if self.moment == DONE and self._files(run_folder) != before:
                return True
            if self.moment != DONE and time.monotonic() >= until:
                return True
            time.sleep(_LOOK_SECONDS)
        return False

    def _files(self, run_folder: Path) -> set[Path]:
        return set(run_folder.glob(FILES[self.stage].format(self.task[1])))


def drawn(seed: int, part: str, number: int, chunks: int, ways: Sequence[str]) -> list[Kill]:
    """The kills of a round: one where it is its turn, so that every stage gets one at each moment, and up to
    two anywhere. Those of one task hit its attempts in turn."""
    rng = random.Random(f"{seed}, {part} {number}")
    turn = divmod(number, len(STAGES))
    aims = [(STAGES[turn[1]], MOMENTS[turn[0] % len(MOMENTS)])]
    aims += [(rng.choice(STAGES), rng.choice(MOMENTS)) for _ in range(rng.randrange(_MOST))]
    return [chosen(stage, moment, chunks, rng.choice(ways), rng) for stage, moment in aims]


def chosen(stage: str, moment: str, chunks: int, way: str, rng: random.Random) -> Kill:
    """A kill of a stage at a moment, the rest left to chance."""
    chunk = 0 if stage in ("plan", "summarise") else rng.randrange(chunks)
    share = (THIRDS.index(moment) + rng.random()) / len(THIRDS) if moment != DONE else 1.0
    return Kill((stage, chunk), way, moment, share, pause=rng.uniform(0, 1.5))
