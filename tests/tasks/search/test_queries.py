"""Tests of tasks/search/queries.py against a real Elasticsearch: how far the index is covered."""

import pytest

from tasks.errors import ConfigurationError
from tasks.search.mapping import GROUP
from tests.tasks.search.documents import put, with_feature

SHOP = {
    "1": ("00000010", "v1"),
    "2": ("00000010", None),
    "3": ("00000020", "v1"),
    "4": ("00000020", "v2"),
    "5": ("00000030", None),
    "6": (None, "v1"),
}


@pytest.mark.parametrize("mapped", ["dynamically", "by_us"])
def test_coverage_counts_documents_by_category(queries, search, search_client, index, mapped):
    if mapped == "by_us":
        search.prepare()
    else:
        put(search_client, index, "1", category_id="00000010")
        search.prepare()  # adds our fields; category_id stays text
        assert (
            search_client.indices.get_mapping(index=index)[index]["mappings"]["properties"]["category_id"][
                "type"
            ]
            == "text"
        )
    for number, (item_id, (category, version)) in enumerate(SHOP.items(), 1):
        fields = {"category_id": category} if category else {}
        put(
            search_client, index, item_id, **fields, **(with_feature("u", version, number) if version else {})
        )

    counted = queries.coverage("v1")

    assert (counted.documents, counted.current, counted.elsewhere) == (6, 3, 1)
    assert [(c.category_id, c.documents, c.current) for c in counted.categories] == [
        ("00000010", 2, 1),
        ("00000020", 2, 1),
        ("00000030", 1, 0),
    ]
    assert counted.versions == {"v1": 3, "v2": 1}
    assert [queries.category(c.category_id, "v1") for c in counted.categories] == list(counted.categories)
    assert queries.category("x", "v1").documents == 0


def test_coverage_of_an_index_without_our_fields_is_nothing(queries, search_client, index):
    put(search_client, index, "1", category_id="00000010")
    counted = queries.coverage("v1")
    assert (counted.documents, counted.current, counted.versions) == (1, 0, {})


def test_coverage_says_what_is_missing(queries, search_client, index):
    with pytest.raises(ConfigurationError, match=f"no index {index} .* set FEATURES_INDEX"):
        queries.coverage("v1")
    search_client.indices.create(index=index, mappings={"properties": {"category_id": {"type": "text"}}})
    with pytest.raises(ConfigurationError, match="cannot be counted by category_id"):
        queries.coverage("v1")


def test_coverage_takes_two_requests(queries, search_client, index, monkeypatch):
    put(search_client, index, "1", category_id="00000010")
    asked = []
    transport = queries.client.transport
    perform = transport.perform_request

    def counting(method, target, *args, **kwargs):
        asked.append(target.partition("?")[0])
        return perform(method, target, *args, **kwargs)

    monkeypatch.setattr(transport, "perform_request", counting)
    queries.coverage("v1")
    assert asked == [f"/{index}/_field_caps", f"/{index}/_search"]


def test_the_newest_are_those_that_were_written_last(queries, search, search_client, index):
    search.prepare()
    for number, (item_id, version) in enumerate(
        {"3": "v1", "1": "v1", "2": "v2", "4": None, "0": "v1"}.items(), 1
    ):
        put(search_client, index, item_id, **(with_feature("u", version, number) if version else {}))
    assert [item.item_id for item in queries.newest("v1", 10)] == ["0", "1", "3"]
    put(search_client, index, "3", **with_feature("u", "v1", 1))
    assert [item.item_id for item in queries.newest("v1", 2)] == ["3", "0"]
    assert queries.newest("v3", 2) == []


def test_the_largest_groups_come_first_with_some_of_their_items(queries, search, search_client, index):
    search.prepare()
    assert queries.largest_groups("v1", 10, 2) == []
    groups = {"x": ["5", "1", "3"], "y": ["2", "4"], "z": ["6"], "other": ["7", "8"]}
    for group, item_ids in groups.items():
        for item_id in item_ids:
            ours = with_feature(f"https://p/{item_id}", "v2" if group == "other" else "v1", int(item_id))
            put(search_client, index, item_id, item_name=f"item {item_id}", **ours | {GROUP: group})
    found = queries.largest_groups("v1", 10, 2)
    assert [(group.group, group.documents) for group in found] == [("x", 3), ("y", 2)]
    assert [item.item_id for item in found[1].items] == ["2", "4"]
    shown = [item.item_id for item in found[0].items]
    assert len(shown) == 2
    assert shown == sorted(set(shown) & set(groups["x"]))
    assert found[1].items[0].item_name == "item 2"
    assert [group.group for group in queries.largest_groups("v1", 1, 2)] == ["x"]

    whole = queries.group("x", "v1", 10)
    assert (whole.documents, [item.item_id for item in whole.items]) == (3, ["1", "3", "5"])
    assert queries.group("none", "v1", 10).documents == 0
