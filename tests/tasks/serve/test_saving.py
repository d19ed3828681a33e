"""Tests of tasks/serve/saving.py: chosen features that requests save into a real Elasticsearch."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.inference.model import Identity
from tasks.runs import packs
from tasks.search.index import SearchIndex
from tasks.search.mapping import AT, COMPACT, COMPACT_VERSION, FEATURE, FIELDS, GROUP, IMAGE, URL, VERSION
from tasks.serve.answers import InferenceError
from tasks.serve.features import Feature
from tasks.serve.saving import Saving
from tasks.space.published import publish, published
from tasks.stages import index
from tests.shop_fixtures import CATEGORY, FEATURE_VERSION, NOON, SmallShop, some_vector, url_of
from tests.tasks.space.synthetic import compact_of, some_space

New = Callable[..., Saving]


@pytest.fixture
def new_saving(sqlite_shop: SmallShop) -> Iterator[New]:
    """Makes one that saves into the shop's index."""
    made = []

    def make(
        *, create: bool = False, version: str = FEATURE_VERSION, fingerprint: str = "", **changes: Any
    ) -> Saving:
        index = SearchIndex(sqlite_shop.services.search, sqlite_shop.index)
        made.append(
            Saving(index, Identity(version, fingerprint), sqlite_shop.settings(**changes), create=create)
        )
        return made[-1]

    yield make
    for saving in made:
        saving.close()


def feature(seed: int) -> Feature:
    return Feature(hashlib.sha256(bytes([seed])).hexdigest(), some_vector(seed))


def row(item_id: str, **fields: str) -> dict[str, str]:
    return {"item_id": item_id, "img_url": url_of(item_id)} | fields


def whole(item_id: str, **fields: str) -> dict[str, str]:
    return row(item_id) | {"item_name": "red hat", "category_id": "00000030"} | fields


def refusal(saving: Saving, *arguments: Any) -> tuple[int, str]:
    with pytest.raises(InferenceError) as refused:
        saving.save(*arguments)
    return refused.value.http_status, refused.value.status


# Adding to a document ----------------------------------------------------------------------------


def test_a_feature_is_added_with_the_fields_of_a_run(sqlite_shop: SmallShop, new_saving: New) -> None:
    sqlite_shop.write_document("007", price=1.1)
    before = sqlite_shop.sources()["007"]
    new_saving().save(row("007"), feature(1), NOON)
    after = sqlite_shop.sources()["007"]
    assert {name: value for name, value in after.items() if name not in FIELDS} == before
    assert after[VERSION] == FEATURE_VERSION
    assert after[URL] == url_of("007")
    assert after[IMAGE] == feature(1).image
    assert datetime.fromisoformat(after[AT]) == NOON
    np.testing.assert_allclose(sqlite_shop.vector("007"), some_vector(1), rtol=3e-7)


@pytest.mark.parametrize("create", [False, True])
def test_its_compact_vector_comes_with_it(sqlite_shop: SmallShop, new_saving: New, create: bool) -> None:
    sqlite_shop.write_document("a")
    model = Identity(FEATURE_VERSION)
    publish(some_space(model), sqlite_shop.settings())
    space = published(sqlite_shop.settings(), model)
    saving = new_saving(create=create)
    for item_id in ("a", "new") if create else ("a",):
        saving.save(whole(item_id), feature(1), NOON)
        held = sqlite_shop.vector(item_id, COMPACT)
        np.testing.assert_allclose(held, compact_of(space, some_vector(1)), atol=1e-6)
        assert sqlite_shop.sources()[item_id][COMPACT_VERSION] == space.version


def test_a_document_that_is_not_there_is_waited_for_and_not_made(
    sqlite_shop: SmallShop, new_saving: New
) -> None:
    sqlite_shop.write_document("there")
    assert refusal(new_saving(), row("missing"), feature(1), NOON) == (409, "waiting_for_document")
    assert set(sqlite_shop.sources()) == {"there"}


def test_a_document_with_another_url_is_left_as_it_is(sqlite_shop: SmallShop, new_saving: New) -> None:
    sqlite_shop.write_document("a", img_url="https://pictures.example/another.jpg")
    saving = new_saving()
    before = sqlite_shop.sources()
    assert refusal(saving, row("a"), feature(1), NOON) == (409, "waiting_for_document")
    assert sqlite_shop.sources() == before


