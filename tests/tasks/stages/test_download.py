import functools
import hashlib
import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tasks import files
from tasks.fetching import hosts
from tasks.fetching.addresses import AddressPolicy
from tasks.fetching.client import Transfer
from tasks.progress import Progress, silent
from tasks.runs import packs
from tasks.runs.run import Chunk, Plan
from tasks.settings import Settings
from tasks.stages import download
from tests.plans import plan_over
from tests.scripted_server import Exchange, Reply, ScriptedServer

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
    monkeypatch.setattr(hosts, "_FIRST_BACK_OFF", 0.02)


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
    assert sum(statistics.pop("time_breakdown").values()) == pytest.approx(statistics["seconds"])
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
    image_server.answer("/forbidden", Reply(403))
    paths = ["/second", "/third", "/never", "/limited", "/forbidden"]
    chunk = plan_of([image_server.url(path) for path in paths]).chunks[0]

    statistics = download.run(chunk, settings_for(image_server, download_attempts=3))

    asked = {"/second": 2, "/third": 3, "/never": 3, "/limited": 3, "/forbidden": 1}
    assert Counter(request.path for request in image_server.requests) == asked
    assert statistics["requests"] == sum(asked.values())
    found = {url.removeprefix(image_server.url("")): row for url, row in pictures(chunk).items() if url}
    assert {path: row["status"] for path, row in found.items()} == {
        "/second": None,
        "/third": None,
        "/never": "unreachable",
        "/limited": "rate_limited",
        "/forbidden": "forbidden",
    }
    assert found["/second"]["content"] == found["/third"]["content"] == b"photo"


@pytest.mark.usefixtures("short_back_off")
def test_an_answer_that_is_cut_is_tried_again(image_server: ScriptedServer, plan_of: MakePlan) -> None:
    """Alone on its server, so that no connection is kept, on which it would be asked for once more."""
    image_server.answer("/cut", lambda exchange: exchange.reset())
    chunk = plan_of([image_server.url("/cut")]).chunks[0]

    assert download.run(chunk, settings_for(image_server, download_attempts=3))["requests"] == 3

    assert len(image_server.requests) == 3
    assert [row["status"] for row in pictures(chunk).values()] == ["unreachable"]


def test_the_pauses_between_tries_grow(
    image_server: ScriptedServer, plan_of: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "_FIRST_BACK_OFF", 0.1)
    image_server.answer("/never", Reply(500))
    chunk = plan_of([image_server.url("/never")]).chunks[0]
    download.run(chunk, settings_for(image_server, download_attempts=4))

    at = [request.at for request in image_server.requests]
    pauses = [after - before for before, after in itertools.pairwise(at)]
    for number, pause in enumerate(pauses):
        assert pause >= 0.05 * 2**number


def test_a_host_gets_only_so_many_at_once(image_server: ScriptedServer, plan_of: MakePlan) -> None:
    chunk = plan_of(serve(image_server, 24, delay=0.03)).chunks[0]
    download.run(chunk, settings_for(image_server, downloads=12, downloads_per_host=4))
    assert image_server.most_at_once == 4
    assert image_server.connections <= 4


def test_hosts_are_limited_one_by_one(
    image_server: ScriptedServer, other_server: ScriptedServer, plan_of: MakePlan
) -> None:
    urls = serve(image_server, 8, delay=0.2) + serve(other_server, 8, delay=0.2)
    download.run(
        plan_of(urls).chunks[0], settings_for(image_server, other_server, downloads=8, downloads_per_host=4)
    )
    ours, theirs = ([request.at for request in server.requests] for server in (image_server, other_server))
    assert min(ours) < max(theirs), "one after the other they would not meet"
    assert min(theirs) < max(ours)
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
    once = [Reply(429, headers={"Retry-After": "1"})]

    def first_of_all(exchange: Exchange) -> None:
        reply = once.pop() if once else Reply(body=b"at last")
        exchange.send(
            b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n" % (reply.status, len(reply.body))
            + b"".join(b"%s: %s\r\n" % (k.encode(), v.encode()) for k, v in reply.headers.items())
            + b"\r\n"
            + reply.body
        )

    for url in busy:
        image_server.answer(url.removeprefix(image_server.url("")), first_of_all)
    started = time.monotonic()
    # One at a time: the others must not wait for it either.
    chunk = plan_of(busy + rest).chunks[0]
    download.run(chunk, settings_for(image_server, other_server, downloads=1))

    first, *others = [request.at for request in image_server.requests]
    assert min(others) - first >= 1
    assert len(others) == 4
    assert max(request.at for request in other_server.requests) - started < 0.9
    assert {pictures(chunk)[url]["content"] for url in busy} == {b"at last"}


