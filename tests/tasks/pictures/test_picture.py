import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tasks.pictures.picture import SIDE, BadPictureError, Picture, decode, to_tensor
from tasks.statuses import Status
from tests.interpreter import output_of, peak_of
from tests.picture_corpus import (
    NUMBERS,
    PALETTE,
    SCENE,
    ancillary,
    everything,
    jpeg_segments,
    png_kinds,
)
from tests.picture_files import (
    CLOSE,
    Pixels,
    adam7_rows,
    brands,
    claiming,
    exif,
    gif_with_sizes,
    png,
    png_rows,
    resized_with_pad,
    saved,
    webp_with_canvas,
)

pytestmark = pytest.mark.xdist_group("model")  # TensorFlow takes seconds to import

ENOUGH = 1_000_000
"""Pixels."""

CORPUS = everything()


@pytest.fixture(scope="module")
def photo() -> Pixels:
    """A small picture with gradients and some noise, wider than high."""
    x, y = np.meshgrid(np.arange(60), np.arange(40))
    rgb = np.stack([x * 4, y * 6, (x + y) * 2], axis=-1).astype(np.uint8)
    rgb[10:20, 10:30] = np.random.default_rng(7).integers(0, 255, (10, 20, 3))
    return rgb


def rgb_of(content: bytes, most: int = ENOUGH) -> Pixels:
    """All of the picture, upright and on white."""
    return all_pixels(decode(content, most))


def all_pixels(picture: Picture) -> Pixels:
    return picture.pixels(np.arange(picture.height), np.arange(picture.width))


def tensor_of(rgb: Pixels) -> NDArray[np.float32]:
    return to_tensor(Picture(Image.fromarray(rgb)))


def refusal(content: bytes, most: int = ENOUGH) -> BadPictureError:
    with pytest.raises(BadPictureError) as refused:
        rgb_of(content, most)
    assert refused.value.reason
    return refused.value


# Formats

FORMATS = {
    "JPEG": {},
    "progressive JPEG": {"kind": "JPEG", "progressive": True},
    "grey JPEG": {"kind": "JPEG", "mode": "L"},
    "JPEG of a camera with two pictures": {"kind": "MPO"},
    "PNG": {},
    "PNG with a palette": {"kind": "PNG", "mode": "P"},
    "WebP": {},
    "lossless WebP": {"kind": "WebP", "lossless": True},
    "GIF": {},
    "BMP": {},
    "AVIF": {},
}


def in_format(name: str, pixels: Pixels, **more: Any) -> bytes:
    options = {"kind": name} | FORMATS[name] | more
    return saved(pixels, options.pop("kind"), options.pop("mode", None), **options)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_becomes_the_tensor_of_its_pixels(name: str, photo: Pixels) -> None:
    content = in_format(name, photo)
    with Image.open(io.BytesIO(content)) as image:
        expected = resized_with_pad(np.asarray(image.convert("RGB")))

    rgb = rgb_of(content)
    tensor = to_tensor(decode(content, ENOUGH))

    assert rgb.dtype == np.uint8
    assert rgb.shape == photo.shape
    if name not in ("grey JPEG", "GIF", "PNG with a palette"):
        # Lossy where the format is, but the same picture: a swap of channels or rows would be far off.
        assert np.abs(rgb.astype(int) - photo).mean() < 12
    assert tensor.dtype == np.float32
    assert tensor.shape == (SIDE, SIDE, 3)
    np.testing.assert_allclose(tensor, expected, rtol=0, atol=CLOSE)
    assert tensor.min() == 0
    assert 0.5 < tensor.max() <= 1


def test_interlaced_png_and_lossless_kinds_are_exact(photo: Pixels) -> None:
    interlaced = png((60, 40), 8, 2, adam7_rows(photo), interlaced=True)
    assert interlaced != png((60, 40), 8, 2, png_rows(photo))
    np.testing.assert_array_equal(rgb_of(interlaced), photo)
    for content in (saved(photo, "PNG"), saved(photo, "WebP", lossless=True), saved(photo, "BMP")):
        np.testing.assert_array_equal(rgb_of(content), photo)


