"""The page Search by photo inside a real Airflow; a stand-in of the inference process gives the features."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingUnixStreamServer
from typing import Any

import numpy as np
import pytest

from tasks.inference.model import Identity
from tasks.search.mapping import COMPACT, COMPACT_VERSION, FEATURE, URL, VERSION
from tasks.serve.client import VERSION_HEADER
from tasks.space.published import published
from tests.plugins.site import HOSTILE, Read, Site, published_space
from tests.shop_fixtures import some_vector

pytestmark = pytest.mark.airflow

PICTURE = "https://pictures.example/{}.jpg"
GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw==")


@pytest.fixture
def goods(site: Site, search_client: Any) -> Iterator[dict[str, np.ndarray]]:
    """Thirty items more, of two categories, the last five with a feature of another version; their
    features."""
    features = {f"s{n:02}": some_vector(100 + n) for n in range(30)}
    index = site.settings.index
    for n, (item_id, feature) in enumerate(features.items()):
        document = {
            "item_id": item_id,
            "item_name": f"coat {n}" if n else HOSTILE,
            "category_id": "00000030" if n % 2 else "00000040",
            "img_url": PICTURE.format(item_id) if n else "javascript:alert(1)",
            FEATURE: feature.tolist(),
            VERSION: site.answer["version"] if n < 25 else "another",
            URL: "u",
        }
        search_client.index(index=index, id=item_id, document=document)
    search_client.indices.refresh(index=index)
    yield features
    for item_id in features:
        search_client.delete(index=index, id=item_id)
    search_client.indices.refresh(index=index)


@pytest.fixture
def inference(site: Site) -> Iterator[dict[str, Any]]:
    """What the inference process answers, by the picture's URL or bytes: a feature, or an error."""
    answers: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(self.path.partition("img_url=")[2])

        def do_POST(self) -> None:
            self.answer(self.rfile.read(int(self.headers["Content-Length"])).decode("latin-1"))

        def answer(self, asked: str) -> None:
            found = answers[asked]
            status = 200 if isinstance(found, np.ndarray) else 422
            body = {"imagenet_feature": found.tolist()} if status == 200 else {"error": found}
            self.send_response(status)
            self.send_header(VERSION_HEADER, site.answer["version"])
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def address_string(self) -> str:
            return "a Unix socket"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    socket = site.settings.data_dir / site.settings.serve_socket
    with ThreadingUnixStreamServer(str(socket), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield answers
        server.shutdown()
        thread.join()
    socket.unlink()


def shown(page: str) -> list[str]:
    """Ids of the items shown, in order."""
    return re.findall(r'<li><a href="/feature-index/similar\?item_id=([^"&]+)', page)


def nearest(goods: dict[str, np.ndarray], feature: np.ndarray, chosen: Any) -> list[str]:
    """The twelve nearest among those that `chosen` takes by number, by the definition of the cosine."""
    cosines = {
        item_id: np.dot(other, feature) / np.linalg.norm(other) / np.linalg.norm(feature)
        for n, (item_id, other) in enumerate(goods.items())
        if n < 25 and chosen(n)
    }
    return sorted(cosines, key=cosines.get, reverse=True)[:12]  # type: ignore[arg-type]


def test_items_are_found_and_lead_to_what_is_similar(site: Site, goods: Any) -> None:
    found = site.ask("GET", "/similar?q=coat+1", "viewer")
    assert found.status_code == 200
    assert set(shown(found.text)) == {"s01", *(f"s{n}" for n in range(10, 20))}
    assert shown(site.ask("GET", "/similar?q=s07").text) == ["s07"]
    assert "No item has this id" in site.ask("GET", "/similar?q=nothing").text

    page = site.ask("GET", "/similar?item_id=s07&category_id=00000030", "viewer").text

    expected = nearest(goods, goods["s07"], lambda n: n % 2 and n != 7)
    assert expected == [item_id for item_id in expected if int(item_id[1:]) % 2]
    assert shown(page) == expected
    assert "/feature-index/similar?item_id=s09&category_id=00000030" in Read.of(page).hrefs
    cosine = np.dot(goods["s07"], goods[expected[0]])
    cosine /= np.linalg.norm(goods["s07"]) * np.linalg.norm(goods[expected[0]])
    assert f"cosine {cosine:.3f}" in page


def test_the_newest_items_are_there_to_start_from(site: Site, goods: Any) -> None:
    page = site.ask("GET", "/similar", "viewer").text
    current = [item_id for item_id in goods if int(item_id[1:]) < 25]
    assert shown(page) == current[::-1][:24]
    assert "category <bdi>00000030</bdi>" in page


def test_so_many_are_shown_as_are_asked_for(site: Site, goods: Any, inference: Any) -> None:
    page = site.ask("GET", "/similar?item_id=s07&category_id=00000030&limit=3").text
    assert shown(page) == nearest(goods, goods["s07"], lambda n: n % 2 and n != 7)[:3]
    assert (
        f"/feature-index/similar?item_id={shown(page)[0]}&category_id=00000030&limit=3" in Read.of(page).hrefs
    )
    inference[GIF.decode("latin-1")] = goods["s07"]
    assert shown(upload(site, GIF, limit="2", category_id="any").text)[0] == "s07"
    assert len(shown(upload(site, GIF, limit="100", category_id="any").text)) == 28
    for limit in ("0", "101", "-1", "x", "1.5"):
        for answer in (
            site.ask("GET", f"/similar?item_id=s07&limit={limit}"),
            upload(site, GIF, limit=limit),
        ):
            assert answer.status_code == 422
            assert "wrong value for: limit" in answer.text


@pytest.mark.usefixtures("goods")
def test_an_item_is_shown_with_what_the_index_knows_of_it(site: Site) -> None:
    page = site.ask("GET", "/similar?item_id=s07").text
    known = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page)
    assert [name for name, _ in known] == ["Item", "Category", "Picture", "Feature"]
    for (_, value), expected in zip(
        known, ("s07", "00000030", PICTURE.format("s07"), site.answer["version"]), strict=True
    ):
        assert expected in value
    assert "More like this" in page


