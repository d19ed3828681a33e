"""Tests of tasks/stages/plan.py with a real catalogue and a real Elasticsearch."""

import gc
import itertools
import logging
import re
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.files import write_json
from tasks.inference.model import identity
from tasks.runs import packs, reports
from tasks.runs.category_names import CategoryNames
from tasks.runs.run import Plan, Request, Retry
from tasks.search.index import SearchIndex
from tasks.search.mapping import AT, FEATURE, URL, VERSION, note_model
from tasks.settings import Settings
from tasks.shop.ledger import ItemOutcome, Ledger
from tasks.stages import plan
from tasks.stages.plan import chunk_bounds, chunk_size
from tasks.statuses import Status
from tests.shop_fixtures import NOON, some_vector, url_of

NIGHT = Request("nightly", "r", NOON - timedelta(hours=1), NOON + timedelta(hours=1))


def run(shop, request=NIGHT, **changes):
    return plan.run(request, shop.settings(**changes), shop.services)


def ids(planned):
    return {row["item_id"] for row in packs.rows(planned.items)}


def index_as_current(shop, *item_ids, version, url=None):
    """Give documents a feature, as an earlier run left it."""
    search = SearchIndex(shop.services.search, shop.index)
    note_model(search, search.prepare(), identity(shop.settings()))
    for item_id in item_ids:
        doc = {FEATURE: some_vector(1).tolist(), VERSION: version, URL: url or url_of(item_id)}
        doc[AT] = datetime.now(UTC).isoformat()
        shop.client.update(index=shop.index, id=item_id, doc=doc, refresh=True)


@pytest.fixture(autouse=True)
def version(model_version):
    return model_version


def state(shop):
    """Everything of the shop that a run could touch."""
    if not shop.client.indices.exists(index=shop.index):
        return None
    (described,) = shop.client.indices.get_mapping(index=shop.index).values()
    return described, shop.sources(), shop.sequence_numbers()


def test_what_is_current_is_left_out(shop, version):
    shop.stock("new", "current", "changed", "007")
    shop.catalogue.add("no document", "https://pictures.example/x.jpg")
    shop.stock("yesterday", registered_at=NOON - timedelta(days=1))
    index_as_current(shop, "current", version=version)
    index_as_current(shop, "changed", version=version, url="https://pictures.example/old.jpg")

    planned = run(shop)

    assert ids(planned) == {"new", "changed", "007", "no document"}
    assert (planned.planned, planned.current) == (5, 1)
    assert planned.feature_version == version
    assert planned.notices == ()
    assert Plan.load(planned.folder) == planned
    (row,) = [row for row in packs.rows(planned.items) if row["item_id"] == "007"]
    assert row == {
        "item_id": "007",
        "item_name": "blue shirt",
        "category_id": "00000010",
        "img_url": url_of("007"),
        "invalid": None,
        "origin": "changed",
    }


def test_force_does_what_is_current_too(sqlite_shop, version):
    sqlite_shop.stock("new", "current")
    index_as_current(sqlite_shop, "current", version=version)
    request = Request("backfill", "r", category_ids=("00000010",), force=True)
    planned = run(sqlite_shop, request)
    assert ids(planned) == {"new", "current"}
    assert (planned.planned, planned.current) == (2, 0)


def test_pages_are_asked_about_in_a_thread_and_stay_in_order(sqlite_shop, version, monkeypatch):
    """Of two items a page, in the order of their URLs; a third of them is current."""
    shop = sqlite_shop
    monkeypatch.setattr(plan, "_PAGE", 2)
    stocked = [f"i{number:02}" for number in range(9)]
    shop.stock(*stocked)
    done = stocked[::3]
    index_as_current(shop, *done, version=version)

    planned = run(shop)

    assert (planned.planned, planned.current) == (9, 3)
    rows = [row["item_id"] for row in packs.rows(planned.items)]
    assert rows == sorted(set(stocked) - set(done), key=url_of)
    assert set(planned.time_breakdown) == {"reading the catalogue", "asking Elasticsearch"}
    assert 0 < planned.time_breakdown["reading the catalogue"] <= planned.seconds
    assert Plan.load(planned.folder).time_breakdown == planned.time_breakdown
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("plan")]


