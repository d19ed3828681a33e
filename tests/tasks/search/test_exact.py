"""Searching by feature, approximate and exact, against NumPy's own idea of what is near."""

import re
import threading

import numpy as np
import pytest
from elasticsearch import helpers

from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.search.exact import exact_nearest
from tasks.search.index import SearchIndex
from tasks.search.mapping import COMPACT, COMPACT_VERSION, FEATURE, FIELDS, URL, VERSION
from tasks.search.queries import Item, Scope
from tests.shop_fixtures import search_connection, some_vector
from tests.tasks.search.documents import HALF_WORDS

ALL, COATS = Scope("v1"), Scope("v1", ("00000020",))


@pytest.fixture
def stocked(elasticsearch_url, search_client, index):
    """Forty items of two categories with features of v1, the odd ones of v2; their features by id."""
    return stock(elasticsearch_url, search_client, index, {f"{n:02}": f"v{n % 2 + 1}" for n in range(40)})


def stock(url, client, index, versions):
    features = {item_id: some_vector(int(item_id)) for item_id in versions}
    documents = (
        {
            "_index": index,
            "_id": item_id,
            "item_id": item_id,
            "item_name": f"item {item_id}",
            "category_id": category_of(item_id),
            "img_url": f"https://pictures.example/{item_id}.jpg",
        }
        for item_id in versions
    )
    helpers.bulk(client, documents, refresh=True)  # mapped dynamically
    SearchIndex(search_connection(url), index).prepare()
    updates = (
        {
            "_op_type": "update",
            "_index": index,
            "_id": i,
            "doc": {FEATURE: helpers.pack_dense_vector(features[i]), VERSION: v},
        }
        for i, v in versions.items()
    )
    helpers.bulk(client, updates, refresh=True)
    return features


def category_of(item_id):
    return "00000010" if item_id < "20" else "00000020"


def nearest_in_numpy(features, feature, chosen, count):
    """Ids and cosines, by the definition."""
    cosine = {
        i: float(np.dot(features[i], feature) / np.linalg.norm(features[i]) / np.linalg.norm(feature))
        for i in chosen
    }
    ids = sorted(cosine, key=cosine.get, reverse=True)[:count]
    return ids, [cosine[i] for i in ids]


@pytest.mark.parametrize("how", ["approximate", "exact"])
@pytest.mark.parametrize("category", ["", "00000020"])
def test_the_nearest_of_the_version_and_category_are_found(queries, stocked, how, category):
    feature = some_vector(1_000)
    chosen = [i for i in stocked if int(i) % 2 == 0 and category in ("", category_of(i))]
    ids, cosines = nearest_in_numpy(stocked, feature, chosen, 7)
    scope = Scope("v1", (category,) if category else ())
    if how == "exact":
        found = exact_nearest(queries, feature, scope, 7)
        assert found.compared == len(chosen)
        found = found.neighbours
    else:
        found = queries.nearest(feature, scope, 7)
    assert [neighbour.item.item_id for neighbour in found] == ids
    assert [neighbour.cosine for neighbour in found] == pytest.approx(cosines, abs=1e-5)
    assert {neighbour.item.version for neighbour in found} == {"v1"}
    assert found[0].item == Item(
        ids[0], f"item {ids[0]}", category_of(ids[0]), f"https://pictures.example/{ids[0]}.jpg", "v1"
    )


def test_an_item_is_not_its_own_neighbour(queries, stocked):
    scope = Scope("v1", without="08")
    assert queries.count(ALL) == 20
    assert queries.count(scope) == 19
    found = queries.nearest(stocked["08"], scope, 20)
    assert "08" not in {neighbour.item.item_id for neighbour in found}
    assert len(found) == 19
    exact = exact_nearest(queries, stocked["08"], scope, 20)
    assert exact.compared == 19
    assert {neighbour.item.item_id for neighbour in exact.neighbours} == {
        f"{n:02}" for n in range(0, 40, 2) if n != 8
    }


