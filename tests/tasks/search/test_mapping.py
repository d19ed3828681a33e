"""Tests of tasks/search/mapping.py against a real Elasticsearch: what an index must be, and what we add."""

import pytest

from tasks.errors import ConfigurationError
from tasks.search.index import SearchIndex
from tasks.search.mapping import AT, COMPACT, COMPACT_VERSION, FEATURE, GROUP, IMAGE, URL, VERSION
from tests.shop_fixtures import search_connection
from tests.tasks.search.documents import put, with_feature

VECTOR = {
    "type": "dense_vector",
    "dims": 2048,
    "similarity": "cosine",
    "index_options": {"type": "int8_hnsw"},
}


def properties(client, index):
    (described,) = client.indices.get_mapping(index=index).values()
    return described["mappings"].get("properties", {})


# The mapping ------------------------------------------------------------------------------------


def test_an_index_that_is_not_there_is_created_whole(search, search_client, index):
    assert search.check() is False
    assert not search_client.indices.exists(index=index)  # checking touches nothing

    assert search.prepare() == index

    held = properties(search_client, index)
    for name, dims in {"imagenet_feature": 2048, "imagenet_feature_compact": 128}.items():
        vector = held.pop(name)
        assert vector.pop("index_options")["type"] == "int8_hnsw"
        assert vector == {"type": "dense_vector", "dims": dims, "index": True, "similarity": "cosine"}
    assert held == {
        "imagenet_feature_version": {"type": "keyword"},
        "imagenet_feature_img_url": {"type": "keyword", "ignore_above": 8191},
        "imagenet_feature_image": {"type": "keyword"},
        "imagenet_feature_at": {"type": "date"},
        "imagenet_feature_compact_version": {"type": "keyword"},
        "imagenet_feature_group": {"type": "keyword"},
        "item_id": {"type": "keyword"},
        "item_name": {"type": "text"},
        "category_id": {"type": "keyword"},
        "img_url": {"type": "keyword", "ignore_above": 8191},
    }
    assert search.check() is True
    before = properties(search_client, index)
    search.prepare()
    assert properties(search_client, index) == before


def test_fields_are_added_to_an_index_that_was_mapped_dynamically(search, search_client, index):
    document = {"item_id": "007", "img_url": "https://a/1.jpg", "price": 12.5, "tags": {"a": [1, 2]}}
    put(search_client, index, "007", **document)
    before = properties(search_client, index)
    assert before["img_url"]["fields"]["keyword"]["ignore_above"] == 256

    assert search.check() is True
    assert properties(search_client, index) == before
    search.prepare()

    after = properties(search_client, index)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        FEATURE,
        VERSION,
        URL,
        IMAGE,
        AT,
        COMPACT,
        COMPACT_VERSION,
        GROUP,
    }
    assert after[FEATURE]["index_options"]["type"] == "int8_hnsw"
    assert search_client.get(index=index, id="007")["_source"] == document


def test_an_index_of_an_earlier_release_gets_the_fields_that_came_since(search, search_client, index):
    keyword = {"type": "keyword"}
    earlier = {FEATURE: VECTOR, VERSION: keyword, URL: keyword, IMAGE: keyword, AT: {"type": "date"}}
    search_client.indices.create(index=index, mappings={"properties": earlier})
    put(search_client, index, "a", **with_feature("u"))
    search.check()
    search.prepare()
    held = properties(search_client, index)
    assert held[COMPACT]["dims"] == 128
    assert held[COMPACT_VERSION] == keyword
    assert search.holding(["a"], "v1") == {"a"}


def test_a_field_that_is_there_stays_as_the_shop_tuned_it(search, search_client, index):
    tuned = VECTOR | {"index_options": {"type": "int8_hnsw", "m": 32, "ef_construction": 200}}
    search_client.indices.create(
        index=index, mappings={"properties": {FEATURE: tuned, URL: {"type": "keyword", "ignore_above": 300}}}
    )
    search.check()
    search.prepare()
    held = properties(search_client, index)
    assert held[FEATURE]["index_options"]["m"] == 32
    assert held[URL]["ignore_above"] == 300
    assert held[VERSION] == {"type": "keyword"}


