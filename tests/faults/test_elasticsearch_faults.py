"""Each way in which Elasticsearch, or what stands before it, can fail, at each kind of request that the
stages make: a real server behind a proxy that spoils requests and answers.

However it fails, a stage ends well or says that the service is not to be had, and doing it again then
ends as if nothing had been amiss: each document is written once, and holds what it held besides.
"""

import base64
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import threading
from collections import Counter
from dataclasses import dataclass, replace
from datetime import timedelta
from http.client import HTTPException

import numpy as np
import pytest
from elasticsearch import Elasticsearch as Client

from local_stack import elasticsearch
from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.runs import packs
from tasks.runs.run import Chunk, Request
from tasks.search.index import SearchIndex
from tasks.search.mapping import AT, FEATURE, GROUP, IMAGE, URL, VERSION
from tasks.shop.connections import Services
from tasks.stages import index, plan
from tasks.statuses import Status
from tests.fault_proxy import (
    FaultProxy,
    cut_answer,
    cut_request,
    delayed,
    every,
    first,
    instead,
    items_fail,
    refused,
    rewritten,
    silent,
    swallowed,
    through_pipeline,
    truncated,
    unanswered,
)
from tests.shop_fixtures import CATEGORY, FEATURE_VERSION, search_connection, some_vector, url_of

PAGE = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"

FAULTS = {
    "429": refused(429),
    "503": refused(503),
    "502 page": instead(502, PAGE, "text/html"),
    "200 page": instead(200, PAGE, "text/html"),
    "404 page": instead(404, PAGE, "text/html"),
    "200 other JSON": instead(200, b"{}"),
    "unanswered": unanswered,
    "request cut": cut_request,
    "answer cut": cut_answer,
}
"""Those of which one alone is overcome by asking again."""

INDEX_KINDS = ("_nodes", "HEAD", "GET", "_mget", "_bulk", "_refresh", "_search")
PLAN_KINDS = ("_nodes", "HEAD", "GET", "_search", "_mget", "_mapping", "PUT")


def no_fault(_):
    return None


# The index stage --------------------------------------------------------------------------------


@dataclass
class Work:
    """A chunk to index, and what has to come of it: one document for each way that an item can go."""

    chunk: Chunk
    vectors: dict[str, np.ndarray]
    statuses: dict[str, str]


_numbers = itertools.count()


def new_work(shop, count=3):
    """Items with a feature, one without a document, one whose document is late, and one without picture."""
    name = f"w{next(_numbers)}"
    ids = [f"{name}-{number}" for number in range(count)]
    missing, late, gone = f"{name}-missing", f"{name}-late", f"{name}-gone"
    everything = [*ids, missing, late, gone]
    shop.catalogue.add_all({"item_id": item_id, "img_url": url_of(item_id)} for item_id in everything)
    lines = []
    for item_id in everything:
        if item_id != missing:
            img_url = "https://pictures.example/before.jpg" if item_id == late else url_of(item_id)
            lines += [{"index": {"_id": item_id}}, as_written(item_id, img_url)]
    assert not shop.client.bulk(index=shop.index, operations=lines)["errors"]
    vectors = {item_id: some_vector(seed) for seed, item_id in enumerate(ids)}
    chunk = shop.chunk(vectors | {missing: some_vector(1), late: some_vector(2), gone: Status.GONE}, run=name)
    statuses = dict.fromkeys(ids, "indexed")
    statuses |= {missing: "waiting_for_document", late: "waiting_for_document", gone: "gone"}
    return Work(chunk, vectors, statuses)


def as_written(item_id, img_url):
    """A document as the core server writes it."""
    return {
        "item_id": item_id,
        "item_name": "blue shirt",
        "category_id": CATEGORY,
        "img_url": img_url,
        "price": 1.5,
        "tags": ["b", "a", None],
    }