def test_an_error_while_a_page_is_asked_about_ends_the_planning(sqlite_shop, monkeypatch):
    shop = sqlite_shop
    monkeypatch.setattr(plan, "_PAGE", 2)
    shop.stock(*(f"i{number}" for number in range(9)))
    SearchIndex(shop.services.search, shop.index).prepare()
    real, calls = SearchIndex.current, itertools.count(1)

    def fails(self, urls, version):
        if next(calls) == 2:
            raise ServiceUnavailableError("gone")
        return real(self, urls, version)

    monkeypatch.setattr(SearchIndex, "current", fails)
    with pytest.raises(ServiceUnavailableError, match="gone"):
        run(shop)
    # The third may have been asked about by then, and nothing after it.
    assert next(calls) <= 4
    assert not list(shop.data_dir.rglob("plan.json"))
    assert not list(shop.data_dir.rglob("items.parquet"))
    assert gc.get_freeze_count() == 0


def test_a_category_and_its_range(shop):
    shop.stock("a", "b", category_id="00000030")
    shop.stock("late", category_id="00000030", registered_at=NOON + timedelta(days=9))
    shop.stock("other", category_id="00000040")
    assert ids(run(shop, Request("d", "r", category_ids=("00000030",)))) == {"a", "b", "late"}
    until = Request("d", "r", end=NOON + timedelta(days=1), category_ids=("00000030", "00000040"))
    assert ids(run(shop, until)) == {"a", "b", "other"}
    since = Request("d", "r", start=NOON + timedelta(days=1), category_ids=("00000030",))
    assert ids(run(shop, since)) == {"late"}


def test_all_items_whatever_they_lack(shop):
    shop.stock("a", "named all", category_id="all")
    shop.stock("b", category_id=None)
    shop.stock("undated", "future", registered_at=NOON + timedelta(days=9_000))
    shop.catalogue.execute("alter table items rename to article")
    shop.catalogue.execute(
        "create view items as select item_id, item_name, category_id, img_url, "
        "case when item_id <> 'undated' then registered_at end as registered_at, updated_at from article"
    )
    everything = {"a", "named all", "b", "undated", "future"}
    planned = run(shop, Request("d", "r", all_items=True))
    assert (ids(planned), planned.origins) == (everything, {})
    named = Request("d", "r", category_ids=("all",))
    assert ids(run(shop, named, category_pattern="[a-z]+")) == {"a", "named all"}


def test_documents_whose_url_is_nowhere_stop_before_any_work(sqlite_shop):
    shop = sqlite_shop
    shop.catalogue.add("a", url_of("a"))
    shop.client.index(index=shop.index, id="a", document={"image": {"src": url_of("a")}}, refresh=True)
    before = state(shop)
    with pytest.raises(ConfigurationError, match="Set FEATURES_DOCUMENT_URL_FIELD"):
        run(shop)
    with pytest.raises(ConfigurationError, match="Set FEATURES_DOCUMENT_URL_FIELD"):
        run(shop, Request("d", "preview", category_ids=("00000010",), dry_run=True))
    assert state(shop) == before
    for other in ({"document_url_field": "none"}, {"create_documents": True}):
        assert ids(run(shop, **other)) == {"a"}
    assert ids(run(shop, document_url_field="image.src")) == {"a"}


@pytest.mark.parametrize("dry_run", [False, True])
def test_documents_with_a_routing_stop_before_any_work(sqlite_shop, dry_run):
    shop = sqlite_shop
    shop.stock("a")
    shop.client.index(index=shop.index, id="b", routing="x", document={"img_url": "u"}, refresh=True)
    before = state(shop)
    with pytest.raises(ConfigurationError, match="carry a routing"):
        run(shop, Request("d", "r", category_ids=("00000010",), dry_run=dry_run))
    assert state(shop) == before


