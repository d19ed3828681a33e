"""Tests of tasks/stages/index.py: chosen features written into a real Elasticsearch. What others do
in between is done by hooks around the real client."""

import itertools
import threading
import uuid
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.inference.model import Identity
from tasks.runs import packs
from tasks.search.index import SearchIndex
from tasks.search.mapping import AT, COMPACT, COMPACT_VERSION, FEATURE, GROUP, IMAGE, URL, VERSION
from tasks.search.writing import Writer
from tasks.space.published import folder, publish, published
from tasks.space.vectors import roots
from tasks.stages import index
from tasks.statuses import Status
from tests.plans import plan_over
from tests.shop_fixtures import FEATURE_VERSION, some_vector, url_of
from tests.tasks.space.synthetic import compact_of, some_space

NEXT_URL = "https://pictures.example/next.jpg"


def prepare(shop):
    SearchIndex(shop.services.search, shop.index).prepare()


def run(shop, chunk, **changes):
    """Index the chunk; every item's status by id, after the counts were seen to agree."""
    statistics = index.run(chunk, shop.settings(**changes), shop.services)
    statuses = {row["item_id"]: row["status"] for row in packs.rows(chunk.outcomes)}
    assert statistics["counts"] == Counter(statuses.values())
    assert sum(statistics["counts"].values()) == statistics["items"] == chunk.stop - chunk.start
    return statuses


def holds(shop, item_id, vector):
    """Whether the index has this vector: for cosine it keeps length and direction apart, so the last bit
    of a float32 may differ."""
    return np.allclose(shop.vector(item_id), vector, rtol=3e-7, atol=0)


def reasons(chunk):
    return {row["item_id"]: row["reason"] for row in packs.rows(chunk.outcomes)}


@pytest.fixture
def between(monkeypatch):
    """between(method, hook): call `hook` after each call of that method of SearchIndex."""

    def set_hook(method, hook, times=1):
        real = getattr(SearchIndex, method)
        left = itertools.count(times, -1)

        def hooked(self, *arguments):
            result = real(self, *arguments)
            if method == "write":
                result = list(result)
            if next(left) > 0:
                hook()
            return result

        monkeypatch.setattr(SearchIndex, method, hooked)

    return set_hook


# What is written --------------------------------------------------------------------------------


def test_features_are_written_and_found(shop):
    shop.stock("a", "007", "KR-1", "no picture", "refused")
    prepare(shop)
    vectors = {item_id: some_vector(seed) for seed, item_id in enumerate(["a", "007", "KR-1"])}
    before = datetime.now(UTC)
    chunk = shop.chunk(vectors | {"no picture": Status.GONE})

    assert run(shop, chunk) == {"a": "indexed", "007": "indexed", "KR-1": "indexed", "no picture": "gone"}

    for item_id, vector in vectors.items():
        assert holds(shop, item_id, vector)
        source = shop.sources()[item_id]
        assert source[VERSION] == FEATURE_VERSION
        assert source[URL] == url_of(item_id)
        (picture,) = [row for row in packs.rows(chunk.pictures) if row["img_url"] == url_of(item_id)]
        assert source[IMAGE] == picture["sha256"]
        assert before - timedelta(seconds=1) < datetime.fromisoformat(source[AT]) < datetime.now(UTC)
        # The neighbour of a slightly different picture is the item itself.
        near = {"field": FEATURE, "query_vector": (vector * 1.01 + 0.001).tolist(), "k": 1}
        near["filter"] = {"term": {VERSION: FEATURE_VERSION}}
        hits = shop.client.search(index=shop.index, knn=near, source=False)["hits"]["hits"]
        assert [hit["_id"] for hit in hits] == [item_id]
    assert FEATURE not in shop.sources()["no picture"]
    assert reasons(chunk)["no picture"] == "as chosen"


def test_items_of_one_picture_each_get_it(sqlite_shop):
    shop = sqlite_shop
    shop.stock("a", "b", "c")
    shop.stock("d", "e", img_url="https://pictures.example/shared.jpg")
    prepare(shop)
    same = some_vector(1)
    shared = some_vector(2)
    chunk = shop.chunk({"a": same, "b": same, "c": same, "d": shared, "e": shared})
    assert set(run(shop, chunk).values()) == {"indexed"}
    assert all(holds(shop, item_id, same) for item_id in "abc")
    assert all(holds(shop, item_id, shared) for item_id in "de")


def test_other_fields_keep_their_values(sqlite_shop):
    shop = sqlite_shop
    others = {
        "price": 1.10,
        "stock": 12345678901234567,
        "tiny": 1e-320,
        "ratio": 0.1 + 0.2,
        "on_sale": False,
        "brand": None,
        "tags": ["b", "a", "b", None],
        "sizes": [[1, 2], []],
        "nested": {"deep": {"er": [{"x": 1}, {"x": 2, "y": "ü"}]}, "empty": {}},
        "dotted.name": "kept",
        "text": 'quotes " and \\ and \n and 셔츠 and 👗',
        "imagenet_feature_of_someone_else": "kept",
    }
    shop.catalogue.add("a", url_of("a"))
    shop.write_document("a", **others)
    before = shop.sources()["a"]
    prepare(shop)
    assert run(shop, shop.chunk({"a": some_vector(1)})) == {"a": "indexed"}
    after = shop.sources()["a"]
    ours = {FEATURE, VERSION, URL, IMAGE, AT, GROUP}
    assert {name: value for name, value in after.items() if name not in ours} == before
    assert shop.client.count(index=shop.index, q="nested.deep.er.y:ü")["count"] == 1


