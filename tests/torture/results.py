"""What came of a kill test, as a page for people."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from tests.torture.kills import DONE, MOMENTS, STAGES, THIRDS, Kill

_INTRODUCTION = """\
# Kill test

`make torture` runs a small shop again and again, with real servers and the real model. In each run it kills
tasks at random moments and leaves the rest to the normal retry: first with every stage as a process of its
own (`stages`), then with Airflow's scheduler (`airflow`). One process in four is not killed but stopped, and
continues beside its retry. Airflow is told from outside to retry after a second and to miss a heartbeat after
30, which else take longer. All that is random comes from the seed. The program writes this page.
"""


class Results:
    """The rounds so far."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._hits: list[Kill] = []
        self._late = 0
        self.rounds: Counter[str] = Counter()
        """By part, those in which a kill hit."""
        self.failure: str | None = None
        """The round that did not end as it must."""

    def add(self, part: str, kills: Sequence[Kill], hits: Sequence[Kill]) -> None:
        """Count a round that ended as it must."""
        self.rounds[part] += bool(hits)
        self._hits += hits
        self._late += len(kills) - len(hits)

    def page(self, ways: Mapping[str, Sequence[str]]) -> str:
        """All of it in Markdown; `ways` has the ways to kill of each part."""
        verdict = f"**It failed in {self.failure}.** Before that, every run" if self.failure else "Every run"
        by_part = ", ".join(f"{count} of `{part}`" for part, count in self.rounds.items())
        command = f"make torture ARGS='--seed {self._seed}'"
        return "\n".join(
            [
                _INTRODUCTION,
                f"The last one: {datetime.now(UTC):%d %B %Y}, {os.cpu_count()} cores, `{command}`.",
                "",
                f"- {self.rounds.total()} runs were hit, {by_part}, by {len(self._hits)} kills. "
                f"{self._late} more came too late for their stage and do not count.",
                f"- {verdict} ended with the index, the report's counts and the ledger of an undisturbed "
                "run. Nothing was half-written or left running, and no picture whose chunk was downloaded "
                "was fetched again.",
                "",
                f"Kills in the {' / '.join(THIRDS)} third of a stage's usual duration / {DONE}:",
                "",
                *self._table([way for of_part in ways.values() for way in dict.fromkeys(of_part)]),
                "",
            ]
        )

    def _table(self, ways: Sequence[str]) -> list[str]:
        found = Counter((kill.way, kill.stage, kill.moment) for kill in self._hits)
        lines = [f"| | {' | '.join(ways)} |", f"| :-- |{' --: |' * len(ways)}"]
        for stage in STAGES:
            cells = [" / ".join(str(found[way, stage, moment]) for moment in MOMENTS) for way in ways]
            lines.append(f"| {stage} | {' | '.join(cells)} |")
        return lines
