"""Tests of tasks/stages/reconcile.py: features that got lost, with a real catalogue, index and ledger."""

import itertools
import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from tasks.runs import packs
from tasks.runs.run import Origin, Plan, Request, Retry
from tasks.search.index import SearchIndex
from tasks.search.mapping import AT, FEATURE, URL, VERSION
from tasks.shop.catalogue import Catalogue
from tasks.shop.database import STATEMENTS
from tasks.shop.ledger import ItemOutcome, Ledger
from tasks.stages import plan
from tasks.stages.reconcile import IdSet, find_lost
from tasks.statuses import Status
from tests.shop_fixtures import NOON, some_vector, url_of

BEFORE = NOON - timedelta(days=30)
NIGHT = Request(
    "nightly",
    "r",
    start=NOON - timedelta(days=2),
    end=NOON + timedelta(hours=1),
    interval=(NOON - timedelta(hours=1), NOON + timedelta(hours=1)),
    reconcile=True,
)


@pytest.fixture(autouse=True)
def version(model_version):
    return model_version


def stock(shop, *item_ids, version=None, **columns):
    """Items of long ago; with a feature where a version is given."""
    shop.stock(*item_ids, **({"registered_at": BEFORE} | columns))
    SearchIndex(shop.services.search, shop.index).prepare()
    for item_id in item_ids if version else ():
        shop.client.update(index=shop.index, id=item_id, doc=feature(item_id, version), refresh=True)


def feature(item_id, version):
    at = datetime.now(UTC).isoformat()
    return {FEATURE: some_vector(1).tolist(), VERSION: version, URL: url_of(item_id), AT: at}


def fail(shop, ended, *, urls=None, retried=False, plan_id="plan-failed"):
    """Leave failures in the ledger, given up unless they are to be retried."""
    settings = shop.settings(retry_attempts=10 if retried else 1)
    outcomes = [
        ItemOutcome(item_id, "00000010", (urls or {}).get(item_id, url_of(item_id)), status, "as chosen")
        for item_id, status in ended.items()
    ]
    folder = shop.data_dir / "nightly" / "earlier" / plan_id
    earlier = Plan(folder, Request("nightly", "earlier"), "v", len(ended), 0, datetime.now(UTC))
    Ledger(None, settings).record(earlier, outcomes)


def planned(shop, request=NIGHT, **changes):
    return plan.run(request, shop.settings(**changes), shop.services)


def taken(plan_):
    """The items to do by origin."""
    found = {}
    for row in packs.rows(plan_.items):
        found.setdefault(row["origin"], set()).add(row["item_id"])
    return found


def of_night(shop, version, **changes):
    """What a night finds, its parts adding up."""
    plan_ = planned(shop, **changes)
    counts = dict(plan_.without_feature)
    lacking, _ = SearchIndex(shop.services.search, shop.index).without_feature(version)
    assert counts.pop("documents") == sum(counts.values()) == lacking
    assert plan_.planned == sum(of_it["planned"] for of_it in plan_.origins.values())
    assert plan_.current == sum(of_it["current"] for of_it in plan_.origins.values())
    return plan_, {name: count for name, count in counts.items() if count}


def test_a_feature_that_got_lost_comes_back(shop, version):
    """The core server writes the document anew as a whole, and nothing in the catalogue changes."""
    stock(shop, "whole", "rewritten", "fine", version=version)
    assert taken(planned(shop)) == {}
    shop.write_document("rewritten", price=3)

    plan_, counts = of_night(shop, version)

    assert taken(plan_) == {"reconciled": {"rewritten"}}
    assert counts == {"reconciled": 1}
    assert (plan_.planned, plan_.current) == (1, 0)
    assert Plan.load(plan_.folder) == plan_


@pytest.mark.parametrize(
    "lost",
    [
        {FEATURE: None},
        {VERSION: None},
        {VERSION: "inception_v3-000000000000-pad299"},
        {FEATURE: None, VERSION: None, URL: None, AT: None},
    ],
    ids=["feature", "version", "another version", "all"],
)
def test_whatever_is_missing_of_it(sqlite_shop, version, lost):
    stock(sqlite_shop, "a", "b", version=version)
    sqlite_shop.client.update(index=sqlite_shop.index, id="a", doc=lost, refresh=True)
    plan_, counts = of_night(sqlite_shop, version, mix_versions=True)
    assert taken(plan_) == {"reconciled": {"a"}}
    assert counts == {"reconciled": 1}


