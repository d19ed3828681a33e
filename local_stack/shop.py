"""A shop on one machine: its catalogue, its pictures, and the documents its core server writes.

A shop's folder holds `catalogue.db`, `shop.json` and, where we drew them, the pictures. `shop.json` is
written last: with it the shop is whole, without it the next call builds it again.
"""

import contextlib
import csv
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np
import PIL

from local_stack import drawing, garments
from local_stack.garments import CATEGORIES, Photograph, draw
from local_stack.process import free_port, require_free
from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.runs.run import check_category_ids
from tasks.search.document_fields import USUAL_FIELDS, DocumentFields
from tasks.settings import REPOSITORY, Settings

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

NIGHTS = 7
"""Complete nights in which the rendered shop registered its items: calendar days in FEATURES_TIME_ZONE."""

SCHEMA = """
CREATE TABLE items (
    item_id TEXT PRIMARY KEY,
    item_name TEXT NOT NULL,
    category_id TEXT NOT NULL,
    img_url TEXT NOT NULL,
    registered_at TEXT NOT NULL,
    updated_at TEXT
);
CREATE TABLE categories (category_id TEXT PRIMARY KEY, category_name TEXT NOT NULL);
CREATE INDEX items_updated_at ON items (updated_at);
CREATE INDEX items_registered_at ON items (registered_at);
CREATE INDEX items_category_id ON items (category_id);
"""

_MOST_ITEMS = 1_000
"""That a demo computes features of."""

COLUMNS = ("item_id", "item_name", "category_id", "img_path", "registered_at")
"""What an items.csv has to have."""


@dataclass(frozen=True)
class Item:
    """One row of the catalogue; times are aware, `img_path` is below the image root."""

    item_id: str
    item_name: str
    category_id: str
    img_path: str
    registered_at: datetime
    updated_at: datetime | None = None


