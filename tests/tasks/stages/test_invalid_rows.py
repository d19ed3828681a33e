"""Rows of the catalogue that cost their item alone, from the plan to the ledger: without an id, or with a
text in no valid encoding."""

import pytest

from tasks.errors import RunFailedError
from tasks.runs import packs
from tasks.runs.run import Request, Retry
from tasks.search.index import SearchIndex
from tasks.shop.ledger import Ledger
from tasks.stages import download, index, plan, summarise
from tasks.statuses import Status
from tests.shop_fixtures import NOON, some_vector, url_of, write_packs

pytestmark = pytest.mark.usefixtures("model_version")

HOUR = NOON.replace(hour=11), NOON.replace(hour=13)
EVERYTHING = Request("nightly", "r", *HOUR)
BAD = "p\\xff1"
"""As it is shown; in the catalogue its second character is the byte ff."""


def add_bad_id(shop):
    """An item with an id that is no UTF-8."""
    shop.catalogue.add("to be bad", "https://pictures.example/bad.jpg")
    shop.catalogue.execute("update items set item_id = cast(x'70ff31' as text) where item_id = 'to be bad'")


def add_bad_name(shop, item_id):
    shop.stock(item_id)
    shop.catalogue.execute(
        "update items set item_name = cast(x'ff' as text) where item_id = :item_id", {"item_id": item_id}
    )


@pytest.fixture
def shop(sqlite_shop):
    """Two good items and what is wrong with others."""
    sqlite_shop.stock("good", "fine")
    SearchIndex(sqlite_shop.services.search, sqlite_shop.index).prepare()
    return sqlite_shop


def done(shop, request=EVERYTHING, *, finished=True):
    """Every stage of a run, with features chosen; its report."""
    settings = shop.settings(failure_budget=1)
    planned = plan.run(request, settings, shop.services)
    for chunk in planned.chunks if finished else ():
        urls = [row["img_url"] for row in packs.rows(planned.items) if row["invalid"] is None]
        write_packs(chunk, {url: some_vector(number) for number, url in enumerate(urls)})
        index.run(chunk, settings, shop.services)
    ledger = Ledger(None, settings)
    try:
        return summarise.run(planned, settings, ledger)
    except RunFailedError:
        return None


def retried(shop, **chosen):
    return done(shop, Request("retry", "r", retry=Retry(**chosen)))


def failures(shop):
    return {failure.item_id: failure for failure in Ledger(None, shop.settings()).matching()}


def test_it_costs_that_item_alone_and_the_counts_add_up(shop):
    add_bad_id(shop)
    add_bad_name(shop, "named badly")
    for number in range(2):
        shop.catalogue.add(None, f"https://pictures.example/{number}.jpg")
    shop.catalogue.add("é" * 257, "https://pictures.example/long.jpg")

    report = done(shop)

    assert report["planned"] == sum(report["counts"].values()) == 7
    assert report["counts"] == {"indexed": 2, "invalid_row": 5}
    named = {item["item_id"]: item["reason"] for item in report["failures"]}
    assert named == {
        BAD: "item_id is not valid UTF-8: " + BAD,
        "named badly": r"item_name is not valid UTF-8: \xff",
        "(null)": "item_id is null",
        f"{'é' * 119}…": "item_id is longer than 512 bytes",
    }
    listed = failures(shop)
    assert set(listed) == set(named)
    assert {failure.next_at for failure in listed.values()} == {None}
    assert set(shop.versions()) == {"good", "fine", "named badly"}
    assert shop.versions()["named badly"] is None


def test_nothing_is_fetched_for_it(shop):
    add_bad_name(shop, "bad")
    shop.catalogue.execute("delete from items where item_id in ('good', 'fine')")
    planned = plan.run(EVERYTHING, shop.settings(), shop.services)
    (chunk,) = planned.chunks
    assert download.run(chunk, shop.settings())["pictures"] == 0
    assert list(packs.rows(chunk.pictures)) == []


