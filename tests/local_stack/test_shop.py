import csv
import re
import shutil
import socket
import sqlite3
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from local_stack import shop as shop_module
from local_stack.process import free_port
from local_stack.shop import Shop
from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.shop.catalogue import Catalogue
from tasks.shop.connections import CATALOGUE, Connection

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

# Ten in the morning of 5 March in Seoul, which has no summer time.
NOW = datetime(2026, 3, 5, 1, 0, tzinfo=UTC)
SEOUL = timezone(timedelta(hours=9))

# One of them draws the whole shop.
pytestmark = pytest.mark.xdist_group("shop")


@pytest.fixture(autouse=True)
def no_image_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGE_PORT", raising=False)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The shop at its full size; tests only read it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("IMAGE_PORT", raising=False)
        return Shop.rendered(tmp_path_factory.mktemp("rendered"), now=NOW)


def rows(shop: Shop) -> list[dict[str, Any]]:
    with sqlite3.connect(shop.catalog_path) as catalogue:
        catalogue.row_factory = sqlite3.Row
        return [dict(row) for row in catalogue.execute("SELECT * FROM items")]


def seoul_day(text: str) -> str:
    moment = datetime.strptime(text, "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC)
    return moment.astimezone(SEOUL).date().isoformat()


def names_in_catalogue(shop: Shop) -> dict[str, str]:
    """Names of categories as the stack's runs read them."""
    statement = Path(shop_module.__file__).with_name("category_names.sql")
    return Catalogue(Connection(CATALOGUE, "sqlite", schema=str(shop.catalog_path))).category_names(statement)


def moment(text: str) -> datetime:
    """A time as the catalogue has it."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def row_named(shop: Shop, flaw: str) -> dict[str, Any]:
    (row,) = [row for row in rows(shop) if row["item_name"].endswith(f"({flaw})")]
    return row


# The rendered shop


def test_it_has_the_columns_and_indexes_that_were_agreed(full: Shop) -> None:
    with sqlite3.connect(full.catalog_path) as catalogue:
        columns = catalogue.execute("PRAGMA table_info(items)").fetchall()
        assert [column[1] for column in columns] == [
            "item_id",
            "item_name",
            "category_id",
            "img_url",
            "registered_at",
            "updated_at",
        ]
        assert [column[1] for column in columns if column[5]] == ["item_id"]
        for condition in (
            "updated_at BETWEEN '2026-03-01' AND '2026-03-02'",
            "registered_at BETWEEN '2026-03-01' AND '2026-03-02'",
            "category_id = '00000030'",
        ):
            plan = catalogue.execute(f"EXPLAIN QUERY PLAN SELECT * FROM items WHERE {condition}").fetchall()
            assert "USING INDEX" in plan[0][3]


def test_it_has_600_items_in_ten_categories_over_seven_complete_nights(full: Shop) -> None:
    items = rows(full)
    assert len(items) >= 600
    assert len({item["item_name"] for item in items}) == len(items)
    by_category = Counter(item["category_id"] for item in items)
    assert set(names_in_catalogue(full)) == set(by_category)
    assert names_in_catalogue(full)["00000030"] == "longsleeve"
    assert sorted(by_category) == [f"{number:07d}0" for number in range(1, 11)]
    assert min(by_category.values()) >= 20
    by_night = Counter(seoul_day(item["registered_at"]) for item in items)
    assert sorted(by_night) == [
        "2026-02-26",
        "2026-02-27",
        "2026-02-28",
        "2026-03-01",
        "2026-03-02",
        "2026-03-03",
        "2026-03-04",
    ]
    assert min(by_night.values()) >= 80


def test_times_are_text_with_microseconds_spread_over_the_day(full: Shop) -> None:
    times = [item["registered_at"] for item in rows(full)]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}", time) for time in times)
    assert len({time[11:13] for time in times}) > 18


def test_some_items_changed_on_a_later_night(full: Shop) -> None:
    changed = [item for item in rows(full) if item["updated_at"]]
    assert 10 < len(changed) < 100
    assert all(
        seoul_day(item["registered_at"]) < seoul_day(item["updated_at"]) <= "2026-03-04" for item in changed
    )


def test_ids_are_not_numbers_alone(full: Shop) -> None:
    ids = [item["item_id"] for item in rows(full)]
    assert sum(bool(re.fullmatch(r"\d{10}", item_id)) for item_id in ids) > 550
    assert any(item_id.startswith("00") for item_id in ids)
    assert any(re.search("[A-Z]", item_id) for item_id in ids)


def test_the_newest_night_has_one_item_of_each_flaw(full: Shop) -> None:
    for flaw in ("picture missing", "picture corrupt", "no document"):
        assert seoul_day(row_named(full, flaw)["registered_at"]) == "2026-03-04"
    assert not full.picture(row_named(full, "picture missing")["img_url"]).exists()
    assert full.without_document == (row_named(full, "no document")["item_id"],)
    corrupt = full.picture(row_named(full, "picture corrupt")["img_url"])
    assert corrupt.read_bytes().startswith(b"\xff\xd8\xff")
    with Image.open(corrupt) as picture, pytest.raises(OSError, match="truncated"):
        picture.load()


def test_every_other_picture_is_there_and_whole(full: Shop) -> None:
    kinds: Counter[str] = Counter()
    for item in rows(full):
        if item["item_name"].endswith(("(picture missing)", "(picture corrupt)")):
            continue
        assert item["img_url"].startswith(f"http://{full.image_hosts}/")
        with Image.open(full.picture(item["img_url"])) as picture:
            picture.load()
            kinds[f"{picture.format} {picture.mode}"] += 1
            kinds["turned"] += picture.getexif().get(0x0112, 1) != 1
    assert kinds["JPEG RGB"] > 400
    for kind in ("JPEG CMYK", "PNG RGB", "PNG RGBA", "WEBP RGB", "GIF P", "turned"):
        assert kinds[kind] >= 3, kind


def test_the_newest_night_is_found(full: Shop) -> None:
    assert full.newest_night(now=NOW) == (
        datetime(2026, 3, 3, 15, tzinfo=UTC),
        datetime(2026, 3, 4, 15, tzinfo=UTC),
    )
    # In the evening of 3 March that night is not over, so the one before is the newest.
    assert full.newest_night(now=datetime(2026, 3, 3, 14, 59, tzinfo=UTC)) == (
        datetime(2026, 3, 1, 15, tzinfo=UTC),
        datetime(2026, 3, 2, 15, tzinfo=UTC),
    )


def test_most_items_are_all_but_the_oldest_tenth_and_a_thousand_at_most(
    full: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = sorted(item["registered_at"] for item in rows(full))
    category_ids, since = full.most_items()
    assert category_ids == [f"{number:07d}0" for number in range(1, 11)]
    assert since == moment(registered[-(len(registered) * 9 // 10)])
    monkeypatch.setattr(shop_module, "_MOST_ITEMS", 50)
    assert full.most_items() == (category_ids, moment(registered[-50]))
    older = full.newest_items(1_000, before=since)
    expected = {item["item_id"] for item in rows(full) if moment(item["registered_at"]) < since}
    assert {item_id for item_ids in older.values() for item_id in item_ids} == expected
    assert len(expected) == len(registered) - len(registered) * 9 // 10


def test_newest_items_are_grouped_by_category(full: Shop) -> None:
    newest = full.newest_items(3)
    assert sorted(newest) == [f"{number:07d}0" for number in range(1, 11)]
    shirts = [item for item in rows(full) if item["category_id"] == "00000060"]
    shirts.sort(key=lambda item: item["registered_at"], reverse=True)
    assert newest["00000060"] == [item["item_id"] for item in shirts[:3]]


def test_a_shop_that_is_there_is_not_built_again(full: Shop) -> None:
    before = {path: path.stat().st_mtime_ns for path in full.folder.rglob("*")}
    again = Shop.rendered(full.folder, now=NOW + timedelta(days=3))
    assert again == full
    assert {path: path.stat().st_mtime_ns for path in full.folder.rglob("*")} == before


def test_a_shop_may_be_moved(tmp_path: Path) -> None:
    built = Shop.rendered(tmp_path / "one", now=NOW, items=10)
    shutil.move(tmp_path / "one", tmp_path / "two")
    moved = Shop.rendered(tmp_path / "two", now=NOW, items=10)
    assert moved.image_root == tmp_path / "two" / "pictures"
    assert moved.image_port == built.image_port


@pytest.mark.parametrize("step", ["_write_catalogue", "_draw_one", "_write_whole"])
def test_an_interrupted_build_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    whole = Shop.rendered(tmp_path / "whole", now=NOW, items=12)
    with monkeypatch.context() as interrupted:
        if step == "_draw_one":  # it runs in processes that see no patch: stop right after it
            interrupted.setattr(shop_module, "_cut_short", stop)
        else:
            interrupted.setattr(shop_module, step, stop)
        with pytest.raises(KeyboardInterrupt):
            Shop.rendered(tmp_path / "shop", now=NOW, items=12)
    stale = tmp_path / "shop" / "pictures" / "hat" / "stale.jpg"
    stale.write_bytes(b"from the interrupted build")
    shop = Shop.rendered(tmp_path / "shop", now=NOW, items=12)
    assert not stale.exists()
    ids = [item["item_id"] for item in rows(shop)]
    assert ids == [item["item_id"] for item in rows(whole)]
    assert len(ids) == 15


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_picture_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = shop_module.draw("00000030", 4816)
    assert shop_module._drawn("00000030", 4816, tmp_path / "kept") == drawn
    with monkeypatch.context() as patched:
        patched.setattr(shop_module, "draw", stop)
        assert shop_module._drawn("00000030", 4816, tmp_path / "kept") == drawn
        with pytest.raises(KeyboardInterrupt):
            shop_module._drawn("00000030", 4817, tmp_path / "kept")


# The image server's port


def test_image_port_picks_the_port_of_a_new_shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("IMAGE_PORT", str(port))
    images = folder_with(tmp_path, LINE)
    shop = Shop.from_folder(tmp_path / "shop", images)
    assert shop.image_port == port
    assert rows(shop)[0]["img_url"] == f"http://127.0.0.1:{port}/images/a.jpg"
    monkeypatch.delenv("IMAGE_PORT")
    assert Shop.from_folder(tmp_path / "shop", images).image_port == port


def test_another_image_port_for_a_shop_that_is_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = folder_with(tmp_path, LINE)
    port = Shop.from_folder(tmp_path / "shop", images).image_port
    monkeypatch.setenv("IMAGE_PORT", str(port % 60_000 + 1024))
    with pytest.raises(ConfigurationError, match=rf"port {port}.*Unset IMAGE_PORT, or delete that folder"):
        Shop.from_folder(tmp_path / "shop", images)


@pytest.mark.parametrize("value", ["http", "0", "65536", "-1", "80a"])
def test_an_image_port_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("IMAGE_PORT", value)
    with pytest.raises(ConfigurationError, match=f"IMAGE_PORT='{value}' is not a port"):
        Shop.from_folder(tmp_path / "shop", folder_with(tmp_path, LINE))


def test_a_taken_image_port_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("IMAGE_PORT", str(taken.getsockname()[1]))
        with pytest.raises(ConfigurationError, match="is taken"):
            Shop.from_folder(tmp_path / "shop", folder_with(tmp_path, LINE))


# A shop from a folder

HEADER = "item_id,item_name,category_id,img_path,registered_at\n"
LINE = "0a1,a hat,00000020,/images/a.jpg,2026-03-04T10:00:00+09:00\n"


def folder_with(tmp_path: Path, lines: str, header: str = HEADER) -> Path:
    images = tmp_path / "photos"
    (images / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 40), (200, 0, 0)).save(images / "images" / "a.jpg")
    (images / "items.csv").write_text(header + lines, encoding="utf-8")
    return images


def test_a_folder_becomes_a_shop(tmp_path: Path) -> None:
    images = folder_with(
        tmp_path,
        LINE + '007,"cap, blue ""B""",00000020,/images/füße 1.jpg,2026-03-03T23:30:00.5Z\n',
        "\ufeff" + HEADER,
    )
    shop = Shop.from_folder(tmp_path / "shop", images)
    assert rows(shop) == [
        {
            "item_id": "0a1",
            "item_name": "a hat",
            "category_id": "00000020",
            "img_url": f"http://127.0.0.1:{shop.image_port}/images/a.jpg",
            "registered_at": "2026-03-04 01:00:00.000000",
            "updated_at": None,
        },
        {
            "item_id": "007",
            "item_name": 'cap, blue "B"',
            "category_id": "00000020",
            "img_url": f"http://127.0.0.1:{shop.image_port}/images/f%C3%BC%C3%9Fe%201.jpg",
            "registered_at": "2026-03-03 23:30:00.500000",
            "updated_at": None,
        },
    ]
    assert shop.image_root == images
    assert shop.without_document == ()
    assert shop.picture(rows(shop)[0]["img_url"]) == images / "images" / "a.jpg"
    assert shop.picture(rows(shop)[1]["img_url"]) == images / "images" / "füße 1.jpg"


