import io
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tasks.picture import SIDE, BadPictureError, decode, to_tensor
from tasks.settings import REPOSITORY
from tasks.statuses import Status

Pixels = NDArray[np.uint8]

ENOUGH = 1_000_000
"""Pixels."""


@pytest.fixture(scope="module")
def photo() -> Pixels:
    """A small picture with gradients and some noise, wider than high."""
    x, y = np.meshgrid(np.arange(60), np.arange(40))
    rgb = np.stack([x * 4, y * 6, (x + y) * 2], axis=-1).astype(np.uint8)
    rgb[10:20, 10:30] = np.random.default_rng(7).integers(0, 255, (10, 20, 3))
    return rgb


def saved(pixels: Any, kind: str, mode: str | None = None, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG made by hand, for the kinds that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n"
    for name, data in [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]:
        file += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return file


def refusal(content: bytes, most: int = ENOUGH) -> BadPictureError:
    with pytest.raises(BadPictureError) as refused:
        decode(content, most)
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
    import tensorflow as tf

    content = in_format(name, photo)
    with Image.open(io.BytesIO(content)) as image:
        expected = tf.image.resize_with_pad(np.asarray(image.convert("RGB"), np.float32), 299, 299) / 255

    rgb = decode(content, ENOUGH)
    tensor = to_tensor(rgb)

    assert rgb.dtype == np.uint8
    assert rgb.shape == photo.shape
    if name not in ("grey JPEG", "GIF", "PNG with a palette"):
        # Lossy where the format is, but the same picture: a swap of channels or rows would be far off.
        assert np.abs(rgb.astype(int) - photo).mean() < 12
    assert tensor.dtype == np.float32
    assert tensor.shape == (SIDE, SIDE, 3)
    np.testing.assert_array_equal(tensor, expected.numpy())
    assert tensor.min() == 0
    assert 0.5 < tensor.max() <= 1


def test_interlaced_png_and_lossless_kinds_are_exact(photo: Pixels) -> None:
    # Adam7: seven passes, each with the pixels of its own grid.
    passes = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    rows = b"".join(
        b"\0" + row.tobytes() for top, left, down, right in passes for row in photo[top::down, left::right]
    )
    header = struct.pack(">IIBBBBB", 60, 40, 8, 2, 0, 0, 1)
    plain = png(60, 40, 8, 2, rows)
    old = b"IHDR" + struct.pack(">IIBBBBB", 60, 40, 8, 2, 0, 0, 0)
    new = b"IHDR" + header
    interlaced = plain.replace(
        old + struct.pack(">I", zlib.crc32(old)), new + struct.pack(">I", zlib.crc32(new))
    )
    assert interlaced != plain
    np.testing.assert_array_equal(decode(interlaced, ENOUGH), photo)
    for content in (saved(photo, "PNG"), saved(photo, "WebP", lossless=True), saved(photo, "BMP")):
        np.testing.assert_array_equal(decode(content, ENOUGH), photo)


@pytest.mark.parametrize("kind", ["GIF", "WebP", "PNG", "AVIF"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if kind == "WebP" else {}
    content = saved(first, kind, save_all=True, append_images=[second], duration=100, **options)
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 2
    assert np.abs(decode(content, ENOUGH).astype(int) - (255, 0, 0)).max() <= 3


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


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010F] = "a maker"
    tags[0x011A] = 72.0
    tags.get_ifd(0x8769)[0x9003] = "2026:01:01 00:00:00"
    return tags.tobytes()


@pytest.mark.parametrize("orientation", TURNED_BACK)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "AVIF"])
def test_orientation_is_applied(kind: str, orientation: int, photo: Pixels) -> None:
    stored = decode(saved(photo, kind), ENOUGH)
    upright = decode(saved(photo, kind, exif=exif(orientation)), ENOUGH)
    expected = TURNED_BACK[orientation](stored)
    assert upright.shape == expected.shape
    # AVIF turns while it encodes, so its loss differs a little.
    assert np.abs(upright.astype(int) - expected).mean() <= (3 if kind == "AVIF" else 0)


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
def test_an_orientation_that_does_not_exist_is_none(value: int, photo: Pixels) -> None:
    np.testing.assert_array_equal(decode(saved(photo, "PNG", exif=exif(value)), ENOUGH), photo)


def test_damage_elsewhere_in_the_exif_does_not_lay_a_picture_on_its_side(photo: Pixels) -> None:
    whole = exif(6)
    unwritable = 0
    for position in range(6, len(whole)):
        for value in (0, 2, 255):
            damaged = bytearray(whole)
            damaged[position] = value
            content = saved(photo, "PNG", exif=bytes(damaged))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(content)) as image:
                    try:
                        orientation = image.getexif().get(0x0112)
                    except SyntaxError:
                        orientation = None
                    if orientation == 6:
                        try:
                            ImageOps.exif_transpose(image)
                        except Exception:
                            unwritable += 1
                expected = TURNED_BACK.get(orientation, TURNED_BACK[1])(photo)
                np.testing.assert_array_equal(decode(content, ENOUGH), expected)
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
        decoded = decode(content, ENOUGH)
        assert np.abs(decoded.astype(int) - expected).max() <= 1
        np.testing.assert_array_equal(decoded[:, 40:], photo[:, 40:])

    grey = photo[:, :, 0]
    decoded = decode(saved(np.dstack([grey, alpha]), "PNG"), ENOUGH)
    assert (decoded[:, :20] == 255).all()
    assert np.abs(decoded[:, 20:40].astype(int) - np.round(grey[:, 20:40, None] * 0.502 + 127)).max() <= 1
    np.testing.assert_array_equal(decoded[:, 40:], np.repeat(grey[:, 40:, None], 3, axis=2))


def test_transparent_colours_and_palettes_are_white() -> None:
    white, grey = [255, 255, 255], [9, 9, 9]
    palette = (b"PLTE", b"\xff\x00\x00\x00\xff\x00\x00\x00\xff")
    for content, expected in {
        png(3, 1, 8, 3, b"\0\0\1\2", palette, (b"tRNS", b"\x00\x80")): [white, [127, 255, 127], [0, 0, 255]],
        png(2, 1, 8, 0, b"\0\5\x09", (b"tRNS", b"\0\5")): [white, grey],
        png(2, 1, 8, 2, b"\0\1\2\3\x09\x09\x09", (b"tRNS", b"\0\1\0\2\0\3")): [white, grey],
        png(2, 1, 1, 0, b"\0\x40", (b"tRNS", b"\0\0")): [white, white],
        png(2, 1, 1, 0, b"\0\x40", (b"tRNS", b"\0\1")): [[0, 0, 0], white],
    }.items():
        assert decode(content, ENOUGH)[0].tolist() == expected

    transparent = Image.new("P", (8, 8), 0)
    transparent.putpalette([255, 0, 0, 0, 255, 0])
    transparent.putpixel((7, 7), 1)
    decoded = decode(saved(transparent, "GIF", transparency=0), ENOUGH)
    assert (decoded[:7] == 255).all()
    assert decoded[7, 7].tolist() == [0, 255, 0]


def test_few_bits_are_spread_over_the_whole_range() -> None:
    assert decode(png(4, 1, 1, 0, b"\0\x50"), ENOUGH)[0, :, 0].tolist() == [0, 255, 0, 255]
    assert decode(png(4, 1, 2, 0, b"\0\x1b"), ENOUGH)[0, :, 0].tolist() == [0, 85, 170, 255]
    assert decode(png(2, 1, 4, 0, b"\0\x1f"), ENOUGH)[0, :, 0].tolist() == [17, 255]
    black_and_white = Image.new("1", (8, 2))
    black_and_white.putpixel((3, 1), 1)
    for kind in ("PNG", "BMP"):
        decoded = decode(saved(black_and_white, kind), ENOUGH)
        assert decoded[1, 3].tolist() == [255, 255, 255]
        assert decoded.sum() == 3 * 255


def test_sixteen_bits_keep_their_upper_half() -> None:
    values = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    decoded = decode(saved(values, "PNG"), ENOUGH)
    assert np.abs(decoded - (values / 257)[:, :, None]).max() < 1
    assert (decoded[:, :, 0] == decoded[:, :, 2]).all()

    colours = np.stack([values, values[::-1], values.T], axis=-1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    assert np.abs(decode(png(256, 256, 16, 2, rows), ENOUGH) - colours / 257).max() < 1


def test_cmyk_is_not_taken_for_its_negative() -> None:
    inks = {"red": (0, 255, 255, 0), "white": (0, 0, 0, 0), "black": (0, 0, 0, 255), "cyan": (255, 0, 0, 0)}
    colours = {"red": (255, 0, 0), "white": (255, 255, 255), "black": (0, 0, 0), "cyan": (0, 255, 255)}
    for name, ink in inks.items():
        content = saved(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95)
        # Adobe's marker says that the values are stored inverted, and so they are.
        assert b"Adobe" in content[:40]
        assert np.abs(decode(content, ENOUGH).astype(int) - colours[name]).max() <= 3, name


# Size and shape


def test_resizing_is_bilinear_with_black_bars() -> None:
    wide = np.zeros((2, 4, 3), np.uint8)
    wide[:, 2:] = 200
    tensor = to_tensor(wide)
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
    tensor = to_tensor(stripes)
    assert (tensor == 1).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 299), (299, 1), (2, 598), (13, 13 * 299)])