@pytest.mark.usefixtures("goods")
def test_a_category_without_items_is_named(site: Site) -> None:
    page = site.ask("GET", "/similar?item_id=s07&category_id=<b>none").text
    assert "No other item of category <bdi>&lt;b&gt;none</bdi> has a feature" in page
    assert shown(page) == []


@pytest.mark.usefixtures("goods")
def test_every_picture_has_a_name_a_size_and_no_referrer(site: Site) -> None:
    page = site.ask("GET", "/similar?item_id=s07").text
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == 13
    for image in images:
        assert re.search(r'src="https://pictures\.example/s\d\d\.jpg"', image)
        assert re.search(r'alt="Picture of (coat \d+)"', image)
        assert 'width="160" height="160" loading="lazy" referrerpolicy="no-referrer"' in image


def test_all_categories_and_no_other_version(site: Site, goods: Any) -> None:
    page = site.ask("GET", "/similar?item_id=s07").text
    assert not {"s25", "s26", "s27", "s28", "s29"} & set(shown(page))
    own = {str(n): some_vector(n) for n in (1, 2, 3)}  # what the shop held before
    everything = goods | own
    cosines = {
        i: np.dot(f, goods["s07"]) / np.linalg.norm(f)
        for i, f in everything.items()
        if i != "s07" and i not in {"s25", "s26", "s27", "s28", "s29"}
    }
    assert shown(page) == sorted(cosines, key=cosines.get, reverse=True)[:12]  # type: ignore[arg-type]
    assert "Among 27 other items" in page
    assert '<option value="00000030">00000030 (12)</option>' in page


def test_exact_search_stands_beside_and_says_how_far_both_agree(site: Site, goods: Any) -> None:
    page = site.ask("GET", "/similar?item_id=s07&category_id=00000030&compare=true").text
    expected = nearest(goods, goods["s07"], lambda n: n % 2 and n != 7)
    assert "compared with all 11" in page
    assert "11 of 11" in page
    assert shown(page) == expected * 2
    assert "only here" not in page


@pytest.mark.usefixtures("goods")
def test_exact_search_says_why_it_is_absent(site: Site) -> None:
    for asked in ("", "&compare=true"):
        page = site.ask("GET", f"/similar?item_id=s07{asked}").text
        assert "Among 27 other items" in page
        assert "up to 20 items: choose a smaller category" in page
        assert "Compare with exact search" not in page
        assert "compared with all" not in page
        assert len(shown(page)) == 12
    page = site.ask("GET", "/similar?item_id=s07&category_id=00000030").text
    assert "Compare with exact search" in page
    assert "choose a smaller category" not in page