def test_changed_caught_up_and_reconciled_are_told_apart(shop, version):
    stock(shop, "lost", "never had one")
    stock(shop, "changed", "changed and current", registered_at=NOON)
    stock(shop, "missed", "missed and current", registered_at=NOON - timedelta(days=1))
    stock(shop, "moved", registered_at=BEFORE, updated_at=NOON)
    stock(shop, "fine", version=version)
    for item_id in ("changed and current", "missed and current"):
        shop.client.update(index=shop.index, id=item_id, doc=feature(item_id, version), refresh=True)

    plan_, counts = of_night(shop, version)

    assert taken(plan_) == {
        "changed": {"changed", "moved"},
        "caught_up": {"missed"},
        "reconciled": {"lost", "never had one"},
    }
    assert plan_.origins == {
        "changed": {"planned": 3, "current": 1},
        "caught_up": {"planned": 2, "current": 1},
        "reconciled": {"planned": 2, "current": 0},
    }
    assert counts == {"planned": 3, "reconciled": 2}
    # After what changed.
    assert [row["origin"] for row in packs.rows(plan_.items)][-2:] == ["reconciled"] * 2


def test_what_is_explained_is_not_taken(shop, version):
    stock(shop, "lost", "given up", "to be retried", "left", "left and failed", "other URL since")
    statuses = dict.fromkeys(["given up", "left and failed", "other URL since"], Status.TOO_LARGE)
    fail(shop, statuses, urls={"other URL since": "https://pictures.example/before.jpg"})
    fail(shop, {"to be retried": Status.GONE}, retried=True, plan_id="plan-later")
    shop.catalogue.execute("delete from items where item_id like 'left%'")
    before = shop.sequence_numbers()

    plan_, counts = of_night(shop, version)

    assert taken(plan_) == {"reconciled": {"lost", "other URL since"}}
    assert counts == {"on_record": 3, "left_catalogue": 1, "reconciled": 2}
    assert shop.sequence_numbers() == before


def test_a_document_that_was_waited_for_in_vain_and_is_there_now_is_taken(sqlite_shop, version):
    """What was given up was that it did not come."""
    shop = sqlite_shop
    stock(shop, "has come", "has another URL", "superseded")
    shop.write_document("has another URL", img_url="https://pictures.example/another.jpg")
    waited = dict.fromkeys(["has come", "has another URL"], Status.WAITING_FOR_DOCUMENT)
    fail(shop, waited | {"superseded": Status.SUPERSEDED})
    plan_, counts = of_night(shop, version)
    assert taken(plan_) == {"reconciled": {"has come", "superseded"}}
    assert counts == {"on_record": 1, "reconciled": 2}


def test_a_night_takes_no_more_than_it_may(sqlite_shop, version, monkeypatch):
    shop = sqlite_shop
    monkeypatch.setattr("tasks.search.index._IDS_AT_ONCE", 3)
    ids = [f"{number:02}" for number in range(11)]
    stock(shop, *ids)
    found = set()
    for night, (size, left) in enumerate([(4, 7), (4, 3), (3, 0)]):
        plan_, counts = of_night(shop, version, reconcile_items=4)
        (new,) = taken(plan_).values()
        assert counts == {"reconciled": size} | ({"next_nights": left} if left else {})
        assert [f"{left} documents" in notice for notice in plan_.notices] == [True] * bool(left)
        assert len(new) == size, night
        assert not new & found, "the next nights go on"
        found |= new
        for item_id in new:
            shop.client.update(index=shop.index, id=item_id, doc=feature(item_id, version), refresh=True)
    assert found == set(ids)


