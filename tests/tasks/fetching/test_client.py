import datetime
import email.utils
import functools
import gzip
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import pycurl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from local_stack.certificates import certificate_for
from tasks.errors import ConfigurationError
from tasks.fetching.answers import Fetched
from tasks.fetching.client import Limits, Transfer
from tasks.statuses import Status
from tasks.urls import MAX_URL_LENGTH, read
from tests.fetching import Fetcher
from tests.h2_server import H2Server
from tests.scripted_server import Exchange, Reply, ScriptedServer, drip, say

MakeFetcher = Callable[..., Fetcher]

PHOTO = bytes(range(256)) * 40


@pytest.fixture
def fetcher() -> Iterator[Callable[..., Fetcher]]:
    """Makes fetchers, which are closed when the test is over."""
    made: list[Fetcher] = []

    def make(*hosts: str, **changed: Any) -> Fetcher:
        made.append(Fetcher(*hosts, **changed))
        return made[-1]

    yield make
    for one in made:
        one.client.close()


@pytest.fixture
def fetch(image_server: ScriptedServer, fetcher: MakeFetcher) -> Any:
    """Fetch a path of the server."""
    one = fetcher(image_server.host, connect_timeout=5, read_timeout=5, transfer_timeout=10)
    return lambda path="/a.jpg": one.fetch(image_server.url(path))