def test_retry_after_is_kept_where_the_url_itself_has_no_try_left(
    image_server: ScriptedServer, plan_of: MakePlan
) -> None:
    for path in ("/p0", "/p1"):
        image_server.answer(path, Reply(503, headers={"Retry-After": "1"}))
    chunk = plan_of([image_server.url("/p0"), image_server.url("/p1")]).chunks[0]
    download.run(chunk, settings_for(image_server, download_attempts=1, downloads_per_host=1))

    first, second = [request.at for request in image_server.requests]
    assert second - first >= 1
    assert {row["status"] for row in pictures(chunk).values()} == {"unreachable"}


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
    asked = len(image_server.requests)
    assert 5 <= asked <= 7, "as many different URLs as it takes, and what was on its way by then"
    assert statistics["requests"] == asked + 3
    found = pictures(chunk)
    assert Counter(found[url]["status"] for url in busy) == {
        "rate_limited": asked,
        "circuit_open": 50 - asked,
    }
    assert all("asked us to come again after 7200 s" in found[url]["reason"] for url in busy)
    assert all(found[url]["content"] for url in rest)


@pytest.fixture
def refusing() -> Iterator[str]:
    """A host that refuses every connection: its port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def urls_of(host: str, count: int) -> list[str]:
    return [f"http://{host}/p{number}" for number in range(count)]


def test_a_dead_host_is_given_up_while_the_others_go_on(
    image_server: ScriptedServer, plan_of: MakePlan, refusing: str
) -> None:
    dead, healthy = urls_of(refusing, 60), serve(image_server, 10)
    chunk = plan_of(dead + healthy).chunks[0]
    # One thread: it too must not wait for the dead host while the other has work.
    options = Settings(image_hosts=(refusing, image_server.host), host_patience=1, downloads=1)
    started = time.monotonic()

    statistics = download.run(chunk, options)

    assert 1 <= time.monotonic() - started < 10
    found = pictures(chunk)
    assert set(list(found)[:20]) >= set(healthy), "they did not wait for it"
    assert all(found[url]["content"] for url in healthy)
    assert {found[url]["status"] for url in dead} == {"unreachable", "circuit_open"}
    asked = [url for url in dead if found[url]["status"] == "unreachable"]
    failures = statistics["requests"] - len(healthy)
    assert 5 <= len(asked) <= failures < 60, "what was asked keeps its own status"
    assert {found[url]["reason"] for url in asked} == {f"{refusing}: Connection refused"}
    (reason,) = {found[url]["reason"] for url in dead if url not in asked}
    for part in (f"not asked for: the circuit of {refusing} is open for 5 min", "Connection refused"):
        assert part in reason


def test_a_host_of_a_few_urls_uses_up_their_attempts(
    image_server: ScriptedServer,
    plan_of: MakePlan,
    short_back_off: None,  # noqa: ARG001
) -> None:
    paths = [f"/busy{number}" for number in range(4)]
    for path in paths:
        image_server.answer(path, Reply(503))
    chunk = plan_of([image_server.url(path) for path in paths]).chunks[0]
    download.run(chunk, settings_for(image_server, host_patience=0.001))
    assert [image_server.count(path) for path in paths] == [3, 3, 3, 3]
    assert {row["reason"] for row in pictures(chunk).values()} == {"the server answered 503"}


@pytest.mark.usefixtures("short_back_off")
def test_a_host_that_fails_now_and_then_is_not_given_up(
    image_server: ScriptedServer, plan_of: MakePlan
) -> None:
    """Four of five answers are 500: each good one in between says that it is alive."""
    paths = [f"/p{number}" for number in range(40)]
    for number, path in enumerate(paths):
        image_server.answer(path, Reply(500) if number % 5 else Reply(body=b"photo"))
    chunk = plan_of([image_server.url(path) for path in paths]).chunks[0]
    download.run(
        chunk,
        settings_for(image_server, host_patience=5, download_attempts=1, downloads_per_host=1),
    )
    assert [image_server.count(path) for path in paths] == [1] * 40
    found = pictures(chunk)
    assert [found[image_server.url(path)]["status"] for path in paths] == [
        "unreachable" if number % 5 else None for number in range(40)
    ]


def test_what_one_chunk_learned_of_a_host_the_next_ones_use(
    image_server: ScriptedServer, other_server: ScriptedServer, plan_of: MakePlan, refusing: str
) -> None:
    dead, healthy = urls_of(refusing, 60), serve(image_server, 4)
    for number in range(40):
        other_server.answer(f"/p{number}", Reply(429, headers={"Retry-After": "7200"}))
    busy = [other_server.url(f"/p{number}") for number in range(40)]
    hosts_of = (refusing, image_server.host, other_server.host)
    first, second = plan_of(
        dead[:30] + busy[:20] + healthy[:2] + dead[30:] + busy[20:] + healthy[2:], bounds=(0, 52, 104)
    ).chunks

    download.run(first, Settings(image_hosts=hosts_of, host_patience=0.2))
    asked = len(other_server.requests)
    started = time.monotonic()
    statistics = download.run(second, Settings(image_hosts=hosts_of))

    assert time.monotonic() - started < 5, "the give-up time alone would be 15 s"
    assert statistics["requests"] == 2
    assert len(other_server.requests) == asked
    before, after = pictures(first), pictures(second)
    for urls in (dead, busy):
        reasons = [
            row["reason"] for url, row in before.items() if url in urls and row["status"] == "circuit_open"
        ]
        assert len({*reasons, *(after[url]["reason"] for url in urls if url in after)}) == 1
        assert {after[url]["status"] for url in urls if url in after} == {"circuit_open"}
    assert all(after[url]["content"] for url in healthy[2:])
    notes = {note["host"]: note for note in map(files.read_json, (first.plan.folder / "circuits").iterdir())}
    assert set(notes) == {refusing, other_server.host}
    minutes = {
        host: (datetime.fromisoformat(note["until"]) - datetime.now(UTC)).total_seconds() / 60
        for host, note in notes.items()
    }
    assert 4 < minutes[refusing] <= 5
    assert 119 < minutes[other_server.host] <= 120


def test_a_damaged_note_of_a_host_counts_as_none(image_server: ScriptedServer, plan_of: MakePlan) -> None:
    for number in range(40):
        image_server.answer(f"/p{number}", Reply(429, headers={"Retry-After": "7200"}))
    busy = [image_server.url(f"/p{number}") for number in range(40)]
    first, second = plan_of([*busy, *serve(image_server, 1, "q")], bounds=(0, 40, 41)).chunks
    download.run(first, settings_for(image_server))
    (note,) = (first.plan.folder / "circuits").iterdir()
    note.write_bytes(note.read_bytes()[:-20])
    download.run(second, settings_for(image_server))
    assert [row["content"] for row in pictures(second).values()] == [b"q0"]


def slow(results: Iterable[Any], *_: object) -> Iterator[Any]:
    """A pack's writer that is slower than any image server."""
    for result in results:
        time.sleep(0.05)
        yield result


