"""Serves a folder's pictures: python -m local_stack.image_server FOLDER PORT [--latency-ms N]."""

import argparse
import contextlib
import os
import signal
import sys
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from local_stack.process import Server, require_free
from tasks.errors import FeatureIndexError
from tasks.settings import REPOSITORY

START_SECONDS = 10

CONTENT_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".avif": "image/avif",
}


class ImageServer(ThreadingHTTPServer):
    """An HTTP server on the loopback interface; use `serve_forever` and `shutdown`.

    Args:
        folder: what it serves, files alone; whatever leads out of it is a 404.
        port: 0 takes a free one, see `server_port`.
        latency: seconds before each answer, as a distant server would take.
    """

    daemon_threads = True
    block_on_close = False
    # The standard backlog of 5 makes clients that connect at once wait a second for their retry.
    request_queue_size = 256

    def __init__(self, folder: Path, port: int, latency: float = 0.0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder = folder.resolve(strict=True)
        self.latency = latency

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up; report the rest."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: ImageServer
    protocol_version = "HTTP/1.1"  # keeps connections
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and picture leave together
    timeout = 60  # seconds a kept connection may be silent

    def do_GET(self) -> None:
        """Answer with a picture."""
        if self.server.latency:
            time.sleep(self.server.latency)
        path = self._find()
        try:
            content = path.read_bytes() if path else None
        except OSError:
            content = None
        if content is None:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"There is no such picture.\n")
        else:
            kind = CONTENT_TYPES.get(path.suffix.lower(), "application/octet-stream")
            self._answer(HTTPStatus.OK, kind, content)

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _find(self) -> Path | None:
        """The file that the URL names, symbolic links followed, if it is below the folder."""
        name = unquote(urlsplit(self.path).path).lstrip("/")
        try:
            path = (self.server.folder / name).resolve()
            return path if path.is_relative_to(self.server.folder) and path.is_file() else None
        except (OSError, ValueError):  # a name too long, or with a null character
            return None

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Write no line for what went well: a run asks for thousands of pictures."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Write one line."""
        sys.stderr.write(f"{self.log_date_time_string()} {format % args}\n")


def start(folder: Path, port: int, log: Path) -> Server:
    """Serve `folder` from a process of its own, and return once it takes connections.

    Raises:
        ServiceUnavailableError: it did not come up.
    """
    command = [sys.executable, "-m", "local_stack.image_server", folder, str(port)]
    return Server.start_listening(
        "The image server", command, port, log, cwd=REPOSITORY, seconds=START_SECONDS
    )


def main(arguments: list[str] | None = None) -> int:
    """The command; it ends on SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m local_stack.image_server", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="wait this long before each answer")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"there is no folder {options.folder}")
    try:
        require_free(options.port, "the shop's image server", "IMAGE_PORT")
    except FeatureIndexError as error:
        print(error, file=sys.stderr)
        return 1
    with ImageServer(options.folder, options.port, options.latency_ms / 1000) as server:
        # Nothing needs closing, and threads may be waiting on connections that are kept.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