MODEL = Identity(FEATURE_VERSION)


def publish_one(shop, seed=0, model=MODEL):
    """A published space."""
    publish(some_space(model, seed), shop.settings())
    return published(shop.settings(), model)


def test_compact_vectors_are_written_beside_features(sqlite_shop):
    shop = sqlite_shop
    shop.stock("a", "b")
    prepare(shop)
    space = publish_one(shop)
    assert run(shop, shop.chunk({"a": some_vector(1), "b": some_vector(2)}), bulk_size=1)
    for item_id, seed in {"a": 1, "b": 2}.items():
        np.testing.assert_allclose(
            shop.vector(item_id, COMPACT), compact_of(space, some_vector(seed)), atol=1e-6
        )
        assert shop.sources()[item_id][COMPACT_VERSION] == space.version


def test_without_a_space_of_these_features_there_are_no_compact_vectors(sqlite_shop):
    shop = sqlite_shop
    shop.stock("a", "b", "c")
    prepare(shop)
    assert run(shop, shop.chunk({"a": some_vector(1)})) == {"a": "indexed"}
    publish_one(shop, model=Identity("of another model"))
    assert run(shop, shop.chunk({"b": some_vector(2)})) == {"b": "indexed"}
    (folder(shop.settings()) / "published.json").write_text("{")
    assert run(shop, shop.chunk({"c": some_vector(3)})) == {"c": "indexed"}
    for item_id, seed in {"a": 1, "b": 2, "c": 3}.items():
        assert holds(shop, item_id, some_vector(seed))
        assert not {COMPACT, COMPACT_VERSION} & set(shop.sources()[item_id])
        assert shop.vector(item_id, COMPACT).size == 0


def test_the_compact_vector_of_the_feature_before_goes(sqlite_shop):
    shop = sqlite_shop
    shop.stock("a")
    prepare(shop)
    first = publish_one(shop, 1)
    assert run(shop, shop.chunk({"a": some_vector(1)}, run="first")) == {"a": "indexed"}
    second = publish_one(shop, 2)
    assert run(shop, shop.chunk({"a": some_vector(2)}, run="second")) == {"a": "indexed"}
    assert shop.sources()["a"][COMPACT_VERSION] == second.version != first.version
    np.testing.assert_allclose(shop.vector("a", COMPACT), compact_of(second, some_vector(2)), atol=1e-6)

    (folder(shop.settings()) / "published.json").unlink()
    assert run(shop, shop.chunk({"a": some_vector(3)}, run="third")) == {"a": "indexed"}
    assert holds(shop, "a", some_vector(3))
    assert shop.vector("a", COMPACT).size == 0
    assert shop.sources()["a"].get(COMPACT_VERSION) is None
    assert shop.client.count(index=shop.index, query={"exists": {"field": COMPACT}})["count"] == 0


def test_a_space_that_is_published_while_a_chunk_is_written_is_taken_from_then_on(sqlite_shop, between):
    shop = sqlite_shop
    ids, chunk = stocked(shop, 4)
    first, spaces = publish_one(shop, 1), []
    between("write", lambda: spaces.append(publish_one(shop, 2)))
    ended = run(shop, chunk, bulk_size=1, bulk_requests=1)
    assert ended == dict.fromkeys(ids, "indexed"), reasons(chunk)
    held = Counter(source[COMPACT_VERSION] for source in shop.sources().values())
    # The page after the first is packed while that is written.
    assert held[first.version] in (1, 2)
    assert held == {first.version: held[first.version], spaces[0].version: 4 - held[first.version]}
    by_version = {space.version: space for space in (first, *spaces)}
    for seed, item_id in enumerate(ids):
        space = by_version[shop.sources()[item_id][COMPACT_VERSION]]
        np.testing.assert_allclose(
            shop.vector(item_id, COMPACT), compact_of(space, some_vector(seed)), atol=1e-6
        )


def test_a_feature_without_a_compact_direction_is_written_alone(sqlite_shop):
    """It is the mean of all, so that nothing of it is left once that is taken away."""
    shop = sqlite_shop
    shop.stock("mean", "other")
    prepare(shop)
    space, mean = some_space(MODEL), some_vector(9)
    compact = replace(space.compact, mean=roots(mean[np.newaxis])[0])
    publish(replace(space, compact=compact), shop.settings())
    chunk = shop.chunk({"mean": mean, "other": some_vector(1)})
    assert run(shop, chunk) == {"mean": "indexed", "other": "indexed"}
    assert holds(shop, "mean", mean)
    assert shop.vector("mean", COMPACT).size == 0
    assert shop.vector("other", COMPACT).size == 128


@pytest.mark.parametrize("bulk_size", [1, 2, 500])
def test_pages_of_any_size(sqlite_shop, bulk_size):
    ids = [f"i{number}" for number in range(5)]
    sqlite_shop.stock(*ids)
    prepare(sqlite_shop)
    chunk = sqlite_shop.chunk({item_id: some_vector(1) for item_id in ids})
    assert run(sqlite_shop, chunk, bulk_size=bulk_size) == dict.fromkeys(ids, "indexed")


