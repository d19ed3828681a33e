import functools
import hashlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import download, packs
from tasks.download import HostQueues, Job
from tasks.runs import Chunk, Plan
from tasks.settings import Settings
from tests.plans import plan_over
from tests.scripted_server import Reply, ScriptedServer

MakePlan = Callable[..., Plan]


@pytest.fixture
def plan_of(tmp_path: Path) -> MakePlan:
    return functools.partial(plan_over, tmp_path)


@pytest.fixture
def other_server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def short_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_FIRST_BACK_OFF", 0.02)


def settings_for(*servers: ScriptedServer, **changed: Any) -> Settings:
    return Settings(image_hosts=tuple(server.host for server in servers), **changed)


def serve(server: ScriptedServer, count: int, prefix: str = "p", **reply: Any) -> list[str]:
    """Serve `count` different pictures; return their URLs."""
    for number in range(count):
        server.answer(f"/{prefix}{number}", Reply(body=f"{prefix}{number}".encode(), **reply))
    return [server.url(f"/{prefix}{number}") for number in range(count)]


def pictures(chunk: Chunk) -> dict[str | None, dict[str, Any]]:
    """The pack's rows by URL, each URL once."""
    rows = list(packs.rows(chunk.pictures))
    by_url = {row["img_url"]: row for row in rows}
    assert len(by_url) == len(rows)
    return by_url


def test_each_url_is_fetched_once_and_described(image_server: ScriptedServer, plan_of: MakePlan) -> None:
    urls = serve(image_server, 3)
    gone = image_server.url("/gone")
    chunk = plan_of([urls[0], urls[1], urls[0], urls[2], gone, urls[0], gone]).chunks[0]

    statistics = download.run(chunk, settings_for(image_server))

    assert Counter(request.path for request in image_server.requests) == {
        "/p0": 1, "/p1": 1, "/p2": 1, "/gone": 1,
    }  # fmt: skip
    found = pictures(chunk)
    assert set(found) == {*urls, gone}
    for number, url in enumerate(urls):
        content = f"p{number}".encode()
        assert found[url] == {
            "img_url": url,
            "status": None,
            "reason": None,
            "sha256": hashlib.sha256(content).hexdigest(),
            "content": content,
        }
    assert found[gone] == {
        "img_url": gone,
        "status": "gone",
        "reason": "the server answered 404",
        "sha256": None,
        "content": None,
    }
    assert 0 < statistics.pop("seconds") < 5
    assert statistics == {"items": 7, "pictures": 4, "bytes": 6, "requests": 4}
    assert {key: packs.statistics(chunk.pictures)[key] for key in statistics} == statistics


def test_a_chunk_takes_its_own_items_alone(image_server: ScriptedServer, plan_of: MakePlan) -> None:
    urls = serve(image_server, 6)
    first, second = plan_of(urls, bounds=(0, 2, 6)).chunks
    download.run(second, settings_for(image_server))
    assert set(pictures(second)) == set(urls[2:])
    assert not first.pictures.exists()


def test_the_pack_is_taken_as_it_is_the_second_time(image_server: ScriptedServer, plan_of: MakePlan) -> None:
    chunk = plan_of(serve(image_server, 3)).chunks[0]
    statistics = download.run(chunk, settings_for(image_server))
    before = chunk.pictures.stat()

    assert download.run(chunk, settings_for(image_server)) == statistics
    assert len(image_server.requests) == 3
    assert chunk.pictures.stat() == before


def test_what_is_no_url_costs_no_request(image_server: ScriptedServer, plan_of: MakePlan) -> None:
    bad = [None, "", "a.jpg", "ftp://127.0.0.1/a.jpg", image_server.url("/" + "a" * 9000), "http://[::1"]
    blocked = f"http://127.0.0.1:{image_server.port + 1}/a.jpg"
    good = serve(image_server, 1)
    chunk = plan_of([*bad, None, blocked, *good]).chunks[0]

    statistics = download.run(chunk, settings_for(image_server))

    found = pictures(chunk)
    assert {found[url]["status"] for url in bad} == {"invalid_url"}
    assert all(found[url]["reason"] for url in bad)
    assert found[blocked]["status"] == "blocked_address"
    assert found[good[0]]["content"] == b"p0"
    assert len(image_server.requests) == 1
    assert statistics["pictures"] == 8


