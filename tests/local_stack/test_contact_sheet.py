import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from local_stack.contact_sheet import (
    Card,
    Row,
    contact_sheet,
    draw_contact_sheet,
    nearest,
    photo_sheet,
    taken_for,
)
from local_stack.shop import Shop
from tasks.errors import ConfigurationError
from tasks.inference.model import Identity
from tasks.search.queries import ItemQueries
from tasks.serve.answers import refused
from tasks.serve.features import Feature
from tasks.serve.photos import PhotoSearch
from tasks.settings import Settings
from tasks.space.categories import CategoryModel
from tasks.space.published import Space, publish
from tasks.space.vectors import Codes, Compact
from tasks.statuses import Status
from tests.shop_fixtures import remember_model, search_connection

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

VERSION = "inception_v3-0123456789ab-pad299"
COLOURS = {"00000020": (200, 0, 0), "00000050": (0, 160, 0), "00000070": (0, 0, 200)}
NAMES = {"00000020": "hat", "00000050": "pants", "00000070": "shoes"}


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """Eight items each of three categories, every picture in its category's colour."""
    photos = tmp_path / "photos"
    photos.mkdir()
    lines = ["item_id,item_name,category_id,img_path,registered_at"]
    for category_id, colour in COLOURS.items():
        Image.new("RGB", (60, 90), colour).save(photos / f"{category_id}.png")
        rest = f"{category_id},/{category_id}.png,2026-03-04T10:00:00Z"
        lines += [f"{category_id[-3:]}{number},thing {number},{rest}" for number in range(8)]
    (photos / "items.csv").write_text("\n".join(lines))
    return Shop.from_folder(tmp_path / "shop", photos)


def feature(item_id: str) -> list[float]:
    """A vector in the plane of the item's category, turned by 3 degrees a number."""
    vector = np.zeros(2048)
    angle = np.radians(3 * int(item_id[-1]))
    plane = int(item_id[1])
    vector[2 * plane : 2 * plane + 2] = np.cos(angle), np.sin(angle)
    vector[100] = 0.5  # what all pictures share
    return vector.tolist()


@pytest.fixture
def add_features(search_client: "Elasticsearch", index: str, shop: Shop) -> Callable[..., None]:
    shop.write_documents(search_client, index)
    search_client.indices.put_mapping(
        index=index,
        properties={
            "imagenet_feature": {
                "type": "dense_vector",
                "dims": 2048,
                "similarity": "cosine",
                "index_options": {"type": "int8_hnsw"},
            },
            "imagenet_feature_version": {"type": "keyword"},
        },
    )

    def add(item_ids: list[str], version: str = VERSION) -> None:
        for item_id in item_ids:
            doc = {"imagenet_feature": feature(item_id), "imagenet_feature_version": version}
            search_client.update(index=index, id=item_id, doc=doc)
        search_client.indices.refresh(index=index)

    return add


@pytest.fixture
def queries(elasticsearch_url: str, index: str) -> ItemQueries:
    return ItemQueries(search_connection(elasticsearch_url), index)


ALL = [f"0{plane}0{number}" for plane in (2, 5, 7) for number in range(8)]


def test_neighbours_are_those_of_elasticsearch(
    queries: ItemQueries, shop: Shop, add_features: Callable[..., None]
) -> None:
    add_features(ALL)
    found = nearest(queries, VERSION, shop, 3)
    assert sorted(row.query.category for row in found) == ["hat", "pants", "shoes"]
    for row in found:
        assert row.query.cosine is None
        number = int(row.query.name[-1])
        assert len(row.neighbours) == 5
        assert row.query.name not in [card.name for card in row.neighbours]
        assert {card.category for card in row.neighbours} == {row.query.category}
        for card in row.neighbours:
            # cos of the angle between them, in the plane; the shared part adds 0.25 to both dot and norm.
            expected = (np.cos(np.radians(3 * (int(card.name[-1]) - number))) + 0.25) / 1.25
            assert card.cosine == pytest.approx(expected, abs=0.01)
            assert card.picture is not None
            assert card.picture.is_file()
        cosines = [card.cosine for card in row.neighbours]
        assert cosines == sorted(cosines, reverse=True)


