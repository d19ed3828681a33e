"""URLs, names and redirects that aim inside: at this machine, its network, or the cloud that it runs in.

None of them connects. Only the resolver is a fake, where a name has to lead somewhere; `INSIDE` stands for
the port of a server on the loopback interface that counts who comes.
"""

import itertools
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pycurl
import pytest

from tasks.fetching import addresses, client
from tasks.fetching.answers import Fetched
from tasks.fetching.client import Client, Transfer
from tasks.statuses import Status
from tests.fetching import Fetcher
from tests.scripted_server import Reply, ScriptedServer

PUBLIC = "203.0.114.1"

BLOCKED, INVALID, UNREACHABLE = Status.BLOCKED_ADDRESS, Status.INVALID_URL, Status.UNREACHABLE

TRICKS: dict[str, list[tuple[str, Status]]] = {
    "where clouds keep their credentials": [
        ("http://169.254.169.254/latest/meta-data/iam/security-credentials/", BLOCKED),
        ("http://169.254.169.254.:80/", BLOCKED),
        ("http://2852039166/", BLOCKED),
        ("http://0xa9fea9fe/", BLOCKED),
        ("http://0xA9.0xFE.0xA9.0xFE/", BLOCKED),
        ("http://0251.0376.0251.0376/", BLOCKED),
        ("http://0251.254.0xa9.254/", BLOCKED),
        ("http://169.254.43518/", BLOCKED),
        ("http://169.16689662/", BLOCKED),
        ("http://169%2e254%2e169%2e254/", BLOCKED),
        ("http://[::ffff:169.254.169.254]/", BLOCKED),
        ("http://[0:0:0:0:0:FFFF:A9FE:A9FE]/", BLOCKED),
        ("http://[64:ff9b::a9fe:a9fe]/", BLOCKED),
        ("http://[2002:a9fe:a9fe::1]/", BLOCKED),
        ("http://[fd00:ec2::254]/latest/meta-data/", BLOCKED),
        ("http://[fd20:ce::254]/", BLOCKED),
        ("http://168.63.129.16/machine?comp=goalstate", BLOCKED),
        ("http://192.0.0.192/", BLOCKED),
        ("http://100.100.100.200/", BLOCKED),
        ("http://metadata.internal/computeMetadata/v1/", BLOCKED),
    ],
    "this machine, as numbers": [
        ("http://127.0.0.1:INSIDE/", BLOCKED),
        ("https://127.0.0.1:INSIDE/", BLOCKED),
        ("http://127.1:INSIDE/", BLOCKED),
        ("http://127.0.1:INSIDE/", BLOCKED),
        ("http://127.127.127.127:INSIDE/", BLOCKED),
        ("http://2130706433:INSIDE/", BLOCKED),
        ("http://017700000001:INSIDE/", BLOCKED),
        ("http://0177.1:INSIDE/", BLOCKED),
        ("http://0000177.0.0.01:INSIDE/", BLOCKED),
        ("http://0x7f000001:INSIDE/", BLOCKED),
        ("http://0X7F.0x0.0x0.0x1:INSIDE/", BLOCKED),
        ("http://0x7f.1:INSIDE/", BLOCKED),
        ("http://127.0.0.0x1:INSIDE/", BLOCKED),
        ("http://0:INSIDE/", BLOCKED),
        ("http://0x0:INSIDE/", BLOCKED),
        ("http://0.0.0.0:INSIDE/", BLOCKED),
        ("http://0x7f.0x000001:INSIDE/", BLOCKED),
        ("http://127.0x0.0.1.:INSIDE/", BLOCKED),
        ("http://00000000177.0.0.1:INSIDE/", BLOCKED),
        ("http://0x:INSIDE/", BLOCKED),
        # More than four bytes hold: whoever cuts them off arrives at 0.0.0.0 or 127.0.0.1.
        ("http://4294967296:INSIDE/", INVALID),
        ("http://2130706433.0:INSIDE/", INVALID),
        ("http://383.0.0.1:INSIDE/", INVALID),
    ],
    "this machine in IPv6": [
        ("http://[::1]:INSIDE/", BLOCKED),
        ("http://[::]:INSIDE/", BLOCKED),
        ("http://[0:0:0:0:0:0:0:1]:INSIDE/", BLOCKED),
        ("http://[0000:0000::0001]:INSIDE/", BLOCKED),
        ("http://[::127.0.0.1]:INSIDE/", BLOCKED),
        ("http://[::ffff:127.0.0.1]:INSIDE/", BLOCKED),
        ("http://[::FFFF:7F00:1]:INSIDE/", BLOCKED),
        ("http://[::ffff:0:127.0.0.1]:INSIDE/", BLOCKED),
        ("http://[64:ff9b::127.0.0.1]:INSIDE/", BLOCKED),
        ("http://[64:ff9b:1::7f00:1]:INSIDE/", BLOCKED),
        ("http://[2002:7f00:1::]:INSIDE/", BLOCKED),
        ("http://[2001:0:4136:e378:8000:63bf:80ff:fffe]:INSIDE/", BLOCKED),  # Teredo
        ("http://[::ffff:0x7f.1]:INSIDE/", INVALID),
        ("http://[0:0:0:0:0:ffff:127.0.0.1]:INSIDE/", BLOCKED),
        ("http://[::ffff:7f.0.0.1]:INSIDE/", INVALID),
        ("http://[::1]INSIDE/", INVALID),
        ("http://[::1].cdn.example:INSIDE/", INVALID),
        # A zone after a percent sign says which network of this machine is meant; loopback has none.
        ("http://[::1%25lo]:INSIDE/", INVALID),
        ("http://[fe80::1%25lo]:INSIDE/", INVALID),
        ("http://[fe80::1%lo]:INSIDE/", INVALID),
        ("http://[::1:INSIDE/", INVALID),
        ("http://::1:INSIDE/", INVALID),
        ("http://[127.0.0.1]:INSIDE/", INVALID),
        ("http://[v1.127.0.0.1]:INSIDE/", INVALID),
    ],
    "the network around it": [
        ("http://10.0.0.1/", BLOCKED),
        ("http://012.0.0.1/", BLOCKED),
        ("http://167772161/", BLOCKED),
        ("http://172.16.0.1/", BLOCKED),
        ("http://172.31.255.254/", BLOCKED),
        ("http://192.168.0.1/", BLOCKED),
        ("http://0xc0a80001/", BLOCKED),
        ("http://100.64.0.1/", BLOCKED),
        ("http://169.254.1.1/", BLOCKED),
        ("http://198.18.0.1/", BLOCKED),
        ("http://224.0.0.1/", BLOCKED),
        ("http://255.255.255.255/", BLOCKED),
        ("http://[fc00::1]/", BLOCKED),
        ("http://[fd12:3456:789a::1]/", BLOCKED),
        ("http://[fe80::1]/", BLOCKED),
        ("http://[fec0::1]/", BLOCKED),
        ("http://[ff02::1]/", BLOCKED),
        ("http://[::ffff:10.0.0.1]/", BLOCKED),
    ],
    "names": [
        ("http://LOCALHOST.:INSIDE/", BLOCKED),
        ("http://shop.localhost:INSIDE/", UNREACHABLE),
        ("http://loc\u00adalhost:INSIDE/", BLOCKED),
        ("http://localhost%00:INSIDE/", INVALID),
        ("http://localhost:INSIDE/", BLOCKED),
        ("http://LocalHost:INSIDE/", BLOCKED),
        ("http://localhost.:INSIDE/", BLOCKED),
        ("http://loc%61lhost:INSIDE/", BLOCKED),
        ("http://127.0.0.1.wildcard.example:INSIDE/", BLOCKED),
        ("http://one-of-two-inside.example:INSIDE/", BLOCKED),
        ("http://first-of-two-inside.example:INSIDE/", BLOCKED),
        ("http://six-inside.example:INSIDE/", BLOCKED),
        ("http://no-such-name.example:INSIDE/", UNREACHABLE),
    ],
    "dots, digits and letters that are others": [
        ("http://127.0.0.1.:INSIDE/", BLOCKED),
        ("http://127.0.0.1..:INSIDE/", INVALID),
        ("http://127.0.0.1%2e:INSIDE/", BLOCKED),
        ("http://127%2E0%2E0%2E1:INSIDE/", BLOCKED),
        ("http://%31%32%37.0.0.1:INSIDE/", BLOCKED),
        ("http://.127.0.0.1:INSIDE/", INVALID),
        ("http://127.0.0.1%00.cdn.example:INSIDE/", INVALID),
        ("http://127.0.0.1%0d%0aX:INSIDE/", INVALID),
        ("http://①②⑦.⓪.⓪.①:INSIDE/", BLOCKED),
        ("http://１２７.０.０.１:INSIDE/", BLOCKED),  # noqa: RUF001
        ("http://١٢٧.٠.٠.١:INSIDE/", INVALID),  # noqa: RUF001
        ("http://127。0。0。1:INSIDE/", BLOCKED),
        ("http://127．0．0．1:INSIDE/", BLOCKED),  # noqa: RUF001
        ("http://127｡0｡0｡1:INSIDE/", BLOCKED),
        ("http://ⓛocalhost:INSIDE/", BLOCKED),
        ("http://ｌｏｃａｌｈｏｓｔ:INSIDE/", BLOCKED),  # noqa: RUF001
        ("http://ℓocalhost:INSIDE/", BLOCKED),  # noqa: RUF001
        ("http://127.0.0.1\u00ad:INSIDE/", BLOCKED),
        ("http://127.0.0.1\u200b:INSIDE/", BLOCKED),
    ],
    "a public host's name beside": [
        ("http://cdn.example@127.0.0.1:INSIDE/", INVALID),
        ("http://cdn.example:80@127.0.0.1:INSIDE/", INVALID),
        ("http://cdn.example:@127.0.0.1:INSIDE/", INVALID),
        ("http://@127.0.0.1:INSIDE/", BLOCKED),
        ("http://127.0.0.1:INSIDE\\@cdn.example/", BLOCKED),
        ("http://127.0.0.1:INSIDE;@cdn.example/", INVALID),
        ("http://127.0.0.1 @cdn.example:INSIDE/", INVALID),
        ("http://127.0.0.1%2f@cdn.example:INSIDE/", INVALID),
        ("http://cdn.example%40127.0.0.1:INSIDE/", INVALID),
        ("http://127.0.0.1:INSIDE#@cdn.example/", BLOCKED),
        ("http://127.0.0.1:INSIDE?@cdn.example/", BLOCKED),
        ("http://127.0.0.1:INSIDE/@cdn.example/", BLOCKED),
        ("http://127.0.0.1:INSIDE/#.cdn.example", BLOCKED),
    ],
    "slashes, blanks and ports": [
        ("http:127.0.0.1:INSIDE/", BLOCKED),
        ("http:/127.0.0.1:INSIDE/", BLOCKED),
        ("http:\\/127.0.0.1:INSIDE\\a", BLOCKED),
        ("ht\ttp:\n//127.0.0.1:INSIDE/", BLOCKED),
        ("\x00\x1f http://127.0.0.1:INSIDE/\x00", BLOCKED),
        ("http://127.0.0.1\x0b:INSIDE/", INVALID),
        ("http://127.0.0.1\x00.cdn.example:INSIDE/", INVALID),
        ("http://127.0.0.1\r\n:INSIDE/", BLOCKED),
        ("http:\\\\127.0.0.1:INSIDE\\", BLOCKED),
        ("http:/\\127.0.0.1:INSIDE/", BLOCKED),
        ("http:///127.0.0.1:INSIDE/", BLOCKED),
        ("http:////127.0.0.1:INSIDE/", BLOCKED),
        (" http://127.0.0.1:INSIDE/", BLOCKED),
        ("\thttp://127.0.0.1:INSIDE/ ", BLOCKED),
        ("\x01http://127.0.0.1:INSIDE/", BLOCKED),
        ("h\nttp://127.0.0.1:INSIDE/", BLOCKED),
        ("http:/\n/127.0.0.1:INSIDE/", BLOCKED),
        ("http://127.0.\t0.1:INSIDE/", BLOCKED),
        ("http://127.0.0.1\n:INSIDE/", BLOCKED),
        ("http://cdn.example\r\nHost: 127.0.0.1:INSIDE/", INVALID),
        ("http://\x00127.0.0.1:INSIDE/", INVALID),
        ("http://127.0.0.1:INSIDE /", INVALID),
        ("http://127.0.0.1:/", BLOCKED),
        ("http://127.0.0.1:0/", BLOCKED),
        ("http://127.0.0.1:0INSIDE/", BLOCKED),
        ("http://127.0.0.1:+INSIDE/", INVALID),
        ("http://127.0.0.1:-1/", INVALID),
        ("http://127.0.0.1:65616/", INVALID),  # 80, if cut to two bytes
        ("http://127.0.0.1:INSIDE:80/", INVALID),
        ("http://127.0.0.1:８０/", INVALID),  # noqa: RUF001
    ],
    "schemes": [
        ("HTTP://127.0.0.1:INSIDE/", BLOCKED),
        ("hTtPs://127.0.0.1:INSIDE/", BLOCKED),
        ("file:///etc/passwd", INVALID),
        ("file://127.0.0.1/etc/passwd", INVALID),
        ("gopher://127.0.0.1:INSIDE/_GET%20/", INVALID),
        ("ftp://127.0.0.1:INSIDE/", INVALID),
        ("dict://127.0.0.1:INSIDE/stats", INVALID),
        ("ldap://127.0.0.1:INSIDE/", INVALID),
        ("ws://127.0.0.1:INSIDE/", INVALID),
        ("httpx://127.0.0.1:INSIDE/", INVALID),
        ("http+unix://%2Fvar%2Frun%2Fdocker.sock/info", INVALID),
        ("jar:http://127.0.0.1:INSIDE!/", INVALID),
        ("url:http://127.0.0.1:INSIDE/", INVALID),
        ("view-source:http://127.0.0.1:INSIDE/", INVALID),
        ("data:image/png;base64,AAAA", INVALID),
    ],
}
ALL = [trick for tricks in TRICKS.values() for trick in tricks]

