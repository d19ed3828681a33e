"""From a picture's bytes to the tensor the model takes: the contract's preprocessing.

It needs Pillow, NumPy and OpenCV alone, so that the processes that decode start fast and stay small.
"""

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, ImageChops, WebPImagePlugin

from tasks.pictures import containers
from tasks.pictures.containers import UPRIGHT, Essence
from tasks.statuses import Status

PREPROCESSING_TAG = "pad299"
"""Part of the feature version: bilinear resize with padding to 299 x 299, RGB in [0, 1]."""

SIDE = 299
"""Height and width of the tensor."""

Indices = NDArray[np.intp]
Pixels = NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
"""Those we take, by Pillow's names, which are also those of their media types."""

# What each of them begins with, to tell damage from something else altogether.
_SIGNATURE = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|BM", re.DOTALL)
_AVIF_BRANDS = frozenset({b"avif", b"avis"})

_OTHER_FORMATS = {
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "Photoshop": rb"8BPS\0[\1\2]",
    "icon": rb"\0\0[\1\2]\0[^\0]\0",
    "JPEG 2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "JPEG XL": rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a",
    # The root element, after what XML allows before it. Atomic, since hostile text would else take ages.
    "SVG": rb"(?:\xef\xbb\xbf)?+(?>\s|<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^\[>]*+(?:\[.*?\]\s*+)?+>)*+"
    rb"<(?:\w+:)?svg[\s/>]",
}
_OTHER_SIGNATURES = {name: re.compile(pattern, re.DOTALL) for name, pattern in _OTHER_FORMATS.items()}
_HEIF_BRANDS = frozenset({b"mif1", b"msf1", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})
_BEGINNING = 4_096
"""Bytes in which a format shows."""

_TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
"""What makes each orientation of EXIF upright: whether to swap rows and columns, then to reverse the
rows, then the columns."""

_WIDE_GAP = 4
"""Rows between two wanted ones from which cutting each out is faster than converting all between."""

_FEW_UNWANTED = 4
"""Lines of the source for one of the result up to which to leave out those unwanted would take longer."""

_ROWS_AT_ONCE = 32
"""Rows of the tensor computed at once, so that the numbers on the way stay in the processor's cache."""

_ROWS_ENOUGH = 0.98
"""The share of its rows from which a JPEG that ends early is taken, as browsers show it."""

_END = b"\xff\xd9"
"""Of a JPEG."""

# The limit is ours, from the settings, and checked on the header; Pillow's own only warns at first.
Image.MAX_IMAGE_PIXELS = None
# There is a process for each core already.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
cv2.setNumThreads(1)
# Imported here, or Pillow would load its plugins for fifty formats that we refuse.
assert WebPImagePlugin.SUPPORTED


def load_everything() -> None:
    """Load what Pillow would else load when a picture first needs it; for whoever may open no file then."""
    Image.preinit()
    for name in ("ImageOps", "MpoImagePlugin", "TiffImagePlugin"):
        import_module(f"PIL.{name}")


