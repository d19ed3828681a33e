"""A shop whose pictures are on one host, most of them fine, a hundred of them faulty in thirty ways."""

import itertools
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from tasks.fetching.answers import Fetched
from tasks.fetching.downloads import Downloads
from tasks.settings import Settings
from tests.scripted_server import Exchange, Reply, ScriptedServer, drip, endless, redirect, say

GOOD, FAULTY = 1_300, 100
LARGEST = 20_000


def hang(first: bytes) -> Any:
    def script(exchange: Exchange) -> None:
        exchange.send(first)
        exchange.socket.recv(1)

    return script


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
FINE = Reply(body=b"at last")
KINDS: dict[str, tuple[str | None, tuple[Any, ...]]] = {
    "not found": ("gone", (Reply(404),)),
    "gone": ("gone", (Reply(410),)),
    "unauthorised": ("forbidden", (Reply(401),)),
    "forbidden": ("forbidden", (Reply(403),)),
    "for legal reasons": ("forbidden", (Reply(451),)),
    "no content": ("not_a_picture", (Reply(204),)),
    "partial": ("not_a_picture", (Reply(206, body=b"x"),)),
    "broken": ("unreachable", (Reply(500),)),
    "bad gateway": ("unreachable", (Reply(502),)),
    "not available": ("unreachable", (Reply(503),)),
    "too many": ("rate_limited", (Reply(429),)),
    "too many for a year": ("rate_limited", (Reply(429, headers={"Retry-After": "31536000"}),)),
    "not available for a day": ("unreachable", (Reply(503, headers={"Retry-After": "86400"}),)),
    "broken twice": (None, (Reply(500), Reply(502), FINE)),
    "reset twice": (None, (Exchange.reset, Exchange.reset, FINE)),
    "too many once": (None, (Reply(429), FINE)),
    "reset": ("unreachable", (Exchange.reset,)),
    "hangs up": ("unreachable", (say(b""),)),
    "cut in its header": ("unreachable", (say(b"HTTP/1.1 200 OK\r\nContent-"),)),
    "cut in its body": ("unreachable", (say(OK + b"x" * 600),)),
    "cut in a chunk": (
        "unreachable",
        (say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc"),),
    ),
    "another protocol": ("unreachable", (say(b"SSH-2.0-OpenSSH_9.0\r\n"),)),
    "silence": ("timed_out", (hang(b""),)),
    "silence in its header": ("timed_out", (hang(b"HTTP/1.1 200 OK\r\n"),)),
    "silence in its body": ("timed_out", (hang(OK + b"x"),)),
    "drip": ("timed_out", (drip(OK, b"x"),)),
    "drip of headers": ("timed_out", (drip(b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n"),)),
    "too large": ("too_large", (Reply(body=b"x" * (LARGEST + 1)),)),
    "endless": ("too_large", (endless,)),
    "redirects for ever": ("unreachable", (redirect("?again"),)),
    "redirects inside": ("blocked_address", (redirect("http://169.254.169.254/"),)),
    "redirects to a file": ("invalid_url", (redirect("file:///etc/passwd"),)),
}
"""What a faulty URL ends with, None being a picture, and what the server does, at last always the same."""


@pytest.fixture
def shop(image_server: ScriptedServer) -> Callable[[str], tuple[list[str], dict[str, str | None]]]:
    """Serves the shop; gives the URLs of the fine pictures and what each of the faulty ones ends with."""

    def serve(place: str) -> tuple[list[str], dict[str, str | None]]:
        folders = {"first": "a", "last": "z"}.get(place, "m")
        faulty = {}
        kinds = itertools.cycle(KINDS.items())
        for number, (_, (status, scripts)) in enumerate(itertools.islice(kinds, FAULTY)):
            path = f"/{folders}/{number:04}"
            image_server.answer(path, *scripts)
            image_server.answer(f"{path}?again", *scripts)
            faulty[image_server.url(path)] = status
        good = []
        for number in range(GOOD):
            path = f"/m/{number:04}-good"
            image_server.answer(path, Reply(body=path.encode()))
            good.append(image_server.url(path))
        return good, faulty

    return serve


@pytest.fixture
def shorter(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings with a tenth of the usual times, and the pauses likewise."""
    from tasks.fetching import hosts

    monkeypatch.setattr(hosts, "_FIRST_BACK_OFF", 0.05)
    monkeypatch.setattr(hosts, "_STRAGGLES", 0.1)
    return {"connect_timeout": 0.5, "read_timeout": 1, "transfer_timeout": 1.5, "host_patience": 1.5}


def fetched(urls: list[str], settings: Settings) -> Iterator[tuple[str, Fetched, float]]:
    """What each URL ends with, and when, in seconds since the first was asked for."""
    downloads = Downloads(settings, None)
    began = time.monotonic()
    try:
        for url in urls:
            assert downloads.add(url) is None
        while downloads.waiting:
            for url, answer, _ in downloads.step():
                yield url, answer, time.monotonic() - began
    finally:
        with suppress(OSError):
            downloads.close()


@pytest.mark.parametrize("place", ["first", "last", "among"])
def test_faulty_urls_cost_no_good_picture_and_have_their_own_status(
    image_server: ScriptedServer, shop: Any, shorter: dict[str, Any], place: str
) -> None:
    good, faulty = shop(place)
    urls = [*good, *faulty]
    random.Random(place).shuffle(urls)
    settings = Settings(image_hosts=(image_server.host,), max_image_bytes=LARGEST, **shorter)
    found, at = {}, {}
    for url, answer, seconds in fetched(urls, settings):
        found[url], at[url] = answer, seconds

    assert len(found) == len(urls)
    assert Counter(found[url].status for url in good) == {None: GOOD}
    assert all(found[url].content == url.removeprefix(image_server.url("")).encode() for url in good)
    assert {url: found[url].status for url in faulty} == faulty
    asked = Counter(request.path for request in image_server.requests)
    requests = sum(asked[url.removeprefix(image_server.url(""))] for url in good)
    assert requests < 1.05 * GOOD, "but for those that lost their place once, on a machine that stumbles"
    assert max(at[url] for url in good) < max(at.values()), "what is slow comes last"


def test_a_shop_of_faulty_urls_alone_is_not_given_up_while_some_answer(
    image_server: ScriptedServer, shorter: dict[str, Any]
) -> None:
    """Nine of ten are broken, and the tenth shows that the host is alive."""
    urls = [image_server.url(f"/{number}") for number in range(60)]
    for number in range(60):
        image_server.answer(f"/{number}", Reply(500) if number % 10 else Reply(body=b"x"))
    random.Random(1).shuffle(urls)
    settings = Settings(
        image_hosts=(image_server.host,), download_attempts=1, **(shorter | {"host_patience": 15})
    )
    found = {url: answer.status for url, answer, _ in fetched(urls, settings)}
    assert Counter(found.values()) == {None: 6, "unreachable": 54}


@pytest.fixture
def full() -> Iterator[str]:
    """A host that neither accepts connections nor refuses them."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        for filler in fillers:
            filler.close()


def test_a_dead_host_costs_its_give_up_time_and_no_other_host_anything(
    image_server: ScriptedServer, shorter: dict[str, Any], full: str
) -> None:
    good = [image_server.url(f"/{number}") for number in range(100)]
    for number in range(100):
        image_server.answer(f"/{number}", Reply(body=b"x"))
    dead = [f"http://{full}/{number}" for number in range(500)]
    urls = [url for pair in itertools.zip_longest(dead, good) for url in pair if url]
    settings = Settings(image_hosts=(image_server.host, full), **shorter)
    found, at = {}, {}
    for url, answer, seconds in fetched(urls, settings):
        found[url], at[url] = answer.status, seconds
    assert {found[url] for url in good} == {None}
    assert max(at[url] for url in good) < 0.5
    statuses = Counter(found[url] for url in dead)
    assert set(statuses) == {"timed_out", "circuit_open"}
    assert statuses["circuit_open"] > 400
    assert max(at.values()) < 1.5 + 0.5 + 0.5, "the give-up time, and the last probes'"


def test_a_host_that_asks_for_pauses_now_and_then_loses_nothing(image_server: ScriptedServer) -> None:
    """Ten requests are answered, and then nothing but 429 until its pause is over."""
    until = [0.0]
    served: Counter[str] = Counter()
    refused = []

    def script(exchange: Exchange) -> None:
        now = time.monotonic()
        if now >= until[0] and served.total() % 10 == 9:
            until[0] = now + 1
        if now < until[0]:
            served["refused"] += served.total() % 10 == 9
            refused.append(now)
            exchange.send(b"HTTP/1.1 429 Slow down\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
        else:
            served["good"] += 1
            exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")

    urls = [image_server.url(f"/{number}") for number in range(40)]
    for number in range(40):
        image_server.answer(f"/{number}", script)
    settings = Settings(image_hosts=(image_server.host,), downloads_per_host=4)
    found = [answer for _, answer, _ in fetched(urls, settings)]
    assert found == [Fetched(content=b"abc")] * 40
    pauses = [at for before, at in itertools.pairwise(refused) if at - before > 0.9]
    assert len(refused) <= 4 * (len(pauses) + 1), "none but those that were on their way"