def test_the_index_gets_its_fields(sqlite_shop):
    sqlite_shop.stock("a")
    run(sqlite_shop)
    described, *_ = state(sqlite_shop)
    assert described["mappings"]["properties"][FEATURE]["dims"] == 2048


def test_without_an_index_one_is_created(sqlite_shop):
    sqlite_shop.catalogue.add("a", "https://pictures.example/a.jpg")
    planned = run(sqlite_shop)
    assert ids(planned) == {"a"}
    described, documents, _ = state(sqlite_shop)
    assert described["mappings"]["properties"]["img_url"] == {"type": "keyword", "ignore_above": 8191}
    assert documents == {}


def test_an_empty_plan(sqlite_shop):
    sqlite_shop.stock("yesterday", registered_at=NOON - timedelta(days=1))
    planned = run(sqlite_shop)
    assert (planned.planned, planned.current, planned.chunks) == (0, 0, [])
    assert list(packs.rows(planned.items)) == []


def test_one_row_without_an_id_stops_nothing(sqlite_shop):
    sqlite_shop.stock("a")
    run(sqlite_shop)  # the index has our fields now, so what is current is asked for
    sqlite_shop.catalogue.add("", "https://pictures.example/x.jpg")
    sqlite_shop.catalogue.add(None, "https://pictures.example/z.jpg")
    sqlite_shop.catalogue.add("x" * 600, "https://pictures.example/y.jpg")
    sqlite_shop.catalogue.add("null", None)
    planned = run(sqlite_shop)
    assert (planned.planned, planned.current) == (5, 0)
    invalid = {row["item_id"] for row in packs.rows(planned.items) if row["invalid"]}
    assert invalid == {"(empty)", "(null)", f"{'x' * 119}…"}
    assert ids(planned) - invalid == {"a", "null"}


def test_every_planning_has_an_id_of_its_own(sqlite_shop):
    sqlite_shop.stock("a")
    folders = {run(sqlite_shop).folder for _ in range(3)}
    assert len(folders) == 3
    assert {folder.parent for folder in folders} == {sqlite_shop.data_dir / "nightly" / "r"}


# Dry run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("documents", [True, False], ids=["index", "no index"])
def test_a_dry_run_touches_nothing(shop, version, documents):
    for number in range(6):
        if documents:
            shop.stock(f"i{number}")
        else:
            shop.catalogue.add(f"i{number}", url_of(f"i{number}"))
    shop.catalogue.add("other", "u", category_id="00000020")
    if documents:
        # Someone else's way to have the field: nothing of ours but one feature.
        vector = {"type": "dense_vector", "dims": 2048, "similarity": "cosine"}
        keyword = {"type": "keyword"}
        fields = {FEATURE: vector, VERSION: keyword, URL: keyword}
        shop.client.indices.put_mapping(index=shop.index, properties=fields)
        doc = {FEATURE: some_vector(1).tolist(), VERSION: version, URL: url_of("i0")}
        shop.client.update(index=shop.index, id="i0", doc=doc, refresh=True)
    done = {
        "counts": {"indexed": 10},
        "bytes": 1_000_000,
        "seconds": 20,
        "stages": {"download": {"items": 10}},
    }
    write_json(reports.path(Request("nightly", "earlier"), shop.settings()), done)
    before = state(shop)

    planned = run(shop, Request("backfill", "look", category_ids=("00000010",), dry_run=True))

    assert state(shop) == before
    current = 1 if documents else 0
    assert (planned.planned, planned.current, planned.chunks) == (6, current, [])
    to_do = 6 - current
    assert planned.preview == {"bytes": to_do * 100_000, "seconds": to_do * 2.0, "from_runs": 1}


def test_a_dry_run_sees_what_would_be_refused(sqlite_shop):
    sqlite_shop.client.indices.create(
        index=sqlite_shop.index, mappings={"properties": {FEATURE: {"type": "dense_vector", "dims": 4}}}
    )
    with pytest.raises(ConfigurationError, match="dims"):
        run(sqlite_shop, Request("d", "r", category_ids=("00000010",), dry_run=True))