class BadPictureError(Exception):
    """This picture has no feature, and why; it costs its items their feature and nothing else."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Picture:
    """A decoded picture, in memory as it is stored: it is turned and made RGB where it is looked at."""

    def __init__(
        self, stored: Image.Image | Pixels, orientation: int = UPRIGHT, incomplete: bool = False
    ) -> None:
        """A picture of an image of any mode, or of RGB, uint8 [height, width, 3]."""
        self._stored = stored
        self._swapped, self._rows_reversed, self._columns_reversed = _TURNS.get(
            orientation, (False, False, False)
        )
        size = stored.size if isinstance(stored, Image.Image) else stored.shape[1::-1]
        self.width, self.height = size[::-1] if self._swapped else size
        self.incomplete = incomplete
        """Whether its file ended before its last rows, which are white now, as browsers show them."""

    def pixels(self, rows: Indices, columns: Indices) -> NDArray[np.uint8]:
        """The pixels where these rows and columns meet, upright, and on white where transparent.

        Only around them is anything converted or turned: a large picture costs no copy of itself.

        Args:
            rows: ascending.
            columns: ascending.

        Returns:
            uint8, [rows, columns, 3].

        Raises:
            BadPictureError: corrupt.
            MemoryError: it needs more memory than there is.
        """
        rows_step, columns_step = -1 if self._rows_reversed else 1, -1 if self._columns_reversed else 1
        if self._rows_reversed:
            rows = self.height - 1 - rows[::-1]
        if self._columns_reversed:
            columns = self.width - 1 - columns[::-1]
        with _damage_is_corrupt():
            if self._swapped:
                taken = _stored_pixels(self._stored, columns, rows).swapaxes(0, 1)
            else:
                taken = _stored_pixels(self._stored, rows, columns)
        return taken[::rows_step, ::columns_step]


def decode(content: bytes, max_pixels: int) -> Picture:
    """Decode the first frame.

    Args:
        content: the picture's bytes; the format is recognised by them, never by a name.
        max_pixels: the most pixels its header may claim.

    Raises:
        BadPictureError: not a picture, of a format we do not take, too many pixels, or corrupt.
        MemoryError: it needs more memory than there is.
    """
    try:
        found = containers.essence(content)
    except MemoryError:
        raise
    except Exception:
        raise _unreadable(content) from None
    if found.canvas is not None:
        _check_size(found.canvas, max_pixels)
    # Pillow asks for a WebP's whole canvas before it tells the size.
    _check_size(_webp_size(found.content), max_pixels)
    image = _opened(found.content)
    if image is None:
        raise _unreadable(content)
    _check_size(image.size, max_pixels)
    if (rgb := _jpeg_at_once(image, found.content)) is not None:
        return Picture(rgb, found.orientation)
    incomplete = False
    try:
        with _damage_is_corrupt():
            _load(image, found.content)
    except BadPictureError:
        shown = _as_far_as_it_goes(found.content) if image.format == "JPEG" else None
        if shown is None:
            raise
        image, incomplete = shown, True
    if (rgb := _deep_and_transparent(image, found.content)) is not None and found.canvas is None:
        return Picture(rgb, found.orientation)
    return Picture(_on_canvas(image, found), _orientation(image, found), incomplete)


def to_tensor(picture: Picture, tensor: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Resize with padding as the contract says.

    It is `tf.image.resize_with_pad(rgb, 299, 299) / 255`, each value within 1e-4: bilinear without
    antialiasing, between the positions that TensorFlow computes.

    Args:
        picture: as `decode` gives it.
        tensor: where to write, float32 [299, 299, 3]; a new array if left out.

    Returns:
        float32 in [0, 1], [299, 299, 3].

    Raises:
        BadPictureError: corrupt, or a line so long and thin that nothing of it would be left.
        MemoryError: it needs more memory than there is.
    """
    rows, columns, across, down = _lines(picture.height, picture.width)
    if not (len(rows.position) and len(columns.position)):
        raise BadPictureError(
            Status.NOT_A_PICTURE,
            f"a line of {picture.width} x {picture.height} pixels, too thin to resize",
        )
    source = picture.pixels(rows.wanted, columns.wanted)
    if tensor is None:
        tensor = np.empty((SIDE, SIDE, 3), np.float32)
    tensor[:] = 0
    inside = tensor[rows.padding :, columns.padding : columns.padding + len(columns.position)]
    for start in range(0, len(rows.position), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(rows.position))
        first, last = int(rows.position[start]), math.ceil(rows.position[stop - 1])
        band = source[first : last + 1].astype(np.float32, order="C")
        cv2.remap(band, across[: stop - start], down[start:stop], cv2.INTER_LINEAR, dst=inside[start:stop])
    tensor *= np.float32(1 / 255)
    return tensor


class _Axis(NamedTuple):
    """Where each line of the result lies along one axis of the source: between two of its lines."""

    wanted: Indices
    """The source's lines that are needed at all, ascending."""
    position: NDArray[np.float32]
    """Of each line of the result, where it lies among `wanted`."""
    padding: int
    """Lines of zeros before the first one."""


@lru_cache(16)  # a shop's pictures have few sizes
def _lines(height: int, width: int) -> tuple[_Axis, _Axis, NDArray[np.float32], NDArray[np.float32]]:
    """Rows and columns of the resize, and for each pixel of a band its column, and of the whole its row in
    its band."""
    ratio = max(np.float32(width) / np.float32(SIDE), np.float32(height) / np.float32(SIDE))
    rows, columns = _axis(height, ratio), _axis(width, ratio)
    first = np.repeat(np.floor(rows.position[::_ROWS_AT_ONCE]), _ROWS_AT_ONCE)[: len(rows.position)]
    across = np.broadcast_to(columns.position, (_ROWS_AT_ONCE, len(columns.position)))
    down = np.broadcast_to((rows.position - first)[:, None], (len(rows.position), len(columns.position)))
    return rows, columns, np.ascontiguousarray(across), np.ascontiguousarray(down)


