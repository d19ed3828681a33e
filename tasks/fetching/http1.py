"""HTTP/1.1 connections to image servers: checked addresses, limited time, kept open for the next request.

httptools takes the answers apart, which is llhttp, the parser of Node.js: with Python's own http.client the
download stage fetched two thirds as many pictures a second (docs/profile.md).
"""

import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass, field

import httptools
from urllib3.util.wait import wait_for_read

from tasks.fetching.addresses import AddressPolicy
from tasks.settings import Settings

PORTS = {"http": 80, "https": 443}

_RECEIVE_BYTES = 65_536
"""What one receive may give: most pictures come with their headers in one or two."""
_MOST_BARE_BYTES = 65_536
"""What may come of an answer without any of its body: headers, and what stands around chunks."""
_FRESH = 0.5
"""Seconds since its last answer in which a connection is taken for open without a look at it. An answer that
nobody asked for and that comes meanwhile would be taken for the next one's: the same server said both."""
_LONGEST_IDLE = 60.0
"""Seconds: what stands between may have dropped a connection by then and would say nothing."""
_SHORTEST = 0.001
"""Seconds: none at all would mean no limit."""

Server = tuple[str, str, int]
"""Scheme, host and port."""


class AnswerError(ConnectionError):
    """The connection ended before the answer did, or what came is no HTTP."""


@dataclass(eq=False)
class Answer:
    """One answer, as far as it has come."""

    status: int = 0
    """0 until all headers have come."""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    """By their names in lower case; the values of one name that comes again are joined by commas."""
    length: int | None = None
    """Bytes that the body will have, where the server has said so."""
    body: bytearray = field(default_factory=bytearray)
    """As far as it has come; one array, since parts of a byte each would take fifty times their size."""
    complete: bool = False
    lasts: bool = False
    """Whether the connection can be asked again."""

    @property
    def known_length(self) -> int:
        """Bytes that the body has at least."""
        return max(len(self.body), self.length or 0)

    @property
    def ends_with_connection(self) -> bool:
        """Whether nothing but the connection's end says where the body ends."""
        chunked = b"chunked" in self.headers.get(b"transfer-encoding", b"").lower()
        return self.status != 0 and self.length is None and not chunked


class _Reader:
    """Takes apart what comes over one connection; httptools calls the methods that begin with on_."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        # As browsers do: odd bytes in a header that nobody reads cost no picture, nor do header lines that
        # end without CR, nor chunk sizes that old servers pad with spaces.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._answer = Answer()
        self._bare = 0
        """Bytes received of the answer without any of its body among them."""

    def expect(self, answer: Answer) -> None:
        """Let what comes from now on be of this answer."""
        self._answer, self._bare = answer, 0

    def take(self, data: bytes) -> None:
        """Take in what was received; nothing is the connection's end.

        Raises:
            AnswerError: it is no answer, or not a whole one.
        """
        answer = self._answer
        if not data:
            if not answer.ends_with_connection:
                raise AnswerError("the connection ended before the answer did")
            answer.complete = True
            return
        size = len(answer.body)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if isinstance(error.__context__, MemoryError):  # httptools wraps what its callbacks raise
                raise error.__context__ from None
            answer.lasts = False
            if not answer.complete:
                raise AnswerError(f"what came is no HTTP: {error}") from None
        if len(answer.body) == size and not answer.complete:
            self._bare += len(data)
            if self._bare > _MOST_BARE_BYTES:
                raise AnswerError(f"more than {_MOST_BARE_BYTES} bytes beside the body")

    def on_message_begin(self) -> None:
        """The answer, or another one after it, which nobody asked for."""
        if self._answer.complete:
            self._answer.lasts = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; those that follow a body are nothing to us."""
        headers = self._answer.headers
        if not self._answer.status:
            name, value = name.rstrip().lower(), value.strip()
            headers[name] = headers[name] + b", " + value if name in headers else value

    def on_headers_complete(self) -> None:
        """Now it is known what this is."""
        if self._answer.status:
            return
        status = self._parser.get_status_code()
        if status < 100:
            raise ValueError(f"{status} is no status")
        if status < 200 and status != 101:
            self._answer.headers.clear()  # the answer follows
            return
        if length := self._answer.headers.get(b"content-length"):
            self._answer.length = int(length)
        self._answer.status = status

    def on_body(self, data: bytes) -> None:
        """A part of the body, or of what is none: a 1xx that has one, or more than was asked for."""
        if self._answer.status and not self._answer.complete:
            self._answer.body += data

    def on_message_complete(self) -> None:
        """It is whole, unless it was one of those that another one follows."""
        if self._answer.status and not self._answer.complete:
            self._answer.complete = True
            self._answer.lasts = self._parser.should_keep_alive()


