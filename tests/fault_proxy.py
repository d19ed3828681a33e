"""Proxies on the loopback interface that spoil what passes between a program and a real server.

FaultProxy understands HTTP. A script looks at each request and gives the fault to treat it with, or
None to pass it on:

    with FaultProxy(elasticsearch_url) as proxy:
        proxy.script = first(2, "_bulk", unanswered)
        ... SearchIndex(search_connection(proxy.url), ...) ...
        assert [request.kind for request in proxy.requests] == [...]

A fault is a function that gets the open exchange, so a test can write its own.

TcpProxy understands nothing and cuts connections, those of a PostgreSQL for instance:

    with TcpProxy(socket_path) as proxy:
        proxy.cut_after = 100_000
"""

import contextlib
import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

_HOP_BY_HOP = ("connection", "content-length", "transfer-encoding", "host")
_SIGNED = {"X-Elastic-Product": "Elasticsearch"}
"""What marks every answer of the real one."""


@dataclass(frozen=True)
class Request:
    """What the program asks for."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def kind(self) -> str:
        """Elasticsearch's endpoint, such as _bulk or _search, or the method where the path names only an
        index."""
        parts = urlsplit(self.target).path.split("/")
        return next((part for part in parts if part.startswith("_")), self.method)


@dataclass(frozen=True)
class Answer:
    """What the server says."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Exchange:
    """A request that was read whole and waits for its answer."""

    def __init__(self, handler: "_Handler", request: Request) -> None:
        self.request = request
        self._handler = handler

    def forward(self, body: bytes | None = None) -> Answer:
        """Send the request on, with another body where one is given, and return the server's answer."""
        request = self.request
        upstream = http.client.HTTPConnection(self._handler.server.upstream, timeout=60)
        with contextlib.closing(upstream):
            headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
            upstream.request(request.method, request.target, request.body if body is None else body, headers)
            answer = upstream.getresponse()
            return Answer(answer.status, answer.read(), dict(answer.headers))

    def forward_half(self) -> None:
        """Send the head and half of the body on, and then hang up at the server."""
        request = self.request
        upstream = http.client.HTTPConnection(self._handler.server.upstream, timeout=60)
        with contextlib.closing(upstream):
            upstream.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders()
            upstream.send(request.body[: len(request.body) // 2])

    def reply(self, answer: Answer, share: float = 1.0) -> None:
        """Answer; with a `share` below 1 only that much of the body follows the head, then nothing."""
        handler = self._handler
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(answer.body)))
        handler.end_headers()
        if self.request.method != "HEAD":
            handler.wfile.write(answer.body[: int(len(answer.body) * share)])
        if share < 1:
            handler.close_connection = True

    def cut(self) -> None:
        """Hang up at the program without a word."""
        self._handler.close_connection = True

    def wait_until_left(self) -> None:
        """Return when the program has hung up."""
        self._handler.close_connection = True
        with contextlib.suppress(OSError):
            self._handler.connection.recv(1)


Fault = Callable[[Exchange], None]
Script = Callable[[Request], Fault | None]


def first(times: int, kind: str, fault: Fault) -> Script:
    """Treat the first requests of a kind with a fault."""
    left = [times]
    lock = threading.Lock()

    def script(request: Request) -> Fault | None:
        with lock:
            if request.kind != kind or left[0] == 0:
                return None
            left[0] -= 1
            return fault

    return script


def every(kind: str, fault: Fault) -> Script:
    """Treat every request of a kind with a fault."""
    return lambda request: fault if request.kind == kind else None


# Faults -----------------------------------------------------------------------------------------


def passed_on(exchange: Exchange) -> None:
    """No fault."""
    exchange.reply(exchange.forward())


def instead(status: int, body: bytes, content_type: str = "application/json", **headers: str) -> Fault:
    """Answer this without asking the server."""
    return lambda exchange: exchange.reply(Answer(status, body, {"Content-Type": content_type} | headers))


def refused(status: int, reason: str = "busy") -> Fault:
    """Answer as Elasticsearch does when it refuses a whole request."""
    error = {"type": "es_rejected_execution_exception", "reason": reason}
    body = json.dumps({"error": error, "status": status}).encode()
    return instead(status, body, **_SIGNED)


def unanswered(exchange: Exchange) -> None:
    """The server does it; the connection ends before its answer."""
    exchange.forward()
    exchange.cut()


def silent(exchange: Exchange) -> None:
    """The server does it; the program waits for the answer until it has had enough."""
    exchange.forward()
    exchange.wait_until_left()


def swallowed(exchange: Exchange) -> None:
    """The server never hears of it; the program waits for the answer until it has had enough."""
    exchange.wait_until_left()


def cut_request(exchange: Exchange) -> None:
    """Half of the request reaches the server."""
    exchange.forward_half()
    exchange.cut()


def cut_answer(exchange: Exchange) -> None:
    """The server does it; half of its answer comes, and the rest does not."""
    exchange.reply(exchange.forward(), share=0.5)