def test_ids_of_all_kinds(sqlite_shop):
    shop = sqlite_shop
    good = ["007", "a b", "a/b?c#d%20", "셔츠", '"quoted"\\', "..", "_all", "é" * 256, "x" * 512]
    shop.stock(*good)
    prepare(shop)
    chunk = shop.chunk({item_id: some_vector(1) for item_id in good})
    assert run(shop, chunk) == dict.fromkeys(good, "indexed")
    assert set(shop.sources()) == set(good)


# What is skipped ---------------------------------------------------------------------------------


def test_a_missing_document_is_waited_for_and_not_made(shop):
    shop.stock("there")
    shop.catalogue.add("missing", "https://pictures.example/m.jpg")
    prepare(shop)
    statuses = run(shop, shop.chunk({"there": some_vector(1), "missing": some_vector(2)}))
    assert statuses == {"there": "indexed", "missing": "waiting_for_document"}
    assert set(shop.sources()) == {"there"}


def test_a_document_with_another_url(shop):
    """Who is behind, the document or the plan, the catalogue knows."""
    shop.stock("late document", "moved on", "left", "both moved")
    prepare(shop)
    chunk = shop.chunk({i: some_vector(1) for i in ["late document", "moved on", "left", "both moved"]})
    shop.write_document("late document", img_url="https://pictures.example/before.jpg")
    shop.catalogue.change("moved on", img_url=NEXT_URL)
    shop.write_document("moved on", img_url=NEXT_URL)
    shop.catalogue.execute("delete from items where item_id = 'left'")
    shop.write_document("left", img_url=NEXT_URL)
    shop.catalogue.change("both moved", img_url=NEXT_URL)
    shop.write_document("both moved", img_url="https://pictures.example/third.jpg")
    before = shop.sequence_numbers()

    assert run(shop, chunk) == {
        "late document": "waiting_for_document",
        "moved on": "superseded",
        "left": "superseded",
        "both moved": "superseded",
    }
    assert shop.sequence_numbers() == before


def test_a_url_that_only_the_catalogue_changed(sqlite_shop):
    """The document still has the URL that the feature is of: it is right until the core server writes."""
    shop = sqlite_shop
    shop.stock("a")
    prepare(shop)
    chunk = shop.chunk({"a": some_vector(1)})
    shop.catalogue.change("a", img_url=NEXT_URL)
    assert run(shop, chunk) == {"a": "indexed"}
    assert shop.sources()["a"][URL] == url_of("a")


@pytest.mark.parametrize(
    "document",
    [
        {"image": {"src": url_of("a")}},
        {"image.src": url_of("a")},
        {"image": [{"src": [url_of("a")]}]},
        {"image": [{"src": "https://pictures.example/back.jpg"}, {"src": url_of("a")}]},
    ],
    ids=["object", "key", "list", "several"],
)
def test_the_url_stands_where_the_shop_says(sqlite_shop, document):
    shop = sqlite_shop
    shop.catalogue.add("a", url_of("a"))
    shop.client.index(index=shop.index, id="a", document=document, refresh=True)
    prepare(shop)
    chunk = shop.chunk({"a": some_vector(1)})
    assert run(shop, chunk, document_url_field="image.src") == {"a": "indexed"}
    assert document.items() <= shop.sources()["a"].items()
    assert holds(shop, "a", some_vector(1))


def test_a_list_of_one_url_is_that_one(sqlite_shop):
    shop = sqlite_shop
    shop.catalogue.add("a", url_of("a"))
    shop.catalogue.add("b", url_of("b"))
    shop.write_document("a", img_url=[url_of("a")])
    shop.write_document("b", img_url=["https://pictures.example/before.jpg"])
    prepare(shop)
    statuses = run(shop, shop.chunk({"a": some_vector(1), "b": some_vector(2)}))
    assert statuses == {"a": "indexed", "b": "waiting_for_document"}


def test_documents_of_another_shape_lag_behind_too(sqlite_shop):
    """Also where the former picture has become one among several: the catalogue says which one counts."""
    shop = sqlite_shop
    old, new = "https://pictures.example/old.jpg", "https://pictures.example/new.jpg"
    for item_id, urls in {"late": [old], "moved": [new, old], "left": [new, old], "none": []}.items():
        shop.catalogue.add(item_id, new if item_id in ("late", "none") else old)
        document = {"image": [{"src": url} for url in urls]}
        shop.client.index(index=shop.index, id=item_id, document=document, refresh=True)
    prepare(shop)
    chunk = shop.chunk({item_id: some_vector(1) for item_id in ("late", "moved", "left", "none")})
    shop.catalogue.change("moved", img_url=new)
    shop.catalogue.execute("delete from items where item_id = 'left'")
    before = shop.sequence_numbers()
    assert run(shop, chunk, document_url_field="image.src") == {
        "late": "waiting_for_document",
        "moved": "superseded",
        "left": "superseded",
        "none": "waiting_for_document",
    }
    assert shop.sequence_numbers() == before


def test_where_documents_hold_no_url_the_catalogue_s_counts(shop):
    for item_id in ("same", "moved", "left", "missing"):
        shop.catalogue.add(item_id, url_of(item_id))
        if item_id != "missing":
            # What stands where others hold the URL says nothing of the picture.
            shop.write_document(item_id, img_url="of something else")
    prepare(shop)
    chunk = shop.chunk({i: some_vector(1) for i in ("same", "moved", "left", "missing")})
    shop.catalogue.change("moved", img_url=NEXT_URL)
    shop.catalogue.execute("delete from items where item_id = 'left'")
    assert run(shop, chunk, document_url_field="none") == {
        "same": "indexed",
        "moved": "superseded",
        "left": "superseded",
        "missing": "waiting_for_document",
    }
    before = shop.sequence_numbers()
    chunk.outcomes.unlink()
    run(shop, chunk, document_url_field="none")
    assert shop.sequence_numbers() == before


