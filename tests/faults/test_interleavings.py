"""Runs that meet each other, their own zombies, and a shop that goes on changing, in any order.

A picture's feature here is a function of its URL, so that of every document it can be told whether its
feature is of the URL that it claims. INTERLEAVINGS=500 in the environment searches for long.
"""

import contextlib
import hashlib
import itertools
import os
import threading
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tasks.errors import ServiceUnavailableError
from tasks.runs import packs
from tasks.runs.run import Request
from tasks.search.index import SearchIndex
from tasks.search.mapping import AT, FEATURE, GROUP, IMAGE, URL, VERSION
from tasks.shop.connections import Services
from tasks.stages import index, plan
from tests.fault_proxy import cut_request, first, items_fail, passed_on, truncated, unanswered
from tests.shop_fixtures import (
    CATEGORY,
    FEATURE_VERSION,
    SmallShop,
    search_connection,
    some_vector,
    sqlite_catalogue,
    write_packs,
)

EXAMPLES = int(os.environ.get("INTERLEAVINGS", "10"))
OURS = {FEATURE, VERSION, URL, IMAGE, AT, GROUP}

ITEMS = ("a", "b", "c")
SHARED = "https://pictures.example/shared.jpg"


def urls_of(item_id):
    """The URLs that an item can have, one of them like the other items'."""
    return [f"https://pictures.example/{item_id}/{number}.jpg" for number in range(2)] + [SHARED]


def vector_of(url):
    return some_vector(zlib.crc32(url.encode()))


def image_of(url):
    return hashlib.sha256(vector_of(url).tobytes()).hexdigest()


def same(vector, other):
    return np.allclose(vector, other, rtol=3e-7, atol=0)


# Two at once ------------------------------------------------------------------------------------


@pytest.fixture
def shop(proxied_shop, elasticsearch_url):
    """A shop with documents, whose index has our fields."""
    proxied_shop.stock(*ITEMS)
    SearchIndex(search_connection(elasticsearch_url), proxied_shop.index).prepare()
    return proxied_shop


def at_once(proxy, *runs, patience=10):
    """Let these runs go on together, each up to its first bulk before any of them writes.

    One that has waited for the others longer than `patience` seconds goes on alone.
    """
    meet = threading.Barrier(len(runs))
    bulks = itertools.count()

    def together(exchange):
        with contextlib.suppress(threading.BrokenBarrierError):
            meet.wait(patience)
        passed_on(exchange)

    proxy.script = lambda request: together if request.kind == "_bulk" and next(bulks) < len(runs) else None
    with ThreadPoolExecutor(len(runs)) as pool:
        for done in [pool.submit(run) for run in runs]:
            done.result()
    proxy.script = lambda _: None


def document_versions(shop):
    shop.client.indices.refresh(index=shop.index)
    hits = shop.client.search(index=shop.index, version=True, source=False)["hits"]["hits"]
    return {hit["_id"]: hit["_version"] for hit in hits}


@pytest.mark.parametrize("create", [False, True], ids=["partial updates", "whole documents"])
def test_a_zombie_beside_its_retry_writes_nothing_twice(shop, proxy, create):
    shop.catalogue.add("new", SHARED)
    vectors = {item_id: some_vector(seed) for seed, item_id in enumerate((*ITEMS, "new"))}
    chunk = shop.chunk(vectors)
    run = lambda: index.run(chunk, shop.settings(create_documents=create), shop.services)  # noqa: E731
    at_once(proxy, run, run)

    expected = dict.fromkeys(ITEMS, "indexed") | {"new": "indexed" if create else "waiting_for_document"}
    assert {row["item_id"]: row["status"] for row in packs.rows(chunk.outcomes)} == expected
    assert document_versions(shop) == dict.fromkeys(ITEMS, 2) | ({"new": 1} if create else {})
    assert all(same(shop.vector(item_id), vectors[item_id]) for item_id in document_versions(shop))