def _axis(size: int, ratio: np.float32) -> _Axis:
    """One axis of the resize; all in float32, as TensorFlow has it."""
    exact = np.float32(size) / ratio
    length = int(exact)
    padding = max(0, int((np.float32(SIDE) - exact) / np.float32(2)))
    scale = np.float32(size) / np.float32(max(length, 1))
    half = np.float32(0.5)
    position = np.clip((np.arange(length, dtype=np.float32) + half) * scale - half, 0, size - 1)
    if size <= _FEW_UNWANTED * length:
        return _Axis(np.arange(size), position, padding)
    before = np.floor(position)
    ends = np.stack([before, np.ceil(position)]).astype(np.intp)
    wanted, (lower, _) = np.unique(ends, return_inverse=True)
    return _Axis(wanted, lower.astype(np.float32) + (position - before), padding)


def _stored_pixels(stored: Image.Image | Pixels, rows: Indices, columns: Indices) -> Pixels:
    """As `Picture.pixels`, but of the picture as it is stored."""
    if not isinstance(stored, Image.Image):
        return _only(columns, _only(rows, stored, 0), 1)
    runs = []
    for run in np.split(rows, np.flatnonzero(np.diff(rows) > _WIDE_GAP) + 1):
        top, bottom = int(run[0]), int(run[-1]) + 1
        box = (0, top, stored.width, bottom)
        band = stored if box == (0, 0, *stored.size) else stored.crop(box)
        # Four bytes are taken at once as one number, which is several times faster than three.
        numbers = np.frombuffer(_rgb(band).tobytes("raw", "RGBX"), np.uint32).reshape(bottom - top, -1)
        runs.append(_only(columns, _only(run - top, numbers, 0), 1))
    taken = runs[0] if len(runs) == 1 else np.concatenate(runs)
    return np.ascontiguousarray(taken).view(np.uint8).reshape(len(rows), len(columns), 4)[:, :, :3]


def _only(wanted: Indices, lines: NDArray[Any], axis: int) -> NDArray[Any]:
    return lines if len(wanted) == lines.shape[axis] else lines.take(wanted, axis)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        values = np.asarray(image, dtype=np.int64)
        # Pillow clips 16-bit grey to 255; the high byte is what it takes of 16-bit colour.
        grey = np.clip(values, 0, 65535) >> 8
        if (transparent := image.info.get("transparency")) is not None:
            grey[values == transparent] = 255
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _opened(content: bytes) -> Image.Image | None:
    """Its header read; None where that cannot be."""
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except MemoryError:
        raise
    except Exception:
        return None