def assert_done(shop, work):
    """The outcomes and the index are those of one undisturbed run."""
    outcomes = list(packs.rows(work.chunk.outcomes))
    assert {row["item_id"]: row["status"] for row in outcomes} == work.statuses
    assert len(outcomes) == len(work.statuses)
    statistics = packs.statistics(work.chunk.outcomes)
    assert statistics["counts"] == Counter(work.statuses.values())
    assert sum(statistics["counts"].values()) == work.chunk.plan.planned

    shop.client.indices.refresh(index=shop.index)
    hits = shop.client.search(
        index=shop.index,
        query={"ids": {"values": list(work.statuses)}},
        size=1_000,
        version=True,
        fields=[FEATURE],
    )["hits"]["hits"]
    found = {hit["_id"]: hit for hit in hits}
    assert set(found) == {item_id for item_id in work.statuses if not item_id.endswith("missing")}
    for item_id, hit in found.items():
        before = "https://pictures.example/before.jpg"
        expected = as_written(item_id, before if item_id.endswith("late") else url_of(item_id))
        if item_id in work.vectors:
            vector = work.vectors[item_id]
            expected |= {
                VERSION: FEATURE_VERSION,
                URL: url_of(item_id),
                IMAGE: hashlib.sha256(vector.tobytes()).hexdigest(),
                GROUP: hashlib.sha256(vector.tobytes()).hexdigest(),
                AT: work.chunk.plan.created_at.isoformat(),
            }
            held = np.array(hit["fields"][FEATURE], np.float32)
            assert np.allclose(held, vector, rtol=3e-7, atol=0)
        else:
            assert "fields" not in hit
        assert hit["_source"] == expected
        assert hit["_version"] == (2 if item_id in work.vectors else 1), "written once by each"


@pytest.fixture
def shop(proxied_shop, elasticsearch_url):
    """A shop whose index has our fields."""
    SearchIndex(search_connection(elasticsearch_url), proxied_shop.index).prepare()
    return proxied_shop


def run(shop, work, **changes):
    index.run(work.chunk, shop.settings(**changes), shop.services)


def assert_told(shop, work, proxy):
    """The stage says that Elasticsearch is not to be had, where it is, and leaves no outcomes behind."""
    with pytest.raises(ServiceUnavailableError) as told:
        run(shop, work)
    assert proxy.url in str(told.value)
    assert len(str(told.value)) < 1_000
    assert not work.chunk.outcomes.exists()


def assert_again(shop, work, proxy):
    """Without the fault, the next attempt ends well."""
    proxy.script = no_fault
    run(shop, work)
    assert_done(shop, work)


def test_without_a_fault(shop, proxy):
    work = new_work(shop)
    proxy.script = every("_bulk", delayed(0.1))
    run(shop, work)
    assert_done(shop, work)
    asked = [request.kind for request in proxy.requests]
    assert set(asked) == set(INDEX_KINDS)


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize("fault", [*FAULTS.values(), truncated], ids=[*FAULTS, "truncated"])
def test_a_lasting_fault_is_told_and_a_single_one_overcome(shop, proxy, fault):
    for kind in INDEX_KINDS:
        if kind == "HEAD" and fault in (cut_answer, truncated):
            continue  # there is nothing to cut
        work = new_work(shop)
        proxy.script = every(kind, fault)
        assert_told(shop, work, proxy)

        before = proxy.count(kind)
        proxy.script = no_fault if fault is truncated else first(1, kind, fault)
        run(shop, work)
        assert_done(shop, work)
        # What was written and not answered for is not written again.
        assert proxy.count(kind) > before or kind == "_bulk"


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_bulk_with_a_single_fault_writes_once(shop, proxy, fault):
    work = new_work(shop)
    proxy.script = first(1, "_bulk", fault)
    run(shop, work)
    assert proxy.count("_bulk") >= 2
    assert_done(shop, work)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("_mget", silent),
        ("_bulk", silent),
        ("_refresh", silent),
        ("_bulk", swallowed),
        ("_search", swallowed),
    ],
)
def test_an_answer_that_does_not_come_in_time_is_asked_for_again(shop, proxy, impatient, kind, fault):
    work = new_work(shop)
    impatient(kind)
    proxy.script = first(1, kind, fault)
    run(shop, work)
    assert proxy.count(kind) >= 2
    assert_done(shop, work)


@pytest.mark.parametrize("fault", [silent, swallowed])
def test_answers_that_never_come_in_time_are_told(shop, proxy, impatient, fault):
    work = new_work(shop)
    impatient("_bulk")
    proxy.script = every("_bulk", fault)
    assert_told(shop, work, proxy)
    assert_again(shop, work, proxy)


