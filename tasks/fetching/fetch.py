"""Fetches one picture over HTTP: checked addresses, capped bytes, limited time, no surprises."""

import functools
import re
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit

import certifi
from urllib3.util import Url, parse_url

from tasks.fetching.addresses import AddressPolicy, RefusedURLError
from tasks.fetching.http1 import PORTS, Answer, Connection, IdleConnections, Server
from tasks.settings import Settings
from tasks.statuses import Status

MAX_URL_LENGTH = 8_191
"""Characters; what the index can hold of a URL as a term."""

_MAX_REDIRECTS = 5
_LONGEST_ABSENCE = 365 * 86_400.0
"""Seconds: what is taken of a Retry-After that names more."""

_REDIRECTS = (301, 302, 303, 307, 308)

_PRINTABLE = re.compile("[!-~]+")


@dataclass(frozen=True)
class Fetched:
    """What one request for a picture ended with: its bytes, or a status and the reason."""

    content: bytes = b""
    status: Status | None = None
    reason: str = ""
    worth_retrying: bool = False
    overloaded: bool = False
    """The host did not answer to the end, or answered 429 or 503: it bears fewer requests at once."""
    retry_after: float | None = None
    """Seconds the server asked to be left alone for."""


class Fetcher:
    """Fetches pictures; safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._policy = AddressPolicy(settings.image_hosts)
        self._idle = IdleConnections(settings.downloads)
        # Encodings are refused: pictures are compressed already, and small bytes must not grow large.
        self._headers = (
            f"User-Agent: {settings.user_agent}\r\nAccept: image/*\r\nAccept-Encoding: identity\r\n"
        )

    def fetch(self, url: str) -> Fetched:
        """Request `url` once, following redirects, each checked like the first."""
        deadline = time.monotonic() + self._settings.transfer_timeout
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                fetched = self._ask(_parts(check_url(url)), deadline)
                if isinstance(fetched, Fetched):
                    return fetched
                url = urljoin(url, fetched)
            return Fetched(status=Status.UNREACHABLE, reason=f"more than {_MAX_REDIRECTS} redirects")
        except RefusedURLError as error:
            return Fetched(status=error.status, reason=error.reason)
        except OSError as error:
            return self._network_failure(error, deadline)
        except ValueError as error:
            # Every library on the way says so, in a class of its own, of a URL it cannot take apart.
            return Fetched(status=Status.INVALID_URL, reason=f"not a URL: {error}"[:300])

    def _ask(self, url: Url, deadline: float) -> Fetched | str:
        """What one request ended with; where the answer is a redirect, its target."""
        scheme, host = str(url.scheme), str(url.host)
        server: Server = (scheme, host, url.port or PORTS[scheme])
        request = self._request(server, url.request_uri)
        connection = self._idle.take(server)
        if connection is None:
            tls = self._tls if scheme == "https" else None
            connection = Connection(server, self._policy, tls, self._settings)
        lasts = False
        try:
            answer = connection.ask(request, self._settings.max_image_bytes, deadline)
            lasts = answer.lasts
        finally:
            if lasts:
                self._idle.put(connection)
            else:
                connection.close()
        location = answer.headers.get(b"location") if answer.status in _REDIRECTS else None
        return location.decode() if location else self._taken(answer)

    def _request(self, server: Server, target: str) -> bytes:
        scheme, host, port = server
        name = host if port == PORTS[scheme] else f"{host}:{port}"
        if not (_PRINTABLE.fullmatch(target) and _PRINTABLE.fullmatch(name)):
            raise ValueError("it cannot be asked for")
        return f"GET {target} HTTP/1.1\r\nHost: {name}\r\n{self._headers}\r\n".encode()

    def _taken(self, answer: Answer) -> Fetched:
        if answer.status != 200:
            return _refused(answer)
        limit = self._settings.max_image_bytes
        if answer.length is not None and answer.length > limit:
            return Fetched(status=Status.TOO_LARGE, reason=f"{answer.length} bytes, more than {limit}")
        if len(answer.body) > limit:
            return Fetched(status=Status.TOO_LARGE, reason=f"more than {limit} bytes")
        assert answer.complete
        return Fetched(content=bytes(answer.body))

    def _network_failure(self, error: OSError, deadline: float) -> Fetched:
        status = Status.UNREACHABLE
        if isinstance(error, TimeoutError):
            status = Status.TIMED_OUT
            reason = str(error)
            if time.monotonic() >= deadline:
                reason = f"not whole after {self._settings.transfer_timeout:g} s"
        elif isinstance(error, ssl.SSLCertVerificationError):
            reason = f"the server's certificate is refused: {error.verify_message}"
        else:
            reason = f"{type(error).__name__}: {error}"
        return Fetched(status=status, reason=reason[:300], worth_retrying=True, overloaded=True)

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=certifi.where())
        context.set_alpn_protocols(["http/1.1"])
        return context


def check_url(url: str | None) -> str:
    """Return a URL that can be asked for.

    Raises:
        RefusedURLError: empty, relative, too long, not http or https, without a host, or naming a user.
    """
    reason = ""
    if not url or not url.strip():
        reason = "the URL is empty"
    elif len(url) > MAX_URL_LENGTH:
        reason = f"the URL has {len(url)} characters, more than {MAX_URL_LENGTH}"
    else:
        try:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https"):
                reason = "the URL is neither http nor https"
            elif not parts.hostname:
                reason = "the URL names no host"
            elif "@" in parts.netloc:
                reason = "the URL carries a user name"
        except ValueError as error:
            reason = f"not a URL: {error}"
    if reason or url is None:
        raise RefusedURLError(Status.INVALID_URL, reason)
    return url


def _parts(url: str) -> Url:
    """A checked URL as what is connected to and asked for, encoded.

    Raises:
        ValueError: it cannot be taken apart, or in another way than it was checked.
    """
    parts = parse_url(url.lstrip())
    if parts.scheme not in PORTS or not parts.host or parts.auth is not None:
        raise ValueError("it can be read in more than one way")
    if parts.host.startswith((".", "*")):
        raise ValueError("no host has such a name")
    return parts


def _refused(answer: Answer) -> Fetched:
    code = answer.status
    reason = f"the server answered {code}"
    if code in (404, 410):
        return Fetched(status=Status.GONE, reason=reason)
    if code >= 500 or code in (408, 425, 429):
        status = Status.RATE_LIMITED if code == 429 else Status.UNREACHABLE
        seconds = _retry_after(answer)
        if seconds is not None:
            reason += f" and asked to be left alone for {seconds:.0f} s"
        return Fetched(
            status=status,
            reason=reason,
            worth_retrying=True,
            overloaded=code in (429, 503),
            retry_after=seconds,
        )
    if code >= 400:
        return Fetched(status=Status.FORBIDDEN, reason=reason)
    return Fetched(status=Status.NOT_A_PICTURE, reason=reason)


def _retry_after(answer: Answer) -> float | None:
    """Seconds, from either of the header's two forms: a number or a date."""
    value = answer.headers.get(b"retry-after", b"").decode("latin-1")
    try:
        seconds = (
            float(value) if value.isdecimal() else parsedate_to_datetime(value).timestamp() - time.time()
        )
    except (ValueError, TypeError, IndexError, OverflowError):  # it is the server's text
        return None
    return min(max(0.0, seconds), _LONGEST_ABSENCE)
