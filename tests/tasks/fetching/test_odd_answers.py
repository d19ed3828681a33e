"""URLs and answers that are out of order and pictures to browsers nevertheless; Chromium is asked."""

import gzip
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from local_stack import browser
from tasks.fetching.answers import Fetched
from tests.fetching import Fetcher
from tests.picture_files import saved
from tests.scripted_server import Reply, ScriptedServer

PICTURE = saved(np.full((2, 3, 3), 200, np.uint8), "PNG")
LENGTH = b"Content-Length: %d\r\n" % len(PICTURE)
PNG = b"Content-Type: image/png\r\n"


def say(head: bytes, body: bytes = PICTURE) -> Any:
    """Send this and the picture, and hang up."""
    return lambda exchange: exchange.send(head + b"\r\n" + body)


def chunks(size_of: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return size_of % len(PICTURE) + b"\r\n" + PICTURE + b"\r\n" + end


ANSWERS: dict[str, Any] = {
    "the same length twice": say(b"HTTP/1.1 200 OK\r\n" + LENGTH + LENGTH),
    "a header name that is not ASCII": say(b"HTTP/1.1 200 OK\r\n" + LENGTH + b"X-\xc3\xa9: 1\r\n"),
    "a header value in Latin-1": say(b"HTTP/1.1 200 OK\r\nX: \xe9\r\n" + LENGTH),
    "a header value with control characters": say(b"HTTP/1.1 200 OK\r\nX: \x01\x02\r\n" + LENGTH),
    "a header value that goes on in the next line": say(b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n" + LENGTH),
    "headers in upper case": say(b"HTTP/1.1 200 OK\r\n" + LENGTH.upper()),
    "lines that end without CR": say(b"HTTP/1.1 200 OK\n" + LENGTH),
    "no reason": say(b"HTTP/1.1 200\r\n" + LENGTH),
    "203": say(b"HTTP/1.1 203 Other\r\n" + LENGTH),
    "after 100": say(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n" + LENGTH),
    "after 103": say(b"HTTP/1.1 103 Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n" + LENGTH),
    "HTTP/1.0 without a length": say(b"HTTP/1.0 200 OK\r\n"),
    "no length": say(b"HTTP/1.1 200 OK\r\n"),
    "a length and chunks": say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + LENGTH, chunks(b"%x")),
    "chunks with extensions": say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", chunks(b"%x;a=b")),
    "chunks with trailers": say(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", chunks(b"%x", b"0\r\nX: 1\r\n\r\n")
    ),
    "chunks of padded size": say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", chunks(b"%x  ")),
    "no kind": say(b"HTTP/1.1 200 OK\r\n" + LENGTH),
    "an empty kind": say(b"HTTP/1.1 200 OK\r\nContent-Type:\r\n" + LENGTH),
    "a wrong kind": say(b"HTTP/1.1 200 OK\r\nContent-Type: image/gif\r\n" + LENGTH),
    "the kind of a page": say(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n" + LENGTH),
    "gzipped unasked": Reply(body=gzip.compress(PICTURE), headers={"Content-Encoding": "gzip"}),
    "x-gzip": Reply(body=gzip.compress(PICTURE), headers={"Content-Encoding": "x-gzip"}),
    "deflated unasked": Reply(body=zlib.compress(PICTURE), headers={"Content-Encoding": "deflate"}),
    "encoded as nobody knows": Reply(body=PICTURE, headers={"Content-Encoding": "aws-chunked"}),
    "encoded in UTF-8": Reply(body=PICTURE, headers={"Content-Encoding": "utf-8"}),
    "not encoded": Reply(body=PICTURE, headers={"Content-Encoding": "identity"}),
    "a cookie that is out of order": Reply(body=PICTURE, headers={"Set-Cookie": ";;=;"}),
    "Location in Latin-1": Reply(302, headers={"Location": "/caf\xe9.png"}),
    "Location in UTF-8": Reply(302, headers={"Location": "/caf\xc3\xa9.png"}),
    "Location with white space": Reply(302, headers={"Location": "/a b.png"}),
    "Location with a fragment": Reply(302, headers={"Location": "/fine.png#top"}),
    "Location without a scheme": Reply(302, headers={"Location": "//HOST/fine.png"}),
    "Location with backslashes": Reply(302, headers={"Location": "\\fine.png"}),
    "Location of a query": Reply(301, headers={"Location": "?again"}),
    "Location with a lone percent sign": Reply(307, headers={"Location": "/100%.png"}),
}
PATHS = {
    "/caf%E9.png": Reply(body=PICTURE),
    "/caf%C3%A9.png": Reply(body=PICTURE),
    "/a%20b.png": Reply(body=PICTURE),
    "/fine.png": Reply(body=PICTURE),
    "/100%.png": Reply(body=PICTURE),
    "/5%%20a%20b.png": Reply(body=PICTURE),
    "/c/d.png": Reply(body=PICTURE),
    "/e?f=g%20h|i": Reply(body=PICTURE),
}
URLS = [
    " http://HOST/fine.png",
    "http://HOST/fine.png \t\n",
    "ht\ntp://HOST/fi\r\nne.png",
    "\x01http://HOST/fine.png\x1f",
    "HtTp://HOST/fine.png",
    "http:\\\\HOST\\c\\d.png",
    "http:////HOST/fine.png",
    "http://@HOST/fine.png",
    "http://HOST/5% a%20b.png",
    "http://HOST/100%.png",
    "http://HOST/caf\xe9.png",
    "http://HOST/a b.png#top#bottom",
    "http://HOST/x/../c/./d.png",
    "http://HOST/x/%2E%2e/c/d.png",
    "http://HOST/e?f=g h|i",
    "http://0x7f.1:PORT/fine.png",
    "http://2130706433:PORT/fine.png",
    "http://127.1.:PORT/fine.png",
    "http://１２７.０.０.１:PORT/fine.png",  # noqa: RUF001
]


@pytest.fixture
def server(image_server: ScriptedServer) -> ScriptedServer:
    for path, reply in PATHS.items():
        image_server.answer(path, reply)
    for number, answer in enumerate(ANSWERS.values()):
        location = answer.headers.get("Location", "") if isinstance(answer, Reply) else ""
        if location:
            answer = Reply(answer.status, headers={"Location": location.replace("HOST", image_server.host)})
        image_server.answer(f"/{number}", answer)
        image_server.answer(f"/{number}?again", Reply(body=PICTURE))
    return image_server


def urls(server: ScriptedServer) -> dict[str, str]:
    """The URL of each answer by its name, and the odd ones by themselves."""
    answers = {name: server.url(f"/{number}") for number, name in enumerate(ANSWERS)}
    odd = {url: url.replace("HOST", server.host).replace("PORT", str(server.port)) for url in URLS}
    return answers | odd


@pytest.mark.parametrize("name", [*ANSWERS, *URLS])
def test_what_is_a_picture_to_browsers_is_one(server: ScriptedServer, name: str) -> None:
    one = Fetcher(server.host, read_timeout=5)
    try:
        assert one.fetch(urls(server)[name]) == Fetched(content=PICTURE)
    finally:
        one.client.close()


@pytest.fixture
def chromium() -> Iterator[Chrome]:
    if says := browser.missing():
        pytest.skip(says)
    options = ChromeOptions()
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(argument)
    options.binary_location = "/usr/bin/chromium"
    driver = Chrome(options, Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


def test_they_are_pictures_to_chromium(server: ScriptedServer, chromium: Chrome) -> None:
    server.answer("/page", Reply(body=b"<!doctype html>", headers={"Content-Type": "text/html"}))
    chromium.get(server.url("/page"))
    chromium.set_script_timeout(60)
    found = chromium.execute_async_script(
        """
        const [urls, done] = arguments;
        Promise.all(Object.entries(urls).map(([name, url]) => new Promise(resolve => {
            const image = new Image();
            image.onload = () => resolve([name, image.naturalWidth]);
            image.onerror = () => resolve([name, 0]);
            image.src = url;
        }))).then(done);
        """,
        urls(server),
    )
    assert dict(found) == dict.fromkeys(urls(server), 3)
