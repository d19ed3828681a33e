"""What is indexed is what Chromium shows: a sample of the corpus that `make comparison` compares whole."""

import base64
import io
import os
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from local_stack import browser
from local_stack.browser import Browser
from tests.chromium_pictures import COLOURS, NEITHER, REFUSED, SAME, TAKEN, compare, reason_of, shown
from tests.picture_corpus import everything

CORPUS = everything()

_EVERY = 16
"""One picture of so many is compared, in the order of their names, so of each kind."""


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    if problem := browser.missing():
        # Where nobody would notice what is skipped, it fails.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(problem)
    with Browser.opened("about:blank") as opened:
        yield opened


def test_a_sample_is_what_chromium_shows_or_has_a_reason(window: Browser) -> None:
    names = sorted(CORPUS)[::_EVERY]
    assert len(names) > 150
    comparison = compare(window, {name: CORPUS[name] for name in names})
    assert not comparison.without_reason()
    assert list(comparison.outcomes.values()).count(SAME) > 0.8 * len(names)


def test_the_comparison_finds_what_is_different(window: Browser) -> None:
    """Each way in which pictures may differ, by one of the corpus that is known to."""
    known = {
        "PNG: colours 8: plain": SAME,
        "PNG: colours 8: wrong checksum of the header": NEITHER,
        "JPEG: high, 4:2:0 baseline: cut at 90 %": REFUSED,
        "colour space: profile in a JPEG": COLOURS,
        "PNG: palette 4 transparent: bKGD whole": TAKEN,
    }
    comparison = compare(window, {name: CORPUS[name] for name in known})
    assert comparison.outcomes == known
    assert not comparison.without_reason()
    assert reason_of("PNG: colours 8: plain", COLOURS) is None


def test_a_canvas_has_what_a_page_shows(window: Browser) -> None:
    """The comparison reads canvases; a screenshot of a page has the same pixels."""
    names = [
        "PNG: colours and alpha 8: plain",
        "orientation: 6 in the EXIF of a JPEG",
        "orientation: 6 in the EXIF of a WebP",
        # Not an animated one: the page goes on to its next frame before the screenshot is taken.
        "GIF: first frame within it: nothing transparent, background 5, the common colours",
    ]
    for name, canvas in zip(names, shown(window, [CORPUS[name] for name in names]), strict=True):
        assert canvas is not None
        source = base64.b64encode(CORPUS[name]).decode()
        page = f"<body style='margin:0;background:white'><img src='data:image/png;base64,{source}'>"
        window.driver.get("data:text/html;base64," + base64.b64encode(page.encode()).decode())
        height, width, _ = canvas.shape
        with Image.open(io.BytesIO(window.driver.get_screenshot_as_png())) as screenshot:
            page_pixels = np.asarray(screenshot.convert("RGB"))[:height, :width]
        assert np.abs(page_pixels.astype(int) - canvas).max() <= 1, name
