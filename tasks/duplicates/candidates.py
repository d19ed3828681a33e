"""Pairs of pictures that may show the same: those whose codes differ in few bits."""

import numpy as np
from numpy.typing import NDArray

from tasks.space.vectors import COMPACT

ROWS_AT_ONCE = 8_192
"""Codes that are compared with at once, so that what is counted stays in the processor's cache."""
_QUERIES_AT_ONCE = 16

Codes = NDArray[np.uint8]
Rows = NDArray[np.int64]


def near(queries: Codes, codes: Codes, bits: int, most: int) -> tuple[Rows, Rows]:
    """For each of some codes [q, 16] those of `codes` [n, 16] that differ in so many bits at most.

    Returns:
        pairs, as numbers of queries and rows of codes, in the order of the queries; of each query `most` at
        most, the nearest, of equally near ones the first.
    """
    found = [_of_few(queries[at : at + _QUERIES_AT_ONCE], codes, bits, most, at) for at in _steps(queries)]
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    asked, rows = (np.concatenate(column) for column in zip(*found, strict=True))
    return asked, rows


def _steps(queries: Codes) -> range:
    return range(0, len(queries), _QUERIES_AT_ONCE)


def _of_few(queries: Codes, codes: Codes, bits: int, most: int, first: int) -> tuple[Rows, Rows]:
    pages = [_page(queries, codes[begin : begin + ROWS_AT_ONCE], bits, begin) for begin in _pages(codes)]
    if not pages:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    asked, rows, differing = (np.concatenate(column) for column in zip(*pages, strict=True))
    order = np.lexsort((rows, differing, asked))
    asked, rows = asked[order], rows[order]
    place = np.arange(len(asked)) - np.searchsorted(asked, asked)
    return asked[place < most] + first, rows[place < most]


def _pages(codes: Codes) -> range:
    return range(0, len(codes), ROWS_AT_ONCE)


def _page(queries: Codes, page: Codes, bits: int, begin: int) -> tuple[Rows, Rows, Codes]:
    words = COMPACT // 64
    ours, theirs = queries.view(np.uint64).reshape(-1, words), page.view(np.uint64).reshape(-1, words)
    differing = np.zeros((len(ours), len(theirs)), np.uint8)
    for word in range(words):
        differing += np.bitwise_count(ours[:, word, np.newaxis] ^ theirs[:, word])
    asked, rows = np.nonzero(differing <= bits)
    return asked, rows + begin, differing[asked, rows]