def test_of_a_run_and_a_request_the_later_wins(sqlite_shop: SmallShop, new_saving: New) -> None:
    sqlite_shop.stock("a")
    saving = new_saving()
    saving.save(row("a"), feature(1), NOON)
    older = sqlite_shop.chunk({"a": some_vector(2)}, run="older", created_at=NOON - timedelta(hours=1))
    index.run(older, sqlite_shop.settings(), sqlite_shop.services)
    assert [outcome["status"] for outcome in packs.rows(older.outcomes)] == ["superseded"]
    newer = sqlite_shop.chunk({"a": some_vector(3)}, run="newer", created_at=NOON + timedelta(hours=1))
    index.run(newer, sqlite_shop.settings(), sqlite_shop.services)
    assert [outcome["status"] for outcome in packs.rows(newer.outcomes)] == ["indexed"]
    assert refusal(saving, row("a"), feature(4), NOON) == (409, "superseded")
    np.testing.assert_allclose(sqlite_shop.vector("a"), some_vector(3), rtol=3e-7)


def test_a_document_that_changes_meanwhile_is_read_again(
    sqlite_shop: SmallShop, new_saving: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite_shop.write_document("a")
    saving = new_saving()
    saving.save(row("a"), feature(1), NOON)
    real, calls = SearchIndex.documents, []

    def changed_in_between(self: SearchIndex, item_ids: Any) -> Any:
        found = real(self, item_ids)
        calls.append(item_ids)
        if len(calls) == 1:  # the core server writes a new URL before we write
            sqlite_shop.write_document("a", img_url="https://pictures.example/next.jpg")
        return found

    monkeypatch.setattr(SearchIndex, "documents", changed_in_between)
    assert refusal(saving, row("a"), feature(2), NOON) == (409, "waiting_for_document")
    assert FEATURE not in sqlite_shop.sources()["a"]
    assert VERSION not in sqlite_shop.sources()["a"]


# Versions ----------------------------------------------------------------------------------------


def test_a_second_version_is_refused_as_in_a_run(sqlite_shop: SmallShop, new_saving: New) -> None:
    sqlite_shop.write_document("a")
    sqlite_shop.write_document("b")
    new_saving(version="inception_v3-another").save(row("a"), feature(1), NOON)
    sqlite_shop.client.indices.refresh(index=sqlite_shop.index)
    with pytest.raises(ConfigurationError, match="FEATURES_MIX_VERSIONS"):
        new_saving().save(row("b"), feature(2), NOON)
    assert VERSION not in sqlite_shop.sources()["b"]
    new_saving(mix_versions=True).save(row("b"), feature(2), NOON)
    assert sqlite_shop.sources()["b"][VERSION] == FEATURE_VERSION


def test_the_first_feature_notes_its_model_and_one_that_computes_something_else_is_refused(
    sqlite_shop: SmallShop, new_saving: New
) -> None:
    for item_id in "ab":
        sqlite_shop.write_document(item_id)
    new_saving(fingerprint="3c00" * 16).save(row("a"), feature(1), NOON)
    for mix in (False, True):
        other = new_saving(fingerprint="4000" * 16, mix_versions=mix)
        with pytest.raises(ConfigurationError, match="computes something else with the same weights"):
            other.save(row("b"), feature(2), NOON)
    assert VERSION not in sqlite_shop.sources()["b"]


# Whole documents ---------------------------------------------------------------------------------


def test_whole_documents_are_made_with_our_mapping_and_replaced(
    sqlite_shop: SmallShop, new_saving: New
) -> None:
    saving = new_saving(create=True)
    saving.save(whole("007"), feature(1), NOON)
    assert sqlite_shop.sources()["007"] == whole("007") | {
        VERSION: FEATURE_VERSION,
        URL: url_of("007"),
        IMAGE: feature(1).image,
        GROUP: feature(1).image,
        AT: NOON.isoformat(),
    }
    (described,) = sqlite_shop.client.indices.get_mapping(index=sqlite_shop.index).values()
    mapped = described["mappings"]["properties"]
    assert mapped[FEATURE]["type"] == "dense_vector"
    assert mapped["category_id"]["type"] == "keyword"

    moved = whole("007", img_url="https://pictures.example/next.jpg", item_name="green hat")
    saving.save(moved, feature(2), NOON + timedelta(seconds=1))
    source = sqlite_shop.sources()["007"]
    assert source["item_name"] == "green hat"
    assert source[URL] == source["img_url"] == "https://pictures.example/next.jpg"
    np.testing.assert_allclose(sqlite_shop.vector("007"), some_vector(2), rtol=3e-7)


def test_runs_that_create_documents_fill_the_same_index(sqlite_shop: SmallShop, new_saving: New) -> None:
    new_saving(create=True).save(whole("by request"), feature(1), NOON)
    for item_id in ("by run", "by request"):
        sqlite_shop.catalogue.add(item_id, url_of(item_id), item_name="red hat", category_id="00000030")
    chunk = sqlite_shop.chunk({"by run": some_vector(2), "by request": some_vector(3)})
    done = index.run(chunk, sqlite_shop.settings(create_documents=True), sqlite_shop.services)
    assert done["counts"] == {"indexed": 2}
    sources = sqlite_shop.sources()
    for item_id in ("by run", "by request"):
        expected = {"item_id": item_id, "item_name": "red hat", "category_id": "00000030"}
        assert expected.items() <= sources[item_id].items()
    assert set(sources["by run"]) == set(sources["by request"])
    np.testing.assert_allclose(sqlite_shop.vector("by request"), some_vector(3), rtol=3e-7)
    # And a request finds what the run made.
    new_saving().save(row("by run"), feature(4), datetime.now(UTC))
    np.testing.assert_allclose(sqlite_shop.vector("by run"), some_vector(4), rtol=3e-7)


# Many at once ------------------------------------------------------------------------------------


def test_requests_at_once_share_writes_and_two_of_one_item_keep_their_order(
    sqlite_shop: SmallShop, new_saving: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        sqlite_shop.write_document(str(number), category_id=CATEGORY)
    saving = new_saving()
    first, hold = threading.Event(), threading.Event()
    real, pages = SearchIndex.write, []

    def held(self: SearchIndex, actions: Any) -> Any:
        pages.append([action["_id"] for action in actions])
        first.set()
        assert hold.wait(10)
        return real(self, actions)

    monkeypatch.setattr(SearchIndex, "write", held)
    with ThreadPoolExecutor(30) as threads:
        done = [threads.submit(saving.save, row("0"), feature(0), NOON)]
        assert first.wait(10)
        done += [threads.submit(saving.save, row(str(n)), feature(n), NOON) for n in range(1, 20)]
        # The same item twice more, in this order.
        for later in (1, 2):
            while len(saving._pages._waiting) < 18 + later:
                threading.Event().wait(0.001)
            at = NOON + timedelta(seconds=later)
            done.append(threads.submit(saving.save, row("5"), feature(100 + later), at))
        while len(saving._pages._waiting) < 21:
            threading.Event().wait(0.001)
        hold.set()
        for future in done:
            future.result(30)
    assert pages[0] == ["0"]
    assert sorted(pages[1]) == sorted(map(str, range(1, 20)))
    assert pages[2:] == [["5"], ["5"]]
    np.testing.assert_allclose(sqlite_shop.vector("5"), some_vector(102), rtol=3e-7)
    assert all(version == FEATURE_VERSION for version in sqlite_shop.versions().values())


def test_an_index_that_is_gone_is_made_again_at_the_next_request(
    sqlite_shop: SmallShop, new_saving: New
) -> None:
    saving = new_saving(create=True)
    saving.save(whole("a"), feature(1), NOON)
    sqlite_shop.client.indices.delete(index=sqlite_shop.index)
    with pytest.raises(ServiceUnavailableError):
        saving.save(whole("b"), feature(2), NOON)
    saving.save(whole("b"), feature(2), NOON)
    assert set(sqlite_shop.sources()) == {"b"}
    np.testing.assert_allclose(sqlite_shop.vector("b"), some_vector(2), rtol=3e-7)