NAMES = {
    "localhost": ["127.0.0.1"],
    "metadata.internal": ["169.254.169.254"],
    "127.0.0.1.wildcard.example": ["127.0.0.1"],
    "one-of-two-inside.example": [PUBLIC, "127.0.0.1"],
    "first-of-two-inside.example": ["10.0.0.7", PUBLIC],
    "six-inside.example": ["2606:4700::1111", "::1"],
    "cdn.example": [PUBLIC],
}


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], list[str]]]:
    """What names resolve to, anew at each lookup. Numbers are read as the system reads them; nothing else
    resolves, and nobody is asked."""
    known: dict[str, Callable[[], list[str]]] = {
        name: lambda found=found: found  # type: ignore[misc]
        for name, found in NAMES.items()
    }
    really = socket.getaddrinfo

    def resolve(host: str, *args: Any, **kwargs: Any) -> list[Any]:
        found = known[host]() if host in known else [host]
        numeric = kwargs | {"flags": socket.AI_NUMERICHOST}
        return [entry for address in found for entry in really(address, *args, **numeric)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


@pytest.fixture(autouse=True)
def connects(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Where libcurl was let connect. Nothing but this machine is reached."""
    tried: list[tuple[str, int]] = []
    really = Transfer._open_socket

    def watching(transfer: Transfer, purpose: int, address: Any) -> Any:
        opened = really(transfer, purpose, address)
        if opened != pycurl.SOCKET_BAD or transfer.failure:
            tried.append(address.addr[:2])
        transfer.failure = None  # in this test nobody else is reached, and that is no error
        return opened

    monkeypatch.setattr(Transfer, "_open_socket", watching)
    return tried


class Inside:
    """A server on the loopback interface that must have no visitor."""

    def __init__(self, listening: socket.socket) -> None:
        self.port: int = listening.getsockname()[1]
        self._listening = listening

    def url(self, template: str) -> str:
        return template.replace("INSIDE", str(self.port))

    def visits(self) -> int:
        """How many have connected since it was last asked. A connection is there when connect returns."""
        for count in itertools.count():
            try:
                self._listening.accept()[0].close()
            except BlockingIOError:
                return count
        raise AssertionError


@pytest.fixture(scope="module")
def inside() -> Iterator[Inside]:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        listening.setblocking(False)
        yield Inside(listening)


@pytest.fixture(scope="module")
def redirecting() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


def fetched_with(hosts: tuple[str, ...], url: str) -> Fetched:
    one = Fetcher(*hosts, connect_timeout=5, read_timeout=5, transfer_timeout=10)
    try:
        return one.fetch(url)
    finally:
        one.client.close()


def test_there_are_enough_and_each_is_another() -> None:
    assert len({url for url, _ in ALL}) == len(ALL) >= 120


@pytest.mark.parametrize(("template", "status"), ALL)
def test_no_spelling_connects_where_every_public_host_is_allowed(
    template: str, status: Status, inside: Inside, connects: list[tuple[str, int]]
) -> None:
    fetched = fetched_with(("*",), inside.url(template))
    assert fetched.status == status
    assert fetched.reason
    assert connects == []
    assert inside.visits() == 0


@pytest.mark.parametrize(("template", "status"), ALL)
def test_no_spelling_connects_where_one_public_host_is_allowed(
    template: str, status: Status, inside: Inside, connects: list[tuple[str, int]]
) -> None:
    fetched = fetched_with(("cdn.example",), inside.url(template))
    # What is not in the list is not even looked up.
    assert fetched.status == (INVALID if status == INVALID else BLOCKED)
    assert connects == []
    assert inside.visits() == 0


STAYING = [
    "http:127.0.0.1:INSIDE/",
    "127.0.0.1:INSIDE/",
    "/127.0.0.1:INSIDE/",
    "?http://127.0.0.1:INSIDE/",
]
LOCATIONS = [
    *(
        (url, status)
        for url, status in ALL
        if re.match(r"[a-z+:-]+://[ -~]+$", url, re.I) and url not in STAYING
    ),
    ("//127.0.0.1:INSIDE/", BLOCKED),
    ("///127.0.0.1:INSIDE/", BLOCKED),
    ("\\\\127.0.0.1:INSIDE\\", BLOCKED),
    ("/\\127.0.0.1:INSIDE/", BLOCKED),
    ("https:127.0.0.1:INSIDE/", BLOCKED),
    ("https:/127.0.0.1:INSIDE/", BLOCKED),
    ("\t//127.0.0.1:INSIDE/", BLOCKED),
    ("//\xef\xbc\x91\xef\xbc\x92\xef\xbc\x97.1:INSIDE/", BLOCKED),
    ("//[::1]:INSIDE/", BLOCKED),
    ("//2130706433:INSIDE/a.jpg", BLOCKED),
    ("//cdn.example@127.0.0.1:INSIDE/", INVALID),
    ("http://user:password@cdn.example/", INVALID),
    ("file:/etc/passwd", INVALID),
    ("data:image/png;base64,AAAA", INVALID),
    (" \t http://127.0.0.1:INSIDE/ \t ", BLOCKED),
    ("http://127.0.0.1:INSIDE/ a.jpg", BLOCKED),
    ("http://cdn.example http://127.0.0.1:INSIDE/", INVALID),
]


@pytest.mark.parametrize("code", [302, 307])
@pytest.mark.parametrize(("location", "status"), LOCATIONS)
def test_no_redirect_connects(
    location: str,
    status: Status,
    code: int,
    inside: Inside,
    redirecting: ScriptedServer,
    connects: list[tuple[str, int]],
) -> None:
    redirecting.answer("/a.jpg", Reply(code, headers={"Location": inside.url(location)}))
    fetched = fetched_with(("*", redirecting.host), redirecting.url("/a.jpg"))
    assert fetched.status == status
    assert connects == [("127.0.0.1", redirecting.port)]
    assert inside.visits() == 0


@pytest.mark.parametrize("location", STAYING)
def test_a_redirect_without_a_host_stays_where_it_is(
    location: str, inside: Inside, redirecting: ScriptedServer, connects: list[tuple[str, int]]
) -> None:
    redirecting.answer("/a.jpg", Reply(302, headers={"Location": inside.url(location)}))
    fetched = fetched_with(("*", redirecting.host), redirecting.url("/a.jpg"))
    assert fetched.status == Status.GONE
    assert set(connects) == {("127.0.0.1", redirecting.port)}
    assert inside.visits() == 0


@pytest.mark.parametrize("hops", [1, 2, 4])
@pytest.mark.parametrize(
    ("last", "status"),
    [
        ("http://127.0.0.1:INSIDE/", BLOCKED),
        ("http://169.254.169.254/", BLOCKED),
        ("http://one-of-two-inside.example/", BLOCKED),
        ("file:///etc/passwd", INVALID),
    ],
)
def test_no_chain_of_redirects_connects(
    hops: int,
    last: str,
    status: Status,
    inside: Inside,
    redirecting: ScriptedServer,
    connects: list[tuple[str, int]],
) -> None:
    places = [redirecting.url(f"/{hop}") for hop in range(hops)] + [inside.url(last)]
    for hop in range(hops):
        redirecting.answer(f"/{hop}", Reply(301, headers={"Location": places[hop + 1]}))
    assert fetched_with(("*", redirecting.host), places[0]).status == status
    assert set(connects) == {("127.0.0.1", redirecting.port)}
    assert inside.visits() == 0


@pytest.mark.parametrize("inner", ["127.0.0.1", "::1", "169.254.169.254", "::ffff:10.0.0.1"])
def test_a_name_that_changes_after_the_check_changes_nothing(
    inner: str,
    inside: Inside,
    names: dict[str, Callable[[], list[str]]],
    connects: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter([[PUBLIC]])
    names["rebinding.example"] = lambda: next(answers, [inner])
    url = inside.url("http://rebinding.example:INSIDE/")
    one = Fetcher("*")

    assert one.fetch(url).status == UNREACHABLE
    assert one.fetch(url).status == UNREACHABLE
    assert connects == [(PUBLIC, inside.port)] * 2, "the address that was judged, and no other"
    monkeypatch.setattr(client, "_NAME_LASTS", 0.0)
    one = Fetcher("*")
    assert one.fetch(url).status == BLOCKED, "looked up again it is judged anew"
    assert len(connects) == 2
    assert inside.visits() == 0


def test_what_libcurl_finds_for_itself_is_judged_too(
    inside: Inside, connects: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should it ever look a name up by itself: the address is judged when it is about to connect to it."""
    monkeypatch.setattr(Client, "_connect", lambda self, transfer, _: self._ask(transfer, []))
    fetched = Fetcher("*").fetch(inside.url("http://localhost:INSIDE/"))
    assert fetched.status == BLOCKED
    assert "localhost leads to " in fetched.reason
    assert connects == []
    assert inside.visits() == 0


def test_a_name_that_changes_between_two_hops_is_judged_at_each(
    inside: Inside,
    redirecting: ScriptedServer,
    names: dict[str, Callable[[], list[str]]],
    connects: list[tuple[str, int]],
) -> None:
    """shop.example:<port> is listed and may be inside; the same name at another port may not."""
    names["shop.example"] = lambda: ["127.0.0.1"]
    url = redirecting.url("/a.jpg", host="shop.example")
    redirecting.answer("/a.jpg", Reply(302, headers={"Location": inside.url("http://shop.example:INSIDE/")}))
    assert fetched_with(("*", f"shop.example:{redirecting.port}"), url).status == BLOCKED
    assert connects == [("127.0.0.1", redirecting.port)]
    assert inside.visits() == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://cdn.example#@127.0.0.1:INSIDE/",
        "http://cdn.example/@127.0.0.1:INSIDE/",
        "http://cdn.example?@127.0.0.1:INSIDE/",
        "http://cdn.example\\127.0.0.1:INSIDE/",
        "http://cdn.example\\@127.0.0.1:INSIDE/",
        "http://cdn.example\t/@127.0.0.1:INSIDE/",
        "http://cdn.example:80\\.127.0.0.1:INSIDE/",
        "http://cdn.example/http://127.0.0.1:INSIDE/",
        "http://cdn.example/../../127.0.0.1:INSIDE/",
    ],
)
def test_what_only_looks_like_an_inner_host_goes_to_the_public_one(
    url: str, inside: Inside, connects: list[tuple[str, int]]
) -> None:
    fetched_with(("cdn.example",), inside.url(url))
    assert set(connects) <= {(PUBLIC, 80)}
    assert inside.visits() == 0


def test_without_the_policy_many_would_get_in(
    inside: Inside, connects: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tricks are real, and both ways of watching see them."""
    monkeypatch.setattr(addresses, "is_public", lambda _: True)
    visited = 0
    loopback = [*TRICKS["this machine, as numbers"], *TRICKS["names"]]
    for template, _ in loopback:
        url = inside.url(template)
        if not url.startswith("https"):
            Fetcher("*", read_timeout=0.01).fetch(url)
            visited += inside.visits()
    assert visited >= 15
    assert len(connects) >= visited
