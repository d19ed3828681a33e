"""Draws what a search found: the picture that was searched with, and its neighbours."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tasks import files

_SIDE = 299
_GAP, _CAPTION = 24, 64
_GROUND, _INK, _FAINT, _EDGE = (250, 249, 247), (38, 38, 44), (128, 126, 124), (52, 72, 112)
_LONGEST = 34
"""Letters of a caption's line."""

Tensor = NDArray[np.float32]


def draw(path: Path, query: tuple[str, Tensor], found: Sequence[tuple[str, float, Tensor | None]]) -> None:
    """Write a PNG: the picture that was searched with at the left, and names and cosines below the others.

    Args:
        path: where to.
        query: its name and its tensor [299, 299, 3] from 0 to 1, as decoders give them.
        found: names, cosines and tensors; None where a picture could not be had.

    Raises:
        ServiceUnavailableError: it cannot be written.
    """
    width = (len(found) + 1) * (_SIDE + _GAP) + 2 * _GAP
    sheet = Image.new("RGB", (width, _SIDE + _CAPTION + 2 * _GAP), _GROUND)
    pen = ImageDraw.Draw(sheet)
    _panel(sheet, pen, _GAP, query[0], "searched with", query[1])
    pen.line([(_SIDE + 2 * _GAP, _GAP), (_SIDE + 2 * _GAP, sheet.height - _GAP)], _EDGE, 2)
    for number, (name, cosine, tensor) in enumerate(found, 1):
        _panel(sheet, pen, number * (_SIDE + _GAP) + 2 * _GAP, name, f"cosine {cosine:.3f}", tensor)
    content = io.BytesIO()
    sheet.save(content, "PNG")
    with files.atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue())


def _panel(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, left: int, name: str, below: str, tensor: Tensor | None
) -> None:
    if tensor is None:
        pen.rectangle([left, _GAP, left + _SIDE, _GAP + _SIDE], outline=_FAINT)
        pen.text((left + _SIDE / 2, _GAP + _SIDE / 2), "no picture", _FAINT, _font(18), anchor="mm")
    else:
        sheet.paste(Image.fromarray((tensor * 255).round().clip(0, 255).astype(np.uint8)), (left, _GAP))
    shown = name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :]
    pen.text((left, _GAP + _SIDE + 10), shown, _INK, _font(18))
    pen.text((left, _GAP + _SIDE + 36), below, _FAINT, _font(16))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
