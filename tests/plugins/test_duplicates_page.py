"""The page of near-duplicates inside a real Airflow."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tasks.search.mapping import FEATURE, GROUP, IMAGE, URL, VERSION
from tests.plugins.site import HOSTILE, Read, Site
from tests.shop_fixtures import some_vector

pytestmark = pytest.mark.airflow

PICTURE = "https://pictures.example/{}.jpg"
OF_A_STRANGER = f"group {HOSTILE}"


@pytest.fixture
def groups(site: Site, search_client: Any) -> Iterator[dict[str, list[str]]]:
    """Items by their groups: nine, two with hostile texts, one alone, and two of another version."""
    groups = {
        "nine": [f"n{number}" for number in range(9)],
        OF_A_STRANGER: [HOSTILE, "h"],
        "alone": ["a"],
        "another": ["v1", "v2"],
    }
    index = site.settings.index
    for group, item_ids in groups.items():
        for number, item_id in enumerate(item_ids):
            document = {
                "item_id": item_id,
                "item_name": HOSTILE if group == OF_A_STRANGER else f"shirt {item_id}",
                "category_id": "00000030",
                "img_url": "javascript:alert(1)" if item_id == HOSTILE else PICTURE.format(number),
                FEATURE: some_vector(number).tolist(),
                VERSION: "another" if group == "another" else site.answer["version"],
                IMAGE: group,
                URL: PICTURE.format(number),
                GROUP: group,
            }
            search_client.index(index=index, id=item_id, document=document)
    search_client.indices.refresh(index=index)
    yield groups
    for item_id in itertools.chain(*groups.values()):
        search_client.delete(index=index, id=item_id)
    search_client.indices.refresh(index=index)


def test_without_groups_it_says_what_makes_them(site: Site) -> None:
    answer = site.ask("GET", "/duplicates", "viewer")
    assert answer.status_code == 200
    assert "near_duplicates" in answer.text
    assert site.ask("GET", "/duplicates", None).status_code == 401


@pytest.mark.usefixtures("groups")
def test_the_largest_groups_are_shown_with_pictures_and_links(site: Site) -> None:
    answer = site.ask("GET", "/duplicates", "viewer")
    read = Read.of(answer.text)
    assert answer.text.index("9 items with one picture") < answer.text.index("2 items with one picture")
    items = [href for href in read.hrefs if href.startswith("/feature-index/similar?item_id=")]
    assert len(items) == 8, "six of nine, and two"
    assert answer.text.count("<img ") == 7, "one has no URL that could be shown"
    assert "/feature-index/duplicates?group=nine" in read.hrefs
    assert HOSTILE not in answer.text
    assert not [href for href in read.hrefs if href.startswith("javascript")]
    assert "img-src data: " in answer.headers["Content-Security-Policy"]
    assert "v1" not in read.text.split()


def test_one_group_is_shown_whole(site: Site, groups: dict[str, list[str]]) -> None:
    read = Read.of(site.ask("GET", "/duplicates?group=nine", "viewer").text)
    items = {href.rpartition("item_id=")[2] for href in read.hrefs if "item_id=" in href}
    assert items == set(groups["nine"])
    assert site.ask("GET", "/duplicates?group=another").status_code == 404
    assert site.ask("GET", f"/duplicates?group={'x' * 201}").status_code == 422


@pytest.mark.usefixtures("groups")
def test_a_groups_name_may_hold_what_means_something_elsewhere(site: Site) -> None:
    found = site.ask("GET", "/duplicates", params={"group": OF_A_STRANGER})
    assert found.status_code == 200
    assert "2 items with one picture" in found.text
