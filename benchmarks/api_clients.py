"""Clients of the HTTP API, each with one request at a time: python -m benchmarks.api_clients, told by JSON on
its input what to ask, and giving JSON of what was answered.

They cost the machine as little as they can, since they share the cores with what is measured.
"""

import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

_BOUNDARY = "a-photo"
_PHOTO_BEGINS = (
    f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="filepath"; filename="photo.jpg"\r\n'
    "Content-Type: image/jpeg\r\n\r\n"
).encode()
_PHOTO_ENDS = f"\r\n--{_BOUNDARY}--\r\n".encode()


async def _client(work: dict[str, Any], numbers: "itertools.count[int]", answers: "_Answers") -> None:
    reader, writer = await asyncio.open_connection(work["host"], work["port"])
    while time.monotonic() < answers.until:
        line, kind, body = _request(work, next(numbers))
        head = (
            f"{line} HTTP/1.1\r\nHost: {work['host']}:{work['port']}\r\n"
            f"Authorization: Bearer {work['token']}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        asked = time.monotonic()
        writer.write(head.encode() + body)
        headers = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        code = int(headers.split(" ", 2)[1])
        length = int(headers.partition("content-length:")[2].partition("\r\n")[0])
        content = await reader.readexactly(length)
        answers.add(code, content, time.monotonic() - asked)
        if code == 429:
            await asyncio.sleep(0.1)
    writer.close()


def _request(work: dict[str, Any], number: int) -> tuple[str, str, bytes]:
    """The request line, the type of the body, and the body."""
    path = f"/feature-index/{work['operation']}"
    if "photos" in work:
        photo = Path(work["photos"][number % len(work["photos"])]).read_bytes()
        return (
            f"POST {path}",
            f"multipart/form-data; boundary={_BOUNDARY}",
            _PHOTO_BEGINS + photo + _PHOTO_ENDS,
        )
    number %= work["items"]
    url = f"{work['url']}{number}"
    if work["operation"] == "getImagenetFeature":
        return f"GET {path}?img_url={quote(url)}", "application/json", b""
    return (
        f"POST {path}",
        "application/json",
        json.dumps({"item_id": f"{number:010}", "img_url": url}).encode(),
    )


class _Answers:
    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds
        self.codes: Counter[int] = Counter()
        self.seconds: list[float] = []
        self.errors: list[str] = []
        """The first few."""

    def add(self, code: int, content: bytes, seconds: float) -> None:
        self.codes[code] += 1
        self.seconds.append(seconds)
        if code not in (200, 429) and len(self.errors) < 5:
            self.errors.append(content.decode(errors="replace"))


async def _ask(work: dict[str, Any]) -> dict[str, Any]:
    answers, numbers = _Answers(work["seconds"]), itertools.count(work["first"])
    started = time.monotonic()
    await asyncio.gather(*(_client(work, numbers, answers) for _ in range(work["clients"])))
    return {
        "elapsed": time.monotonic() - started,
        "codes": dict(answers.codes),
        "seconds": sorted(answers.seconds),
        "errors": answers.errors,
    }


if __name__ == "__main__":
    json.dump(asyncio.run(_ask(json.load(sys.stdin))), sys.stdout)
