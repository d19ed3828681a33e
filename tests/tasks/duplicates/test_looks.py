"""Whether pictures look the same, of pictures with much in them and little."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tasks.duplicates.looks import ALIKE, likeness, look
from tasks.pictures.picture import decode, to_tensor
from tests.tasks.duplicates.shop import cropped, drawn, jpeg, with_logo


def seen(picture, quality=90):
    return look(to_tensor(decode(jpeg(picture, quality), 50_000_000)))


def shirt(seed):
    """The outline of a shirt on white, with its own print."""
    picture = Image.new("RGB", (300, 300), "white")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((60, 60, 240, 270), "#456")
    pen.rectangle((20, 60, 280, 120), "#456")
    picture.paste(drawn(seed, (120, 120)), (90, 100))
    return picture


@pytest.mark.parametrize("size", [(240, 320), (400, 200), (300, 300)])
@pytest.mark.parametrize(
    "changed",
    [
        lambda picture: picture,
        cropped,
        lambda picture: picture.crop((12, 0, picture.width, picture.height - 10)),
        with_logo,
        lambda picture: picture.resize((picture.width * 6 // 10, picture.height * 6 // 10)),
    ],
    ids=["the same", "cropped", "cropped at two sides", "with a logo", "resized"],
)
def test_what_was_done_to_a_picture_leaves_it_alike(size, changed):
    picture = drawn(1, size)
    one, other = seen(picture), seen(changed(picture), quality=40)
    assert likeness(one, other) >= ALIKE
    assert likeness(other, one) == likeness(one, other)


def test_others_of_the_same_outline_are_not_alike():
    shirts = [seen(shirt(seed)) for seed in range(6)]
    others = [likeness(one, other) for n, one in enumerate(shirts) for other in shirts[:n]]
    assert max(others) < ALIKE
    assert likeness(shirts[0], seen(cropped(shirt(0)))) >= ALIKE


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_where_nothing_is_to_be_seen_nothing_is_alike(grey):
    plain = look(np.full((299, 299, 3), grey, np.float32))
    assert likeness(plain, plain) == 0
    assert likeness(plain, seen(drawn(1))) < ALIKE