# What is refused before anything is touched ------------------------------------------------------


def test_a_second_version_is_refused_unless_allowed(sqlite_shop, version):
    sqlite_shop.stock("a", "b", "c")
    index_as_current(sqlite_shop, "a", "b", version="inception_v3-ffffffffffff-pad299")
    before = state(sqlite_shop)

    with pytest.raises(ConfigurationError) as refused:
        run(sqlite_shop)
    for part in ("inception_v3-ffffffffffff-pad299 (2 documents)", version, "FEATURES_MIX_VERSIONS"):
        assert part in str(refused.value)
    assert state(sqlite_shop) == before

    assert ids(run(sqlite_shop, mix_versions=True)) == {"a", "b", "c"}


def test_no_image_hosts(sqlite_shop):
    with pytest.raises(ConfigurationError, match="FEATURES_IMAGE_HOSTS"):
        run(sqlite_shop, image_hosts=())
    assert state(sqlite_shop) is None


def test_no_model(sqlite_shop, tmp_path):
    with pytest.raises(ConfigurationError, match="make model"):
        run(sqlite_shop, model_dir=tmp_path / "none")
    assert state(sqlite_shop) is None


def test_another_digest(sqlite_shop, version):
    with pytest.raises(ConfigurationError, match="FEATURES_MODEL_DIGEST"):
        run(sqlite_shop, model_digest="0" * 64)
    assert state(sqlite_shop) is None
    assert re.fullmatch(r"inception_v3-[0-9a-f]{12}-.+", version)


def test_a_catalogue_that_does_not_fit(shop):
    shop.catalogue.execute("alter table items rename column img_url to picture")
    with pytest.raises(ConfigurationError, match="img_url"):
        run(shop)
    assert state(shop) is None
    assert not list(shop.data_dir.glob("*/*/*/plan.json"))


def test_an_item_in_several_rows_is_refused_before_any_work(shop):
    shop.stock("p1", "p2")
    shop.catalogue.execute("alter table items rename to article")
    shop.catalogue.execute(
        "create view items as select item_id, item_name, category_id, img_url, registered_at, updated_at "
        "from article union all select item_id, item_name, category_id, 'https://a/2.jpg', registered_at, "
        "updated_at from article where item_id = 'p1'"
    )
    before = state(shop)
    with pytest.raises(ConfigurationError, match="gives item p1 twice"):
        run(shop)
    assert state(shop) == before
    assert not [path for path in shop.data_dir.rglob("*") if path.suffix in (".json", ".parquet")]


def test_missing_indexes_are_said_and_stop_nothing(new_shop, caplog):
    shop = new_shop("sqlite")
    shop.stock("a")
    shop.catalogue.execute("drop index items_updated_at")
    with caplog.at_level(logging.WARNING):
        planned = run(shop, Request("d", "r", NIGHT.start, NIGHT.end, notices=("from the request",)))
    assert ids(planned) == {"a"}
    assert planned.notices[0] == "from the request"
    assert "on items (updated_at)" in planned.notices[1]
    assert planned.notices[1] in caplog.messages
    assert len(planned.notices) == 2


# Chunks -----------------------------------------------------------------------------------------


@st.composite
def rows(draw):
    """Catalogue rows, those of one URL together, URLs null included."""
    runs = draw(st.lists(st.integers(1, 9), max_size=40))
    urls = [None if number == 0 else f"https://h{number % 3}/{number}" for number in range(len(runs))]
    return [
        {"img_url": url, "category_id": f"{number % 2:08}"}
        for number, (url, length) in enumerate(zip(urls, runs, strict=True))
        for _ in range(length)
    ]


@given(rows(), st.integers(1, 12))
def test_chunks_hold_every_item_once_and_share_no_url(rows, size):
    bounds, labels = chunk_bounds(rows, size)

    assert bounds[0] == 0
    assert bounds[-1] == len(rows)
    chunks = [rows[start:stop] for start, stop in itertools.pairwise(bounds)]
    assert [row for chunk in chunks for row in chunk] == rows
    assert len(labels) == len(chunks)
    assert all(chunks)
    seen = set()
    for chunk in chunks:
        urls = {row["img_url"] for row in chunk}
        assert not urls & seen
        seen |= urls
    for chunk in chunks[:-1]:
        assert len(chunk) >= size
        # No larger than it takes: without its last URL it would be too small.
        assert len([row for row in chunk if row["img_url"] != chunk[-1]["img_url"]]) < size