def test_a_busy_server_gets_a_bulk_again_after_pauses_and_not_for_ever(shop, proxy, pauses):
    work = new_work(shop)
    proxy.script = every("_bulk", refused(429))
    assert_told(shop, work, proxy)
    assert pauses == [0.5, 1, 2, 4, 8]
    assert proxy.count("_bulk") == len(pauses) + 1
    assert_again(shop, work, proxy)


def test_a_bulk_that_is_too_large_is_a_person_s_affair(shop, proxy):
    work = new_work(shop)
    proxy.script = every("_bulk", instead(413, PAGE, "text/html"))
    with pytest.raises(ConfigurationError, match=r"413: .*FEATURES_BULK_SIZE"):
        run(shop, work)
    assert not work.chunk.outcomes.exists()
    assert_again(shop, work, proxy)


# Items of a bulk --------------------------------------------------------------------------------


def some(item_id):
    return item_id[-1] in "02"


def all_(_):
    return True


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize("written", [True, False], ids=["written", "not written"])
@pytest.mark.parametrize("status", [429, 503, 500, 409])
def test_items_that_fail_once_are_written_once(shop, proxy, status, written):
    for chosen, times in itertools.product((some, all_), (1, 3)):
        work = new_work(shop)
        proxy.script = first(times, "_bulk", items_fail(status, written=written, chosen=chosen))
        run(shop, work)
        assert_done(shop, work)


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize("written", [True, False], ids=["written", "not written"])
@pytest.mark.parametrize("status", [429, 503])
def test_items_that_are_always_refused_are_no_fault_of_theirs(shop, proxy, status, written):
    for chosen in (some, all_):
        work = new_work(shop)
        # Once written, an item has another sequence number, and the server itself says 409.
        proxy.script = every("_bulk", items_fail(status, written=written, chosen=chosen))
        assert_told(shop, work, proxy)
        assert_again(shop, work, proxy)


def test_conflicts_of_items_that_were_written_are_our_own(shop, proxy):
    work = new_work(shop)
    proxy.script = every("_bulk", items_fail(409, written=True))
    run(shop, work)
    assert_done(shop, work)


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize(
    ("status", "reason"), [(409, "changed at each of 5 attempts"), (500, "as told, 500")]
)
def test_items_that_always_fail_stop_no_other_and_are_done_by_the_next_plan(shop, proxy, status, reason):
    work = new_work(shop)
    proxy.script = every("_bulk", items_fail(status, written=False, chosen=some))
    run(shop, work)
    failed = {
        row["item_id"]: row["reason"]
        for row in packs.rows(work.chunk.outcomes)
        if row["status"] == "rejected"
    }
    assert set(failed) == {item_id for item_id in work.vectors if some(item_id)}
    assert all(reason in told for told in failed.values())
    assert set(shop.versions().values()) == {FEATURE_VERSION, None}

    proxy.script = no_fault
    next_plan = shop.chunk({item_id: work.vectors[item_id] for item_id in failed}, run="next")
    run(shop, replace(work, chunk=next_plan))
    assert {row["status"] for row in packs.rows(next_plan.outcomes)} == {"indexed"}
    for item_id, vector in work.vectors.items():
        assert np.allclose(shop.vector(item_id), vector, rtol=3e-7, atol=0)


def test_a_refresh_that_fails_somewhere_proves_nothing(shop, proxy):
    """Else what is written would count as not held."""
    failed = {"_shards": {"total": 2, "successful": 1, "failed": 1}}
    work = new_work(shop)
    proxy.script = every("_refresh", rewritten(lambda _: failed))
    assert_told(shop, work, proxy)
    assert_again(shop, work, proxy)


def test_a_document_whose_shard_does_not_answer_is_not_a_missing_one(shop, proxy):
    """Else it would wait for the core server to write it."""

    def one_fails(answer):
        error = {"type": "no_shard_available_action_exception", "reason": "No shard available"}
        hit = answer["docs"][0]
        return {"docs": [{"_index": hit["_index"], "_id": hit["_id"], "error": error}, *answer["docs"][1:]]}

    work = new_work(shop)
    proxy.script = every("_mget", rewritten(one_fails))
    assert_told(shop, work, proxy)
    assert_again(shop, work, proxy)


# Late, and at once ------------------------------------------------------------------------------


def held_back(until):
    """The program gives up waiting; the request reaches the server when `until` is set."""
    delivered = threading.Event()

    def fault(exchange):
        exchange.wait_until_left()
        until.wait(30)
        exchange.forward()
        delivered.set()

    return fault, delivered