def test_the_catalogue_follows_items_csv(tmp_path: Path) -> None:
    images = folder_with(tmp_path, LINE)
    first = Shop.from_folder(tmp_path / "shop", images)
    unchanged = first.catalog_path.stat()
    assert Shop.from_folder(tmp_path / "shop", images) == first
    assert first.catalog_path.stat() == unchanged
    folder_with(tmp_path, LINE.replace("a hat", "another hat"))
    second = Shop.from_folder(tmp_path / "shop", images)
    assert [row["item_name"] for row in rows(second)] == ["another hat"]
    assert second.image_port == first.image_port


def test_a_faulty_change_leaves_the_old_catalogue(tmp_path: Path) -> None:
    images = folder_with(tmp_path, LINE)
    shop = Shop.from_folder(tmp_path / "shop", images)
    folder_with(tmp_path, LINE + LINE)
    with pytest.raises(ConfigurationError):
        Shop.from_folder(tmp_path / "shop", images)
    assert [row["item_id"] for row in rows(shop)] == ["0a1"]


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        (LINE, HEADER.replace("img_path", "image").replace("item_id", "id"), "no column item_id, img_path"),
        ("", HEADER, "names no items"),
        ("", "", "no column item_id, item_name"),
        (LINE + LINE.replace("a hat", "b"), HEADER, "line 3: item_id '0a1' is that of line 2 already"),
        (LINE.replace("0a1", ""), HEADER, "line 2: item_id is empty"),
        (LINE.replace("00000020", "20"), HEADER, "line 2: category_id '20' does not match.*leading zeros"),
        (LINE.replace("00000020", "0000002x"), HEADER, "category_id '0000002x'"),
        (LINE.replace("00000020", "٠٠٠٠٠٠٢٠"), HEADER, "does not match FEATURES_CATEGORY_PATTERN"),
        (LINE + LINE.replace("0a1", "2").replace("2026", "26"), HEADER, "line 3: registered_at '26-03-04"),
        (LINE.replace("+09:00", ""), HEADER, "with its offset such as 2026-10-01T02:14:26\\+00:00"),
        (LINE.replace("/images/a.jpg", "/../a.jpg"), HEADER, "line 2: img_path '/../a.jpg' is not below"),
        (LINE.replace("/images/a.jpg", "/images/out/a.jpg"), HEADER, "is not below"),
        (LINE.replace("/images/a.jpg", ""), HEADER, "img_path '' is not below"),
        ("0a1,a hat\n", HEADER, "line 2: category_id ''"),
    ],
)
def test_a_faulty_items_csv_is_named(tmp_path: Path, lines: str, header: str, message: str) -> None:
    images = folder_with(tmp_path, lines, header)
    (images / "images" / "out").symlink_to(tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        Shop.from_folder(tmp_path / "shop", images)
    assert not (tmp_path / "shop").exists()


def test_a_missing_folder_and_a_missing_table_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no folder .*nowhere.*IMAGES=FOLDER"):
        Shop.from_folder(tmp_path / "shop", tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match=r"has no items.csv.*item_id, item_name"):
        Shop.from_folder(tmp_path / "shop", tmp_path)


def test_a_table_in_another_encoding_is_named(tmp_path: Path) -> None:
    images = folder_with(tmp_path, LINE)
    (images / "items.csv").write_bytes((HEADER + LINE.replace("a hat", "hüt")).encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"is not UTF-8"):
        Shop.from_folder(tmp_path / "shop", images)


def test_the_bounds_of_a_night(tmp_path: Path) -> None:
    lines = "".join(
        f"{number},hat,00000020,/images/a.jpg,{time}\n"
        for number, time in enumerate(
            ("2026-03-02T15:00:00Z", "2026-03-03T14:59:59.999999Z", "2026-03-03T15:00:00Z")
        )
    )
    shop = Shop.from_folder(tmp_path / "shop", folder_with(tmp_path, lines))
    third = (datetime(2026, 3, 2, 15, tzinfo=UTC), datetime(2026, 3, 3, 15, tzinfo=UTC))
    fourth = (datetime(2026, 3, 3, 15, tzinfo=UTC), datetime(2026, 3, 4, 15, tzinfo=UTC))
    # The last item is of 4 March, Seoul time, by the fraction of a second.
    assert shop.newest_night(now=datetime(2026, 3, 4, 14, 59, 59, tzinfo=UTC)) == third
    assert shop.newest_night(now=datetime(2026, 3, 4, 15, 0, tzinfo=UTC)) == fourth
    assert shop.newest_night() == fourth
    with pytest.raises(ConfigurationError, match="no complete night"):
        shop.newest_night(now=datetime(2026, 3, 3, 10, tzinfo=UTC))


def test_nights_and_categories_are_the_shop_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURES_TIME_ZONE", "Europe/Berlin")
    monkeypatch.setenv("FEATURES_CATEGORY_PATTERN", "[a-z]+/[a-z]+")
    images = folder_with(tmp_path, LINE.replace("00000020", "shoes/boots"))
    shop = Shop.from_folder(tmp_path / "shop", images)
    assert shop.most_items() == (["shoes/boots"], datetime(2026, 3, 4, 1, tzinfo=UTC))
    assert shop.newest_items(1, before=shop.most_items()[1]) == {}
    night = (datetime(2026, 3, 3, 23, tzinfo=UTC), datetime(2026, 3, 4, 23, tzinfo=UTC))
    assert shop.newest_night(now=datetime(2026, 3, 20, tzinfo=UTC)) == night
    with pytest.raises(ConfigurationError, match=r"FEATURES_CATEGORY_PATTERN, '\[a-z\]\+/\[a-z\]\+'"):
        Shop.rendered(tmp_path / "rendered", now=NOW)
    assert not (tmp_path / "rendered").exists()


def test_a_changed_item_counts_by_its_change(tmp_path: Path) -> None:
    shop = Shop.from_folder(tmp_path / "shop", folder_with(tmp_path, LINE))
    with sqlite3.connect(shop.catalog_path) as catalogue:
        catalogue.execute("UPDATE items SET updated_at = '2026-03-10 12:00:00.000000'")
    assert shop.newest_night(now=datetime(2026, 3, 20, tzinfo=UTC))[0] == datetime(2026, 3, 9, 15, tzinfo=UTC)


def test_category_names_come_from_the_folder(tmp_path: Path) -> None:
    images = folder_with(tmp_path, LINE)
    shop = Shop.from_folder(tmp_path / "shop", images)
    assert shop.category_names()["00000020"] == "hat"
    assert names_in_catalogue(shop) == {}
    (images / "categories.csv").write_text("category_id,category_name\n00000020,headwear\n")
    assert shop.category_names() == {"00000020": "headwear"}
    assert names_in_catalogue(Shop.from_folder(tmp_path / "shop", images)) == {"00000020": "headwear"}


def test_a_real_shop(tmp_path: Path, shop_photos: Path) -> None:
    shop = Shop.from_folder(tmp_path / "shop", shop_photos)
    with (shop_photos / "items.csv").open(newline="") as file:
        expected = list(csv.DictReader(file))
    found = {row["item_id"]: row for row in rows(shop)}
    assert len(found) == len(expected) == 1000
    for item in expected:
        row = found[item["item_id"]]
        assert row["img_url"].endswith(item["img_path"])
        assert row["registered_at"] == item["registered_at"].replace("T", " ").replace("+00:00", ".000000")
        assert shop.picture(row["img_url"]).is_file()
    # The last items are of 2026-11-09 23:23 UTC, which is the morning of the tenth in Seoul.
    assert shop.newest_night(now=datetime(2026, 11, 12, tzinfo=UTC)) == (
        datetime(2026, 11, 9, 15, tzinfo=UTC),
        datetime(2026, 11, 10, 15, tzinfo=UTC),
    )


# Documents


@pytest.fixture
def small(tmp_path: Path) -> Shop:
    lines = "".join(LINE.replace("0a1", f"00{number}") for number in range(5))
    return Shop.from_folder(tmp_path / "shop", folder_with(tmp_path, lines))


def documents(client: "Elasticsearch", index: str) -> dict[str, dict[str, Any]]:
    hits = client.search(index=index, size=1000)["hits"]["hits"]
    return {hit["_id"]: hit["_source"] for hit in hits}


def test_documents_are_those_of_a_core_server(
    search_client: "Elasticsearch", index: str, small: Shop
) -> None:
    assert small.write_documents(search_client, index) == 5
    found = documents(search_client, index)
    assert sorted(found) == ["000", "001", "002", "003", "004"]
    assert found["003"] == {
        "item_id": "003",
        "item_name": "a hat",
        "category_id": "00000020",
        "img_url": f"http://127.0.0.1:{small.image_port}/images/a.jpg",
    }
    # Elasticsearch mapped them by itself.
    fields = search_client.indices.get_mapping(index=index)[index]["mappings"]["properties"]
    assert fields["category_id"]["type"] == "text"


def test_documents_that_are_there_are_left_alone(
    search_client: "Elasticsearch", index: str, small: Shop
) -> None:
    theirs = {"item_id": "002", "item_name": "renamed by hand", "price": 10}
    search_client.index(index=index, id="002", document=theirs, refresh=True)
    assert small.write_documents(search_client, index) == 4
    assert documents(search_client, index)["002"] == theirs
    assert small.write_documents(search_client, index) == 0
    versions = search_client.mget(index=index, ids=[f"00{number}" for number in range(5)])["docs"]
    assert [document["_version"] for document in versions] == [1] * 5


def test_an_existing_mapping_stays(search_client: "Elasticsearch", index: str, small: Shop) -> None:
    search_client.indices.create(index=index, mappings={"properties": {"category_id": {"type": "keyword"}}})
    small.write_documents(search_client, index)
    fields = search_client.indices.get_mapping(index=index)[index]["mappings"]["properties"]
    assert fields["category_id"] == {"type": "keyword"}


def test_the_rendered_shop_leaves_one_document_out(
    search_client: "Elasticsearch", index: str, full: Shop
) -> None:
    items = rows(full)
    assert full.write_documents(search_client, index) == len(items) - 1
    assert search_client.count(index=index)["count"] == len(items) - 1
    assert not search_client.exists(index=index, id=row_named(full, "no document")["item_id"])


def test_a_refused_document_is_an_error(search_client: "Elasticsearch", index: str, small: Shop) -> None:
    search_client.indices.create(index=index, mappings={"properties": {"item_name": {"type": "integer"}}})
    with pytest.raises(ServiceUnavailableError, match="refused the document of item 000"):
        small.write_documents(search_client, index)


def test_an_elasticsearch_that_is_away_is_an_error(small: Shop) -> None:
    from elasticsearch import Elasticsearch

    with (
        Elasticsearch(f"http://127.0.0.1:{free_port()}", max_retries=0) as nobody,
        pytest.raises(ServiceUnavailableError, match="took no documents for img_list"),
    ):
        small.write_documents(nobody, "img_list")