def test_nothing_to_fetch_is_a_pack_too(plan_of: MakePlan) -> None:
    chunk = plan_of([None]).chunks[0]
    assert download.run(chunk, Settings(image_hosts=("*",)))["requests"] == 0
    assert list(pictures(chunk)) == [None]


@pytest.mark.usefixtures("short_back_off")
def test_what_may_pass_is_tried_again(image_server: ScriptedServer, plan_of: MakePlan) -> None:
    bad, limited, good = Reply(503), Reply(429), Reply(body=b"photo")
    image_server.answer("/second", bad, good)
    image_server.answer("/third", bad, limited, good)
    image_server.answer("/never", bad)
    image_server.answer("/limited", limited)
    image_server.answer("/cut", lambda exchange: exchange.reset())
    image_server.answer("/forbidden", Reply(403))
    paths = ["/second", "/third", "/never", "/limited", "/cut", "/forbidden"]
    chunk = plan_of([image_server.url(path) for path in paths]).chunks[0]

    statistics = download.run(chunk, settings_for(image_server, download_attempts=3))

    asked = {"/second": 2, "/third": 3, "/never": 3, "/limited": 3, "/cut": 3, "/forbidden": 1}
    assert Counter(request.path for request in image_server.requests) == asked
    assert statistics["requests"] == sum(asked.values())
    found = {url.removeprefix(image_server.url("")): row for url, row in pictures(chunk).items() if url}
    assert {path: row["status"] for path, row in found.items()} == {
        "/second": None,
        "/third": None,
        "/never": "unreachable",
        "/limited": "rate_limited",
        "/cut": "unreachable",
        "/forbidden": "forbidden",
    }
    assert found["/second"]["content"] == found["/third"]["content"] == b"photo"