@pytest.mark.parametrize("started_first", ["earlier", "later"])
def test_of_two_runs_at_once_the_later_plan_wins(shop, proxy, started_first):
    """Whichever is started first; the picture behind the URL changed in between."""
    earlier = shop.chunk({item_id: some_vector(1) for item_id in ITEMS}, run="earlier")
    later = shop.chunk({item_id: some_vector(2) for item_id in ITEMS}, run="later")
    chunks = (earlier, later) if started_first == "earlier" else (later, earlier)
    at_once(
        proxy, *(lambda chunk=chunk: index.run(chunk, shop.settings(), shop.services) for chunk in chunks)
    )

    assert {row["status"] for row in packs.rows(later.outcomes)} == {"indexed"}
    assert {row["status"] for row in packs.rows(earlier.outcomes)} <= {"indexed", "superseded"}
    assert all(same(shop.vector(item_id), some_vector(2)) for item_id in ITEMS)


# Anything in any order --------------------------------------------------------------------------

items = st.sampled_from(ITEMS)
events = st.one_of(
    st.tuples(st.just("item changes"), items, st.integers(0, 2)),
    st.tuples(st.just("catalogue changes"), items, st.integers(0, 2)),
    st.tuples(st.just("catalogue loses"), items, st.just(0)),
    st.tuples(st.just("core server writes"), items, st.integers(0, 2)),
    st.tuples(st.just("core server updates"), items, st.integers(0, 2)),
    st.tuples(st.just("core server writes back"), items, st.just(0)),
    st.tuples(st.just("core server deletes"), items, st.just(0)),
)
"""What others do: what, to which item, and with which of its URLs."""

FAULTS = {
    "bulk unanswered": ("_bulk", unanswered),
    "bulk cut": ("_bulk", cut_request),
    "bulk truncated": ("_bulk", truncated),
    "bulk items 503, written": ("_bulk", items_fail(503, written=True)),
    "bulk items 429": ("_bulk", items_fail(429, written=False)),
    "read cut": ("_mget", cut_request),
    "search truncated": ("_search", truncated),
}