def test_items_of_one_url_stand_together_though_the_index_gives_them_anyhow(sqlite_shop):
    shop = sqlite_shop
    urls = [f"https://pictures.example/{number % 3}.jpg" for number in range(12)]
    for number, url in enumerate(urls):
        stock(shop, f"{number:02}", img_url=url)
    rows = [row["img_url"] for row in packs.rows(planned(shop).items)]
    assert [url for url, _ in itertools.groupby(rows)] == sorted(set(urls))


@pytest.mark.parametrize(
    ("request_", "changes"),
    [
        (Request("nightly", "r", NIGHT.start, NIGHT.end, interval=NIGHT.interval), {}),
        (NIGHT, {"reconcile_items": 0}),
        (Request("backfill", "r", category_ids=("00000020",)), {}),
        (Request("retry", "r", retry=Retry()), {}),
    ],
    ids=["of an interval", "switched off", "backfill", "retry"],
)
def test_other_runs_do_not_look(sqlite_shop, request_, changes):
    stock(sqlite_shop, "lost")
    plan_ = planned(sqlite_shop, request_, **changes)
    assert (plan_.planned, plan_.without_feature) == (0, {})


def test_a_preview_counts_what_would_be_taken(sqlite_shop):
    stock(sqlite_shop, "lost", "lost too")
    preview = Request("command_line", "r", NIGHT.start, NIGHT.end, reconcile=True, dry_run=True)
    plan_ = planned(sqlite_shop, preview)
    assert (plan_.planned, plan_.current) == (2, 0)
    assert plan_.origins == {"reconciled": {"planned": 2, "current": 0}}


def test_without_an_index_there_is_nothing_to_look_at(sqlite_shop):
    sqlite_shop.catalogue.add("new", url_of("new"))
    plan_ = planned(sqlite_shop)
    assert (taken(plan_), plan_.without_feature) == ({"changed": {"new"}}, {})


# Documents of anyone ----------------------------------------------------------------------------


def test_ids_that_the_catalogue_cannot_have(new_shop, version, monkeypatch, tmp_path):
    """A statement of the shop's own may compare with numbers, and an id of the index may be anything."""
    shop = new_shop("timestamptz")
    shutil.copytree(STATEMENTS, tmp_path / "sql")
    statement = tmp_path / "sql" / "catalogue" / "ids.sql"
    numbers = statement.read_text().replace("where item_id in", "where cast(item_id as integer) in")
    statement.write_text(numbers)
    monkeypatch.setattr("tasks.shop.database.STATEMENTS", tmp_path / "sql")
    assert_found_among_others(shop, version)


def test_ids_that_a_column_s_character_set_lacks(new_shop, version):
    shop = new_shop("datetime(6)")
    shop.catalogue.execute("alter table items convert to character set latin1")
    assert_found_among_others(shop, version)


def assert_found_among_others(shop, version):
    stock(shop, "1", "2", version=version)
    for item_id in ("1", "3", "banner", "99999999999999999999", "4 5", "a\0b", "셔츠"):
        shop.write_document(item_id)
    found = find_lost(
        SearchIndex(shop.services.search, shop.index),
        Catalogue(shop.services.catalogue),
        Ledger(None, shop.settings()),
        version,
        IdSet(),
        100,
    )
    assert [item.item_id for item in found[0]] == ["1"]
    assert found[1].counts["left_catalogue"] == 6


# The set of ids ---------------------------------------------------------------------------------


def test_a_set_of_ids_is_a_set():
    ids = IdSet()
    assert ids.has(["a", ""]).tolist() == [False, False]
    ids = IdSet()
    ids.add(["b", "a", "셔츠"])
    ids.add(["", "a", "007"])
    assert ids.has(["a", "", "007", "셔츠", "7", "A", "b", "c"]).tolist() == [True] * 4 + [False] * 2 + [
        True,
        False,
    ]
    assert ids.has([]).tolist() == []


def test_an_id_takes_eight_bytes():
    ids = IdSet()
    ids.add(str(number) for number in range(100_000))
    assert len(ids._hashes.tobytes()) == 800_000
    assert np.count_nonzero(ids.has([str(number) for number in range(0, 200_000, 2)])) == 50_000


# The origins' meanings are what pages show.
def test_every_origin_says_what_it_means():
    assert all(origin.meaning.endswith(".") for origin in Origin)
