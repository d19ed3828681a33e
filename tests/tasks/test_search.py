"""Tests of tasks/search.py against a real Elasticsearch; a stub stands in only for servers that we
cannot have: one that wants a log-in, and one that is too old."""

import json
import time
from datetime import UTC, datetime

import numpy as np
import pytest
import requests
from elasticsearch.serializer import JsonSerializer

from local_stack.process import free_port
from tasks import search as search_module
from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.search import AT, FEATURE, IMAGE, URL, VERSION, SearchIndex
from tests.scripted_server import Reply
from tests.shop_fixtures import search_connection, some_vector

VECTOR = {
    "type": "dense_vector",
    "dims": 2048,
    "similarity": "cosine",
    "index_options": {"type": "int8_hnsw"},
}
NODES = "/_nodes?filter_path=nodes.*.version"


@pytest.fixture
def search(elasticsearch_url, index):
    return SearchIndex(search_connection(elasticsearch_url), index)


def properties(client, index):
    (described,) = client.indices.get_mapping(index=index).values()
    return described["mappings"].get("properties", {})


def put(client, index, item_id, /, **fields):
    client.index(index=index, id=item_id, document=fields, refresh=True)


def with_feature(url, version="v1", seed=1):
    return {FEATURE: some_vector(seed).tolist(), VERSION: version, URL: url}


# The mapping ------------------------------------------------------------------------------------


def test_an_index_that_is_not_there_is_created_whole(search, search_client, index):
    assert search.check() is False
    assert not search_client.indices.exists(index=index)  # checking touches nothing

    assert search.prepare() == index

    held = properties(search_client, index)
    vector = held.pop("imagenet_feature")
    assert vector.pop("index_options")["type"] == "int8_hnsw"
    assert vector == {"type": "dense_vector", "dims": 2048, "index": True, "similarity": "cosine"}
    assert held == {
        "imagenet_feature_version": {"type": "keyword"},
        "imagenet_feature_img_url": {"type": "keyword", "ignore_above": 8191},
        "imagenet_feature_image": {"type": "keyword"},
        "imagenet_feature_at": {"type": "date"},
        "item_id": {"type": "keyword"},
        "item_name": {"type": "text"},
        "category_id": {"type": "keyword"},
        "img_url": {"type": "keyword", "ignore_above": 8191},
    }
    assert search.check() is True
    search.prepare()
    assert len(properties(search_client, index)) == 9


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
    assert set(after) - set(before) == {FEATURE, VERSION, URL, IMAGE, AT}
    assert after[FEATURE]["index_options"]["type"] == "int8_hnsw"
    assert search_client.get(index=index, id="007")["_source"] == document


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
    create = search._client.indices.create

    def late(**arguments):
        put(search_client, index, "007", item_id="007", img_url="https://a")
        return create(**arguments)

    monkeypatch.setattr(search._client.indices, "create", late)
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
    assert answer == ("a", 200, "")
    assert search.holding(["a"], "v1") == {"a"}
    assert search.current({"a": "u"}, "v1") == {"a"}
    assert search.versions() == {"v1": 1}
    assert FEATURE in properties(search_client, f"{index}-7")


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


# Reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [10, 400, 8191, 9000])
def test_what_is_current_at_every_length_of_url(search, search_client, index, length):
    url = "https://a/".ljust(length, "x")
    search.prepare()
    put(search_client, index, "same", **with_feature(url))
    put(search_client, index, "another url", **with_feature(url[:-1] + "y"))
    put(search_client, index, "shorter url", **with_feature(url[:-1]))
    put(search_client, index, "another version", **with_feature(url, "v2"))
    put(search_client, index, "no vector", **{VERSION: "v1", URL: url})
    put(search_client, index, "no feature", img_url=url)
    items = [
        "same",
        "another url",
        "shorter url",
        "another version",
        "no vector",
        "no feature",
        "no document",
    ]
    assert search.current(dict.fromkeys(items, url), "v1") == {"same"}


def test_what_is_current_where_the_url_field_was_cut_shorter(search, search_client, index):
    search_client.indices.create(
        index=index, mappings={"properties": {URL: {"type": "keyword", "ignore_above": 20}}}
    )
    search.prepare()
    long = "https://a/" + "x" * 40
    put(search_client, index, "a", **with_feature(long))
    assert search.current({"a": long}, "v1") == {"a"}
    assert search.current({"a": long + "y"}, "v1") == set()