class Connection:
    """Connects to addresses that the policy has seen, not to whatever the name gives a moment later."""

    def __init__(
        self, server: Server, policy: AddressPolicy, tls: ssl.SSLContext | None, settings: Settings
    ) -> None:
        """One that connects when it is first asked; `tls` is None where the scheme is http."""
        self.server = server
        self._host = server[1].strip("[]")
        self.idle_since = 0.0
        self._policy = policy
        self._tls = tls
        self._settings = settings
        self._socket: socket.socket | None = None
        self._reader = _Reader()
        self._longest_silence = 0.0

    def ask(self, request: bytes, most: int, deadline: float) -> Answer:
        """Send a request and take in the answer: its headers, and of a 200 the body as far as it is wanted.

        Args:
            request: the bytes of a GET.
            most: how many bytes of body are wanted; the answer of a longer one stays incomplete.
            deadline: when all has to be over, by time.monotonic().

        Raises:
            TimeoutError: it took too long, or a part of it did.
            OSError: there is no connection, or it ended early.
            RefusedURLError: the policy does not let us connect there.
        """
        kept = self._socket is not None
        try:
            answer = self._headers_of(request, deadline)
        except ConnectionError:
            if not kept:
                raise
            # The server had ended it, or had said more than it was asked for: no word on this picture, so
            # it is asked for anew (RFC 9110, section 9.2.2).
            self.close()
            answer = self._headers_of(request, deadline)
        try:
            while not answer.complete and answer.status == 200 and answer.known_length <= most:
                self._reader.take(self._receive(deadline))
        finally:
            self._reader.expect(Answer())  # this one's body would live as long as the connection
        return answer

    def readable(self) -> bool:
        """Whether anything has come since the last answer: its end, or what is not to be read as another."""
        return wait_for_read(self._connected(), timeout=0)

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _headers_of(self, request: bytes, deadline: float) -> Answer:
        if self._socket is None:
            self._connect(deadline)
        rest = memoryview(request)
        while rest:
            rest = rest[self._send(rest, deadline) :]
        answer = Answer()
        self._reader.expect(answer)
        while not answer.status:
            self._reader.take(self._receive(deadline))
        return answer

    def _send(self, data: memoryview, deadline: float) -> int:
        self._limit_silence(deadline)
        try:
            return self._connected().send(data)
        except (TimeoutError, BlockingIOError):
            raise TimeoutError("the request was not taken in time") from None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise ConnectionResetError(f"the connection has ended: {error.strerror}") from None

    def _receive(self, deadline: float) -> bytes:
        self._limit_silence(deadline)
        try:
            return self._connected().recv(_RECEIVE_BYTES)
        except (TimeoutError, BlockingIOError):
            raise TimeoutError("no answer in time") from None

    def _limit_silence(self, deadline: float) -> None:
        """Let no single operation take longer than a silence may, nor beyond the deadline."""
        seconds = min(self._settings.read_timeout, _time_left(deadline))
        if seconds == self._longest_silence:
            return
        connection = self._connected()
        self._longest_silence = seconds
        if self._tls is not None:
            connection.settimeout(seconds)
            return
        # With a limit of Python's it would ask before each operation whether it can be done, and each
        # question gives all other threads their turn at the interpreter.
        whole, rest = divmod(max(seconds, _SHORTEST), 1)
        limit = struct.pack("ll", int(whole), int(rest * 1_000_000))
        for of_what in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connection.setsockopt(socket.SOL_SOCKET, of_what, limit)

    def _connected(self) -> socket.socket:
        assert self._socket is not None
        return self._socket

    def _connect(self, deadline: float) -> None:
        """Connect within the time there is, with TLS where the scheme says so."""
        connection = self._opened(deadline)
        try:
            if self._tls is not None:
                connection.settimeout(min(self._settings.connect_timeout, _time_left(deadline)))
                connection = self._tls.wrap_socket(connection, server_hostname=self._host.rstrip("."))
            else:
                connection.settimeout(None)
        except BaseException:
            connection.close()
            raise
        self._socket, self._reader, self._longest_silence = connection, _Reader(), 0.0

    def _opened(self, deadline: float) -> socket.socket:
        host, port = self._host, self.server[2]
        longest = self._settings.connect_timeout
        try:
            addresses = self._policy.addresses(host, port, min(longest, _time_left(deadline)))
        except socket.gaierror as error:
            raise ConnectionError(f"the name {host} does not resolve: {error.strerror}") from error
        refusal: OSError | None = None
        for address in addresses:
            try:
                connection = socket.create_connection((address, port), min(longest, _time_left(deadline)))
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return connection
            except TimeoutError as error:
                raise TimeoutError(f"{host} did not accept a connection in time") from error
            except OSError as error:
                refusal = error
        raise ConnectionError(f"{host}:{port}: {refusal}")


class IdleConnections:
    """Open connections that wait for another request, so many at most; safe to share between threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._connections: list[Connection] = []
        """The longest idle first."""

    def take(self, server: Server) -> Connection | None:
        """One to that server which it has not closed, as far as can be told."""
        while (connection := self._take_any(server)) is not None:
            idle = time.monotonic() - connection.idle_since
            # A look gives all other threads their turn at the interpreter, so it is saved where it would
            # hardly find anything.
            if idle < _FRESH or (idle < _LONGEST_IDLE and not connection.readable()):
                return connection
            connection.close()
        return None

    def put(self, connection: Connection) -> None:
        """Keep one for later; where there are too many, the longest idle is closed."""
        connection.idle_since = time.monotonic()
        with self._lock:
            self._connections.append(connection)
            surplus = self._connections.pop(0) if len(self._connections) > self._most else None
        if surplus is not None:
            surplus.close()

    def _take_any(self, server: Server) -> Connection | None:
        with self._lock:
            for place in reversed(range(len(self._connections))):
                if self._connections[place].server == server:
                    return self._connections.pop(place)
        return None


def _time_left(deadline: float) -> float:
    """Seconds until then.

    Raises:
        TimeoutError: there is none left.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time for this picture is over")
    return left