@pytest.mark.parametrize(
    ("cause", "delay", "a_second", "progress"),
    [
        ("waiting for the first byte", 0.3, 500, silent),
        ("waiting for hosts' turns", 0.0, 10, silent),
        ("writing", 0.0, 500, slow),
    ],
)
def test_the_split_names_what_the_stage_waits_for(
    image_server: ScriptedServer,
    plan_of: MakePlan,
    cause: str,
    delay: float,
    a_second: float,
    progress: Progress,
) -> None:
    chunk = plan_of(serve(image_server, 16, delay=delay)).chunks[0]
    options = settings_for(image_server, downloads=4, requests_per_second_per_host=a_second)
    statistics = download.run(chunk, options, progress)
    breakdown = statistics["time_breakdown"]
    assert set(breakdown) == {
        "computing",
        "writing",
        "connecting",
        "TLS handshakes",
        "waiting for the first byte",
        "transferring",
        "waiting for hosts' turns",
    }
    assert sum(breakdown.values()) == pytest.approx(statistics["seconds"])
    assert max(breakdown, key=lambda name: breakdown[name]) == cause
    assert min(breakdown.values()) >= 0


def test_a_stage_without_a_request_has_a_split_too(plan_of: MakePlan) -> None:
    statistics = download.run(plan_of([None]).chunks[0], Settings(image_hosts=("*",)))
    assert sum(statistics["time_breakdown"].values()) == pytest.approx(statistics["seconds"])