def truncated(exchange: Exchange) -> None:
    """The server does it; half of its answer comes, and claims to be all."""
    answer = exchange.forward()
    exchange.reply(replace(answer, body=answer.body[: len(answer.body) // 2]))


def rewritten(change: Callable[[Any], Any]) -> Fault:
    """The server does it; its JSON comes as `change` makes it."""

    def fault(exchange: Exchange) -> None:
        answer = exchange.forward()
        exchange.reply(replace(answer, body=json.dumps(change(json.loads(answer.body))).encode()))

    return fault


def delayed(seconds: float) -> Fault:
    """The answer comes, but late."""

    def fault(exchange: Exchange) -> None:
        time.sleep(seconds)
        exchange.reply(exchange.forward())

    return fault


def items_fail(status: int, *, written: bool, chosen: Callable[[str], bool] = lambda _: True) -> Fault:
    """Items of a bulk request, chosen by their id, are answered with this status; the others are done.

    Args:
        status: the failure that the answer claims.
        written: whether these items are done nonetheless, or never reach the server.
        chosen: which ids fail.
    """

    def fault(exchange: Exchange) -> None:
        items = _bulk_items(exchange.request.body)
        sent = [lines for action, lines in items if written or not chosen(_id(action))]
        answer = Answer(200, headers={"Content-Type": "application/json", **_SIGNED})
        done: Iterator[Any] = iter(())
        if sent:
            answer = exchange.forward(b"".join(sent))
            done = iter(json.loads(answer.body)["items"])
        claimed = []
        for action, _ in items:
            fails = chosen(_id(action))
            truth = next(done) if written or not fails else None
            claimed.append(_failed(action, status) if fails else truth)
        body = json.dumps({"took": 1, "errors": True, "items": claimed}).encode()
        exchange.reply(replace(answer, body=body))

    return fault


def through_pipeline(change: Callable[[dict[str, Any]], None]) -> Fault:
    """Each document of a bulk request is stored as `change` makes it, as by an ingest pipeline."""

    def fault(exchange: Exchange) -> None:
        lines = [json.loads(line) for line in exchange.request.body.splitlines()]
        for content in lines[1::2]:
            change(content.get("doc", content))
        exchange.reply(exchange.forward(b"".join(json.dumps(line).encode() + b"\n" for line in lines)))

    return fault


def _bulk_items(body: bytes) -> list[tuple[dict[str, Any], bytes]]:
    """Each item's action and its lines; no deletions, which have one line alone."""
    lines = body.splitlines(keepends=True)
    return [(json.loads(head), head + content) for head, content in zip(lines[::2], lines[1::2], strict=True)]


def _id(action: dict[str, Any]) -> str:
    ((_, meta),) = action.items()
    return str(meta["_id"])


def _failed(action: dict[str, Any], status: int) -> dict[str, Any]:
    ((operation, meta),) = action.items()
    error = {"type": "unavailable_shards_exception", "reason": f"as told, {status}"}
    return {operation: {"_index": meta["_index"], "_id": meta["_id"], "status": status, "error": error}}


# The HTTP proxy ---------------------------------------------------------------------------------


class FaultProxy:
    """The proxy before the HTTP server at `url`; use it as a context manager."""

    def __init__(self, url: str) -> None:
        self.script: Script = lambda _: None
        self.requests: list[Request] = []
        """Every request, in the order they came."""
        self._http = _Server(self, urlsplit(url).netloc)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def count(self, kind: str) -> int:
        """How many requests of a kind came."""
        return sum(request.kind == kind for request in list(self.requests))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, proxy: FaultProxy, upstream: str) -> None:
        self.proxy = proxy
        self.upstream = upstream
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A server that was killed, or a program that hung up, is what these tests are about."""
        if not isinstance(sys.exception(), OSError | http.client.HTTPException):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60

    def serve(self) -> None:
        """Answer one request, whatever its method."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, self.path, dict(self.headers), body)
        proxy = self.server.proxy
        proxy.requests.append(request)
        fault = proxy.script(request) or passed_on
        fault(Exchange(self, request))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


for _method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
    setattr(_Handler, f"do_{_method}", _Handler.serve)


# The TCP proxy ----------------------------------------------------------------------------------


class TcpProxy:
    """A port of the loopback interface that leads to the Unix socket at `target`."""

    def __init__(self, target: str) -> None:
        self.cut_after: int | None = None
        """Cut everything once this many bytes have come from the server, counted from the start."""
        self.bytes_from_server = 0
        self._target = target
        self._ends: list[socket.socket] = []
        self._lock = threading.Lock()
        self.port = 0

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, *error: object) -> None:
        self.refuse()
        self.cut()

    def listen(self) -> None:
        """Take connections, at the same port as before."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def refuse(self) -> None:
        """Take no connections any more; those that are open stay."""
        # Without it the thread in accept() would keep the port listening.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def cut(self) -> None:
        """End every open connection at both sides."""
        with self._lock:
            ends, self._ends = self._ends, []
        for end in ends:
            # The thread that reads from it wakes up and closes it.
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
                with self._lock:
                    self._ends += [client, server]
                threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, from_server: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if from_server and self._is_time(len(data)):
                    self.cut()
                    break
                sink.sendall(data)
        # Whichever end is over, so is the other.
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()

    def _is_time(self, count: int) -> bool:
        with self._lock:
            self.bytes_from_server += count
            return self.cut_after is not None and self.bytes_from_server > self.cut_after
