"""Odd, damaged and hostile pictures, all through one pool of real decoders."""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image

from tasks.pictures.decoders import Decoders
from tasks.pictures.picture import BadPictureError
from tasks.settings import Settings
from tasks.statuses import Status
from tests.picture_files import (
    CLOSE,
    Pixels,
    adam7_rows,
    bmp,
    brands,
    claiming,
    exif,
    gif_with_sizes,
    jpeg_segment,
    png,
    png_of,
    png_rows,
    replaced,
    resized_with_pad,
    saved,
    webp,
    webp_with_canvas,
)

pytestmark = pytest.mark.xdist_group("model")  # TensorFlow takes seconds to import

Result = NDArray[np.float32] | BadPictureError

MOST_PIXELS = 20_000_000


def made_scene() -> Pixels:
    """Gentle gradients and two boxes: what a lossy format keeps nearly as it is. Wider than high."""
    x, y = np.meshgrid(np.arange(120), np.arange(80))
    rgb = np.stack([x * 2, y * 3, 255 - x - y], axis=-1).astype(np.uint8)
    rgb[16:48, 16:64] = (200, 60, 40)
    rgb[48:64, 80:112] = (20, 30, 160)
    return rgb


SCENE = made_scene()
HEIGHT, WIDTH, _ = SCENE.shape
SIZE = (WIDTH, HEIGHT)
GREY = SCENE[:, :, 0]
THREE_GREYS = np.repeat(GREY[:, :, None], 3, axis=2)
DEEP = (SCENE.astype(np.uint16) << 8) + 77
ALPHA = np.repeat(np.linspace(0, 255, HEIGHT).astype(np.uint8)[:, None], WIDTH, axis=1)
RGBA = np.dstack([SCENE, ALPHA])


def on_white(rgb: Pixels, alpha: Pixels) -> Pixels:
    share = alpha[:, :, None] / 255
    return np.round(rgb * share + 255 * (1 - share)).astype(np.uint8)


