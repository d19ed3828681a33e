"""URLs are read as browsers read them; tests/tasks/fetching/test_browser.py asks one."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.urls import MAX_URL_LENGTH, ImageHosts, InvalidURLError, Url, read


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("http://cdn.example/a.jpg", ("http://cdn.example/a.jpg", "http", "cdn.example", 80)),
        (" \t\r\nhttp://cdn.example/a.jpg \n", ("http://cdn.example/a.jpg", "http", "cdn.example", 80)),
        ("\x01http://cdn.example/a.jpg\x00", ("http://cdn.example/a.jpg", "http", "cdn.example", 80)),
        ("ht\ntp://cdn.exa\tmple/a\r\n.jpg", ("http://cdn.example/a.jpg", "http", "cdn.example", 80)),
        ("HTTPS://CDN.Example/A.jpg", ("https://cdn.example/A.jpg", "https", "cdn.example", 443)),
        ("hTtP://cdn.example:80/a.jpg", ("http://cdn.example/a.jpg", "http", "cdn.example", 80)),
        ("https://cdn.example:443", ("https://cdn.example/", "https", "cdn.example", 443)),
        ("http://cdn.example:443/", ("http://cdn.example:443/", "http", "cdn.example", 443)),
        ("http://cdn.example:00080/", ("http://cdn.example/", "http", "cdn.example", 80)),
        ("http://cdn.example:/a.jpg", ("http://cdn.example/a.jpg", "http", "cdn.example", 80)),
        ("http:\\\\cdn.example\\a\\b.jpg", ("http://cdn.example/a/b.jpg", "http", "cdn.example", 80)),
        ("http:/cdn.example/a.jpg", ("http://cdn.example/a.jpg", "http", "cdn.example", 80)),
        ("http:cdn.example/a.jpg", ("http://cdn.example/a.jpg", "http", "cdn.example", 80)),
        ("http:///cdn.example/a.jpg", ("http://cdn.example/a.jpg", "http", "cdn.example", 80)),
        ("http://@cdn.example/a.jpg", ("http://cdn.example/a.jpg", "http", "cdn.example", 80)),
        ("http://:@cdn.example/a.jpg", ("http://cdn.example/a.jpg", "http", "cdn.example", 80)),
        ("http://cdn.example./a.jpg", ("http://cdn.example/a.jpg", "http", "cdn.example", 80)),
        ("http://cdn%2eexample/a.jpg", ("http://cdn.example/a.jpg", "http", "cdn.example", 80)),
        ("http://images_1.example/", ("http://images_1.example/", "http", "images_1.example", 80)),
        ("http://cdn.example/50%_off.jpg", ("http://cdn.example/50%_off.jpg", "http", "cdn.example", 80)),
        (
            "http://cdn.example/50% a%20b.jpg",
            ("http://cdn.example/50%%20a%20b.jpg", "http", "cdn.example", 80),
        ),
        ("http://cdn.example/a?b=c d|e#top", ("http://cdn.example/a?b=c%20d|e", "http", "cdn.example", 80)),
        ("http://cdn.example/a#b#c", ("http://cdn.example/a", "http", "cdn.example", 80)),
        ("http://cdn.example?a@b:9", ("http://cdn.example/?a@b:9", "http", "cdn.example", 80)),
        ("http://cdn.example/a/../b/./c.jpg", ("http://cdn.example/b/c.jpg", "http", "cdn.example", 80)),
        ("http://cdn.example/a/%2e%2E/b.jpg", ("http://cdn.example/b.jpg", "http", "cdn.example", 80)),
        ("http://cdn.example//a//b.jpg", ("http://cdn.example//a//b.jpg", "http", "cdn.example", 80)),
        (
            "http://cdn.example/é/상.jpg",
            ("http://cdn.example/%C3%A9/%EC%83%81.jpg", "http", "cdn.example", 80),
        ),
        (
            "http://이미지.example/a",
            ("http://xn--hg3b13spxb.example/a", "http", "xn--hg3b13spxb.example", 80),
        ),
        ("http://BÜCHER.example/", ("http://xn--bcher-kva.example/", "http", "xn--bcher-kva.example", 80)),
        ("http://bücher。example/", ("http://xn--bcher-kva.example/", "http", "xn--bcher-kva.example", 80)),
        ("http://faß.example/", ("http://xn--fa-hia.example/", "http", "xn--fa-hia.example", 80)),
        ("http://0x7f.1/", ("http://127.0.0.1/", "http", "127.0.0.1", 80)),
        ("http://2130706433/", ("http://127.0.0.1/", "http", "127.0.0.1", 80)),
        ("http://0300.0250.1/", ("http://192.168.0.1/", "http", "192.168.0.1", 80)),
        ("http://１２７.０.０.１/", ("http://127.0.0.1/", "http", "127.0.0.1", 80)),  # noqa: RUF001
        ("http://[::FFFF:127.0.0.1]:81/", ("http://[::ffff:7f00:1]:81/", "http", "::ffff:7f00:1", 81)),
        ("http://[2606:4700:0::1111]/", ("http://[2606:4700::1111]/", "http", "2606:4700::1111", 80)),
    ],
)
def test_a_url_is_read_as_browsers_read_it(text: str, found: tuple[Any, ...]) -> None:
    url = read(text)
    assert (url.text, url.scheme, url.host, url.port) == found
    assert url.is_address == (url.host[0] in "0123456789" or ":" in url.host)
    assert read(url.text) == url, "what is asked for is read as what was checked"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("b.jpg", "http://cdn.example:81/c/b.jpg"),
        ("/b.jpg", "http://cdn.example:81/b.jpg"),
        ("../../b.jpg", "http://cdn.example:81/b.jpg"),
        ("//other.example/b.jpg", "http://other.example/b.jpg"),
        ("\\\\other.example\\b.jpg", "http://other.example/b.jpg"),
        ("?size=l", "http://cdn.example:81/c/a.jpg?size=l"),
        ("#top", "http://cdn.example:81/c/a.jpg?b"),
        ("http:b.jpg", "http://cdn.example:81/c/b.jpg"),
        ("https:b.jpg", "https://b.jpg/"),
        (" b c.jpg ", "http://cdn.example:81/c/b%20c.jpg"),
    ],
)
def test_a_relative_url_is_read_from_its_base(text: str, found: str) -> None:
    assert read(text, read("http://cdn.example:81/c/a.jpg?b#d")).text == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "empty"),
        ("", "empty"),
        (" \t\n", "empty"),
        ("/a.jpg", "neither http nor https"),
        ("a.jpg", "neither http nor https"),
        ("//cdn.example.com/a.jpg", "neither http nor https"),
        ("cdn.example.com/a.jpg", "neither http nor https"),
        ("ftp://cdn.example.com/a.jpg", "neither http nor https"),
        ("file:///etc/passwd", "neither http nor https"),
        ("javascript:alert(1)", "neither http nor https"),
        ("httpx://cdn.example.com/", "neither http nor https"),
        ("\ud800", "neither http nor https"),
        ("http://", "no host"),
        ("http:///", "no host"),
        ("http://:80/a.jpg", "no host"),
        ("http://cdn.example.com/\ud800", "not a URL"),
        ("http://user@cdn.example.com/a.jpg", "user name"),
        ("http://user:secret@cdn.example.com/a.jpg", "user name"),
        ("http://:secret@cdn.example.com/a.jpg", "user name"),
        ("http://[::1/a.jpg", "not a URL"),
        ("http://[fe80::1%25lo]/", "not a URL"),
        ("http://cdn example.com/", "not a URL"),
        ("http://cdn.example.com:99999/", "not a URL"),
        ("http://cdn.example.com:x/", "not a URL"),
        ("http://383.0.0.1/", "not a URL"),
        ("http://" + "a" * 64 + ".com/", "no host has such a name"),
        ("http://" + "a." * 127 + "com/", "no host has such a name"),
        ("http://.cdn.example.com/", "no host has such a name"),
        ("http://cdn..example.com/", "no host has such a name"),
        ("http://cdn.example.com../", "no host has such a name"),
        ("http://*.example.com/", "no host has such a name"),
        ("http://cdn.example.com;x/", "no host has such a name"),
        ("http://cdn.example.com/" + "a" * MAX_URL_LENGTH, "more than 8191"),
    ],
)
def test_what_is_no_url_of_a_picture(text: str | None, says: str) -> None:
    with pytest.raises(InvalidURLError, match=says) as refused:
        read(text)
    assert "secret" not in str(refused.value)


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(
        st.text(max_size=60),
        st.text(max_size=40).map("http://".__add__),
        st.text("/\\@:[]%#?.0123456789axhtps ", max_size=40).map("https://".__add__),
    )
)
@example("http://a:80\\@b/")
def test_whatever_is_read_is_read_alike_again(text: str) -> None:
    try:
        url = read(text)
    except InvalidURLError:
        return
    assert read(url.text) == url
    assert url.text.isascii()
    assert url.text.isprintable()
    assert "@" not in url.text.split("/")[2]


# Lists of hosts


def listed(entry: str, text: str) -> bool:
    return ImageHosts([entry]).lists(read(text))


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("cdn.example", "https://CDN.example.:8443/"),
        ("CDN.Example.", "http://cdn.example/"),
        ("이미지.example", "http://이미지.example/a.jpg"),
        ("이미지.example", "http://xn--hg3b13spxb.example/a.jpg"),
        ("xn--hg3b13spxb.example", "http://이미지.example./"),
        ("BÜCHER.example", "http://bücher.example/"),
        ("*.cdn.example", "http://a.cdn.example/"),
        ("*.cdn.example", "http://a.b.CDN.example./"),
        ("*.이미지.example", "http://a.이미지.example/"),
        ("cdn.example:8443", "https://cdn.example:8443/"),
        ("cdn.example:443", "https://cdn.example/"),
        ("cdn.example:80", "http://cdn.example/"),
        ("127.0.0.1:8080", "http://0x7f.1:8080/"),
        ("127.1:8080", "http://127.0.0.1:8080/"),
        ("[::1]:8080", "http://[0:0::1]:8080/"),
        ("8.8.8.8", "http://8.8.8.8/"),
        ("[2606:4700::1111]", "https://[2606:4700:0::1111]/"),
        ("*", "http://whatever.example:81/"),
    ],
)
def test_a_listed_host_is_known_in_every_spelling(entry: str, text: str) -> None:
    assert listed(entry, text)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("cdn.example", "http://a.cdn.example/"),
        ("cdn.example", "http://cdn.example.evil.example/"),
        ("cdn.example", "http://xcdn.example/"),
        ("cdn.example", "http://example/"),
        ("*.cdn.example", "http://cdn.example/"),
        ("*.cdn.example", "http://xcdn.example/"),
        ("*.cdn.example", "http://a.cdn.example.evil.example/"),
        ("cdn.example:8443", "https://cdn.example/"),
        ("127.0.0.1:8080", "http://127.0.0.1:8081/"),
        ("127.0.0.1:8080", "http://127.0.0.2:8080/"),
    ],
)
def test_another_host_is_not(entry: str, text: str) -> None:
    assert not listed(entry, text)


@pytest.mark.parametrize("entry", ["cdn.example", "*", "*.cdn.example"])
def test_only_host_and_port_are_listed_wherever_they_are(entry: str) -> None:
    url = read("http://a.cdn.example:8080/")
    assert not ImageHosts([entry]).lists_server(url)
    assert ImageHosts([entry, "a.cdn.example:8080"]).lists_server(url)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "https://cdn.example",
        "cdn.example/images",
        "user@cdn.example",
        "cdn example",
        "cdn.*",
        "*cdn.example",
        "*.",
        "*.*.example",
        "*.cdn.example:8080",
        "*.10.0.0.7",
        "10.0.0.7",
        "127.1",
        "[::1]",
        "::1",
        "::1:9001",
        "2606:4700::1111",
        ":8080",
        "cdn.example:",
        "cdn.example:99999",
        "cdn.example:http",
        "cdn..example",
        "383.0.0.1",
    ],
)
def test_an_entry_that_can_match_nothing_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"can match no host|hosts are wanted"):
        ImageHosts(["cdn.example", entry])


def test_a_server_is_named_by_host_and_port() -> None:
    assert read("https://cdn.example/a").server == "cdn.example:443"
    assert read("http://[::1]:81/").server == "[::1]:81"
    assert isinstance(read("http://a/"), Url)
