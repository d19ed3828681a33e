"""Compact vectors in a real Elasticsearch against their definition. What others do in between is done by
hooks around the real client."""

import itertools
import os
import sys
from collections import Counter

import numpy as np
import pytest

from tasks import __main__ as command
from tasks.errors import ConfigurationError, RunFailedError, ServiceUnavailableError
from tasks.inference.model import Identity, identity
from tasks.search.index import SearchIndex
from tasks.search.mapping import AT, COMPACT, COMPACT_VERSION, FEATURE, VERSION
from tasks.space.published import publish, published
from tasks.space.vectors import roots
from tasks.stages import compact
from tests.shop_fixtures import some_vector
from tests.tasks.space.synthetic import compact_of, some_space


class Filled:
    """A shop whose documents have features, and whose space is published."""

    def __init__(self, shop, model):
        self.shop, self.model = shop, model
        SearchIndex(shop.services.search, shop.index).prepare()

    def add(self, *item_ids, version=None, **fields):
        for item_id in item_ids:
            ours = {FEATURE: self.feature(item_id).tolist(), VERSION: version or self.model.version}
            self.shop.write_document(item_id, **(ours | fields))

    def feature(self, item_id):
        return some_vector(int.from_bytes(item_id.encode()))

    def publish(self, seed=0):
        publish(some_space(self.model, seed), self.shop.settings())
        return published(self.shop.settings(), self.model)

    def run(self, **changes):
        """Fill, after the counts were seen to agree."""
        result = compact.run(self.shop.settings(**changes), self.shop.services.search)
        assert sum(result["counts"].values()) == result["planned"]
        return result

    def held(self):
        """By item the version of the compact vector, where there is one."""
        found = {item_id: source.get(COMPACT_VERSION) for item_id, source in self.shop.sources().items()}
        return {item_id: version for item_id, version in found.items() if version}

    def assert_compact(self, item_id, space, feature=None):
        feature = self.feature(item_id) if feature is None else feature
        np.testing.assert_allclose(self.shop.vector(item_id, COMPACT), compact_of(space, feature), atol=1e-6)


@pytest.fixture
def filled(sqlite_shop, model_version):
    assert model_version
    return Filled(sqlite_shop, identity(sqlite_shop.settings()))


@pytest.fixture
def around(monkeypatch):
    """around(method, hook): call `hook` with the arguments of the first calls of that method of SearchIndex,
    before them."""

    def set_hook(method, hook, times=1):
        real, left = getattr(SearchIndex, method), itertools.count(times, -1)

        def hooked(self, *arguments, **named):
            if next(left) > 0:
                hook(*arguments, **named)
            return real(self, *arguments, **named)

        monkeypatch.setattr(SearchIndex, method, hooked)

    return set_hook


@pytest.mark.parametrize(("bulk_size", "bulk_requests"), [(1, 1), (2, 3), (500, 4)])
def test_every_document_with_a_feature_gets_its_compact_vector(filled, bulk_size, bulk_requests):
    ids = [f"i{number}" for number in range(7)]
    filled.add(*ids, price=1.1)
    filled.add("other", version="another")
    filled.shop.write_document("bare")
    space = filled.publish()
    before = filled.shop.sources()

    result = filled.run(bulk_size=bulk_size, bulk_requests=bulk_requests)

    assert (result["space"], result["counts"]) == (space.version, {"indexed": 7})
    assert filled.held() == dict.fromkeys(ids, space.version)
    after = filled.shop.sources()
    for item_id in ids:
        filled.assert_compact(item_id, space)
        np.testing.assert_allclose(filled.shop.vector(item_id), filled.feature(item_id), rtol=3e-7)
        ours = {COMPACT, COMPACT_VERSION}
        assert {name: value for name, value in after[item_id].items() if name not in ours} == before[item_id]
    assert after["other"] == before["other"]
    assert after["bare"] == before["bare"]


def test_again_nothing_is_written(filled):
    filled.add("a", "b")
    filled.publish()
    filled.run()
    before = filled.shop.sequence_numbers()
    result = filled.run()
    assert (result["planned"], result["counts"]) == (2, {"current": 2})
    assert filled.shop.sequence_numbers() == before


def test_a_new_space_replaces_the_vectors_of_the_one_before(filled):
    filled.add("a", "b")
    first = filled.publish(1)
    filled.run()
    second = filled.publish(2)
    assert filled.held() == dict.fromkeys("ab", first.version)
    assert filled.run()["counts"] == {"indexed": 2}
    assert filled.held() == dict.fromkeys("ab", second.version)
    for item_id in "ab":
        filled.assert_compact(item_id, second)


def test_stopped_half_way_it_does_the_rest(filled, around):
    ids = [f"i{number}" for number in range(6)]
    filled.add(*ids)
    space = filled.publish()
    calls = itertools.count()

    def dies(*_):
        if next(calls) == 2:
            raise ServiceUnavailableError("gone")

    around("write", dies, times=3)
    with pytest.raises(ServiceUnavailableError, match="gone"):
        filled.run(bulk_size=2, bulk_requests=1)
    half = filled.held()
    assert len(half) == 4
    before = filled.shop.sequence_numbers()

    assert Counter(filled.run()["counts"]) == Counter(current=4, indexed=2)
    assert filled.held() == dict.fromkeys(ids, space.version)
    after = filled.shop.sequence_numbers()
    assert {item_id for item_id in ids if after[item_id] == before[item_id]} == set(half)


