"""Which hosts and addresses pictures may come from. URLs come from strangers: a name in an allowed
list may resolve to an address inside, so it is addresses that are judged, when connecting."""

import ipaddress
import socket
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from tasks.statuses import Status


class RefusedURLError(Exception):
    """A URL we do not connect to, and why."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class AddressPolicy:
    """The hosts of FEATURES_IMAGE_HOSTS.

    `cdn.example.com` allows that host at public addresses, `*` every host at public addresses, and
    `images.internal:8080` that host and port at whatever address it has.
    """

    def __init__(self, hosts: Iterable[str]) -> None:
        self._hosts = {host.lower() for host in hosts}

    def addresses(self, host: str, port: int, timeout: float) -> list[str]:
        """Resolve a host within `timeout` seconds and return its addresses, every one of them allowed.

        Raises:
            RefusedURLError: the host is not allowed, or any of its addresses is not.
            TimeoutError: the name did not resolve in time.
            OSError: the name does not resolve.
        """
        name = host.strip("[]").rstrip(".").lower()
        listed_with_port = (f"[{name}]:{port}" if ":" in name else f"{name}:{port}") in self._hosts
        if not listed_with_port and name not in self._hosts and "*" not in self._hosts:
            raise RefusedURLError(
                Status.BLOCKED_ADDRESS, f"the host {name}:{port} is not in FEATURES_IMAGE_HOSTS"
            )
        addresses = _resolved(name, port, timeout)
        if not listed_with_port:
            for address in addresses:
                if not is_public(address):
                    raise RefusedURLError(
                        Status.BLOCKED_ADDRESS,
                        f"{name} leads to {address}, which is not a public address; a host inside is "
                        "allowed only where FEATURES_IMAGE_HOSTS lists it as host:port",
                    )
        return addresses


def _resolved(name: str, port: int, timeout: float) -> list[str]:
    found: Future[list[Any]] = Future()

    def resolve() -> None:
        try:
            found.set_result(socket.getaddrinfo(name, port, type=socket.SOCK_STREAM))
        except Exception as error:
            found.set_exception(error)

    # The system's resolver knows no limit and cannot be stopped. The thread is left to it, and as a daemon
    # keeps no process alive.
    threading.Thread(target=resolve, name="resolver", daemon=True).start()
    try:
        return [str(address[0]) for _, _, _, _, address in found.result(timeout)]
    except TimeoutError:
        raise TimeoutError(f"the name {name} did not resolve in time") from None


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