def test_a_bulk_that_arrives_after_it_was_sent_again_writes_nothing(shop, proxy, impatient):
    work = new_work(shop)
    impatient("_bulk")
    release = threading.Event()
    fault, delivered = held_back(release)
    proxy.script = first(1, "_bulk", fault)
    run(shop, work)
    release.set()
    assert delivered.wait(10)
    assert_done(shop, work)


def test_a_bulk_that_arrives_after_newer_work_overwrites_nothing(shop, proxy, impatient):
    stale = new_work(shop)
    impatient("_bulk")
    release = threading.Event()
    fault, delivered = held_back(release)
    faults = itertools.chain([fault], itertools.repeat(swallowed))
    proxy.script = lambda request: next(faults) if request.kind == "_bulk" else None
    assert_told(shop, stale, proxy)

    newer_vectors = {item_id: some_vector(100 + seed) for seed, item_id in enumerate(stale.vectors)}
    newer = shop.chunk(newer_vectors, run="newer")
    proxy.script = no_fault
    run(shop, replace(stale, chunk=newer))
    release.set()
    assert delivered.wait(10)
    for item_id, vector in newer_vectors.items():
        assert np.allclose(shop.vector(item_id), vector, rtol=3e-7, atol=0)


# The plan stage ---------------------------------------------------------------------------------


LONG = "https://pictures.example/".ljust(9_000, "x")
"""Longer than the index can tell as a term, so that planning has to read the document."""


ITEMS = {"new": url_of("new"), "current": url_of("current"), "long": LONG, "moved": url_of("moved")}


@pytest.fixture
def shop_for(proxied_shop, elasticsearch_url):
    """Gives a shop in which planning makes requests of a kind: one without an index, one whose index lacks
    our fields, or one where some items are current."""
    proxied_shop.catalogue.add_all({"item_id": item_id, "img_url": url} for item_id, url in ITEMS.items())
    numbers = itertools.count()
    ready = None

    def another():
        return replace(proxied_shop, index=f"{proxied_shop.index}-{next(numbers)}")

    def with_fields():
        shop = another()
        SearchIndex(search_connection(elasticsearch_url), shop.index).prepare()
        computed_from = {
            "current": url_of("current"),
            "long": LONG,
            "moved": "https://pictures.example/0.jpg",
        }
        features = {
            item_id: {FEATURE: some_vector(1).tolist(), VERSION: FEATURE_VERSION, URL: url}
            for item_id, url in computed_from.items()
        }
        write_documents(shop, features)
        return shop

    def get(kind):
        nonlocal ready
        if kind == "PUT":
            return another()
        if kind == "_mapping":
            shop = another()
            write_documents(shop, {})
            return shop
        ready = ready or with_fields()
        return ready

    return get


def write_documents(shop, features):
    lines = []
    for item_id, url in ITEMS.items():
        lines += [{"index": {"_id": item_id}}, as_written(item_id, url) | features.get(item_id, {})]
    assert not shop.client.bulk(index=shop.index, operations=lines, refresh=True)["errors"]


def assert_planned(shop, request):
    """Planning gives what it gives undisturbed, and leaves an index that is ready."""
    before = shop.sources() if shop.client.indices.exists(index=shop.index) else {}
    planned = plan.run(request, shop.settings(), shop.services)
    current = {item_id for item_id in ("current", "long") if VERSION in before.get(item_id, ())}
    to_do = {row["item_id"] for row in packs.rows(planned.items)}
    assert to_do == {"new", "moved", "current", "long"} - current
    assert (planned.planned, planned.current) == (4, len(current))
    (described,) = shop.client.indices.get_mapping(index=shop.index).values()
    held = described["mappings"]["properties"]
    assert (held[FEATURE]["type"], held[FEATURE]["dims"]) == ("dense_vector", 2048)
    assert {field: held[field]["type"] for field in (VERSION, URL, IMAGE, AT)} == {
        VERSION: "keyword",
        URL: "keyword",
        IMAGE: "keyword",
        AT: "date",
    }
    assert shop.sources() == before


