"""Pictures as Chromium shows them on a white page, and how ours differ: `python -m tests.chromium_pictures`.

It writes docs/chromium.md.
"""

import base64
import re
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from local_stack.browser import Browser
from tasks.pictures.picture import BadPictureError, decode
from tasks.settings import REPOSITORY
from tests.picture_corpus import everything
from tests.picture_files import Pixels

_MOST_PIXELS = 1_000_000
_AT_ONCE = 100
_LEVELS = 2
"""Of 255, up to which pixels are the same: mixing with white and ink rounds in more than one way."""

_SHOW = """
const done = arguments[arguments.length - 1];
const shown = async (content) => {
  const url = URL.createObjectURL(new Blob([Uint8Array.from(atob(content), c => c.charCodeAt(0))]));
  const image = new Image();
  const loaded = new Promise(resolve => {
    image.onload = () => resolve(true);
    image.onerror = () => resolve(false);
  });
  image.src = url;
  if (!await loaded) return null;
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0);
  URL.revokeObjectURL(url);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  let text = "";
  for (let i = 0; i < pixels.length; i += 8192) text += String.fromCharCode(...pixels.subarray(i, i + 8192));
  return [canvas.width, canvas.height, btoa(text)];
};
(async () => {
  const all = [];
  for (const content of arguments[0]) all.push(await shown(content));
  done(all);
})();
"""


def shown(browser: Browser, contents: Sequence[bytes]) -> list[Pixels | None]:
    """What each of these looks like on white, uint8 [height, width, 3]; None for a broken picture."""
    browser.driver.get("about:blank")
    browser.driver.set_script_timeout(120)
    found: list[Pixels | None] = []
    for start in range(0, len(contents), _AT_ONCE):
        some = [base64.b64encode(content).decode() for content in contents[start : start + _AT_ONCE]]
        for one in browser.driver.execute_async_script(_SHOW, some):
            if one is None:
                found.append(None)
            else:
                width, height, pixels = one
                rgba = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(height, width, 4)
                found.append(rgba[:, :, :3])
    return found


class Reason(NamedTuple):
    """Why some pictures may differ from what Chromium shows."""

    names: str
    """A regular expression that each of their names matches."""
    how: str
    """The one way in which they may."""
    why: str


REFUSED, TAKEN, COLOURS, SIZE = "refused here", "not shown there", "other pixels", "another size"
SAME, NEITHER = "the same", "refused by both"

REASONS = (
    Reason(
        r"cut at|% of its rows|no end|half an end|a text between its pixels",
        REFUSED,
        "The file ends before its pixels do, and Chromium leaves the rest white. A feature of a part would "
        "find other things than the picture, so it is `corrupt`, and fetched again; but a JPEG of which 98 % "
        "of the rows are there is taken as Chromium shows it, a progressive one if that much of its last "
        "scan is there.",
    ),
    Reason(
        r"gAMA of|colour space:|cICP",
        COLOURS,
        "The picture says that its colours are not sRGB's, by a profile, cICP, or gamma. Chromium converts "
        "them; the contract takes the values as they are stored, as TensorFlow does, so that features stay "
        "comparable with those of any other program with the same preprocessing.",
    ),
    Reason(
        r"AVIF: .*: (alpha|animated)",
        COLOURS,
        "Chromium takes full-range brightness for the limited range in alpha planes and animations: alpha of "
        "47 of 255 is 36 there, which is (47 - 16) * 255 / 219. Ours are the values that it was made from.",
    ),
    Reason(
        r"AVIF: .*ICC profile (one byte|cut short|zeros|noise)",
        TAKEN,
        "The pixels are whole, and what is damaged says nothing that is used here.",
    ),
    Reason(
        r"PNG: .*bKGD",
        TAKEN,
        "bKGD does not fit the palette, which is no fault of the pixels: a background is not used here.",
    ),
    Reason(
        r"PLTE cut short",
        COLOURS,
        "Pixels have numbers beyond the palette. Chromium shows one of its colours there, Pillow black.",
    ),
    Reason(
        r"GIF: no colours at all",
        COLOURS,
        "No colours are given. Chromium shows black, Pillow a very dark grey.",
    ),
    Reason(
        r"BMP: 8 bits (without colours|in runs that leave out)|numbers beyond its colours",
        REFUSED,
        "Pillow does not decode a BMP whose palette overlaps its pixels or whose runs skip some.",
    ),
    Reason(
        r"BMP: header of 64, 32 bits",
        TAKEN,
        "OS/2's header with a packing that it cannot have; Pillow decodes it as the later headers mean it.",
    ),
)


class Comparison(NamedTuple):
    outcomes: dict[str, str]
    """By the name of each picture, how it compares."""

    def without_reason(self) -> dict[str, str]:
        """The differences that no reason covers."""
        return {
            name: how
            for name, how in self.outcomes.items()
            if how not in (SAME, NEITHER) and reason_of(name, how) is None
        }

    def reasons(self) -> Counter[Reason]:
        """How many differences each reason covers."""
        found = (reason_of(name, how) for name, how in self.outcomes.items())
        return Counter(reason for reason in found if reason is not None)