def test_features_of_another_version_are_not_found(
    queries: ItemQueries, shop: Shop, add_features: Callable[..., None]
) -> None:
    add_features(ALL[:8], "older")
    add_features(ALL[8:11])
    found = nearest(queries, VERSION, shop, 8)
    assert {row.query.category for row in found} == {"pants"}
    assert [len(row.neighbours) for row in found] == [2, 2, 2]


def test_categories_take_turns(queries: ItemQueries, shop: Shop, add_features: Callable[..., None]) -> None:
    add_features(ALL[6:])  # two hats are left
    found = nearest(queries, VERSION, shop, 8)
    categories = [row.query.category for row in found]
    assert categories == ["hat", "pants", "shoes", "hat", "pants", "shoes", "pants", "shoes"]


def test_the_sheet_is_a_png_with_the_pictures(
    queries: ItemQueries, shop: Shop, add_features: Callable[..., None], tmp_path: Path
) -> None:
    add_features(ALL)
    path = tmp_path / "deep" / "sheet.png"
    assert contact_sheet(queries, VERSION, shop, path, queries=3) == path
    assert [entry.name for entry in path.parent.iterdir()] == ["sheet.png"]
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        colours = {colour: count for count, colour in sheet.convert("RGB").getcolors(1 << 24)}
    # A query and five neighbours each, fitted into the same square, corners rounded.
    for colour in COLOURS.values():
        assert colours[colour] == pytest.approx(6 * 125 * 188, rel=0.02)