def _jpeg_at_once(image: Image.Image, content: bytes) -> Pixels | None:
    """RGB of a JPEG of colours or grey that is in order; None of anything else.

    It is what Pillow decodes, to the bit, but in the form that it is looked at.
    """
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    try:
        rgb = cv2.imdecode(
            np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error:
        return None
    if rgb is None or rgb.shape != (*image.size[::-1], 3):
        return None
    return rgb.astype(np.uint8, copy=False)


def _deep_and_transparent(image: Image.Image, content: bytes) -> Pixels | None:
    """RGB of a PNG of 16-bit colours one of which is transparent; None of anything else.

    Pillow has cut its colours to eight bits before it looks for the one.
    """
    if image.format != "PNG" or image.mode != "RGB" or not image.has_transparency_data or content[24] != 16:
        return None
    deep = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if deep is None or deep.shape != (*image.size[::-1], 4):
        return None
    rgb: Pixels = (deep.astype(np.uint16, copy=False)[:, :, 2::-1] >> 8).astype(np.uint8)
    rgb[deep[:, :, 3] == 0] = 255
    return rgb


def _load(image: Image.Image, content: bytes) -> None:
    """Decode it, a PNG also where it is the end of its compressed pixels that is wrong."""
    try:
        image.load()
    except MemoryError:
        raise
    except Exception:
        rows = containers.rows_of_png(content) if image.format == "PNG" else None
        whole = _opened(containers.png_with_rows(content, rows)) if rows is not None else None
        if whole is None:
            raise
        whole.load()
        image.im = whole.im
        return
    # Of rows that are missing Pillow says nothing where the others end with a row.
    if image.format == "PNG" and _may_lack_rows(image) and containers.rows_of_png(content) is None:
        raise OSError("its last rows are missing")


def _may_lack_rows(image: Image.Image) -> bool:
    """Whether one of the last two, of which one is in the last pass of an interlaced PNG, was left blank."""
    first = max(0, image.height - 2)
    return any(
        not any(image.crop((0, row, image.width, row + 1)).tobytes()) for row in range(first, image.height)
    )


def _as_far_as_it_goes(content: bytes) -> Image.Image | None:
    """A JPEG whose file ends early, as browsers show it; None where too few of its rows are there.

    It is decoded twice, and what is there is the same: a baseline JPEG over white and over black, since rows
    that are missing stay white; a progressive one, coarse where it ends, with nothing behind its end and with
    noise.
    """
    if containers.ends_in_its_last_scan(content):
        shown, other = _decoded(content + _END), _decoded(content + _noise() + _END)
    else:
        shown, other = _decoded(content, 255), _decoded(content, 0)
    if shown is None or other is None:
        return None
    there = (0, 0, shown.width, math.ceil(_ROWS_ENOUGH * shown.height))
    return shown if ImageChops.difference(shown.crop(there), other.crop(there)).getbbox() is None else None


@cache
def _noise() -> bytes:
    """Without what a JPEG would take for a marker. NumPy's generators would be loaded for it."""
    state, noise = 5, bytearray()
    while len(noise) < 4_096:
        state = (1_664_525 * state + 1_013_904_223) % (1 << 32)  # Numerical Recipes' quick one
        noise.append((state >> 24) % 251)
    return bytes(noise)


def _decoded(content: bytes, ink: int = 255) -> Image.Image | None:
    """As much of a JPEG as can be decoded, over white (255) or black (0)."""
    image = _opened(content)
    if image is None:
        return None
    inks = (255 - ink if image.mode == "CMYK" else ink,) * len(image.getbands())
    canvas = Image.new(image.mode, image.size, inks if len(inks) > 1 else ink)
    image.im = canvas.im
    try:
        image.load()
    except OSError as error:
        if "truncated" not in str(error):
            return None
    return canvas


def _on_canvas(frame: Image.Image, found: Essence) -> Image.Image:
    """The first frame of an animation where it lies, with nothing, so white, around it."""
    if found.canvas is None or (found.canvas == frame.size and found.place == (0, 0)):
        return frame
    canvas = Image.new("RGB", found.canvas, "white")
    with _damage_is_corrupt():
        canvas.paste(_rgb(frame), found.place)
    return canvas


def _orientation(image: Image.Image, found: Essence) -> int:
    if image.format == "AVIF":
        # Pillow puts into EXIF how its own properties turn it.
        return containers.orientation(image.info.get("exif", b"").removeprefix(b"Exif\0\0"))
    return found.orientation


@contextmanager
def _damage_is_corrupt() -> Iterator[None]:
    """Decoders meet hostile bytes with every kind of exception there is; all mean the same here."""
    try:
        yield
    except MemoryError:
        raise  # the machine's limit, not the picture's damage
    except Exception as error:
        reason = f"cannot be decoded: {type(error).__name__}: {error}"[:200]
        raise BadPictureError(Status.CORRUPT, reason) from None


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise BadPictureError(
            Status.TOO_MANY_PIXELS, f"{width} x {height} pixels, more than {max_pixels} in all"
        )


def _webp_size(content: bytes) -> tuple[int, int]:
    """Width and height that the first chunk of a WebP claims; nothing of anything else."""

    def number(start: int, stop: int) -> int:
        return int.from_bytes(content[start:stop], "little")

    match content[:4], content[8:16]:
        case b"RIFF", b"WEBPVP8X":
            return number(24, 27) + 1, number(27, 30) + 1
        case b"RIFF", b"WEBPVP8L":
            return number(21, 25) % (1 << 14) + 1, (number(21, 25) >> 14) % (1 << 14) + 1
        case b"RIFF", b"WEBPVP8 ":
            return number(26, 28) % (1 << 14), number(28, 30) % (1 << 14)
    return 0, 0


def _unreadable(content: bytes) -> BadPictureError:
    """Why Pillow cannot open it: damage, another format, or no picture at all."""
    brands = _brands(content)
    if _SIGNATURE.match(content) or brands & _AVIF_BRANDS:
        return BadPictureError(Status.CORRUPT, "the header cannot be read")
    beginning = content[:_BEGINNING]
    others = [name for name, signature in _OTHER_SIGNATURES.items() if signature.match(beginning)]
    if brands & _HEIF_BRANDS:
        others.append("HEIF")
    ours = ", ".join(FORMATS)
    if others:
        return BadPictureError(Status.UNSUPPORTED_FORMAT, f"{others[0]}, not one of {ours}")
    return BadPictureError(Status.NOT_A_PICTURE, f"{len(content)} bytes that are none of {ours}")


def _brands(content: bytes) -> set[bytes]:
    """The formats that an ISO media file, such as AVIF and HEIF, names at its beginning."""
    if content[4:8] != b"ftyp":
        return set()
    box = content[8 : min(int.from_bytes(content[:4]), _BEGINNING)]
    return {box[at : at + 4] for at in range(0, len(box), 4) if at != 4}  # there it has a version
