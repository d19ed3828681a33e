"""An HTTP server on the loopback interface that answers each path as a test scripts it, and remembers
what it was asked. It behaves as badly as it is told to.

    with ScriptedServer() as server:
        server.answer("/a.jpg", Reply(body=photo))
        server.answer("/busy.jpg", Reply(429, headers={"Retry-After": "1"}), Reply(body=photo))
        settings = Settings(image_hosts=server.host, ...)
        ... server.url("/a.jpg") ...
        assert [request.path for request in server.requests] == ["/a.jpg"]

Where a reply is not bad enough, a path is answered by a function, which gets the open connection; some stand
here:

    server.answer("/slow.jpg", drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x"))

A path without a script is a 404. The fixture `image_server` (tests/tasks/conftest.py) is one of these.
"""

import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


@dataclass(frozen=True)
class Reply:
    """One well-formed answer; Content-Length is set unless the headers carry it."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    """Seconds before it."""


@dataclass(frozen=True)
class Request:
    """What the server was asked."""

    path: str
    headers: Mapping[str, str]
    at: float
    """When, by time.monotonic()."""


class Exchange:
    """An open connection whose request has been read, for a function that answers by hand."""

    def __init__(self, server: "ScriptedServer", handler: BaseHTTPRequestHandler) -> None:
        self._server = server
        self._handler = handler
        handler.close_connection = True

    @property
    def socket(self) -> socket.socket:
        """The connection itself."""
        return self._handler.connection

    def send(self, data: bytes) -> None:
        """Send bytes as they are; a client that has hung up raises OSError, which ends the function."""
        self._handler.wfile.write(data)
        self._server.count_sent(self._handler.path, len(data))

    def reset(self) -> None:
        """Cut the connection so that the client sees a reset, not an end. This ends the function."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._handler.rfile.close()
        self._handler.wfile.close()
        self.socket.close()
        raise ConnectionAbortedError


Script = Reply | Callable[[Exchange], None]


def say(answer: bytes) -> Callable[[Exchange], None]:
    """Send these bytes as they are, and hang up."""
    return lambda exchange: exchange.send(answer)


def drip(first: bytes, forever: bytes) -> Callable[[Exchange], None]:
    """Send this, then that again and again, slowly."""

    def script(exchange: Exchange) -> None:
        exchange.send(first)
        while True:
            exchange.send(forever)
            time.sleep(0.05)

    return script


def endless(exchange: Exchange) -> None:
    """A body that never ends, as fast as it is taken."""
    exchange.send(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        exchange.send(b"x" * 10_000)


def redirect(location: str) -> Reply:
    """The address of another picture."""
    return Reply(302, headers={"Location": location})


class ScriptedServer:
    """The server; use it as a context manager. `tls` makes it speak HTTPS."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._scheme = "https" if tls else "http"
        self._scripts: dict[str, list[Script]] = {}
        self._lock = threading.Lock()
        self._at_once = 0
        self.requests: list[Request] = []
        """Every request, in the order they came."""
        self.most_at_once = 0
        """The most requests that were being answered at one moment."""
        self.connections = 0
        """TCP connections accepted."""
        self.bytes_sent: Counter[str] = Counter()
        """Bytes that functions have sent, by path."""
        self._http = _Server(self, tls)
        self.port: int = self._http.server_port
        self.host = f"127.0.0.1:{self.port}"
        """As FEATURES_IMAGE_HOSTS lists it."""

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """The URL of a path; `host` is another name of this machine."""
        return f"{self._scheme}://{host}:{self.port}{path}"

    def answer(self, path: str, *scripts: Script) -> None:
        """Answer requests for `path`, query included, with these in turn and then always with the last."""
        self._scripts[path] = list(scripts)

    def count(self, path: str) -> int:
        """How often `path` was asked for."""
        return sum(request.path == path for request in list(self.requests))

    def begin(self, path: str, headers: Mapping[str, str]) -> Callable[[Exchange], None]:
        """Note a request and choose what answers it."""
        with self._lock:
            self.requests.append(Request(path, dict(headers), time.monotonic()))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            scripts = self._scripts.get(path, [Reply(404)])
            return scripts.pop(0) if len(scripts) > 1 else scripts[0]

    def end(self) -> None:
        """Note that a request is about to have its answer."""
        with self._lock:
            self._at_once -= 1

    def count_sent(self, path: str, count: int) -> None:
        """Note bytes that a function has sent."""
        with self._lock:
            self.bytes_sent[path] += count


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, scripted: ScriptedServer, tls: ssl.SSLContext | None) -> None:
        self.scripted = scripted
        self._tls = tls
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: object, client_address: object) -> None:
        self.scripted.connections += 1
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def finish_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        # In the connection's own thread, so that one handshake does not hold up the others.
        if self._tls:
            request = self._tls.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)  # type: ignore[arg-type]

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients of these tests hang up, and that is no error; report the rest."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 30

    def do_GET(self) -> None:
        scripted = self.server.scripted
        script = scripted.begin(self.path, self.headers)
        if not isinstance(script, Reply):
            try:
                script(Exchange(scripted, self))
            finally:
                scripted.end()
            return
        time.sleep(script.delay)
        # Before the answer: the client may send its next request while this thread is still here.
        scripted.end()
        self.send_response(script.status)
        if "Content-Length" not in script.headers:
            self.send_header("Content-Length", str(len(script.body)))
        for name, value in script.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(script.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass
