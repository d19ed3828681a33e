"""Pictures as files: the odd, damaged and hostile kinds that no library writes are made by hand here."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


CLOSE = 1e-4
"""How far the contract lets each value of a tensor be from TensorFlow's."""


def resized_with_pad(rgb: Pixels) -> NDArray[np.float32]:
    """The tensor of these pixels as the contract names it, from TensorFlow itself."""
    import tensorflow as tf

    with tf.device("/CPU:0"):
        tensor: NDArray[np.float32] = (
            tf.image.resize_with_pad(rgb.astype(np.float32), 299, 299) / 255
        ).numpy()
    return tensor


def saved(pixels: Any, kind: str, mode: str | None = None, **options: Any) -> bytes:
    """As Pillow writes an image, or an array of pixels, in this format."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> bytes:
    """EXIF as a camera writes it."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010F] = "a maker"
    tags[0x011A] = 72.0
    tags.get_ifd(0x8769)[0x9003] = "2026:01:01 00:00:00"
    return tags.tobytes()


def jpeg_segment(marker: int, data: bytes) -> bytes:
    """One segment, such as APP1 (0xE1) or a comment (0xFE)."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def png(
    size: tuple[int, int],
    depth: int,
    colour: int,
    rows: bytes,
    *chunks: tuple[bytes, bytes],
    interlaced: bool = False,
) -> bytes:
    """A PNG of (width, height); every row begins with its filter, and `chunks` come before the pixels."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlaced)
    return png_of([(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def png_of(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks."""
    file = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        file += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return file


def png_rows(samples: NDArray[Any]) -> bytes:
    """The rows of a PNG of 8 or 16 bits, unfiltered."""
    big_endian = samples.astype(samples.dtype.newbyteorder(">"))
    return b"".join(b"\0" + row.tobytes() for row in big_endian)


ADAM7 = [
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
]
"""The passes of an interlaced PNG: first row and column, steps down and to the right."""


def adam7_rows(samples: Pixels) -> bytes:
    """As `png_rows`, in the seven passes of an interlaced PNG, each with the pixels of its own grid."""
    return b"".join(png_rows(samples[top::down, left::right]) for top, left, down, right in ADAM7)


def png_samples(samples: NDArray[Any], depth: int, interlaced: bool = False) -> bytes:
    """The rows of a PNG of any depth; samples are [height, width] or [height, width, channels]."""

    def rows(part: NDArray[Any]) -> bytes:
        if part.size == 0:
            return b""
        if depth == 16:
            return png_rows(part.astype(np.uint16))
        if depth == 8:
            return png_rows(part.astype(np.uint8))
        bits = part.astype(np.uint8)[:, :, None] >> np.arange(depth - 1, -1, -1) & 1
        return png_rows(np.packbits(bits.astype(np.uint8).reshape(len(part), -1), axis=1))

    if not interlaced:
        return rows(samples)
    return b"".join(rows(samples[top::down, left::right]) for top, left, down, right in ADAM7)


def bmp(
    size: tuple[int, int],
    bits: int,
    pixels: bytes,
    palette: bytes = b"",
    compression: int = 0,
    masks: bytes = b"",
) -> bytes:
    """A BMP of (width, height); a height below zero is stored from the top."""
    start = 14 + 40 + len(masks) + len(palette)
    header = struct.pack(
        "<IiiHHIIiiII", 40, *size, 1, bits, compression, len(pixels), 2835, 2835, len(palette) // 4, 0
    )
    beginning = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start)
    return beginning + header + masks + palette + pixels


def gif_with_sizes(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    """A GIF whose screen and only frame have these sizes, and that has the data of one pixel."""
    file = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return file + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\x00;"


def gif(size: tuple[int, int], colours: bytes, frames: Sequence[bytes], background: int = 0) -> bytes:
    """A GIF of these frames; `colours` are 16 of three bytes, or none at all."""
    screen = struct.pack("<HHBBB", *size, 0xF3 if colours else 0x70, background, 0)
    return b"GIF89a" + screen + colours + b"".join(frames) + b";"


def gif_frame(
    numbers: Pixels,
    left: int,
    top: int,
    transparent: int | None,
    colours: bytes = b"",
    *,
    interlaced: bool = False,
    disposal: int = 0,
) -> bytes:
    """A frame of a GIF: what controls it, its place, its own 16 colours if it has any, pixels below 16."""
    height, width = numbers.shape
    flags = disposal << 2 | (transparent is not None)
    control = b"!\xf9\4" + struct.pack("<BHBB", flags, 10, transparent or 0, 0)
    place = struct.pack(
        "<HHHHB", left, top, width, height, (0x83 if colours else 0) | (0x40 if interlaced else 0)
    )
    if interlaced:
        numbers = np.concatenate([numbers[0::8], numbers[4::8], numbers[2::4], numbers[1::2]])
    # Each pixel as a code of its own, and a fresh start before the codes would get wider than five bits.
    bits: list[int] = []
    for count, number in enumerate(numbers.ravel().tolist()):
        for code in ([16] if count % 14 == 0 else []) + [number]:
            bits += [code >> bit & 1 for bit in range(5)]
    bits += [17 >> bit & 1 for bit in range(5)]
    data = np.packbits(bits, bitorder="little").tobytes()
    blocks = b"".join(bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255))
    return control + b"," + place + colours + b"\4" + blocks + b"\0"


def riff_chunk(name: bytes, data: bytes) -> bytes:
    """One chunk of a WebP."""
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def webp(name: bytes, data: bytes, *more: bytes) -> bytes:
    """A WebP whose first chunk is of this name; the others come as they are."""
    return riff_chunk(b"RIFF", b"WEBP" + riff_chunk(name, data) + b"".join(more))


def webp_with_canvas(width: int, height: int) -> bytes:
    """An animated WebP whose canvas is far larger than its only frame."""
    frame = saved(Image.new("RGB", (16, 16)), "WebP", lossless=True)[12:]

    def u24(value: int) -> bytes:
        return value.to_bytes(3, "little")

    return webp(
        b"VP8X",
        b"\x02\0\0\0" + u24(width - 1) + u24(height - 1),
        riff_chunk(b"ANIM", bytes(6)),
        riff_chunk(b"ANMF", u24(0) * 2 + u24(15) * 2 + u24(100) + b"\0" + frame),
    )


def brands(*names: bytes) -> bytes:
    """The beginning of an ISO media file, such as AVIF and HEIF, that names these formats."""
    box = b"ftyp" + names[0] + bytes(4) + b"".join(names[1:])
    return (len(box) + 4).to_bytes(4) + box + bytes(60)


def claiming(kind: str, before_size: bytes, size: bytes) -> bytes:
    """A small picture whose header is made to claim another size."""
    return replaced(saved(Image.new("RGB", (64, 64)), kind), before_size, size)


def replaced(content: bytes, after: bytes, new: bytes) -> bytes:
    """The same file with other bytes in the place of those that come after the first `after`."""
    position = content.index(after) + len(after)
    return content[:position] + new + content[position + len(new) :]
