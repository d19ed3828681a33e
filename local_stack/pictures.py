"""`make pictures`: the README's pictures of the pages, taken of a new shop of drawn garments.

Taken again, they show the same shop; only dates, ids and seconds differ.
"""

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from local_stack import stack
from local_stack.browser import PAGES, REPORT, Browser
from local_stack.demo import BACKFILL, NIGHTLY
from local_stack.elasticsearch import data_folder
from local_stack.process import interrupt_when_told_to_end
from local_stack.stack import Stack
from tasks.errors import FeatureIndexError
from tasks.settings import REPOSITORY

FOLDER = REPOSITORY / "docs" / "pictures"

_COLOURS = 64
"""In a picture. Pages have few; a picture with more takes twice the bytes."""


def main() -> int:
    """The command; 0 when all pictures are there."""
    interrupt_when_told_to_end()
    try:
        with tempfile.TemporaryDirectory(prefix="pictures-") as folder:
            _take(Path(folder))
    except FeatureIndexError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; everything it started has ended.", file=sys.stderr)
        return 130
    return 0


def _take(folder: Path) -> None:
    # A stack has room for what is set already; these pictures are to show the drawn shop alone.
    for name in (stack.CATALOGUE_VARIABLE, stack.SEARCH_VARIABLE, "ELASTICSEARCH_URL", "FEATURES_INDEX"):
        os.environ.pop(name, None)
    running = Stack.start(
        None,
        folder=folder,
        say=print,
        stays=True,
        airflow_settings={"AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False"},
    )
    try:
        nights = _work(running)
        with Browser.opened(running.airflow.url, width=1200, height=760) as browser:
            _show(browser, running, nights)
    finally:
        stack.stop(folder)
        shutil.rmtree(data_folder(folder), ignore_errors=True)


def _work(running: Stack) -> list[str]:
    """Fill what nights and one backfill fill, and leave gaps; the ids of the nights' runs."""
    airflow, shop = running.airflow, running.shop
    assert shop is not None
    for dag_id in (NIGHTLY, BACKFILL):
        airflow.unpause(dag_id)
    start, end = shop.newest_night()
    length = end - start
    nights = []
    for ago in (3, 2, 1, 0):
        interval = (start - ago * length, end - ago * length)
        nights.append(airflow.trigger(NIGHTLY, logical_date=interval[0], data_interval=interval))
        airflow.wait(NIGHTLY, nights[-1])
    categories = sorted(shop.category_names())
    airflow.wait(BACKFILL, airflow.trigger(BACKFILL, conf={"category_ids": categories[:3]}))
    return nights


def _show(browser: Browser, running: Stack, nights: Sequence[str]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    browser.open("/plugin/feature-index")
    browser.log_in(running.airflow.username, running.airflow.password)
    with browser.frame(PAGES):
        browser.see("h1", "Coverage")
    _save(browser, "coverage")
    with browser.frame(PAGES):
        browser.click("nav a", "Failures")
        browser.see("h1", "Failures")
    _save(browser, "failures")
    shop = running.shop
    assert shop is not None
    newest = shop.newest_items(2)[min(shop.category_names())]
    item = next(item_id for item_id in newest if item_id not in shop.without_document)
    browser.open(f"/plugin/feature-index/feature-index/similar?item_id={item}")
    with browser.frame(PAGES):
        browser.see("#found")
        loaded = (
            "return [...document.images].every(i => i.complete || i.getBoundingClientRect().y > innerHeight)"
        )
        browser.wait(lambda: browser.run(loaded), "the neighbours' pictures")
    _save(browser, "similar")
    run = f"/dags/{NIGHTLY}/runs/{quote(nights[-1], safe='')}"
    browser.open(f"{run}/plugin/feature-report")
    with browser.frame(REPORT):
        browser.see("h2", "Stages")
    _save(browser, "report")
    browser.open(f"/dags/{NIGHTLY}")
    browser.see("a[href$='/tasks/summarise']")
    # The grid first has the run that was just looked at, then the others, and what they are of last.
    paths = "return [...document.links].map(link => decodeURIComponent(link.pathname))"
    runs = {f"/dags/{NIGHTLY}/runs/{night}/tasks/plan" for night in nights}
    browser.wait(lambda: runs <= set(browser.run(paths)), "the nights in the grid")
    browser.wait(lambda: "Failed Runs" in browser.run("return document.body.innerText"), "the overview")
    _save(browser, "grid")


def _save(browser: Browser, name: str) -> None:
    """The window as a PNG whose colours are a palette's, which makes it small."""
    picture = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")
    path = FOLDER / f"{name}.png"
    picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
