"""URLs as browsers read them (the WHATWG's standard, by ada), and the hosts that FEATURES_IMAGE_HOSTS lists.

Every URL is read here and nowhere else, so that what is asked for is what was checked.
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

import ada_url

MAX_URL_LENGTH = 8_191
"""Characters; what the index can hold of a URL as a term."""

PORTS = {"http": 80, "https": 443}

_SCHEME = re.compile(r"[\x00-\x20]*h[\t\n\r]*t[\t\n\r]*t[\t\n\r]*p[\t\n\r]*(s[\t\n\r]*)?:", re.IGNORECASE)
_PARTS = re.compile(
    r"(https?)://(?:([^/?#]*)@)?(?:(\[[0-9a-f:.]+\]|[0-9]+(?:\.[0-9]+){3})|([^/?#:]*))(?::([0-9]+))?([/?][^#]*)"
)
"""Of a URL as the standard writes it: scheme, user, address or name, port, and what is asked for."""
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
"""What a name server can be asked for. The standard allows more, which parsers take apart differently."""
_NOT_OF_A_HOST = re.compile(r"[/\\?#@%\s\x00-\x1f]|:\Z")


class InvalidURLError(ValueError):
    """A URL that no picture can be asked for by, and why."""


class Url(NamedTuple):
    """A URL that can be asked for."""

    text: str
    """Normalised: ASCII, percent-encoded, without a fragment."""
    scheme: str
    host: str
    """A name in lower case and ASCII without a dot at its end, or an address without brackets."""
    port: int
    is_address: bool

    @property
    def server(self) -> str:
        """Host and port, as messages name them and hosts are distinguished by."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read(text: str | None, base: Url | None = None) -> Url:
    """Read a URL; one that is relative is read from `base`.

    Raises:
        InvalidURLError: empty, relative without a base, too long, not http or https, of no host that can be,
            or naming a user.
    """
    if not text or not text.strip():
        raise InvalidURLError("the URL is empty")
    if len(text) > MAX_URL_LENGTH:
        raise InvalidURLError(f"the URL has {len(text)} characters, more than {MAX_URL_LENGTH}")
    try:
        found = _PARTS.match(ada_url.join_url(base.text, text) if base else ada_url.normalize_url(text))
    except ValueError:
        if base is None and not _SCHEME.match(text):
            raise InvalidURLError("the URL is neither http nor https") from None
        raise InvalidURLError("not a URL: it names no host, or no host or port that can be") from None
    if found is None:
        raise InvalidURLError("the URL is neither http nor https")
    scheme, user, address, name, port, rest = found.groups()
    if user:
        raise InvalidURLError("the URL carries a user name")
    if name:
        name = name.removesuffix(".")
        if not _NAME.fullmatch(name):
            raise InvalidURLError("not a URL: no host has such a name")
    server = f"{name or address}:{port}" if port else name or address
    return Url(
        f"{scheme}://{server}{rest}",
        scheme,
        name or address.strip("[]"),
        int(port or PORTS[scheme]),
        is_address=not name,
    )


class ImageHosts:
    """The hosts that pictures may come from, as FEATURES_IMAGE_HOSTS lists them.

    `cdn.example` is that host, `*.cdn.example` every host below it and `*` every host, all of them at public
    addresses and any port; `images.internal:8080` is that host and port at whatever address it has.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        """Read the entries.

        Raises:
            ValueError: one that can match nothing.
        """
        self.any = False
        self._names: set[str] = set()
        self._above: set[str] = set()
        self._servers: set[tuple[str, int]] = set()
        self.entries = tuple(map(self._add, entries))
        """As they are compared: names in lower case and ASCII."""

    def lists(self, url: Url) -> bool:
        """Whether pictures may come from the URL's host, provided that its addresses are public."""
        if self.any or url.host in self._names or self.lists_server(url):
            return True
        parts = url.host.split(".")
        return any(".".join(parts[start:]) in self._above for start in range(1, len(parts)))

    def lists_server(self, url: Url) -> bool:
        """Whether pictures may come from the URL's host and port, wherever that is."""
        return (url.host, url.port) in self._servers

    def _add(self, entry: str) -> str:
        if entry == "*":
            self.any = True
            return entry
        if _NOT_OF_A_HOST.search(entry):
            raise ValueError(
                f"{entry}: hosts are wanted, without https:// and without a path, separated by commas"
            )
        below = entry.startswith("*.")
        port = re.search(r"(?<=[^:]):([0-9]+)\Z", entry)
        try:
            url = read(f"http://{entry[2:] if below else entry}/")
        except InvalidURLError:
            raise ValueError(f"{entry} can match no host") from None
        if below and (port or url.is_address):
            raise ValueError(f"{entry} can match no host: the hosts below a name are listed as *.name")
        name = f"[{url.host}]" if ":" in url.host else url.host
        if port:
            self._servers.add((url.host, int(port[1])))
            return f"{name}:{port[1]}"
        if url.is_address and not ipaddress.ip_address(url.host).is_global:
            raise ValueError(f"{entry} can match no host: a private address is listed as address:port")
        (self._above if below else self._names).add(url.host)
        return f"*.{name}" if below else name
