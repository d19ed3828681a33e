"""One run of every stage over a shop in which each item meets another fault on the way to its picture,
beside items that are fine. Each fault has a server of its own, so that none of them speaks for another's.
"""

import io
import json
import socket
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial

import numpy as np
import pytest
from PIL import Image

from local_stack.process import free_port
from tasks.errors import RunFailedError
from tasks.runs import packs, reports
from tasks.runs.run import Request
from tasks.search.mapping import AT, FEATURE, GROUP, IMAGE, URL, VERSION
from tasks.stages import pipeline
from tests.scripted_server import Exchange, Reply, ScriptedServer, drip, endless, redirect
from tests.shop_fixtures import CATEGORY, sqlite_catalogue

LARGEST = 50_000
"""Bytes that a picture may have here."""
FINE = [f"fine {number}" for number in range(4)]


def picture(seed: int, kind: str = "JPEG") -> bytes:
    """A small picture, another one for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((80, 60)).save(buffer, kind)
    return buffer.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""
    png = picture(1, "PNG")
    header = png[12:16] + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def http_date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


# What a server can do ---------------------------------------------------------------------------


def cut(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + picture(1)[:600])


def shorter_than_it_is(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n" + picture(1))


def silent(exchange: Exchange) -> None:
    exchange.socket.recv(1)


def busy(retry_after: str | None = None) -> Reply:
    return Reply(429, headers={"Retry-After": retry_after} if retry_after else {})


PAGE = Reply(body=b"<!doctype html><html><body>404</body></html>", headers={"Content-Type": "text/html"})

SERVED: dict[str, tuple[str, Callable[[], tuple[object, ...]]]] = {
    "404": ("gone", lambda: (Reply(404),)),
    "410": ("gone", lambda: (Reply(410),)),
    "401": ("forbidden", lambda: (Reply(401),)),
    "403": ("forbidden", lambda: (Reply(403),)),
    "451": ("forbidden", lambda: (Reply(451),)),
    "204": ("not_a_picture", lambda: (Reply(204),)),
    "429": ("rate_limited", lambda: (busy(),)),
    "429 for an hour": ("rate_limited", lambda: (busy("3600"),)),
    "429 until a date": ("rate_limited", lambda: (busy(http_date(3600)),)),
    "429 once": ("indexed", lambda: (busy(), Reply(body=picture(11)))),
    "429 once, for a second": ("indexed", lambda: (busy("1"), Reply(body=picture(12)))),
    "429 once, until a date": ("indexed", lambda: (busy(http_date(2)), Reply(body=picture(13)))),
    "500": ("unreachable", lambda: (Reply(500),)),
    "503": ("unreachable", lambda: (Reply(503),)),
    "503 once": ("indexed", lambda: (Reply(503), Reply(body=picture(14)))),
    "reset": ("unreachable", lambda: (Exchange.reset,)),
    "reset once": ("indexed", lambda: (Exchange.reset, Reply(body=picture(15)))),
    "cut": ("unreachable", lambda: (cut,)),
    "cut once": ("indexed", lambda: (cut, Reply(body=picture(16)))),
    "length too short": ("corrupt", lambda: (shorter_than_it_is,)),
    "drip": ("timed_out", lambda: (drip(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", b"x"),)),
    "silence": ("timed_out", lambda: (silent,)),
    "too large as announced": ("too_large", lambda: (Reply(body=b"x" * (LARGEST + 1)),)),
    "too large unannounced": ("too_large", lambda: (endless,)),
    "page": ("not_a_picture", lambda: (PAGE,)),
    "empty": ("not_a_picture", lambda: (Reply(),)),
    "truncated": ("corrupt", lambda: (Reply(body=picture(1)[:600]),)),
    "TIFF": ("unsupported_format", lambda: (Reply(body=picture(1, "TIFF")),)),
    "bomb": ("too_many_pixels", lambda: (Reply(body=claiming(100_000, 100_000)),)),
    "PNG": ("indexed", lambda: (Reply(body=picture(1, "PNG")),)),
}
"""What each server does, in turn and then always the last, and the status that it ends in."""


# The shop ---------------------------------------------------------------------------------------


@dataclass
class Stock:
    """Every item's URL and status, and the hosts they may come from."""

    urls: dict[str, str | None]
    statuses: dict[str, str]
    hosts: list[str]


