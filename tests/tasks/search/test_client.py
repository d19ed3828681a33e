"""Tests of tasks/search/client.py; a stub stands in for servers that we cannot have: one that wants a log-in,
one that is too old, and one that is none."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest
from elasticsearch.serializer import JsonSerializer

from local_stack.process import free_port
from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.search.client import client, in_words
from tasks.search.index import SearchIndex
from tests.scripted_server import Reply
from tests.shop_fixtures import search_connection

NODES = "/_nodes?filter_path=nodes.*.version"


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
    made = client(search_connection("http://localhost:9200"))
    for mimetype in ("application/json", "application/vnd.elasticsearch+json"):
        serializer = made.transport.serializers.get_serializer(mimetype)  # as bulk's helper asks for it
        assert type(serializer) is not JsonSerializer
        assert serializer.dumps({"a": value}) == JsonSerializer().dumps({"a": value})


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


# Reasons ----------------------------------------------------------------------------------------


def test_a_search_that_all_shards_refuse_says_why(search, search_client, index):
    search_client.indices.create(
        index=index, settings={"number_of_shards": 2}, mappings={"properties": {"a": {"type": "text"}}}
    )
    search_client.index(index=index, id="1", document={"a": "b"}, refresh=True)
    reason = r"400: Fielddata is disabled on \[a\]"
    with pytest.raises(ConfigurationError, match=reason) as refused, search.errors_explained():
        search.search(aggs={"a": {"terms": {"field": "a"}}})
    assert "all shards failed" not in str(refused.value)


def test_shards_that_are_missing_are_named(search, search_client, index):
    """The server names no root then."""
    nowhere = {"number_of_replicas": 0, "index.routing.allocation.require._name": "no such node"}
    search_client.indices.create(index=index, settings=nowhere, wait_for_active_shards="0")
    with pytest.raises(ServiceUnavailableError, match=rf"503: Search rejected .* missing shards \[\[{index}"):
        search.versions()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ({"type": "t", "reason": "r"}, "r"),
        ({"type": "t", "reason": None}, "t"),
        ({"reason": "all shards failed", "root_cause": []}, "all shards failed"),
        ({"reason": "all shards failed", "root_cause": [{"reason": "a"}, {"reason": "b"}]}, "a; b"),
        ({"reason": "all shards failed", "root_cause": [{"reason": "a"}, {"reason": "a"}]}, "a"),
        ({"reason": "outer", "caused_by": {"reason": "x", "caused_by": {"reason": "inner"}}}, "outer: inner"),
        ({"reason": "failed: x", "caused_by": {"reason": "x"}}, "failed: x"),
        ({"type": "phase", "reason": "", "caused_by": {"reason": "no shards"}}, "no shards"),
    ],
    ids=str,
)
def test_the_reason_of_an_error_is_at_its_root(error, words):
    assert in_words(error) == words