def test_labels_say_what_is_in_a_chunk():
    rows = [
        {"img_url": "https://user:secret@A.example/1", "category_id": "00000010"},
        {"img_url": "https://a.example/2", "category_id": "00000010"},
        {"img_url": "https://b.example:8443/1", "category_id": "00000010"},
        {"img_url": "http://[::1", "category_id": "00000020"},
    ]
    _, labels = chunk_bounds(rows, 2)
    assert labels == (
        "items 1-2 · category 00000010 · host a.example",
        "items 3-4 · 2 categories · 2 hosts",
    )


def test_items_that_share_a_url_are_in_one_chunk(sqlite_shop):
    for number in range(30):
        sqlite_shop.catalogue.add(f"i{number:02}", f"https://pictures.example/{number // 7}.jpg")
    planned = run(sqlite_shop, chunk_size=5)
    sizes = [chunk.stop - chunk.start for chunk in planned.chunks]
    assert sizes == [7, 7, 7, 7, 2]
    for chunk in planned.chunks:
        assert len({row["img_url"] for row in packs.slice_of(planned.items, chunk.start, chunk.stop)}) == 1


@pytest.mark.parametrize(
    ("to_do", "setting", "expected"),
    [
        (0, 500, 500),
        (1, 500, 500),
        (50_000, 500, 500),  # a hundred chunks
        (50_001, 500, 501),
        (1_000_000, 500, 10_000),
        (1_000_000, 20_000, 20_000),
        (2_000_000, 500, 20_000),
        (20_000_000, 500, 20_000),  # a thousand of the largest
        (99, 1, 1),
        (101, 1, 2),
    ],
)
def test_the_size_of_chunks(to_do, setting, expected):
    assert chunk_size(to_do, Settings(chunk_size=setting)) == expected


def test_more_than_a_thousand_chunks_are_refused():
    with pytest.raises(ConfigurationError, match=r"20000001 items .* Split the run"):
        chunk_size(20_000_001, Settings())


def test_times_of_the_plan(sqlite_shop):
    sqlite_shop.stock("a")
    before = datetime.now(NOON.tzinfo)
    planned = run(sqlite_shop)
    assert before <= planned.created_at <= before + timedelta(seconds=planned.seconds + 1)
    assert planned.seconds > 0


def test_a_url_that_very_many_items_share_is_cut(monkeypatch):
    monkeypatch.setattr(plan, "LARGEST_CHUNK", 10)
    rows = [{"img_url": None, "category_id": "00000010"}] * 25 + [
        {"img_url": "u", "category_id": "00000010"}
    ] * 3
    bounds, labels = plan.chunk_bounds(rows, 4)
    assert bounds == (0, 10, 20, 25, 28)
    assert len(labels) == 4


def test_a_label_keeps_to_what_airflow_can_hold():
    rows = [{"img_url": f"http://{'h' * 300}.example/", "category_id": "00000010"}]
    (label,) = plan.chunk_bounds(rows, 4)[1]
    assert len(label) < 250
    assert "category 00000010" in label


def test_a_label_shows_any_category_on_one_line():
    def label(*category_ids):
        return plan.chunk_bounds([{"img_url": None, "category_id": c} for c in category_ids], 9)[1][0]

    assert "category shoes/boots 신발 ·" in label("shoes/boots 신발")
    assert "no category ·" in label(None)
    assert "2 categories ·" in label(None, "None")
    long = "shoes/" * 50
    assert f"category {long[:59]}… ·" in label(long, long)
    assert "2 categories ·" in label(long, long + "x")
    assert "category a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER} ·" in label("a\nb\u202e")


# Names of categories ----------------------------------------------------------------------------


