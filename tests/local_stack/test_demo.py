"""What a demo learns at its end, from a shop whose documents have features; the rest of it is Airflow's."""

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from local_stack import demo
from tasks.inference.model import feature_version, identity
from tasks.search.index import SearchIndex
from tasks.search.mapping import FEATURE, VERSION
from tasks.settings import Settings
from tasks.space.published import published
from tests.shop_fixtures import remember_model, search_connection
from tests.tasks.space.synthetic import features_of, shop

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch


@pytest.fixture
def running(
    elasticsearch_url: str, index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> SimpleNamespace:
    """As far as it is asked for."""
    monkeypatch.setenv("AIRFLOW_CONN_SHOP_SEARCH", elasticsearch_url)
    remember_model(tmp_path)
    SearchIndex(search_connection(elasticsearch_url), index).prepare()
    return SimpleNamespace(settings=Settings(data_dir=tmp_path, index=index))


def fill(client: "Elasticsearch", settings: Settings, counts: dict[str, int]) -> None:
    """Documents with features that tell their categories apart."""
    ids, categories = shop(counts)
    actions: list[dict[str, Any]] = []
    for item_id, category, feature in zip(ids, categories, features_of(categories), strict=True):
        actions += [
            {"index": {"_index": settings.index, "_id": item_id}},
            {
                "item_id": item_id,
                "category_id": category,
                FEATURE: feature.tolist(),
                VERSION: feature_version(settings),
            },
        ]
    assert not client.bulk(operations=actions, refresh=True)["errors"]


def test_a_space_is_published_and_what_it_left_out_is_said(
    running: SimpleNamespace, search_client: "Elasticsearch"
) -> None:
    fill(search_client, running.settings, {"hat": 90, "shoe": 90, "rare": 10})
    said: list[str] = []
    demo.learn(running, said.append)
    space = published(running.settings, identity(running.settings))
    assert space.categories.categories == ("hat", "shoe")
    assert space.version in said[0]
    assert "rare (10)" in said[0]
    assert f"{space.version}: 190 documents with a feature (indexed 190)" in said[1]


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        ({}, "holds no feature of"),
        ({"hat": 12, "shoe": 12}, "no two categories have 20 items each"),
        ({"hat": 28, "shoe": 28}, "too few to evaluate a space by"),
    ],
)
def test_of_too_few_items_it_says_why_there_is_none(
    running: SimpleNamespace, search_client: "Elasticsearch", counts: dict[str, int], why: str
) -> None:
    if counts:
        fill(search_client, running.settings, counts)
    said: list[str] = []
    demo.learn(running, said.append)
    assert len(said) == 1
    assert said[0].startswith("No feature space was published.")
    assert why in said[0]
