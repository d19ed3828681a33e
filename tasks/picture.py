"""From a picture's bytes to the tensor the model takes: the contract's preprocessing."""

import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.statuses import Status

PREPROCESSING_TAG = "pad299"
"""Part of the feature version: bilinear resize with padding to 299 x 299, RGB in [0, 1]."""

SIDE = 299
"""Height and width of the tensor."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
# What each of them begins with, so that damage is told from something else altogether.
_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|BM|....ftyp(avif|avis|mif1|msf1)", re.DOTALL
)

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation of EXIF."""

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
    except Exception:
        if _SIGNATURE.match(content):
            raise BadPictureError(Status.CORRUPT, "the header cannot be read") from None
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
    except MemoryError:
        raise  # the machine's fault, not the picture's
    except Exception as error:
        reason = f"cannot be decoded: {type(error).__name__}: {error}"[:200]
        raise BadPictureError(Status.CORRUPT, reason) from None


def to_tensor(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Resize with padding as the contract says.

    Args:
        rgb: uint8, [height, width, 3].

    Returns:
        float32 in [0, 1], [299, 299, 3].

    Raises:
        BadPictureError: a line so long and thin that nothing of it would be left.
    """
    import tensorflow as tf

    with tf.device("/CPU:0"):
        try:
            padded = tf.image.resize_with_pad(tf.cast(rgb, tf.float32), SIDE, SIDE)
        except tf.errors.InvalidArgumentError:
            height, width, _ = rgb.shape
            raise BadPictureError(
                Status.NOT_A_PICTURE, f"a line of {width} x {height} pixels, too thin to resize"
            ) from None
        tensor: NDArray[np.float32] = (padded / 255.0).numpy()
    return tensor


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it also writes the EXIF anew, and fails where any of it is damaged.
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        # An orientation that cannot be read is no orientation; the pixels are what counts.
        turn = None
    return image.transpose(turn) if turn is not None else image


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
