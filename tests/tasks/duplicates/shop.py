"""Pictures and features of a shop, some of them nearly the same."""

import functools
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.inference.model import Identity
from tasks.settings import Settings
from tasks.space.categories import CategoryModel
from tasks.space.published import Space, publish
from tasks.space.vectors import Codes, Compact

MODEL = Identity("some-version", "3c00" * 16)
DIMS = 2048


def features(seed: int, count: int = 400) -> NDArray[np.float32]:
    """Features [n, 2048] like the network's, of pictures that have nothing to do with each other."""
    return np.random.default_rng(seed).gamma(0.3, 1.0, (count, DIMS)).astype(np.float32)


def published_space(settings: Settings, model: Identity = MODEL, seed: int = 0) -> Space:
    """A space as the DAG feature_space publishes one."""
    compact, codes = _learnt(seed)
    categories = CategoryModel(("a", "b"), np.zeros((2, DIMS), np.float32), np.zeros(2, np.float32))
    space = Space(model, compact, codes, categories)
    publish(space, settings)
    return space


@functools.cache
def _learnt(seed: int) -> tuple[Compact, Codes]:
    learnt_from = features(seed)
    compact = Compact.learnt([learnt_from])
    return compact, Codes.learnt(compact.vectors(learnt_from))


def near(feature: NDArray[np.float32], cosine: float, compact: Compact, seed: int) -> NDArray[np.float32]:
    """A feature whose centred square roots have about this cosine with those of another one."""
    other = features(seed + 1_000, 1)
    low, high = 0.0, 1.0
    for _ in range(40):  # by halves: the more of the other one, the smaller the cosine
        share = (low + high) / 2
        mixed = ((1 - share) * np.sqrt(feature) + share * np.sqrt(other[0])) ** 2
        found = float(compact.centred(feature[np.newaxis])[0] @ compact.centred(mixed[np.newaxis])[0])
        low, high = (share, high) if found > cosine else (low, share)
    return np.asarray(mixed, np.float32)


def drawn(seed: int, size: tuple[int, int] = (240, 320)) -> Image.Image:
    """A picture with much to see in it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def jpeg(picture: Image.Image, quality: int = 90) -> bytes:
    """The bytes of its file."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality)
    return content.getvalue()


def cropped(picture: Image.Image, share: float = 0.05) -> Image.Image:
    """Without so much at each side."""
    left, top = round(picture.width * share), round(picture.height * share)
    return picture.crop((left, top, picture.width - left, picture.height - top))


def with_logo(picture: Image.Image) -> Image.Image:
    """With a small square in a corner."""
    marked = picture.copy()
    side = round(min(picture.size) * 0.15)
    marked.paste((200, 20, 30), (4, 4, 4 + side, 4 + side))
    return marked
