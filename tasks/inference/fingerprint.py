"""What a network makes of one fixed picture: that tells it from others with the same weights.

Weights do not say what is computed with them: how the picture is scaled first, which layer gives the result,
in which order a layer's weights are taken. A fingerprint is compared within a tolerance, since machines round
differently, and what is noted of it is taken in float32, whatever the runs compute in.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigurationError
from tasks.pictures.picture import SIDE

_NUMBERS = 16
"""As half-precision floats they are 64 hex digits."""
_TOLERANCE = 0.0015
"""By how much the fingerprints of one network may differ, as a share of their lengths: half precision may
round them apart by 0.001, and float32 does by far less. model/README.md has what changes of ours make it."""
_ROUNDED = 0.05
"""The same where one of them is what the network made in bfloat16."""


def taken(network: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> str:
    """The fingerprint of a network from pictures [n, 299, 299, 3] to features [n, dims]: 64 hex digits.

    Raises:
        ConfigurationError: what it makes of the picture is not finite.
    """
    feature = np.asarray(network(picture()), np.float64)[0]
    size = np.sqrt(len(feature))
    # The mean, then waves of many lengths: each depends on all of the feature, the waves on its order too.
    waves = np.cos(np.outer(2.4 * np.arange(_NUMBERS), np.arange(1, len(feature) + 1)))
    waves[0] /= size
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = (waves @ feature / size).astype(">f2")
    if not np.isfinite(numbers).all():
        raise ConfigurationError(
            "What the model makes of a picture in [0, 1] is not finite. Put an Inception-v3 feature vector "
            "there, or remove the folder and run `make model`."
        )
    text: str = numbers.tobytes().hex()
    return text


def same(one: str, other: str, *, rounded: bool = False) -> bool:
    """Whether two fingerprints can be of one network; an empty one, of before they were taken, of any.

    Args:
        rounded: one of them was taken in bfloat16.
    """
    if not (one and other):
        return True
    try:
        first, second = (
            np.frombuffer(bytes.fromhex(text), ">f2").astype(np.float64) for text in (one, other)
        )
    except ValueError:  # nobody's: what is kept elsewhere may have been written over
        return False
    if first.shape != second.shape:
        return False
    difference = np.linalg.norm(first - second)
    lengths = np.linalg.norm(first) + np.linalg.norm(second)
    return bool(np.isfinite(lengths) and difference <= (_ROUNDED if rounded else _TOLERANCE) * lengths / 2)


def picture() -> NDArray[np.float32]:
    """The fixed picture [1, 299, 299, 3] in [0, 1]: rings that get finer to the lower right, to the width of
    a pixel, so that any scaling shows, and differ by colour."""
    down, right = np.mgrid[:SIDE, :SIDE][..., np.newaxis] / SIDE
    rings = np.array([60.0, 90.0, 120.0])
    values: NDArray[np.float32] = ((1 + np.cos(np.pi * rings * (down**2 + right**2))) / 2).astype(np.float32)
    return values[np.newaxis]
