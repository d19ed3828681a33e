"""Another shop from its first fill on, by Airflow's own scheduler: its catalogue in MariaDB, its nights in
Berlin, categories such as shoes/boots, and documents that hold the URL in image.src."""

import json
import uuid
from datetime import UTC, datetime, time, timedelta
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from local_stack.airflow import Airflow
from local_stack.garments import draw
from tasks.search.mapping import FEATURE, FINGERPRINTS, URL
from tests.dags.test_dag_runs import BACKFILL, NIGHTLY, RETRY, _wait_for
from tests.scripted_server import Reply, ScriptedServer
from tests.shop_fixtures import as_uri, mariadb_catalogue, remember_model

pytestmark = pytest.mark.airflow

BERLIN = ZoneInfo("Europe/Berlin")
BOOTS, HATS, ALL = "shoes/boots", "hüte", "all"


class Shop:
    """Writes items as such a shop's own software does."""

    def __init__(self, catalogue, client, index, pictures):
        self.catalogue, self.client, self.index, self.pictures = catalogue, client, index, pictures

    def add(self, item_id, category_id, registered_at, *, picture=True):
        """An item in the catalogue and its document; without a picture its URL gives 404."""
        path = f"/{uuid.uuid4().hex}.jpg"
        if picture:
            self.give_picture(path)
        url = self.pictures.url(path)
        self.catalogue.add(item_id, url, category_id=category_id, registered_at=registered_at)
        self.write_document(item_id, category_id, url)
        return path

    def give_picture(self, path):
        self.pictures.answer(path, Reply(body=draw("00000010", int(path[1:5], 16)).data))

    def write_document(self, item_id, category_id, url):
        """Write the document anew as a whole: what it held besides is lost."""
        document = {"title": item_id, "category": {"path": category_id}, "image": {"src": url}}
        self.client.index(index=self.index, id=item_id, document=document, refresh=True)

    def catalogue_urls(self):
        with self.catalogue.engine.connect() as connection:
            return dict(connection.execute(sa.text("select item_id, img_url from items")).tuples().all())

    def urls(self):
        """The URL that each document's feature is of; an item without one is absent."""
        self.client.indices.refresh(index=self.index)
        found = self.client.search(index=self.index, size=100, query={"exists": {"field": FEATURE}})
        return {hit["_id"]: hit["_source"][URL] for hit in found["hits"]["hits"]}


@pytest.fixture
def shop(mariadb_socket, search_client, index):
    with ScriptedServer() as pictures:
        catalogue = mariadb_catalogue(mariadb_socket, f"berlin_{uuid.uuid4().hex[:8]}", "datetime(6)")
        yield Shop(catalogue, search_client, index, pictures)


@pytest.fixture
def airflow(shop, elasticsearch_url, tmp_path):
    remember_model(tmp_path / "data")
    airflow = Airflow.start(
        tmp_path / "airflow",
        shop_env={
            "AIRFLOW_CONN_SHOP_CATALOG": as_uri(shop.catalogue.connection),
            "AIRFLOW_CONN_SHOP_SEARCH": elasticsearch_url,
            "FEATURES_CATEGORY_PATTERN": "[a-zäöü]+(/[a-zäöü]+)*",
            "FEATURES_DATA_DIR": str(tmp_path / "data"),
            "FEATURES_DOCUMENT_CATEGORY_FIELD": "category.path",
            "FEATURES_DOCUMENT_NAME_FIELD": "title",
            "FEATURES_DOCUMENT_URL_FIELD": "image.src",
            "FEATURES_FAILURE_BUDGET": "0.5",
            "FEATURES_IMAGE_HOSTS": shop.pictures.host,
            "FEATURES_INDEX": shop.index,
            "FEATURES_TIME_ZONE": BERLIN.key,
        },
    )
    yield airflow
    airflow.stop()


def test_from_the_first_fill_to_a_feature_that_was_lost(shop, airflow, tmp_path):
    def finished(dag_id, run_id):
        assert airflow.wait(dag_id, run_id) == "success"
        return json.loads((tmp_path / "data" / dag_id / run_id / "report.json").read_text())

    def run(dag_id, **conf):
        return finished(dag_id, airflow.trigger(dag_id, conf=conf))

    long_ago = datetime(2020, 2, 29, 12, tzinfo=UTC)
    for item_id, category_id in {"b1": BOOTS, "b2": BOOTS, "h1": HATS, "a1": ALL, "lost": BOOTS}.items():
        shop.add(item_id, category_id, long_ago)
    shop.add("undated", None, None)
    gone = shop.add("gone", HATS, long_ago, picture=False)
    filled = {"b1", "b2", "h1", "a1", "lost", "undated"}

    # The first fill, with its preview; a category that is named all is one of them.
    for dag_id in (BACKFILL, RETRY):
        airflow.unpause(dag_id)
    preview = run(BACKFILL, all_items=True, dry_run=True)
    assert preview["counts"] == {"current": 0, "to_do": 7}
    assert run(BACKFILL, category_ids=[ALL], dry_run=True)["counts"] == {"current": 0, "to_do": 1}
    assert shop.pictures.requests == []
    report = run(BACKFILL, all_items=True)
    assert (report["all_items"], report["counts"]) == (True, {"indexed": 6, "gone": 1})
    assert shop.urls().keys() == filled
    (mapping,) = shop.client.indices.get_mapping(index=shop.index).values()
    assert mapping["mappings"]["_meta"][FINGERPRINTS].keys() == {report["feature_version"]}

    # A night: of its own interval, of the day before it, and a feature that was lost meanwhile.
    shop.write_document("lost", BOOTS, shop.urls()["lost"])
    end = datetime.combine(datetime.now(BERLIN), time(), BERLIN)
    start = datetime.combine(end - timedelta(days=1), time(), BERLIN)
    moment = timedelta(microseconds=1)
    shop.add("first of the night", BOOTS, start)
    shop.add("last of the night", HATS, end - moment)
    shop.add("before it", BOOTS, start - moment)
    shop.add("today", BOOTS, end)
    night = f"scheduled__{end.astimezone(UTC).isoformat()}"
    airflow.unpause(NIGHTLY)
    _wait_for(SimpleNamespace(airflow=airflow), NIGHTLY, night)
    report = finished(NIGHTLY, night)
    assert {origin: counts["planned"] for origin, counts in report["origins"].items()} == {
        "changed": 2,
        "caught_up": 1,
        "reconciled": 2,
    }
    assert report["counts"] == {"indexed": 5}
    assert report["without_feature"]["on_record"] == 1
    filled |= {"first of the night", "last of the night", "before it", "today"}
    assert shop.urls().keys() == filled

    # A retry, once the picture is there.
    shop.give_picture(gone)
    assert run(RETRY, category_ids=[HATS])["counts"] == {"indexed": 1}
    assert shop.urls() == shop.catalogue_urls()

    # The pages.
    def page(path):
        answer = airflow._session.get(f"{airflow.url}/feature-index{path}", timeout=60)
        assert answer.status_code == 200
        return answer.text

    coverage = page("/")
    assert "11 of 11 documents" in coverage
    for category_id, count in {BOOTS: 6, HATS: 3, ALL: 1}.items():
        assert f'<th scope="row"><bdi>{category_id}</bdi></th>\n<td class="number">{count}</td>' in coverage
    similar = page("/similar?item_id=b1")
    assert all(f"item_id={item_id}" in similar for item_id in ("b2", "lost"))
