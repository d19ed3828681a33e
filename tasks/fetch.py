"""Fetches one picture over HTTP: checked addresses, capped bytes, limited time, no surprises."""

import functools
import http.client
import io
import socket
import ssl
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

import certifi
from urllib3.util import Url, parse_url
from urllib3.util.wait import wait_for_read

from tasks.addresses import AddressPolicy, RefusedURLError
from tasks.settings import Settings
from tasks.statuses import Status

MAX_URL_LENGTH = 8_191
"""Characters; what the index can hold of a URL as a term."""

_MAX_REDIRECTS = 5
_RECEIVE_BYTES = 65_536
"""What one receive may give: most pictures come with their headers in one or two."""
_FRESH = 0.5
"""Seconds since its last answer in which a connection is taken for open without a look at it."""
_LONGEST_ABSENCE = 365 * 86_400.0
"""Seconds: what is taken of a Retry-After that names more."""

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)

_deadline: ContextVar[float] = ContextVar("deadline")
"""When the fetch of this thread has to be over, by time.monotonic()."""


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
        self._idle = _IdleConnections(settings.downloads)
        # Encodings are refused: pictures are compressed already, and small bytes must not grow large.
        self._headers = {
            "User-Agent": settings.user_agent,
            "Accept": "image/*",
            "Accept-Encoding": "identity",
        }

    def fetch(self, url: str) -> Fetched:
        """Request `url` once, following redirects, each checked like the first."""
        _deadline.set(time.monotonic() + self._settings.transfer_timeout)
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                fetched = self._ask(_parts(check_url(url)))
                if isinstance(fetched, Fetched):
                    return fetched
                url = urljoin(url, fetched)
            return Fetched(status=Status.UNREACHABLE, reason=f"more than {_MAX_REDIRECTS} redirects")
        except RefusedURLError as error:
            return Fetched(status=error.status, reason=error.reason)
        except (OSError, http.client.HTTPException) as error:
            return _network_failure(error, self._settings)
        except ValueError as error:
            # Every library on the way says so, in a class of its own, of a URL it cannot take apart.
            return Fetched(status=Status.INVALID_URL, reason=f"not a URL: {error}"[:300])

    def _ask(self, url: Url) -> Fetched | str:
        """What one request ended with; where the answer is a redirect, its target."""
        server = (str(url.scheme), str(url.host), url.port or _PORTS[str(url.scheme)])
        connection = self._idle.take(server)
        if connection is None:
            tls = self._tls if url.scheme == "https" else None
            connection = _Connection(server, self._policy, tls, self._settings)
        lasts = False
        try:
            response = connection.ask(url.request_uri, self._headers)
            location = response.getheader("location") if response.status in _REDIRECTS else None
            # Headers are read as Latin-1, and what is not ASCII in this one is UTF-8.
            result = location.encode("latin-1").decode() if location else self._taken(response)
            lasts = response.isclosed() and not response.will_close
            return result
        finally:
            if lasts:
                self._idle.put(connection)
            else:
                connection.close()

    def _taken(self, response: http.client.HTTPResponse) -> Fetched:
        if response.status != 200:
            return _refused(response)
        limit = self._settings.max_image_bytes
        if response.length is not None and response.length > limit:
            return Fetched(status=Status.TOO_LARGE, reason=f"{response.length} bytes, more than {limit}")
        content = b""
        while part := response.read(limit + 1 - len(content)):
            content = content + part if content else part
            if len(content) > limit:
                return Fetched(status=Status.TOO_LARGE, reason=f"more than {limit} bytes")
        if response.length:
            raise http.client.IncompleteRead(content, response.length)
        return Fetched(content=content)

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
    if parts.scheme not in _PORTS or not parts.host or parts.auth is not None:
        raise ValueError("it can be read in more than one way")
    if parts.host.startswith((".", "*")):
        raise ValueError("no host has such a name")
    return parts


def _refused(response: http.client.HTTPResponse) -> Fetched:
    code = response.status
    reason = f"the server answered {code}"
    if code in (404, 410):
        return Fetched(status=Status.GONE, reason=reason)
    if code >= 500 or code in (408, 425, 429):
        status = Status.RATE_LIMITED if code == 429 else Status.UNREACHABLE
        seconds = _retry_after(response)
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


def _retry_after(response: http.client.HTTPResponse) -> float | None:
    """Seconds, from either of the header's two forms: a number or a date."""
    value = response.getheader("retry-after", "").strip()
    try:
        seconds = (
            float(value) if value.isdecimal() else parsedate_to_datetime(value).timestamp() - time.time()
        )
    except (ValueError, TypeError, IndexError, OverflowError):  # it is the server's text
        return None
    return min(max(0.0, seconds), _LONGEST_ABSENCE)


def _time_left(at_most: float) -> float:
    """Seconds that an operation of this fetch may take.

    Raises:
        TimeoutError: there is none left.
    """
    left = _deadline.get() - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time for this picture is over")
    return min(left, at_most)