@pytest.fixture
def elsewhere() -> Iterator[socket.socket]:
    """A port that listens and that no list names."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def connections_to(listening: socket.socket) -> int:
    """How many connections wait to be accepted."""
    listening.settimeout(0.05)
    for count in itertools.count():
        try:
            listening.accept()[0].close()
        except TimeoutError:
            return count
    raise AssertionError


# What a server does, beyond a Reply


def flood(first: bytes, forever: bytes) -> Any:
    """Send this, then that again and again, as fast as it is taken."""

    def script(exchange: Exchange) -> None:
        exchange.send(first)
        for _ in range(10_000):
            exchange.send(forever * (65_536 // len(forever)))

    return script


# Answers


def test_a_picture_comes_as_it_is(image_server: ScriptedServer, fetch: Any) -> None:
    image_server.answer("/a.jpg", Reply(body=PHOTO))
    assert fetch() == Fetched(content=PHOTO)


def test_a_picture_in_chunks_or_without_a_length(image_server: ScriptedServer, fetch: Any) -> None:
    def chunked(exchange: Exchange) -> None:
        # It hangs up afterwards and says so: the next request must not find it about to.
        exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        for start in range(0, len(PHOTO), 1000):
            part = PHOTO[start : start + 1000]
            exchange.send(b"%x\r\n%s\r\n" % (len(part), part))
        exchange.send(b"0\r\n\r\n")

    image_server.answer("/chunked", chunked)
    image_server.answer("/until-the-end", say(b"HTTP/1.0 200 OK\r\n\r\n" + PHOTO))

    assert fetch("/chunked").content == PHOTO
    assert fetch("/until-the-end").content == PHOTO


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc", id="lines without CR"),
        pytest.param(b"HTTP/1.1 200\r\nContent-Length:3\r\n\r\nabc", id="no reason"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: \x01\xff\r\nContent-Length: 3\r\n\r\nabc", id="odd header"),
        pytest.param(
            b"HTTP/1.1 100 Continue\r\nContent-Length: 9\r\n\r\n"
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
            id="after others",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nX: 1\r\n\r\n",
            id="trailer",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3  \r\nabc\r\n0\r\n\r\n", id="padded size"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n0\r\n\r\n",
            id="both of a length and in chunks",
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nabc", id="identity"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef", id="more than announced"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 404 no\r\n\r\n", id="another"),
    ],
)
def test_an_answer_may_be_odd(image_server: ScriptedServer, fetch: Any, answer: bytes) -> None:
    image_server.answer("/a.jpg", say(answer))
    assert [fetch() for _ in range(3)] == [Fetched(content=b"abc")] * 3


@pytest.mark.parametrize(
    ("status", "script"),
    [
        pytest.param(Status.UNREACHABLE, flood(b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n"), id="headers"),
        pytest.param(Status.UNREACHABLE, flood(b"HTTP/1.1 200 OK\r\nX", b"x"), id="a header's name"),
        pytest.param(Status.UNREACHABLE, flood(b"HTTP/1.1 200 OK\r\nX: ", b"x"), id="a header"),
        pytest.param(
            Status.UNREACHABLE, flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), id="what is no answer yet"
        ),
        # libcurl passes over it without a limit: nothing of the picture has come, and that has one.
        pytest.param(
            Status.TIMED_OUT,
            flood(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x"),
            id="a chunk's extension",
        ),
        pytest.param(
            Status.UNREACHABLE,
            flood(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"X: 1\r\n"),
            id="trailers",
        ),
    ],
)
def test_what_comes_beside_a_body_is_bounded(
    image_server: ScriptedServer, fetcher: MakeFetcher, status: Status, script: Any
) -> None:
    image_server.answer("/a.jpg", script)
    fetched = fetcher(image_server.host, read_timeout=0.5).fetch(image_server.url("/a.jpg"))
    assert (fetched.status, fetched.worth_retrying) == (status, True)


@pytest.mark.parametrize(
    ("code", "status", "worth_retrying", "overloaded"),
    [
        (404, Status.GONE, False, False),
        (410, Status.GONE, False, False),
        (400, Status.FORBIDDEN, False, False),
        (401, Status.FORBIDDEN, False, False),
        (403, Status.FORBIDDEN, False, False),
        (451, Status.FORBIDDEN, False, False),
        (408, Status.UNREACHABLE, True, False),
        (425, Status.UNREACHABLE, True, False),
        (429, Status.RATE_LIMITED, True, True),
        (500, Status.UNREACHABLE, True, False),
        (502, Status.UNREACHABLE, True, False),
        (503, Status.UNREACHABLE, True, True),
        (204, Status.NOT_A_PICTURE, False, False),
        (206, Status.NOT_A_PICTURE, False, False),
        (302, Status.NOT_A_PICTURE, False, False),  # a redirect without a location
        (304, Status.NOT_A_PICTURE, False, False),
    ],
)
def test_each_answer_has_its_status(
    image_server: ScriptedServer,
    fetch: Any,
    code: int,
    status: Status,
    worth_retrying: bool,
    overloaded: bool,
) -> None:
    image_server.answer("/a.jpg", Reply(code, headers={"Content-Length": "0"}))
    expected = Fetched(
        status=status,
        reason=f"the server answered {code}",
        worth_retrying=worth_retrying,
        overloaded=overloaded,
    )
    assert fetch() == expected
    assert image_server.count("/a.jpg") == 1


@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_as_a_number_and_as_a_date(image_server: ScriptedServer, fetch: Any, code: int) -> None:
    in_a_minute = email.utils.format_datetime(
        datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60), usegmt=True
    )
    a_year = 365 * 86_400
    for header, least, most in [
        ("7", 7, 7),
        ("0", 0, 0),
        (in_a_minute, 55, 60),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("9" * 4000, a_year, a_year),
        ("Fri, 31 Dec 9999 23:59:59 GMT", a_year, a_year),
    ]:
        image_server.answer("/a.jpg", Reply(code, headers={"Retry-After": header}))
        fetched = fetch()
        assert least <= fetched.retry_after <= most, header
        assert "asked us to come again after" in fetched.reason


@pytest.mark.parametrize(
    "header", ["", "-5", "1.5", "1e3", "0x10", "soon", "7 seconds", "7, 8", "2026-11-21T00:00:00Z", "²"]
)
def test_a_retry_after_that_is_neither_says_nothing(
    image_server: ScriptedServer, fetch: Any, header: str
) -> None:
    image_server.answer("/a.jpg", Reply(429, headers={"Retry-After": header}))
    fetched = fetch()
    assert fetched.retry_after is None
    assert fetched.reason == "the server answered 429"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.one_of(
        st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40),
        st.from_regex(
            r"\A(Mon, )?[0-9]{1,9} (Jan|Feb) [0-9]{1,9} [0-9]{1,3}:[0-9]{1,3} ([+-][0-9]{1,30}|GMT)\Z"
        ),
        st.from_regex(r"\A[0-9]{1,5000}\Z"),
    )
)
@example("²")
def test_no_retry_after_however_odd_is_an_error(
    image_server: ScriptedServer, fetch: Any, header: str
) -> None:
    image_server.answer("/a.jpg", Reply(429, headers={"Retry-After": header}))
    fetched = fetch()
    assert fetched.status == Status.RATE_LIMITED
    assert fetched.retry_after is None or fetched.retry_after >= 0


# Redirects


def test_redirects_are_followed(image_server: ScriptedServer, fetch: Any) -> None:
    image_server.answer("/a.jpg", Reply(301, headers={"Location": image_server.url("/b/c.jpg")}))
    image_server.answer("/b/c.jpg", Reply(302, headers={"Location": "../d.jpg?size=l"}))
    image_server.answer(
        "/d.jpg?size=l", Reply(307, headers={"Location": "/é.jpg".encode().decode("latin-1")})
    )
    image_server.answer("/%C3%A9.jpg", Reply(308, headers={"Location": "//" + image_server.host + "/end"}))
    image_server.answer("/end", Reply(body=PHOTO))
    assert fetch().content == PHOTO


def test_a_redirect_loop_ends(image_server: ScriptedServer, fetch: Any) -> None:
    image_server.answer("/a.jpg", Reply(302, headers={"Location": "/a.jpg"}))
    fetched = fetch()
    assert fetched.status == Status.UNREACHABLE
    assert "redirects" in fetched.reason
    assert image_server.count("/a.jpg") == 6


def test_a_redirect_elsewhere_does_not_even_connect(
    image_server: ScriptedServer, fetch: Any, elsewhere: socket.socket, fetcher: MakeFetcher
) -> None:
    port = elsewhere.getsockname()[1]
    image_server.answer("/a.jpg", Reply(302, headers={"Location": f"http://127.0.0.1:{port}/secret"}))
    fetched = fetch()
    assert fetched.status == Status.BLOCKED_ADDRESS
    assert str(port) in fetched.reason
    assert connections_to(elsewhere) == 0
    assert fetcher(f"127.0.0.1:{port}", read_timeout=0.1).fetch(f"http://127.0.0.1:{port}/").status == (
        Status.TIMED_OUT
    )
    assert connections_to(elsewhere) == 1, "the socket would have counted"


@pytest.mark.parametrize("inside", ["169.254.169.254", "localhost", "2130706433", "[::ffff:7f00:1]"])
def test_a_redirect_inside_is_blocked_where_every_public_host_is_allowed(
    image_server: ScriptedServer, inside: str, fetcher: MakeFetcher
) -> None:
    image_server.answer("/a.jpg", Reply(302, headers={"Location": f"http://{inside}/latest/meta-data"}))
    fetched = fetcher("*", image_server.host).fetch(image_server.url("/a.jpg"))
    assert fetched.status == Status.BLOCKED_ADDRESS
    assert "not a public address" in fetched.reason


@pytest.mark.parametrize(
    "location",
    [
        "ftp://127.0.0.1/a.jpg",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "http://[::1",
        "http://u:p@h/",
    ],
)
def test_a_redirect_to_no_picture_url_is_an_invalid_url(
    image_server: ScriptedServer, fetch: Any, location: str
) -> None:
    image_server.answer("/a.jpg", Reply(302, headers={"Location": location}))
    assert fetch().status == Status.INVALID_URL


# Sizes and times


def test_too_large_as_announced_is_not_read(image_server: ScriptedServer, fetcher: MakeFetcher) -> None:
    def announce(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n")
        time.sleep(2)

    image_server.answer("/1001", announce)
    image_server.answer("/1000", Reply(body=b"x" * 1000))
    one = fetcher(image_server.host, max_image_bytes=1000, read_timeout=1)
    assert one.fetch(image_server.url("/1001")) == Fetched(
        status=Status.TOO_LARGE, reason="1001 bytes, more than 1000"
    )
    assert len(one.fetch(image_server.url("/1000")).content) == 1000


def test_too_large_unannounced_stops_early(image_server: ScriptedServer, fetcher: MakeFetcher) -> None:
    image_server.answer("/endless", flood(b"HTTP/1.1 200 OK\r\n\r\n", b"x"))
    fetched = fetcher(image_server.host, max_image_bytes=1_000_000).fetch(image_server.url("/endless"))

    assert fetched.status == Status.TOO_LARGE
    assert fetched.content == b""
    # What the sockets of both ends buffer comes on top of what was read.
    assert image_server.bytes_sent["/endless"] < 20_000_000


def test_a_bomb_is_not_inflated_beyond_the_limit(image_server: ScriptedServer, fetcher: MakeFetcher) -> None:
    """Nor are the compressed bytes taken instead."""
    bomb = gzip.compress(b"\0" * 100_000_000)
    image_server.answer("/a.jpg", Reply(body=bomb, headers={"Content-Encoding": "gzip"}))
    image_server.answer("/b.jpg", Reply(body=gzip.compress(bomb), headers={"Content-Encoding": "gzip, gzip"}))
    one = fetcher(image_server.host, max_image_bytes=1_000_000)
    too_large = Fetched(status=Status.TOO_LARGE, reason="more than 1000000 bytes")
    assert one.fetch_all([image_server.url("/a.jpg"), image_server.url("/b.jpg")]) == [too_large] * 2


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"), id="body"),
        pytest.param(
            drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), id="chunks"
        ),
        pytest.param(drip(b"HTTP/1.1 200 OK\r\nX: ", b"x"), id="header"),
        pytest.param(drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), id="continue"),
    ],
)
def test_a_drip_ends_at_the_transfer_limit(
    image_server: ScriptedServer, script: Any, fetcher: MakeFetcher
) -> None:
    image_server.answer("/a.jpg", script)
    started = time.monotonic()
    fetched = fetcher(image_server.host, read_timeout=5, transfer_timeout=0.4).fetch(
        image_server.url("/a.jpg")
    )
    assert 0.4 <= time.monotonic() - started < 2
    assert fetched == Fetched(
        status=Status.TIMED_OUT, reason="not whole after 0.4 s", worth_retrying=True, overloaded=True
    )


def test_the_transfer_limit_counts_all_redirects_together(
    image_server: ScriptedServer, fetcher: MakeFetcher
) -> None:
    image_server.answer("/a.jpg", Reply(302, headers={"Location": "/a.jpg"}, delay=0.3))
    started = time.monotonic()
    fetched = fetcher(image_server.host, transfer_timeout=0.5).fetch(image_server.url("/a.jpg"))
    assert time.monotonic() - started < 1.7, "all six would take 1.8 s"
    assert fetched.status == Status.TIMED_OUT


def test_silence_ends_at_the_read_limit(image_server: ScriptedServer, fetcher: MakeFetcher) -> None:
    image_server.answer("/a.jpg", Reply(body=PHOTO, delay=1))
    started = time.monotonic()
    fetched = fetcher(image_server.host, read_timeout=0.2).fetch(image_server.url("/a.jpg"))
    assert time.monotonic() - started < 0.9
    assert fetched == Fetched(
        status=Status.TIMED_OUT, reason="no answer in time", worth_retrying=True, overloaded=True
    )


def test_a_connection_that_nobody_accepts_times_out(fetcher: MakeFetcher) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        fillers = []
        try:
            for _ in range(4):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
                fillers.append(filler)
            fetched = fetcher(f"127.0.0.1:{port}", connect_timeout=0.2).fetch(f"http://127.0.0.1:{port}/")
        finally:
            for filler in fillers:
                filler.close()
    assert fetched == Fetched(
        status=Status.TIMED_OUT,
        reason="127.0.0.1 did not accept a connection in time",
        worth_retrying=True,
        overloaded=True,
    )


def resolving(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the resolver take its time over slow.example, which is this machine."""
    really = socket.getaddrinfo

    def slowly(host: str, *args: Any, **kwargs: Any) -> Any:
        if host == "slow.example":
            time.sleep(seconds)
            host = "127.0.0.1"
        return really(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slowly)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"connect_timeout": 0.2}, "the name slow.example did not resolve in time"),
        ({"transfer_timeout": 0.2}, "not whole after 0.2 s"),
    ],
)
def test_a_name_that_takes_too_long_to_resolve_times_out(
    image_server: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
    limits: dict[str, float],
    reason: str,
    fetcher: MakeFetcher,
) -> None:
    resolving(monkeypatch, 1.0)
    url = image_server.url("/a.jpg", host="slow.example")
    fetched = fetcher(f"slow.example:{image_server.port}", **limits).fetch(url)
    assert fetched == Fetched(status=Status.TIMED_OUT, reason=reason, worth_retrying=True, overloaded=True)
    assert image_server.connections == 0


