"""What of a file makes its pixels, and what only stands beside them: browsers look at hardly any of that.

Metadata is where files are damaged most, and where decoders refuse whole pixels over it. So it is left out
before decoding, but for the orientation in EXIF; and the first frame of an animation is taken out by itself,
with its place on the canvas. Everything here walks over bytes once and trusts no length.
"""

import itertools
import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

UPRIGHT = 1
"""The orientation of EXIF that turns nothing."""

_ORIENTATION, _SHORT = 0x0112, 3
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}

Size = tuple[int, int]


class Essence(NamedTuple):
    """A picture without what stands beside its pixels."""

    content: bytes
    """A file of its first frame alone."""
    orientation: int = UPRIGHT
    """As EXIF counts, 1 to 8."""
    canvas: Size | None = None
    """Width and height of what the frame lies on, None where it is the whole."""
    place: tuple[int, int] = (0, 0)
    """Columns and rows from the canvas's corner to the frame's."""


class DamagedContainerError(Exception):
    """What is left of the file holds no picture; no decoder need be asked."""


def essence(content: bytes) -> Essence:
    """The same picture, as browsers see it.

    Args:
        content: of any format, or of none: what is not known here comes back as it is.

    Raises:
        DamagedContainerError: no browser shows it.
    """
    if content.startswith(b"\xff\xd8\xff"):
        return _jpeg(content)
    if content.startswith(_PNG):
        return _png(content)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _webp(content)
    if content[:6] in (b"GIF87a", b"GIF89a"):
        return _gif(content)
    if content[:2] == b"BM":
        return Essence(_bmp(content))
    if content[4:8] == b"ftyp":
        return Essence(_avif(content))
    return Essence(content)


def orientation(exif: bytes) -> int:
    """What EXIF, from its TIFF header on, says in its first directory; upright where it says nothing."""
    order = _ORDERS.get(exif[:4])
    if order is None or len(exif) < 8:
        return UPRIGHT
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    if start + 2 > len(exif):
        return UPRIGHT
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    for number in range(min(count, (len(exif) - start - 2) // 12)):
        entry = struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * number)
        if entry[0] == _ORIENTATION:
            _, kind, values, value = entry
            return value if kind == _SHORT and values == 1 and 1 <= value <= 8 else UPRIGHT
    return UPRIGHT


# JPEG

_MARKER = re.compile(rb"\xff([^\0\xff])")
"""The next one, whatever stands before it, as libjpeg looks for it."""
_MOST_SEGMENTS = 65_536
"""More than any file has, and few enough to be read at once."""
_START, _SCAN, _END = 0xD8, 0xDA, 0xD9
_ALONE = {0x01, *range(0xD0, 0xD8)}
"""Markers that no segment follows."""
_BESIDE = {*range(0xE0, 0xF0), 0xFE}
_NEEDED = {0xE0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12)}
"""Of what stands beside the pixels, what tells their colours: how it begins, and how long it has to be."""
_EXIF_SEGMENT, _EXIF = 0xE1, b"Exif\0"


def _jpeg(content: bytes) -> Essence:
    pieces, at, turned = [content[:2]], 2, None
    for _ in range(_MOST_SEGMENTS):
        marker = _MARKER.search(content, at)
        if marker is None:
            break
        code, at = marker[1][0], marker.end()
        if code in _ALONE:
            continue
        if code in (_START, _SCAN, _END):
            pieces += [bytes((0xFF, code)), content[at:]]
            break
        end = at + max(2, int.from_bytes(content[at : at + 2]))
        data = content[at + 2 : end]
        if code == _EXIF_SEGMENT and turned is None and data.startswith(_EXIF):
            turned = orientation(data[6:])
        beginning, length = _NEEDED.get(code, (b"", 0))
        if code not in _BESIDE or (beginning and data.startswith(beginning) and len(data) >= length):
            pieces += [bytes((0xFF, code)), content[at:end]]
        at = end
    else:
        raise DamagedContainerError
    return Essence(b"".join(pieces), turned or UPRIGHT)


_SCANS = re.compile(rb"\xff([\xc2\xda])..", re.DOTALL)
_COEFFICIENTS = 64


def ends_in_its_last_scan(content: bytes) -> bool:
    """Whether each scan of a progressive JPEG has begun, and so its last one, where it ends."""
    wanted, exact = None, set()
    for marker in _SCANS.finditer(content):
        at = marker.end()
        if marker[1] == b"\xc2" and wanted is None:
            wanted = _COEFFICIENTS * content[at + 5] if at + 5 < len(content) else None
        elif marker[1] == b"\xda" and at < len(content):
            components = content[at + 1 : at + 1 + 2 * min(content[at], 4) : 2]
            rest = content[at + 1 + 2 * content[at] : at + 4 + 2 * content[at]]
            if len(rest) == 3 and not rest[2] & 15:  # to the last bit
                numbers = range(rest[0], min(rest[1], _COEFFICIENTS - 1) + 1)
                exact |= {(component, number) for component in components for number in numbers}
    return wanted is not None and len(exact) >= wanted


# PNG