def _network_failure(error: Exception, settings: Settings) -> Fetched:
    status = Status.UNREACHABLE
    if isinstance(error, TimeoutError):
        status = Status.TIMED_OUT
        reason = str(error)
        if time.monotonic() >= _deadline.get():
            reason = f"not whole after {settings.transfer_timeout:g} s"
    elif isinstance(error, ssl.SSLCertVerificationError):
        reason = f"the server's certificate is refused: {error.verify_message}"
    else:
        reason = f"{type(error).__name__}: {error}"
    return Fetched(status=status, reason=reason[:300], worth_retrying=True, overloaded=True)


Server = tuple[str, str, int]
"""Scheme, host and port."""


class _IdleConnections:
    """Open connections that wait for another request, so many at most; safe to share between threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._connections: list[_Connection] = []
        """The longest idle first."""

    def take(self, server: Server) -> "_Connection | None":
        """One to that server which it has not closed, as far as can be told."""
        while (connection := self._take_any(server)) is not None:
            # Nothing was asked: what can be read is its end, or what nobody should read. A look gives all
            # other threads their turn at the interpreter, so it is saved where it would hardly find anything.
            fresh = time.monotonic() < connection.idle_since + _FRESH
            if fresh or not wait_for_read(connection.sock, timeout=0):
                return connection
            connection.close()
        return None

    def put(self, connection: "_Connection") -> None:
        """Keep one for later; where there are too many, the longest idle is closed."""
        connection.rest()
        with self._lock:
            self._connections.append(connection)
            surplus = self._connections.pop(0) if len(self._connections) > self._most else None
        if surplus is not None:
            surplus.close()

    def _take_any(self, server: Server) -> "_Connection | None":
        with self._lock:
            for place in reversed(range(len(self._connections))):
                if self._connections[place].server == server:
                    return self._connections.pop(place)
        return None


class _TimedReader(io.RawIOBase):
    """Reads a socket so that no receive lasts beyond the fetch's deadline."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        # The connection stays open as long as this is, also where http.client lets go of it.
        self._reader = connection.makefile("rb", buffering=0)
        self._longest_silence = connection.gettimeout() or 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        seconds = _time_left(self._longest_silence)
        # Only where it has to: each change gives the other threads their turn at the interpreter.
        if seconds < self._longest_silence:
            self._connection.settimeout(seconds)
        try:
            return self._connection.recv_into(buffer)
        except TimeoutError:
            raise TimeoutError("no answer in time") from None

    def close(self) -> None:
        self._reader.close()
        super().close()


class _Timed:
    """A connection as http.client's responses take it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def makefile(self, _: str) -> io.BufferedReader:
        """Its reader."""
        return io.BufferedReader(_TimedReader(self._connection), _RECEIVE_BYTES)


class _TimedResponse(http.client.HTTPResponse):
    """A response whose headers and body both meet the deadline, however slowly they drip."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(_Timed(sock), *args, **kwargs)  # type: ignore[arg-type]


class _Connection(http.client.HTTPConnection):
    """Connects to addresses that the policy has seen, not to whatever the name gives a moment later."""

    response_class = _TimedResponse

    def __init__(
        self, server: Server, policy: AddressPolicy, tls: ssl.SSLContext | None, settings: Settings
    ) -> None:
        self.server = server
        self.idle_since = 0.0
        scheme, host, port = server
        super().__init__(host.strip("[]"), port)
        self.default_port = _PORTS[scheme]
        self._policy = policy
        self._tls = tls
        self._settings = settings

    def ask(self, target: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        """What a GET is answered with, as far as the headers go."""
        kept = self.sock is not None
        try:
            return self._answer(target, headers)
        except (ConnectionError, http.client.BadStatusLine):
            if not kept:
                raise
            # The server had ended it, or had said more than it was asked for: no word on this picture, so
            # it is asked for anew (RFC 9110, section 9.2.2).
            self.close()
            return self._answer(target, headers)

    def _answer(self, target: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        self.request("GET", target, headers=headers)
        return self.getresponse()

    def rest(self) -> None:
        """Be idle from now on, with the whole time again for what comes next."""
        self.idle_since = time.monotonic()
        if self.sock.gettimeout() != self._settings.read_timeout:
            self.sock.settimeout(self._settings.read_timeout)

    def connect(self) -> None:
        """Connect within the time there is, with TLS where the scheme says so."""
        connection = self._connected()
        try:
            if self._tls is not None:
                connection.settimeout(_time_left(self._settings.connect_timeout))  # of the handshake
                connection = self._tls.wrap_socket(connection, server_hostname=self.host.rstrip("."))
        except BaseException:
            connection.close()
            raise
        connection.settimeout(self._settings.read_timeout)
        self.sock = connection

    def _connected(self) -> socket.socket:
        longest = self._settings.connect_timeout
        try:
            addresses = self._policy.addresses(self.host, self.port, _time_left(longest))
        except socket.gaierror as error:
            raise ConnectionError(f"the name {self.host} does not resolve: {error.strerror}") from error
        refusal: OSError | None = None
        for address in addresses:
            try:
                connection = socket.create_connection((address, self.port), _time_left(longest))
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return connection
            except TimeoutError as error:
                raise TimeoutError(f"{self.host} did not accept a connection in time") from error
            except OSError as error:
                refusal = error
        raise ConnectionError(f"{self.host}:{self.port}: {refusal}")