def test_compact_vectors_of_another_space_are_never_compared(queries, search_client, stocked):
    """Nor those of documents whose feature is of another version, or gone."""
    of_v1 = sorted(stocked)[::2]
    vectors = {item_id: some_vector(200 + n)[:128] - 0.5 for n, item_id in enumerate(of_v1)}
    spaces = {item_id: f"space-{n % 2}" for n, item_id in enumerate(of_v1)}
    for item_id, vector in vectors.items():
        doc = {COMPACT: vector.tolist(), COMPACT_VERSION: spaces[item_id]}
        search_client.update(index=queries.name, id=item_id, doc=doc)
    lost, other = of_v1[:2]
    search_client.update(index=queries.name, id=lost, doc={FEATURE: None})
    search_client.update(index=queries.name, id=other, doc={VERSION: "v2"}, refresh=True)
    query = some_vector(7)[:128] - 0.5
    for space in ("space-0", "space-1"):
        scope = Scope("v1", space=space)
        cosines = {
            item_id: query @ vector / np.linalg.norm(query) / np.linalg.norm(vector)
            for item_id, vector in vectors.items()
            if spaces[item_id] == space and item_id not in (lost, other)
        }
        assert queries.count(scope) == len(cosines) == 9
        found = queries.nearest(query, scope, 20)
        assert [one.item.item_id for one in found] == sorted(cosines, key=cosines.get, reverse=True)
        assert [one.cosine for one in found] == pytest.approx(sorted(cosines.values())[::-1], abs=1e-5)
    assert queries.nearest(query, Scope("v1", space="space-2"), 20) == []


def test_features_come_page_by_page_and_whole(queries, stocked, monkeypatch):
    monkeypatch.setattr("tasks.search.queries.PAGE", 3)
    pages = list(queries.features(COATS))
    assert [len(ids) for ids, _ in pages] == [3, 3, 3, 1]
    found = {item_id: row for ids, rows in pages for item_id, row in zip(ids, rows, strict=True)}
    assert sorted(found) == [f"{n}" for n in range(20, 40, 2)]
    for item_id, feature in found.items():
        np.testing.assert_allclose(feature, stocked[item_id], rtol=1e-6)


def test_what_is_written_meanwhile_does_not_move_an_exact_search(
    queries, stocked, search_client, index, monkeypatch
):
    monkeypatch.setattr("tasks.search.queries.PAGE", 4)
    pages = queries.features(ALL)
    first, _ = next(pages)
    search_client.delete(index=index, id="38", refresh=True)
    seen = first + [item_id for ids, _ in pages for item_id in ids]
    assert sorted(seen) == sorted(i for i in stocked if int(i) % 2 == 0)


def test_points_in_time_are_closed(queries, stocked, search_client, monkeypatch):
    def open_contexts():
        # Of this index: others may be searched meanwhile.
        statistics = search_client.indices.stats(index=queries.name, metric="search")
        return statistics["_all"]["total"]["search"]["open_contexts"]

    monkeypatch.setattr("tasks.search.queries.PAGE", 4)
    exact_nearest(queries, stocked["00"], ALL, 3)
    assert open_contexts() == 0
    pages = queries.features(ALL)
    next(pages)
    assert open_contexts() == 1
    pages.close()
    assert open_contexts() == 0


def test_a_document_that_goes_while_it_is_found_is_left_out(queries, stocked, monkeypatch):
    feature = stocked["00"]
    first, second, third = nearest_in_numpy(stocked, feature, [i for i in stocked if int(i) % 2 == 0], 3)[0]
    items = queries.items
    monkeypatch.setattr(queries, "items", lambda ids: items([i for i in ids if i != second]))
    found = exact_nearest(queries, feature, ALL, 3).neighbours
    assert [neighbour.item.item_id for neighbour in found] == [first, third]


def test_one_exact_search_at_a_time(queries, stocked, monkeypatch):
    entered, leave = threading.Event(), threading.Event()
    pages = queries.features

    def slow(scope):
        entered.set()
        leave.wait(30)
        return pages(scope)

    monkeypatch.setattr(queries, "features", slow)
    found = []
    other = threading.Thread(target=lambda: found.append(exact_nearest(queries, stocked["00"], ALL, 3)))
    other.start()
    assert entered.wait(30)
    with pytest.raises(ServiceUnavailableError, match="under way"):
        exact_nearest(queries, stocked["00"], ALL, 3)
    leave.set()
    other.join()
    assert found[0].neighbours
    exact_nearest(queries, stocked["00"], ALL, 3)


@pytest.mark.parametrize("index_type", ["hnsw", "flat", "int8_flat", "bbq_hnsw"])
def test_a_field_that_the_shop_tuned_is_searched_too(
    queries, elasticsearch_url, search_client, index, index_type
):
    vector = FIELDS[FEATURE] | {"index_options": {"type": index_type}}
    search_client.indices.create(index=index, mappings={"properties": {FEATURE: vector}})
    features = stock(elasticsearch_url, search_client, index, {f"{n:02}": "v1" for n in range(30)})
    feature = features["07"] + 0.1 * some_vector(1_000)
    ids, cosines = nearest_in_numpy(features, feature, features, 5)
    nearest, *others = queries.nearest(feature, ALL, 5)
    assert nearest.item.item_id == ids[0] == "07"
    assert nearest.cosine == pytest.approx(cosines[0], abs=1e-5)
    assert len(others) == 4
    assert [n.item.item_id for n in exact_nearest(queries, feature, ALL, 5).neighbours] == ids


