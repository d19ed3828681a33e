"""Serves photos over TLS and HTTP/2, or HTTP/1.1 to who knows no other.

    python -m benchmarks.http2_server FOLDER PORT CERTIFICATE MILLISECONDS

    /photo/17      the photo 17 modulo their number, made distinct as benchmarks/photo_server.py does

Its HTTP is Granian's, in Rust. It runs in Granian's own environment, so it imports nothing of ours that needs
more than Python.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

from granian.server.embed import Server

from benchmarks.photo_server import distinct, photos_in


async def _serve(photos: list[bytes], port: int, certificate: Path, seconds: float) -> None:
    async def application(scope: Any, protocol: Any) -> None:
        number = scope.path.removeprefix("/photo/")
        if seconds:
            await asyncio.sleep(seconds)
        if number.isdecimal():
            photo = distinct(photos[int(number) % len(photos)], int(number))
            protocol.response_bytes(200, [("content-type", "image/jpeg")], photo)
        else:
            protocol.response_empty(404, [])

    await Server(
        application,
        port=port,
        backlog=1024,
        ssl_cert=certificate,
        ssl_key=certificate,
        websockets=False,
        log_enabled=False,
    ).serve()


if __name__ == "__main__":
    folder, port, certificate, milliseconds = sys.argv[1:]
    asyncio.run(_serve(photos_in(Path(folder)), int(port), Path(certificate), float(milliseconds) / 1000))