_PNG = b"\x89PNG\r\n\x1a\n"
_GREY, _COLOURS, _NUMBERS = 0, 2, 3
"""The colour types that tRNS means something for."""
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row and column of each pass of an interlaced PNG, and the steps between them."""


class _Chunk(NamedTuple):
    name: bytes
    data: bytes
    intact: bool
    """Whether its checksum is there and right."""


def _chunks(content: bytes) -> Iterator[_Chunk]:
    at = len(_PNG)
    while at + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, at)
        data = content[at + 8 : at + 8 + length]
        checksum = content[at + 8 + length : at + 12 + length]
        # That of the pixels is no use: they are taken as far as they can be decoded, by everybody.
        yield _Chunk(name, data, name != b"IDAT" and checksum == _png_checksum(name, data))
        at += 12 + length


def _png(content: bytes) -> Essence:
    before, pixels, after = _parts(content)
    if not pixels:
        raise DamagedContainerError
    header, palette = before[b"IHDR"], before.get(b"PLTE", b"")
    canvas: Size | None = None
    place = (0, 0)
    if len(before.get(b"acTL", b"")) == 8 and b"fcTL" not in before and (frame := _first_frame(after)):
        # The pixels are for those who know no animations, and none of its frames.
        (width, height, left, top), framed = frame
        canvas, place = struct.unpack(">II", header[:8]), (left, top)
        header, pixels = struct.pack(">II", width, height) + header[8:], framed
    pieces = {
        b"IHDR": header,
        b"PLTE": palette,
        b"tRNS": _transparent(header, palette, before.get(b"tRNS", b"")),
        b"IDAT": pixels,
    }
    file = _png_of([(name, data) for name, data in pieces.items() if data])
    return Essence(file, orientation(before.get(b"eXIf", b"")), canvas, place)


def _parts(content: bytes) -> tuple[dict[bytes, bytes], bytes, list[_Chunk]]:
    """The first intact chunk of each name before the pixels, the pixels, and what comes after them."""
    before: dict[bytes, bytes] = {}
    pixels: list[bytes] = []
    after: list[_Chunk] = []
    for chunk in _chunks(content):
        if chunk.name == b"IEND":
            break
        if (chunk.name == b"IHDR") == (b"IHDR" in before) or _cannot_be(chunk, before):
            raise DamagedContainerError
        if chunk.name == b"IDAT" and not after:
            pixels.append(chunk.data)
        elif pixels:
            after.append(chunk)
        elif chunk.intact:
            before.setdefault(chunk.name, chunk.data)
    return before, b"".join(pixels), after


def _cannot_be(chunk: _Chunk, before: dict[bytes, bytes]) -> bool:
    """Whether this is a chunk that pixels depend on, and not as it has to be."""
    match chunk.name:
        case b"IDAT":
            return False
        case b"IHDR":
            return not chunk.intact or len(chunk.data) != 13
        case b"PLTE":
            sizes = range(3, 769, 3)
            return not chunk.intact or len(chunk.data) not in sizes or b"PLTE" in before
    # A small letter begins the names of those that may be left out.
    return not chunk.name[0] & 0x20


def _first_frame(after: list[_Chunk]) -> tuple[tuple[int, int, int, int], bytes] | None:
    """Width, height, column, row, and pixels of the first frame of an animation."""
    control = next((chunk for chunk in after if chunk.name == b"fcTL"), None)
    if control is None or not control.intact or len(control.data) != 26:
        return None
    following = after[after.index(control) + 1 :]
    pieces = itertools.takewhile(lambda chunk: chunk.name != b"fcTL", following)
    pixels = b"".join(chunk.data[4:] for chunk in pieces if chunk.name == b"fdAT")
    width, height, left, top = struct.unpack(">4x4I6x", control.data)
    return ((width, height, left, top), pixels) if width and height and pixels else None


def _transparent(header: bytes, palette: bytes, data: bytes) -> bytes:
    """What tRNS says, of few bits in the numbers that Pillow compares it with."""
    depth, colour = header[8], header[9]
    if colour == _NUMBERS:
        return data if len(data) <= len(palette) // 3 else b""
    length = {_GREY: 2, _COLOURS: 6}.get(colour)
    if length is None or len(data) != length:
        return b""
    values = struct.unpack_from(f">{length // 2}H", data)
    if colour == _GREY and depth < 8:
        values = tuple(
            value % (1 << depth) * (255 // ((1 << depth) - 1) if depth > 1 else 1) for value in values
        )
    return struct.pack(f">{len(values)}H", *values)


def _png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    pieces = [_PNG]
    for name, data in (*chunks, (b"IEND", b"")):
        pieces += [struct.pack(">I4s", len(data), name), data, _png_checksum(name, data)]
    return b"".join(pieces)


def _png_checksum(name: bytes, data: bytes) -> bytes:
    return zlib.crc32(data, zlib.crc32(name)).to_bytes(4)


def rows_of_png(content: bytes) -> bytes | None:
    """The rows of a PNG, as `essence` gives it, before they were compressed; None if some are missing.

    What is wrong with the end of compressed pixels, such as their checksum, costs none of them.
    """
    chunks = {name: data for name, data, _ in _chunks(content)}
    expected = _bytes_of_rows(chunks[b"IHDR"])
    try:
        rows = zlib.decompressobj(-15).decompress(chunks[b"IDAT"][2:], expected)
    except zlib.error:
        return None
    return rows if len(rows) == expected else None


def png_with_rows(content: bytes, rows: bytes) -> bytes:
    """The same PNG with these rows, compressed rightly."""
    chunks = [(name, data) for name, data, _ in _chunks(content) if name not in (b"IDAT", b"IEND")]
    return _png_of([*chunks, (b"IDAT", zlib.compress(rows, 0))])


def _bytes_of_rows(header: bytes) -> int:
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS[colour]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for top, left, down, right in passes:
        rows, columns = max(0, -(-(height - top) // down)), max(0, -(-(width - left) // right))
        if columns:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


# WebP

_ALPHA = 0x10


def _riff_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 0
    while at < len(content):
        if at + 8 > len(content):
            raise DamagedContainerError
        name, length = struct.unpack_from("<4sI", content, at)
        data = content[at + 8 : at + 8 + length]
        if len(data) < length:
            raise DamagedContainerError
        chunks.append((name, data))
        at += 8 + length + length % 2
    return chunks


def _riff_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack("<4sI", name, len(data)) + data + b"\0" * (len(data) % 2)


def _webp(content: bytes) -> Essence:
    """Its pixels alone. EXIF turns it in no browser, and one that is cut short anywhere no browser shows."""
    end = 8 + int.from_bytes(content[4:8], "little")
    if end > len(content):
        raise DamagedContainerError
    chunks = _riff_chunks(content[12:end])
    canvas, place = None, (0, 0)
    extended = next((data for name, data in chunks if name == b"VP8X" and len(data) >= 10), None)
    frame = next((data for name, data in chunks if name == b"ANMF" and len(data) >= 16), None)
    pieces = []
    if extended is not None:
        width, height = _u24(extended, 4), _u24(extended, 7)
        if frame is not None:
            canvas, place = (width + 1, height + 1), (2 * _u24(frame, 0), 2 * _u24(frame, 3))
            width, height = _u24(frame, 6), _u24(frame, 9)
            if place[0] + width >= canvas[0] or place[1] + height >= canvas[1]:
                raise DamagedContainerError
            chunks = _riff_chunks(frame[16:])
        size = width.to_bytes(3, "little") + height.to_bytes(3, "little")
        pieces.append(_riff_chunk(b"VP8X", bytes((extended[0] & _ALPHA, 0, 0, 0)) + size))
    pieces += [_riff_chunk(name, data) for name, data in chunks if name in (b"ALPH", b"VP8 ", b"VP8L")]
    return Essence(_riff_chunk(b"RIFF", b"WEBP" + b"".join(pieces)), UPRIGHT, canvas, place)


def _u24(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")


# GIF


def _gif(content: bytes) -> Essence:
    if len(content) < 13:
        raise DamagedContainerError
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    colours = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    at, control = colours, b""
    while at < len(content):
        if content[at] == 0x21:
            if content[at + 1 : at + 2] == b"\xf9":
                control = content[at : at + 8]
                if control[2:3] != b"\4":
                    raise DamagedContainerError
            at = _end_of_blocks(content, at + 2)
        elif content[at] == 0x2C:
            break
        else:
            raise DamagedContainerError
    if at + 10 > len(content):
        raise DamagedContainerError
    left, top, columns, rows, own = struct.unpack_from("<HHHHB", content, at + 1)
    pixels = at + 10 + (3 << (own & 7) + 1 if own & 0x80 else 0)
    end = _end_of_blocks(content, pixels + 1)
    pieces = [
        b"GIF89a",
        struct.pack("<HHBBB", columns, rows, flags, 0, 0),
        content[13:colours],
        control[:7] + b"\0" if len(control) == 8 else b"",
        struct.pack("<BHHHHB", 0x2C, 0, 0, columns, rows, own),
        content[at + 10 : end],
        b";" if end <= len(content) else b"",
    ]
    return Essence(
        b"".join(pieces), UPRIGHT, (max(width, left + columns), max(height, top + rows)), (left, top)
    )


def _end_of_blocks(content: bytes, at: int) -> int:
    """Where the run of blocks that begins here has ended; beyond the end where it never does."""
    while at < len(content):
        if not content[at]:
            return at + 1
        at += 1 + content[at]
    return len(content) + 1


# BMP

_ALPHA_MASKS = 6


def _bmp(content: bytes) -> bytes:
    """With four masks behind the old header, which are the later header of 56 bytes to the bit."""
    if content[14:18] == b"\x28\0\0\0" and content[30:34] == struct.pack("<I", _ALPHA_MASKS):
        return content[:14] + b"\x38" + content[15:30] + b"\3" + content[31:]
    return content


# AVIF

_EXIF_ITEM = re.compile(rb"(infe[\2\3]...(?:..|....)..)Exif", re.DOTALL)


def _avif(content: bytes) -> bytes:
    """Without EXIF, which turns it in no browser and which a decoder may trip over."""
    return _EXIF_ITEM.sub(rb"\1skip", content, 1)