# Few colours: each pixel's number, and the colours by number.
NUMBERS = (np.arange(WIDTH) // 8 % 4 + 4 * (np.arange(HEIGHT)[:, None] // 8 % 4)).astype(np.uint8)
PALETTE = np.random.default_rng(3).integers(0, 256, (16, 3)).astype(np.uint8)
FEW_COLOURS = PALETTE[NUMBERS]


class Good(NamedTuple):
    """A picture, the pixels it was made from, and how many levels of grey its tensor may be off.

    Without a loss there are none; mixing with white rounds; a lossy format smears the edges of the boxes,
    most of all where it keeps colours at half the size. On average it is a level, or a twentieth of that.
    """

    content: bytes
    rgb: Pixels
    levels: float = 0


ROUNDED, LOSSY, HALF_THE_COLOURS = 1.01, 24, 100


class Bad(NamedTuple):
    content: bytes
    status: Status


# Legal and odd


def jpegs() -> dict[str, Good]:
    plain = {"quality": 98, "subsampling": 0}
    best = saved(SCENE, "JPEG", **plain)
    ink = 255 - np.dstack([SCENE, np.full_like(GREY, 215)])
    printed = saved(Image.fromarray(ink, "CMYK"), "JPEG", quality=98)
    on_paper = np.round((255.0 - ink[:, :, :3]) * (255.0 - ink[:, :, 3:]) / 255).astype(np.uint8)
    # Adobe stores inks inverted, and may turn the first three into brightness and colour besides.
    bright = np.asarray(Image.fromarray(ink[:, :, :3]).convert("YCbCr"))
    as_ycck = saved(Image.fromarray(np.dstack([255 - bright, ink[:, :, 3]]), "CMYK"), "JPEG", quality=98)
    ycck = replaced(as_ycck, b"Adobe\0\x64\0\0\0\0", b"\2")
    turned = {
        2: np.fliplr(SCENE),
        3: np.rot90(SCENE, 2),
        4: np.flipud(SCENE),
        5: SCENE.swapaxes(0, 1),
        6: np.rot90(SCENE, -1),
        7: np.rot90(SCENE, 2).swapaxes(0, 1),
        8: np.rot90(SCENE),
    }
    found = {
        "JPEG": Good(best, SCENE, LOSSY),
        "JPEG, progressive": Good(saved(SCENE, "JPEG", progressive=True, **plain), SCENE, LOSSY),
        "JPEG, grey": Good(saved(GREY, "JPEG", quality=98), THREE_GREYS, LOSSY),
        "JPEG, half the colours": Good(saved(SCENE, "JPEG", quality=98), SCENE, HALF_THE_COLOURS),
        "JPEG, with restart markers": Good(
            saved(SCENE, "JPEG", restart_marker_blocks=2, **plain), SCENE, LOSSY
        ),
        "JPEG, optimised": Good(saved(SCENE, "JPEG", optimize=True, **plain), SCENE, LOSSY),
        "JPEG, CMYK of Adobe": Good(printed, on_paper, LOSSY),
        "JPEG, YCCK of Adobe": Good(ycck, on_paper, LOSSY),
        "JPEG, two pictures": Good(
            saved(SCENE, "MPO", save_all=True, append_images=[Image.new("RGB", SIZE)], **plain), SCENE, LOSSY
        ),
        "JPEG, with an orientation that does not exist": Good(
            saved(SCENE, "JPEG", exif=exif(9), **plain), SCENE, LOSSY
        ),
        "JPEG, one pixel": Good(saved(SCENE[:1, :1], "JPEG", **plain), SCENE[:1, :1], 2),
        "JPEG, with a megabyte behind it": Good(
            best + np.random.default_rng(1).bytes(1_000_000), SCENE, LOSSY
        ),
        "JPEG, with a zip behind it": Good(
            best + b"PK\3\4" + bytes(200) + b"PK\5\6" + bytes(18), SCENE, LOSSY
        ),
        "JPEG, with a web page in a comment": Good(
            best[:2] + jpeg_segment(0xFE, b"<html><script>alert(1)</script>") + best[2:], SCENE, LOSSY
        ),
        "JPEG, with a segment without length": Good(best[:2] + b"\xff\xe1\0\0" + best[2:], SCENE, LOSSY),
        "JPEG, with 20,000 comments": Good(
            best[:2] + jpeg_segment(0xFE, b"") * 20_000 + best[2:], SCENE, LOSSY
        ),
    }
    return found | {
        f"JPEG, turned as {orientation}": Good(
            saved(SCENE, "JPEG", exif=exif(orientation), **plain), upright, LOSSY
        )
        for orientation, upright in turned.items()
    }


def ifd(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    """A directory of EXIF, big-endian: entries of tag, type, count and value."""
    body = b"".join(struct.pack(">HHII", *entry) for entry in entries)
    return struct.pack(">H", len(entries)) + body + struct.pack(">I", following)


def strange_exifs() -> dict[str, Good]:
    plain = {"quality": 98, "subsampling": 0}
    orientation = (0x0112, 3, 1, 6 << 16)
    directories = {
        # Both the next directory and the one of the camera are this one again.
        "that leads back to itself": (ifd(orientation, (0x8769, 4, 1, 8), following=8), True),
        "with an endless orientation": (ifd((0x0112, 3, 0xFFFFFFFF, 8)), False),
        "with an orientation somewhere else": (ifd((0x0112, 4, 2, 0xFFFFFFF0)), False),
        "with more entries than there are": (b"\xff\xff" + ifd(orientation)[2:], True),
        "with 3,000 entries": (ifd(*[(0x9000, 1, 1, 0)] * 3_000, orientation), True),
        "with a text for an orientation": (ifd((0x0112, 2, 4, 0x36000000)), False),
        "of nothing": (b"", False),
    }
    return {
        f"EXIF {name}": Good(
            saved(SCENE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08" + directory, **plain),
            np.rot90(SCENE, -1) if applies else SCENE,
            LOSSY,
        )
        for name, (directory, applies) in directories.items()
    }


def pngs() -> dict[str, Good]:
    rows = png_rows(SCENE)
    colours = (b"PLTE", PALETTE.tobytes())
    packed = (NUMBERS[:, ::2] << 4) + NUMBERS[:, 1::2]
    fading = np.arange(0, 256, 17).astype(np.uint8)
    two = NUMBERS % 2
    deep_alpha = ALPHA.astype(np.uint16) * 257
    plain = [(b"IHDR", struct.pack(">IIBBBBB", *SIZE, 8, 2, 0, 0, 0))]
    squeezed = zlib.compress(rows)
    pieces = [(b"IDAT", squeezed[i : i + 1]) for i in range(len(squeezed))]
    end = [(b"IEND", b"")]
    crc = zlib.crc32(b"IDAT" + squeezed).to_bytes(4)
    return {
        "PNG": Good(png(SIZE, 8, 2, rows), SCENE),
        "PNG, interlaced": Good(png(SIZE, 8, 2, adam7_rows(SCENE), interlaced=True), SCENE),
        "PNG, grey": Good(png(SIZE, 8, 0, png_rows(GREY)), THREE_GREYS),
        "PNG, grey of 16 bits": Good(png(SIZE, 16, 0, png_rows(DEEP[:, :, 0])), THREE_GREYS),
        "PNG, colours of 16 bits": Good(png(SIZE, 16, 2, png_rows(DEEP)), SCENE),
        "PNG, colours and alpha of 16 bits": Good(
            png(SIZE, 16, 6, png_rows(np.dstack([DEEP, deep_alpha]))), on_white(SCENE, ALPHA), ROUNDED
        ),
        "PNG, one bit": Good(
            png(SIZE, 1, 0, png_rows(np.packbits(two, axis=1))), np.repeat(two[:, :, None] * 255, 3, 2)
        ),
        "PNG, palette": Good(png(SIZE, 4, 3, png_rows(packed), colours), FEW_COLOURS),
        "PNG, palette that fades": Good(
            png(SIZE, 8, 3, png_rows(NUMBERS), colours, (b"tRNS", fading.tobytes())),
            on_white(FEW_COLOURS, fading[NUMBERS]),
            ROUNDED,
        ),
        "PNG, a colour that means transparent": Good(
            png(SIZE, 8, 2, rows, (b"tRNS", struct.pack(">3H", 200, 60, 40))),
            np.where((SCENE == (200, 60, 40)).all(axis=2)[:, :, None], 255, SCENE).astype(np.uint8),
        ),
        "PNG, alpha": Good(png(SIZE, 8, 6, png_rows(RGBA)), on_white(SCENE, ALPHA), ROUNDED),
        "PNG, grey with alpha": Good(
            png(SIZE, 8, 4, png_rows(np.dstack([GREY, ALPHA]))), on_white(THREE_GREYS, ALPHA), ROUNDED
        ),
        "PNG, one pixel": Good(png((1, 1), 8, 2, b"\0abc"), np.frombuffer(b"abc", np.uint8).reshape(1, 1, 3)),
        "PNG, each byte in its own chunk": Good(png_of([*plain, *pieces, *end]), SCENE),
        "PNG, wrong checksum of pixels that are right": Good(
            png(SIZE, 8, 2, rows).replace(crc, b"\0\0\0\0"), SCENE
        ),
        "PNG, 100 million zeros behind its last row": Good(
            png_of([*plain, (b"IDAT", bomb(rows)), *end]), SCENE
        ),
        "PNG, a text that inflates without end": Good(
            png(SIZE, 8, 2, rows, (b"zTXt", b"Comment\0\0" + bomb(b""))), SCENE
        ),
        "PNG, pixels said to be two gigabytes": Good(
            replaced(png(SIZE, 8, 2, rows), png_of(plain), b"\x7f\xff\xff\xff"), SCENE
        ),
        "PNG, with a web page behind it": Good(
            png(SIZE, 8, 2, rows) + b"<html><script>alert(1)</script>", SCENE
        ),
        "PNG, turned as 6": Good(png(SIZE, 8, 2, rows, (b"eXIf", exif(6)[6:])), np.rot90(SCENE, -1)),
        "PNG, 1,000 frames": Good(
            saved(
                SCENE,
                "PNG",
                save_all=True,
                append_images=[Image.new("RGB", SIZE, (number % 256, 0, 0)) for number in range(1, 1_000)],
            ),
            SCENE,
        ),
    }


def bomb(beginning: bytes) -> bytes:
    """Compressed bytes that go on with 100 million zeros."""
    squeezed = zlib.compressobj(9)
    zeros = bytes(10_000_000)
    return (
        squeezed.compress(beginning)
        + b"".join(squeezed.compress(zeros) for _ in range(10))
        + squeezed.flush()
    )


def others() -> dict[str, Good]:
    few = Image.fromarray(NUMBERS, "P")
    few.putpalette(PALETTE.tobytes())
    gif = saved(few, "GIF", interlace=0)
    # A frame of one pixel, shown for a hundredth of a second.
    frame = b"!\xf9\4\0\1\0\0\0," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\4\2\x10\5\0"
    bgr = np.flipud(SCENE)[:, :, ::-1]
    of_five_bits = (SCENE >> 3).astype(np.uint16)
    runs = b"".join(
        b"".join(bytes([8, number]) for number in row[::8]) + b"\0\0" for row in np.flipud(NUMBERS)
    )
    swatches = np.pad(PALETTE[:, ::-1], ((0, 0), (0, 1))).tobytes()
    later = [Image.new("RGB", SIZE, (number % 256, 0, 0)) for number in range(1, 400)]
    return {
        "GIF": Good(gif, FEW_COLOURS),
        "GIF, interlaced": Good(saved(few, "GIF", interlace=1), FEW_COLOURS),
        "GIF, 20,000 frames": Good(gif[:-1] + frame * 20_000 + b";", FEW_COLOURS),
        "GIF, with a web page in a comment": Good(
            gif[:-1] + b"!\xfe\x1f<script>alert(document)</script\0;", FEW_COLOURS
        ),
        "GIF, transparent": Good(
            saved(few, "GIF", transparency=5),
            np.where(NUMBERS[:, :, None] == 5, 255, FEW_COLOURS).astype(np.uint8),
        ),
        "BMP": Good(bmp(SIZE, 24, bgr.tobytes()), SCENE),
        "BMP, from the top": Good(bmp((WIDTH, -HEIGHT), 24, SCENE[:, :, ::-1].tobytes()), SCENE),
        "BMP, palette": Good(bmp(SIZE, 8, np.flipud(NUMBERS).tobytes(), swatches), FEW_COLOURS),
        "BMP, runs": Good(bmp(SIZE, 8, runs + b"\0\1", swatches, compression=1), FEW_COLOURS),
        "BMP, of 15 bits": Good(
            bmp(SIZE, 16, np.flipud((of_five_bits << (10, 5, 0)).sum(axis=2).astype("<u2")).tobytes()),
            np.round(of_five_bits * 255 / 31).astype(np.uint8),
            ROUNDED,
        ),
        "WebP": Good(saved(SCENE, "WebP", quality=98), SCENE, HALF_THE_COLOURS),
        "WebP, lossless": Good(saved(SCENE, "WebP", lossless=True), SCENE),
        "WebP, lossless with alpha": Good(
            saved(RGBA, "WebP", lossless=True, exact=True), on_white(SCENE, ALPHA), ROUNDED
        ),
        "WebP, 400 frames": Good(
            saved(SCENE, "WebP", lossless=True, save_all=True, append_images=later, duration=10), SCENE
        ),
        "WebP, whose EXIF turns it in no browser": Good(
            saved(SCENE, "WebP", lossless=True, exif=exif(8)), SCENE
        ),
        "AVIF": Good(saved(SCENE, "AVIF", quality=95, subsampling="4:4:4"), SCENE, LOSSY),
        "AVIF, alpha": Good(
            saved(RGBA, "AVIF", quality=95, subsampling="4:4:4"), on_white(SCENE, ALPHA), LOSSY
        ),
        "AVIF, turned as 6": Good(
            saved(SCENE, "AVIF", quality=95, subsampling="4:4:4", exif=exif(6)), np.rot90(SCENE, -1), LOSSY
        ),
        "AVIF, frames": Good(
            saved(SCENE, "AVIF", quality=95, subsampling="4:4:4", save_all=True, append_images=later[:3]),
            SCENE,
            LOSSY,
        ),
    }


GOOD = jpegs() | strange_exifs() | pngs() | others()


# Hostile


def damaged_jpegs() -> dict[str, Bad]:
    whole = saved(SCENE, "JPEG")
    frame = whole.index(b"\xff\xc0")
    tables = whole.index(b"\xff\xdb")
    scan = whole.index(b"\xff\xda")
    pieces = {
        "no pixels": whole[:scan] + b"\xff\xd9",
        "two beginnings and nothing": b"\xff\xd8\xff\xd8\xff\xd9",
        "height of zero": replaced(whole, b"\xff\xc0\0\x11\x08", b"\0\0"),
        "width of zero": replaced(whole, b"\xff\xc0\0\x11\x08" + whole[frame + 5 : frame + 7], b"\0\0"),
        "a segment beyond the end": whole[:tables] + b"\xff\xe1\xff\xff" + whole[tables : tables + 500],
        "no tables": whole[:tables] + whole[frame:scan] + whole[scan:],
        "a table of another kind": replaced(whole, b"\xff\xc4\0\x1f", b"\xff" * 17),
        "nine components": replaced(whole, whole[frame : frame + 9], b"\x09"),
    }
    return {f"JPEG, {name}": Bad(content, Status.CORRUPT) for name, content in pieces.items()}


def damaged_pngs() -> dict[str, Bad]:
    rows = png_rows(SCENE)
    whole = png(SIZE, 8, 2, rows)

    def header(width: int, height: int, depth: int = 8, colour: int = 2, packing: int = 0) -> bytes:
        return struct.pack(">IIBBBBB", width, height, depth, colour, packing, 0, 0)

    pixels = (b"IDAT", zlib.compress(rows))
    end = (b"IEND", b"")
    pieces = {
        "wrong checksum of the header": replaced(whole, header(*SIZE), b"\0\0\0\0"),
        "no header": png_of([pixels, end]),
        "no pixels": png_of([(b"IHDR", header(*SIZE)), end]),
        "width of zero": png_of([(b"IHDR", header(0, 10)), pixels, end]),
        "height of zero": png_of([(b"IHDR", header(10, 0)), pixels, end]),
        "depth of three": png_of([(b"IHDR", header(*SIZE, depth=3)), pixels, end]),
        "a colour that does not exist": png_of([(b"IHDR", header(*SIZE, colour=9)), pixels, end]),
        "a filter that does not exist": png(SIZE, 8, 2, b"\x09" + rows[1:]),
        "pixels that are not compressed": png_of([(b"IHDR", header(*SIZE)), (b"IDAT", rows), end]),
        "a text of two gigabytes": png_of([(b"IHDR", header(*SIZE))]) + b"\x7f\xff\xff\xfftEXt" + whole[33:],
        "half of its rows": png(SIZE, 8, 2, rows[: len(rows) // 2]),
        "a palette's numbers without the palette": png(SIZE, 8, 3, png_rows(NUMBERS)),
    }
    return {f"PNG, {name}": Bad(content, Status.CORRUPT) for name, content in pieces.items()}


def damaged_others() -> dict[str, Bad]:
    lossless = saved(SCENE, "WebP", lossless=True)
    avif = saved(SCENE, "AVIF")
    few = Image.fromarray(NUMBERS, "P")
    few.putpalette(PALETTE.tobytes())
    gif = saved(few, "GIF")
    pixels = np.flipud(SCENE)[:, :, ::-1].tobytes()
    plain = bmp(SIZE, 24, pixels)
    pieces = {
        "GIF, screen of zero": gif_with_sizes((0, 0), (0, 0)),
        "GIF, no frame": gif[:13] + b";",
        "GIF, codes of 200 bits": gif_with_sizes((8, 8), (8, 8)).replace(b"\x02\x02\x4c", b"\xc8\x02\x4c"),
        "GIF, then HTML": b"GIF89a/*" + bytes(5) + b"*/=1;</script><html>",
        "BMP, width of zero": bmp((0, 10), 24, pixels),
        "BMP, pixels beyond the end": replaced(plain, plain[:10], b"\xff\xff\xff\x7f"),
        "BMP, 5 bits": bmp(SIZE, 5, pixels),
        "BMP, packing of its own": bmp(SIZE, 24, pixels, compression=77),
        "BMP, header of 4 gigabytes": replaced(plain, plain[:14], b"\xff\xff\xff\xff"),
        "WebP, longer than it is": replaced(lossless, b"RIFF", struct.pack("<I", 1 << 30)),
        "WebP, chunk longer than it is": replaced(lossless, b"VP8L", struct.pack("<I", 1 << 30)),
        "WebP, nothing in it": webp(b"VP8 ", b""),
        "AVIF, boxes of no length": avif[: avif.index(b"meta") - 4] + bytes(100),
        "AVIF, a box longer than it is": replaced(avif, avif[: avif.index(b"meta") - 4], b"\x7f\xff\xff\xff"),
        "AVIF, pixels of zeros": avif[: avif.index(b"mdat") + 4] + bytes(len(avif) - avif.index(b"mdat") - 4),
    }
    return {name: Bad(content, Status.CORRUPT) for name, content in pieces.items()}


def too_large() -> dict[str, Bad]:
    small = saved(SCENE, "JPEG")
    scan = small.index(b"\xff\xda")
    frame = jpeg_segment(0xC0, struct.pack(">BHHB", 8, 60_000, 60_000, 3) + b"\1\x11\0\2\x11\1\3\x11\1")
    claims = {
        "JPEG": claiming("JPEG", b"\xff\xc0\x00\x11\x08", struct.pack(">HH", 65_000, 65_000)),
        "JPEG by its second frame": small[:scan] + frame + small[scan:],
        "PNG": png((0x7FFFFFFF, 0x7FFFFFFF), 8, 2, b""),
        "PNG of one bit": png((60_000, 60_000), 1, 0, bytes(1_000)),
        "GIF by its screen": gif_with_sizes((65_535, 65_535), (1, 1)),
        "GIF by its frame": gif_with_sizes((1, 1), (65_535, 65_535)),
        "WebP by its canvas": webp_with_canvas(65_536, 65_535),
        "WebP": webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383)),
        "lossless WebP": webp(b"VP8L", b"\x2f" + b"\xff" * 4),
        "AVIF": claiming("AVIF", b"ispe\0\0\0\0", struct.pack(">II", 16_000, 16_000)),
        "BMP": bmp((40_000, 40_000), 24, b""),
        "BMP from the top": bmp((40_000, -40_000), 24, b""),
    }
    return {f"{name} of gigapixels": Bad(content, Status.TOO_MANY_PIXELS) for name, content in claims.items()}


def no_pictures() -> dict[str, Bad]:
    laughs = b'<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "lol">' + b"".join(
        b'<!ENTITY lol%d "%s">' % (number, b"&lol%d;" % (number - 1) * 10) for number in range(1, 10)
    )
    svg = b'<svg xmlns="http://www.w3.org/2000/svg">&lol9;</svg>'
    line = np.zeros((1, 60_000, 3), np.uint8)
    nothing = {
        "nothing": b"",
        "one byte": b"\xff",
        "half a signature": b"\x89PNG",
        "HTML": b"<!DOCTYPE html><html><body>Not found</body></html>",
        "XML whose entities grow without end": laughs + b"]><lolz>&lol9;</lolz>",
        "gzip": b"\x1f\x8b\x08" + zlib.compress(png(SIZE, 8, 2, png_rows(SCENE))),
        "PDF": b"%PDF-1.7\n" + bytes(100),
        "zip before a JPEG": b"PK\3\4" + bytes(100) + saved(SCENE, "JPEG"),
        "a wide line": saved(line, "PNG"),
        "a high line": saved(line.swapaxes(0, 1), "PNG"),
    }
    unsupported = {
        "SVG": svg.replace(b"&lol9;", b""),
        "SVG whose entities grow without end": laughs.replace(b"lolz", b"svg") + b"]>" + svg,
        "TIFF": saved(SCENE, "TIFF"),
        "TIFF that leads back to itself": b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 8),
        "Photoshop": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3),
        "icon": saved(SCENE, "ICO"),
        "HEIC": brands(b"heic", b"mif1", b"heic"),
        "JPEG 2000": saved(SCENE, "JPEG2000"),
        "JPEG XL": b"\xff\x0a" + bytes(100),
    }
    return {name: Bad(content, Status.NOT_A_PICTURE) for name, content in nothing.items()} | {
        name: Bad(content, Status.UNSUPPORTED_FORMAT) for name, content in unsupported.items()
    }


def truncated() -> dict[str, Bad]:
    few = Image.fromarray(NUMBERS, "P")
    few.putpalette(PALETTE.tobytes())
    wholes = {
        "JPEG": saved(SCENE, "JPEG"),
        "progressive JPEG": saved(SCENE, "JPEG", progressive=True),
        "PNG": png(SIZE, 8, 2, png_rows(SCENE)),
        "interlaced PNG": png(SIZE, 8, 2, adam7_rows(SCENE), interlaced=True),
        "GIF": saved(few, "GIF"),
        "BMP": saved(SCENE, "BMP"),
        "WebP": saved(SCENE, "WebP"),
        "lossless WebP": saved(SCENE, "WebP", lossless=True),
        "AVIF": saved(SCENE, "AVIF"),
    }
    return {
        f"{name}, {part} tenths of it": Bad(whole[: max(20, len(whole) * part // 10)], Status.CORRUPT)
        for name, whole in wholes.items()
        for part in range(10)
    }


BAD = damaged_jpegs() | damaged_pngs() | damaged_others() | too_large() | no_pictures() | truncated()


def flipped() -> dict[str, bytes]:
    """Pictures with a few bits turned over, which may or may not matter: nobody can say beforehand."""
    random = np.random.default_rng(23)
    found = {}
    for name in (
        "JPEG",
        "JPEG, progressive",
        "PNG",
        "PNG, palette",
        "GIF",
        "BMP, runs",
        "WebP",
        "WebP, lossless",
        "AVIF",
    ):
        for number in range(25):
            damaged = np.frombuffer(GOOD[name].content, np.uint8).copy()
            places = random.integers(12, len(damaged), random.integers(1, 6))
            damaged[places] ^= (1 << random.integers(0, 8, len(places))).astype(np.uint8)
            found[f"{name}, flipped {number}"] = damaged.tobytes()
    whole = GOOD["JPEG, with restart markers"].content
    markers = [i for i in range(len(whole) - 1) if whole[i] == 0xFF and 0xD0 <= whole[i + 1] <= 0xD7]
    assert len(markers) > 30
    for number in range(10):
        messy = bytearray(whole)
        for marker in random.choice(markers, 20, replace=False):
            messy[marker + 1] = random.integers(0xD0, 0xD8)
        found[f"restart markers, mess {number}"] = bytes(messy)
    return found


FLIPPED = flipped()


class Outcome(NamedTuple):
    results: dict[str, Result]
    lost: set[int]
    """Decoder processes that did not live until the end."""


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """What became of all these pictures, mixed, in one pool of two decoders."""
    contents = {name: picture.content for name, picture in (GOOD | BAD).items()} | FLIPPED
    order = np.random.default_rng(5).permutation(list(contents)).tolist()
    results: dict[str, Result] = {}
    seen: set[int] = set()

    def pictures() -> Iterator[tuple[str, bytes]]:
        for name in order:
            seen.update(child.pid for child in psutil.Process().children() if is_decoder(child))
            yield name, contents[name]

    with Decoders(Settings(max_image_pixels=MOST_PIXELS), processes=2) as pool:
        for name, result in pool.decode(pictures()):
            assert name not in results, "one result each"
            results[name] = result if isinstance(result, BadPictureError) else result.copy()
        alive = {child.pid for child in psutil.Process().children() if is_decoder(child)}
    assert results.keys() == contents.keys()
    return Outcome(results, seen - alive)


def is_decoder(process: psutil.Process) -> bool:
    return "tasks.pictures.decoder_process" in process.cmdline()


@pytest.mark.parametrize("name", GOOD)
def test_a_legal_picture_gets_the_tensor_of_its_pixels(name: str, outcome: Outcome) -> None:
    result = outcome.results[name]
    assert not isinstance(result, BadPictureError), str(result)
    picture = GOOD[name]
    off = np.abs(result - resized_with_pad(picture.rgb))
    assert off.max() <= picture.levels / 255 + CLOSE
    assert off.mean() <= min(picture.levels, max(1, picture.levels / 20)) / 255 + CLOSE


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_ends_in_its_status(name: str, outcome: Outcome) -> None:
    result = outcome.results[name]
    assert isinstance(result, BadPictureError), "it was decoded"
    assert result.status == BAD[name].status
    assert result.reason


def test_damage_gives_a_tensor_or_a_reason(outcome: Outcome) -> None:
    decoded = 0
    for name in FLIPPED:
        result = outcome.results[name]
        if isinstance(result, BadPictureError):
            assert result.status in (Status.CORRUPT, Status.TOO_MANY_PIXELS, Status.NOT_A_PICTURE), name
            assert result.reason
        else:
            decoded += 1
            assert result.shape == (299, 299, 3)
            assert ((result >= 0) & (result <= 1)).all(), name
    assert 0 < decoded < len(FLIPPED)


def test_no_decoder_was_lost_over_any_of_them(outcome: Outcome) -> None:
    assert not outcome.lost
    assert len(GOOD) + len(BAD) > 60


def test_a_picture_that_keeps_its_decoder_busy_for_minutes_is_corrupt() -> None:
    """A progressive JPEG that draws its last, empty layer again and again: 46 bytes cost milliseconds."""
    whole = saved(Image.new("L", (3_000, 3_000), 128), "JPEG", progressive=True)
    layer = whole[whole.rindex(b"\xff\xc4") : -2]
    assert layer.count(b"\xff\xda") == 1
    assert len(layer) < 100
    contents = {"busy": whole[:-2] + layer * 30_000 + whole[-2:], "good": GOOD["PNG"].content}

    with Decoders(Settings(decode_timeout=1), processes=1) as pool:
        results = {
            name: result if isinstance(result, BadPictureError) else result.copy()
            for name, result in pool.decode(contents.items())
        }

    busy, good = results["busy"], results["good"]
    assert isinstance(busy, BadPictureError)
    assert (busy.status, busy.reason) == (Status.CORRUPT, "the decoder took longer than 1 s")
    np.testing.assert_allclose(good, resized_with_pad(SCENE), rtol=0, atol=CLOSE)