@pytest.fixture
def named(sqlite_shop, tmp_path):
    """A shop whose catalogue has names, and what a run's settings have to say of them."""
    sqlite_shop.catalogue.execute("create table categories (category_id text, category_name text)")
    statement = tmp_path / "names.sql"
    statement.write_text("select category_id, category_name from categories")

    def name(category_id, category_name):
        sqlite_shop.catalogue.execute(
            "insert into categories values (:id, :name)", {"id": category_id, "name": category_name}
        )

    name("00000010", "t-shirt")
    return sqlite_shop, name, {"category_names_sql": statement}


def test_labels_name_categories_and_the_names_stay_for_pages(named):
    shop, name, settings = named
    shop.stock("a")
    planned = run(shop, **settings)
    assert planned.labels == ("items 1-1 · category 00000010 t-shirt · host pictures.example",)
    assert CategoryNames.load(shop.settings()).of("00000010") == "00000010 t-shirt"
    shop.catalogue.execute("delete from categories")
    name("00000010", "{{ 7 * 7 }}" * 100)
    (label,) = run(shop, **settings).labels
    assert "category 00000010 {{ 7 * 7 }}{{" in label
    assert len(label) < 250
    assert run(shop).labels == ("items 1-1 · category 00000010 · host pictures.example",)


def test_a_broken_statement_of_names_is_refused_by_a_preview_and_ends_no_run(named, caplog):
    shop, _, settings = named
    shop.stock("a")
    run(shop, **settings)
    settings["category_names_sql"].write_text("select category_id, title from categories")
    dry = Request("d", "r", category_ids=("00000010",), dry_run=True)
    with pytest.raises(ConfigurationError, match=r"names\.sql .*title"):
        run(shop, dry, **settings)
    with caplog.at_level(logging.WARNING):
        planned = run(shop, **settings)
    assert planned.labels == ("items 1-1 · category 00000010 t-shirt · host pictures.example",)
    (notice,) = planned.notices
    assert "those of before" in notice
    assert "title" in notice
    assert notice in caplog.messages


def test_a_preview_leaves_the_names_as_they_are(named):
    shop, _, settings = named
    shop.stock("a")
    run(shop, Request("d", "r", category_ids=("00000010",), dry_run=True), **settings)
    assert CategoryNames.load(shop.settings()).of("00000010") == "00000010"


@pytest.mark.parametrize("request_", [{"category_ids": ("30",)}, {"retry": Retry(category_ids=("30",))}])
def test_a_category_that_cannot_be_is_refused(sqlite_shop, request_):
    with pytest.raises(ConfigurationError, match="'30' does not match FEATURES_CATEGORY_PATTERN"):
        run(sqlite_shop, Request("d", "r", **request_))
    assert state(sqlite_shop) is None


def test_categories_may_be_paths(shop):
    pattern = ".+"
    names = ["shoes/boots", "d'été", 'a"b', "신발 %s :x", "shoes"]
    for name in names:
        shop.stock(name, category_id=name)
    for name in names:
        assert ids(run(shop, Request("d", "r", category_ids=(name,)), category_pattern=pattern)) == {name}
    fail(shop, {"shoes/boots": Status.GONE, "shoes": Status.GONE}, categories={"shoes/boots": "shoes/boots"})
    chosen = Request("retry", "r", retry=Retry(category_ids=("shoes/boots",)))
    assert ids(run(shop, chosen, category_pattern=pattern)) == {"shoes/boots"}


def test_a_run_that_names_nothing_is_not_one_over_everything(sqlite_shop):
    with pytest.raises(ConfigurationError, match="neither categories nor times"):
        plan.run(Request("d", "r"), sqlite_shop.settings(), sqlite_shop.services)