def test_newer_work_is_not_overwritten(sqlite_shop):
    shop = sqlite_shop
    shop.stock("a", "b")
    prepare(shop)
    stale = shop.chunk({"a": some_vector(1), "b": some_vector(2)}, run="stale")
    newer = shop.chunk({"a": some_vector(3)}, run="newer")
    assert run(shop, newer) == {"a": "indexed"}
    before = shop.sequence_numbers()

    assert run(shop, stale) == {"a": "superseded", "b": "indexed"}
    assert shop.sequence_numbers()["a"] == before["a"]
    assert holds(shop, "a", some_vector(3))


def group(shop, item_id):
    return shop.sources()[item_id][GROUP]


def test_another_picture_leaves_the_group_and_the_same_one_stays_in_it(sqlite_shop):
    shop = sqlite_shop
    shop.stock("a", "b")
    prepare(shop)
    assert run(shop, shop.chunk({"a": some_vector(1), "b": some_vector(1)}, run="first"))["a"] == "indexed"
    picture = shop.sources()["a"][IMAGE]
    assert group(shop, "a") == group(shop, "b") == picture, "the same bytes are the same picture"
    shop.client.update(index=shop.index, id="a", doc={GROUP: "that of another picture"})

    assert run(shop, shop.chunk({"a": some_vector(1)}, run="again")) == {"a": "indexed"}
    assert group(shop, "a") == "that of another picture"

    assert run(shop, shop.chunk({"a": some_vector(2)}, run="changed")) == {"a": "indexed"}
    assert group(shop, "a") == shop.sources()["a"][IMAGE] != picture


def test_older_work_is_overwritten(sqlite_shop):
    shop = sqlite_shop
    shop.stock("a")
    prepare(shop)
    assert run(shop, shop.chunk({"a": some_vector(1)}, run="first")) == {"a": "indexed"}
    assert run(shop, shop.chunk({"a": some_vector(2)}, run="second")) == {"a": "indexed"}
    assert holds(shop, "a", some_vector(2))


def test_an_older_plan_that_writes_later_is_overwritten(sqlite_shop):
    """It had the old picture of the same URL, and wrote it after the newer run had planned."""
    shop = sqlite_shop
    shop.stock("a")
    prepare(shop)
    old = shop.chunk({"a": some_vector(1)}, run="old")
    new = shop.chunk({"a": some_vector(2)}, run="new")
    assert run(shop, old) == {"a": "indexed"}
    assert run(shop, new) == {"a": "indexed"}
    assert holds(shop, "a", some_vector(2))


def test_a_feature_of_another_url_is_no_newer_work(sqlite_shop):
    """An older plan's write, of the URL before, that came after we planned."""
    shop = sqlite_shop
    shop.stock("a")
    prepare(shop)
    old = shop.chunk({"a": some_vector(1)}, run="old")
    shop.catalogue.change("a", img_url=NEXT_URL)
    new = shop.chunk({"a": some_vector(2)}, run="new")
    assert run(shop, old) == {"a": "indexed"}
    shop.client.update(index=shop.index, id="a", doc={"img_url": NEXT_URL})  # the core server, in part
    assert run(shop, new) == {"a": "indexed"}
    assert holds(shop, "a", some_vector(2))


@pytest.mark.parametrize("at", [1_700_000_000_000, "2026-10-01T00:00:00", "1700000000000", "2026-10-01"])
def test_a_time_that_we_did_not_write_stops_nothing(sqlite_shop, at):
    """Somebody else's software wrote the field; the mapping takes all of these."""
    shop = sqlite_shop
    shop.stock("a")
    prepare(shop)
    shop.write_document("a", **{AT: at, URL: url_of("a")})
    chunk = shop.chunk({"a": some_vector(1)})
    assert run(shop, chunk) == {"a": "indexed"}
    assert shop.sources()["a"][AT] == chunk.plan.created_at.isoformat()


# Another index ----------------------------------------------------------------------------------


@pytest.fixture
def behind_alias(sqlite_shop):
    """A shop whose index is an alias of index -1, which has our fields; index -2 has documents alone."""
    shop = sqlite_shop
    shop.stock("a", "b")
    for number in (1, 2):
        concrete = replace(shop, index=f"{shop.index}-{number}")
        for item_id in "ab":
            concrete.write_document(item_id)
    shop.client.indices.delete(index=shop.index)
    shop.client.indices.put_alias(index=f"{shop.index}-1", name=shop.index)
    prepare(shop)
    return shop


def move_alias(shop):
    actions = [
        {"remove": {"index": f"{shop.index}-1", "alias": shop.index}},
        {"add": {"index": f"{shop.index}-2", "alias": shop.index}},
    ]
    shop.client.indices.update_aliases(actions=actions)


def vector_type(shop):
    (described,) = shop.client.indices.get_mapping(index=shop.index).values()
    return described["mappings"]["properties"].get(FEATURE, {}).get("type")


def test_an_alias_that_moved_since_the_plan(behind_alias):
    """The index that it leads to now must not guess a mapping from the first vector."""
    shop = behind_alias
    chunk = shop.chunk({"a": some_vector(1), "b": some_vector(2)})
    move_alias(shop)
    assert run(shop, chunk) == {"a": "indexed", "b": "indexed"}
    assert vector_type(shop) == "dense_vector"
    assert holds(shop, "a", some_vector(1))


