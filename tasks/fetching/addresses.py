"""Which hosts and addresses pictures may come from. URLs come from strangers: a name in an allowed
list may resolve to an address inside, so it is addresses that are judged, when connecting."""

import functools
import ipaddress
from collections.abc import Iterable

from tasks.statuses import Status
from tasks.urls import ImageHosts, Url


class RefusedURLError(Exception):
    """A URL we do not connect to, and why."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class AddressPolicy:
    """Judges what FEATURES_IMAGE_HOSTS lets us connect to.

    Its methods raise RefusedURLError where it does not.
    """

    def __init__(self, hosts: Iterable[str]) -> None:
        """Read the hosts as `ImageHosts` does, which raises ValueError where one can match nothing."""
        self._hosts = ImageHosts(hosts)

    def check_host(self, url: Url) -> None:
        """Let listed hosts pass; of addresses, those that are public or listed with their port."""
        if not self._hosts.lists(url):
            raise RefusedURLError(
                Status.BLOCKED_ADDRESS, f"the host {url.server} is not in FEATURES_IMAGE_HOSTS"
            )
        if url.is_address:
            self.check_address(url, url.host)

    def check_address(self, url: Url, address: str) -> None:
        """Let addresses pass that a listed host may have: public ones, or any where its port is listed."""
        if not self._hosts.lists_server(url) and not is_public(address):
            raise RefusedURLError(
                Status.BLOCKED_ADDRESS,
                f"{url.host} leads to {address}, which is not a public address; a host inside is allowed "
                "only where FEATURES_IMAGE_HOSTS lists it as host:port",
            )


@functools.lru_cache(4_096)
def is_public(text: str) -> bool:
    """Whether an address is reachable by anyone, also once the IPv4 address it may carry is looked at."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        carried = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if carried is None and address in _NAT64:
            carried = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if carried:
            return is_public(str(carried))
        # Outside it lie site-local addresses, other NAT64 prefixes and what has no meaning yet.
        if address not in _GLOBAL_UNICAST:
            return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in _ALSO_INSIDE)
    )


_ALSO_INSIDE = (ipaddress.IPv4Network("168.63.129.16/32"), ipaddress.IPv4Network("192.0.0.0/24"))
"""Outside the private ranges: where Azure serves its machines alone, and what is kept for protocols
between a machine and its own network (Oracle's cloud uses a number of these)."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