def test_a_connection_is_kept_for_the_next_picture(image_server: ScriptedServer, fetch: Any) -> None:
    image_server.answer("/a.jpg", Reply(body=PHOTO))
    assert fetch().content == fetch().content == PHOTO
    assert image_server.connections == 1


def test_a_connection_that_the_server_has_ended_is_not_asked(
    image_server: ScriptedServer, fetch: Any
) -> None:
    image_server.answer("/a.jpg", hang_up)
    assert fetch().content == b"abc"
    time.sleep(0.3)
    assert fetch().content == b"abc"
    assert image_server.connections == 2


hang_up = say(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")


def reset_afterwards(exchange: Exchange) -> None:
    hang_up(exchange)
    exchange.reset()


def say_more(exchange: Exchange) -> None:
    hang_up(exchange)
    time.sleep(0.05)  # not with the answer, with which it would be dropped
    exchange.send(b"more than was asked for")


@pytest.mark.parametrize("ending", [hang_up, reset_afterwards, say_more])
def test_a_server_that_ends_each_connection_unannounced_costs_no_picture(
    image_server: ScriptedServer, fetch: Any, ending: Any
) -> None:
    """However soon the next picture is asked for: before the end is seen, while it comes, after it."""
    image_server.answer("/a.jpg", ending)
    assert [fetch() for _ in range(20)] == [Fetched(content=b"abc")] * 20


@pytest.mark.parametrize("code", [100, 102, 103, 104, 199])
def test_what_is_no_answer_yet_is_nobody_s(image_server: ScriptedServer, fetch: Any, code: int) -> None:
    def late(content: bytes) -> Any:
        def script(exchange: Exchange) -> None:
            exchange.send(b"HTTP/1.1 %d Wait\r\nContent-Length: 5\r\n\r\n" % code)
            time.sleep(0.02)
            exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + content)

        return script

    image_server.answer("/a.jpg", late(b"one"))
    image_server.answer("/b.jpg", late(b"two"))
    assert [fetch("/a.jpg").content, fetch("/b.jpg").content] == [b"one", b"two"]