def test_an_alias_that_moves_between_read_and_write(behind_alias, between):
    """A sequence number of the one index means nothing in the other."""
    shop = behind_alias
    chunk = shop.chunk({"a": some_vector(1), "b": some_vector(2)})
    between("documents", lambda: move_alias(shop))
    with pytest.raises(ServiceUnavailableError, match="stands for another index"):
        run(shop, chunk)
    assert not chunk.outcomes.exists()
    assert vector_type(shop) is None
    assert run(shop, chunk) == {"a": "indexed", "b": "indexed"}
    assert vector_type(shop) == "dense_vector"


def test_an_index_that_is_gone_is_not_made(sqlite_shop):
    sqlite_shop.catalogue.add("a", url_of("a"))
    chunk = sqlite_shop.chunk({"a": some_vector(1)})
    with pytest.raises(ServiceUnavailableError, match=f"{sqlite_shop.index} .*not there"):
        run(sqlite_shop, chunk)
    assert not sqlite_shop.client.indices.exists(index=sqlite_shop.index)


# Every item once --------------------------------------------------------------------------------

URLS = ["u0", "u1", "u2", "u3", None]
PICTURES = [None, None, Status.CORRUPT, Status.VECTOR_REFUSED]
"""What extract says of each: None is a feature."""


@pytest.fixture
def without_documents(sqlite_shop):
    prepare(sqlite_shop)
    return sqlite_shop


@hypothesis_settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    urls=st.lists(st.sampled_from(URLS), min_size=1, max_size=12).map(lambda urls: sorted(urls, key=str)),
    downloaded=st.lists(
        st.sampled_from([0, 1, 2, 3, Status.GONE, Status.TOO_LARGE]),
        min_size=len(URLS),
        max_size=len(URLS),
    ),
)
def test_every_item_ends_once_whatever_the_packs_say(without_documents, urls, downloaded):
    """Items of one URL, URLs of one picture, and pictures without a feature, in any mixture."""
    shop = without_documents
    (chunk,) = plan_over(shop.data_dir / uuid.uuid4().hex, urls).chunks
    found = {url: end for url, end in zip(URLS, downloaded, strict=True) if url in urls}
    pictures = {end for end in found.values() if not isinstance(end, Status)}
    with packs.writing(chunk.pictures, packs.PICTURES) as pack:
        for url, end in found.items():
            failed = {"status": end, "reason": "no picture"}
            pack.add({"img_url": url} | ({"sha256": str(end)} if end in pictures else failed))
    with packs.writing(chunk.features, packs.FEATURES) as pack:
        for picture in pictures:
            failed = {"status": PICTURES[picture], "reason": "no feature"}
            feature = {"feature": some_vector(picture).tobytes()}
            pack.add({"sha256": str(picture)} | (failed if PICTURES[picture] else feature))

    run(shop, chunk, bulk_size=3)

    rows = list(packs.rows(chunk.outcomes))
    assert [(row["item_id"], row["img_url"]) for row in rows] == [
        (f"{number:08}", url) for number, url in enumerate(urls)
    ]
    for row in rows:
        end = found[row["img_url"]]
        failure = PICTURES[end] if end in pictures else end
        assert row["status"] == (failure or "waiting_for_document")


# Several requests at once -----------------------------------------------------------------------


@pytest.fixture
def around_write(monkeypatch):
    """around_write(hook): pass each bulk through hook(item ids of the page, the real write of it)."""
    real = SearchIndex.write

    def set_hook(hook):
        def hooked(self, actions):
            actions = list(actions)
            return hook([action["_id"] for action in actions], lambda: list(real(self, actions)))

        monkeypatch.setattr(SearchIndex, "write", hooked)

    return set_hook


def stocked(shop, count):
    """A chunk of so many items, and their ids."""
    ids = [f"i{number:02}" for number in range(count)]
    shop.stock(*ids)
    prepare(shop)
    return ids, shop.chunk({item_id: some_vector(seed) for seed, item_id in enumerate(ids)})


def writing_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("index")]


@pytest.mark.parametrize("bulk_requests", [1, 3])
def test_as_many_requests_are_under_way_at_once_as_allowed(sqlite_shop, around_write, bulk_requests):
    ids, chunk = stocked(sqlite_shop, 6)
    meet = threading.Barrier(bulk_requests)
    lock, under_way, most = threading.Lock(), set(), []

    def together(item_ids, write):
        with lock:
            under_way.update(item_ids)
            most.append(len(under_way))
        meet.wait(60)
        answers = write()
        with lock:
            under_way.difference_update(item_ids)
        return answers

    around_write(together)
    assert run(sqlite_shop, chunk, bulk_size=1, bulk_requests=bulk_requests) == dict.fromkeys(ids, "indexed")
    assert max(most) == bulk_requests
    assert writing_threads() == []