@pytest.mark.usefixtures("chosen_version")
@pytest.mark.parametrize("fault", [*FAULTS.values(), truncated], ids=[*FAULTS, "truncated"])
def test_planning_tells_a_lasting_fault_and_overcomes_a_single_one(shop_for, proxy, fault):
    for kind in PLAN_KINDS:
        if kind == "HEAD" and fault in (cut_answer, truncated):
            continue  # there is nothing to cut
        shop = shop_for(kind)
        request = Request("faults", kind, category_ids=(CATEGORY,))
        proxy.script = every(kind, fault)
        with pytest.raises(ServiceUnavailableError) as told:
            plan.run(request, shop.settings(), shop.services)
        assert proxy.url in str(told.value)
        assert not list(request.folder(shop.data_dir).glob("*/plan.json"))

        before = proxy.count(kind)
        proxy.script = no_fault if fault is truncated else first(1, kind, fault)
        assert_planned(shop, request)
        # What was done and not answered for need not be done again.
        assert proxy.count(kind) > before or kind in ("PUT", "_mapping")


# A restart --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def installed():
    """The server is there before a test's network guard is."""
    elasticsearch.install()


@pytest.mark.usefixtures("installed")
def test_a_server_killed_in_the_middle_of_the_bulks_and_started_again(sqlite_shop, tmp_path):
    """What it took and did not answer for is found; what it did not take is written."""
    data, log = elasticsearch.data_folder(tmp_path), tmp_path / "elasticsearch.log"
    server = elasticsearch.Elasticsearch.start(data, log)
    port = int(server.url.rpartition(":")[2])
    try:
        with FaultProxy(server.url) as proxy, Client(server.url) as client:
            services = Services(sqlite_shop.services.catalogue, search_connection(proxy.url))
            shop = replace(sqlite_shop, client=client, services=services)
            SearchIndex(services.search, shop.index).prepare()
            work = new_work(shop, count=300)

            def killed_under_it(exchange):
                def forward():
                    with contextlib.suppress(OSError, HTTPException):
                        exchange.forward()

                sending = threading.Thread(target=forward)
                sending.start()
                os.kill(int((data / "pid").read_text()), signal.SIGKILL)
                sending.join()
                exchange.cut()

            bulks = itertools.count(1)
            proxy.script = lambda request: (
                killed_under_it if request.kind == "_bulk" and next(bulks) == 8 else None
            )
            with pytest.raises(ServiceUnavailableError):
                run(shop, work, bulk_size=25, bulk_requests=4)
            server.stop()
            server = elasticsearch.Elasticsearch.start(data, log, port=port)

            written = sum(version is not None for version in shop.versions().values())
            # When the eighth comes, four have been answered, of 25 items, two of which are not to be written.
            assert 98 <= written < 300
            run(shop, work, bulk_size=25)
            assert_done(shop, work)
    finally:
        server.stop()
        shutil.rmtree(data, ignore_errors=True)


# Ingest pipelines -------------------------------------------------------------------------------
#
# The server that tests start has no processors of use, and pipelines do not see partial updates: so what they
# do to documents is done on the way, as where a pipeline is given with each request.

KEPT = {FEATURE, VERSION, URL, IMAGE, AT, GROUP}


def halved(document):
    vector = np.frombuffer(base64.b64decode(document[FEATURE]), ">f4")
    document[FEATURE] = base64.b64encode((vector[::-1] / 2).astype(">f4").tobytes()).decode()


PIPELINES = {
    "drops the feature": lambda document: document.pop(FEATURE),
    "changes the feature": halved,
    "drops the version": lambda document: document.pop(VERSION),
    "changes the URL": lambda document: document.update({URL: document[URL].lower() + "?"}),
    "drops the picture": lambda document: document.pop(IMAGE),
    "changes the time": lambda document: document.update({AT: "2020-01-01T00:00:00+00:00"}),
    "drops all of ours": lambda document: [document.pop(field) for field in KEPT],
}