@pytest.fixture
def stock(monkeypatch):
    """A URL and what has to come of it for each item, and the servers behind them."""
    with ExitStack() as servers:
        stock = Stock({}, {}, [])

        def add(item_id, status, url):
            stock.urls[item_id], stock.statuses[item_id] = url, status

        def serve(item_id, status, *scripts):
            server = servers.enter_context(ScriptedServer())
            server.answer("/p.jpg", *scripts)
            stock.hosts.append(server.host)
            add(item_id, status, server.url("/p.jpg"))
            return server

        fine = serve(FINE[0], "indexed", Reply(body=picture(0)))
        for number, item_id in enumerate(FINE[1:], 1):
            fine.answer(f"/{number}.jpg", Reply(body=picture(number)))
            add(item_id, "indexed", fine.url(f"/{number}.jpg"))
        for item_id, (status, scripts) in SERVED.items():
            serve(item_id, status, *scripts())
        loop = serve("redirect loop", "unreachable")
        loop.answer("/p.jpg", redirect("/p.jpg"))
        serve("redirect to a fine one", "indexed", redirect(fine.url("/1.jpg")))
        serve("redirect inside", "blocked_address", redirect(f"http://127.0.0.1:{free_port()}/p.jpg"))
        serve("redirect to a file", "invalid_url", redirect("file:///etc/passwd"))

        dead = f"127.0.0.1:{free_port()}"
        stock.hosts += [dead, "pictures.invalid"]
        # Asked of no name server, wherever the test runs.
        known_alone = partial(socket.getaddrinfo, flags=socket.AI_NUMERICHOST)
        monkeypatch.setattr(socket, "getaddrinfo", known_alone)
        add("dead port", "unreachable", f"http://{dead}/p.jpg")
        add("no such name", "unreachable", "http://pictures.invalid/p.jpg")
        add("host not listed", "blocked_address", f"http://127.0.0.1:{free_port()}/p.jpg")
        add("null", "invalid_url", None)
        add("empty URL", "invalid_url", "")
        add("relative", "invalid_url", "/p.jpg")
        add("ftp", "invalid_url", f"ftp://{fine.host}/p.jpg")
        add("with a user", "invalid_url", f"http://shop:secret@{fine.host}/p.jpg")
        add("without a document", "waiting_for_document", fine.url("/2.jpg"))
        add("same picture", "indexed", fine.url("/3.jpg"))
        yield stock


def run(shop, stock, name):
    """Every stage; returns the report, of a failed run as well."""
    settings = shop.settings(
        image_hosts=tuple(stock.hosts),
        download_attempts=2,
        connect_timeout=2,
        read_timeout=1,
        transfer_timeout=2,
        max_image_bytes=LARGEST,
    )
    request = Request("faults", name, category_ids=(CATEGORY,))
    try:
        return pipeline.run(request, settings, shop.services)
    except RunFailedError:
        return json.loads(reports.path(request, settings).read_text())


def register(shop, stock, item_ids):
    shop.catalogue.add_all({"item_id": item_id, "img_url": stock.urls[item_id]} for item_id in item_ids)
    for item_id in item_ids:
        if item_id != "without a document":
            shop.write_document(item_id, img_url=stock.urls[item_id], price=1.5)


def test_each_fault_has_its_status_and_touches_no_other_item(sqlite_shop, stock, tmp_path):
    shop = sqlite_shop
    register(shop, stock, stock.urls)
    before = shop.sources()

    report = run(shop, stock, "faulty")

    (outcomes,) = (shop.data_dir / "faults" / "faulty" / report["plan"]).glob("*/outcomes.parquet")
    rows = {row["item_id"]: row for row in packs.rows(outcomes)}
    assert {item_id: row["status"] for item_id, row in rows.items()} == stock.statuses
    assert {item_id: row["img_url"] for item_id, row in rows.items()} == stock.urls
    no_reason = {item_id for item_id, row in rows.items() if not row["reason"]}
    assert {stock.statuses[item_id] for item_id in no_reason} <= {"indexed", "waiting_for_document"}
    assert "secret" not in rows["with a user"]["reason"]
    assert report["planned"] == len(stock.urls)
    assert report["counts"] == Counter(stock.statuses.values())
    failed = len(stock.urls) - report["counts"]["indexed"] - 1
    assert report["state"] == "failed"
    assert report["reasons"][0].startswith(f"{failed} of {len(stock.urls)} items failed")
    named = {failure["item_id"]: failure["status"] for failure in report["failures"]}
    assert named.items() <= stock.statuses.items()
    assert len(named) == 20

    # The documents: a feature where there should be one, and nothing else has changed.
    after = shop.sources()
    assert set(after) == set(before)
    ours = {FEATURE, VERSION, URL, IMAGE, AT, GROUP}
    for item_id, source in after.items():
        assert {key: value for key, value in source.items() if key not in ours} == before[item_id]
        assert (VERSION in source) == (stock.statuses[item_id] == "indexed")

    # A shop without the others has the same features.
    clean = replace(
        shop,
        catalogue=sqlite_catalogue(tmp_path / "clean.db"),
        index=f"{shop.index}-clean",
        data_dir=tmp_path / "clean",
    )
    clean = replace(clean, services=replace(shop.services, catalogue=clean.catalogue.connection))
    register(clean, stock, FINE)
    report = run(clean, stock, "clean")
    assert (report["state"], report["counts"]) == ("success", {"indexed": len(FINE)})
    for item_id, source in clean.sources().items():
        assert {k: v for k, v in source.items() if k != AT} == {
            k: v for k, v in after[item_id].items() if k != AT
        }
        assert np.allclose(clean.vector(item_id), shop.vector(item_id), rtol=1e-4, atol=1e-4)
    assert not np.allclose(shop.vector(FINE[0]), shop.vector(FINE[1]), rtol=0.1, atol=0.1)