def test_a_thin_picture_is_still_one(shape: tuple[int, int]) -> None:
    tensor = to_tensor(np.full((*shape, 3), 255, np.uint8))
    assert tensor.shape == (299, 299, 3)
    assert tensor.max() == 1


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (1, 5000), (2, 599)])
def test_a_line_too_thin_to_resize_is_not_a_picture(shape: tuple[int, int]) -> None:
    rgb = decode(saved(np.zeros((*shape, 3), np.uint8), "PNG"), ENOUGH)
    with pytest.raises(BadPictureError, match=f"{shape[1]} x {shape[0]} pixels") as refused:
        to_tensor(rgb)
    assert refused.value.status == Status.NOT_A_PICTURE


# What is no picture, or no longer

NO_PICTURES = {
    "nothing": b"",
    "HTML": b"<!DOCTYPE html><html><body>Not found</body></html>",
    "text": b"Not found\n",
    "JSON": b'{"error": "not found"}',
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "zip": b"PK\x03\x04" + bytes(60),
    "PDF": b"%PDF-1.7\n",
    "TIFF": saved(Image.new("RGB", (8, 8)), "TIFF"),
    "ICO": saved(Image.new("RGB", (16, 16)), "ICO"),
    "PPM": saved(Image.new("RGB", (8, 8)), "PPM"),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "WAV": b"RIFF\x24\x00\x00\x00WAVEfmt ",
    "MP4": b"\x00\x00\x00\x18ftypmp42" + bytes(60),
    "HEIC": b"\x00\x00\x00\x18ftypheic" + bytes(60),
    "zeros": bytes(1000),
    "gzip of a PNG": b"\x1f\x8b" + zlib.compress(saved(Image.new("RGB", (8, 8)), "PNG")),
}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_what_is_none_of_our_formats_is_not_a_picture(name: str) -> None:
    assert refusal(NO_PICTURES[name]).status == Status.NOT_A_PICTURE


BEGINNINGS = {
    "JPEG": b"\xff\xd8\xff",
    "PNG": b"\x89PNG\r\n\x1a\n",
    "WebP": b"RIFF\x00\x01\x00\x00WEBP",
    "GIF": b"GIF89a",
    "BMP": b"BM",
    "AVIF": b"\x00\x00\x00\x1cftypavif",
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
            shape = decode(damaged.tobytes(), ENOUGH).shape
        except BadPictureError:
            refused += 1
        else:
            assert shape[2:] == (3,)
    if name != "BMP":  # which is little else than pixels
        assert refused > 0


# Bombs


def webp_with_canvas(width: int, height: int) -> bytes:
    """An animated WebP whose canvas is far larger than its only frame."""
    frame = saved(Image.new("RGB", (16, 16)), "WebP", lossless=True)[12:]

    def u24(value: int) -> bytes:
        return value.to_bytes(3, "little")

    def chunk(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<I", len(data)) + data

    body = b"WEBP"
    body += chunk(b"VP8X", b"\x02\0\0\0" + u24(width - 1) + u24(height - 1))
    body += chunk(b"ANIM", bytes(6))
    body += chunk(b"ANMF", u24(0) * 2 + u24(15) * 2 + u24(100) + b"\0" + frame)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif_with_sizes(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    file = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return file + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\x00;"


def claiming(kind: str, before_size: bytes, size: bytes) -> bytes:
    """A small picture whose header is made to claim another size."""
    content = bytearray(saved(Image.new("RGB", (64, 64)), kind))
    position = content.index(before_size) + len(before_size)
    content[position : position + len(size)] = size
    return bytes(content)


BOMBS = {
    "JPEG": claiming("JPEG", b"\xff\xc0\x00\x11\x08", struct.pack(">HH", 65_000, 65_000)),
    "AVIF": claiming("AVIF", b"ispe\0\0\0\0", struct.pack(">II", 16_000, 16_000)),
    "PNG": png(30_000, 30_000, 8, 2, bytes(30_000 * 3 * 30)),
    "PNG of one bit": png(60_000, 60_000, 1, 0, bytes(1000)),
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
    assert decode(content, 60 * 40).shape == (40, 60, 3)
    assert refusal(content, 60 * 40 - 1).status == Status.TOO_MANY_PIXELS


def test_bombs_take_no_memory(tmp_path: Any) -> None:
    for number, content in enumerate(BOMBS.values()):
        (tmp_path / str(number)).write_bytes(content)
    # A text chunk that inflates without end is read along with a PNG's header.
    text = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(150_000_000), 9))
    (tmp_path / "text").write_bytes(png(8, 8, 8, 2, bytes(8 * 25), text))
    profile = (b"iCCP", b"profile\0\0" + zlib.compress(bytes(150_000_000), 9))
    (tmp_path / "profile").write_bytes(png(8, 8, 8, 2, bytes(8 * 25), profile))
    measure = """
import resource, sys
from pathlib import Path
from tasks.picture import BadPictureError, decode
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
    done = subprocess.run(
        [sys.executable, "-c", measure, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = dict(line.split() for line in done.stdout.splitlines())
    assert len(outcomes) == len(BOMBS) + 2
    assert {outcomes[str(number)] for number in range(len(BOMBS))} == {"too_many_pixels"}