def test_approximate_finds_what_exact_finds_among_many(queries, elasticsearch_url, search_client, index):
    versions = {str(n): "v1" for n in range(600)}
    features = stock(elasticsearch_url, search_client, index, versions)
    recalls = []
    for seed in range(5_000, 5_010):
        ids, _ = nearest_in_numpy(features, some_vector(seed), features, 10)
        found = queries.nearest(some_vector(seed), ALL, 10)
        recalls.append(len({n.item.item_id for n in found} & set(ids)) / 10)
    assert np.mean(recalls) >= 0.95


# Finding items ----------------------------------------------------------------------------------


@HALF_WORDS
def test_items_are_found_by_id_or_by_the_words_of_their_name(queries, search_client, index):
    names = {"1": "blue shirt", "2": "Blue shorts", "3": "red shirt", "blue": "a coat", "4": None, "5": 7}
    for item_id, name in names.items():
        search_client.index(index=index, id=item_id, document={"item_id": item_id, "item_name": name})
    search_client.indices.refresh(index=index)

    def found(text):
        return [item.item_id for item in queries.find(text, 10)]

    assert found("3") == ["3"]
    assert sorted(found("shirt")) == ["1", "3"]
    assert sorted(found("blue sh")) == ["1", "2"]  # as one types
    assert found("shirt blue") == ["1"]
    assert found("blue")[0] == "blue"  # the id before the names
    assert sorted(found("BLUE")) == ["1", "2"]
    assert found("green shirt") == []
    assert len(queries.find("blue", 2)) == 2
    assert [item.item_name for item in queries.find("7", 10)] == ["7"]
    for text in ("*", '"', "(", "a AND", "\\", "🧥", "x" * 200, " ".join("ab" for _ in range(60))):
        assert found(text) == []


@HALF_WORDS
@pytest.mark.usefixtures("stocked")
def test_a_server_without_expensive_queries_finds_whole_words(queries, search, search_client, index):
    search_client.index(index=index, id="shirt", document={"item_name": "blue shirt"})
    search_client.update(index=index, id="00", doc={URL: "u"}, refresh=True)
    setting = "search.allow_expensive_queries"
    search_client.cluster.put_settings(persistent={setting: False})
    try:
        assert [item.item_id for item in queries.find("blue shirt", 10)] == ["shirt"]
        assert [item.item_id for item in queries.find("01", 10)] == ["01"]
        assert queries.find("blue sh", 10) == []
        # Nothing else is missing.
        assert queries.coverage("v1").current == 20
        assert queries.category("00000010", "v1").current == 10
        assert queries.categories("v1") == {"00000010": 10, "00000020": 10}
        assert queries.item("01") is not None
        assert len(queries.nearest(some_vector(1), COATS, 3)) == 3
        assert queries.count(COATS) == 10
        assert exact_nearest(queries, some_vector(1), ALL, 3).compared == 20
        assert search.check()
        search.refuse_unknown_urls()
        assert set(search.versions()) == {"v1", "v2"}
        assert search.current({"00": "u"}, "v1") == search.holding(["00"], "v1") == {"00"}
    finally:
        search_client.cluster.put_settings(persistent={setting: None})
    assert [item.item_id for item in queries.find("blue sh", 10)] == ["shirt"]


def test_an_item_comes_with_its_feature_whatever_its_version(queries, stocked, search_client, index):
    search_client.index(index=index, id="bare", document={"item_id": "bare"}, refresh=True)
    item, feature = queries.item("01")
    assert item.version == "v2"
    np.testing.assert_allclose(feature, stocked["01"], rtol=1e-6)
    item, feature = queries.item("bare")
    assert item == Item("bare", None, None, None, None)
    assert feature is None
    assert queries.item("none") is None


@pytest.mark.usefixtures("stocked")
def test_categories_count_what_can_be_searched(queries):
    assert queries.categories("v1") == {"00000010": 10, "00000020": 10}
    assert queries.categories("v3") == {}
    assert [queries.count(scope) for scope in (ALL, COATS, Scope("v3"), Scope("v1", ("x",)))] == [
        20,
        10,
        0,
        0,
    ]


def test_an_index_that_is_not_there_is_named(queries, index):
    for work in (
        lambda: queries.categories("v1"),
        lambda: queries.nearest(some_vector(1), COATS, 3),
        lambda: exact_nearest(queries, some_vector(1), COATS, 3),
        lambda: queries.find("x", 3),
        lambda: queries.item("x"),
    ):
        with pytest.raises(ConfigurationError, match=re.escape(index)):
            work()