def fail(shop, statuses, *, at=NOON, item_urls=None, categories=None, plan="plan-1"):
    """Write failures into the ledger as a run planned `at` that time would: {item id: status}."""
    settings = shop.settings()
    planned = Plan(shop.data_dir / "earlier" / "r" / plan, NIGHT, "v", len(statuses), 0, at)
    outcomes = [
        ItemOutcome(
            item_id,
            (categories or {}).get(item_id, "00000010"),
            (item_urls or {}).get(item_id, url_of(item_id)),
            status,
            "why",
        )
        for item_id, status in statuses.items()
    ]
    Ledger(shop.services.ledger, settings).record(planned, outcomes, now=at)


def retry(shop, **chosen):
    return run(shop, Request("retry", "r", retry=Retry(**chosen)))


def settled(planned):
    return {row["item_id"] for row in packs.rows(planned.resolved)}


def test_a_retry_plans_what_is_due_as_the_catalogue_has_it_now(shop, version):
    shop.stock("due", "not yet", "by hand only", "current", "never failed")
    index_as_current(shop, "current", version=version)
    shop.stock("moved", img_url="https://pictures.example/new.jpg")
    fail(
        shop,
        {"due": Status.GONE, "by hand only": Status.TOO_LARGE, "current": Status.GONE, "left": Status.GONE}
        | {"moved": Status.GONE},
    )
    fail(shop, {"not yet": Status.GONE}, at=datetime.now(UTC))

    planned = retry(shop)
    assert ids(planned) == {"due", "moved"}
    assert (planned.planned, planned.current) == (3, 1)
    assert settled(planned) == {"current", "left"}
    (moved,) = [row for row in packs.rows(planned.items) if row["item_id"] == "moved"]
    assert moved["img_url"] == "https://pictures.example/new.jpg"


def test_a_retry_by_hand_takes_what_matches_due_or_not(sqlite_shop):
    shop = sqlite_shop
    shop.stock("a", "b", "c", "d")
    now = datetime.now(UTC)
    fail(shop, {"a": Status.GONE, "b": Status.TOO_LARGE, "c": Status.BLOCKED_ADDRESS}, at=now)
    assert ids(retry(shop)) == set()
    assert ids(retry(shop, statuses=(Status.TOO_LARGE, Status.GONE))) == {"a", "b"}
    assert ids(retry(shop, item_ids=("c", "d"))) == {"c"}
    assert ids(retry(shop, category_ids=("00000010",))) == {"a", "b", "c"}
    assert ids(retry(shop, category_ids=("00000020",))) == set()
    assert ids(retry(shop, item_ids=("a", "b"), statuses=(Status.GONE,))) == {"a"}


def test_a_retry_fetches_a_url_that_items_share_once(sqlite_shop):
    names = [f"{number:02}" for number in range(20)]
    urls = {name: f"https://pictures.example/{int(name) % 3}.jpg" for name in names}
    for name in names:
        sqlite_shop.stock(name, img_url=urls[name])
    fail(sqlite_shop, dict.fromkeys(names, Status.GONE), item_urls=urls)
    planned = run(sqlite_shop, Request("retry", "r", retry=Retry()), chunk_size=5)
    chunks = [
        {row["img_url"] for row in packs.slice_of(planned.items, chunk.start, chunk.stop)}
        for chunk in planned.chunks
    ]
    assert sum(map(len, chunks)) == 3, "no URL is in two chunks"


def test_a_retry_without_a_ledger_has_nothing_to_do(sqlite_shop):
    sqlite_shop.stock("a")
    planned = retry(sqlite_shop)
    assert (planned.planned, planned.chunks, settled(planned)) == (0, [], set())
    assert not (sqlite_shop.data_dir / "ledger.db").exists(), "planning writes no ledger"


def test_a_forced_run_s_failure_is_tried_again_though_the_old_feature_is_there(sqlite_shop, version):
    shop = sqlite_shop
    shop.stock("a", "b")
    index_as_current(shop, "a", "b", version=version)
    for item_id, at in (("a", NOON - timedelta(days=1)), ("b", NOON)):
        shop.client.update(index=shop.index, id=item_id, doc={AT: at.isoformat()}, refresh=True)
    # Both failed in a run planned at noon; b has got its feature from that very run since.
    fail(shop, {"a": Status.TIMED_OUT, "b": Status.UNFINISHED}, at=NOON)
    planned = retry(shop)
    assert ids(planned) == {"a"}
    assert settled(planned) == {"b"}


