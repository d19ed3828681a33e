"""Fetches one picture over HTTP: checked addresses, capped bytes, limited time, no surprises."""

import http.client
import io
import socket
import ssl
import time
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.util.connection import create_connection

from tasks.addresses import AddressPolicy, RefusedURLError
from tasks.settings import Settings
from tasks.statuses import Status

MAX_URL_LENGTH = 8_191
"""Characters; what the index can hold of a URL as a term."""

_MAX_REDIRECTS = 5
_READ_BYTES = 65_536
_LONGEST_ABSENCE = 365 * 86_400.0
"""Seconds: what is taken of a Retry-After that names more."""

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
        self._session = requests.Session()
        # No proxy, .netrc or CA bundle from the environment, and no cookie from one shop to another.
        self._session.trust_env = False
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        # Encodings are refused: pictures are compressed already, and small bytes must not grow large.
        self._session.headers = {
            "User-Agent": settings.user_agent,
            "Accept": "image/*",
            "Accept-Encoding": "identity",
        }
        adapter = _CheckedAdapter(AddressPolicy(settings.image_hosts), pool_size=settings.downloads)
        self._session.adapters.clear()
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)

    def fetch(self, url: str) -> Fetched:
        """Request `url` once, following redirects, each checked like the first."""
        _deadline.set(time.monotonic() + self._settings.transfer_timeout)
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                check_url(url)
                with self._session.get(
                    url,
                    stream=True,
                    allow_redirects=False,
                    timeout=(_time_left(self._settings.connect_timeout), self._settings.read_timeout),
                ) as response:
                    location = self._session.get_redirect_target(response)
                    if location is None:
                        return self._taken(response)
                    url = urljoin(url, location)
            return Fetched(status=Status.UNREACHABLE, reason=f"more than {_MAX_REDIRECTS} redirects")
        except RefusedURLError as error:
            return Fetched(status=error.status, reason=error.reason)
        except ValueError as error:
            # Every library on the way says so, in a class of its own, of a URL it cannot take apart.
            return Fetched(status=Status.INVALID_URL, reason=f"not a URL: {error}"[:300])
        except (requests.exceptions.RequestException, HTTPError, OSError) as error:
            return _network_failure(error, self._settings)

    def _taken(self, response: requests.Response) -> Fetched:
        if response.status_code != 200:
            return _refused(response)
        limit = self._settings.max_image_bytes
        announced = response.raw.length_remaining
        if announced is not None and announced > limit:
            return Fetched(status=Status.TOO_LARGE, reason=f"{announced} bytes, more than {limit}")
        content = bytearray()
        # read1 returns with what one receive gave, so that too much is noticed at once.
        while part := response.raw.read1(_READ_BYTES):
            content += part
            if len(content) > limit:
                return Fetched(status=Status.TOO_LARGE, reason=f"more than {limit} bytes")
        return Fetched(content=bytes(content))


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


def _refused(response: requests.Response) -> Fetched:
    code = response.status_code
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


def _retry_after(response: requests.Response) -> float | None:
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
    # requests and urllib3 wrap the cause; the innermost says most, and names no credentials.
    cause: BaseException = error
    while (
        isinstance(cause, HTTPError | requests.exceptions.RequestException)
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
        self._connection.settimeout(_time_left(self._longest_silence))
        return self._reader.readinto(buffer)

    def close(self) -> None:
        self._reader.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    """A response whose headers and body both meet the deadline, however slowly they drip."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp: io.BufferedReader = io.BufferedReader(_TimedReader(sock, self.fp.detach()))


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


class _CheckedAdapter(HTTPAdapter):
    def __init__(self, policy: AddressPolicy, pool_size: int) -> None:
        self._pools = _checked_pools(policy)
        super().__init__(pool_connections=pool_size, pool_maxsize=pool_size)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        manager: urllib3.PoolManager = self.poolmanager
        manager.pool_classes_by_scheme = self._pools


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