@pytest.mark.parametrize(
    ("change", "create"),
    [
        *((change, False) for change in PIPELINES),
        ("changes the feature", True),
        ("drops all of ours", True),
    ],
)
def test_a_pipeline_that_changes_our_fields_is_noticed(
    proxied_shop, proxy, elasticsearch_url, change, create
):
    shop = proxied_shop
    for item_id in "abc":
        shop.catalogue.add(item_id, url_of(item_id))
        if not create:
            shop.write_document(item_id)
    SearchIndex(search_connection(elasticsearch_url), shop.index).prepare()
    shop.client.ingest.put_pipeline(id=shop.index, processors=[])
    shop.client.indices.put_settings(index=shop.index, settings={"index.final_pipeline": shop.index})
    chunk = shop.chunk({item_id: some_vector(seed) for seed, item_id in enumerate("abc")})
    proxy.script = every("_bulk", through_pipeline(PIPELINES[change]))

    index.run(chunk, shop.settings(create_documents=create), shop.services)

    outcomes = list(packs.rows(chunk.outcomes))
    assert [row["status"] for row in outcomes] == [Status.REJECTED] * 3
    assert all(f"final_pipeline {shop.index}" in row["reason"] for row in outcomes)
    shop.client.indices.delete(index=shop.index)
    shop.client.ingest.delete_pipeline(id=shop.index)


def test_where_one_of_a_sample_was_changed_all_are_looked_at(
    proxied_shop, proxy, elasticsearch_url, monkeypatch
):
    shop = proxied_shop
    monkeypatch.setattr(index, "_SAMPLE", 3)
    ids = [f"{number:02}" for number in range(12)]
    shop.stock(*ids)
    SearchIndex(search_connection(elasticsearch_url), shop.index).prepare()
    vectors = {item_id: some_vector(seed) for seed, item_id in enumerate(ids)}
    odd = {FEATURE: None}

    def some(document):
        odd[FEATURE] = not odd[FEATURE]
        if odd[FEATURE]:
            halved(document)

    proxy.script = every("_bulk", through_pipeline(some))
    chunk = shop.chunk(vectors)
    index.run(chunk, shop.settings(bulk_requests=1), shop.services)
    outcomes = {row["item_id"]: row["status"] for row in packs.rows(chunk.outcomes)}
    as_written = {i for i in ids if np.allclose(shop.vector(i), vectors[i], rtol=1e-6)}
    assert len(as_written) == 6
    assert {i for i, status in outcomes.items() if status == Status.INDEXED} == as_written
    assert {i for i, status in outcomes.items() if status == Status.REJECTED} == set(ids) - as_written


def test_a_document_that_a_pipeline_drops_is_noticed(proxied_shop, proxy, elasticsearch_url):
    """Its write is answered with success, and a sequence number that none has."""
    shop = proxied_shop
    shop.catalogue.add("a", url_of("a"))
    SearchIndex(search_connection(elasticsearch_url), shop.index).prepare()
    chunk = shop.chunk({"a": some_vector(1)})
    dropped = {
        "_index": shop.index,
        "_id": "a",
        "_version": -3,
        "result": "noop",
        "_seq_no": -2,
        "status": 200,
    }
    body = json.dumps({"took": 1, "errors": False, "items": [{"create": dropped}]}).encode()
    proxy.script = every("_bulk", instead(200, body, **{"X-Elastic-Product": "Elasticsearch"}))
    index.run(chunk, shop.settings(create_documents=True), shop.services)
    (outcome,) = packs.rows(chunk.outcomes)
    assert (outcome["status"], outcome["reason"]) == (
        Status.REJECTED,
        "the index accepted the feature and does not hold it; the index itself names no ingest pipeline",
    )


def test_what_others_write_meanwhile_is_no_pipeline_s_work(proxied_shop, proxy, elasticsearch_url):
    shop = proxied_shop
    shop.stock("replaced", "updated", "newer", "same")
    SearchIndex(search_connection(elasticsearch_url), shop.index).prepare()
    chunk = shop.chunk({i: some_vector(1) for i in ("replaced", "updated", "newer", "same")})

    def meanwhile(exchange):
        answer = exchange.forward()
        shop.write_document("replaced")
        shop.client.update(index=shop.index, id="updated", doc={"price": 3})
        later = {AT: (chunk.plan.created_at + timedelta(seconds=1)).isoformat(), IMAGE: "another"}
        shop.client.update(index=shop.index, id="newer", doc=later)
        exchange.reply(answer)

    proxy.script = first(1, "_bulk", meanwhile)
    index.run(chunk, shop.settings(), shop.services)
    assert {row["item_id"]: row["status"] for row in packs.rows(chunk.outcomes)} == {
        "replaced": Status.SUPERSEDED,
        "updated": Status.INDEXED,
        "newer": Status.INDEXED,
        "same": Status.INDEXED,
    }