def test_what_is_current_among_odd_ids(search, search_client, index):
    search.prepare()
    odd = ["007", "a b", "ä/ö?#%", "셔츠", "x" * 512, '"\\']
    for item_id in odd:
        put(search_client, index, item_id, **with_feature("u"))
    asked = [*odd, "", "x" * 600, "7", "00"]
    assert search.current(dict.fromkeys(asked, "u"), "v1") == set(odd)
    assert search.current({"": "u"}, "v1") == set()


def test_an_item_whose_url_is_null_is_not_current(search, search_client, index):
    search.prepare()
    put(search_client, index, "a", **with_feature("https://a"))
    assert search.current({"a": None}, "v1") == set()


def test_versions_are_counted(search, search_client, index):
    search_client.indices.create(index=index)
    assert search.versions() == {}
    search.prepare()
    assert search.versions() == {}
    for number, version in enumerate(["v1", "v1", "v2"]):
        put(search_client, index, str(number), **with_feature("u", version))
    assert search.versions() == {"v1": 2, "v2": 1}


def test_holding_is_what_searches_find(search, search_client, index):
    search.prepare()
    search_client.index(index=index, id="a", document=with_feature("u"))  # not refreshed
    put(search_client, index, "b", **with_feature("u", "v2"))
    put(search_client, index, "c", **{VERSION: "v1"})
    assert search.holding(["a", "b", "c", "d"], "v1") == {"a"}


def test_documents_as_they_are_now(search, search_client, index):
    search.prepare()
    at = datetime(2026, 10, 1, 3, 4, 5, 678000, tzinfo=UTC)
    fields = with_feature("https://f") | {IMAGE: "abc", AT: at.isoformat(), "img_url": "https://i"}
    search_client.index(index=index, id="a", document=fields)
    written = search_client.index(index=index, id="a", document=fields)  # not refreshed
    search_client.index(index=index, id="bare", document={"item_name": "shirt"})

    found = search.documents(["a", "bare", "none"])

    assert set(found) == {"a", "bare"}
    document = found["a"]
    assert (document.img_url, document.version, document.feature_url) == ("https://i", "v1", "https://f")
    assert (document.image, document.at) == ("abc", at)
    assert (document.seq_no, document.primary_term) == (written["_seq_no"], written["_primary_term"])
    bare = found["bare"]
    assert (bare.img_url, bare.version, bare.feature_url, bare.image, bare.at) == (None,) * 5
    assert search.documents([]) == {}


def test_half_a_surrogate_pair_in_a_document_is_read(search, elasticsearch_url, index):
    """Elasticsearch takes it from whoever writes documents, and gives it back."""
    search.prepare()
    written = requests.put(
        f"{elasticsearch_url}/{index}/_doc/a?refresh=true",
        data=rb'{"img_url": "https://\ud83d.example"}',
        headers={"Content-Type": "application/json"},
        timeout=60,
    )
    written.raise_for_status()
    assert search.documents(["a"])["a"].img_url == "https://\ud83d.example"


@pytest.mark.parametrize(
    "value",
    [
        "half a pair: \ud83d",
        '셔츠 \u2028 \x00 \x7f "quoted" \\ 👗',
        2**70,
        {7: [None, True, 0.1]},
        np.float32(0.1),
        datetime(2026, 10, 1, 3, 4, 5, 678000, tzinfo=UTC),
    ],
    ids=repr,
)
def test_requests_are_what_the_client_makes_of_them_without_orjson(value):
    client = search_module.client(search_connection("http://localhost:9200"))
    for mimetype in ("application/json", "application/vnd.elasticsearch+json"):
        serializer = client.transport.serializers.get_serializer(mimetype)  # as bulk's helper asks for it
        assert type(serializer) is not JsonSerializer
        assert serializer.dumps({"a": value}) == JsonSerializer().dumps({"a": value})


def test_half_an_index_is_no_answer(search, search_client, index):
    """One of two shards is allocated: what only it knows must not count as all there is."""
    search_client.indices.create(
        index=index,
        settings={
            "number_of_shards": 2,
            "number_of_replicas": 0,
            "index.routing.allocation.total_shards_per_node": 1,
        },
        wait_for_active_shards="0",
    )
    ids = [str(number) for number in range(20)]
    until = time.monotonic() + 10
    while not (allocated := search_client.search(index=index)["_shards"]["successful"]):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert allocated == 1
    for ask in (
        lambda: search.current(dict.fromkeys(ids, "u"), "v1"),
        search.versions,
        lambda: search.documents(ids),
    ):
        with pytest.raises(ServiceUnavailableError):
            ask()