def test_outcomes_do_not_depend_on_the_order_in_which_pages_are_done(sqlite_shop, around_write):
    shop = sqlite_shop
    ids = ["gone", "late", "missing", "there", "zeros"]
    shop.stock("gone", "there", "zeros")
    for item_id in ("late", "missing"):
        shop.catalogue.add(item_id, url_of(item_id))
    shop.write_document("late", img_url="https://pictures.example/before.jpg")
    prepare(shop)
    vectors = {item_id: some_vector(1) for item_id in ids}
    chunk = shop.chunk(vectors | {"gone": Status.GONE, "zeros": np.zeros(2048, np.float32)})
    expected = {
        "gone": "gone",
        "late": "waiting_for_document",
        "missing": "waiting_for_document",
        "there": "indexed",
        "zeros": "rejected",
    }
    for first in ("there", "zeros"):
        done = threading.Event()

        def in_order(item_ids, write, first=first, done=done):
            if item_ids and item_ids != [first]:
                assert done.wait(60)
            answers = write()
            if item_ids == [first]:
                done.set()
            return answers

        around_write(in_order)
        assert run(shop, chunk, bulk_size=1) == expected
        rows = list(packs.rows(chunk.outcomes))
        planned = packs.slice_of(chunk.plan.items, chunk.start, chunk.stop)
        assert [row["item_id"] for row in rows] == [row["item_id"] for row in planned]
        chunk.outcomes.unlink()


def test_an_error_in_one_request_ends_all(sqlite_shop, around_write):
    shop = sqlite_shop
    ids, chunk = stocked(shop, 12)
    calls, failing = itertools.count(1), True

    def fails(_, write):
        if failing and next(calls) == 4:
            raise ServiceUnavailableError("gone")
        return write()

    around_write(fails)
    with pytest.raises(ServiceUnavailableError, match="gone"):
        run(shop, chunk, bulk_size=1, bulk_requests=2)
    # The fourth fails; of those written are three, and what was beside it or got its place.
    written = {item_id for item_id, version in shop.versions().items() if version}
    assert 3 <= len(written) <= 5
    assert writing_threads() == []
    assert not chunk.outcomes.exists()
    before = shop.sequence_numbers()

    failing = False
    assert run(shop, chunk) == dict.fromkeys(ids, "indexed")
    after = shop.sequence_numbers()
    assert {item_id for item_id in ids if after[item_id] == before[item_id]} == written


def test_an_error_elsewhere_lets_no_request_begin_another_round(sqlite_shop, around_write, monkeypatch):
    """Else a page that meets conflicts would go on writing, for a stage that has failed."""
    _, chunk = stocked(sqlite_shop, 2)
    begun, stopped = threading.Event(), threading.Event()
    calls = []
    stop = Writer.stop

    def stops(self):
        stop(self)
        stopped.set()

    monkeypatch.setattr(Writer, "stop", stops)

    def one_fails(item_ids, _):
        calls.extend(item_ids)
        if item_ids == ["i00"]:
            assert begun.wait(60)
            raise ConfigurationError("refused")
        begun.set()
        assert stopped.wait(60)
        return [(item_id, 409, "") for item_id in item_ids]

    around_write(one_fails)
    with pytest.raises(ConfigurationError, match="refused"):
        run(sqlite_shop, chunk, bulk_size=1)
    assert sorted(calls) == ["i00", "i01"]


def test_an_error_in_the_packs_ends_the_requests(sqlite_shop, around_write):
    _, chunk = stocked(sqlite_shop, 4)
    around_write(lambda _, write: write())

    def breaks(results, *_):
        yield from itertools.islice(results, 3)
        raise ServiceUnavailableError("cannot be read")

    with pytest.raises(ServiceUnavailableError, match="cannot be read"):
        index.run(chunk, sqlite_shop.settings(bulk_size=1), sqlite_shop.services, breaks)
    assert writing_threads() == []
    assert not chunk.outcomes.exists()


def test_the_split_of_the_time_is_told(sqlite_shop):
    ids, chunk = stocked(sqlite_shop, 3)
    statistics = index.run(chunk, sqlite_shop.settings(bulk_size=1, bulk_requests=1), sqlite_shop.services)
    breakdown = statistics["time_breakdown"]
    assert set(breakdown) == {
        "opening",
        "reading stage files",
        "reading documents",
        "packing vectors",
        "writing",
        "checking",
    }
    assert min(breakdown.values()) >= 0
    # One at a time, a request and the next page overlap at most by the page.
    assert sum(breakdown.values()) - breakdown["reading stage files"] <= statistics["seconds"]
    assert statistics["counts"] == {"indexed": len(ids)}


# Again ------------------------------------------------------------------------------------------


def test_a_finished_stage_is_not_done_again(sqlite_shop):
    shop = sqlite_shop
    shop.stock("a")
    prepare(shop)
    chunk = shop.chunk({"a": some_vector(1)})
    first = index.run(chunk, shop.settings(), shop.services)
    before = shop.sequence_numbers()
    assert index.run(chunk, shop.settings(), shop.services) == first
    assert shop.sequence_numbers() == before


def test_an_attempt_that_died_after_writing_is_not_repeated(sqlite_shop):
    """The writes are there and the outcomes are not, as a zombie beside its retry would find it."""
    shop = sqlite_shop
    shop.stock("a", "b")
    prepare(shop)
    chunk = shop.chunk({"a": some_vector(1), "b": some_vector(2)})
    run(shop, chunk)
    before = shop.sequence_numbers()
    chunk.outcomes.unlink()
    assert run(shop, chunk) == {"a": "indexed", "b": "indexed"}
    assert shop.sequence_numbers() == before