@pytest.mark.usefixtures("goods")
def test_an_item_without_the_current_feature_leads_to_its_backfill(site: Site) -> None:
    page = site.ask("GET", "/similar?item_id=s25").text
    assert "no feature of the current version" in page
    assert "<code>another</code>" in page
    assert "/feature-index/backfill?category_id=00000030" in Read.of(page).hrefs
    page = site.ask("GET", "/similar?item_id=4").text
    assert "no feature of the current version" in page
    assert "/feature-index/backfill?category_id=00000020" in Read.of(page).hrefs
    assert site.ask("GET", "/similar?item_id=none").status_code == 404


@pytest.mark.usefixtures("goods")
def test_strangers_names_and_urls_stay_text(site: Site) -> None:
    beside = "/similar?item_id=s02&category_id=00000040&compare=true"  # all of the category's others
    for path in ("/similar?item_id=s00", beside, "/similar?q=s00"):
        page = site.ask("GET", path).text
        assert "javascript:" not in page
        assert HOSTILE not in page
        assert "&lt;script&gt;alert(1)" in page
    page = site.ask("GET", f"/similar?q={HOSTILE}").text
    assert HOSTILE not in page


def test_pictures_are_allowed_on_this_page_alone_and_from_the_shops_hosts(site: Site) -> None:
    policy = site.ask("GET", "/similar").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert re.search(r"img-src data: http://pictures\.example:\* https://pictures\.example:\*$", policy)
    assert "img-src" not in site.ask("GET", "/").headers["Content-Security-Policy"]


@pytest.fixture
def compact(site: Site, goods: Any, search_client: Any) -> Iterator[dict[str, np.ndarray]]:
    """A space that is published, and its compact vectors, which all but two of the goods have: they are of
    the first 128 numbers alone, so that other items are near."""
    with published_space(site, {"00000030": 0.98, "00000040": 0.02}):
        version = published(site.settings, Identity(site.answer["version"])).version
        roots = {item_id: np.sqrt(feature[:128]) for item_id, feature in goods.items()}
        vectors = {item_id: root / np.linalg.norm(root) for item_id, root in roots.items()}
        for item_id, vector in vectors.items():
            lacks = item_id in ("s22", "s24")
            doc = {COMPACT: vector.tolist(), COMPACT_VERSION: "of a space before" if lacks else version}
            search_client.update(index=site.settings.index, id=item_id, doc=doc)
        search_client.indices.refresh(index=site.settings.index)
        yield vectors


def of_category_40(n: int) -> bool:
    return n % 2 == 0 and n not in (8, 22, 24)


def test_compact_vectors_are_searched_with_and_shown_beside_features(
    site: Site, goods: Any, compact: Any
) -> None:
    asked = "/similar?item_id=s08&category_id=00000040"
    small = nearest(compact, compact["s08"], of_category_40)
    plain = nearest(goods, goods["s08"], lambda n: n % 2 == 0 and n != 8)
    assert len(small) == 10
    assert small != plain[:10]

    page = site.ask("GET", f"{asked}&by=compact").text
    assert shown(page) == small
    assert f"cosine {compact['s08'] @ compact[small[0]]:.3f}" in page
    assert "10 of them have a compact vector of the feature space" in page
    assert "the DAG <code>compact_vectors</code> writes the others" in page
    assert '<option value="compact" selected>' in page
    assert f"item_id={small[0]}&category_id=00000040&by=compact" in str(Read.of(page).hrefs)

    page = site.ask("GET", f"{asked}&by=both&limit=5").text
    assert shown(page) == plain[:5] + small[:5]
    both = len(set(plain[:5]) & set(small[:5]))
    assert f'<p class="large">{both} of 5</p>' in page
    assert "nearest items by approximate search were also found by compact vectors" in page
    assert page.count("only here") == 2 * (5 - both)

    page = site.ask("GET", f"{asked}&by=both&compare=true&limit=5").text
    assert shown(page) == plain[:5] + small[:5] + plain[:5]
    assert '<p class="large">5 of 5</p>' in page
    assert "by exact search were also found by compact vectors" in page

    assert shown(site.ask("GET", asked).text) == plain
    assert site.ask("GET", f"{asked}&by=nothing").status_code == 422


def test_a_photo_is_compared_by_compact_vectors(site: Site, compact: Any, goods: Any, inference: Any) -> None:
    inference[GIF.decode("latin-1")] = goods["s09"]
    answer = upload(site, GIF, category_id="00000040", by="compact")
    assert shown(answer.text) == nearest(compact, compact["s09"], lambda n: of_category_40(n) or n == 8)
    values = Read.of(answer.text.partition('id="found"')[2].partition("</form>")[0]).values
    again = site.ask("POST", "/similar", "viewer", data=values | {"category_id": "00000040", "by": "compact"})
    assert shown(again.text) == shown(answer.text)


