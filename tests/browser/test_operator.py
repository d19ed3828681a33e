"""What an operator does in a real browser, from the log-in on, before the stack of `make up`.

The tests follow one another: a gap is filled, which leaves a failure, which is retried.
"""

import sqlite3
from collections import Counter
from contextlib import closing
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import pytest
from selenium.webdriver.common.keys import Keys

from local_stack.browser import PAGES, REPORT, Browser
from local_stack.demo import BACKFILL
from local_stack.garments import draw
from local_stack.stack import Stack
from local_stack.up import RETRY
from tasks.runs import reports
from tasks.runs.run import Request
from tests.browser.conftest import PATH

pytestmark = pytest.mark.browser

ROOT = "/feature-index"
TAB = f"/plugin{ROOT}"
"""Airflow's own page with our pages in a frame; in its address follows the whole path of the one shown."""
PHONE = (390, 844)


class Item(NamedTuple):
    """An item of the catalogue."""

    item_id: str
    category_id: str
    img_url: str


@pytest.fixture(scope="module")
def lost(running: Stack) -> Item:
    """The item whose picture is missing."""
    with closing(sqlite3.connect(running.shop.catalog_path)) as catalogue:
        query = "select item_id, category_id, img_url from items where item_name like '%(picture missing)'"
        return Item(*catalogue.execute(query).fetchone())


@pytest.fixture(scope="module")
def similar(running: Stack, lost: Item) -> Item:
    """An item of that category without a flaw, which its name would tell in brackets."""
    with closing(sqlite3.connect(running.shop.catalog_path)) as catalogue:
        whole = "category_id = ? and item_name not like '%(%'"
        query = f"select item_id, category_id, img_url from items where {whole}"
        return Item(*catalogue.execute(query, (lost.category_id,)).fetchone())


@pytest.fixture(scope="module")
def documents(running: Stack, lost: Item) -> int:
    """How many items of its category have a document."""
    with closing(sqlite3.connect(running.shop.catalog_path)) as catalogue:
        query = "select item_id from items where category_id = ?"
        found = {item_id for (item_id,) in catalogue.execute(query, (lost.category_id,))}
    return len(found - set(running.shop.without_document))


def path(browser: Browser) -> str:
    """Of the address in the window, below the path that Airflow is at."""
    found = urlsplit(browser.driver.current_url).path
    assert found.startswith(f"{PATH}/")
    return found.removeprefix(PATH)


def runs(running: Stack, dag_id: str) -> list[str]:
    found = running.airflow._call("GET", f"/api/v2/dags/{dag_id}/dagRuns")["dag_runs"]
    return [run["dag_run_id"] for run in found]


def run_address(dag_id: str, run_id: str) -> str:
    return f"/dags/{dag_id}/runs/{quote(run_id, safe='')}"


def ended(running: Stack, dag_id: str) -> str:
    """The id of the DAG's only run, once it has ended well."""
    [run_id] = runs(running, dag_id)
    assert running.airflow.wait(dag_id, run_id) == "success"
    return run_id


def shown_counts(browser: Browser) -> list[list[str]]:
    """The statuses and their numbers in the report that is shown."""
    table = browser.see("[aria-label='Items by status'] tbody")
    return [row.text.split()[:2] for row in table.find_elements("css selector", "tr")]


# Looking around ---------------------------------------------------------------------------------


def test_nobody_sees_a_page_before_the_log_in(window: Browser) -> None:
    window.open(TAB)
    window.see("input[type=password]")
    window.open(f"{ROOT}/")
    assert window.see("h1").text == "Please log in"


def test_each_page_opens_inside_airflow(admin: Browser, running: Stack) -> None:
    admin.open(TAB)
    with admin.frame(PAGES):
        admin.see("h1", "Coverage")
        names = [link.text for link in admin.driver.find_elements("css selector", "nav a")]
    assert names[0] == "Coverage"
    for name in (*names[1:], "Coverage"):
        with admin.frame(PAGES):
            admin.click("nav a", name)
            admin.wait(lambda name=name: admin.see("nav a[aria-current=page]").text == name, name)
            admin.see("h1", name)
            address = urlsplit(admin.run("return location.href")).path
        # Airflow's address leads here again.
        admin.wait(
            lambda address=address: path(admin) == f"/plugin/feature-index{address}", f"{name}'s address"
        )
    with admin.frame(PAGES):
        everything = running.search.count(index=running.settings.index)["count"]
        assert f"0 of {everything} documents" in admin.see("main").text
        assert "No nightly run has succeeded yet" in admin.see(".banner").text