def test_an_attempt_that_died_half_way_does_the_rest(sqlite_shop, monkeypatch):
    shop = sqlite_shop
    ids = [f"i{number}" for number in range(6)]
    shop.stock(*ids)
    prepare(shop)
    chunk = shop.chunk({item_id: some_vector(seed) for seed, item_id in enumerate(ids)})
    write = SearchIndex.write
    pages = itertools.count()

    def dies(self, actions):
        if next(pages) == 2:
            raise ServiceUnavailableError("gone")
        return write(self, actions)

    with monkeypatch.context() as patched:
        patched.setattr(SearchIndex, "write", dies)
        with pytest.raises(ServiceUnavailableError):
            run(shop, chunk, bulk_size=2)
    assert not chunk.outcomes.exists()
    half = {item_id for item_id, version in shop.versions().items() if version}
    assert len(half) == 4
    before = shop.sequence_numbers()

    assert run(shop, chunk) == dict.fromkeys(ids, "indexed")
    after = shop.sequence_numbers()
    assert {item_id for item_id in ids if after[item_id] == before[item_id]} == half


# In between -------------------------------------------------------------------------------------


def test_a_document_written_between_read_and_write_is_read_again(sqlite_shop, between):
    shop = sqlite_shop
    shop.stock("a", "b")
    prepare(shop)
    chunk = shop.chunk({"a": some_vector(1), "b": some_vector(2)})
    between("documents", lambda: shop.write_document("a", price=5))
    assert run(shop, chunk) == {"a": "indexed", "b": "indexed"}
    assert shop.sources()["a"]["price"] == 5
    assert holds(shop, "a", some_vector(1))


def test_a_document_that_moves_between_read_and_write(sqlite_shop, between):
    shop = sqlite_shop
    shop.stock("a")
    prepare(shop)
    chunk = shop.chunk({"a": some_vector(1)})

    def moves():
        shop.catalogue.change("a", img_url=NEXT_URL)
        shop.write_document("a", img_url=NEXT_URL)

    between("documents", moves)
    assert run(shop, chunk) == {"a": "superseded"}
    assert FEATURE not in shop.sources()["a"]
    assert VERSION not in shop.sources()["a"]


def test_a_document_deleted_between_read_and_write(sqlite_shop, between):
    shop = sqlite_shop
    shop.stock("a")
    prepare(shop)
    chunk = shop.chunk({"a": some_vector(1)})
    between("documents", lambda: shop.client.delete(index=shop.index, id="a"))
    assert run(shop, chunk) == {"a": "waiting_for_document"}
    assert shop.sources() == {}


def test_a_document_that_changes_at_every_attempt(sqlite_shop, between):
    shop = sqlite_shop
    shop.stock("busy", "calm")
    prepare(shop)
    chunk = shop.chunk({"busy": some_vector(1), "calm": some_vector(2)})
    between("documents", lambda: shop.write_document("busy"), times=100)
    assert run(shop, chunk) == {"busy": "rejected", "calm": "indexed"}
    assert "changed at each of 5 attempts" in reasons(chunk)["busy"]


def test_what_happens_between_write_and_check(sqlite_shop, between):
    shop = sqlite_shop
    shop.stock("deleted", "replaced", "kept", "stripped")
    prepare(shop)
    chunk = shop.chunk({i: some_vector(1) for i in ["deleted", "replaced", "kept", "stripped"]})

    def meddle():
        shop.client.delete(index=shop.index, id="deleted")
        shop.write_document("replaced")
        document = {"img_url": url_of("stripped"), VERSION: FEATURE_VERSION}
        shop.client.index(index=shop.index, id="stripped", document=document)

    between("write", meddle)
    assert run(shop, chunk) == {
        "deleted": "waiting_for_document",
        "replaced": "superseded",
        "kept": "indexed",
        "stripped": "rejected",
    }
    assert "does not hold it" in reasons(chunk)["stripped"]


# Refusals ---------------------------------------------------------------------------------------


def test_one_document_that_is_refused_stops_no_other(sqlite_shop):
    """This one's own field does not fit the mapping any more, so no update of it can succeed."""
    shop = sqlite_shop
    # A field that is not in the mapping when the document is written, and does not fit it after.
    shop.client.indices.create(index=shop.index, mappings={"dynamic": False})
    shop.stock("good")
    shop.catalogue.add("bad", url_of("bad"))
    shop.write_document("bad", price="not a number")
    shop.client.indices.put_mapping(index=shop.index, properties={"price": {"type": "float"}})
    prepare(shop)
    chunk = shop.chunk({"good": some_vector(1), "bad": some_vector(2)})
    assert run(shop, chunk) == {"good": "indexed", "bad": "rejected"}
    assert reasons(chunk)["bad"].startswith("400: ")
    assert "price" in reasons(chunk)["bad"]
    assert VERSION not in shop.sources()["bad"]


def test_a_vector_that_elasticsearch_refuses(sqlite_shop):
    shop = sqlite_shop
    shop.stock("good", "zeros")
    prepare(shop)
    chunk = shop.chunk({"good": some_vector(1), "zeros": np.zeros(2048, np.float32)})
    assert run(shop, chunk) == {"good": "indexed", "zeros": "rejected"}
    assert "zero magnitude" in reasons(chunk)["zeros"]