class Shop(RuleBasedStateMachine):
    """A shop with three items, its catalogue, its core server, and runs over it."""

    numbers = itertools.count()

    def __init__(self, client, index_name, proxy, folder):
        super().__init__()
        number = next(self.numbers)
        self.proxy = proxy
        proxy.script = lambda _: None
        catalogue = sqlite_catalogue(folder / f"{number}.db")
        services = Services(catalogue.connection, search_connection(proxy.url))
        self.shop = SmallShop(catalogue, client, f"{index_name}-{number}", services, folder / str(number))
        self.catalogue = {item_id: urls_of(item_id)[0] for item_id in ITEMS}
        """The URL of each item now."""
        self.documents = {}
        """What the core server has in each document."""
        self.core_wrote = {}
        """The sequence number of the core server's last write to each document."""
        self.written_back = set()
        """Documents that the core server read, changed and wrote whole: their vectors are lost."""
        self.seen = {}
        """The URL and time of each document's feature at the last look."""
        self.chunks = []
        catalogue.add_all({"item_id": item_id, "img_url": url} for item_id, url in self.catalogue.items())
        self.prices = itertools.count()
        for item_id in ITEMS[:2]:
            self.happen("core server writes", item_id, 0)

    # What others do

    def happen(self, what, item_id, number):
        url, price = urls_of(item_id)[number], next(self.prices)
        client, where = self.shop.client, {"index": self.shop.index, "id": item_id}
        held = self.documents.get(item_id)
        if what == "item changes":
            self.happen("catalogue changes", item_id, number)
            self.happen("core server updates", item_id, number)
        elif what == "catalogue changes":
            if item_id in self.catalogue:
                self.shop.catalogue.change(item_id, img_url=url)
            else:
                self.shop.catalogue.add(item_id, url)
            self.catalogue[item_id] = url
        elif what == "catalogue loses":
            self.shop.catalogue.execute(f"delete from items where item_id = '{item_id}'")
            self.catalogue.pop(item_id, None)
        elif what == "core server writes":
            self.documents[item_id] = {
                "item_id": item_id,
                "img_url": url,
                "price": price,
                "tags": ["x", None],
            }
            written = client.index(**where, document=self.documents[item_id])
            self.core_wrote[item_id] = written["_seq_no"]
            self.forget(item_id)
        elif held and what == "core server updates":
            held |= {"img_url": url, "price": price}
            written = client.update(**where, doc={"img_url": url, "price": price})
            self.core_wrote[item_id] = written["_seq_no"]
        elif held and what == "core server writes back":
            held["price"] = price
            source = client.get(**where)["_source"]
            written = client.index(**where, document=source | {"price": price})
            self.core_wrote[item_id] = written["_seq_no"]
            if VERSION in source:
                self.written_back.add(item_id)
        elif held and what == "core server deletes":
            client.delete(**where)
            del self.documents[item_id]
            self.forget(item_id)

    def forget(self, item_id):
        self.written_back.discard(item_id)
        self.seen.pop(item_id, None)

    @rule(event=events)
    def something_happens(self, event):
        self.happen(*event)

    # What we do

    @rule(force=st.booleans())
    def plans(self, force):
        request = Request("tests", f"r{len(self.chunks)}", category_ids=(CATEGORY,), force=force)
        planned = plan.run(request, self.shop.settings(), self.shop.services)
        assert planned.planned == len(self.catalogue)
        rows = list(packs.rows(planned.items))
        assert len(rows) == planned.planned - planned.current
        assert {row["item_id"]: row["img_url"] for row in rows}.items() <= self.catalogue.items()
        for chunk in planned.chunks:
            urls = {row["img_url"] for row in packs.slice_of(planned.items, chunk.start, chunk.stop)}
            write_packs(chunk, {url: vector_of(url) for url in urls})
            self.chunks.append(chunk)

    def index(self, chunk):
        """Index a chunk, also one that was indexed before, as a zombie does."""
        chunk.outcomes.unlink(missing_ok=True)
        statistics = index.run(chunk, self.shop.settings(), self.shop.services)
        rows = list(packs.rows(chunk.outcomes))
        expected = packs.slice_of(chunk.plan.items, chunk.start, chunk.stop)
        assert sorted(row["item_id"] for row in rows) == sorted(row["item_id"] for row in expected)
        assert statistics["counts"] == Counter(row["status"] for row in rows)
        return rows

    def some_chunk(self, data):
        """The newest as often as any other, since only that has much to write."""
        return self.chunks[data.draw(st.just(-1) | st.integers(-len(self.chunks), -1))]

    @precondition(lambda self: self.chunks)
    @rule(data=st.data())
    def indexes_in_peace(self, data):
        chunk = self.some_chunk(data)
        rows = packs.slice_of(chunk.plan.items, chunk.start, chunk.stop)
        expected = {row["item_id"]: self.expected_status(row, chunk.plan) for row in rows}
        assert {row["item_id"]: row["status"] for row in self.index(chunk)} == expected

    def expected_status(self, row, planned):
        item_id, url = row["item_id"], row["img_url"]
        if item_id not in self.documents:
            return "waiting_for_document"
        if self.documents[item_id]["img_url"] != url:
            return "waiting_for_document" if self.catalogue.get(item_id) == url else "superseded"
        if item_id in self.written_back:
            # The vector is lost that this plan, or a later one, wrote; only a plan from now on mends it.
            source = self.shop.client.get(index=self.shop.index, id=item_id)["_source"]
            if source[URL] == url and datetime.fromisoformat(source[AT]) >= planned.created_at:
                return "rejected"
        return "indexed"

    @precondition(lambda self: self.chunks)
    @rule(
        data=st.data(),
        moments=st.lists(
            st.tuples(
                st.sampled_from(("_bulk", "_mget", "_bulk", "_refresh", "_search")),
                st.booleans(),
                events | st.just("another run"),
            ),
            min_size=1,
            max_size=3,
        ),
        fault=st.none() | st.sampled_from(sorted(FAULTS)),
    )
    def indexes_disturbed(self, data, moments, fault):
        """Others act just before or after some requests, and one request fails."""
        chunk = self.some_chunk(data)
        other = self.some_chunk(data)
        left = list(moments)

        def act(event):
            if event == "another run":
                with contextlib.suppress(ServiceUnavailableError):
                    self.index(other)
            else:
                self.happen(*event)

        def disturbed(exchange):
            _, after, event = left.pop(
                next(n for n, moment in enumerate(left) if moment[0] == exchange.request.kind)
            )
            if after:
                answer = exchange.forward()
                act(event)
                exchange.reply(answer)
            else:
                act(event)
                passed_on(exchange)

        spoil = first(1, *FAULTS[fault]) if fault else lambda _: None
        self.proxy.script = lambda request: (
            disturbed if any(kind == request.kind for kind, *_ in left) else spoil(request)
        )
        try:
            self.index(chunk)
        except ServiceUnavailableError:
            assert fault
        self.proxy.script = lambda _: None

    @precondition(lambda self: self.chunks)
    @rule(data=st.data())
    def two_index_at_once(self, data):
        chunks = [self.some_chunk(data) for _ in range(2)]
        for chunk in chunks:
            chunk.outcomes.unlink(missing_ok=True)
        settings_, services = self.shop.settings(), self.shop.services
        at_once(
            self.proxy,
            *(lambda chunk=chunk: index.run(chunk, settings_, services) for chunk in chunks),
            patience=0.1,
        )

    # What holds

    @invariant()
    def holds(self):
        self.shop.client.indices.refresh(index=self.shop.index)
        answer = self.shop.client.search(index=self.shop.index, fields=[FEATURE], seq_no_primary_term=True)
        hits = answer["hits"]["hits"]
        assert {hit["_id"] for hit in hits} == set(self.documents)
        for hit in hits:
            source = hit["_source"]
            theirs = {name: value for name, value in source.items() if name not in OURS}
            assert theirs == self.documents[hit["_id"]]
            vector = hit.get("fields", {}).get(FEATURE)
            if VERSION in source:
                self.check_feature(hit["_id"], source, vector)
                # The last to write was the core server, or it was us, who knew what it had written.
                assert hit["_seq_no"] == self.core_wrote[hit["_id"]] or source[URL] == source["img_url"]
            else:
                assert vector is None
                assert not OURS & set(source)

    def check_feature(self, item_id, source, vector):
        url, at = source[URL], datetime.fromisoformat(source[AT])
        assert source[VERSION] == FEATURE_VERSION
        assert url in urls_of(item_id)
        assert source[IMAGE] == image_of(url)
        if vector is None:
            assert item_id in self.written_back
        else:
            assert same(vector, vector_of(url)), "a feature that is not of the URL it claims"
            self.written_back.discard(item_id)
        seen_url, seen_at = self.seen.get(item_id, (None, None))
        if url == seen_url:
            assert at >= seen_at, "a stale run has overwritten newer work"
        self.seen[item_id] = (url, at)

    def teardown(self):
        """When all is quiet, one more run brings the newest URL's feature everywhere."""
        for item_id, url in self.catalogue.items():
            held = self.documents.get(item_id)
            what = "core server updates" if held else "core server writes"
            if not held or held["img_url"] != url:
                self.happen(what, item_id, urls_of(item_id).index(url))
        self.holds()
        before = len(self.chunks)
        self.plans(force=False)
        for chunk in self.chunks[before:]:
            assert {row["status"] for row in self.index(chunk)} == {"indexed"}
        self.holds()
        for item_id, url in self.catalogue.items():
            assert self.seen[item_id][0] == url
            assert item_id not in self.written_back
        after = len(self.chunks)
        self.plans(force=False)
        assert len(self.chunks) == after, "there was something left to do"
        self.shop.client.indices.delete(index=self.shop.index)


@pytest.mark.slow
@pytest.mark.usefixtures("pauses", "chosen_version")
def test_anything_in_any_order(search_client, index_name, proxy, tmp_path):
    run_state_machine_as_test(
        lambda: Shop(search_client, index_name, proxy, tmp_path),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=20,
            deadline=None,
            derandomize="INTERLEAVINGS" not in os.environ,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def index_name(index):
    """An index's name, while `index` is the stage."""
    return index