def test_a_request_that_is_not_taken_ends_at_the_transfer_limit(
    monkeypatch: pytest.MonkeyPatch, fetcher: MakeFetcher
) -> None:
    connect = socket.create_connection

    def narrow(*arguments: Any) -> socket.socket:
        connection = connect(*arguments)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        return connection

    monkeypatch.setattr(socket, "create_connection", narrow)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        host = f"127.0.0.1:{deaf.getsockname()[1]}"
        started = time.monotonic()
        # Each letter is sent as nine.
        fetched = fetcher(host, read_timeout=5, transfer_timeout=0.5).fetch(f"http://{host}/{'가' * 8_000}")
    assert time.monotonic() - started < 2
    assert (fetched.status, fetched.reason) == (Status.TIMED_OUT, "not whole after 0.5 s")


def test_a_kept_connection_is_given_up_once(image_server: ScriptedServer, fetch: Any) -> None:
    """A server that has ended is not asked for ever."""
    image_server.answer("/a.jpg", Reply(body=PHOTO), lambda exchange: exchange.reset())
    assert fetch().content == PHOTO
    fetched = fetch()
    assert (fetched.status, fetched.worth_retrying) == (Status.UNREACHABLE, True)
    assert image_server.connections == 2
    assert len(image_server.requests) == 3


