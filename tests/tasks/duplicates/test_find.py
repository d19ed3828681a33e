"""Groups from the features in a real Elasticsearch and pictures from a real server, to the documents."""

import hashlib
import logging
from collections import Counter

import numpy as np
import pytest

from tasks.duplicates.find import described, find
from tasks.errors import ConfigurationError
from tasks.search.index import SearchIndex
from tasks.search.mapping import FEATURE, GROUP, IMAGE, URL, VERSION
from tasks.settings import Settings
from tests.scripted_server import Reply, ScriptedServer
from tests.shop_fixtures import search_connection
from tests.tasks.duplicates.shop import (
    MODEL,
    cropped,
    drawn,
    features,
    jpeg,
    near,
    published_space,
    with_logo,
)

A, B = features(50, 2)


class Shop:
    """An index, the pictures of its items, and what the last run said."""

    def __init__(self, client, url, index, server, settings):
        self.client, self.index, self.server, self.settings = client, index, server, settings
        self.connection = search_connection(url)
        self.space = published_space(settings)
        SearchIndex(self.connection, index).prepare()

    def put(self, item_id, content, feature, **fields):
        """An item as nights write it; returns its picture's name."""
        image = hashlib.sha256(content).hexdigest()
        path = f"/{item_id.replace(' ', '-')}.jpg"
        self.server.answer(path, Reply(body=content))
        ours = {
            FEATURE: feature.tolist(),
            VERSION: MODEL.version,
            IMAGE: image,
            URL: self.server.url(path),
            GROUP: image,
        }
        document = {"item_id": item_id, "price": 1.5} | ours | fields
        document = {name: value for name, value in document.items() if value is not None}
        self.client.index(index=self.index, id=item_id, document=document, refresh=True)
        return image

    def near(self, feature, cosine, seed=0):
        return near(feature, cosine, self.space.compact, seed)

    def find(self, **settings):
        """A run; its report."""
        report = find(self.connection, MODEL, self.settings.model_copy(update=settings))
        assert sum(report["counts"].values()) == report["planned"]
        self.client.indices.refresh(index=self.index)
        return report

    def sources(self):
        hits = self.client.search(index=self.index, size=1_000)["hits"]["hits"]
        return {hit["_id"]: hit["_source"] for hit in hits}

    def groups(self):
        """Items by the group that their documents name."""
        return {item_id: source.get(GROUP) for item_id, source in self.sources().items()}

    def asked_for(self):
        return Counter(request.path for request in self.server.requests)


@pytest.fixture
def shop(search_client, elasticsearch_url, index, tmp_path):
    with ScriptedServer() as server:
        settings = Settings(
            data_dir=tmp_path, index=index, image_hosts=(server.host,), download_attempts=1, host_patience=0.5
        )
        yield Shop(search_client, elasticsearch_url, index, server, settings)


def test_sure_ones_are_joined_without_a_look_and_doubtful_ones_by_it(shop):
    first = shop.put("a", jpeg(drawn(1)), A)
    shop.put("a again", jpeg(drawn(1), 60), shop.near(A, 0.97))
    shop.put("a cropped", jpeg(cropped(drawn(1))), shop.near(A, 0.92, 1))
    shop.put("a with a logo", jpeg(with_logo(drawn(1))), shop.near(A, 0.92, 2))
    other = shop.put("like a", jpeg(drawn(2)), shop.near(A, 0.92, 3))
    alone = shop.put("b", jpeg(drawn(3)), B)
    report = shop.find()
    groups = shop.groups()
    (group,) = {groups[item] for item in ("a", "a again", "a cropped", "a with a logo")}
    assert group in {source[IMAGE] for item, source in shop.sources().items() if item.startswith("a")}
    assert (groups["like a"], groups["b"]) == (other, alone)
    assert (report["groups"], report["in_groups"], report["put_off"]) == (1, 4, 0)
    assert report["counts"] == {"indexed": 3, "current": 3}
    assert "/b.jpg" not in shop.asked_for()
    assert set(shop.asked_for().values()) == {1}
    assert all(source["price"] == 1.5 for source in shop.sources().values())
    assert "1 groups of near-duplicates hold 4 of the documents" in described(report)
    assert first in set(shop.sources()["a"].values())


def test_a_second_run_compares_and_writes_nothing(shop):
    for number in range(4):
        shop.put(f"a{number}", jpeg(drawn(1), 90 - number), shop.near(A, 0.9, number))
    shop.find()
    before = shop.sources()
    asked = shop.asked_for()
    report = shop.find()
    assert (report["new"], report["counts"]) == (0, {"current": 4})
    assert shop.sources() == before
    assert shop.asked_for() == asked
    # Without what was known all is compared again, and ends in the same groups.
    (shop.settings.data_dir / "duplicates" / "known.npz").unlink()
    assert shop.find()["counts"] == {"current": 4}
    assert shop.sources() == before


def test_new_items_join_and_the_group_keeps_its_name(shop):
    for number in range(3):
        shop.put(f"a{number}", jpeg(drawn(1), 90 - number), shop.near(A, 0.96, number))
    shop.find()
    (group,) = set(shop.groups().values())
    for number in range(3, 12):
        shop.put(f"a{number}", jpeg(drawn(1), 90 - number), shop.near(A, 0.96, number))
    report = shop.find()
    assert set(shop.groups().values()) == {group}
    assert (report["new"], report["counts"]) == (9, {"current": 3, "indexed": 9})