def test_what_the_index_made_of_a_feature_that_was_refused_is_replaced(sqlite_shop, version):
    """The index held other values than were written: that feature has the time of the plan that failed."""
    shop = sqlite_shop
    shop.stock("altered", "mended", "of another")
    index_as_current(shop, "altered", "mended", "of another", version=version)
    times = {"altered": NOON, "mended": NOON + timedelta(hours=1), "of another": NOON}
    for item_id, at in times.items():
        shop.client.update(index=shop.index, id=item_id, doc={AT: at.isoformat()}, refresh=True)
    fail(shop, dict.fromkeys(["altered", "mended"], Status.REJECTED) | {"of another": Status.GONE}, at=NOON)
    planned = retry(shop)
    assert ids(planned) == {"altered"}
    assert settled(planned) == {"mended", "of another"}


def test_what_is_given_up_is_settled_without_being_tried(sqlite_shop, version):
    shop = sqlite_shop
    shop.stock("stays", "current again")
    index_as_current(shop, "current again", version=version)
    fail(
        shop,
        {"stays": Status.TOO_LARGE, "left": Status.TOO_LARGE, "current again": Status.TOO_LARGE},
        item_urls={"current again": "https://pictures.example/another.jpg"},
    )
    planned = retry(shop)
    assert (planned.planned, planned.chunks) == (0, [])
    assert settled(planned) == {"left", "current again"}
    # By hand only what was asked for is looked at.
    assert settled(retry(shop, item_ids=("left",))) == {"left"}
    assert settled(retry(shop, item_ids=("none",))) == set()


def test_a_retry_takes_so_many_at_most_and_says_how_many_more_are_due(sqlite_shop):
    sqlite_shop.stock("a", "b", "c")
    for hours, item_id in enumerate("cba"):
        fail(sqlite_shop, {item_id: Status.GONE}, at=NOON + timedelta(hours=hours), plan=f"plan-{hours}")
    planned = run(sqlite_shop, Request("retry", "r", retry=Retry()), retry_items=2)
    assert ids(planned) == {"b", "c"}
    (notice,) = planned.notices
    assert notice.startswith("1 more items are due than the 2 that a retry takes (FEATURES_RETRY_ITEMS)")


@pytest.mark.parametrize("chosen", [{}, {"statuses": (Status.UNFINISHED,)}], ids=["due", "by hand"])
def test_a_retry_leaves_a_run_at_work_its_items(sqlite_shop, chosen):
    shop = sqlite_shop
    shop.stock("a")
    fail(shop, {"a": Status.UNFINISHED})  # by the run r of the DAG nightly

    def planned(of, at_work):
        request = Request(*of, retry=Retry(**chosen))
        return plan.run(request, shop.settings(), shop.services, is_active=lambda *run: run == at_work)

    left = planned(("retry", "r"), at_work=("nightly", "r"))
    assert (left.planned, settled(left)) == (0, set())
    assert left.notices == ("Runs that are at work keep their items: nightly r.",)
    assert ids(planned(("retry", "r"), at_work=("nightly", "another"))) == {"a"}
    # Planned again, a retry is itself at work.
    assert ids(planned(("nightly", "r"), at_work=("nightly", "r"))) == {"a"}


def test_what_is_given_up_is_looked_through_once_a_day(sqlite_shop):
    shop = sqlite_shop
    fail(shop, {"left": Status.TOO_LARGE})
    first = retry(shop)
    assert (first.swept, settled(first)) == (True, {"left"})
    assert Plan.load(first.folder).swept
    book = Ledger(shop.services.ledger, shop.settings())
    book.record(first, [])
    second = retry(shop)
    assert (second.swept, settled(second)) == (False, set())


def test_planning_nothing_leaves_the_index_alone(sqlite_shop):
    assert retry(sqlite_shop).planned == 0
    assert not sqlite_shop.client.indices.exists(index=sqlite_shop.index)
