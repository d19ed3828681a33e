import numpy as np
import pytest

from tasks.space.vectors import Codes, Compact, distances, fewest, roots
from tests.tasks.space.synthetic import features_of, shop

_, CATEGORIES = shop({"hat": 150, "shoe": 150, "dress": 100})


@pytest.fixture(scope="module")
def features():
    return features_of(CATEGORIES, dims=256)


@pytest.fixture(scope="module")
def compact(features):
    return Compact.learnt([features[:130], features[130:250], features[250:]])


def test_directions_hold_as_much_as_those_of_a_singular_value_decomposition(features, compact):
    rooted = np.sqrt(features / features.sum(axis=1, keepdims=True))
    centred = rooted - rooted.mean(axis=0)
    sizes = np.linalg.svd(centred, compute_uv=False)
    np.testing.assert_allclose(compact.directions.T @ compact.directions, np.eye(128), atol=1e-5)
    # No 128 directions hold more of the features' differences than the largest singular values say.
    assert ((centred @ compact.directions) ** 2).sum() == pytest.approx((sizes[:128] ** 2).sum(), rel=1e-4)


def test_vectors_are_the_projections_at_length_1(features, compact):
    rooted = np.sqrt(features / features.sum(axis=1, keepdims=True))
    projected = (rooted - rooted.mean(axis=0)) @ compact.directions
    expected = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    np.testing.assert_allclose(compact.vectors(features), expected, atol=1e-4)


def test_how_long_a_feature_is_does_not_matter(features, compact):
    np.testing.assert_allclose(compact.vectors(features * 7), compact.vectors(features), atol=1e-5)


def test_learning_twice_gives_the_same(features):
    one, two = (Compact.learnt([features]) for _ in range(2))
    np.testing.assert_array_equal(one.directions, two.directions)
    vectors = one.vectors(features)
    np.testing.assert_array_equal(Codes.learnt(vectors).rotation, Codes.learnt(vectors).rotation)


def test_one_feature_is_too_few(features):
    with pytest.raises(ValueError, match="fewer than two"):
        Compact.learnt([features[:1]])


def test_the_rotation_keeps_lengths_and_loses_less_than_chance(features, compact):
    vectors = compact.vectors(features)
    rotation = Codes.learnt(vectors).rotation.astype(np.float64)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(128), atol=1e-5)

    def lost(turn):
        turned = vectors @ turn
        signs = np.sign(turned) / np.sqrt(128)
        return ((signs - turned) ** 2).sum()

    by_chance, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(128, 128)))
    assert lost(rotation) < lost(by_chance)


def test_distances_count_differing_bits(features, compact):
    vectors = compact.vectors(features)
    codes = Codes.learnt(vectors)
    packed = codes.of(vectors)
    assert packed.shape == (len(features), 16)
    bits = vectors @ codes.rotation > 0
    expected = [int((bits[3] != other).sum()) for other in bits]
    assert distances(packed[3], packed).tolist() == expected


def test_a_feature_with_a_number_below_zero_has_roots_all_the_same():
    assert np.isfinite(roots(np.array([[-1.0, 4.0, 0.0]], np.float32))).all()


def test_the_fewest_are_those_that_sorting_finds_and_their_equals() -> None:
    codes = np.random.default_rng(4).integers(0, 256, (3_000, 16), np.uint8)
    differing = distances(codes[7], codes)
    for count in (1, 2, 100, 2_999, 3_000, 5_000):
        rows = fewest(differing, count)
        least = np.sort(differing)[min(count, len(codes)) - 1]
        assert rows.tolist() == [row for row, bits in enumerate(differing.tolist()) if bits <= least]
    assert fewest(differing[:0], 100).tolist() == []
