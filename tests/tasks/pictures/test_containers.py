import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.pictures.containers import (
    UPRIGHT,
    DamagedContainerError,
    essence,
    orientation,
    png_with_rows,
    rows_of_png,
)
from tests.picture_corpus import SCENE, everything, exifs, png_with
from tests.picture_files import exif, png_of, png_rows

CORPUS = everything()
BEGINNINGS = [
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\x40\0\0\0WEBP",
    b"GIF89a",
    b"BM",
    b"\0\0\0\x1cftypavif",
]


@pytest.mark.parametrize("number", range(1, 9))
def test_the_orientation_is_what_a_camera_wrote(number: int) -> None:
    assert orientation(exif(number)[6:]) == number


def test_what_is_no_orientation_of_exif_is_none() -> None:
    # As Chromium takes them: docs/chromium.md.
    turned = {
        "as a camera's",
        "little-endian",
        "one entry",
        "cut after its entry",
        "leading back to itself",
        "more entries than there are",
        "two orientations",
        "damaged text beside it",
    }
    assert turned < exifs().keys()
    for name, data in exifs().items():
        assert orientation(data) == (6 if name in turned else UPRIGHT), name


def test_metadata_is_not_in_what_is_decoded() -> None:
    """Whatever a decoder would do with it: hidden in it is a word that stands nowhere else."""
    word = b"anywhere-else-this-word-stands-not"
    chunks = [(name, word) for name in (b"tEXt", b"zTXt", b"iCCP", b"gAMA", b"prVt", b"eXIf")]
    content = png_with("colours 8", *chunks, after=[(b"tEXt", word)])
    assert content.count(word) == 7
    assert word not in essence(content).content
    assert essence(content).content == essence(png_with("colours 8")).content


@given(st.sampled_from(BEGINNINGS), st.binary(max_size=300))
@settings(max_examples=600, deadline=None, derandomize=True)
def test_any_bytes_are_a_picture_or_damaged(beginning: bytes, rest: bytes) -> None:
    check(beginning + rest)


@given(st.sampled_from(sorted(CORPUS)), st.integers(0, 2**32), st.booleans())
@settings(max_examples=600, deadline=None, derandomize=True)
def test_any_damage_leaves_a_picture_or_is_damage(name: str, seed: int, cut: bool) -> None:
    random = np.random.default_rng(seed)
    damaged = np.frombuffer(CORPUS[name], np.uint8).copy()
    damaged[random.integers(0, len(damaged), 6)] = random.integers(0, 256, 6)
    check(damaged[: random.integers(1, len(damaged)) if cut else None].tobytes())


def check(content: bytes) -> None:
    try:
        found = essence(content)
    except DamagedContainerError:
        return
    # A GIF or a frame gets a header of its own, and a palette is not copied: hardly more than there was.
    assert len(found.content) < len(content) + 100
    assert UPRIGHT <= found.orientation <= 8
    assert min(found.place) >= 0


def endless(make: Callable[[int], bytes]) -> bytes:
    content = make(1)
    return make(4_000_000 // len(content))


@pytest.mark.parametrize(
    "make",
    [
        lambda count: b"\xff\xd8\xff" + b"\0\xff" * 8 * count,
        lambda count: b"\xff\xd8" + b"\xff\xe1\0\2" * count,
        lambda count: b"\xff\xd8" + b"\xff" * count,
        lambda count: b"GIF89a" + bytes(7) + b"!\xfe\1\1" * count,
        lambda count: b"RIFF" + struct.pack("<I", 4 + 8 * count) + b"WEBP" + b"abcd\0\0\0\0" * count,
        lambda count: b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0tEXt\0\0\0\0" * count,
        lambda count: b"\0\0\0\x1cftypavif" + b"infe\2" * count,
    ],
    ids=["FF 00", "empty segments", "FF", "blocks", "empty RIFF chunks", "empty PNG chunks", "items"],
)
@pytest.mark.timeout(20)
def test_no_bytes_take_long(make: Callable[[int], bytes]) -> None:
    content = endless(make)
    assert len(content) > 300_000
    try:
        found = essence(content)
    except DamagedContainerError:
        return
    assert len(found.content) <= len(content) + 100


def test_rows_are_counted_as_far_as_they_are_there() -> None:
    rows = png_rows(SCENE)
    header = struct.pack(">IIBBBBB", 44, 28, 8, 2, 0, 0, 0)

    def with_rows(data: bytes) -> bytes:
        return png_of([(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")])

    def mended(content: bytes) -> bytes | None:
        found = rows_of_png(content)
        return None if found is None else png_with_rows(content, found)

    assert mended(with_rows(zlib.compress(rows))) == with_rows(zlib.compress(rows, 0))
    assert mended(with_rows(zlib.compress(rows)[:-4])) == with_rows(zlib.compress(rows, 0))
    assert mended(with_rows(zlib.compress(rows[:-1]))) is None
    assert mended(with_rows(zlib.compress(rows + bytes(10**7)))) == with_rows(zlib.compress(rows, 0))
    assert mended(with_rows(b"x\x9cno deflate")) is None
