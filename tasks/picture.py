"""From a picture's bytes to the tensor the model takes: the contract's preprocessing."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tasks.statuses import Status

PREPROCESSING_TAG = "pad299"
"""Part of the feature version: bilinear resize with padding to 299 x 299, RGB in [0, 1]."""

SIDE = 299
"""Height and width of the tensor."""

# What each format we read begins with, so that damage is told from something else altogether.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF8", b"BM", b"\x00\x00\x00")
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")

# The limit is ours, from the settings, and checked on the header; Pillow's own only warns at first.
Image.MAX_IMAGE_PIXELS = None


class BadPictureError(Exception):
    """This picture has no feature, and why; it costs its items their feature and nothing else."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def decode(content: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decode the first frame, upright and on white where it is transparent.

    Args:
        content: the picture's bytes; the format is told from them, never from a name.
        max_pixels: the most pixels its header may claim.

    Returns:
        RGB, uint8, [height, width, 3].

    Raises:
        BadPictureError: not a picture, too many pixels, or corrupt.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except Exception as error:
        if content.startswith(_SIGNATURES):
            raise BadPictureError(Status.CORRUPT, f"the header cannot be read: {_summary(error)}") from None
        raise BadPictureError(
            Status.NOT_A_PICTURE, f"{len(content)} bytes that are none of {', '.join(_FORMATS)}"
        ) from None
    width, height = image.size
    if width * height > max_pixels:
        raise BadPictureError(
            Status.TOO_MANY_PIXELS, f"{width} x {height} pixels, more than {max_pixels} in all"
        )
    # Decoders meet hostile bytes with every kind of exception there is; all mean the same here.
    try:
        image.load()
        return _to_rgb(_upright(image))
    except Exception as error:
        raise BadPictureError(Status.CORRUPT, f"cannot be decoded: {_summary(error)}") from None


def to_tensor(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Resize with padding as the contract says.

    Args:
        rgb: uint8, [height, width, 3].

    Returns:
        float32 in [0, 1], [299, 299, 3].
    """
    import tensorflow as tf

    with tf.device("/CPU:0"):
        padded = tf.image.resize_with_pad(tf.cast(rgb, tf.float32), SIDE, SIDE)
        tensor: NDArray[np.float32] = (padded / 255.0).numpy()
    return tensor


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # An orientation that cannot be read is no orientation; the pixels are what counts.
        return image


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        # Pillow clips 16-bit grey to 255; the high byte is what it takes of 16-bit colour.
        grey = np.clip(np.asarray(image, dtype=np.int64), 0, 65535) >> 8
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def _summary(error: Any) -> str:
    return f"{type(error).__name__}: {error}"[:200]