def test_a_closed_index_is_a_person_s_affair(search, search_client, index):
    search.prepare()
    search_client.indices.close(index=index)
    for ask in (search.versions, lambda: search.documents(["a"])):
        with pytest.raises(ConfigurationError, match="closed"):
            ask()


# Writing ----------------------------------------------------------------------------------------


def test_each_answer_of_a_bulk_is_passed_on(search, search_client, index):
    search.prepare()
    put(search_client, index, "there", img_url="u")
    put(search_client, index, "moved", img_url="u")
    seen = search.documents(["moved"])["moved"]
    put(search_client, index, "moved", img_url="v")
    answers = search.write(
        [
            {"_op_type": "update", "_id": "there", "doc": with_feature("u")},
            {"_op_type": "update", "_id": "missing", "doc": with_feature("u")},
            {"_op_type": "update", "_id": "there", "doc": {FEATURE: [1.0, 2.0]}},
            {
                "_op_type": "update",
                "_id": "moved",
                "if_seq_no": seen.seq_no,
                "if_primary_term": seen.primary_term,
                "doc": with_feature("u"),
            },
            {"_op_type": "create", "_id": "there", "_source": {}},
        ]
    )
    codes, reasons = zip(*((code, reason) for _, code, reason in answers), strict=True)
    assert codes == (200, 404, 400, 409, 409)
    assert reasons[0] == ""
    assert all(reasons[1:])


@pytest.fixture
def no_sleep(monkeypatch):
    """Bulk retries without their pauses, which are noted."""
    pauses = []
    monkeypatch.setattr("elasticsearch.helpers.actions.time.sleep", pauses.append)
    return pauses


def test_a_blocked_index_is_a_person_s_affair(search, search_client, index):
    search.prepare()
    put(search_client, index, "a", img_url="u")
    search_client.indices.put_settings(index=index, settings={"index.blocks.write": True})
    with pytest.raises(ConfigurationError, match=rf"refuses to write to {index} \(403: .*block"):
        list(search.write([{"_op_type": "update", "_id": "a", "doc": with_feature("u")}]))


def test_a_full_disk_may_have_room_later(search, search_client, index, no_sleep):
    """Elasticsearch sets this block itself at the flood stage, and lifts it when there is room."""
    search.prepare()
    put(search_client, index, "a", img_url="u")
    block = "index.blocks.read_only_allow_delete"
    search_client.indices.put_settings(index=index, settings={block: True})
    try:
        with pytest.raises(ServiceUnavailableError, match=r"429: .*block"):
            list(search.write([{"_op_type": "update", "_id": "a", "doc": with_feature("u")}]))
    finally:
        search_client.indices.put_settings(index=index, settings={block: None})
    assert no_sleep == sorted(no_sleep)
    assert len(no_sleep) >= 3
    (answer,) = search.write([{"_op_type": "update", "_id": "a", "doc": with_feature("u")}])
    assert answer[1] == 200


# Servers that do not serve ----------------------------------------------------------------------


def test_a_server_that_is_down_is_named():
    port = free_port()
    connection = search_connection(f"http://127.0.0.1:{port}", login="elastic", password="hunter2")
    with pytest.raises(ServiceUnavailableError, match=f"http://127.0.0.1:{port} does not answer") as failed:
        SearchIndex(connection, "img_list").check()
    assert "hunter2" not in str(failed.value)


def stub(image_server, status, body):
    headers = {"X-Elastic-Product": "Elasticsearch", "Content-Type": "application/json"}
    image_server.answer(NODES, Reply(status, json.dumps(body).encode(), headers))
    image_server.answer("/", Reply(status, json.dumps(body).encode(), headers))
    connection = search_connection(f"http://{image_server.host}", login="elastic", password="hunter2")
    return SearchIndex(connection, "img_list")


