"""Serves photos from memory, as many as asked for: python -m benchmarks.photo_server FOLDER PORT.

    /photo/17      the photo 17 modulo their number, made distinct by a JPEG comment that holds the 17
    /cut/17        its first half, as a picture that cannot be decoded
    /busy/17       429, always
    anything else  404

It costs the machine as little as it can, since it shares the cores with what is measured.
"""

import argparse
import asyncio
import ssl
import sys
from pathlib import Path

JPEG_START = b"\xff\xd8"


def distinct(photo: bytes, number: int) -> bytes:
    """The same JPEG with a comment that holds `number`: other bytes, the same pixels."""
    comment = str(number).encode()
    return b"".join(
        [JPEG_START, b"\xff\xfe", (len(comment) + 2).to_bytes(2), comment, photo[len(JPEG_START) :]]
    )


def photos_in(folder: Path) -> list[bytes]:
    """The JPEG files anywhere below a folder, in the order of their names."""
    found = (path.read_bytes() for path in sorted(folder.rglob("*.jpg")))
    return [content for content in found if content.startswith(JPEG_START)]


class _Connection(asyncio.Protocol):
    def __init__(self, photos: list[bytes], latency: float) -> None:
        self._photos = photos
        self._latency = latency
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            answer = self._answer(head.split(b" ", 2)[1].decode("latin-1"))
            if self._latency:
                asyncio.get_running_loop().call_later(self._latency, self._transport.write, answer)
            else:
                self._transport.write(answer)

    def _answer(self, path: str) -> bytes:
        _, kind, number = (*path.split("/", 2), "")[:3]
        if kind == "busy":
            return b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"
        if kind not in ("photo", "cut") or not number.isdecimal():
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        photo = distinct(self._photos[int(number) % len(self._photos)], int(number))
        if kind == "cut":
            photo = photo[: len(photo) // 2]
        return (
            b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(photo) + photo
        )


async def _serve(photos: list[bytes], port: int, latency: float, certificate: Path | None) -> None:
    loop = asyncio.get_running_loop()
    tls = None
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    server = await loop.create_server(
        lambda: _Connection(photos, latency), "127.0.0.1", port, backlog=1024, ssl=tls
    )
    await server.serve_forever()


def main() -> int:
    """The command; it ends when it is killed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photo_server", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="wait this long before each answer")
    parser.add_argument("--certificate", type=Path, help="PEM with its key: serve over TLS")
    options = parser.parse_args()
    photos = photos_in(options.folder)
    if not photos:
        parser.error(f"there is no JPEG below {options.folder}")
    asyncio.run(_serve(photos, options.port, options.latency_ms / 1000, options.certificate))
    return 0


if __name__ == "__main__":
    sys.exit(main())