def test_a_kept_connection_has_the_whole_time_again(
    image_server: ScriptedServer, fetcher: MakeFetcher
) -> None:
    """The first picture ends just within its time, and the second is slow to begin."""
    photo = PHOTO * 100
    image_server.answer("/a.jpg", Reply(body=photo, delay=0.8))
    image_server.answer("/b.jpg", Reply(body=photo, delay=0.5))
    one = fetcher(image_server.host, read_timeout=5, transfer_timeout=1)
    assert one.fetch(image_server.url("/a.jpg")).content == photo
    assert one.fetch(image_server.url("/b.jpg")).content == photo
    assert image_server.connections == 1


def test_only_so_many_connections_are_kept(fetcher: MakeFetcher) -> None:
    with ScriptedServer() as first, ScriptedServer() as second, ScriptedServer() as third:
        servers = [first, second, third]
        one = fetcher(*(server.host for server in servers), downloads=2)
        for server in [*servers, third, second, first]:
            server.answer("/a.jpg", Reply(body=PHOTO))
            assert one.fetch(server.url("/a.jpg")).content == PHOTO
        assert [server.connections for server in servers] == [2, 1, 1]


# Failures of the network


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(say(b""), id="at once"),
        pytest.param(lambda exchange: exchange.reset(), id="reset"),
        pytest.param(say(b"HTTP/1."), id="in the status line"),
        pytest.param(say(b"HTTP/1.1 200 OK\r\nContent-"), id="in a header"),
        pytest.param(
            say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 999),
            id="in the body",
        ),
        pytest.param(
            say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc"),
            id="in a chunk",
        ),
        pytest.param(
            say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
            id="before the last chunk",
        ),
        pytest.param(say(b"HTTP/1.1 000 None\r\n\r\nabc"), id="no status"),
        pytest.param(say(b"SSH-2.0-OpenSSH_9.0\r\n"), id="another protocol"),
        pytest.param(
            say(b"HTTP/1.1 200 OK\r\nContent-Length : 9\r\n\r\ncut"),
            id="of a length after a space",
        ),
        pytest.param(
            say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n9\r\ncut"),
            id="in chunks after a space",
        ),
        pytest.param(
            say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ncut"),
            id="in chunks of something",
        ),
        pytest.param(
            say(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
            id="of two lengths",
        ),
    ],
)
def test_an_answer_cut_short_is_unreachable_and_never_a_picture(
    image_server: ScriptedServer, fetch: Any, script: Any
) -> None:
    image_server.answer("/a.jpg", script)
    fetched = fetch()
    assert (fetched.status, fetched.content) == (Status.UNREACHABLE, b"")
    assert fetched.worth_retrying


def test_a_refused_connection_is_unreachable(elsewhere: socket.socket, fetcher: MakeFetcher) -> None:
    port = elsewhere.getsockname()[1]
    elsewhere.close()
    fetched = fetcher(f"127.0.0.1:{port}").fetch(f"http://127.0.0.1:{port}/a.jpg?token=secret")
    assert fetched.status == Status.UNREACHABLE
    assert fetched.worth_retrying
    assert "refused" in fetched.reason
    assert "secret" not in fetched.reason


def test_an_unresolvable_name_is_unreachable(monkeypatch: pytest.MonkeyPatch, fetcher: MakeFetcher) -> None:
    monkeypatch.setattr(
        socket, "getaddrinfo", functools.partial(socket.getaddrinfo, flags=socket.AI_NUMERICHOST)
    )
    fetched = fetcher("*").fetch("http://no-such-shop.invalid/a.jpg")
    assert fetched.status == Status.UNREACHABLE
    assert fetched.worth_retrying
    assert "no-such-shop.invalid does not resolve" in fetched.reason


# URLs


def test_the_longest_url_is_asked_for(image_server: ScriptedServer, fetch: Any) -> None:
    path = "/" + "a" * (MAX_URL_LENGTH - len(image_server.url("/")))
    image_server.answer(path, Reply(body=PHOTO))
    assert len(image_server.url(path)) == MAX_URL_LENGTH
    assert fetch(path).content == PHOTO


def test_paths_are_encoded_once(image_server: ScriptedServer, fetch: Any) -> None:
    for asked, sent in {
        "/상품/사진 1.jpg": "/%EC%83%81%ED%92%88/%EC%82%AC%EC%A7%84%201.jpg",
        "/%EC%83%81.jpg": "/%EC%83%81.jpg",
        "/a.jpg?w=300&name=빨강#top": "/a.jpg?w=300&name=%EB%B9%A8%EA%B0%95",
        "/a%2Fb.jpg": "/a%2Fb.jpg",
    }.items():
        image_server.answer(sent, Reply(body=PHOTO))
        assert fetch(asked).content == PHOTO, asked


# What we send, and what we do not


def test_the_request_is_honest_and_bare(image_server: ScriptedServer, fetcher: MakeFetcher) -> None:
    image_server.answer("/a.jpg", Reply(body=PHOTO))
    fetcher(image_server.host, user_agent="shop-crawler/2 (ops@shop.example)").fetch(
        image_server.url("/a.jpg")
    )
    headers = {name.lower(): value for name, value in image_server.requests[0].headers.items()}
    assert headers.pop("connection", "keep-alive") == "keep-alive"
    assert headers == {
        "host": image_server.host,
        "user-agent": "shop-crawler/2 (ops@shop.example)",
        "accept": "image/*",
        "accept-encoding": "identity",
    }


