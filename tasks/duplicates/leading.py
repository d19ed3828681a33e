"""Which group a picture is in: that of a leader, a picture that it shows the same as.

A picture joins a group by its leader alone, never by another member, so that no chain of pictures, each a
little different from the one before, ends with one that has nothing to do with the first.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def led(leaders: Rows, links: Sequence[Mapping[int, float]]) -> Rows:
    """The leaders of new pictures; one that joins none leads its own group. Of the new ones those that show
    the same as most are asked first, since they lead best.

    Args:
        leaders: [n], the row of the leader of each picture that is in a group by now; its own where it leads.
        links: for each new picture, whose rows go on from n, which rows before it show the same, and how
            sure that is. Of several leaders it joins the surest, of equal ones the first.
    """
    known = len(leaders)
    linked: list[dict[int, float]] = [dict(others) for others in links]
    for row, others in enumerate(links, known):
        for other, sure in others.items():
            if other >= known:
                linked[other - known][row] = sure
    found = np.full(len(links), -1, np.int64)

    def leads(row: int) -> bool:
        return bool((leaders[row] if row < known else found[row - known]) == row)

    for number in sorted(range(len(links)), key=lambda number: (-len(linked[number]), number)):
        joined = [(sure, -other) for other, sure in linked[number].items() if leads(other)]
        found[number] = -max(joined)[1] if joined else known + number
    return found