@dataclass(frozen=True)
class Shop:
    """A shop that is whole."""

    folder: Path
    image_root: Path
    """What the image server has to serve."""
    image_port: int
    """Where: it stays the same between runs, since features are kept by URL."""
    without_document: tuple[str, ...]
    """Ids of items whose documents the core server has yet to write."""

    @classmethod
    def rendered(cls, folder: Path, *, now: datetime, items: int = 640) -> "Shop":
        """The shop whose pictures we draw, built in `folder` unless it is there already.

        Its items were registered over the last seven complete nights before `now`. In the newest of
        them one item's picture is missing, one's is corrupt, and one item has no document; their
        names say so.

        Args:
            now: an aware time.
            items: how many there are besides those three.

        Raises:
            ConfigurationError: IMAGE_PORT is no port, a taken one, or not the one in the catalogue; or
                FEATURES_CATEGORY_PATTERN does not match our categories.
        """
        check_category_ids(list(CATEGORIES), Settings.load())
        made_from = "drawn pictures of named categories"
        if shop := cls._ready(folder, made_from):
            return shop
        port = _choose_port(folder)
        pictures = folder / "pictures"
        _start_over(folder)
        # Pictures of a build that was interrupted.
        shutil.rmtree(pictures, ignore_errors=True)
        planned = _plan(now, items)
        shelf = _draw_all(planned, pictures)
        (pictures / shelf[-3].img_path).unlink()
        _cut_short(pictures / shelf[-2].img_path)
        _write_catalogue(folder / "catalogue.db", shelf, CATEGORIES, port)
        return cls._finish(folder, made_from, pictures, port, (shelf[-1].item_id,))

    @classmethod
    def from_folder(cls, folder: Path, images: Path) -> "Shop":
        """The shop of the pictures and the items.csv in `images`, with its state in `folder`.

        The catalogue is built again when items.csv has changed. A picture that is not there is the
        image server's 404, not an error here.

        Raises:
            ConfigurationError: naming what is wrong with the folder, the file or IMAGE_PORT.
        """
        images = images.resolve()
        if not images.is_dir():
            raise ConfigurationError(
                f"There is no folder {images}. Name one that has an items.csv: IMAGES=FOLDER."
            )
        table = images / "items.csv"
        if not table.is_file():
            raise ConfigurationError(
                f"{images} has no items.csv. It needs one with the columns {', '.join(COLUMNS)}."
            )
        content = table.read_bytes()
        names = _category_names(images)
        digest = hashlib.sha256(content + json.dumps(names).encode()).hexdigest()
        made_from = f"{images} {digest}"
        if shop := cls._ready(folder, made_from):
            return shop
        items = list(_read_items(table, content, images))
        port = _choose_port(folder)
        _start_over(folder)
        _write_catalogue(folder / "catalogue.db", items, names or {}, port)
        return cls._finish(folder, made_from, images, port, ())

    @classmethod
    def _ready(cls, folder: Path, made_from: str) -> "Shop | None":
        state = _read_state(folder)
        if state.get("made_from") != made_from or not (folder / "catalogue.db").is_file():
            return None
        _choose_port(folder)  # refuses an IMAGE_PORT that the catalogue's URLs contradict
        return cls(
            folder, folder / state["image_root"], state["image_port"], tuple(state["without_document"])
        )

    @classmethod
    def _finish(
        cls, folder: Path, made_from: str, image_root: Path, port: int, without_document: tuple[str, ...]
    ) -> "Shop":
        state = {
            "made_from": made_from,
            # Drawn pictures are named from the shop's folder, which may be moved.
            "image_root": str(
                image_root.relative_to(folder) if image_root.is_relative_to(folder) else image_root
            ),
            "image_port": port,
            "without_document": without_document,
        }
        _write_whole(folder / "shop.json", json.dumps(state, indent=2).encode())
        return cls(folder, image_root, port, without_document)

    @property
    def catalog_path(self) -> Path:
        """The catalogue, a SQLite file."""
        return self.folder / "catalogue.db"

    @property
    def image_hosts(self) -> str:
        """The image server as FEATURES_IMAGE_HOSTS names it."""
        return f"127.0.0.1:{self.image_port}"

    def newest_night(self, *, now: datetime | None = None) -> tuple[datetime, datetime]:
        """Start and end (UTC) of the shop's newest day that is over and has items registered or changed.

        Raises:
            ConfigurationError: there is none.
        """
        today = _midnight(now or datetime.now(UTC))
        with _reading(self.catalog_path) as catalogue:
            (newest,) = catalogue.execute(
                "SELECT max(changed_at) FROM"
                " (SELECT max(registered_at, coalesce(updated_at, registered_at)) AS changed_at FROM items)"
                " WHERE changed_at < ?",
                (_as_text(today),),
            ).fetchone()
        if newest is None:
            raise ConfigurationError(
                f"No item of {self.catalog_path} is from before today ({today.tzinfo}), so there is no "
                "complete night to index. Correct registered_at, or wait until tomorrow."
            )
        start = _midnight(datetime.fromisoformat(newest).replace(tzinfo=UTC))
        return start.astimezone(UTC), (start + timedelta(days=1)).astimezone(UTC)

    def most_items(self) -> tuple[list[str], datetime]:
        """The categories, and a time (UTC) since which nine tenths of the items were registered, or 1,000 of
        many more: what a demo fills the index with, so that some photos are in none.
        """
        with _reading(self.catalog_path) as catalogue:
            categories = catalogue.execute("SELECT DISTINCT category_id FROM items ORDER BY category_id")
            category_ids = [str(category_id) for (category_id,) in categories]
            (since,) = catalogue.execute(
                "SELECT registered_at FROM items ORDER BY registered_at DESC"
                " LIMIT 1 OFFSET (SELECT max(min(count(*) * 9 / 10, ?) - 1, 0) FROM items)",
                (_MOST_ITEMS,),
            ).fetchone()
        return category_ids, datetime.fromisoformat(since).replace(tzinfo=UTC)

    def newest_items(self, limit: int, *, before: datetime | None = None) -> dict[str, list[str]]:
        """Ids of each category's newest items, at most `limit`, by category id; `before` leaves out those
        registered at this time or later.
        """
        newest: dict[str, list[str]] = {}
        with _reading(self.catalog_path) as catalogue:
            for category_id, item_id in catalogue.execute(
                "SELECT category_id, item_id FROM ("
                " SELECT category_id, item_id,"
                " row_number() OVER (PARTITION BY category_id ORDER BY registered_at DESC, item_id) AS place"
                " FROM items WHERE registered_at < ?) WHERE place <= ? ORDER BY category_id, place",
                (_as_text(before or datetime.max.replace(tzinfo=UTC)), limit),
            ):
                newest.setdefault(category_id, []).append(item_id)
        return newest

    def category_names(self) -> dict[str, str]:
        """Names by category id, as far as the shop has them: ours, or those of a categories.csv."""
        names = _category_names(self.image_root)
        return CATEGORIES if names is None else names

    def picture(self, img_url: str) -> Path:
        """The file behind one of the shop's picture URLs; it need not be there."""
        return self.image_root / unquote(urlsplit(img_url).path).lstrip("/")

    def write_documents(
        self, client: "Elasticsearch", index: str, fields: DocumentFields = USUAL_FIELDS
    ) -> int:
        """Do what the core server does: write a document for each item that has none.

        Documents that are there keep all they have. Without an index, Elasticsearch makes one with
        a mapping of its own, as happens in most shops.

        Returns:
            How many documents were written.

        Raises:
            ServiceUnavailableError: Elasticsearch did not take one.
        """
        from elastic_transport import TransportError
        from elasticsearch import ApiError, helpers

        written = 0
        try:
            for ok, answer in helpers.streaming_bulk(
                client, self._documents(index, fields), raise_on_error=False, max_retries=5
            ):
                result = answer["create"]
                written += ok
                if not ok and result["status"] != 409:
                    raise ServiceUnavailableError(
                        f"Elasticsearch refused the document of item {result['_id']}: {result['error']}."
                    )
            client.indices.refresh(index=index)
        except (ApiError, TransportError) as error:
            raise ServiceUnavailableError(f"Elasticsearch took no documents for {index}: {error}.") from error
        return written

    def _documents(self, index: str, fields: DocumentFields) -> Iterator[dict[str, Any]]:
        columns = ("item_id", "item_name", "category_id", "img_url")
        with _reading(self.catalog_path) as catalogue:
            for row in catalogue.execute(f"SELECT {', '.join(columns)} FROM items ORDER BY item_id"):
                if row[0] not in self.without_document:
                    source = fields.document(dict(zip(columns, row, strict=True)))
                    yield {"_op_type": "create", "_index": index, "_id": row[0], "_source": source}