def test_what_breaks_off_leaves_nothing_and_can_be_done_again(
    image_server: ScriptedServer, plan_of: MakePlan
) -> None:
    chunk = plan_of(serve(image_server, 40, delay=0.01)).chunks[0]
    options = settings_for(image_server, downloads=4)
    before = threading.active_count()

    def breaking(results: Iterable[Any], *_: object) -> Iterator[Any]:
        for number, result in enumerate(results):
            if number == 5:
                raise KeyboardInterrupt
            yield result

    with pytest.raises(KeyboardInterrupt):
        download.run(chunk, options, breaking)
    assert list(chunk.folder.iterdir()) == []
    deadline = time.monotonic() + 5  # the server's threads and ends of connections are of this process too
    while time.monotonic() < deadline and threading.active_count() > before:
        threading.Event().wait(0.01)
    assert threading.active_count() <= before

    assert download.run(chunk, options)["pictures"] == 40
    assert [path.name for path in chunk.folder.iterdir()] == ["pictures.parquet"]


@pytest.mark.parametrize(
    ("of_class", "method", "raised"),
    [(AddressPolicy, "check_address", ZeroDivisionError), (Transfer, "_take_body", RuntimeError)],
)
def test_an_error_of_ours_in_what_libcurl_calls_is_the_stages_own(
    image_server: ScriptedServer,
    plan_of: MakePlan,
    monkeypatch: pytest.MonkeyPatch,
    of_class: type,
    method: str,
    raised: type[Exception],
) -> None:
    def failing(*_: Any) -> Any:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(of_class, method, failing)
    chunk = plan_of(serve(image_server, 30)).chunks[0]
    with pytest.raises(raised):
        download.run(chunk, settings_for(image_server))
    assert not chunk.pictures.exists()


def test_no_more_is_fetched_than_the_writer_takes(image_server: ScriptedServer, plan_of: MakePlan) -> None:
    """Memory holds what is on its way, however long the chunk."""
    chunk = plan_of(serve(image_server, 60)).chunks[0]
    seen_while_waiting = []

    def slow_writer(results: Iterable[Any], *_: object) -> Iterator[Any]:
        for number, result in enumerate(results):
            if number == 0:
                time.sleep(0.4)
                seen_while_waiting.append(len(image_server.requests))
            yield result

    download.run(chunk, settings_for(image_server, downloads=4), slow_writer)
    assert seen_while_waiting[0] <= 4 + 4
    assert len(image_server.requests) == 60