def test_no_cookie_is_carried_along(image_server: ScriptedServer, fetch: Any) -> None:
    cookie = {"Set-Cookie": "visitor=1; Path=/"}
    image_server.answer("/a.jpg", Reply(302, headers=cookie | {"Location": "/b.jpg"}))
    image_server.answer("/b.jpg", Reply(body=PHOTO, headers=cookie))
    assert fetch().content == fetch().content == PHOTO
    assert len(image_server.requests) == 4
    assert not any("Cookie" in request.headers for request in image_server.requests)


def test_nothing_of_the_environment_is_used(
    image_server: ScriptedServer,
    elsewhere: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fetcher: MakeFetcher,
) -> None:
    proxy = f"http://127.0.0.1:{elsewhere.getsockname()[1]}"
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login shop password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    image_server.answer("/a.jpg", Reply(body=PHOTO))

    assert fetcher(image_server.host).fetch(image_server.url("/a.jpg")).content == PHOTO
    assert "Authorization" not in image_server.requests[0].headers
    assert connections_to(elsewhere) == 0


# Names that change, and TLS


def test_the_connection_goes_to_the_address_that_was_checked(
    monkeypatch: pytest.MonkeyPatch, fetcher: MakeFetcher
) -> None:
    """A name that is public when it is checked and loopback a moment later gains nothing."""
    answers = iter(["203.0.114.9", "127.0.0.1", "127.0.0.1"])
    really = socket.getaddrinfo

    def rebinding(host: str, *args: Any, **kwargs: Any) -> Any:
        address = next(answers) if host == "rebinding.example" else host
        return really(address, *args, **(kwargs | {"flags": socket.AI_NUMERICHOST}))

    connected: list[Any] = []

    def open_socket(_: Transfer, purpose: int, address: Any) -> int:  # noqa: ARG001
        connected.append(address.addr)
        return pycurl.SOCKET_BAD

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(Transfer, "_open_socket", open_socket)

    assert fetcher("*").fetch("http://rebinding.example/a.jpg").status == Status.UNREACHABLE
    assert connected == [("203.0.114.9", 80)]
    assert fetcher("*").fetch("http://rebinding.example/a.jpg").status == Status.BLOCKED_ADDRESS
    assert len(connected) == 1