@pytest.mark.parametrize("status", [401, 403])
def test_a_log_in_that_is_refused(image_server, status):
    error = {"error": {"type": "security_exception", "reason": "no such user or no right"}, "status": status}
    with pytest.raises(ConfigurationError, match=f"{status}: no such user or no right") as refused:
        stub(image_server, status, error).check()
    assert "shop_search" in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("versions", "oldest"),
    [(["9.2.4"], "9.2.4"), (["8.19.0"], "8.19.0"), (["10.0.0", "9.10.1", "9.2.0-SNAPSHOT"], "9.2.0")],
)
def test_a_server_that_is_too_old(image_server, versions, oldest):
    nodes = {"nodes": {str(number): {"version": version} for number, version in enumerate(versions)}}
    with pytest.raises(ConfigurationError, match=f"is {oldest}") as refused:
        stub(image_server, 200, nodes).check()
    assert "9.3 or newer" in str(refused.value)


@pytest.mark.parametrize("version", ["9.3.0", "9.10.0", "10.0.1"])
def test_a_server_that_is_new_enough_is_asked_on(image_server, version):
    search = stub(image_server, 200, {"nodes": {"a": {"version": version}}})
    with pytest.raises((ConfigurationError, ServiceUnavailableError)) as refused:
        search.check()  # the stub knows no HEAD
    assert "or newer" not in str(refused.value)


def test_a_server_that_is_overloaded(image_server):
    error = {"error": {"type": "circuit_breaking_exception", "reason": "too much at once"}, "status": 429}
    with pytest.raises(ServiceUnavailableError, match="429: too much at once"):
        stub(image_server, 429, error).check()


def test_something_else_behind_the_url(image_server):
    image_server.answer(NODES, Reply(200, b"<html>hello</html>", {"Content-Type": "text/html"}))
    search = SearchIndex(search_connection(f"http://{image_server.host}"), "img_list")
    with pytest.raises((ConfigurationError, ServiceUnavailableError), match=image_server.host):
        search.check()


# Coverage ---------------------------------------------------------------------------------------

SHOP = {
    "1": ("00000010", "v1"),
    "2": ("00000010", None),
    "3": ("00000020", "v1"),
    "4": ("00000020", "v2"),
    "5": ("00000030", None),
    "6": (None, "v1"),
}


@pytest.mark.parametrize("mapped", ["dynamically", "by_us"])
def test_coverage_counts_documents_by_category(search, search_client, index, mapped):
    if mapped == "by_us":
        search.prepare()
    else:
        put(search_client, index, "1", category_id="00000010")
        search.prepare()  # adds our fields; category_id stays text
        assert properties(search_client, index)["category_id"]["type"] == "text"
    for number, (item_id, (category, version)) in enumerate(SHOP.items(), 1):
        fields = {"category_id": category} if category else {}
        put(
            search_client, index, item_id, **fields, **(with_feature("u", version, number) if version else {})
        )

    counted = search.coverage("v1")

    assert (counted.documents, counted.current, counted.elsewhere) == (6, 3, 1)
    assert [(c.category_id, c.documents, c.current) for c in counted.categories] == [
        ("00000010", 2, 1),
        ("00000020", 2, 1),
        ("00000030", 1, 0),
    ]
    assert counted.versions == {"v1": 3, "v2": 1}
    assert [search.category(c.category_id, "v1") for c in counted.categories] == list(counted.categories)
    assert search.category("x", "v1").documents == 0


def test_coverage_of_an_index_without_our_fields_is_nothing(search, search_client, index):
    put(search_client, index, "1", category_id="00000010")
    counted = search.coverage("v1")
    assert (counted.documents, counted.current, counted.versions) == (1, 0, {})


def test_coverage_says_what_is_missing(search, search_client, index):
    with pytest.raises(ConfigurationError, match=f"no index {index} .* set FEATURES_INDEX"):
        search.coverage("v1")
    search_client.indices.create(index=index, mappings={"properties": {"category_id": {"type": "text"}}})
    with pytest.raises(ConfigurationError, match="cannot be counted by category_id"):
        search.coverage("v1")


def test_coverage_takes_two_requests(search, search_client, index, monkeypatch):
    put(search_client, index, "1", category_id="00000010")
    asked = []
    transport = search._client.transport
    perform = transport.perform_request

    def counting(method, target, *args, **kwargs):
        asked.append(target.partition("?")[0])
        return perform(method, target, *args, **kwargs)

    monkeypatch.setattr(transport, "perform_request", counting)
    search.coverage("v1")
    assert asked == [f"/{index}/_field_caps", f"/{index}/_search"]
