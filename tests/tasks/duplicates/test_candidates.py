import numpy as np
import pytest

from tasks.duplicates.candidates import ROWS_AT_ONCE, near


def codes_of(count, seed, flips=20):
    """Codes, many of which are a few bits from one another."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (5, 128)).astype(bool)[rng.integers(0, 5, count)]
    bits ^= rng.random((count, 128)) < rng.integers(0, flips, (count, 1)) / 128
    return bits, np.packbits(bits, axis=1)


@pytest.mark.parametrize("count", [0, 1, 50, ROWS_AT_ONCE + 7])
@pytest.mark.parametrize("most", [1, 5, 10_000])
def test_they_are_those_of_brute_force(count, most):
    asked_bits, asked = codes_of(37, 1)
    bits, codes = codes_of(count, 1)
    expected = []
    for number, query in enumerate(asked_bits):
        differing = (bits != query).sum(axis=1)
        near_enough = [row for row in range(count) if differing[row] <= 12]
        expected += [(number, row) for row in sorted(near_enough, key=lambda r: (differing[r], r))[:most]]
    found = list(zip(*(column.tolist() for column in near(asked, codes, 12, most)), strict=True))
    assert found == expected


def test_nothing_is_near_to_nothing():
    _, codes = codes_of(3, 0)
    for column in near(codes[:0], codes, 128, 5):
        assert column.tolist() == []
