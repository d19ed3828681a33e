import ipaddress
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.fetching.addresses import AddressPolicy, RefusedURLError, is_public
from tasks.statuses import Status
from tasks.urls import read

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


def judged(hosts: list[str], text: str, *addresses: str) -> None:
    """Judge a URL whose host has these addresses, as before libcurl gets them and when it connects.

    Raises:
        RefusedURLError: it may not be asked for.
    """
    policy, url = AddressPolicy(hosts), read(text)
    policy.check_host(url)
    for address in addresses:
        policy.check_address(url, address)


def refusal(hosts: list[str], text: str, *addresses: str) -> RefusedURLError:
    with pytest.raises(RefusedURLError) as refused:
        judged(hosts, text, *addresses)
    assert refused.value.status == Status.BLOCKED_ADDRESS
    return refused.value


def test_only_listed_hosts_may_be_asked() -> None:
    hosts = ["cdn.example.com"]
    judged(hosts, "http://cdn.example.com/", "203.0.114.1")
    judged(hosts, "https://cdn.example.com:8443/", "203.0.114.1")
    assert "evil.example:80 is not in FEATURES_IMAGE_HOSTS" in refusal(hosts, "http://evil.example/").reason
    for near in ("example.com", "www.cdn.example.com", "cdn.example.com.evil.example", "xcdn.example.com"):
        refusal(hosts, f"http://{near}/")
    refusal([], "http://cdn.example.com/")


@pytest.mark.parametrize("host", ["CDN.Example.COM", "cdn.example.com.", "CDN.example.com."])
def test_spellings_of_a_listed_host_are_that_host(host: str) -> None:
    judged(["Cdn.Example.com"], f"http://{host}/", "203.0.114.1")


@pytest.mark.parametrize("hosts", [["cdn.example.com"], ["*"], ["*.example.com"]])
def test_a_listed_host_still_may_not_lead_inside(hosts: list[str]) -> None:
    reason = refusal(hosts, "http://cdn.example.com/", "10.1.2.3").reason
    assert reason == (
        "cdn.example.com leads to 10.1.2.3, which is not a public address; a host inside is allowed only "
        "where FEATURES_IMAGE_HOSTS lists it as host:port"
    )


@pytest.mark.parametrize("addresses", [("203.0.114.1", "127.0.0.1"), ("127.0.0.1", "203.0.114.1")])
def test_one_bad_address_among_good_ones_refuses_the_host(addresses: tuple[str, str]) -> None:
    assert "127.0.0.1" in refusal(["*"], "http://cdn.example.com/", *addresses).reason


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
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "127.0.0.1.",
        "169.254.169.254",
        "2852039166",
    ],
)
@pytest.mark.parametrize("hosts", [["*"], ["*", "127.0.0.1:81", "[::1]:81"]])
def test_every_spelling_of_an_inner_address_is_refused(spelling: str, hosts: list[str]) -> None:
    assert "not a public address" in refusal(hosts, f"http://{spelling}/").reason


def test_an_inner_host_is_allowed_at_its_listed_port_alone() -> None:
    hosts = ["images.internal:8080", "127.0.0.1:9000", "[::1]:9001"]
    judged(hosts, "http://images.internal:8080/", "10.0.0.7")
    judged(hosts, "http://IMAGES.internal.:8080/", "10.0.0.7")
    judged(hosts, "http://127.0.0.1:9000/", "127.0.0.1")
    judged(hosts, "http://[::1]:9001/", "::1")
    for text in ("images.internal", "127.0.0.1:9001", "[::1]:9000", "10.0.0.7:8080"):
        refusal(hosts, f"http://{text}/")


def test_a_port_listed_beside_the_star_opens_that_host_alone() -> None:
    hosts = ["*", "images.internal:8080"]
    judged(hosts, "http://cdn.example.com:8080/", "203.0.114.1")
    judged(hosts, "http://images.internal:8080/", "10.0.0.8")
    refusal(hosts, "http://other.internal:8080/", "10.0.0.8")
    refusal(hosts, "http://images.internal:8081/", "10.0.0.8")


def test_an_entry_that_can_match_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="::1:9001 can match no host"):
        AddressPolicy(["::1:9001", "*"])


def test_a_resolver_that_hangs_keeps_no_process_alive() -> None:
    program = """
import socket, time
socket.getaddrinfo = lambda *_, **__: time.sleep(600)
from tests.fetching import Fetcher
one = Fetcher("*", connect_timeout=0.1)
print(one.fetch("http://slow.example/").reason)
one.client.close()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert ended.stdout == "the name slow.example did not resolve in time\n"