# From a gap to a retry --------------------------------------------------------------------------


def test_a_gap_is_filled(admin: Browser, running: Stack, lost: Item, documents: int) -> None:
    admin.open(TAB)
    with admin.frame(PAGES):
        admin.click(f"a[href$='category_id={lost.category_id}']")
        admin.see("h1", f"Backfill of category {lost.category_id}")
        assert f"{documents} documents, 0 with a feature" in admin.see("main").text
        assert runs(running, BACKFILL) == []
        admin.click("button", "Start the backfill")
        admin.see("h1", BACKFILL)
        assert "No report yet" in admin.see(".banner").text

    run_id = ended(running, BACKFILL)
    admin.open(run_address(BACKFILL, run_id))
    admin.click("a", REPORT)
    with admin.frame(REPORT):
        admin.see("h1", run_id)
        report = reports.read(Request(BACKFILL, run_id), running.settings)
        assert report is not None
        assert report["counts"]["gone"] == 1
        assert report["counts"]["indexed"] > 0
        assert shown_counts(admin) == [[status, f"{n}"] for status, n in report["counts"].items()]
        assert lost.item_id in admin.see("main").text


def test_a_failure_is_retried(admin: Browser, running: Stack, lost: Item) -> None:
    # Somebody has uploaded the picture meanwhile.
    picture = running.shop.picture(lost.img_url)
    another = next(path for path in sorted(picture.parent.iterdir()) if path.suffix == picture.suffix)
    picture.write_bytes(another.read_bytes())
    admin.open(f"{TAB}{PATH}{ROOT}/failures?item_id={lost.item_id}")
    with admin.frame(PAGES):
        assert "gone" in admin.see("[aria-label='Items that failed'] tbody").text
        admin.click("button", f"Retry now: {lost.item_id}")
        admin.see("h1", RETRY)

    run_id = ended(running, RETRY)
    admin.open(f"{TAB}{PATH}{ROOT}/runs")
    with admin.frame(PAGES):
        admin.click("tbody a", run_id)
        admin.see("h1", run_id)
        assert shown_counts(admin) == [["indexed", "1"]]
        admin.click("nav a", "Failures")
        admin.see("h1", "Failures")
        assert lost.item_id not in admin.see("main").text


def test_a_task_leads_to_the_report_and_the_report_back(admin: Browser, running: Stack) -> None:
    [run_id] = runs(running, BACKFILL)
    run = run_address(BACKFILL, run_id)
    for task in ("plan", "features.extract/mapped/0"):
        admin.open(f"{run}/tasks/{task}/details")
        admin.click(f"a[href$='{run}/plugin/feature-report']", REPORT)
        with admin.frame(REPORT):
            admin.see("h1", run_id)
    with admin.frame(REPORT):
        admin.click("main a", "extract")
    # The window itself goes there, not the frame.
    admin.wait(lambda: path(admin) == f"{run}/tasks/features.extract/mapped", "Airflow's page of the task")
    assert admin.driver.find_elements("tag name", "iframe") == []


def test_a_chosen_photo_finds_its_item_first(admin: Browser, running: Stack, similar: Item) -> None:
    admin.open(TAB)
    with admin.frame(PAGES):
        admin.click("nav a", "Search by photo")
        admin.see("h1", "Search by photo")
        assert len(admin.driver.find_elements("css selector", "main ul.cards li")) > 5, "to start from"
        admin.see("input[type=file]").send_keys(str(running.shop.picture(similar.img_url)))
        admin.see("#found")
        [nearest, *others] = admin.driver.find_elements("css selector", "main ol.cards li")
        assert similar.item_id in nearest.text
        assert "cosine 1.000" in nearest.text
        assert len(others) > 5
        admin.run("arguments[0].scrollIntoView()", others[-1])  # pictures come when they are looked at
        loaded = "return [...document.images].every(image => image.complete && image.naturalWidth)"
        admin.wait(lambda: admin.run(loaded), "every neighbour's picture")
        nearest.find_element("css selector", "a").click()
        admin.see("#more", "More like this")
        assert similar.item_id in admin.see("dl").text
        admin.wait(lambda: admin.run("return document.images[0].naturalWidth"), "the item's own picture")
        assert admin.run("return document.images[0].clientWidth") > 300