def test_a_picture_that_changed_leaves_and_a_leader_that_left_is_followed(shop):
    for number in range(4):
        shop.put(f"a{number}", jpeg(drawn(1), 90 - number), shop.near(A, 0.97, number))
    shop.find()
    (group,) = set(shop.groups().values())
    (leader,) = [item for item, source in shop.sources().items() if source[IMAGE] == group]
    changed = shop.put(leader, jpeg(drawn(7)), B)
    shop.find()
    groups = shop.groups()
    assert groups.pop(leader) == changed
    (now,) = set(groups.values())
    assert now != group
    assert now in {shop.sources()[item][IMAGE] for item in groups}
    shop.client.delete(index=shop.index, id=leader, refresh=True)
    report = shop.find()
    assert (report["planned"], report["counts"]) == (3, {"current": 3})


def test_the_same_bytes_are_one_picture(shop):
    content = jpeg(drawn(1))
    for item in "abc":
        shop.put(item, content, A, **{GROUP: None})
    report = shop.find()
    assert set(shop.groups().values()) == {hashlib.sha256(content).hexdigest()}
    assert (report["planned"], report["pictures"], report["in_groups"]) == (3, 1, 3)


def test_a_picture_that_may_be_had_later_is_put_off_and_one_that_is_gone_stays_alone(shop):
    shop.put("a", jpeg(drawn(1)), A)
    shop.put("later", jpeg(drawn(1), 60), shop.near(A, 0.92))
    shop.put("b", jpeg(drawn(2)), B)
    shop.put("gone", jpeg(drawn(2), 60), shop.near(B, 0.92, 1))
    content = jpeg(drawn(1), 60)
    shop.server.answer("/later.jpg", Reply(503))
    shop.server.answer("/gone.jpg", Reply(404))
    report = shop.find()
    assert (report["put_off"], report["groups"]) == (1, 0)
    shop.server.answer("/later.jpg", Reply(body=content))
    report = shop.find()
    assert (report["put_off"], report["groups"], report["new"]) == (0, 1, 1)
    groups = shop.groups()
    assert groups["later"] == groups["a"]
    assert len(set(groups.values())) == 3


def test_another_picture_at_the_url_decides_nothing(shop):
    shop.put("a", jpeg(drawn(1)), A)
    shop.put("b", jpeg(drawn(1), 60), shop.near(A, 0.92))
    shop.server.answer("/b.jpg", Reply(body=jpeg(drawn(1), 61)))
    assert shop.find()["groups"] == 0


def test_documents_of_another_version_and_without_a_picture_are_left(shop):
    shop.put("a", jpeg(drawn(1)), A)
    shop.put("another version", jpeg(drawn(1), 60), A, **{VERSION: "v2"})
    shop.put("no picture", jpeg(drawn(1), 70), A, **{IMAGE: None, GROUP: None})
    shop.put("no digest", jpeg(drawn(1), 80), A, **{IMAGE: "abc", GROUP: None})
    report = shop.find()
    assert (report["planned"], report["groups"]) == (2, 0)
    assert shop.groups()["no digest"] == "abc"
    assert shop.groups()["no picture"] is None


def test_a_document_that_changes_meanwhile_is_skipped(shop, monkeypatch):
    image = shop.put("a", jpeg(drawn(1)), A)
    for number, item in enumerate(("changed", "deleted", "joins"), 1):
        shop.put(item, jpeg(drawn(1), 90 - number), shop.near(A, 0.97, number), **{GROUP: None})
    shop.client.update(index=shop.index, id="a", doc={GROUP: None}, refresh=True)
    from tasks.search.index import SearchIndex

    real = SearchIndex.documents

    def meanwhile(self, item_ids):
        if "deleted" in item_ids and shop.client.exists(index=shop.index, id="deleted"):
            shop.client.delete(index=shop.index, id="deleted")
            shop.client.update(index=shop.index, id="changed", doc={IMAGE: "another", GROUP: "another"})
        return real(self, item_ids)

    monkeypatch.setattr(SearchIndex, "documents", meanwhile)
    report = shop.find()
    counts = {"indexed": 2, "waiting_for_document": 1, "superseded": 1}
    assert (report["planned"], report["counts"]) == (4, counts)
    assert shop.groups()["changed"] == "another"
    assert image


def test_a_giant_of_unrelated_pictures_does_not_come_about(shop):
    """Each feature is very like the one before, and the last has nothing to do with the first."""
    steps = 24
    roots = [(1 - n / steps) * np.sqrt(A) + n / steps * np.sqrt(B) for n in range(steps + 1)]
    for number, root in enumerate(roots):
        shop.put(f"{number:02}", jpeg(drawn(number)), root**2)
    shop.find()
    centred = shop.space.compact.centred(np.array(roots, np.float32) ** 2)
    assert (centred[:-1] * centred[1:]).sum(axis=1).min() > 0.95, "each would be joined with the next"
    sources = shop.sources()
    row_of = {source[IMAGE]: int(item) for item, source in sources.items()}
    for item, source in sources.items():
        assert float(centred[int(item)] @ centred[row_of[source[GROUP]]]) >= 0.94
    assert len({source[GROUP] for source in sources.values()}) > 3


def test_without_an_index_and_without_a_space(shop, tmp_path):
    with pytest.raises(ConfigurationError, match="There is no index"):
        shop.find(index=f"{shop.index}-none")
    with pytest.raises(ConfigurationError, match="Run the DAG feature_space"):
        shop.find(data_dir=tmp_path / "empty")


def test_it_says_how_far_it_is(shop, caplog):
    caplog.set_level(logging.INFO)
    shop.put("a", jpeg(drawn(1)), A)
    stages = {}

    def progress(results, stage, total):
        done = 0
        for result in results:
            yield result
            done += 1
        stages[stage] = (done, total)

    find(shop.connection, MODEL, shop.settings, progress)
    assert stages == {"reading, pages": (1, 1), "comparing, pages": (1, 1), "writing, pages": (1, 1)}