def test_without_features_it_says_what_to_run(
    queries: ItemQueries, index: str, shop: Shop, add_features: Callable[..., None], tmp_path: Path
) -> None:
    add_features([])
    with pytest.raises(
        ConfigurationError, match=rf"No document of {index} has a feature of version {VERSION}"
    ):
        contact_sheet(queries, VERSION, shop, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


# Photos that are in no index -------------------------------------------------------------------

LATER = datetime(2026, 3, 5, tzinfo=UTC)


class ByColour:
    """Features of the shop's pictures, whose colours tell their categories; nothing else has one."""

    def of_picture(self, content: bytes) -> Feature:
        with Image.open(io.BytesIO(content)) as picture:
            found = [id_ for id_, colour in COLOURS.items() if picture.getpixel((0, 0)) == colour]
        if not found:
            raise refused(Status.CORRUPT, "no colour of ours")
        return Feature("", np.array(feature(f"{found[0][-3:]}3"), np.float32))


def photo_search(queries: ItemQueries, data_dir: Path, sureness: float) -> PhotoSearch:
    """With a space published that tells the categories apart by their planes."""
    weights = np.zeros((3, 2048), np.float32)
    for row, category_id in enumerate(COLOURS):
        plane = 2 * int(category_id[-2])
        weights[row, plane : plane + 2] = sureness
    space = Space(
        Identity(VERSION),
        Compact(np.zeros(2048, np.float32), np.eye(2048, 128, dtype=np.float32)),
        Codes(np.eye(128, dtype=np.float32)),
        CategoryModel(tuple(COLOURS), weights, np.zeros(3, np.float32)),
    )
    settings = Settings(data_dir=data_dir)
    publish(space, settings)
    return PhotoSearch(queries, Identity(VERSION), settings)


KEPT_BACK = {f"0{plane}0{number}" for plane in (2, 5, 7) for number in (6, 7)}


def test_photos_in_no_index_are_taken_for_their_category_and_find_its_items(
    queries: ItemQueries, shop: Shop, add_features: Callable[..., None], tmp_path: Path
) -> None:
    add_features([item_id for item_id in ALL if item_id not in KEPT_BACK])
    search = photo_search(queries, tmp_path / "data", sureness=20.0)
    found = taken_for(queries, search, ByColour(), shop, LATER, 5)  # type: ignore[arg-type]
    assert [row.query.category for row in found] == ["hat", "pants", "shoes", "hat", "pants"]
    for row in found:
        assert row.query.name == f"taken for {row.query.category} (100%)"
        assert {card.category for card in row.neighbours} == {row.query.category}
        assert len(row.neighbours) == 5
        assert row.neighbours[0].name == "thing 3", "the one with the same feature"
    assert taken_for(queries, search, ByColour(), shop, datetime(2026, 3, 4, tzinfo=UTC), 5) == []  # type: ignore[arg-type]


def test_an_unsure_photo_is_taken_for_two_and_a_broken_one_is_left_out(
    queries: ItemQueries, shop: Shop, add_features: Callable[..., None], tmp_path: Path
) -> None:
    add_features([item_id for item_id in ALL if item_id not in KEPT_BACK])
    Image.new("RGB", (9, 9)).save(shop.image_root / "00000050.png")
    (shop.image_root / "00000070.png").unlink()
    search = photo_search(queries, tmp_path / "data", sureness=0.1)
    found = taken_for(queries, search, ByColour(), shop, LATER, 5)  # type: ignore[arg-type]
    assert [row.query.category for row in found] == ["hat", "hat"]
    first, second = found[0].query.name.removeprefix("taken for ").split(" or ")
    assert first.startswith("hat (")
    assert second.split(" ")[0] in ("pants", "shoes")


@pytest.mark.model
def test_the_photo_sheet_names_what_is_missing(
    queries: ItemQueries, shop: Shop, add_features: Callable[..., None], tmp_path: Path
) -> None:
    path, settings = tmp_path / "photos.png", Settings(data_dir=tmp_path / "data")
    remember_model(settings.data_dir)
    add_features(ALL)
    with pytest.raises(ConfigurationError, match="Run the DAG feature_space"):
        photo_sheet(queries, settings, shop, LATER, path)
    assert not path.exists()


def drawn(path: Path, *rows: Row) -> Image.Image:
    draw_contact_sheet(rows, path)
    with Image.open(path) as sheet:
        return sheet.convert("RGB")


def count(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    return {found: number for number, found in sheet.getcolors(1 << 24)}.get(colour, 0)


def test_missing_and_broken_pictures_leave_a_gap(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    Image.effect_noise((90, 90), 80).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    none = drawn(tmp_path / "none.png", Row(Card(None, "thing", "hat"), []))
    for name in ("nowhere.jpg", "broken.jpg", "cut.jpg"):
        sheet = drawn(tmp_path / "sheet.png", Row(Card(tmp_path / name, "thing", "hat"), []))
        assert sheet.tobytes() == none.tobytes(), name


def test_pictures_are_shown_upright_and_on_white(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.new("RGB", (200, 50), (200, 0, 0))
    turned.save(tmp_path / "turned.png", exif=exif)
    Image.new("RGBA", (80, 80), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    clear = drawn(tmp_path / "clear-sheet.png", Row(Card(tmp_path / "clear.png", "", ""), []))
    empty = drawn(tmp_path / "empty-sheet.png", Row(Card(None, "", ""), []))
    assert count(clear, (0, 0, 0)) == count(empty, (0, 0, 0)) == 0
    sheet = drawn(tmp_path / "turned-sheet.png", Row(Card(tmp_path / "turned.png", "", ""), []))
    red = np.all(np.asarray(sheet) == (200, 0, 0), axis=2)
    rows, columns = np.nonzero(red)
    assert np.ptp(rows) > 3 * np.ptp(columns)


def test_the_same_category_is_marked(tmp_path: Path) -> None:
    query = Card(None, "a", "hat")
    other = drawn(tmp_path / "other.png", Row(query, [Card(None, "b", "shoes", 0.5)]))
    same = drawn(tmp_path / "same.png", Row(query, [Card(None, "b", "hat", 0.5)]))
    green = (58, 140, 100)
    assert count(same, green) > count(other, green) > 0  # the legend shows it once


def test_a_long_name_is_cut_to_two_lines(tmp_path: Path) -> None:
    def ink(name: str) -> np.ndarray:
        sheet = np.asarray(drawn(tmp_path / "sheet.png", Row(Card(None, name, "hat"), [])).convert("L"))
        return np.nonzero(sheet[-120:, :400] < 100)

    rows, columns = ink("an extraordinarily long name of a garment that goes on " * 5)
    short_rows, _ = ink("short")
    assert columns.max() < 44 + 208
    assert np.ptp(rows) < np.ptp(short_rows) + 30


def test_a_sheet_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sheet.png"
    drawn(path, Row(Card(None, "a", "hat"), []))
    before = path.read_bytes()

    def fails(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OSError, match="No space"):
        draw_contact_sheet([Row(Card(None, "b", "hat"), [])], path)
    assert path.read_bytes() == before