def fail_some(monkeypatch, statuses):
    """Let bulk answer items with these statuses first, as a busy server does; the rest it really does."""
    from elasticsearch import Elasticsearch

    bulk = Elasticsearch.bulk
    failing = {item_id: list(codes) for item_id, codes in statuses.items()}
    monkeypatch.setattr("elasticsearch.helpers.actions.time.sleep", lambda _: None)

    def busy(self, *, operations, **arguments):
        lines = iter(operations)
        pairs = [(line, next(lines)) for line in lines]
        passed, answers = [], []
        for action, document in pairs:
            described = self.transport.serializers.loads(action, "application/json")
            item_id = described["update"]["_id"]
            if failing.get(item_id):
                code = failing[item_id].pop(0)
                error = {"type": "es_rejected_execution_exception", "reason": "busy"}
                answers.append({"update": {"_id": item_id, "status": code, "error": error}})
            else:
                answers.append(None)
                passed += [action, document]
        real = iter(bulk(self, operations=passed, **arguments)["items"] if passed else ())
        return SimpleNamespace(body={"items": [answer or next(real) for answer in answers]})

    monkeypatch.setattr(Elasticsearch, "bulk", busy)


def test_items_of_a_busy_server_are_tried_again(sqlite_shop, monkeypatch):
    shop = sqlite_shop
    shop.stock("a", "b", "c")
    prepare(shop)
    chunk = shop.chunk({item_id: some_vector(1) for item_id in "abc"})
    fail_some(monkeypatch, {"a": [429], "c": [503, 429, 503]})
    assert run(shop, chunk) == dict.fromkeys("abc", "indexed")
    assert set(shop.versions().values()) == {FEATURE_VERSION}


def test_a_server_that_stays_busy_is_no_item_s_fault(sqlite_shop, monkeypatch):
    shop = sqlite_shop
    shop.stock("a", "b")
    prepare(shop)
    chunk = shop.chunk({item_id: some_vector(1) for item_id in "ab"})
    with monkeypatch.context() as patched:
        fail_some(patched, {"b": [429] * 50})
        with pytest.raises(ServiceUnavailableError, match="429: busy"):
            run(shop, chunk)
    assert not chunk.outcomes.exists()
    assert run(shop, chunk) == dict.fromkeys("ab", "indexed")


def test_an_index_blocked_for_writing_is_a_person_s_affair(sqlite_shop):
    shop = sqlite_shop
    shop.stock("a")
    prepare(shop)
    chunk = shop.chunk({"a": some_vector(1)})
    shop.client.indices.put_settings(index=shop.index, settings={"index.blocks.write": True})
    with pytest.raises(ConfigurationError, match="block"):
        run(shop, chunk)
    assert not chunk.outcomes.exists()


# An index of our own ----------------------------------------------------------------------------


def test_whole_rows_are_written_where_that_is_wanted(shop):
    shop.catalogue.add("007", "https://pictures.example/a.jpg", item_name="red dress")
    shop.catalogue.add("changed", "https://pictures.example/b.jpg")
    prepare(shop)
    shop.write_document("changed", img_url="https://pictures.example/old.jpg", item_name="old", price=3)
    chunk = shop.chunk({"007": some_vector(1), "changed": some_vector(2)})

    assert run(shop, chunk, create_documents=True) == {"007": "indexed", "changed": "indexed"}

    sources = shop.sources()
    rows = {
        "item_id": "007",
        "item_name": "red dress",
        "category_id": "00000010",
        "img_url": "https://pictures.example/a.jpg",
    }
    assert {name: sources["007"][name] for name in rows} == rows
    assert sources["changed"]["img_url"] == "https://pictures.example/b.jpg"
    assert sources["changed"]["item_name"] == "blue shirt"
    assert sources["changed"]["price"] == 3
    assert holds(shop, "007", some_vector(1))
    # Again: nothing is written.
    before = shop.sequence_numbers()
    chunk.outcomes.unlink()
    assert run(shop, chunk, create_documents=True) == {"007": "indexed", "changed": "indexed"}
    assert shop.sequence_numbers() == before


def test_whole_rows_have_the_shop_s_own_shape(sqlite_shop):
    shop = sqlite_shop
    shop.catalogue.add("a", url_of("a"))
    settings = {
        "create_documents": True,
        "document_url_field": "image.src",
        "document_category_field": "none",
        "document_name_field": "title",
    }
    prepare(shop)
    chunk = shop.chunk({"a": some_vector(1)})
    assert run(shop, chunk, **settings) == {"a": "indexed"}
    written = {name: value for name, value in shop.sources()["a"].items() if "imagenet" not in name}
    assert written == {"item_id": "a", "title": "blue shirt", "image": {"src": url_of("a")}}


def test_a_row_that_moved_on_is_not_written_whole(sqlite_shop):
    shop = sqlite_shop
    shop.catalogue.add("moved", "https://pictures.example/a.jpg")
    shop.catalogue.add("left", "https://pictures.example/b.jpg")
    prepare(shop)
    chunk = shop.chunk({"moved": some_vector(1), "left": some_vector(2)})
    shop.catalogue.change("moved", img_url=NEXT_URL)
    shop.catalogue.execute("delete from items where item_id = 'left'")
    assert run(shop, chunk, create_documents=True) == {"moved": "superseded", "left": "superseded"}
    assert shop.sources() == {}


def test_a_document_that_someone_else_creates_meanwhile(sqlite_shop, between):
    shop = sqlite_shop
    shop.catalogue.add("a", url_of("a"))
    prepare(shop)
    chunk = shop.chunk({"a": some_vector(1)})
    between("documents", lambda: shop.write_document("a", price=5))
    assert run(shop, chunk, create_documents=True) == {"a": "indexed"}
    assert shop.sources()["a"]["price"] == 5