@pytest.mark.parametrize("kind", ["GIF", "WebP", "PNG", "AVIF"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if kind == "WebP" else {}
    content = saved(first, kind, save_all=True, append_images=[second], duration=100, **options)
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 2
    assert np.abs(rgb_of(content).astype(int) - (255, 0, 0)).max() <= 3


# Orientation

TURNED_BACK: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),  # clockwise
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", TURNED_BACK)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "AVIF"])
def test_orientation_is_applied(kind: str, orientation: int, photo: Pixels) -> None:
    stored = rgb_of(saved(photo, kind))
    upright = rgb_of(saved(photo, kind, exif=exif(orientation)))
    expected = TURNED_BACK[orientation](stored)
    assert upright.shape == expected.shape
    # AVIF turns while it encodes, so its loss differs a little.
    assert np.abs(upright.astype(int) - expected).mean() <= (3 if kind == "AVIF" else 0)


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
def test_an_orientation_that_does_not_exist_is_none(value: int, photo: Pixels) -> None:
    np.testing.assert_array_equal(rgb_of(saved(photo, "PNG", exif=exif(value))), photo)


def test_damage_elsewhere_in_the_exif_does_not_lay_a_picture_on_its_side(photo: Pixels) -> None:
    whole = exif(6)
    # The header, the number of entries, and the entry of the orientation say how the picture lies.
    entry = whole.index(struct.pack("<HHIH" if whole[6:8] == b"II" else ">HHIH", 0x0112, 3, 1, 6))
    telling = {*range(6, 16), *range(entry, entry + 10)}
    unwritable = 0
    for position in range(16, len(whole)):
        for value in (0, 2, 255):
            damaged = bytearray(whole)
            damaged[position] = value
            content = saved(photo, "PNG", exif=bytes(damaged))
            decoded = rgb_of(content)
            if position not in telling:
                np.testing.assert_array_equal(decoded, TURNED_BACK[6](photo))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    with Image.open(io.BytesIO(content)) as image:
                        try:
                            ImageOps.exif_transpose(image)
                        except Exception:
                            unwritable += 1
    assert unwritable > 0, "no damage here is of the kind that Pillow's own function trips over"


# Colour


def test_transparency_is_white_and_half_of_it_half(photo: Pixels) -> None:
    alpha = np.full(photo.shape[:2], 255, np.uint8)
    alpha[:, :20] = 0
    alpha[:, 20:40] = 128
    expected = photo.copy()
    expected[:, :20] = 255
    expected[:, 20:40] = np.round(photo[:, 20:40] * (128 / 255) + 255 * (127 / 255))
    rgba = np.dstack([photo, alpha])
    for content in (saved(rgba, "PNG"), saved(rgba, "WebP", lossless=True, exact=True)):
        decoded = rgb_of(content)
        assert np.abs(decoded.astype(int) - expected).max() <= 1
        np.testing.assert_array_equal(decoded[:, 40:], photo[:, 40:])

    grey = photo[:, :, 0]
    decoded = rgb_of(saved(np.dstack([grey, alpha]), "PNG"))
    assert (decoded[:, :20] == 255).all()
    assert np.abs(decoded[:, 20:40].astype(int) - np.round(grey[:, 20:40, None] * 0.502 + 127)).max() <= 1
    np.testing.assert_array_equal(decoded[:, 40:], np.repeat(grey[:, 40:, None], 3, axis=2))


def test_transparent_colours_and_palettes_are_white() -> None:
    white, grey = [255, 255, 255], [9, 9, 9]
    palette = (b"PLTE", b"\xff\x00\x00\x00\xff\x00\x00\x00\xff")
    for content, expected in {
        png((3, 1), 8, 3, b"\0\0\1\2", palette, (b"tRNS", b"\x00\x80")): [
            white,
            [127, 255, 127],
            [0, 0, 255],
        ],
        png((2, 1), 8, 0, b"\0\5\x09", (b"tRNS", b"\0\5")): [white, grey],
        png((2, 1), 8, 2, b"\0\1\2\3\x09\x09\x09", (b"tRNS", b"\0\1\0\2\0\3")): [white, grey],
        png((2, 1), 1, 0, b"\0\x40", (b"tRNS", b"\0\0")): [white, white],
        png((2, 1), 1, 0, b"\0\x40", (b"tRNS", b"\0\1")): [[0, 0, 0], white],
    }.items():
        assert rgb_of(content)[0].tolist() == expected

    transparent = Image.new("P", (8, 8), 0)
    transparent.putpalette([255, 0, 0, 0, 255, 0])
    transparent.putpixel((7, 7), 1)
    decoded = rgb_of(saved(transparent, "GIF", transparency=0))
    assert (decoded[:7] == 255).all()
    assert decoded[7, 7].tolist() == [0, 255, 0]


def test_few_bits_are_spread_over_the_whole_range() -> None:
    assert rgb_of(png((4, 1), 1, 0, b"\0\x50"))[0, :, 0].tolist() == [0, 255, 0, 255]
    assert rgb_of(png((4, 1), 2, 0, b"\0\x1b"))[0, :, 0].tolist() == [0, 85, 170, 255]
    assert rgb_of(png((2, 1), 4, 0, b"\0\x1f"))[0, :, 0].tolist() == [17, 255]
    black_and_white = Image.new("1", (8, 2))
    black_and_white.putpixel((3, 1), 1)
    for kind in ("PNG", "BMP"):
        decoded = rgb_of(saved(black_and_white, kind))
        assert decoded[1, 3].tolist() == [255, 255, 255]
        assert decoded.sum() == 3 * 255


def test_sixteen_bits_keep_their_upper_half() -> None:
    values = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    decoded = rgb_of(saved(values, "PNG"))
    assert np.abs(decoded - (values / 257)[:, :, None]).max() < 1
    assert (decoded[:, :, 0] == decoded[:, :, 2]).all()

    colours = np.stack([values, values[::-1], values.T], axis=-1)
    assert np.abs(rgb_of(png((256, 256), 16, 2, png_rows(colours))) - colours / 257).max() < 1


def test_cmyk_is_not_taken_for_its_negative() -> None:
    inks = {"red": (0, 255, 255, 0), "white": (0, 0, 0, 0), "black": (0, 0, 0, 255), "cyan": (255, 0, 0, 0)}
    colours = {"red": (255, 0, 0), "white": (255, 255, 255), "black": (0, 0, 0), "cyan": (0, 255, 255)}
    for name, ink in inks.items():
        content = saved(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95)
        # Adobe's marker says that the values are stored inverted, and so they are.
        assert b"Adobe" in content[:40]
        assert np.abs(rgb_of(content).astype(int) - colours[name]).max() <= 3, name


# What stands beside the pixels

XMP_HOMES = ["XMP of a JPEG", "XMP of a PNG", "XMP of a WebP", "raw profile of a PNG"]


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("home", XMP_HOMES)
def test_xmp_turns_no_picture(home: str, number: int) -> None:
    upright = CORPUS[f"orientation: 1 in the {home}"]
    np.testing.assert_array_equal(rgb_of(CORPUS[f"orientation: {number} in the {home}"]), rgb_of(upright))


@pytest.mark.parametrize("number", range(1, 9))
def test_exif_turns_no_webp(number: int) -> None:
    decoded = rgb_of(CORPUS[f"orientation: {number} in the EXIF of a WebP"])
    np.testing.assert_array_equal(decoded, SCENE)


def test_xmp_of_an_avif_turns_it_not() -> None:
    plain = rgb_of(saved(SCENE, "AVIF", quality=95, subsampling="4:4:4"))
    np.testing.assert_array_equal(rgb_of(CORPUS["AVIF: 4:4:4: XMP whole"]), plain)


ANCILLARY = [name for chunk in ancillary() for name in CORPUS if name.startswith(f"PNG: colours 8: {chunk} ")]
# Neither turned nor in other colours, and without the lengths that swallow what the pixels need.
METADATA = {
    name: content
    for segment in jpeg_segments()
    for name, content in CORPUS.items()
    if name.startswith(f"JPEG: 4:2:0 baseline: {segment} ")
    and not re.search(r" off$|EXIF (before|with)|XMP of another|Adobe 0", name)
}


@pytest.mark.parametrize("name", ANCILLARY)
def test_no_chunk_beside_its_pixels_costs_a_png(name: str) -> None:
    np.testing.assert_array_equal(rgb_of(CORPUS[name]), SCENE)


def test_no_segment_beside_its_pixels_costs_a_jpeg() -> None:
    whole = rgb_of(CORPUS["JPEG: 4:2:0 baseline: as written"])
    assert len(METADATA) > 200
    for name, content in METADATA.items():
        np.testing.assert_array_equal(rgb_of(content), whole, err_msg=name)


@pytest.mark.parametrize(
    "kind", ["grey 1", "grey 2", "grey 4", "grey 8", "grey 16", "colours 8", "colours 16"]
)
@pytest.mark.parametrize("rows", ["plain", "interlaced"])
def test_the_transparent_colour_of_any_depth_is_white(kind: str, rows: str) -> None:
    depth, _, samples, _ = png_kinds()[f"{kind} transparent"]
    clear = samples == samples[6, 7] if samples.ndim == 2 else (samples == samples[6, 7]).all(axis=2)
    shades = samples >> 8 if depth == 16 else samples * (255 // (2**depth - 1))
    expected = shades if samples.ndim == 3 else np.repeat(shades[:, :, None], 3, axis=2)
    expected = np.where(clear[:, :, None], 255, expected)
    np.testing.assert_array_equal(rgb_of(CORPUS[f"PNG: {kind} transparent: {rows}"]), expected)
    if depth == 16:
        near = rgb_of(CORPUS[f"PNG: {kind} transparent, others near it: {rows}"])
        assert (near[14:20, 6:20] == shades[6, 7]).all()
        assert (near[6, 7] == 255).all()


@pytest.mark.parametrize("background", [0, 5, 200])
@pytest.mark.parametrize("transparent", [None, 5, 0])
@pytest.mark.parametrize("animated", ["", "animated "])
def test_what_the_first_frame_of_a_gif_leaves_uncovered_is_white(
    animated: str, transparent: int | None, background: int
) -> None:
    for place, left, top in (("in its corner", 0, 0), ("within it", 8, 6), ("partly beyond it", 30, 22)):
        decoded = rgb_of(
            CORPUS[
                f"{animated}GIF: first frame {place}: {'nothing' if transparent is None else transparent} "
                f"transparent, background {background}, the common colours"
            ]
        )
        frame = PALETTE[NUMBERS[4:14, 6:26]]
        if transparent is not None:
            frame[NUMBERS[4:14, 6:26] == transparent] = 255
        height, width = max(len(SCENE), top + 10), max(len(SCENE[0]), left + 20)
        expected = np.full((height, width, 3), 255, np.uint8)
        expected[top : top + 10, left : left + 20] = frame
        np.testing.assert_array_equal(decoded, expected, err_msg=place)


def test_what_the_first_frame_of_a_webp_or_png_leaves_uncovered_is_white() -> None:
    expected = np.full_like(SCENE, 255)
    expected[6:16, 8:28] = SCENE[4:14, 6:26]
    for flags in range(4):
        for background in ("00000000", "ff0000ff"):
            name = f"animated WebP: lossless: first frame within it, flags {flags}, {background} behind it"
            np.testing.assert_array_equal(rgb_of(CORPUS[name]), expected)
    expected = np.full_like(SCENE, 255)
    expected[5:15, 8:28] = SCENE[4:14, 6:26]
    decoded = rgb_of(CORPUS["animated PNG: colours 8: pixels that are no frame"])
    np.testing.assert_array_equal(decoded, expected)


def test_what_is_wrong_with_the_end_of_compressed_pixels_costs_none() -> None:
    for name in (
        "wrong checksum of all pixels",
        "without the checksum of all pixels",
        "no end",
        "half an end",
    ):
        np.testing.assert_array_equal(rgb_of(CORPUS[f"PNG: colours 8: {name}"]), SCENE)


# Files that end early


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_of_which_98_percent_of_the_rows_are_there_is_white_below(mode: str, orientation: int) -> None:
    """Rows in blocks of 8, of which the last one or two are not there."""
    high = np.random.default_rng(4).integers(0, 256, (800, 24, 3), np.uint8)
    whole = saved(high, "JPEG", mode, subsampling="4:4:4", exif=exif(orientation))
    complete = rgb_of(whole)
    upright = complete if orientation == 1 else np.rot90(complete)
    taken, refused = 0, 0
    for missing in range(2, 1200, 40):
        content = whole[:-missing]
        try:
            picture = decode(content, ENOUGH)
        except BadPictureError:
            assert refusal(content).status == Status.CORRUPT
            refused += 1
            continue
        taken += 1
        assert not refused, "the more is missing, the less is there"
        assert picture.incomplete
        rows = all_pixels(picture) if orientation == 1 else np.rot90(all_pixels(picture))
        blank = int((rows == 255).all(axis=(1, 2)).sum())
        assert blank in (8, 16)
        np.testing.assert_array_equal(rows[: 800 - blank], upright[: 800 - blank])
        assert (rows[800 - blank :] == 255).all()
    assert taken
    assert refused
    assert not decode(whole, ENOUGH).incomplete


def test_a_progressive_jpeg_without_its_end_is_whole(photo: Pixels) -> None:
    whole = in_format("progressive JPEG", photo)
    picture = decode(whole[:-2], ENOUGH)
    assert picture.incomplete
    np.testing.assert_array_equal(all_pixels(picture), rgb_of(whole))
    # Without its last scan, and within it.
    for cut in (whole.rindex(b"\xff\xda"), whole.rindex(b"\xff\xda") + 30):
        assert refusal(whole[:cut]).status == Status.CORRUPT


# Size and shape


def test_resizing_is_bilinear_with_black_bars() -> None:
    wide = np.zeros((2, 4, 3), np.uint8)
    wide[:, 2:] = 200
    tensor = tensor_of(wide)
    # 4 x 2 becomes 299 x 149.5, cut to 149 rows, below (299 - 149.5) / 2 rows, cut to 74.
    assert (tensor[:74] == 0).all()
    assert (tensor[74 + 149 :] == 0).all()
    picture = tensor[74 : 74 + 149]
    assert picture.shape == (149, 299, 3)
    assert (picture == picture[:1]).all()
    # Pixel i of the result is at (i + 0.5) * 4 / 299 - 0.5 of the source.
    position = (np.arange(299) + 0.5) * 4 / 299 - 0.5
    expected = np.interp(position, [0, 1, 2, 3], [0, 0, 200, 200]) / 255
    np.testing.assert_allclose(picture[0, :, 0], expected, atol=1e-5)


def test_shrinking_does_not_smooth() -> None:
    # Antialiased, fine stripes would turn grey; the contract's function picks between two neighbours.
    stripes = np.zeros((299 * 3, 299 * 3, 3), np.uint8)
    stripes[:, 1::3] = 255
    tensor = tensor_of(stripes)
    assert (tensor == 1).all()


SHAPES = [
    *[(1, 1), (1, 2), (2, 1), (1, 299), (299, 1), (2, 598), (13, 13 * 299)],
    *[(299, 299), (298, 299), (299, 300), (301, 299), (597, 599), (598, 598), (149, 150)],
    *[
        (533, 400),
        (400, 711),
        (1201, 1607),
        (2399, 1801),
        (3000, 4000),
        (9973, 101),
        (101, 9973),
        (409, 60_000),
    ],
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_it_is_what_tensorflow_computes(shape: tuple[int, int]) -> None:
    rgb = np.random.default_rng(shape).integers(0, 256, (*shape, 3), np.uint8)
    np.testing.assert_allclose(tensor_of(rgb), resized_with_pad(rgb), rtol=0, atol=CLOSE)


@given(st.integers(1, 1_500), st.integers(1, 1_500), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_it_is_what_tensorflow_computes_at_any_size(height: int, width: int, seed: int) -> None:
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    try:
        tensor = tensor_of(rgb)
    except BadPictureError:
        assert max(height, width) >= 300 * min(height, width)
        with pytest.raises(Exception, match="output dimensions must be positive"):
            resized_with_pad(rgb)
    else:
        np.testing.assert_allclose(tensor, resized_with_pad(rgb), rtol=0, atol=CLOSE)


def test_a_tensor_leaves_nothing_of_the_one_before_it(photo: Pixels) -> None:
    place = np.full((SIDE, SIDE, 3), np.nan, np.float32)
    for rgb in (photo, photo.swapaxes(0, 1), photo[:10, :50]):
        picture = Picture(Image.fromarray(rgb))
        assert to_tensor(picture, place) is place
        np.testing.assert_array_equal(place, to_tensor(picture))


SIZES = st.sampled_from([(30, 20), (700, 40), (31, 640), (900, 800)])


@given(SIZES, st.sampled_from(range(9)), st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_pixels_are_those_of_the_whole_picture(size: tuple[int, int], orientation: int, data: Any) -> None:
    """Whether few rows are wanted or all, and however they have to be turned."""
    width, height = size
    x, y = np.arange(width), np.arange(height)[:, None]
    stored = np.stack([x % 251 + 0 * y, y % 241 + 0 * x, (x + 3 * y) % 239], axis=-1).astype(np.uint8)
    expected = TURNED_BACK.get(orientation, TURNED_BACK[1])(stored)
    picture = Picture(Image.fromarray(stored), orientation)
    assert (picture.height, picture.width) == expected.shape[:2]
    rows, columns = (
        np.unique(data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=40)))
        for length in expected.shape[:2]
    )
    taken = picture.pixels(rows, columns)
    assert taken.shape == (len(rows), len(columns), 3)
    np.testing.assert_array_equal(taken, expected[np.ix_(rows, columns)])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_colours_do_not_depend_on_how_many_pixels_are_wanted(mode: str) -> None:
    levels = np.arange(100 * 70).reshape(100, 70) % 256
    image = Image.fromarray(
        np.dstack([levels, levels.T.reshape(100, 70), 255 - levels, levels]).astype(np.uint8)
    )
    if mode.startswith("I"):
        image = Image.fromarray((levels * 257).astype(np.uint16)).convert(mode)
    else:
        image = image.convert(mode)
    if mode == "P":
        image.info["transparency"] = 7
    picture = Picture(image)
    rows, columns = np.array([0, 40, 41, 99]), np.array([3, 69])
    whole = all_pixels(picture)
    assert len(np.unique(whole)) > (1 if mode == "1" else 50)
    np.testing.assert_array_equal(picture.pixels(rows, columns), whole[np.ix_(rows, columns)])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I;16", "CMYK"])
def test_a_large_picture_costs_no_copy_of_itself(mode: str) -> None:
    """Pillow's own memory does not count here, but every conversion to bytes and numbers does."""
    prepare = f"""
from PIL import Image
from tasks.pictures.picture import Picture, to_tensor
image = Image.new({mode!r}, (5_000, 4_000))
"""
    for_both = "\n".join(f"to_tensor(Picture(image, {orientation}))" for orientation in (1, 6))
    assert peak_of(prepare, for_both) < 10_000_000


@pytest.mark.parametrize("shape", [(1, 1), (1, 299), (299, 1), (2, 598), (13, 13 * 299)])
def test_a_thin_picture_is_still_one(shape: tuple[int, int]) -> None:
    tensor = tensor_of(np.full((*shape, 3), 255, np.uint8))
    assert tensor.shape == (299, 299, 3)
    assert tensor.max() == 1


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (1, 5000), (2, 599)])
def test_a_line_too_thin_to_resize_is_not_a_picture(shape: tuple[int, int]) -> None:
    picture = decode(saved(np.zeros((*shape, 3), np.uint8), "PNG"), ENOUGH)
    with pytest.raises(BadPictureError, match=f"{shape[1]} x {shape[0]} pixels") as refused:
        to_tensor(picture)
    assert refused.value.status == Status.NOT_A_PICTURE


# What is no picture, or no longer

NO_PICTURES = {
    "nothing": b"",
    "HTML": b"<!DOCTYPE html><html><body>Not found</body></html>",
    "HTML with a drawing": b"<!DOCTYPE html><html><body><svg width='9' height='9'/></body></html>",
    "text": b"Not found\n",
    "JSON": b'{"error": "not found"}',
    "XML": b'<?xml version="1.0"?><svgs/>',
    "zip": b"PK\x03\x04" + bytes(60),
    "PDF": b"%PDF-1.7\n",
    "PPM": saved(Image.new("RGB", (8, 8)), "PPM"),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "WAV": b"RIFF\x24\x00\x00\x00WAVEfmt ",
    "MP4": b"\x00\x00\x00\x18ftypmp42" + bytes(60),
    "font": b"\x00\x01\x00\x00\x00\x0f" + bytes(60),
    "zeros": bytes(1000),
    "gzip of a PNG": b"\x1f\x8b" + zlib.compress(saved(Image.new("RGB", (8, 8)), "PNG")),
}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_what_is_none_of_our_formats_is_not_a_picture(name: str) -> None:
    assert refusal(NO_PICTURES[name]).status == Status.NOT_A_PICTURE


OTHER_FORMATS = {
    "TIFF, little-endian": ("TIFF", saved(Image.new("RGB", (8, 8)), "TIFF")),
    "TIFF, big-endian": ("TIFF", b"MM\0*\0\0\0\x08" + bytes(60)),
    "big TIFF": ("TIFF", b"II+\0\x08\0\0\0" + bytes(60)),
    "icon": ("icon", saved(Image.new("RGB", (16, 16)), "ICO")),
    "cursor": ("icon", b"\0\0\2\0\1\0" + bytes(60)),
    "Photoshop": ("Photoshop", b"8BPS\0\1" + bytes(60)),
    "JPEG 2000": ("JPEG 2000", saved(Image.new("RGB", (8, 8)), "JPEG2000")),
    "JPEG 2000 without a container": ("JPEG 2000", saved(Image.new("RGB", (8, 8)), "JPEG2000", no_jp2=True)),
    "JPEG XL": ("JPEG XL", b"\xff\x0a" + bytes(60)),
    "JPEG XL in a container": ("JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(60)),
    "HEIC": ("HEIF", brands(b"heic", b"mif1", b"heic")),
    "HEIC that names it second": ("HEIF", brands(b"mif1", b"mif1", b"heic")),
    "HEIF sequence": ("HEIF", brands(b"msf1", b"hevc")),
    "SVG": ("SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
    "SVG of an editor": (
        "SVG",
        b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- <html> -->\n"
        b"<!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN' 'http://www.w3.org/svg11.dtd' [\n"
        b"<!ENTITY ns_svg 'http://www.w3.org/2000/svg'>\n]>\n<svg:svg xmlns:svg='&ns_svg;'></svg:svg>",
    ),
}


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_another_picture_format_is_named(name: str) -> None:
    format_, content = OTHER_FORMATS[name]
    refused = refusal(content)
    assert refused.status == Status.UNSUPPORTED_FORMAT
    assert refused.reason.startswith(f"{format_}, not one of JPEG,")


def test_long_beginnings_are_told_from_svg_at_once() -> None:
    """Each would keep a pattern that tries again and again busy for years."""
    for filler in (
        b" ",
        b"<!---->",
        b"<?a?>",
        b"<!DOCTYPE a>",
        b"<!DOCTYPE a [ ] >",
        b"<!DOCTYPE a [",
        b"<?",
        b"<!--",
    ):
        assert refusal(filler * 100_000).status == Status.NOT_A_PICTURE


BEGINNINGS = {
    "JPEG": b"\xff\xd8\xff",
    "PNG": b"\x89PNG\r\n\x1a\n",
    "WebP": b"RIFF\x00\x01\x00\x00WEBP",
    "GIF": b"GIF89a",
    "BMP": b"BM",
    "AVIF": b"\x00\x00\x00\x1cftypavif",
    "AVIF that names it second": brands(b"mif1", b"mif1", b"avif")[:28],
}


@pytest.mark.parametrize("name", BEGINNINGS)
def test_what_begins_like_a_picture_and_goes_on_otherwise_is_corrupt(name: str) -> None:
    noise = np.random.default_rng(3).bytes(3000)
    for rest in (b"", noise, bytes(3000)):
        assert refusal(BEGINNINGS[name] + rest).status == Status.CORRUPT


@pytest.mark.parametrize("name", FORMATS)
def test_a_picture_cut_anywhere_is_corrupt(name: str, photo: Pixels) -> None:
    content = in_format(name, photo)
    # Closer to its end, some formats have all pixels and lack what follows them alone.
    signature = len(BEGINNINGS.get(name.split()[-1], b"12345678901"))
    for length in range(len(content) - 30):
        status = refusal(content[:length]).status
        if length >= signature:
            assert status == Status.CORRUPT, length
        assert status in (Status.CORRUPT, Status.NOT_A_PICTURE)


@pytest.mark.parametrize("name", FORMATS)
def test_damage_costs_the_picture_and_nothing_else(name: str, photo: Pixels) -> None:
    content = in_format(name, photo)
    random = np.random.default_rng(11)
    refused = 0
    for _ in range(150):
        damaged = np.frombuffer(content, np.uint8).copy()
        where = random.integers(len(BEGINNINGS.get(name, b"123")), len(content), random.integers(1, 9))
        damaged[where] = random.integers(0, 256, len(where))
        try:
            shape = rgb_of(damaged.tobytes()).shape
        except BadPictureError:
            refused += 1
        else:
            assert shape[2:] == (3,)
    if name != "BMP":  # which is little else than pixels
        assert refused > 0


# Bombs


BOMBS = {
    "JPEG": claiming("JPEG", b"\xff\xc0\x00\x11\x08", struct.pack(">HH", 65_000, 65_000)),
    "AVIF": claiming("AVIF", b"ispe\0\0\0\0", struct.pack(">II", 16_000, 16_000)),
    "PNG": png((30_000, 30_000), 8, 2, bytes(30_000 * 3 * 30)),
    "PNG of one bit": png((60_000, 60_000), 1, 0, bytes(1000)),
    "GIF by its screen": gif_with_sizes((60_000, 60_000), (1, 1)),
    "GIF by its frame": gif_with_sizes((1, 1), (60_000, 60_000)),
    "WebP": webp_with_canvas(16_383, 16_383),
    "BMP": b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, 40_000, 40_000, 1, 24, 0, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("name", BOMBS)
def test_too_many_pixels_are_told_from_the_header(name: str) -> None:
    refused = refusal(BOMBS[name], 50_000_000)
    assert refused.status == Status.TOO_MANY_PIXELS
    assert "50000000" in refused.reason


def test_the_limit_is_the_last_size_allowed(photo: Pixels) -> None:
    content = saved(photo, "PNG")
    assert rgb_of(content, 60 * 40).shape == (40, 60, 3)
    assert refusal(content, 60 * 40 - 1).status == Status.TOO_MANY_PIXELS


def test_bombs_take_no_memory(tmp_path: Any) -> None:
    for number, content in enumerate(BOMBS.values()):
        (tmp_path / str(number)).write_bytes(content)
    # A text chunk that inflates without end is read along with a PNG's header.
    text = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(150_000_000), 9))
    (tmp_path / "text").write_bytes(png((8, 8), 8, 2, bytes(8 * 25), text))
    profile = (b"iCCP", b"profile\0\0" + zlib.compress(bytes(150_000_000), 9))
    (tmp_path / "profile").write_bytes(png((8, 8), 8, 2, bytes(8 * 25), profile))
    measure = """
import resource, sys
from pathlib import Path
from tasks.pictures.picture import BadPictureError, decode
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        decode(path.read_bytes(), 50_000_000)
        print(path.name, "decoded")
    except BadPictureError as error:
        print(path.name, error.status.value)
    assert peak() < before + 60, f"{path.name} took {peak() - before} MB"
"""
    output = output_of(measure, tmp_path)
    outcomes = dict(line.split() for line in output.splitlines())
    assert len(outcomes) == len(BOMBS) + 2
    assert {outcomes[str(number)] for number in range(len(BOMBS))} == {"too_many_pixels"}
