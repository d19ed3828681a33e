"""A webhook on this machine."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace


@contextmanager
def webhook() -> Iterator[SimpleNamespace]:
    """Runs one: `url`; `posts`, path and JSON of each that came; `code`, the status it answers with."""
    hook = SimpleNamespace(posts=[], code=200)

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            content = self.rfile.read(int(self.headers["content-length"]))
            hook.posts.append((self.path, json.loads(content)))
            self.send_response(hook.code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    hook.url = f"http://127.0.0.1:{server.server_port}/services/shop"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hook
    finally:
        server.shutdown()
        server.server_close()
