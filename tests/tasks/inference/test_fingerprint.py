"""Tests of tasks/inference/fingerprint.py: which fingerprints can be of one network."""

import numpy as np
import pytest

from tasks.errors import ConfigurationError
from tasks.inference import fingerprint
from tasks.inference.fingerprint import same, taken

FEATURE = np.random.default_rng(4).gamma(0.5, 0.5, 2048).astype(np.float32)


def made(feature: np.ndarray) -> str:
    return taken(lambda _: feature[np.newaxis])


def test_it_is_64_hex_digits_of_the_fixed_picture() -> None:
    asked = []

    def network(pictures: np.ndarray) -> np.ndarray:
        asked.append(pictures)
        return FEATURE[np.newaxis]

    assert int(taken(network), 16) > 0
    assert len(taken(network)) == 64
    (picture,) = asked[0]
    assert (picture.shape, picture.dtype) == ((299, 299, 3), np.float32)
    assert 0 <= picture.min() < 0.001
    assert 0.999 < picture.max() <= 1
    np.testing.assert_array_equal(asked[0], asked[1])


def test_rounding_alone_is_no_difference_wherever_it_falls() -> None:
    """Numbers that were rounded before they were compared would differ at an edge."""
    random = np.random.default_rng(6)
    for _ in range(10):
        feature, noise = (random.gamma(0.5, 0.5, 2048), random.standard_normal(2048))
        assert same(made(feature), made(feature * (1 + 0.0005 * noise)))
        assert same(made(feature), made(feature * (1 + 0.02 * noise)), rounded=True)
    # Each number one step of half precision further, as where all of them stand at an edge.
    steps = np.frombuffer(bytes.fromhex(made(FEATURE)), ">u2") + np.uint16(1)
    assert same(made(FEATURE), steps.astype(">u2").tobytes().hex())


@pytest.mark.parametrize(
    "other",
    [
        FEATURE * np.float32(1.06),
        FEATURE[::-1],
        np.roll(FEATURE, 1),
        np.concatenate([FEATURE[1024:], FEATURE[:1024]]),
        np.where(np.arange(2048) < 200, 0, FEATURE),
        FEATURE - FEATURE.mean(),
        np.zeros_like(FEATURE),
        FEATURE * 1_000,
    ],
    ids=["scaled", "backwards", "shifted", "halves exchanged", "a tenth is none", "centred", "none", "huge"],
)
def test_another_feature_is_one(other: np.ndarray) -> None:
    assert not same(made(FEATURE), made(other))
    assert not same(made(other), made(FEATURE), rounded=True)
    assert same(made(other), made(other))


def test_in_one_precision_less_is_noticed() -> None:
    slightly = made(FEATURE * np.float32(256 / 255))
    assert not same(made(FEATURE), slightly)
    assert same(made(FEATURE), slightly, rounded=True)


def test_one_that_was_not_noted_is_of_any_network() -> None:
    assert same("", made(FEATURE))
    assert same(made(FEATURE), "")


@pytest.mark.parametrize("text", ["no digits", "3c0", "3c00", "7e00" * 16, "7c00" * 16])
def test_what_is_none_is_of_no_network(text: str) -> None:
    assert not same(text, made(FEATURE))
    assert not same(made(FEATURE), text)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_network_that_gives_no_numbers_is_refused(value: float) -> None:
    with pytest.raises(ConfigurationError, match="is not finite"):
        made(np.full(2048, value, np.float32))


def test_the_picture_has_every_grain_and_each_colour_its_own() -> None:
    (picture,) = fingerprint.picture()
    halved = picture[:298, :298].reshape(149, 2, 149, 2, 3).mean(axis=(1, 3))
    fine = np.abs(np.repeat(np.repeat(halved, 2, 0), 2, 1) - picture[:298, :298])
    assert fine[200:, 200:].mean() > 0.2, "half the size loses what is fine"
    assert fine[:40, :40].mean() < 0.05, "and not what is coarse"
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(picture[..., one] - picture[..., other]).mean() > 0.2
