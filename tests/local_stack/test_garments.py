import io
import random

import pytest
from PIL import Image, ImageChops, ImageDraw, ImageOps

from local_stack.garments import CATEGORIES, Photograph, _encoded, draw

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif"}


@pytest.fixture(scope="module")
def photographs() -> list[Photograph]:
    return [draw(category_id, seed) for seed in range(6) for category_id in CATEGORIES]


def test_the_categories_are_those_of_the_real_shop(shop_photos) -> None:
    lines = (shop_photos / "categories.csv").read_text().splitlines()[1:]
    assert dict(line.split(",") for line in lines) == CATEGORIES


def test_every_photograph_is_what_its_extension_says(photographs: list[Photograph]) -> None:
    for photograph in photographs:
        with Image.open(io.BytesIO(photograph.data)) as picture:
            picture.load()
            assert EXTENSIONS[picture.format] == photograph.extension
            assert 240 <= max(picture.size) <= 900
            assert min(picture.size) >= 150


def test_the_same_seed_gives_the_same_photograph() -> None:
    assert draw("00000070", 11) == draw("00000070", 11)
    assert draw("00000070", 11).data != draw("00000070", 12).data


def test_photographs_differ_in_size_and_shape(photographs: list[Photograph]) -> None:
    sizes = {Image.open(io.BytesIO(photograph.data)).size for photograph in photographs}
    assert len({max(size) for size in sizes}) > 4
    assert {"portrait", "square", "landscape"} == {
        "portrait" if height > width else ("square" if height == width else "landscape")
        for width, height in sizes
    }


def test_names_say_colour_and_kind(photographs: list[Photograph]) -> None:
    assert all(", " in photograph.name for photograph in photographs)
    assert len({photograph.name for photograph in photographs}) > 45


def test_a_garment_fills_a_good_part_of_its_picture(photographs: list[Photograph]) -> None:
    for photograph in photographs:
        with Image.open(io.BytesIO(photograph.data)) as picture:
            if picture.mode != "RGBA":
                continue
            left, top, right, bottom = picture.getchannel("A").getbbox()
            share = max((right - left) / picture.width, (bottom - top) / picture.height)
            assert 0.7 < share < 0.95


def encodings() -> dict[str, tuple[bytes, str]]:
    """One file of each encoding of a picture whose upper half is red, the lower blue."""
    upright = Image.new("RGB", (60, 80), (0, 0, 200))
    ImageDraw.Draw(upright).rectangle((0, 0, 60, 40), fill=(200, 0, 0))
    found = {}
    for seed in range(600):
        data, extension = _encoded(upright, random.Random(seed))
        with Image.open(io.BytesIO(data)) as picture:
            found.setdefault(
                f"{picture.format} {picture.mode} {picture.getexif().get(0x0112, 1)}", (data, extension)
            )
    return found


def test_pictures_come_in_every_encoding_and_upright() -> None:
    found = encodings()
    assert set(found) == {
        *(f"JPEG RGB {orientation}" for orientation in (1, 3, 6, 8)),
        "JPEG CMYK 1",
        "JPEG L 1",
        "PNG RGB 1",
        "WEBP RGB 1",
        "GIF P 1",
    }
    for name, (data, extension) in found.items():
        assert name.startswith({v: k for k, v in EXTENSIONS.items()}[extension])
        with Image.open(io.BytesIO(data)) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
        assert upright.size == (60, 80), name
        if " L " not in name:
            red, _, blue = upright.getpixel((30, 10))
            assert red > 150 > 60 > blue, name
            red, _, blue = upright.getpixel((30, 70))
            assert blue > 150 > 60 > red, name


def test_different_garments_of_a_category_look_different() -> None:
    one, other = (
        ImageOps.exif_transpose(Image.open(io.BytesIO(draw("00000010", seed).data)))
        .convert("RGB")
        .resize((32, 32))
        for seed in (1, 2)
    )
    assert ImageChops.difference(one, other).getbbox() is not None
