import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.space.nearest import Best


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.lists(st.integers(0, 9), max_size=5))
def test_the_best_of_pages_are_the_best_of_all(seed, most, sizes):
    rng = np.random.default_rng(seed)
    pages = [rng.integers(0, 5, (3, size)).astype(np.float32) for size in sizes]
    best, begin = Best(3, most), 0
    for page in pages:
        best.add(page, begin)
        begin += page.shape[1]
    everything = np.concatenate([np.empty((3, 0), np.float32), *pages], axis=1)
    for query in range(3):
        # Of equal scores the first rows.
        rows = sorted(range(begin), key=lambda row: (-everything[query, row], row))[:most]
        assert [row for row in best.rows[query] if row >= 0] == rows
        assert best.scores[query, : len(rows)].tolist() == everything[query, rows].tolist()


def test_what_is_out_is_not_found():
    best = Best(1, 3)
    best.add(np.array([[1.0, -np.inf, 2.0]], np.float32), 10)
    assert best.rows.tolist() == [[12, 10, -1]]


def test_candidates_are_ordered_by_their_cosines():
    best = Best(1, 2)
    best.add(np.array([[5.0, 3.0]], np.float32), 0, np.array([[0.1, 0.9]], np.float32))
    best.add(np.array([[4.0]], np.float32), 2, np.array([[0.5]], np.float32))
    found = best.by_cosine(2)
    assert found.rows.tolist() == [[2, 0]], "row 1 has the highest cosine and is no candidate"
    np.testing.assert_allclose(found.scores, [[0.5, 0.1]])