def test_the_command_says_what_it_wrote_and_what_is_missing(filled, monkeypatch, capsys):
    filled.add("a", "b")
    search, settings = filled.shop.services.search, filled.shop.settings()
    for name in [name for name in os.environ if name.startswith(("FEATURES_", "AIRFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AIRFLOW_CONN_SHOP_SEARCH", f"http://{search.host}:{search.port}")
    monkeypatch.setenv("FEATURES_INDEX", settings.index)
    monkeypatch.setenv("FEATURES_DATA_DIR", str(settings.data_dir))
    monkeypatch.setattr(sys, "argv", ["tasks", "compact"])
    assert command.main() == 1
    assert "Run the DAG feature_space" in capsys.readouterr().err
    space = filled.publish()
    assert command.main() == 0
    assert f"{space.version}: 2 documents with a feature (indexed 2)" in capsys.readouterr().out
    assert filled.held() == dict.fromkeys("ab", space.version)


# In between -------------------------------------------------------------------------------------


def test_a_document_that_others_change_meanwhile_keeps_their_change(filled, around):
    filled.add("a", "b")
    space = filled.publish()
    client, index = filled.shop.client, filled.shop.index
    around("write", lambda *_: client.update(index=index, id="a", doc={"price": 5}))
    assert filled.run()["counts"] == {"indexed": 2}
    assert filled.shop.sources()["a"]["price"] == 5
    filled.assert_compact("a", space)


@pytest.mark.parametrize("packed", [False, True])
def test_a_feature_that_changes_meanwhile_gets_its_own_compact_vector(filled, around, packed):
    """Even one that somebody writes without anything else."""
    from elasticsearch import helpers

    filled.add("a", "b")
    space = filled.publish()
    new = some_vector(99)
    client, index = filled.shop.client, filled.shop.index
    doc = {FEATURE: helpers.pack_dense_vector(new) if packed else new.tolist()}
    around("write", lambda *_: client.update(index=index, id="a", doc=doc))
    assert filled.run()["counts"] == {"indexed": 2}
    filled.assert_compact("a", space, new)
    filled.assert_compact("b", space)


@pytest.mark.parametrize("change", ["version", "feature", "document"])
def test_a_document_that_loses_its_feature_meanwhile_is_superseded(filled, around, change):
    filled.add("a", "b")
    filled.publish()
    shop = filled.shop
    docs = {"version": {VERSION: "another"}, "feature": {FEATURE: None}}

    def changed(*_):
        if change == "document":
            shop.client.delete(index=shop.index, id="a")
        else:
            shop.client.update(index=shop.index, id="a", doc=docs[change])

    around("write", changed)
    assert Counter(filled.run()["counts"]) == Counter(indexed=1, superseded=1)
    assert set(filled.held()) == {"b"}


def test_a_compact_vector_that_a_run_writes_meanwhile_stays(filled, around):
    filled.add("a", "b")
    space = filled.publish()
    theirs = np.eye(128)[5].tolist()
    docs = {"a": space.version, "b": "of a space that was published since"}

    def night(*_):
        for item_id, version in docs.items():
            doc = {COMPACT: theirs, COMPACT_VERSION: version}
            filled.shop.client.update(index=filled.shop.index, id=item_id, doc=doc)

    around("write", night)
    assert Counter(filled.run()["counts"]) == Counter(current=1, superseded=1)
    assert filled.held() == docs
    np.testing.assert_allclose(filled.shop.vector("a", COMPACT), theirs, atol=1e-6)


def test_a_document_that_changes_at_each_attempt_is_rejected(filled, around):
    filled.add("a", "b")
    filled.publish()
    client, index, numbers = filled.shop.client, filled.shop.index, itertools.count()
    around("write", lambda *_: client.update(index=index, id="a", doc={"price": next(numbers)}), times=9)
    result = filled.run(failure_budget=0.5)
    assert Counter(result["counts"]) == Counter(indexed=1, rejected=1)
    assert result["first_failures"] == [["a", "rejected", "the document changed at each of 5 attempts"]]
    assert "a rejected the document changed" in compact.described(result)


def test_another_space_that_is_published_meanwhile_ends_it(filled, around):
    filled.add("a", "b", "c")
    first = filled.publish(1)
    seconds = []
    around("write", lambda *_: seconds.append(filled.publish(2)))
    with pytest.raises(ServiceUnavailableError, match="was published while"):
        filled.run(bulk_size=1, bulk_requests=1)
    assert set(filled.held().values()) == {first.version}
    assert filled.run()["counts"] == {"indexed": 3}
    assert filled.held() == dict.fromkeys("abc", seconds[0].version)


def test_a_state_of_the_index_that_is_lost_may_be_there_again_later(filled, around, monkeypatch):
    """As after a restart of Elasticsearch."""
    filled.add("a", "b", "c")
    filled.publish()
    client, opened = filled.shop.client, []
    real = type(client).open_point_in_time

    def noted(self, **arguments):
        opened.append(real(self, **arguments)["id"])
        return {"id": opened[-1]}

    monkeypatch.setattr(type(client), "open_point_in_time", noted)
    around("write", lambda *_: client.close_point_in_time(id=opened[0]))
    with pytest.raises(ServiceUnavailableError, match="has lost the state of"):
        filled.run(bulk_size=1, bulk_requests=1)
    assert filled.run()["planned"] == 3


def test_what_searches_do_not_find_is_not_counted_as_indexed(filled, around):
    filled.add("a", "b", "c")
    space = filled.publish()
    shop = filled.shop
    around("holding_compact", lambda *_: shop.client.delete(index=shop.index, id="a"))
    assert Counter(filled.run()["counts"]) == Counter(indexed=2, superseded=1)
    assert filled.held() == dict.fromkeys("bc", space.version)


def test_what_the_index_does_not_hold_though_it_took_it_is_rejected(filled, monkeypatch):
    filled.add("a", "b")
    filled.publish()
    real = SearchIndex.holding_compact
    monkeypatch.setattr(SearchIndex, "holding_compact", lambda self, *ids: real(self, *ids) - {"a"})
    result = filled.run(failure_budget=1)
    assert Counter(result["counts"]) == Counter(indexed=1, rejected=1)
    assert "does not hold it; the index itself names no ingest pipeline" in result["first_failures"][0][2]


# What cannot be written -------------------------------------------------------------------------


def test_a_feature_without_a_compact_direction_is_counted_and_fails_beyond_the_budget(filled):
    filled.add("a", "b")
    space = some_space(filled.model)
    space.compact.mean[:] = roots(filled.shop.vector("a")[np.newaxis])[0]  # as the index gives it
    publish(space, filled.shop.settings())
    result = filled.run(failure_budget=0.5)
    assert Counter(result["counts"]) == Counter(indexed=1, vector_refused=1)
    assert set(filled.held()) == {"b"}
    with pytest.raises(RunFailedError, match=r"(?s)1 of 2 documents got no compact vector.*a vector_refused"):
        filled.run(failure_budget=0.4)


def test_compact_vectors_of_features_that_are_gone_go(filled):
    filled.add("a", "b", "c")
    space = filled.publish()
    filled.run()
    client, index = filled.shop.client, filled.shop.index
    client.update(index=index, id="a", doc={FEATURE: None, VERSION: None, AT: None})
    client.update(index=index, id="b", doc={FEATURE: None, COMPACT_VERSION: None})
    result = filled.run()
    assert (result["counts"], result["removed"]) == ({"current": 1}, 2)
    assert "Taken away from documents without a feature: 2." in compact.described(result)
    assert filled.held() == {"c": space.version}
    assert client.count(index=index, query={"exists": {"field": COMPACT}})["count"] == 1
    assert filled.run()["removed"] == 0


def test_without_a_space_it_says_which_dag_to_run(filled):
    filled.add("a")
    with pytest.raises(ConfigurationError, match="Run the DAG feature_space"):
        filled.run()
    publish(some_space(Identity("another")), filled.shop.settings())
    with pytest.raises(ConfigurationError, match="features another, and the model here makes"):
        filled.run()
    assert filled.held() == {}


def test_without_documents_there_is_nothing_to_do(filled):
    filled.publish()
    assert filled.run()["planned"] == 0
    filled.shop.client.indices.delete(index=filled.shop.index)
    with pytest.raises(ConfigurationError, match=f"There is no index {filled.shop.index} yet"):
        filled.run()
    assert not filled.shop.client.indices.exists(index=filled.shop.index)


def test_an_index_that_cannot_take_compact_vectors_is_refused(filled):
    shop = filled.shop
    filled.publish()
    shop.client.indices.delete(index=shop.index)
    shop.client.indices.create(index=shop.index, mappings={"properties": {COMPACT: {"type": "float"}}})
    with pytest.raises(ConfigurationError, match=f"The field {COMPACT} of {shop.index} has type 'float'"):
        filled.run()


def test_an_alias_that_moves_meanwhile_changes_nothing(filled, around):
    """The index that it stood for is filled; the next time it is the other one's turn."""
    shop, old = filled.shop, filled.shop.index
    filled.add("a", "b")
    space = filled.publish()
    new, alias = f"{old}-new", f"{old}-alias"
    shop.client.indices.create(index=new)
    shop.client.indices.put_alias(index=old, name=alias)
    actions = [{"remove": {"index": old, "alias": alias}}, {"add": {"index": new, "alias": alias}}]
    around("write", lambda *_: shop.client.indices.update_aliases(actions=actions))
    assert filled.run(index=alias, bulk_size=1, bulk_requests=1)["counts"] == {"indexed": 2}
    assert filled.held() == dict.fromkeys("ab", space.version)
    assert filled.run(index=alias)["planned"] == 0