GIVE = """
const [bytes, kind, times] = arguments;
const given = new DataTransfer();
for (let n = 0; n < times; n++) given.items.add(new File([Uint8Array.from(bytes)], "mine.jpg"));
dispatchEvent(kind === "drop" ? new DragEvent("drop", {dataTransfer: given, cancelable: true})
                              : new ClipboardEvent("paste", {clipboardData: given, cancelable: true}));
"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_dropped_or_pasted_photo_that_is_in_no_index_finds_neighbours(
    admin: Browser, lost: Item, kind: str
) -> None:
    photo = list(draw(lost.category_id, seed=99_999).data)
    admin.open(f"{ROOT}/similar")
    admin.see("h1", "Search by photo")
    admin.run(GIVE, photo, kind, 2)
    assert "One photo at a time" in admin.see("form.photo [role=status]").text
    admin.run(GIVE, photo, kind, 1)
    assert admin.see("#found").text == "Similar to mine.jpg"
    found = admin.driver.find_elements("css selector", "main ol.cards li")
    assert len(found) > 5
    assert "cosine 1.000" not in found[0].text


# How the pages behave ---------------------------------------------------------------------------


def test_the_keyboard_alone_reaches_what_matters(admin: Browser) -> None:
    def tab() -> str:
        admin.focused().send_keys(Keys.TAB)
        return admin.focused().text

    admin.open(f"{ROOT}/")
    admin.see("h1")
    assert tab() == "Skip to the content"
    assert admin.focused().is_displayed()
    links = [link.text for link in admin.driver.find_elements("css selector", "nav a")]
    assert [tab() for _ in links] == links
    admin.open(f"{ROOT}/")
    admin.see("h1")
    tab()
    admin.focused().send_keys(Keys.ENTER)
    reached = [tab(), tab()]
    assert reached[-1].startswith("Backfill missing features"), (
        "past the navigation, the table's region and then its link"
    )
    assert admin.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    admin.focused().send_keys(Keys.ENTER)
    admin.see("h1", "Backfill of category")
    assert [tab() for _ in range(len(links) + 2)] == ["Skip to the content", *links, "Start the backfill"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_in_light_and_dark(
    admin: Browser, running: Stack, similar: Item, scheme: str
) -> None:
    [run_id] = runs(running, BACKFILL)
    admin.look(*PHONE, scheme)
    try:
        report = f"/runs/{BACKFILL}/{quote(run_id, safe='')}"
        for page in (
            "/",
            "/runs",
            "/failures",
            report,
            "/api",
            "/similar",
            "/duplicates",
            f"/similar?item_id={similar.item_id}",
        ):
            admin.open(ROOT + page)
            admin.see("h1")
            too_wide = "const d = document.documentElement; return d.scrollWidth - d.clientWidth"
            assert admin.run(too_wide) == 0, page
            ground = admin.run("return getComputedStyle(document.body).backgroundColor")
            brightness = sum(map(int, ground.removeprefix("rgb(").removesuffix(")").split(",")))
            assert (brightness > 700) if scheme == "light" else (brightness < 100), ground
    finally:
        admin.look(1280, 900)


def test_pages_ask_nobody_but_the_stack_and_nothing_beside_its_path(admin: Browser, running: Stack) -> None:
    asked = [urlsplit(url) for url in admin.requested()]
    asked_of = Counter(url.netloc for url in asked if url.scheme in ("http", "https", "ws", "wss"))
    airflow = urlsplit(running.airflow.url).netloc
    assert asked_of[airflow] > 20
    assert set(asked_of) == {airflow, running.shop.image_hosts}
    beside = {url.path for url in asked if url.netloc == airflow and not url.path.startswith(f"{PATH}/")}
    assert beside == set()
