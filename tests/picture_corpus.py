"""Every kind of picture and of damage beside one, made here by name, for the comparison with a browser.

A name is the format, what its pixels are like, and what stands beside them or is wrong, joined by `: `.
"""

import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from tests.picture_files import (
    Pixels,
    bmp,
    exif,
    gif,
    gif_frame,
    jpeg_segment,
    png_of,
    png_samples,
    riff_chunk,
    saved,
    webp,
)

WIDTH, HEIGHT = SIZE = (44, 28)
"""No multiple of the blocks of any format, and not square."""

Corpus = dict[str, bytes]


def made_scene() -> Pixels:
    """Gentle gradients and a box, so that each turn and each swap of colours shows."""
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    rgb = np.stack([x * 5, y * 8, 255 - 3 * (x + y)], axis=-1).astype(np.uint8)
    rgb[4:12, 6:20] = (200, 60, 40)
    return rgb


SCENE = made_scene()
ALPHA = np.repeat(np.linspace(0, 255, HEIGHT).astype(np.uint8)[:, None], WIDTH, axis=1)
NUMBERS = (np.arange(WIDTH) // 4 % 4 + 4 * (np.arange(HEIGHT)[:, None] // 4 % 4)).astype(np.uint8)
PALETTE = np.random.default_rng(3).integers(0, 256, (16, 3)).astype(np.uint8)


def everything() -> Corpus:
    """The whole corpus."""
    corpus: Corpus = {}
    for part in (
        png_pixels(),
        png_metadata(),
        png_damage(),
        apngs(),
        jpeg_pixels(),
        jpeg_metadata(),
        jpeg_damage(),
        webps(),
        animated_webps(),
        gifs(),
        bmps(),
        avifs(),
        orientations(),
        colour_spaces(),
    ):
        for name, content in part:
            assert name not in corpus, name
            corpus[name] = content
    return corpus


Cases = Iterator[tuple[str, bytes]]

# What stands beside pixels


def xmp(orientation: int) -> bytes:
    """XMP that says how the picture lies, which browsers do not look at."""
    return (
        b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
        b'<?xpacket end="w"?>' % orientation
    )


def srgb_profile() -> bytes:
    """An ICC profile that changes nothing."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile[:24] + bytes(12) + profile[36:]  # without the time at which it was made


def other_profile() -> bytes:
    """An ICC profile whose red is sRGB's green, and the other way round: what converts by it shows that."""
    profile = bytearray(srgb_profile())
    for number in range(int.from_bytes(profile[128:132])):
        entry = 132 + 12 * number
        if profile[entry : entry + 4] in (b"rXYZ", b"gXYZ"):
            profile[entry : entry + 1] = b"g" if profile[entry] == ord("r") else b"r"
    return bytes(profile)


def bare_tiff(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    """EXIF of one directory, big-endian: entries of tag, type, count and value."""
    body = b"".join(struct.pack(">HHII", *entry) for entry in entries)
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + body + struct.pack(">I", following)


TURNED = (0x0112, 3, 1, 6 << 16)


def exifs() -> dict[str, bytes]:
    """EXIF without the six bytes before it, whole and damaged."""
    whole = exif(6)[6:]
    small = bare_tiff(TURNED)
    return {
        "as a camera's": whole,
        "little-endian": b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0),
        "one entry": small,
        "nothing": b"",
        "one byte": b"M",
        "cut in its header": small[:6],
        "cut before its entries": small[:9],
        "cut in its entry": small[:18],
        "cut after its entry": small[:22],
        "of another magic": b"MM\0+" + small[4:],
        "of another order": b"XX" + small[2:],
        "beginning elsewhere": small[:4] + b"\xff\xff\xff\xf0" + small[8:],
        "leading back to itself": bare_tiff(TURNED, (0x8769, 4, 1, 8), following=8),
        "more entries than there are": small[:8] + b"\xff\xff" + small[10:],
        "a long for an orientation": bare_tiff((0x0112, 4, 1, 6)),
        "a byte for an orientation": bare_tiff((0x0112, 1, 1, 6 << 24)),
        "a text for an orientation": bare_tiff((0x0112, 2, 4, 0x36000000)),
        "two orientations": bare_tiff(TURNED, (0x0112, 3, 1, 3 << 16)),
        "two values": bare_tiff((0x0112, 3, 2, (6 << 16) + 3)),
        "endless values": bare_tiff((0x0112, 3, 0xFFFFFFFF, 8)),
        "an orientation of 0": bare_tiff((0x0112, 3, 1, 0)),
        "an orientation of 9": bare_tiff((0x0112, 3, 1, 9 << 16)),
        "orientation in the second directory": bare_tiff(following=14) + bare_tiff(TURNED)[8:],
        "noise": np.random.default_rng(2).bytes(200),
        "damaged text beside it": bare_tiff((0x010F, 2, 0xFFFFFF, 0xFFFFFF), TURNED),
    }


def damages(data: bytes) -> dict[str, bytes]:
    """What a piece of metadata may look like."""
    return {
        "whole": data,
        "empty": b"",
        "one byte": data[:1],
        "cut short": data[: len(data) // 2],
        "zeros": bytes(len(data)),
        "noise": np.random.default_rng(len(data)).bytes(max(8, len(data))),
        "large": data + np.random.default_rng(1).bytes(40_000),
    }


# PNG

Chunks = list[tuple[bytes, bytes]]


def png_kinds() -> dict[str, tuple[int, int, NDArray[np.uint16], Chunks]]:
    """Each legal kind of pixels: depth, colour type, samples, chunks before them."""
    grey, alpha = SCENE[:, :, 0].astype(np.uint16), ALPHA.astype(np.uint16)
    rgb = SCENE.astype(np.uint16)
    palette: Chunks = [(b"PLTE", PALETTE.tobytes())]
    kinds: dict[str, tuple[int, int, NDArray[np.uint16], Chunks]] = {}
    for depth in (1, 2, 4, 8, 16):
        samples = grey * 257 if depth == 16 else grey >> (8 - depth)
        if depth == 16:
            samples = samples ^ 0x35
        kinds[f"grey {depth}"] = depth, 0, samples, []
        clear = (b"tRNS", struct.pack(">H", int(samples[6, 7])))
        kinds[f"grey {depth} transparent"] = depth, 0, samples, [clear]
        if depth == 16:
            # Pixels that differ from the transparent one in their lower byte alone are not transparent.
            near = samples.copy()
            near[14:20, 6:20] = samples[6, 7] ^ 0xFF
            kinds["grey 16 transparent, others near it"] = depth, 0, near, [clear]
    for depth in (1, 2, 4, 8):
        numbers = (NUMBERS % (1 << min(depth, 4))).astype(np.uint16)
        kinds[f"palette {depth}"] = depth, 3, numbers, [(b"PLTE", PALETTE[: 1 << min(depth, 4)].tobytes())]
        kinds[f"palette {depth} transparent"] = (
            depth,
            3,
            numbers,
            [*kinds[f"palette {depth}"][3], (b"tRNS", b"\0\x80")],
        )
    for depth in (8, 16):
        wide = 257 if depth == 16 else 1
        odd = 0x35 if depth == 16 else 0
        colours = rgb * wide ^ odd
        clear = (b"tRNS", struct.pack(">3H", *map(int, colours[6, 7])))
        kinds[f"colours {depth}"] = depth, 2, colours, []
        kinds[f"colours {depth} transparent"] = depth, 2, colours, [clear]
        if depth == 16:
            near = colours.copy()
            near[14:20, 6:20] = colours[6, 7] ^ 0xFF
            kinds["colours 16 transparent, others near it"] = depth, 2, near, [clear]
        kinds[f"grey and alpha {depth}"] = depth, 4, np.dstack([grey, alpha]) * wide ^ odd, []
        kinds[f"colours and alpha {depth}"] = depth, 6, np.dstack([rgb, alpha[:, :, None]]) * wide, []
        kinds[f"colours {depth} with a palette"] = depth, 2, colours, palette
    return kinds


def png_chunks(depth: int, colour: int, samples: NDArray[np.uint16], interlaced: bool = False) -> Chunks:
    """The chunks of a PNG of these pixels but what stands between IHDR and IDAT."""
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, interlaced)
    rows = zlib.compress(png_samples(samples, depth, interlaced))
    return [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]


def png_with(
    kind: str, *before: tuple[bytes, bytes], after: Chunks | None = None, interlaced: bool = False
) -> bytes:
    depth, colour, samples, chunks = png_kinds()[kind]
    header, pixels, end = png_chunks(depth, colour, samples, interlaced)
    return png_of([header, *before, *chunks, pixels, *(after or []), end])


def png_pixels() -> Cases:
    for kind in png_kinds():
        for interlaced in (False, True):
            yield (
                f"PNG: {kind}: {'interlaced' if interlaced else 'plain'}",
                png_with(kind, interlaced=interlaced),
            )


def ancillary() -> dict[str, dict[str, bytes]]:
    """Chunks that stand beside pixels, by name: whole ones and damaged ones."""
    text = zlib.compress(b"a text that says nothing " * 20)
    large = zlib.compress(bytes(3_000_000), 9)
    whole = {
        b"gAMA": struct.pack(">I", 45455),
        b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
        b"sRGB": b"\0",
        b"iCCP": b"profile\0\0" + zlib.compress(srgb_profile()),
        b"sBIT": b"\5\5\5",
        b"bKGD": b"\0\1\0\2\0\3",
        b"hIST": bytes(32),
        b"pHYs": struct.pack(">IIB", 2835, 2835, 1),
        b"tIME": struct.pack(">HBBBBB", 2026, 1, 1, 0, 0, 0),
        b"tEXt": b"Comment\0" + b"a text that says nothing",
        b"zTXt": b"Comment\0\0" + text,
        b"iTXt": b"Comment\0\1\0en\0Comment\0" + text,
        b"eXIf": exif(1)[6:],
        b"sPLT": b"palette\0\x08" + bytes(6 * 4),
        b"oFFs": struct.pack(">iiB", 1, 1, 0),
        b"cICP": bytes([1, 13, 0, 1]),
        b"prVt": b"of nobody known",
        b"caBX": b"a claim of where it comes from",
        b"mDCV": bytes(24),
        b"cLLI": bytes(8),
        b"dSIG": b"",
    }
    found = {name.decode(): damages(data) for name, data in whole.items()}
    found["gAMA"] |= {"of 0": bytes(4), "of 4 billion": b"\xff" * 4, "of 1.0": struct.pack(">I", 100_000)}
    found["cHRM"] |= {"swapped": struct.pack(">8I", 31270, 32900, 30000, 60000, 64000, 33000, 15000, 6000)}
    for name, before in (
        (b"zTXt", b"Comment\0\0"),
        (b"iTXt", b"Comment\0\1\0en\0Comment\0"),
        (b"iCCP", b"profile\0\0"),
    ):
        found[name.decode()] |= {
            "of three million zeros": before + large,
            "not compressed": before + b"not compressed",
            "of another compression": before[:-1] + b"\7" + text,
            "without a name": b"\0\0" + text,
            "whose compression is cut short": before + text[:-9],
        }
    return found


def damaged_crc(content: bytes, chunk: bytes) -> bytes:
    """The same PNG with a wrong checksum of its first chunk of this name."""
    start = content.index(chunk)
    crc = start + 4 + int.from_bytes(content[start - 4 : start])
    return content[:crc] + bytes([content[crc] ^ 0x55]) + content[crc + 1 :]


def png_metadata() -> Cases:
    kinds = ("colours 8", "palette 4 transparent", "grey 16", "colours and alpha 8")
    for chunk, forms in ancillary().items():
        name = chunk.encode()
        for form, data in forms.items():
            for kind in kinds if form in ("whole", "empty") else kinds[:2]:
                yield f"PNG: {kind}: {chunk} {form}", png_with(kind, (name, data))
            yield (
                f"PNG: colours 8: {chunk} {form}, behind the pixels",
                png_with("colours 8", after=[(name, data)]),
            )
        for kind in kinds:
            content = png_with(kind, (name, forms["whole"]))
            yield f"PNG: {kind}: {chunk} of a wrong checksum", damaged_crc(content, name)
        yield f"PNG: colours 8: {chunk} twice", png_with("colours 8", *[(name, forms["whole"])] * 2)
    for number in (40, 900):
        text = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(40_000)))
        yield f"PNG: colours 8: {number} texts", png_with("colours 8", *[text] * number)
    # Neither too many, nor too long, nor of the letters that a chunk may have.
    yield "PNG: colours 8: a chunk of small letters", png_with("colours 8", (b"abcd", b"x"))
    yield "PNG: colours 8: a chunk without letters", png_with("colours 8", (b"\0\1\2\3", b"x"))
    yield "PNG: colours 8: a critical chunk of nobody known", png_with("colours 8", (b"ABCD", b"x"))