# State ------------------------------------------------------------------------------------------


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((folder / "shop.json").read_bytes())
    except FileNotFoundError:
        return {}
    return state


def _start_over(folder: Path) -> None:
    """Make the shop unfinished, so that an interrupted build is seen; its port stays known."""
    folder.mkdir(parents=True, exist_ok=True)
    if state := _read_state(folder):
        _write_whole(folder / "shop.json", json.dumps({"image_port": state["image_port"]}).encode())


def _choose_port(folder: Path) -> int:
    """The shop's port: the one it has, else IMAGE_PORT, else a free one."""
    known: int | None = _read_state(folder).get("image_port")
    wanted = os.environ.get("IMAGE_PORT", "")
    if wanted and not (wanted.isdecimal() and 0 < int(wanted) < 65536):
        raise ConfigurationError(f"IMAGE_PORT={wanted!r} is not a port; choose a number from 1 to 65535.")
    if known:
        if wanted and int(wanted) != known:
            raise ConfigurationError(
                f"IMAGE_PORT={wanted}, but the catalogue in {folder} and the documents made from it name "
                f"pictures at port {known}. Unset IMAGE_PORT, or delete that folder to build the shop anew."
            )
        return known
    if wanted:
        require_free(int(wanted), "the shop's image server", "IMAGE_PORT")
        return int(wanted)
    return free_port()