@pytest.mark.parametrize(
    ("field", "mapping"),
    [
        (FEATURE, VECTOR | {"dims": 1024}),
        (FEATURE, VECTOR | {"similarity": "l2_norm"}),
        (FEATURE, VECTOR | {"similarity": "dot_product"}),
        (FEATURE, {"type": "dense_vector", "dims": 2048, "index": False}),
        (FEATURE, {"type": "float"}),
        (FEATURE, {"properties": {"values": {"type": "float"}}}),
        (VERSION, {"type": "text"}),
        (URL, {"type": "text", "fields": {"keyword": {"type": "keyword"}}}),
        (IMAGE, {"type": "binary"}),
        (AT, {"type": "keyword"}),
        (COMPACT, VECTOR),
        (COMPACT, VECTOR | {"dims": 128, "similarity": "dot_product"}),
        (COMPACT, {"type": "dense_vector", "dims": 128, "index": False}),
        (COMPACT, {"type": "float"}),
        (COMPACT_VERSION, {"type": "text"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values()))[:40],
)
def test_an_incompatible_field_is_refused_untouched(search, search_client, index, field, mapping):
    search_client.indices.create(index=index, mappings={"properties": {field: mapping}})
    before = properties(search_client, index)
    with pytest.raises(ConfigurationError, match=f"field {field} of {index}"):
        search.check()
    with pytest.raises(ConfigurationError, match=f"field {field} of {index}"):
        search.prepare()
    assert properties(search_client, index) == before


@pytest.mark.parametrize(
    "source",
    [
        {"excludes": ["imagenet_feature"]},
        {"excludes": ["imagenet_*"]},
        {"excludes": ["*feature"]},
        {"excludes": ["item_name"]},
        {"includes": ["item_*", "img_url"]},
        {"includes": ["imagenet_feature*"]},
        {"enabled": False},
    ],
    ids=str,
)
def test_a_source_that_partial_updates_would_wipe_is_refused(search, search_client, index, source):
    search_client.indices.create(index=index, mappings={"_source": source})
    with pytest.raises(ConfigurationError, match=f"{index} .*_source"):
        search.check()
    assert properties(search_client, index) == {}


def test_a_source_disabled_by_a_setting_is_refused(search, search_client, index):
    search_client.indices.create(index=index, settings={"index.mapping.source.mode": "disabled"})
    with pytest.raises(ConfigurationError, match="keeps no _source"):
        search.check()


def test_why_a_source_without_some_field_is_refused(search_client, index):
    """Elasticsearch rebuilds a document from its _source at any partial update."""
    search_client.indices.create(index=index, mappings={"_source": {"excludes": ["item_name"]}})
    put(search_client, index, "1", item_name="shirt")
    assert search_client.count(index=index, q="item_name:shirt")["count"] == 1
    search_client.update(index=index, id="1", doc={VERSION: "v1"}, refresh=True)
    assert search_client.count(index=index, q="item_name:shirt")["count"] == 0


def test_someone_else_creates_the_index_at_the_same_moment(search, search_client, index, monkeypatch):
    create = search.client.indices.create

    def late(**arguments):
        put(search_client, index, "007", item_id="007", img_url="https://a")
        return create(**arguments)

    monkeypatch.setattr(search.client.indices, "create", late)
    search.prepare()
    held = properties(search_client, index)
    assert held[FEATURE]["dims"] == 2048
    assert held["img_url"]["type"] == "text"  # theirs


# Names ------------------------------------------------------------------------------------------


def test_an_alias_of_one_index_does(elasticsearch_url, search_client, index):
    put(search_client, f"{index}-7", "a", img_url="u")
    search_client.indices.put_alias(index=f"{index}-7", name=f"{index}-alias")
    search = SearchIndex(search_connection(elasticsearch_url), f"{index}-alias")

    assert search.check()
    assert search.prepare() == f"{index}-7"
    assert search.documents(["a"])["a"].index == f"{index}-7"
    (answer,) = search.write([{"_op_type": "update", "_id": "a", "doc": with_feature("u")}])
    assert answer[:3] == ("a", 200, "")
    assert search.holding(["a"], "v1") == {"a"}
    assert search.current({"a": "u"}, "v1") == {"a"}
    assert search.versions() == {"v1": 1}
    assert FEATURE in properties(search_client, f"{index}-7")


@pytest.mark.parametrize(
    ("alias", "named"),
    [
        ({"filter": {"term": {"img_url": "u"}}}, "filter"),
        ({"index_routing": "7"}, "index_routing"),
        ({"search_routing": "7,8"}, "search_routing"),
        ({"routing": "7"}, "index_routing and search_routing"),
    ],
    ids=str,
)
def test_an_alias_for_some_documents_alone_is_refused(elasticsearch_url, search_client, index, alias, named):
    put(search_client, f"{index}-7", "a", img_url="u")
    search_client.indices.put_alias(index=f"{index}-7", name=f"{index}-alias", **alias)
    search = SearchIndex(search_connection(elasticsearch_url), f"{index}-alias")
    for refused in (search.check, search.prepare):
        with pytest.raises(ConfigurationError, match=f"an alias of {index}-7 with {named}: .* index itself"):
            refused()
    # Beside it, the index and another of its aliases do.
    search_client.indices.put_alias(index=f"{index}-7", name=f"{index}-all", is_write_index=False)
    for name in (f"{index}-7", f"{index}-all"):
        assert SearchIndex(search_connection(elasticsearch_url), name).check()


def test_a_mapping_that_requires_a_routing_is_refused(search, search_client, index):
    search_client.indices.create(index=index, mappings={"_routing": {"required": True}})
    for refused in (search.check, search.prepare):
        with pytest.raises(ConfigurationError, match=f'{index} requires a routing .*"routing": "discard"'):
            refused()


@pytest.mark.parametrize("shards", [1, 5])
def test_documents_with_a_routing_are_refused(search, search_client, index, shards):
    search_client.indices.create(index=index, settings={"number_of_shards": shards})
    put(search_client, index, "plain", img_url="u")
    assert search.check()
    for item_id in ("a", "b"):
        search_client.index(index=index, id=item_id, routing="x", document={"img_url": "u"}, refresh=True)
    with pytest.raises(ConfigurationError, match=f'2 documents of {index} carry a routing.*"discard"'):
        search.check()


def test_why_documents_with_a_routing_are_refused(search_client, index):
    """They are on the shard of their routing, and looked for on that of their id."""
    search_client.indices.create(index=index, settings={"number_of_shards": 2})
    ids = [str(number) for number in range(10)]
    for item_id in ids:
        search_client.index(index=index, id=item_id, routing="x", document={})
    found = [search_client.exists(index=index, id=item_id).body for item_id in ids]
    assert set(found) == {True, False}


@pytest.mark.parametrize("name", ["alias", "*", "a,b"])
def test_a_name_for_several_indices_is_refused(elasticsearch_url, search_client, index, name):
    for letter in "ab":
        put(search_client, f"{index}-{letter}", "1", img_url="u")
        search_client.indices.put_alias(index=f"{index}-{letter}", name=f"{index}-alias")
    name = f"{index}-a,{index}-b" if name == "a,b" else f"{index}-{name}"
    with pytest.raises(ConfigurationError, match="the name of one index, or an alias of one") as refused:
        SearchIndex(search_connection(elasticsearch_url), name).check()
    assert f"{index}-a, {index}-b" in str(refused.value)


def test_a_name_that_elasticsearch_refuses(elasticsearch_url):
    with pytest.raises(ConfigurationError, match="Img_List"):
        SearchIndex(search_connection(elasticsearch_url), "Img_List").prepare()
