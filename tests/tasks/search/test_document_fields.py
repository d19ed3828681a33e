"""Tests of tasks/search/document_fields.py, against a real Elasticsearch where it is the judge."""

import pytest

from tasks.errors import ConfigurationError
from tasks.search.document_fields import USUAL_FIELDS, DocumentFields, values
from tasks.search.index import SearchIndex
from tasks.search.queries import ItemQueries
from tasks.settings import Settings
from tests.shop_fixtures import search_connection
from tests.tasks.search.documents import HALF_WORDS, put, with_feature

SHAPES = {
    "plain": {"image.src": "u"},
    "an object": {"image": {"src": "u", "alt": "a shirt"}},
    "a key with a dot": {"image.src": "u", "image": {"alt": "a shirt"}},
    "dots at another place": {"a.image": 1, "image": {"src": "u"}},
    "a list of one": {"image": {"src": ["u"]}},
    "a list of objects": {"image": [{"alt": "no picture"}, {"src": "u"}]},
    "lists in lists": {"image": [[{"src": [["u"], None]}]]},
}


@pytest.mark.parametrize("source", SHAPES.values(), ids=SHAPES)
def test_what_a_document_holds_is_what_elasticsearch_finds_in_it(search_client, index, source):
    put(search_client, index, "1", **source)
    hit = search_client.search(index=index, fields=["image.src"], source=["image.src"])["hits"]["hits"][0]
    assert hit["fields"]["image.src"] == ["u"]
    for held in (source, hit["_source"]):
        assert values(held, "image.src") == ["u"]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ({}, []),
        ({"image": None}, []),
        ({"image": "u"}, []),
        ({"image": {"src": {"large": "u"}}}, []),
        ({"image": {"src": []}}, []),
        ({"image": {"srcset": "u"}, "images": {"src": "u"}, "src": "u"}, []),
        ({"image": [{"src": "1"}, {"src": ["2", "3"]}], "image.src": "4"}, ["1", "2", "3", "4"]),
        ({"image": {"src": 7}}, [7]),
    ],
)
def test_what_stands_elsewhere_is_not_at_the_path(source, found):
    assert values(source, "image.src") == found


def test_a_document_may_be_as_deep_as_it_likes():
    source = "u"
    for _ in range(50_000):
        source = [source]
    assert values({"img_url": source}, "img_url") == ["u"]


def test_a_url_is_a_text():
    assert USUAL_FIELDS.urls({"img_url": [1, "u", None, {"a": "b"}, True]}) == ("u",)
    assert USUAL_FIELDS.urls({}) == ()
    assert DocumentFields(url=None).urls({"img_url": "u"}) is None


def test_a_row_becomes_a_document_with_these_fields():
    row = {"item_id": "7", "item_name": "shirt", "category_id": "00000010", "img_url": "u"}
    assert USUAL_FIELDS.document(row) == row
    fields = DocumentFields("image.main.src", "image.kind", None)
    document = {"item_id": "7", "image": {"main": {"src": "u"}, "kind": "00000010"}}
    assert fields.document(row) == document
    assert (values(document, "image.main.src"), values(document, "image.kind")) == (["u"], ["00000010"])
    assert DocumentFields(None, None, None).document(row) == {"item_id": "7"}


def test_an_index_of_our_own_is_mapped_for_such_documents(elasticsearch_url, search_client, index):
    fields = DocumentFields("image.src", "image.category", "name")
    SearchIndex(search_connection(elasticsearch_url), index, fields).prepare()
    held = search_client.indices.get_mapping(index=index)[index]["mappings"]["properties"]
    assert held["image"] == {
        "properties": {"src": {"type": "keyword", "ignore_above": 8191}, "category": {"type": "keyword"}}
    }
    assert held["name"] == {"type": "text"}
    assert not held.keys() & {"img_url", "category_id", "item_name"}


def test_the_settings_name_the_fields():
    assert DocumentFields.of(Settings()) == USUAL_FIELDS
    changed = Settings(
        document_url_field="none", document_category_field="taxonomy.id", document_name_field="Item name"
    )
    assert DocumentFields.of(changed) == DocumentFields(None, "taxonomy.id", "Item name")


# In searches ------------------------------------------------------------------------------------


@pytest.fixture
def queries_of(elasticsearch_url, index):
    """What pages ask of an index whose documents have these fields."""

    def made(*fields):
        return ItemQueries(search_connection(elasticsearch_url), index, DocumentFields(*fields))

    return made


@HALF_WORDS
def test_pages_read_and_count_by_the_shop_s_own_fields(queries_of, search, search_client, index):
    queries = queries_of("image.src", "taxonomy.id", "title")
    documents = {
        "1": {"image": {"src": "u1"}, "taxonomy": {"id": "shoes/boots"}, "title": "red boots"},
        "2": {"image.src": ["u2"], "taxonomy.id": "shoes/boots", "title": ["blue boots", "Stiefel"]},
        "3": {"image": [{"src": "u0"}, {"src": "u3"}], "taxonomy": [{"id": "hats"}], "title": "red hat"},
        "4": {"title": "no picture"},
    }
    for item_id, document in documents.items():
        put(search_client, index, item_id, **document)
    search.prepare()
    for item_id in "13":
        search_client.update(index=index, id=item_id, doc=with_feature(f"u{item_id}", seed=int(item_id)))
    search_client.indices.refresh(index=index)

    covered = queries.coverage("v1")

    assert [(c.category_id, c.documents, c.current) for c in covered.categories] == [
        ("hats", 1, 1),
        ("shoes/boots", 2, 1),
    ]
    assert (covered.documents, covered.current, covered.elsewhere) == (4, 2, 1)
    assert queries.category("shoes/boots", "v1") == covered.categories[1]
    assert {item.item_id for item in queries.find("red bo", 10)} == {"1"}
    shown = {i.item_id: (i.item_name, i.category_id, i.img_url) for i in queries.items("1234").values()}
    assert shown == {
        "1": ("red boots", "shoes/boots", "u1"),
        "2": ("blue boots", "shoes/boots", "u2"),
        "3": ("red hat", "hats", "u3"),  # the picture that its feature is of
        "4": ("no picture", None, None),
    }