def _write_whole(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


# Catalogue --------------------------------------------------------------------------------------


def _as_text(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def _midnight(time: datetime) -> datetime:
    """The start of the shop's day that a time is in."""
    zone = Settings.load().time_zone
    return time.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as catalogue:
        yield catalogue


def _write_catalogue(path: Path, items: Sequence[Item], names: Mapping[str, str], port: int) -> None:
    """Write the catalogue whole: whoever reads the old one meanwhile is not disturbed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(temporary)) as catalogue, catalogue:
        catalogue.executescript(SCHEMA)
        catalogue.executemany("INSERT INTO categories VALUES (?, ?)", names.items())
        catalogue.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)",
            (
                (
                    item.item_id,
                    item.item_name,
                    item.category_id,
                    f"http://127.0.0.1:{port}/{quote(item.img_path)}",
                    _as_text(item.registered_at),
                    item.updated_at and _as_text(item.updated_at),
                )
                for item in items
            ),
        )
    temporary.replace(path)


# A shop from a folder ---------------------------------------------------------------------------


def _category_names(images: Path) -> dict[str, str] | None:
    """Names by category id, of a categories.csv; None where there is none."""
    table = images / "categories.csv"
    if not table.is_file():
        return None
    with table.open(encoding="utf-8-sig", newline="") as file:
        return {row["category_id"]: row["category_name"] for row in csv.DictReader(file)}


def _read_items(table: Path, content: bytes, images: Path) -> Iterator[Item]:
    try:
        lines = io.StringIO(content.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{table} is not UTF-8 ({error}). Save it as UTF-8.") from None
    reader = csv.DictReader(lines, restval="")
    if missing := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
        raise ConfigurationError(
            f"{table} has no column {', '.join(missing)}. "
            f"Its first line must name the columns {', '.join(COLUMNS)}."
        )
    settings = Settings.load()
    first_line: dict[str, int] = {}
    for row in reader:
        where = f"{table}, line {reader.line_num}"
        item = _read_item(row, where, images, settings)
        if item.item_id in first_line:
            raise ConfigurationError(
                f"{where}: item_id {item.item_id!r} is that of line {first_line[item.item_id]} already. "
                "Give each item an id of its own."
            )
        first_line[item.item_id] = reader.line_num
        yield item
    if not first_line:
        raise ConfigurationError(f"{table} names no items. Add a line for each.")


def _read_item(row: dict[str, str], where: str, images: Path, settings: Settings) -> Item:
    if not row["item_id"]:
        raise ConfigurationError(f"{where}: item_id is empty. Give each item an id.")
    if not settings.is_category_id(row["category_id"]):
        raise ConfigurationError(
            f"{where}: category_id {row['category_id']!r} does not match FEATURES_CATEGORY_PATTERN, "
            f"{settings.category_pattern!r}. A spreadsheet may have dropped its leading zeros: save that "
            "column as text. If the ids are right, set the pattern to what they look like."
        )
    path = row["img_path"].lstrip("/")
    if not path or not (images / path).resolve().is_relative_to(images):
        raise ConfigurationError(
            f"{where}: img_path {row['img_path']!r} is not below {images}. Name a file in that folder."
        )
    try:
        registered_at = datetime.fromisoformat(row["registered_at"])
    except ValueError:
        registered_at = None
    if registered_at is None or registered_at.tzinfo is None:
        raise ConfigurationError(
            f"{where}: registered_at {row['registered_at']!r} is not a time with its offset such as "
            "2026-10-01T02:14:26+00:00. Write it so."
        )
    return Item(row["item_id"], row["item_name"], row["category_id"], path, registered_at)


# The rendered shop ------------------------------------------------------------------------------

_POPULARITY = {
    "t-shirt": 15,
    "dress": 13,
    "shirt": 11,
    "pants": 11,
    "longsleeve": 10,
    "shoes": 10,
    "outwear": 9,
}
_PER_HOUR = (3, 1, 1, 0, 0, 1, 2, 4, 7, 10, 12, 12, 9, 11, 12, 12, 11, 10, 9, 8, 8, 7, 6, 5)
"""How busy each hour of a day is."""
_CHANGED_LATER = 0.05
"""Share of items whose row was changed after the night they were registered in."""


def _plan(now: datetime, total: int) -> list[Item]:
    """The items without names and pictures; the last three are those with something wrong."""
    rng = random.Random(4816)
    today = _midnight(now)

    def moment(nights_ago: int) -> datetime:
        hour = rng.choices(range(24), _PER_HOUR)[0]
        return today + timedelta(days=-nights_ago, hours=hour, microseconds=rng.randrange(3_600_000_000))

    identity = _ids(rng)
    # Each category is there before chance decides.
    weights = [_POPULARITY.get(name, 7) for name in CATEGORIES.values()]
    categories = [*CATEGORIES, *rng.choices(list(CATEGORIES), weights, k=total)]
    nights = sorted((number % NIGHTS + 1 for number in range(total)), reverse=True)
    items = []
    for night, category_id in zip(nights, categories, strict=False):
        later = night > 1 and rng.random() < _CHANGED_LATER
        updated_at = moment(rng.randint(1, night - 1)) if later else None
        items.append(Item(next(identity), "", category_id, "", moment(night), updated_at))
    by_name = {name: category_id for category_id, name in CATEGORIES.items()}
    items += [
        Item(next(identity), "", by_name[name], "", moment(1)) for name in ("shirt", "t-shirt", "dress")
    ]
    return items


def _ids(rng: random.Random) -> Iterator[str]:
    """Ids that differ: mostly ten digits, some with leading zeros or letters."""
    for number in range(4_816_000_000, 4_816_999_000, 17):
        text = str(number + rng.randrange(17))
        yield rng.choices((text, f"00{text[2:]}", f"KR-{text[3:]}"), (90, 6, 4))[0]


def _draw_all(items: Sequence[Item], pictures: Path) -> list[Item]:
    """The items with their names, their pictures drawn."""
    seeds = list(range(len(items)))
    # What shops find broken is a JPEG; the corrupt item takes the first seed that gives one.
    corrupt = items[-2].category_id
    seeds[-2] = next(seed for seed in count(seeds[-2]) if draw(corrupt, seed).extension == "jpg")
    for category in CATEGORIES.values():
        (pictures / category).mkdir(parents=True)
    # Spawned, not forked: whoever calls this may have threads.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawn) as pool:
        drawn = list(pool.map(_draw_one, items, seeds, repeat(pictures), repeat(_kept()), chunksize=8))
    flaws = [""] * (len(items) - 3) + [" (picture missing)", " (picture corrupt)", " (no document)"]
    return [
        replace(item, item_name=f"{name} no. {number}{flaw}", img_path=img_path)
        for number, (item, flaw, (name, img_path)) in enumerate(
            zip(items, flaws, drawn, strict=True), start=1
        )
    ]


def _draw_one(item: Item, seed: int, pictures: Path, kept: Path) -> tuple[str, str]:
    """Draw an item's picture; returns its name and its path below the pictures."""
    photograph = _drawn(item.category_id, seed, kept)
    img_path = f"{CATEGORIES[item.category_id]}/{item.item_id}.{photograph.extension}"
    (pictures / img_path).write_bytes(photograph.data)
    return photograph.name, img_path


def _kept() -> Path:
    """Where drawn pictures are kept for the next shop, by what draws them."""
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (drawing, garments))
    digest = hashlib.sha256(code + PIL.__version__.encode() + np.__version__.encode())
    return REPOSITORY / "var" / "drawn" / digest.hexdigest()[:16]


def _drawn(category_id: str, seed: int, kept: Path) -> Photograph:
    """A picture, which is only drawn where it is not kept: that takes a tenth of a second."""
    file = kept / f"{category_id}-{seed}"
    try:
        name, extension, data = file.read_bytes().split(b"\n", 2)
        return Photograph(name.decode(), data, extension.decode())
    except FileNotFoundError:
        photograph = draw(category_id, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(file, f"{photograph.name}\n{photograph.extension}\n".encode() + photograph.data)
        return photograph


def _cut_short(picture: Path) -> None:
    """Leave a picture as a broken upload does: it starts like one and ends in the middle."""
    content = picture.read_bytes()
    picture.write_bytes(content[: len(content) // 3])