def test_an_item_whose_id_is_what_is_shown_of_another_has_its_own_end(shop):
    add_bad_id(shop)
    shop.stock(BAD)
    report = done(shop)
    assert report["counts"] == {"indexed": 3, "invalid_row": 1}
    assert shop.versions()[BAD] is not None


def test_a_chunk_that_does_not_finish_leaves_it_invalid(shop):
    """Else the hourly retry would take it, and not find it."""
    add_bad_id(shop)
    done(shop, finished=False)
    assert {item_id: failure.status for item_id, failure in failures(shop).items()} == {
        BAD: Status.INVALID_ROW,
        "good": Status.UNFINISHED,
        "fine": Status.UNFINISHED,
    }


def test_the_hourly_retry_leaves_it_listed(shop):
    add_bad_id(shop)
    add_bad_name(shop, "named badly")
    done(shop)
    before = failures(shop)
    assert set(before) == {BAD, "named badly"}
    report = retried(shop)
    assert report["planned"] == 0
    assert failures(shop) == before


@pytest.mark.parametrize("chosen", [{"statuses": (Status.INVALID_ROW,)}, {"item_ids": (BAD, "(null)", "b")}])
def test_a_retry_by_hand_finds_it_by_what_is_shown(shop, chosen):
    add_bad_id(shop)
    shop.catalogue.add(None, "https://pictures.example/null.jpg")
    add_bad_name(shop, "b")
    done(shop)
    report = retried(shop, **chosen)
    assert report["counts"] == {"invalid_row": 3}
    assert {failure.attempts for failure in failures(shop).values()} == {2}
    assert set(failures(shop)) == {BAD, "(null)", "b"}


def test_what_was_corrected_or_is_gone_leaves_the_list_at_a_retry_by_hand(shop):
    add_bad_id(shop)
    shop.catalogue.add(None, "https://pictures.example/null.jpg")
    add_bad_name(shop, "b")
    done(shop)
    shop.catalogue.execute("update items set item_name = 'shirt' where item_id = 'b'")
    shop.catalogue.execute("update items set item_id = 'p1' where img_url like '%bad.jpg'")
    shop.catalogue.execute("delete from items where item_id is null")
    report = retried(shop, statuses=(Status.INVALID_ROW,))
    assert report["counts"] == {"indexed": 1}
    assert failures(shop) == {}
    assert shop.versions()["b"] is not None


def test_a_night_that_reconciles_takes_what_was_corrected_and_explains_the_rest(shop):
    add_bad_name(shop, "corrected")
    add_bad_name(shop, "still bad")
    done(shop)
    shop.catalogue.execute("update items set item_name = 'shirt' where item_id = 'corrected'")
    later = NOON.replace(hour=20), NOON.replace(hour=21)
    night = Request("nightly", "later", *later, interval=later, reconcile=True)
    report = done(shop, night)
    assert report["counts"] == {"indexed": 1}
    assert report["without_feature"]["on_record"] == 1
    assert report["without_feature"]["left_catalogue"] == 0
    assert set(failures(shop)) == {"still bad"}


def test_a_url_that_is_no_text_any_more_is_another_one(shop):
    """At the time of writing, the catalogue decides."""
    settings = shop.settings()
    planned = plan.run(EVERYTHING, settings, shop.services)
    (chunk,) = planned.chunks
    write_packs(chunk, {url_of(item_id): some_vector(1) for item_id in ("good", "fine")})
    for item_id in ("good", "fine"):
        shop.write_document(item_id, img_url="https://pictures.example/other.jpg")
    shop.catalogue.execute("update items set img_url = cast(x'ff' as text) where item_id = 'fine'")
    index.run(chunk, settings, shop.services)
    ends = {row["item_id"]: row["status"] for row in packs.rows(chunk.outcomes)}
    assert ends == {"good": "waiting_for_document", "fine": "superseded"}


def test_every_origin_counts_it(shop):
    add_bad_id(shop)
    night = Request("nightly", "r", HOUR[0].replace(hour=1), HOUR[1], interval=HOUR)
    report = done(shop, night)
    assert report["origins"] == {"changed": {"planned": 3, "counts": {"indexed": 2, "invalid_row": 1}}}