def png_damage() -> Cases:
    for kind in ("colours 8", "palette 4 transparent", "grey 16 transparent"):
        depth, colour, samples, chunks = png_kinds()[kind]
        header, pixels, end = png_chunks(depth, colour, samples)
        whole = png_of([header, *chunks, pixels, end])
        first, second = (b"IDAT", pixels[1][:50]), (b"IDAT", pixels[1][50:])
        text = (b"tEXt", b"Comment\0x")
        pieces = {
            "no end": whole[:-12],
            "half an end": whole[:-6],
            "without the pixels' checksum": whole[:-16],
            "bytes behind its end": whole + b"more",
            "pixels in two chunks": png_of([header, *chunks, first, second, end]),
            "a text between its pixels": png_of([header, *chunks, first, text, second, end]),
            "an empty chunk of pixels": png_of(
                [header, *chunks, (b"IDAT", b""), pixels, (b"IDAT", b""), end]
            ),
            "pixels after its end": png_of([header, *chunks, end, pixels]),
            "a second header": png_of([header, *chunks, header, pixels, end]),
            "a text before its header": png_of([text, header, *chunks, pixels, end]),
            "wrong checksum of the pixels": damaged_crc(whole, b"IDAT"),
            "wrong checksum of the header": damaged_crc(whole, b"IHDR"),
            "wrong checksum of the end": damaged_crc(whole, b"IEND"),
            "wrong checksum of all pixels": png_of(
                [header, *chunks, (b"IDAT", pixels[1][:-4] + b"1234"), end]
            ),
            "without the checksum of all pixels": png_of([header, *chunks, (b"IDAT", pixels[1][:-4]), end]),
            "bytes behind the last row": png_of(
                [header, *chunks, (b"IDAT", zlib.compress(png_samples(samples, depth) + bytes(999))), end]
            ),
            "bytes behind the compressed pixels": png_of(
                [header, *chunks, (b"IDAT", pixels[1] + b"more"), end]
            ),
        }
        for name, _ in chunks:
            pieces[f"wrong checksum of {name.decode()}"] = damaged_crc(whole, name)
            pieces[f"{name.decode()} behind the pixels"] = png_of(
                [
                    header,
                    *[c for c in chunks if c[0] != name],
                    pixels,
                    *[c for c in chunks if c[0] == name],
                    end,
                ]
            )
            pieces[f"{name.decode()} twice"] = png_of(
                [header, *[c for c in chunks for _ in range(2)], pixels, end]
            )
            for form, data in damages(dict(chunks)[name]).items():
                changed = [(other, data if other == name else theirs) for other, theirs in chunks]
                pieces[f"{name.decode()} {form}"] = png_of([header, *changed, pixels, end])
        for share in (10, 50, 90, 97, 99):
            pieces[f"cut at {share} %"] = whole[: len(whole) * share // 100]
            rows = png_samples(samples, depth)
            pieces[f"{share} % of its rows"] = png_of(
                [header, *chunks, (b"IDAT", zlib.compress(rows[: len(rows) * share // 100])), end]
            )
        for name, content in pieces.items():
            yield f"PNG: {kind}: {name}", content


def apngs() -> Cases:
    def frame(
        number: int, width: int, height: int, left: int, top: int, dispose: int = 0, blend: int = 0
    ) -> tuple[bytes, bytes]:
        return b"fcTL", struct.pack(">IIIIIHHBB", number, width, height, left, top, 1, 10, dispose, blend)

    for kind in ("colours 8", "colours and alpha 8", "palette 4 transparent"):
        depth, colour, samples, chunks = png_kinds()[kind]
        header, pixels, end = png_chunks(depth, colour, samples)
        count = (b"acTL", struct.pack(">II", 2, 0))
        later = zlib.compress(png_samples(np.flipud(samples), depth))
        small = zlib.compress(png_samples(samples[4:14, 6:26], depth))
        second = [frame(1, WIDTH, HEIGHT, 0, 0), (b"fdAT", struct.pack(">I", 2) + later)]
        part = [
            frame(0, 20, 10, 8, 5),
            (b"fdAT", struct.pack(">I", 1) + small),
            frame(2, WIDTH, HEIGHT, 0, 0),
        ]
        part.append((b"fdAT", struct.pack(">I", 3) + later))
        for dispose in range(3):
            for blend in range(2):
                yield (
                    f"animated PNG: {kind}: the first frame, disposal {dispose}, blend {blend}",
                    png_of(
                        [
                            header,
                            count,
                            *chunks,
                            frame(0, WIDTH, HEIGHT, 0, 0, dispose, blend),
                            pixels,
                            *second,
                            end,
                        ]
                    ),
                )
        yield (
            f"animated PNG: {kind}: pixels that are no frame",
            png_of([header, count, *chunks, pixels, *part, end]),
        )
        yield (
            f"animated PNG: {kind}: wrong checksum of its count",
            damaged_crc(
                png_of([header, count, *chunks, frame(0, WIDTH, HEIGHT, 0, 0), pixels, *second, end]), b"acTL"
            ),
        )
        yield (
            f"animated PNG: {kind}: no second frame",
            png_of([header, count, *chunks, frame(0, WIDTH, HEIGHT, 0, 0), pixels, end]),
        )
        yield (
            f"animated PNG: {kind}: a count of 0",
            png_of([header, (b"acTL", bytes(8)), *chunks, pixels, end]),
        )
        yield (
            f"animated PNG: {kind}: a count that is cut short",
            png_of([header, (b"acTL", bytes(3)), *chunks, pixels, end]),
        )


# JPEG


def jpeg_kinds() -> dict[str, bytes]:
    best = {"quality": 95}
    found = {}
    for progressive in (False, True):
        name = "progressive" if progressive else "baseline"
        more = best | {"progressive": progressive}
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            found[f"{subsampling} {name}"] = saved(SCENE, "JPEG", subsampling=subsampling, **more)
        found[f"grey {name}"] = saved(SCENE[:, :, 0], "JPEG", **more)
        found[f"CMYK {name}"] = saved(cmyk(), "JPEG", **more)
        found[f"restart markers {name}"] = saved(SCENE, "JPEG", restart_marker_blocks=2, **more)
        found[f"low quality {name}"] = saved(SCENE, "JPEG", quality=10, progressive=progressive)
        found[f"RGB {name}"] = saved(SCENE, "JPEG", keep_rgb=True, **more)
    return found


def cmyk() -> Image.Image:
    return Image.fromarray(255 - np.dstack([SCENE, np.full(SCENE.shape[:2], 215, np.uint8)]), "CMYK")


def marked(content: bytes, *segments: bytes, adobe: int | None = None, jfif: bool = False) -> bytes:
    """The same JPEG with these segments at its beginning, in the place of its own JFIF and Adobe's."""
    body = content[2:]
    while body[1] in (0xE0, 0xEE):
        body = body[2 + int.from_bytes(body[2:4]) :]
    beginning = [content[:2]]
    if jfif:
        beginning.append(jpeg_segment(0xE0, JFIF))
    beginning += segments
    if adobe is not None:
        beginning.append(jpeg_segment(0xEE, ADOBE[:-1] + bytes([adobe])))
    return b"".join(beginning) + body


JFIF = b"JFIF\0\1\1\1\0\x48\0\x48\0\0"
ADOBE = b"Adobe\0\x64\0\0\0\0\1"


def jpeg_pixels() -> Cases:
    for kind, content in jpeg_kinds().items():
        yield f"JPEG: {kind}: as written", content
        for adobe in (None, 0, 1, 2, 7):
            for jfif in (False, True):
                marks = (
                    f"{'no Adobe' if adobe is None else f'Adobe {adobe}'}, {'JFIF' if jfif else 'no JFIF'}"
                )
                yield f"JPEG: {kind}: {marks}", marked(content, adobe=adobe, jfif=jfif)
    whole = saved(SCENE, "JPEG", quality=95)
    frame = whole.index(b"\xff\xc0")
    for precision in (2, 9, 12, 16):
        yield (
            f"JPEG: 4:2:0 baseline: {precision} bits",
            whole[: frame + 4] + bytes([precision]) + whole[frame + 5 :],
        )
    for marker in (0xC1, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB):
        yield (
            f"JPEG: 4:2:0 baseline: frame of kind {marker:X}",
            whole[: frame + 1] + bytes([marker]) + whole[frame + 2 :],
        )


def jpeg_segments() -> dict[str, tuple[int, bytes]]:
    photoshop = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x06\x1c\x02\0\0\x02\0\x04"
    resolution = b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10\0\x48\0\0\0\1\0\1\0\x48\0\0\0\1\0\1"
    profile = b"ICC_PROFILE\0\1\1" + srgb_profile()
    pictures = (
        b"MPF\0MM\0*\0\0\0\x08\0\3\xb0\0\0\7\0\0\0\x040100\xb0\1\0\4\0\0\0\1\0\0\0\2\xb0\2\0\7\0\0\0\x20"
        b"\0\0\0\x32\0\0\0\0"
    )
    return {
        "JFIF": (0xE0, JFIF),
        "JFIF with a thumbnail": (0xE0, JFIF[:-2] + b"\2\2" + bytes(12)),
        "JFXX": (0xE0, b"JFXX\0\x13\2\2" + bytes(12)),
        "EXIF": (0xE1, exif(1)),
        "XMP": (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(6)),
        "XMP going on": (0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + xmp(6)),
        "ICC profile": (0xE2, profile),
        "pictures behind": (0xE2, pictures + bytes(80)),
        "FlashPix": (0xE2, b"FPXR\0\0" + bytes(20)),
        "picture information": (0xEC, b"Ducky\0\1\0\4\0\0\0\x3c\0\0"),
        "Photoshop": (0xED, photoshop),
        "Photoshop's resolution": (0xED, resolution),
        "Adobe": (0xEE, ADOBE),
        "comment": (0xFE, b"a comment"),
        "claim of where it comes from": (0xEB, b"JP\0\1" + bytes(40)),
        "of nobody known": (0xE9, b"whatever it is"),
    }


def jpeg_metadata() -> Cases:
    kinds = {name: jpeg_kinds()[name] for name in ("4:2:0 baseline", "4:4:4 progressive", "grey baseline")}
    for segment, (marker, data) in jpeg_segments().items():
        forms = damages(data)
        if len(data) > 20:
            forms |= {
                f"cut to {length}": data[:length] for length in (3, 5, 6, 7, 11, 13, 14, 16, 18, 20, 24)
            }
        else:
            forms |= {f"cut to {length}": data[:length] for length in range(2, len(data))}
        for form, changed in forms.items():
            for kind, content in list(kinds.items())[: 3 if form in ("whole", "empty", "cut short") else 1]:
                yield (
                    f"JPEG: {kind}: {segment} {form}",
                    marked(content, jpeg_segment(marker, changed), jfif=True),
                )
        content = kinds["4:2:0 baseline"]
        for lie in (-len(data), -1, 1, 5, 60):
            length = max(0, len(data) + 2 + lie)
            lying = struct.pack(">BBH", 0xFF, marker, length) + data
            yield (
                f"JPEG: 4:2:0 baseline: {segment} of a length {lie:+d} off",
                marked(content, lying, jfif=True),
            )
        first = marked(content, jpeg_segment(marker, data))
        yield f"JPEG: 4:2:0 baseline: {segment} first", first
        yield (
            f"JPEG: 4:2:0 baseline: {segment} twice",
            marked(content, *[jpeg_segment(marker, data)] * 2, jfif=True),
        )
        scan = first.index(b"\xff\xda")
        yield (
            f"JPEG: 4:2:0 baseline: {segment} before the scan",
            marked(
                content[: content.index(b"\xff\xda")] + jpeg_segment(marker, data) + first[scan:], jfif=True
            ),
        )
        yield (
            f"JPEG: 4:2:0 baseline: {segment} behind the pixels",
            content[:-2] + jpeg_segment(marker, data) + content[-2:],
        )
    for name, data in exifs().items():
        yield (
            f"JPEG: 4:2:0 baseline: EXIF, {name}",
            marked(content, jpeg_segment(0xE1, b"Exif\0\0" + data), jfif=True),
        )
    turned, upright = (jpeg_segment(0xE1, exif(number)) for number in (6, 1))
    plain = jpeg_segment(0xE1, b"Exif\0\0" + bare_tiff((0x011A, 3, 1, 72 << 16)))
    packet = jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(3))
    ordered = {
        "EXIF before JFIF": marked(content, turned, jpeg_segment(0xE0, JFIF)),
        "two EXIFs, the first upright": marked(content, upright, turned, jfif=True),
        "two EXIFs, the first turned": marked(content, turned, upright, jfif=True),
        "two EXIFs, the first without an orientation": marked(content, plain, turned, jfif=True),
        "XMP of another orientation before EXIF": marked(content, packet, turned, jfif=True),
        "XMP of another orientation behind EXIF": marked(content, turned, packet, jfif=True),
        "XMP of an orientation beside EXIF without": marked(content, plain, packet, jfif=True),
        "EXIF with FF for its second zero": marked(
            content, jpeg_segment(0xE1, b"Exif\0\xff" + exif(6)[6:]), jfif=True
        ),
        "EXIF in small letters": marked(content, jpeg_segment(0xE1, b"exif\0\0" + exif(6)[6:]), jfif=True),
        "EXIF in another segment": marked(content, jpeg_segment(0xE2, exif(6)), jfif=True),
        "EXIF without zeros": marked(content, jpeg_segment(0xE1, b"Exif" + exif(6)[6:]), jfif=True),
    }
    for name, changed in ordered.items():
        yield f"JPEG: 4:2:0 baseline: {name}", changed


def jpeg_damage() -> Cases:
    for kind in (
        "4:2:0 baseline",
        "4:4:4 baseline",
        "grey baseline",
        "CMYK baseline",
        "4:2:0 progressive",
        "restart markers baseline",
    ):
        whole = jpeg_kinds()[kind]
        tables, scan = whole.index(b"\xff\xdb"), whole.index(b"\xff\xda")
        pieces = {
            "no end": whole[:-2],
            "half an end": whole[:-1],
            "no end and bytes behind": whole[:-2] + b"\0" * 50,
            "no end and a zip behind": whole[:-2] + b"PK\3\4" + bytes(40),
            "bytes behind its end": whole + b"more",
            "two ends": whole + b"\xff\xd9",
            "a JPEG behind its end": whole + whole,
            "bytes before its tables": whole[:tables] + b"more" + whole[tables:],
            "zeros before its tables": whole[:tables] + bytes(8) + whole[tables:],
            "FF before its tables": whole[:tables] + b"\xff" * 5 + whole[tables:],
            "bytes before its scan": whole[:scan] + b"more" + whole[scan:],
            "bytes before its end": whole[:-2] + b"more" + whole[-2:],
            "bytes before it": b"more" + whole,
            "two beginnings": whole[:2] + whole,
            "a restart marker before its tables": whole[:tables] + b"\xff\xd0" + whole[tables:],
        }
        for share in (20, 50, 80, 90, 95, 97, 98, 99):
            pieces[f"cut at {share} %"] = whole[: scan + (len(whole) - scan) * share // 100]
            pieces[f"cut at {share} % with an end"] = pieces[f"cut at {share} %"] + b"\xff\xd9"
        for name, content in pieces.items():
            yield f"JPEG: {kind}: {name}", content
    high = np.tile(SCENE, (9, 1, 1))
    for subsampling in ("4:4:4", "4:2:0"):
        for progressive in (False, True):
            whole = saved(high, "JPEG", quality=95, subsampling=subsampling, progressive=progressive)
            for share in (90, 95, 97, 98, 99, 99.5):
                kind = "progressive" if progressive else "baseline"
                name = f"JPEG: high, {subsampling} {kind}: cut at {share:g} %"
                yield name, whole[: int(len(whole) * share / 100)]


# WebP


def vp8x(flags: int, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    return bytes([flags, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def webp_frame(pixels: bytes, left: int, top: int, width: int, height: int, flags: int = 0) -> bytes:
    numbers = (left // 2, top // 2, width - 1, height - 1, 100)
    return riff_chunk(b"ANMF", b"".join(n.to_bytes(3, "little") for n in numbers) + bytes([flags]) + pixels)


def webp_kinds() -> dict[str, bytes]:
    rgba = np.dstack([SCENE, ALPHA])
    return {
        "lossy": saved(SCENE, "WebP", quality=95),
        "lossless": saved(SCENE, "WebP", lossless=True),
        "lossless with alpha": saved(rgba, "WebP", lossless=True, exact=True),
        "lossy with alpha": saved(rgba, "WebP", quality=95, exact=True),
    }


def pixels_of_webp(whole: bytes) -> bytes:
    """Its chunks but for VP8X."""
    return whole[30:] if whole[12:16] == b"VP8X" else whole[12:]


def webps() -> Cases:
    metadata = {
        "EXIF": (b"EXIF", 8, exif(1)[6:]),
        "XMP": (b"XMP ", 4, xmp(6)),
        "ICC profile": (b"ICCP", 32, srgb_profile()),
        "of nobody known": (b"wXyZ", 0, b"whatever it is"),
    }
    for kind, whole in webp_kinds().items():
        yield f"WebP: {kind}: as written", whole
        inside = pixels_of_webp(whole)
        alpha = 16 if "alpha" in kind else 0
        for name, (chunk, flag, data) in metadata.items():
            for form, changed in damages(data).items():
                piece = riff_chunk(chunk, changed)
                pieces = [piece, inside] if chunk == b"ICCP" else [inside, piece]
                yield f"WebP: {kind}: {name} {form}", webp(b"VP8X", vp8x(flag | alpha), *pieces)
            piece = riff_chunk(chunk, data)
            yield f"WebP: {kind}: {name} not announced", webp(b"VP8X", vp8x(alpha), inside, piece)
            yield f"WebP: {kind}: {name} announced and not there", webp(b"VP8X", vp8x(flag | alpha), inside)
            yield f"WebP: {kind}: {name} before the pixels", webp(b"VP8X", vp8x(flag | alpha), piece, inside)
            cut = webp(b"VP8X", vp8x(flag | alpha), inside, piece)
            yield f"WebP: {kind}: {name} cut with the file", cut[: -len(piece) // 2]
            long = chunk + struct.pack("<I", len(data) + 999) + data
            yield (
                f"WebP: {kind}: {name} longer than the file",
                webp(b"VP8X", vp8x(flag | alpha), inside, long),
            )
        for name, length in (("longer", 999), ("shorter", -8), ("a gigabyte", 1 << 30)):
            size = struct.pack("<I", len(whole) - 8 + length)
            yield f"WebP: {kind}: {name} by its own word", whole[:4] + size + whole[8:]
        yield f"WebP: {kind}: bytes behind it", whole + b"more of it"
        yield f"WebP: {kind}: a canvas that is larger", webp(b"VP8X", vp8x(alpha, 60, 50), inside)
        yield f"WebP: {kind}: a canvas that is smaller", webp(b"VP8X", vp8x(alpha, 20, 10), inside)
        for share in (30, 60, 90, 99):
            yield f"WebP: {kind}: cut at {share} %", whole[: len(whole) * share // 100]


def animated_webps() -> Cases:
    rgba = np.dstack([SCENE, ALPHA])
    for kind, whole in webp_kinds().items():
        inside, alpha = pixels_of_webp(whole), 16 if "alpha" in kind else 0
        small = (rgba if alpha else SCENE)[4:14, 6:26]
        part = pixels_of_webp(saved(small, "WebP", lossless=True, exact=True))
        whole_frame = webp_frame(inside, 0, 0, WIDTH, HEIGHT)
        for background in (b"\0\0\0\0", b"\xff\0\0\xff"):
            loop = riff_chunk(b"ANIM", background + b"\0\0")
            place = f"{background.hex()} behind it"
            for flags in range(4):
                for name, frame in {
                    "whole": webp_frame(inside, 0, 0, WIDTH, HEIGHT, flags),
                    "in its corner": webp_frame(part, 0, 0, 20, 10, flags),
                    "within it": webp_frame(part, 8, 6, 20, 10, flags),
                }.items():
                    yield (
                        f"animated WebP: {kind}: first frame {name}, flags {flags}, {place}",
                        webp(b"VP8X", vp8x(2 | alpha), loop, frame, whole_frame),
                    )
            yield (
                f"animated WebP: {kind}: first frame beyond it, {place}",
                webp(b"VP8X", vp8x(2 | alpha), loop, webp_frame(part, 36, 24, 20, 10), whole_frame),
            )
        for form, changed in damages(exif(6)[6:]).items():
            piece = riff_chunk(b"EXIF", changed)
            yield (
                f"animated WebP: {kind}: EXIF {form}",
                webp(b"VP8X", vp8x(10 | alpha), loop, whole_frame, whole_frame, piece),
            )


# GIF

XMP_TRAILER = b"\1" + bytes(range(255, -1, -1)) + b"\0"
"""What XMP ends with in a GIF, so that it can be read over as if it were blocks."""


def gifs() -> Cases:
    numbers = NUMBERS.astype(np.uint8)
    colours, others = PALETTE.tobytes(), PALETTE[::-1].tobytes()
    small = numbers[4:14, 6:26]
    frames: dict[str, tuple[Pixels, int, int]] = {
        "whole": (numbers, 0, 0),
        "in its corner": (small, 0, 0),
        "within it": (small, 8, 6),
        "partly beyond it": (small, 30, 22),
        "wholly beyond it": (small, 50, 40),
        "larger than it": (np.tile(numbers, (2, 2)), 0, 0),
        "larger than it and offset": (np.tile(numbers, (2, 2)), 5, 5),
    }
    for place, (pixels, left, top) in frames.items():
        for transparent in (None, 5, 0):
            for background in (0, 5, 200):
                for own in (False, True):
                    for more in (False, True):
                        name = (
                            f"{'animated ' if more else ''}GIF: first frame {place}: "
                            f"{'nothing' if transparent is None else transparent} transparent, "
                            f"background {background}, {'its own' if own else 'the common'} colours"
                        )
                        first = gif_frame(pixels, left, top, transparent, others if own else b"")
                        later = gif_frame(np.full((HEIGHT, WIDTH), 3, np.uint8), 0, 0, None)
                        yield name, gif(SIZE, colours, [first, *[later] * more], background)
    for disposal in range(5):
        first = gif_frame(small, 8, 6, 5, disposal=disposal)
        yield (
            f"animated GIF: disposal {disposal}: as written",
            gif(SIZE, colours, [first, gif_frame(numbers, 0, 0, None)]),
        )
    whole = gif(SIZE, colours, [gif_frame(numbers, 0, 0, None)])
    interlaced = gif(SIZE, colours, [gif_frame(numbers, 0, 0, None, interlaced=True)])
    pieces = {
        "interlaced": interlaced,
        "of 1987": b"GIF87a" + whole[6:],
        "no end": whole[:-1],
        "bytes behind its end": whole + b"more",
        "no colours at all": gif(SIZE, b"", [gif_frame(numbers, 0, 0, None)]),
        "its own colours alone": gif(SIZE, b"", [gif_frame(numbers, 0, 0, None, colours)]),
        "a screen of 0": gif((0, 0), colours, [gif_frame(numbers, 0, 0, None)]),
        "a screen of 1": gif((1, 1), colours, [gif_frame(numbers, 0, 0, None)]),
        "a comment": whole[:-1] + b"!\xfe\4text\0;",
        "a comment before its frame": gif(SIZE, colours, [b"!\xfe\4text\0" + gif_frame(numbers, 0, 0, None)]),
        "a comment cut short": whole[:-1] + b"!\xfe\xfftext",
        "an extension of nobody known": gif(
            SIZE, colours, [b"!\x42\4text\0" + gif_frame(numbers, 0, 0, None)]
        ),
        "XMP": gif(
            SIZE, colours, [b"!\xff\x0bXMP DataXMP" + xmp(6) + XMP_TRAILER + gif_frame(numbers, 0, 0, None)]
        ),
        "XMP without its trailer": gif(
            SIZE, colours, [b"!\xff\x0bXMP DataXMP" + xmp(6) + gif_frame(numbers, 0, 0, None)]
        ),
        "a loop cut short": gif(
            SIZE, colours, [b"!\xff\x0bNETSCAPE2.0\1\1\0" + gif_frame(numbers, 0, 0, None)]
        ),
        "a control of no length": gif(SIZE, colours, [b"!\xf9\0" + gif_frame(numbers, 0, 0, None)[8:]]),
        "two controls": gif(
            SIZE, colours, [gif_frame(numbers, 0, 0, 5)[:8] + gif_frame(numbers, 0, 0, None)]
        ),
        "bytes between its frames": gif(
            SIZE, colours, [gif_frame(numbers, 0, 0, None), b"more", gif_frame(numbers, 0, 0, None)]
        ),
        "zeros before its frame": gif(SIZE, colours, [bytes(3) + gif_frame(numbers, 0, 0, None)]),
        "a second frame cut short": gif(
            SIZE, colours, [gif_frame(numbers, 0, 0, None), gif_frame(numbers, 0, 0, None)]
        )[:-90],
    }
    for share in (30, 60, 90, 99):
        pieces[f"cut at {share} %"] = whole[: len(whole) * share // 100]
        pieces[f"interlaced, cut at {share} %"] = interlaced[: len(whole) * share // 100]
    for name, content in pieces.items():
        yield f"GIF: {name}: as written", content


# BMP


def bmps() -> Cases:
    bgr = SCENE[:, :, ::-1]
    up = np.flipud(bgr)
    bgra = np.dstack([up, np.flipud(ALPHA)])
    swatches = np.pad(PALETTE[:, ::-1], ((0, 0), (0, 1))).tobytes()
    numbers = np.flipud(NUMBERS)
    five = (np.flipud(SCENE) >> 3).astype(np.uint16)
    six = np.flipud(SCENE).astype(np.uint16)
    x555 = ((five[..., 0] << 10) | (five[..., 1] << 5) | five[..., 2]).astype("<u2").tobytes()
    r565 = ((six[..., 0] >> 3 << 11) | (six[..., 1] >> 2 << 5) | (six[..., 2] >> 3)).astype("<u2").tobytes()
    packed4 = ((numbers[:, ::2] << 4) | numbers[:, 1::2]).astype(np.uint8)
    packed4 = np.pad(packed4, ((0, 0), (0, -packed4.shape[1] % 4))).tobytes()
    packed1 = np.pad(np.packbits(numbers % 2, axis=1), ((0, 0), (0, 2))).tobytes()
    runs8 = b"".join(b"".join(bytes([4, n]) for n in row[::4]) + b"\0\0" for row in numbers) + b"\0\1"
    runs4 = b"".join(b"".join(bytes([4, n * 17]) for n in row[::4]) + b"\0\0" for row in numbers) + b"\0\1"
    moves = b"\0\2\6\4" + b"".join(bytes([4, n]) for n in range(8)) + b"\0\1"
    masks = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
    with_alpha = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    pieces = {
        "24 bits": bmp(SIZE, 24, up.tobytes()),
        "24 bits from the top": bmp((WIDTH, -HEIGHT), 24, bgr.tobytes()),
        "32 bits, the fourth byte of any value": bmp(SIZE, 32, bgra.tobytes()),
        "32 bits, the fourth byte zero": bmp(SIZE, 32, np.dstack([up, ALPHA * 0]).tobytes()),
        "32 bits by masks": bmp(SIZE, 32, bgra.tobytes(), compression=3, masks=masks),
        "32 bits by masks with alpha behind": bmp(SIZE, 32, bgra.tobytes(), compression=3, masks=with_alpha),
        "32 bits by masks with alpha": bmp(SIZE, 32, bgra.tobytes(), compression=6, masks=with_alpha),
        "16 bits": bmp(SIZE, 16, x555),
        "16 bits from the top": bmp((WIDTH, -HEIGHT), 16, x555),
        "16 bits by masks": bmp(
            SIZE, 16, r565, compression=3, masks=struct.pack("<III", 0xF800, 0x7E0, 0x1F)
        ),
        "8 bits": bmp(SIZE, 8, numbers.tobytes(), swatches),
        "8 bits without colours": bmp(SIZE, 8, numbers.tobytes()),
        "8 bits in runs": bmp(SIZE, 8, runs8, swatches, compression=1),
        "8 bits in runs that leave out": bmp(SIZE, 8, moves, swatches, compression=1),
        "8 bits in runs without an end": bmp(SIZE, 8, runs8[:-2], swatches, compression=1),
        "4 bits": bmp(SIZE, 4, packed4, swatches),
        "4 bits in runs": bmp(SIZE, 4, runs4, swatches, compression=2),
        "1 bit": bmp(SIZE, 1, packed1, swatches[:8]),
        "numbers beyond its colours": bmp(SIZE, 8, numbers.tobytes(), swatches[:16]),
    }
    for size in (52, 56, 64, 108, 124):
        for bits, compression, fields in ((32, 3, with_alpha), (32, 0, bytes(16)), (24, 0, bytes(16))):
            pixels = (bgra if bits == 32 else up).tobytes()
            header = struct.pack("<IiiHHIIiiII", size, *SIZE, 1, bits, compression, len(pixels), 0, 0, 0, 0)
            header = (header + fields + (b"BGRs" if size > 56 else b""))[:size].ljust(size, b"\0")
            start = 14 + size
            pieces[f"header of {size}, {bits} bits, packing {compression}"] = (
                b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + pixels
            )
    start = 14 + 12
    old = struct.pack("<IHHHH", 12, *SIZE, 1, 24)
    pieces["OS/2, 24 bits"] = b"BM" + struct.pack("<IHHI", start + up.size, 0, 0, start) + old + up.tobytes()
    triples = PALETTE[:, ::-1].tobytes().ljust(768, b"\0")
    old = struct.pack("<IHHHH", 12, *SIZE, 1, 8) + triples
    pieces["OS/2, 8 bits"] = (
        b"BM"
        + struct.pack("<IHHI", 14 + len(old) + numbers.size, 0, 0, 14 + len(old))
        + old
        + numbers.tobytes()
    )
    long = struct.pack("<IiiHHIIiiII", 64, *SIZE, 1, 24, 0, up.size, 0, 0, 0, 0) + bytes(24)
    pieces["OS/2, header of 64"] = b"BM" + struct.pack("<IHHI", 78 + up.size, 0, 0, 78) + long + up.tobytes()
    whole = pieces["24 bits"]
    pieces |= {
        "bytes behind it": whole + b"more",
        "a size of its own that is wrong": whole[:2] + b"\1\0\0\0" + whole[6:],
        "a size of its pixels that is wrong": whole[:34] + b"\1\0\0\0" + whole[38:],
        "a gap before its pixels": whole[:10] + struct.pack("<I", 64) + whole[14:54] + bytes(10) + whole[54:],
        "two planes": whole[:26] + b"\2\0" + whole[28:],
    }
    for share in (30, 60, 90, 99):
        pieces[f"24 bits, cut at {share} %"] = whole[: len(whole) * share // 100]
    for name, content in pieces.items():
        yield f"BMP: {name}: as written", content


# AVIF


def avifs() -> Cases:
    rgba = np.dstack([SCENE, ALPHA])
    for subsampling in ("4:4:4", "4:2:2", "4:2:0", "4:0:0"):
        for range_ in ("full", "limited"):
            options = {"subsampling": subsampling, "quality": 95, "range": range_}
            yield f"AVIF: {subsampling}, {range_} range: plain", saved(SCENE, "AVIF", **options)
            yield f"AVIF: {subsampling}, {range_} range: alpha", saved(rgba, "AVIF", **options)
            yield (
                f"AVIF: {subsampling}, {range_} range: animated",
                saved(SCENE, "AVIF", save_all=True, append_images=[Image.new("RGB", SIZE)], **options),
            )
    options = {"subsampling": "4:4:4", "quality": 95}
    for orientation in range(1, 9):
        yield f"AVIF: 4:4:4: turned as {orientation}", saved(SCENE, "AVIF", exif=exif(orientation), **options)
    for form, data in damages(xmp(6)).items():
        yield f"AVIF: 4:4:4: XMP {form}", saved(SCENE, "AVIF", xmp=data, **options)
    whole = saved(SCENE, "AVIF", exif=exif(6), **options)
    where = whole.index(b"MM\0*") if b"MM\0*" in whole else whole.index(b"II*\0")
    for form, data in {
        "of another magic": b"XX",
        "zeros": bytes(8),
        "beginning elsewhere": whole[where : where + 4] + b"\xff" * 4,
    }.items():
        yield f"AVIF: 4:4:4: EXIF {form}", whole[:where] + data + whole[where + len(data) :]
    # What a tool leaves that turns the picture and forgets its EXIF: the orientation without its property.
    yield "AVIF: 4:4:4: EXIF alone turned", whole.replace(b"irot", b"free").replace(b"imir", b"free")
    yield "AVIF: 4:4:4: bytes behind it", saved(SCENE, "AVIF", **options) + b"more"
    yield "AVIF: 4:4:4: an ICC profile", saved(SCENE, "AVIF", icc_profile=srgb_profile(), **options)
    for form, data in damages(srgb_profile()).items():
        if data:
            yield f"AVIF: 4:4:4: ICC profile {form}", saved(SCENE, "AVIF", icc_profile=data, **options)
    plain = saved(SCENE, "AVIF", **options)
    for share in (30, 60, 90, 99):
        yield f"AVIF: 4:4:4: cut at {share} %", plain[: len(plain) * share // 100]


# Orientation, wherever it may stand


LOSSLESS = saved(SCENE, "WebP", lossless=True)[12:]

EXIF_HOMES: dict[str, Callable[[bytes], bytes]] = {
    "JPEG": lambda data: saved(SCENE, "JPEG", quality=95, exif=data),
    "PNG": lambda data: png_with("colours 8", (b"eXIf", data[6:])),
    "WebP": lambda data: webp(b"VP8X", vp8x(8), LOSSLESS, riff_chunk(b"EXIF", data[6:])),
    "WebP with a prefix": lambda data: webp(b"VP8X", vp8x(8), LOSSLESS, riff_chunk(b"EXIF", data)),
}
"""A picture of each format with this EXIF."""


def raw_profile(data: bytes) -> bytes:
    """EXIF as text, as it stood in PNGs before they had a chunk for it."""
    text = b"\nexif\n%8d\n" % len(data) + data.hex().encode() + b"\n"
    return b"Raw profile type exif\0\0" + zlib.compress(text)


OTHER_HOMES: dict[str, Callable[[int], bytes]] = {
    "XMP of a JPEG": lambda number: marked(
        saved(SCENE, "JPEG", quality=95),
        jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(number)),
        jfif=True,
    ),
    "XMP of a PNG": lambda number: png_with(
        "colours 8", (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(number))
    ),
    "XMP of a WebP": lambda number: webp(b"VP8X", vp8x(4), LOSSLESS, riff_chunk(b"XMP ", xmp(number))),
    "raw profile of a PNG": lambda number: png_with("colours 8", (b"zTXt", raw_profile(exif(number)))),
}
"""A picture with this orientation somewhere else, where no browser looks for it."""


def orientations() -> Cases:
    for number in range(10):
        for home, made in EXIF_HOMES.items():
            yield f"orientation: {number} in the EXIF of a {home}", made(exif(number))
        for home, made in OTHER_HOMES.items():
            yield f"orientation: {number} in the {home}", made(number)
    for form, data in exifs().items():
        for home in ("PNG", "WebP"):
            yield f"orientation: EXIF of a {home}: {form}", EXIF_HOMES[home](b"Exif\0\0" + data)
    turned = (b"eXIf", exif(6)[6:])
    for name, content in {
        "EXIF of a PNG with a prefix": png_with("colours 8", (b"eXIf", exif(6))),
        "EXIF of a PNG behind the pixels": png_with("colours 8", after=[turned]),
        "EXIF of a PNG with a wrong checksum": damaged_crc(png_with("colours 8", turned), b"eXIf"),
        "two EXIFs of a PNG": png_with("colours 8", turned, (b"eXIf", exif(3)[6:])),
    }.items():
        yield f"orientation: {name}", content


# Colours that are said to be other ones than sRGB's


def colour_spaces() -> Cases:
    profile = other_profile()
    inside = saved(SCENE, "WebP", lossless=True)[12:]
    best = saved(SCENE, "JPEG", quality=95)
    for name, content in {
        "profile in a PNG": png_with("colours 8", (b"iCCP", b"profile\0\0" + zlib.compress(profile))),
        "profile in a JPEG": marked(best, jpeg_segment(0xE2, b"ICC_PROFILE\0\1\1" + profile), jfif=True),
        "profile in a WebP": webp(b"VP8X", vp8x(32), riff_chunk(b"ICCP", profile), inside),
        "profile in an AVIF": saved(SCENE, "AVIF", quality=95, subsampling="4:4:4", icc_profile=profile),
        "cICP of Display P3 in a PNG": png_with("colours 8", (b"cICP", bytes([12, 13, 0, 1]))),
        "cHRM and gAMA of another screen in a PNG": png_with(
            "colours 8",
            (b"cHRM", struct.pack(">8I", 31270, 32900, 30000, 60000, 64000, 33000, 15000, 6000)),
            (b"gAMA", struct.pack(">I", 45455)),
        ),
    }.items():
        yield f"colour space: {name}", content