def reason_of(name: str, how: str) -> Reason | None:
    """The reason of a difference; none where there is no difference, or no reason."""
    return next((r for r in REASONS if r.how == how and re.search(r.names, name)), None)


def compare(browser: Browser, corpus: Mapping[str, bytes]) -> Comparison:
    """Each picture as Chromium shows it and as we decode it."""
    theirs = shown(browser, list(corpus.values()))
    return Comparison(
        {name: _compared(their, corpus[name]) for name, their in zip(corpus, theirs, strict=True)}
    )


def _compared(theirs: Pixels | None, content: bytes) -> str:
    ours = decoded(content)
    # One that cannot be decoded at all is blank there, but for its size.
    blank = theirs is None or bool((theirs == 255).all())
    if ours is None:
        return NEITHER if blank else REFUSED
    if theirs is None:
        return TAKEN
    if theirs.shape != ours.shape:
        return SIZE
    if np.abs(theirs.astype(int) - ours).max() <= _LEVELS:
        return SAME
    return TAKEN if blank else COLOURS


def decoded(content: bytes) -> Pixels | None:
    """All of the picture as we have it, uint8 [height, width, 3]; None where it is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = decode(content, _MOST_PIXELS)
            return picture.pixels(np.arange(picture.height), np.arange(picture.width))
        except BadPictureError:
            return None


def table(comparison: Comparison, version: str) -> str:
    """docs/chromium.md."""
    formats = sorted({_format(name) for name in comparison.outcomes})
    counted = Counter((_format(name), how) for name, how in comparison.outcomes.items())
    ways = (SAME, NEITHER, REFUSED, TAKEN, COLOURS, SIZE)
    differences = sum(comparison.reasons().values()) + len(comparison.without_reason())
    lines = [
        "# Pictures as Chromium shows them",
        "",
        "What a shopper's browser shows is what is indexed. So a corpus of pictures that the tests make is",
        "shown by Chromium on a white page and compared, pixel by pixel, with what is decoded here:",
        f"{len(comparison.outcomes):,} pictures, {differences} differences, each with its reason below",
        f"(Chromium {version}; two levels of 255 are rounding). `make comparison` compares all of them and",
        "writes this page; `make test` compares a sample.",
        "",
        "The corpus has each format with its colour types, depths, transparency, interlacing or scans; each",
        "kind of metadata whole, empty, cut short, of noise, of a wrong checksum or length; orientation",
        "wherever it may stand; CMYK and YCCK with and without Adobe's marker; first frames that do not",
        "cover their canvas; and files that are cut or damaged",
        "([`tests/picture_corpus.py`](../tests/picture_corpus.py)).",
        "",
        f"| format | pictures | {' | '.join(ways)} |",
        f"| --- | ---: |{' ---: |' * len(ways)}",
    ]
    for name in formats:
        counts = [counted[name, how] for how in ways]
        lines.append(f"| {name} | {sum(counts):,} | {' | '.join(f'{count:,}' for count in counts)} |")
    totals = [sum(counted[name, how] for name in formats) for how in ways]
    lines += [
        f"| **all** | **{sum(totals):,}** | {' | '.join(f'**{count:,}**' for count in totals)} |",
        "",
        "A picture of which Chromium draws nothing counts as refused by it.",
        "",
        "## The differences that are left, and why",
        "",
        "| pictures | how | why | for example |",
        "| ---: | --- | --- | --- |",
    ]
    for reason, count in comparison.reasons().most_common():
        example = next(n for n, how in comparison.outcomes.items() if reason_of(n, how) == reason)
        lines.append(f"| {count} | {reason.how} | {reason.why} | {example} |")
    return "\n".join([*lines, "", _NOTES])


_NOTES = """## What was decided by it

- Orientation is taken from EXIF in a JPEG, from eXIf before the pixels of a PNG, and from an AVIF's own
  properties. XMP turns a picture in no browser, nor does EXIF in a WebP, so neither does here.
- What stands beside the pixels is left out before decoding
  ([`tasks/pictures/containers.py`](../tasks/pictures/containers.py)), so damage to it costs no picture.
  Damage that keeps Chromium from showing anything, such as a length that swallows a table, makes it
  `corrupt`.
- What a GIF's, WebP's or PNG's first frame leaves uncovered is white, whatever background the file names.
- Of the 1,000 photos of the shop none has a profile or an orientation, so that these rules change none of
  their features.
"""


def _format(name: str) -> str:
    return name.partition(":")[0].removeprefix("animated ")


def main() -> int:
    """Compare all of the corpus and write the page; fails where a difference has no reason."""
    corpus = everything()
    with Browser.opened("about:blank") as browser:
        version = str(browser.driver.capabilities["browserVersion"])
        comparison = compare(browser, corpus)
    for name, how in comparison.without_reason().items():
        print(f"{how}: {name}", file=sys.stderr)
    unused = [reason.names for reason in REASONS if reason not in comparison.reasons()]
    for names in unused:
        print(f"no difference of this kind is left: {names}", file=sys.stderr)
    (REPOSITORY / "docs" / "chromium.md").write_text(table(comparison, version))
    print(f"{len(corpus):,} pictures, {Counter(comparison.outcomes.values()).most_common()}")
    return 1 if comparison.without_reason() or unused else 0


if __name__ == "__main__":
    sys.exit(main())
