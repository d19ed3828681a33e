import ipaddress
import socket
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.fetching.addresses import AddressPolicy, RefusedURLError, is_public
from tasks.statuses import Status

INSIDE = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",  # behind a carrier's NAT
    "169.254.0.1",
    "169.254.169.254",  # where clouds keep their credentials
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.8",
    "192.0.0.9",
    "192.0.0.192",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "100::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:0",
    "2002:7f00:1::",  # 6to4 of 127.0.0.1
    "2002:a9fe:a9fe::1",
    "2001:0:4136:e378:8000:63bf:f5ff:fffe",  # Teredo of 10.0.0.1
    "64:ff9b::127.0.0.1",  # NAT64
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::7f00:1",  # a network's own NAT64
    "not an address",
    "",
]
OUTSIDE = [
    "8.8.8.8",
    "172.32.0.1",
    "100.128.0.1",
    "192.0.1.1",
    "168.63.129.17",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
]


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_inside_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", OUTSIDE)
def test_an_address_outside_is_public(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_carrying_an_address_in_ipv6_makes_it_neither_better_nor_worse(v4: ipaddress.IPv4Address) -> None:
    verdict = is_public(str(v4))
    carriers = {
        "mapped": int(ipaddress.IPv6Address("::ffff:0:0")) | int(v4),
        "6to4": (0x2002 << 112) | (int(v4) << 80),
        "Teredo": (0x20010000 << 96) | (int(v4) ^ 0xFFFFFFFF),
        "NAT64": int(ipaddress.IPv6Address("64:ff9b::")) | int(v4),
    }
    for name, carrier in carriers.items():
        assert is_public(str(ipaddress.IPv6Address(carrier))) == verdict, name


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names that resolve for this test alone; every other host has to be an address."""
    known: dict[str, list[str]] = {}
    really = socket.getaddrinfo

    def resolve(host: str, port: int, *args: int, **kwargs: int) -> list[tuple[object, ...]]:
        if host in known:
            return [found for address in known[host] for found in really(address, port, *args, **kwargs)]
        return really(host, port, *args, **(kwargs | {"flags": socket.AI_NUMERICHOST}))

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


def refusal(policy: AddressPolicy, host: str, port: int = 80) -> RefusedURLError:
    with pytest.raises(RefusedURLError) as refused:
        policy.addresses(host, port, timeout=5)
    assert refused.value.status == Status.BLOCKED_ADDRESS
    return refused.value


def test_only_listed_hosts_are_resolved(names: dict[str, list[str]]) -> None:
    names |= {"cdn.example.com": ["203.0.114.1"], "evil.example": ["203.0.114.2"]}
    policy = AddressPolicy(["cdn.example.com"])

    assert policy.addresses("cdn.example.com", 80, timeout=5) == ["203.0.114.1"]
    assert policy.addresses("cdn.example.com", 8443, timeout=5) == ["203.0.114.1"]
    assert "evil.example:80 is not in FEATURES_IMAGE_HOSTS" in refusal(policy, "evil.example").reason
    for near in ("example.com", "www.cdn.example.com", "cdn.example.com.evil.example", "xcdn.example.com"):
        names[near] = ["203.0.114.2"]
        refusal(policy, near)
    refusal(AddressPolicy([]), "cdn.example.com")


@pytest.mark.parametrize("host", ["CDN.Example.COM", "cdn.example.com.", "CDN.example.com."])
def test_spellings_of_a_listed_host_are_that_host(names: dict[str, list[str]], host: str) -> None:
    names["cdn.example.com"] = ["203.0.114.1"]
    assert AddressPolicy(["Cdn.Example.com"]).addresses(host, 80, timeout=5) == ["203.0.114.1"]


def test_a_listed_host_still_may_not_lead_inside(names: dict[str, list[str]]) -> None:
    names["cdn.example.com"] = ["10.1.2.3"]
    for hosts in (["cdn.example.com"], ["*"]):
        reason = refusal(AddressPolicy(hosts), "cdn.example.com").reason
        assert "10.1.2.3" in reason
        assert "host:port" in reason


@pytest.mark.parametrize("good_first", [True, False])
def test_one_bad_address_among_good_ones_refuses_the_host(
    names: dict[str, list[str]], good_first: bool
) -> None:
    names["cdn.example.com"] = ["203.0.114.1", "127.0.0.1"] if good_first else ["127.0.0.1", "203.0.114.1"]
    assert "127.0.0.1" in refusal(AddressPolicy(["*"]), "cdn.example.com").reason


@pytest.mark.parametrize(
    "spelling",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "0",
        "[::1]",
        "::1",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "127.0.0.1.",
        "169.254.169.254",
        "2852039166",
    ],
)
@pytest.mark.parametrize("hosts", [["*"], ["*", "127.0.0.1", "::1"]])
def test_every_spelling_of_an_inner_address_is_refused(spelling: str, hosts: list[str]) -> None:
    assert "not a public address" in refusal(AddressPolicy(hosts), spelling).reason


def test_an_inner_host_is_allowed_at_its_listed_port_alone(names: dict[str, list[str]]) -> None:
    names["images.internal"] = ["10.0.0.7"]
    policy = AddressPolicy(["images.internal:8080", "127.0.0.1:9000", "[::1]:9001"])

    assert policy.addresses("images.internal", 8080, timeout=5) == ["10.0.0.7"]
    assert policy.addresses("IMAGES.internal.", 8080, timeout=5) == ["10.0.0.7"]
    assert policy.addresses("127.0.0.1", 9000, timeout=5) == ["127.0.0.1"]
    assert policy.addresses("[::1]", 9001, timeout=5) == ["::1"]
    assert policy.addresses("::1", 9001, timeout=5) == ["::1"]
    for host, port in [("images.internal", 80), ("127.0.0.1", 9001), ("[::1]", 9000), ("10.0.0.7", 8080)]:
        refusal(policy, host, port)


def test_a_port_listed_beside_the_star_opens_that_host_alone(names: dict[str, list[str]]) -> None:
    names |= {"other.internal": ["10.0.0.8"], "cdn.example.com": ["203.0.114.1"]}
    policy = AddressPolicy(["*", "images.internal:8080"])

    assert policy.addresses("cdn.example.com", 8080, timeout=5) == ["203.0.114.1"]
    refusal(policy, "other.internal", 8080)


@pytest.mark.usefixtures("names")
def test_a_name_that_does_not_resolve_is_an_oserror() -> None:
    with pytest.raises(OSError, match="not known"):
        AddressPolicy(["*"]).addresses("no-such-host.invalid", 80, timeout=5)


def test_an_ipv6_address_is_listed_in_brackets() -> None:
    """Without them it would be anybody's guess where the address ends and the port begins."""
    policy = AddressPolicy(["::1:9001", "*"])
    for host, port in [("::1", 9001), ("::1:9001", 80)]:
        refusal(policy, host, port)


def test_a_resolver_that_hangs_is_waited_for_no_longer_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(30))
    started = time.monotonic()
    try:
        with pytest.raises(TimeoutError, match=r"the name slow\.example did not resolve in time"):
            AddressPolicy(["*"]).addresses("slow.example", 80, timeout=0.2)
        assert 0.2 <= time.monotonic() - started < 5
    finally:
        released.set()


def test_a_resolver_that_hangs_keeps_no_process_alive() -> None:
    program = """
import socket, time
socket.getaddrinfo = lambda *_, **__: time.sleep(600)
from tasks.fetching.addresses import AddressPolicy
try:
    AddressPolicy(["*"]).addresses("slow.example", 80, timeout=0.1)
except TimeoutError:
    print("in time")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert ended.stdout == "in time\n"
