"""Fetches one picture over HTTP: checked addresses, capped bytes, limited time, no surprises."""

import http.client
import io
import socket
import ssl
import time
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

import certifi
from urllib3 import BaseHTTPResponse, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.util import Retry, Timeout, parse_url
from urllib3.util.connection import create_connection

from tasks.addresses import AddressPolicy, RefusedURLError
from tasks.settings import Settings
from tasks.statuses import Status

MAX_URL_LENGTH = 8_191
"""Characters; what the index can hold of a URL as a term."""

_MAX_REDIRECTS = 5
_RECEIVE_BYTES = 65_536
"""What one receive may give: most pictures come with their headers in one or two."""
_LONGEST_ABSENCE = 365 * 86_400.0
"""Seconds: what is taken of a Retry-After that names more."""

_NO_RETRIES = Retry(False)

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
        # urllib3 by itself asks no proxy, reads no .netrc and keeps no cookie.
        self._pools = PoolManager(
            num_pools=settings.downloads, maxsize=settings.downloads, ca_certs=certifi.where()
        )
        self._pools.pool_classes_by_scheme = _checked_pools(AddressPolicy(settings.image_hosts))
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
                response = self._answer(check_url(url))
                try:
                    location = response.get_redirect_location()
                    if not location:
                        return self._taken(response)
                finally:
                    # A connection whose answer was read to its end is back in its pool by now.
                    response.close()
                # Headers are read as Latin-1, and what is not ASCII in this one is UTF-8.
                url = urljoin(url, location.encode("latin-1").decode())
            return Fetched(status=Status.UNREACHABLE, reason=f"more than {_MAX_REDIRECTS} redirects")
        except RefusedURLError as error:
            return Fetched(status=error.status, reason=error.reason)
        except ValueError as error:
            # Every library on the way says so, in a class of its own, of a URL it cannot take apart.
            return Fetched(status=Status.INVALID_URL, reason=f"not a URL: {error}"[:300])
        except (HTTPError, OSError) as error:
            return _network_failure(error, self._settings)

    def _answer(self, url: str) -> BaseHTTPResponse:
        """The answer to one request, its headers read and its body not."""
        # This library may read an odd URL in another way than check_url did, and its way is what counts.
        parts = parse_url(url.lstrip())
        if parts.scheme not in ("http", "https") or not parts.host or parts.auth is not None:
            raise ValueError("it can be read in more than one way")
        if parts.host.startswith((".", "*")):
            raise ValueError("no host has such a name")
        pool = self._pools.connection_from_host(parts.host, parts.port, parts.scheme)
        return pool.urlopen(
            "GET",
            parts.request_uri,
            headers=self._headers,
            retries=_NO_RETRIES,
            redirect=False,
            assert_same_host=False,
            timeout=Timeout(
                connect=_time_left(self._settings.connect_timeout), read=self._settings.read_timeout
            ),
            preload_content=False,
            decode_content=False,
        )

    def _taken(self, response: BaseHTTPResponse) -> Fetched:
        if response.status != 200:
            return _refused(response)
        limit = self._settings.max_image_bytes
        announced = response.length_remaining
        if announced is not None and announced > limit:
            return Fetched(status=Status.TOO_LARGE, reason=f"{announced} bytes, more than {limit}")
        content = b""
        # Again at the end: urllib3 says only then that an answer was cut short.
        while part := response.read(limit + 1 - len(content)):
            content = content + part if content else part
            if len(content) > limit:
                return Fetched(status=Status.TOO_LARGE, reason=f"more than {limit} bytes")
        return Fetched(content=content)


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
            elif parts.username is not None or parts.password is not None:
                reason = "the URL carries a user name"
        except ValueError as error:
            reason = f"not a URL: {error}"
    if reason or url is None:
        raise RefusedURLError(Status.INVALID_URL, reason)
    return url


def _refused(response: BaseHTTPResponse) -> Fetched:
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


def _retry_after(response: BaseHTTPResponse) -> float | None:
    """Seconds, from either of the header's two forms: a number or a date."""
    value = response.headers.get("retry-after", "").strip()
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
    # urllib3 wraps the cause; the innermost says most, and names no credentials.
    cause: BaseException = error
    while (
        isinstance(cause, HTTPError)
        and cause.args
        and isinstance(inner := getattr(cause, "reason", None) or cause.args[-1], BaseException)
    ):
        cause = inner
    status = Status.UNREACHABLE
    if isinstance(cause, TimeoutError | ReadTimeoutError):
        status = Status.TIMED_OUT
        if time.monotonic() >= _deadline.get():
            reason = f"not whole after {settings.transfer_timeout:g} s"
        else:
            reason = "no answer in time" if isinstance(cause, ReadTimeoutError) else str(cause)
    elif isinstance(cause, ssl.SSLCertVerificationError):
        reason = f"the server's certificate is refused: {cause.verify_message}"
    else:
        reason = f"{type(cause).__name__}: {cause}"
    return Fetched(status=status, reason=reason[:300], worth_retrying=True, overloaded=True)


class _TimedReader(io.RawIOBase):
    """Reads a socket so that no receive lasts beyond the fetch's deadline."""

    def __init__(self, connection: socket.socket, reader: io.RawIOBase) -> None:
        self._connection = connection
        self._reader = reader
        self._longest_silence = connection.gettimeout() or 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        seconds = _time_left(self._longest_silence)
        if seconds < self._longest_silence:
            self._connection.settimeout(seconds)
        return self._reader.readinto(buffer)

    def close(self) -> None:
        self._reader.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    """A response whose headers and body both meet the deadline, however slowly they drip."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp: io.BufferedReader = io.BufferedReader(_TimedReader(sock, self.fp.detach()), _RECEIVE_BYTES)


class _CheckedConnection:
    """Connects to addresses that the policy has seen, not to whatever the name gives a moment later."""

    policy: AddressPolicy
    response_class: Any = _TimedResponse

    def _new_conn(self: Any) -> socket.socket:
        try:
            addresses = self.policy.addresses(self.host, self.port, _time_left(self.timeout))
        except socket.gaierror as error:
            raise ConnectionError(f"the name {self.host} does not resolve: {error.strerror}") from error
        refusal: OSError | None = None
        for address in addresses:
            try:
                connection = create_connection(
                    (address, self.port), _time_left(self.timeout), socket_options=self.socket_options
                )
            except TimeoutError as error:
                raise TimeoutError(f"{self.host} did not accept a connection in time") from error
            except OSError as error:
                refusal = error
            else:
                connection.settimeout(_time_left(self.timeout))  # of the TLS handshake
                return connection
        raise ConnectionError(f"{self.host}:{self.port}: {refusal}")


def _checked_pools(policy: AddressPolicy) -> dict[str, type]:
    class PlainConnection(_CheckedConnection, HTTPConnection):
        pass

    class TLSConnection(_CheckedConnection, HTTPSConnection):
        pass

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = PlainConnection

    class TLSPool(HTTPSConnectionPool):
        ConnectionCls = TLSConnection

    PlainConnection.policy = TLSConnection.policy = policy
    return {"http": PlainPool, "https": TLSPool}