def test_a_second_address_is_tried_where_the_first_refuses(
    image_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, fetcher: MakeFetcher
) -> None:
    really = socket.getaddrinfo

    def two(host: str, *args: Any, **kwargs: Any) -> Any:
        addresses = ["127.0.0.2", "127.0.0.1"] if host == "cdn.example" else [host]
        return [found for address in addresses for found in really(address, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", two)
    image_server.answer("/a.jpg", Reply(body=PHOTO))
    url = image_server.url("/a.jpg", host="cdn.example")
    assert fetcher(f"cdn.example:{image_server.port}").fetch(url).content == PHOTO


NAMED = ("first.example", "second.example")


def tls_with(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    return certificate_for(path, "127.0.0.1", datetime.timedelta(days=1))


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[ScriptedServer]:
    with ScriptedServer(tls=tls_with(certificate)) as server:
        server.answer("/a.jpg", Reply(body=PHOTO))
        yield server


def test_a_self_signed_certificate_is_refused(
    tls_server: ScriptedServer,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    fetcher: MakeFetcher,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    monkeypatch.setenv("CURL_CA_BUNDLE", str(certificate))
    fetched = fetcher(tls_server.host).fetch(tls_server.url("/a.jpg"))
    assert fetched.status == Status.UNREACHABLE
    assert fetched.reason == "the server's certificate is refused: self-signed certificate"
    assert tls_server.requests == []


@pytest.mark.parametrize(
    ("address", "expires_in", "says"),
    [
        (
            "127.0.0.2",
            datetime.timedelta(days=1),
            "no alternative certificate subject name matches target IPv4 address '127.0.0.1'",
        ),
        ("127.0.0.1", datetime.timedelta(days=-1), "certificate has expired"),
    ],
)
def test_a_certificate_of_another_host_or_another_time_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    address: str,
    expires_in: datetime.timedelta,
    says: str,
    fetcher: MakeFetcher,
) -> None:
    """Even where its signer is trusted."""
    certificate = certificate_for(tmp_path / "server.pem", address, expires_in)
    monkeypatch.setattr(certifi, "where", lambda: str(certificate))
    with ScriptedServer(tls=tls_with(certificate)) as server:
        fetched = fetcher(server.host).fetch(server.url("/a.jpg"))
        assert server.requests == []
    assert fetched.status == Status.UNREACHABLE
    assert fetched.reason.startswith("the server's certificate is refused: ")
    assert says in fetched.reason


@pytest.mark.parametrize("ending", [hang_up, reset_afterwards])
def test_a_server_that_ends_each_tls_connection_unannounced_costs_no_picture(
    tls_server: ScriptedServer,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: Any,
    fetcher: MakeFetcher,
) -> None:
    monkeypatch.setattr(certifi, "where", lambda: str(certificate))
    tls_server.answer("/a.jpg", ending)
    one = fetcher(tls_server.host)
    for _ in range(5):
        assert one.fetch(tls_server.url("/a.jpg")) == Fetched(content=b"abc")
        time.sleep(0.05)


def test_a_trusted_certificate_is_accepted(
    tls_server: ScriptedServer,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    fetcher: MakeFetcher,
) -> None:
    monkeypatch.setattr(certifi, "where", lambda: str(certificate))
    tls_server.answer("/drip", drip(b"HTTP/1.1 200 OK\r\nX: ", b"x"))
    one = fetcher(tls_server.host, transfer_timeout=0.5)
    assert one.fetch(tls_server.url("/a.jpg")).content == PHOTO
    started = time.monotonic()
    assert one.fetch(tls_server.url("/drip")).reason == "not whole after 0.5 s"
    assert time.monotonic() - started < 2


@pytest.fixture
def dripping_handshake() -> Iterator[tuple[int, threading.Event]]:
    """A port that speaks TLS as slowly as it likes: it announces a record and sends it byte by byte; and
    whether its client has hung up."""
    hung_up = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip_handshake() -> None:
            connection, _ = listening.accept()
            with connection:
                try:
                    connection.sendall(b"\x16\x03\x03\x40\x00")
                    while True:
                        connection.sendall(b"\x02")
                        time.sleep(0.05)
                except OSError:
                    hung_up.set()

        threading.Thread(target=drip_handshake, daemon=True).start()
        yield listening.getsockname()[1], hung_up


def test_a_dripping_handshake_ends_at_the_transfer_limit(
    dripping_handshake: tuple[int, threading.Event],
    fetcher: MakeFetcher,
) -> None:
    port, hung_up = dripping_handshake
    started = time.monotonic()
    fetched = fetcher(f"127.0.0.1:{port}", transfer_timeout=0.4).fetch(f"https://127.0.0.1:{port}/")
    assert time.monotonic() - started < 2
    assert fetched.status == Status.TIMED_OUT
    assert hung_up.wait(5)


def test_a_slow_name_leaves_the_handshake_less_time(
    dripping_handshake: tuple[int, threading.Event],
    monkeypatch: pytest.MonkeyPatch,
    fetcher: MakeFetcher,
) -> None:
    resolving(monkeypatch, 0.8)
    port, _ = dripping_handshake
    started = time.monotonic()
    fetched = fetcher(f"slow.example:{port}", transfer_timeout=1).fetch(f"https://slow.example:{port}/")
    assert time.monotonic() - started < 1.7, "each by itself would take 1.8 s"
    assert fetched.reason == "not whole after 1 s"


def test_http_2_has_many_pictures_on_one_connection(
    certificate: Path, fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certifi, "where", lambda: str(certificate))
    contents = {f"/{number}": b"%d" % number for number in range(8)}
    with H2Server(certificate, contents, wait_for=4) as server:
        one = fetcher(f"127.0.0.1:{server.port}", read_timeout=5)
        found = one.fetch_all([f"https://127.0.0.1:{server.port}/{number}" for number in range(8)])
        assert found == [Fetched(content=b"%d" % number) for number in range(8)]
        assert len(server.authorities) == 1
        assert server.most_streams >= 4
        assert one.fetch(f"https://127.0.0.1:{server.port}/none").status == Status.GONE


def test_no_connection_of_http_2_serves_several_names(
    tmp_path: Path, fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Browsers let it, where the certificate is good for both: but it is a name that was checked."""
    certificate = certificate_for(tmp_path / "both.pem", "127.0.0.1", datetime.timedelta(days=1), *NAMED)
    monkeypatch.setattr(certifi, "where", lambda: str(certificate))
    really = socket.getaddrinfo
    inside = {"first.example": "127.0.0.1", "second.example": "127.0.0.1"}
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *args, **kwargs: really(inside.get(host, host), *args, **kwargs)
    )
    with H2Server(certificate, {"/a": b"abc"}) as server:
        one = fetcher(f"first.example:{server.port}", "*", read_timeout=5)
        first = f"https://first.example:{server.port}/a"
        assert one.fetch(first) == Fetched(content=b"abc")
        second = one.fetch(f"https://second.example:{server.port}/a")
        assert second.status == Status.BLOCKED_ADDRESS, "its address is judged for itself"
        both = fetcher(*(f"{name}:{server.port}" for name in NAMED), read_timeout=5)
        assert both.fetch(first) == both.fetch(f"https://second.example:{server.port}/a")
    asked = [{authority.partition(":")[0] for authority in connection} for connection in server.authorities]
    assert asked == [{"first.example"}, {"first.example"}, {"second.example"}]


# What CDNs of real shops ask for


def test_a_ca_of_one_s_own_is_trusted_besides_the_public_ones(
    tls_server: ScriptedServer, certificate: Path, fetcher: MakeFetcher
) -> None:
    assert fetcher(tls_server.host, ca_file=certificate).fetch(tls_server.url("/a.jpg")).content == PHOTO
    with pytest.raises(ConfigurationError, match=r"CA_FILE=.*nowhere.pem cannot be read: No such"):
        fetcher(tls_server.host, ca_file=certificate.with_name("nowhere.pem"))


def test_a_host_s_header_goes_to_it_alone_and_into_no_reason(
    image_server: ScriptedServer, fetcher: MakeFetcher
) -> None:
    with ScriptedServer() as other:
        other.answer("/b.jpg", Reply(body=PHOTO))
        image_server.answer("/a.jpg", Reply(302, headers={"Location": other.url("/b.jpg")}))
        headers = {image_server.host: "X-Key: secret"}
        one = fetcher(image_server.host, other.host, image_headers=headers)
        assert one.fetch(image_server.url("/a.jpg")).content == PHOTO
        assert one.fetch(other.url("/b.jpg")).content == PHOTO
        refused = one.fetch(image_server.url("/none.jpg"))
        assert [request.headers.get("X-Key") for request in image_server.requests] == ["secret"] * 2
        assert [request.headers.get("X-Key") for request in other.requests] == [None] * 2
    assert "secret" not in f"{refused} {one.fetch(other.url('/b.jpg'))}"


def test_a_proxy_is_asked_instead_of_the_host(
    image_server: ScriptedServer, fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It resolves names: we do not."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    monkeypatch.setenv("no_proxy", "*")
    image_server.answer("http://cdn.example/a.jpg", Reply(body=PHOTO))
    image_server.answer("http://cdn.example/b.jpg", Reply(302, headers={"Location": "http://evil.example/"}))
    proxy = f"http://user:secret@{image_server.host}"
    one = fetcher("cdn.example", proxy=proxy)
    assert one.fetch("http://cdn.example/a.jpg").content == PHOTO
    assert one.fetch("http://cdn.example/b.jpg").status == Status.BLOCKED_ADDRESS
    assert one.fetch("http://169.254.169.254/").status == Status.BLOCKED_ADDRESS
    tunnelled = one.fetch("https://cdn.example/a.jpg")
    assert tunnelled.status == Status.UNREACHABLE
    assert tunnelled.reason == "the proxy: CONNECT tunnel failed, response 501"
    assert [request.path for request in image_server.requests] == [
        "http://cdn.example/a.jpg",
        "http://cdn.example/b.jpg",
    ]
    assert image_server.requests[0].headers["Proxy-Authorization"].startswith("Basic ")


def test_an_address_that_swallows_packets_does_not_keep_the_next_one_waiting(
    image_server: ScriptedServer, fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its queue is full, so that nothing is ever answered."""
    image_server.answer("/a.jpg", Reply(body=PHOTO))
    really = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *args, **kwargs: [
            found
            for address in ("127.0.0.2", "127.0.0.1")
            for found in really(address if host == "cdn.example" else host, *args, **kwargs)
        ],
    )
    with socket.create_server(("127.0.0.2", image_server.port), backlog=0) as full:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        started = time.monotonic()
        one = fetcher(f"cdn.example:{image_server.port}", connect_timeout=5)
        assert one.fetch(image_server.url("/a.jpg", host="cdn.example")).content == PHOTO
        assert time.monotonic() - started < 3
        for filler in fillers:
            filler.close()


def test_what_comes_and_nothing_but_its_headers_is_no_silence(
    image_server: ScriptedServer, fetcher: MakeFetcher
) -> None:
    def script(exchange: Exchange) -> None:
        for _ in range(5):
            exchange.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            time.sleep(0.15)
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")

    image_server.answer("/a.jpg", script)
    assert fetcher(image_server.host, read_timeout=0.5).fetch(image_server.url("/a.jpg")).content == b"abc"


def test_where_the_seconds_went_is_told(
    tls_server: ScriptedServer, certificate: Path, fetcher: MakeFetcher
) -> None:
    tls_server.answer("/slow", Reply(body=PHOTO, delay=0.3))
    one = fetcher(tls_server.host, ca_file=certificate)
    one.fetch(tls_server.url("/slow"))
    seconds = dict(one.client.seconds)
    assert max(seconds, key=lambda what: seconds[what]) == "waiting for the first byte"
    assert seconds["waiting for the first byte"] >= 0.29
    assert seconds["connecting"] > 0
    assert seconds["TLS handshakes"] > 0
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        other = fetcher(f"127.0.0.1:{deaf.getsockname()[1]}", transfer_timeout=0.3)
        other.fetch(f"https://127.0.0.1:{deaf.getsockname()[1]}/")
    seconds = dict(other.client.seconds)
    assert max(seconds, key=lambda what: seconds[what]) == "TLS handshakes"


def test_a_limit_that_is_reached_after_the_end_changes_nothing(fetcher: MakeFetcher) -> None:
    one, ends = fetcher("cdn.example"), list[Fetched]()
    one.client.start(read("http://elsewhere.example/"), Limits(1e-9, 1e-9, 1e-9), ends.append)
    one.client.poll(0)
    one.client.poll(0)
    assert [end.status for end in ends] == [Status.BLOCKED_ADDRESS]
    assert one.client.running == 0