def test_without_compact_vectors_features_are_compared(site: Site, goods: Any) -> None:
    page = site.ask("GET", "/similar?item_id=s07&category_id=00000030&by=compact").text
    assert shown(page) == nearest(goods, goods["s07"], lambda n: n % 2 and n != 7)
    assert 'name="by"' not in page
    with published_space(site, {"00000030": 1.0}):
        page = site.ask("GET", "/similar?item_id=s07&category_id=00000030&by=both").text
        assert shown(page) == nearest(goods, goods["s07"], lambda n: n % 2 and n != 7)
        assert "0 of them have a compact vector" in page


# A photo or a URL -------------------------------------------------------------------------------


def upload(site: Site, content: bytes, kind: str = "image/gif", **fields: str) -> Any:
    token = Read.of(site.ask("GET", "/similar", "viewer").text).values["token"]
    body = {"token": token} | fields
    return site.ask("POST", "/similar", "viewer", data=body, files={"photo": ("my photo.gif", content, kind)})


def test_an_uploaded_photo_finds_its_neighbours_and_is_shown_again(
    site: Site, goods: Any, inference: Any
) -> None:
    inference[GIF.decode("latin-1")] = goods["s07"]
    answer = upload(site, GIF, category_id="00000030")
    assert answer.status_code == 200
    assert shown(answer.text) == nearest(goods, goods["s07"], lambda n: n % 2)
    assert shown(answer.text)[0] == "s07"
    photo = f"data:image/gif;base64,{base64.b64encode(GIF).decode()}"
    assert f'<img src="{photo}" alt="Picture of my photo.gif"' in answer.text

    # The form below it asks again without the photo, and without the inference process.
    inference.clear()
    form = answer.text.partition('id="found"')[2].partition("</form>")[0]
    values = Read.of(form).values
    body = values | {"category_id": "00000040", "compare": "true"}
    again = site.ask("POST", "/similar", "viewer", data=body)
    assert again.status_code == 200
    assert shown(again.text) == nearest(goods, goods["s07"], lambda n: n % 2 == 0) * 2
    assert photo in again.text


def test_a_photo_is_searched_within_what_it_looks_like(site: Site, goods: Any, inference: Any) -> None:
    inference[GIF.decode("latin-1")] = goods["s07"]
    assert "Run the DAG <code>feature_space</code>" in upload(site, GIF).text
    with published_space(site, {"00000030": 0.98, "00000040": 0.02}):
        sure = upload(site, GIF)
        assert "Looks like <strong><bdi>00000030</bdi></strong> (98 %)." in sure.text
        assert shown(sure.text) == nearest(goods, goods["s07"], lambda n: n % 2)
        anywhere = upload(site, GIF, category_id="any")
        assert set(shown(anywhere.text)) >= set(nearest(goods, goods["s07"], lambda _: True)[:9])
        chosen = upload(site, GIF, category_id="00000040")
        assert shown(chosen.text) == nearest(goods, goods["s07"], lambda n: n % 2 == 0)
    with published_space(site, {"00000030": 0.6, HOSTILE: 0.4}):
        unsure = upload(site, GIF)
        assert "(60 %)" in unsure.text
        assert HOSTILE not in unsure.text