def test_documents_without_url_category_and_name(queries_of, search, search_client, index):
    put(search_client, index, "1", item_name="red boots", category_id="hats", img_url="another")
    search.prepare()
    search_client.update(index=index, id="1", doc=with_feature("u1"), refresh=True)
    queries = queries_of(None, None, None)
    covered = queries.coverage("v1")
    assert (covered.documents, covered.current, covered.categories, covered.elsewhere) == (1, 1, (), 1)
    assert queries.find("red", 10) == []
    (found,) = queries.find("1", 10)
    assert (found.item_name, found.category_id, found.img_url) == (None, None, "u1")
    assert queries.categories("v1") == {}
    assert queries.category("hats", "v1").documents == 0


def test_a_document_of_several_categories_counts_once_among_those_elsewhere(queries, search_client, index):
    put(search_client, index, "1", category_id=["a", "b", "c"])
    put(search_client, index, "2")
    covered = queries.coverage("v1")
    assert [category.documents for category in covered.categories] == [1, 1, 1]
    assert (covered.documents, covered.elsewhere) == (2, 1)


@pytest.mark.parametrize(
    "mapping",
    [
        {"type": "keyword"},
        {"type": "text", "fields": {"keyword": {"type": "keyword"}}},
        {"type": "text", "fields": {"words": {"type": "text"}, "raw": {"type": "keyword"}}},
        {"type": "long"},
    ],
    ids=["keyword", "dynamic", "raw", "number"],
)
def test_a_category_is_counted_however_it_is_mapped(queries, search_client, index, mapping):
    search_client.indices.create(index=index, mappings={"properties": {"category_id": mapping}})
    put(search_client, index, "1", category_id="30")
    assert [category.category_id for category in queries.coverage("v1").categories] == ["30"]
    assert queries.category("30", "v1").documents == 1


@pytest.mark.parametrize("seen", [False, True])
def test_a_category_in_nested_objects_is_counted_where_searches_see_it(
    queries_of, search_client, index, seen
):
    nested = {
        "type": "nested",
        "include_in_root": seen,
        "properties": {"id": {"type": "keyword"}},
    }
    search_client.indices.create(index=index, mappings={"properties": {"taxonomy": nested}})
    put(search_client, index, "1", taxonomy=[{"id": "hats"}])
    queries = queries_of("img_url", "taxonomy.id", "item_name")
    if seen:
        assert [category.category_id for category in queries.coverage("v1").categories] == ["hats"]
    else:
        with pytest.raises(ConfigurationError, match="FEATURES_DOCUMENT_CATEGORY_FIELD"):
            queries.coverage("v1")


def test_an_object_is_no_category(queries_of, search_client, index):
    put(search_client, index, "1", taxonomy={"id": 30})
    with pytest.raises(ConfigurationError, match="cannot be counted by taxonomy"):
        queries_of("img_url", "taxonomy", "item_name").coverage("v1")


# Where the URL is not where the settings say ------------------------------------------------------


@pytest.mark.parametrize(
    ("mappings", "source"),
    [
        ({}, {"image": {"src": "u"}}),
        ({}, {"img_url": {"src": "u"}}),
        ({"properties": {"img_url": {"type": "keyword"}}}, {"image": "u"}),
        (
            {"properties": {"img_url": {"type": "alias", "path": "image"}, "image": {"type": "keyword"}}},
            {"image": "u"},
        ),
        ({"properties": {"image": {"type": "keyword", "copy_to": "img_url"}}}, {"image": "u"}),
        ({"dynamic": False}, {"image": "u"}),
    ],
    ids=["elsewhere", "within", "mapped only", "alias", "copied", "unmapped"],
)
def test_documents_whose_url_is_elsewhere_are_refused(search, search_client, index, mappings, source):
    search_client.indices.create(index=index, mappings=mappings)
    search.refuse_unknown_urls()  # there are none yet
    put(search_client, index, "1", **source)
    with pytest.raises(ConfigurationError, match=r"in img_url.*Set FEATURES_DOCUMENT_URL_FIELD"):
        search.refuse_unknown_urls()


@pytest.mark.parametrize(
    "mappings",
    [
        {},
        {"dynamic": False},
        {"properties": {"img_url": {"type": "keyword", "ignore_above": 2}}},
        {"properties": {"img_url": {"type": "keyword", "index": False, "doc_values": False}}},
        {"properties": {"img_url": {"type": "object", "enabled": False}}},
    ],
    ids=["dynamic", "unmapped", "cut", "not indexed", "disabled"],
)
def test_a_url_is_seen_however_it_is_mapped(search, search_client, index, mappings):
    search_client.indices.create(index=index, mappings=mappings)
    put(search_client, index, "1", item_name="no URL yet")
    put(search_client, index, "2", img_url="https://a/1.jpg")
    search.refuse_unknown_urls()