def test_the_pauses_between_tries_grow(
    image_server: ScriptedServer, plan_of: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_FIRST_BACK_OFF", 0.1)
    image_server.answer("/never", Reply(500))
    chunk = plan_of([image_server.url("/never")]).chunks[0]
    download.run(chunk, settings_for(image_server, download_attempts=4))

    at = [request.at for request in image_server.requests]
    pauses = [after - before for before, after in itertools.pairwise(at)]
    for number, pause in enumerate(pauses):
        assert 0.05 * 2**number <= pause <= 0.15 * 2**number + 0.1


def test_a_host_gets_only_so_many_at_once(image_server: ScriptedServer, plan_of: MakePlan) -> None:
    chunk = plan_of(serve(image_server, 24, delay=0.03)).chunks[0]
    download.run(chunk, settings_for(image_server, downloads=12, downloads_per_host=4))
    assert image_server.most_at_once == 4
    assert image_server.connections <= 4


def test_hosts_are_limited_one_by_one(
    image_server: ScriptedServer, other_server: ScriptedServer, plan_of: MakePlan
) -> None:
    urls = serve(image_server, 8, delay=0.2) + serve(other_server, 8, delay=0.2)
    started = time.monotonic()
    download.run(
        plan_of(urls).chunks[0], settings_for(image_server, other_server, downloads=8, downloads_per_host=4)
    )
    assert time.monotonic() - started < 0.75, "one after the other they would take 0.8 s"
    assert image_server.most_at_once == other_server.most_at_once == 4


def test_a_host_gets_only_so_many_a_second(image_server: ScriptedServer, plan_of: MakePlan) -> None:
    chunk = plan_of(serve(image_server, 13)).chunks[0]
    download.run(chunk, settings_for(image_server, requests_per_second_per_host=25))
    at = sorted(request.at for request in image_server.requests)
    assert at[-1] - at[0] >= 12 / 25 - 0.05
    # Nor does any stretch of it burst; a late arrival shortens the gap after it a little.
    assert all(late - early >= 4 / 25 - 0.05 for early, late in zip(at, at[4:], strict=False))


def test_a_slow_host_does_not_hold_up_the_others(
    image_server: ScriptedServer, other_server: ScriptedServer, plan_of: MakePlan
) -> None:
    slow, fast = serve(image_server, 4, delay=0.6), serve(other_server, 40)
    download.run(
        plan_of(slow + fast).chunks[0],
        settings_for(image_server, other_server, downloads=4, downloads_per_host=2),
    )
    first_slow_answer = sorted(request.at for request in image_server.requests)[2]
    assert max(request.at for request in other_server.requests) < first_slow_answer
    assert len(image_server.requests) == 4


def test_retry_after_is_kept_for_the_host_and_no_other(
    image_server: ScriptedServer, other_server: ScriptedServer, plan_of: MakePlan
) -> None:
    busy, rest = serve(image_server, 4), serve(other_server, 20)
    image_server.answer("/p0", Reply(429, headers={"Retry-After": "1"}), Reply(body=b"at last"))
    started = time.monotonic()
    # One thread: it too must not sleep while another host has work.
    chunk = plan_of(busy + rest).chunks[0]
    download.run(chunk, settings_for(image_server, other_server, downloads=1))

    first, *others = [request.at for request in image_server.requests]
    assert min(others) - first >= 1
    assert len(others) == 4
    assert max(request.at for request in other_server.requests) - started < 0.9
    assert pictures(chunk)[busy[0]]["content"] == b"at last"


def test_retry_after_is_kept_where_the_url_itself_has_no_try_left(
    image_server: ScriptedServer, plan_of: MakePlan
) -> None:
    urls = serve(image_server, 2)
    image_server.answer("/p0", Reply(503, headers={"Retry-After": "1"}))
    chunk = plan_of(urls).chunks[0]
    download.run(chunk, settings_for(image_server, download_attempts=1, downloads_per_host=1))

    first, second = [request.at for request in image_server.requests]
    assert second - first >= 1
    assert pictures(chunk)[urls[0]]["status"] == "unreachable"
    assert pictures(chunk)[urls[1]]["content"] == b"p1"


def test_a_host_that_wants_hours_is_left_to_a_later_run(
    image_server: ScriptedServer, other_server: ScriptedServer, plan_of: MakePlan
) -> None:
    rest = serve(other_server, 3)
    for number in range(50):
        image_server.answer(f"/p{number}", Reply(429, headers={"Retry-After": "7200"}))
    busy = [image_server.url(f"/p{number}") for number in range(50)]
    chunk = plan_of(busy + rest).chunks[0]
    started = time.monotonic()

    statistics = download.run(chunk, settings_for(image_server, other_server, downloads_per_host=2))

    assert time.monotonic() - started < 2
    assert len(image_server.requests) <= 2, "it was asked once by each of two threads at most"
    assert statistics["requests"] == len(image_server.requests) + 3
    found = pictures(chunk)
    assert {found[url]["status"] for url in busy} == {"rate_limited"}
    assert all("left alone for 7200 s" in found[url]["reason"] for url in busy)
    assert all(found[url]["content"] for url in rest)


def downloading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "_fetch_from" in thread.name]


def test_what_breaks_off_leaves_nothing_and_can_be_done_again(
    image_server: ScriptedServer, plan_of: MakePlan
) -> None:
    chunk = plan_of(serve(image_server, 40, delay=0.01)).chunks[0]
    options = settings_for(image_server, downloads=4)

    def breaking(results: Iterable[Any], *_: object) -> Iterator[Any]:
        for number, result in enumerate(results):
            if number == 5:
                assert downloading_threads()
                raise KeyboardInterrupt
            yield result

    with pytest.raises(KeyboardInterrupt):
        download.run(chunk, options, breaking)
    assert list(chunk.folder.iterdir()) == []
    assert downloading_threads() == []

    assert download.run(chunk, options)["pictures"] == 40
    assert [path.name for path in chunk.folder.iterdir()] == ["pictures.parquet"]