@pytest.mark.parametrize(
    ("photos", "url"),
    [
        ([("", b"")], ""),
        ([("a.gif", GIF), ("b.gif", GIF)], ""),
        ([("a.gif", GIF)], "https://pictures.example/new.jpg"),
    ],
    ids=("none, as browsers send it", "two", "a photo and a URL"),
)
def test_not_exactly_one_picture_is_refused_on_the_page(
    site: Site, photos: list[tuple[str, bytes]], url: str
) -> None:
    files = [("photo", (name, content, "image/gif")) for name, content in photos]
    body = {"token": site.form_token("viewer"), "url": url, "limit": "7", "category_id": "00000010"}
    # Of a file without a name the library sends none, and a browser does.
    boundary = "----one"
    parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in body.items()]
    parts += [
        f'name="{field}"; filename="{name}"\r\nContent-Type: {kind}\r\n\r\n'.encode() + content
        for field, (name, content, kind) in files
    ]
    sent = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; ".encode() + part + b"\r\n" for part in parts
    )
    answer = site.ask(
        "POST",
        "/similar",
        "viewer",
        data=sent + f"--{boundary}--\r\n".encode(),
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    assert answer.status_code == 422
    assert "Choose one photo, or paste the URL of one picture." in answer.text
    assert 'name="limit" value="7"' in answer.text, "what was filled in stays"
    assert '<option value="00000010" selected>' in answer.text


def test_a_pasted_url_finds_its_neighbours(site: Site, goods: Any, inference: Any) -> None:
    inference["https%3A%2F%2Fpictures.example%2Fnew.jpg"] = goods["s08"]
    body = {"token": site.form_token("viewer"), "url": "https://pictures.example/new.jpg"}
    answer = site.ask("POST", "/similar", "viewer", data=body)
    assert answer.status_code == 200
    assert shown(answer.text)[0] == "s08"
    assert '<img src="https://pictures.example/new.jpg"' in answer.text


def test_why_a_picture_has_no_feature_is_said_on_the_page(site: Site, inference: Any) -> None:
    inference["http%3A%2F%2F127.0.0.1%2Fx"] = {
        "status": "blocked_address",
        "message": "the host 127.0.0.1:80 is not in FEATURES_IMAGE_HOSTS",
    }
    body = {"token": site.form_token("viewer"), "url": "http://127.0.0.1/x"}
    answer = site.ask("POST", "/similar", "viewer", data=body)
    assert answer.status_code == 422
    assert "blocked_address: the host 127.0.0.1:80 is not in FEATURES_IMAGE_HOSTS" in answer.text
    assert "as host:port" in answer.text  # what to do
    assert 'value="http://127.0.0.1/x"' in answer.text

    inference["no picture"] = {"status": "not_a_picture", "message": "no picture's beginning"}
    answer = upload(site, b"no picture")
    assert answer.status_code == 422
    assert "not_a_picture: no picture&#39;s beginning" in answer.text


@pytest.mark.usefixtures("goods")
def test_without_the_inference_process_the_page_says_what_to_start(site: Site) -> None:
    answer = upload(site, GIF)
    assert answer.status_code == 503
    assert "python -m tasks.serve" in answer.text
    assert site.ask("GET", "/similar?item_id=s07").status_code == 200


@pytest.mark.usefixtures("inference")
def test_a_photo_that_is_too_large_is_refused_before_it_is_kept(site: Site) -> None:
    most = site.settings.max_image_bytes
    answer = upload(site, b"x" * (most + 2_000_000))
    assert answer.status_code == 413
    assert "FEATURES_MAX_IMAGE_BYTES" in answer.text

    def chunks() -> Iterator[bytes]:
        for _ in range(most // 1_000_000 + 3):
            yield b"x" * 1_000_000

    # One who is not logged in and does not say how much will come.
    answer = site.ask(
        "POST", "/similar", None, data=chunks(), headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert answer.status_code in (400, 413)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"feature": "x"},
        {"feature": base64.b64encode(np.ones(4, "<f4").tobytes()).decode()},
        {"feature": base64.b64encode(np.zeros(2048, "<f4").tobytes()).decode()},
        {"feature": base64.b64encode(np.full(2048, np.nan, "<f4").tobytes()).decode()},
        {"feature": base64.b64encode(np.full(2048, 1e30, "<f4").tobytes()).decode()},
    ],
    ids=("nothing", "no base64", "short", "zero", "not a number", "overflow"),
)
def test_a_form_that_holds_nothing_to_search_with_is_refused(site: Site, body: dict[str, str]) -> None:
    answer = site.ask("POST", "/similar", data=body | {"token": site.form_token()})
    assert answer.status_code == 422
    assert shown(answer.text) == []


def test_what_a_form_claims_as_its_picture_is_not_believed(site: Site, goods: Any) -> None:
    feature = base64.b64encode(goods["s07"].astype("<f4").tobytes()).decode()
    for picture in (
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:text/html;base64,PHN2Zy8+",
        "javascript:alert(1)",
        'data:image/gif;base64,"><script>',
    ):
        body = {"token": site.form_token(), "feature": feature, "picture": picture, "name": HOSTILE}
        answer = site.ask("POST", "/similar", data=body)
        assert answer.status_code == 200
        assert len(Read.of(answer.text).scripts) == 1  # our own
        assert f'src="{picture}' not in answer.text
        assert "data:" not in answer.text
