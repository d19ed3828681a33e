"""Tests of tasks/search/index.py against a real Elasticsearch: what the stages read and write."""

import time
from datetime import UTC, datetime

import numpy as np
import pytest
import requests

from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.search.mapping import AT, FEATURE, IMAGE, URL, VERSION
from tests.shop_fixtures import some_vector
from tests.tasks.search.documents import put, with_feature

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
    assert (document.urls, document.version, document.feature_url) == (("https://i",), "v1", "https://f")
    assert (document.image, document.at) == ("abc", at)
    assert (document.seq_no, document.primary_term) == (written["_seq_no"], written["_primary_term"])
    bare = found["bare"]
    assert (bare.urls, bare.version, bare.feature_url, bare.image, bare.at) == ((), *(None,) * 4)
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
    assert search.documents(["a"])["a"].urls == ("https://\ud83d.example",)


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
    codes, reasons = zip(*((answer.status, answer.reason) for answer in answers), strict=True)
    assert codes == (200, 404, 400, 409, 409)
    assert reasons[0] == ""
    assert all(reasons[1:])


def test_a_write_tells_what_makes_the_document_known_again(search, search_client, index):
    search.prepare()
    put(search_client, index, "there", img_url="u")
    actions = [
        {"_op_type": "update", "_id": "there", "doc": with_feature("u")},
        {"_op_type": "create", "_id": "new", "_source": with_feature("u", seed=2)},
        {"_op_type": "update", "_id": "missing", "doc": with_feature("u")},
    ]
    seq_nos = {answer.item_id: answer.seq_no for answer in search.write(actions)}
    assert seq_nos.pop("missing") is None
    assert {
        item_id: document.seq_no for item_id, document in search.documents(list(seq_nos)).items()
    } == seq_nos
    search_client.indices.refresh(index=index)
    found = search.with_vectors(["there", "new", "missing"])
    assert {item_id: document.seq_no for item_id, (document, *_) in found.items()} == seq_nos
    np.testing.assert_allclose(found["new"][1], some_vector(2), rtol=1e-6)


def test_pipelines_are_named(search, search_client, index):
    search.prepare()
    assert search.pipelines() == "the index itself names no ingest pipeline"
    search_client.indices.put_settings(index=index, settings={"index.default_pipeline": "clean"})
    assert search.pipelines() == "the index has the default_pipeline clean"
    search_client.indices.put_settings(index=index, settings={"index.final_pipeline": "last"})
    assert search.pipelines() == "the index has the default_pipeline clean and the final_pipeline last"


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
