import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.duplicates.leading import led

LINKS = st.lists(st.dictionaries(st.integers(0, 11), st.floats(0.5, 1, width=16)), max_size=12)


def earlier(links, known):
    return [{o: s for o, s in of.items() if o < row} for row, of in enumerate(links, known)]


@given(LINKS)
def test_each_leads_or_is_led_by_one_that_shows_the_same(links):
    links = earlier(links, 0)
    leaders = led(np.empty(0, np.int64), links).tolist()
    same = {
        frozenset((row, other)): sure for row, others in enumerate(links) for other, sure in others.items()
    }
    leading = [row for row, leader in enumerate(leaders) if row == leader]
    assert set(leaders) == set(leading)
    assert not [pair for pair in itertools.combinations(leading, 2) if frozenset(pair) in same]
    for row, leader in enumerate(leaders):
        assert row == leader or frozenset((row, leader)) in same


def test_the_one_in_the_middle_leads():
    assert led(np.empty(0, np.int64), [{}, {0: 0.8}, {1: 0.8}, {1: 0.8}]).tolist() == [1, 1, 1, 1]


def test_of_equally_sure_ones_the_first_is_joined():
    leaders = np.array([0, 1, 0])
    assert led(leaders, [{1: 0.9, 0: 0.9, 2: 1.0}, {0: 0.8, 1: 0.9}]).tolist() == [0, 1], "2 is led itself"


def test_a_chain_ends_where_nothing_is_left_of_its_beginning():
    """Each shows the same as the one before and the one before that, and nothing else."""
    chain = [{row - step: 1.0 for step in (1, 2) if row >= step} for row in range(1_000)]
    leaders = led(np.empty(0, np.int64), chain)
    rows = np.arange(1_000)
    assert (rows - leaders <= 2).all()
    assert np.bincount(leaders).max() <= 5


def test_new_pictures_change_nothing_of_what_is_known():
    leaders = np.array([0, 0, 2])
    assert led(leaders, [{2: 0.9}, {3: 1.0}]).tolist() == [2, 4], "one that is led leads nobody"