def test_an_error_in_a_thread_is_the_stages_own(
    image_server: ScriptedServer, plan_of: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = download.Fetcher.fetch

    def fetch(self: Any, url: str) -> Any:
        if url.endswith("/p7"):
            raise ZeroDivisionError("a fault of ours")
        return really(self, url)

    monkeypatch.setattr(download.Fetcher, "fetch", fetch)
    chunk = plan_of(serve(image_server, 30)).chunks[0]
    with pytest.raises(ZeroDivisionError, match="a fault of ours"):
        download.run(chunk, settings_for(image_server))
    assert not chunk.pictures.exists()
    assert downloading_threads() == []


def test_no_more_is_fetched_than_the_writer_takes(image_server: ScriptedServer, plan_of: MakePlan) -> None:
    """Memory holds what threads have and what waits for the writer, however long the chunk."""
    chunk = plan_of(serve(image_server, 60)).chunks[0]
    seen_while_waiting = []

    def slow_writer(results: Iterable[Any], *_: object) -> Iterator[Any]:
        for number, result in enumerate(results):
            if number == 0:
                time.sleep(0.4)
                seen_while_waiting.append(len(image_server.requests))
            yield result

    download.run(chunk, settings_for(image_server, downloads=4), slow_writer)
    assert seen_while_waiting[0] <= 1 + 4 + 4
    assert len(image_server.requests) == 60


# The queues by themselves


@settings(max_examples=40, deadline=None)
@given(
    jobs=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), max_size=25),
    at_once=st.integers(1, 3),
    threads=st.integers(1, 6),
    pauses=st.lists(st.sampled_from([0.0, 0.0, 0.002]), min_size=3, max_size=3),
)
def test_every_job_is_handed_out_once_a_try_and_no_host_gets_too_many(
    jobs: list[tuple[int, int]], at_once: int, threads: int, pauses: list[float]
) -> None:
    """Jobs are (host, tries that they take)."""
    queues = HostQueues(at_once, per_second=1e6)
    tries = {}
    for number, (host, needed) in enumerate(jobs):
        url = f"http://host{host}/{number}"
        tries[url] = needed
        queues.add(url)
    assert queues.waiting == len(jobs)

    lock = threading.Lock()
    in_flight: Counter[str] = Counter()
    most: Counter[str] = Counter()
    handed_out: Counter[str] = Counter()
    out: set[str] = set()
    twice: list[str] = []

    def work() -> None:
        while (job := queues.take()) is not None:
            with lock:
                handed_out[job.url] += 1
                in_flight[job.host] += 1
                if job.url in out:
                    twice.append(job.url)
                out.add(job.url)
                most[job.host] = max(most[job.host], in_flight[job.host])
            time.sleep(0.0005)
            with lock:
                in_flight[job.host] -= 1
                out.discard(job.url)
            job.attempts += 1
            if job.attempts < tries[job.url]:
                queues.pause(job.host, pauses[job.attempts - 1])
                queues.put_back(job, pauses[-job.attempts])
            else:
                queues.done(job)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
        assert not worker.is_alive(), "the queues never let a thread go"
    assert handed_out == tries
    assert twice == [], "handed out while another thread had it"
    assert all(count <= at_once for count in most.values())
    assert queues.waiting == 0


def test_closing_lets_waiting_threads_go() -> None:
    queues = HostQueues(1, per_second=1e6)
    queues.add("http://host/1")
    queues.add("http://host/2")
    taken = queues.take()
    assert isinstance(taken, Job)
    waiting = threading.Thread(target=queues.take, daemon=True)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive(), "the host's one place is taken"
    queues.close()
    waiting.join(5)
    assert not waiting.is_alive()


def test_spellings_of_one_host_share_its_places() -> None:
    queues = HostQueues(2, per_second=1e6)
    for url in ("http://CDN.example/1", "http://cdn.example/2", "https://cdn.example/3"):
        queues.add(url)
    hosts = []
    for _ in range(2):
        job = queues.take()
        assert job
        hosts.append(job.host)
    assert hosts == ["cdn.example", "cdn.example"]
    third = threading.Thread(target=queues.take, daemon=True)
    third.start()
    third.join(0.05)
    assert third.is_alive()
    queues.close()
