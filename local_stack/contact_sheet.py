"""Draws what the index finds: a picture a row, and the five that Elasticsearch says are nearest."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from itertools import chain, islice, zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from local_stack.shop import Shop
from tasks.errors import ConfigurationError
from tasks.inference.model import identity
from tasks.search.queries import Item, ItemQueries, Scope
from tasks.serve.answers import InferenceError
from tasks.serve.features import Features
from tasks.serve.photos import PhotoSearch, Setting
from tasks.settings import Settings
from tasks.space.categories import within

NEIGHBOURS = 5
CANDIDATES_PER_CATEGORY = 1_000
"""How many of a category's items we look through for one that has its feature."""

Feature = NDArray[np.float32]
Colour = tuple[int, int, int]

GROUND: Colour = (250, 249, 247)
PANEL: Colour = (255, 255, 255)
EDGE: Colour = (228, 225, 220)
INK: Colour = (38, 38, 44)
FAINT: Colour = (128, 126, 124)
QUERY: Colour = (52, 72, 112)
SAME: Colour = (58, 140, 100)
SAME_EDGE: Colour = (176, 212, 192)

CELL = 208
"""Pixels of a picture's square panel."""
GAP = 20
CAPTION = 68
MARGIN = 44
HEADER = 148
SMOOTHING = 4
"""Round corners are drawn this much larger, then reduced."""


@dataclass(frozen=True)
class Card:
    """One picture with what is written below it."""

    picture: Path | None
    name: str
    category: str
    cosine: float | None = None
    """Similarity to the row's query, -1 to 1; None for the query itself."""


@dataclass(frozen=True)
class Row:
    """A query and its neighbours, nearest first."""

    query: Card
    neighbours: Sequence[Card]


def contact_sheet(index: ItemQueries, version: str, shop: Shop, path: Path, queries: int = 8) -> Path:
    """Search for the neighbours of some of the shop's items and draw them to `path`, a PNG.

    The queries are items of as many categories as there are, among those with a feature of `version`.

    Raises:
        ConfigurationError: no item has such a feature.
    """
    rows = nearest(index, version, shop, queries)
    if not rows:
        raise ConfigurationError(
            f"No document of {index.name} has a feature of version {version}, so there is nothing to search. "
            "Run nightly_feature_index or category_backfill first."
        )
    draw_contact_sheet(rows, path, subtitle=f"{index.name}, feature {version}")
    return path


def nearest(index: ItemQueries, version: str, shop: Shop, queries: int) -> list[Row]:
    """At most `queries` rows, the categories taking turns; none where no item has a feature of `version`."""
    card = _cards(shop)

    def feature_of(item: Item) -> Feature | None:
        found = index.item(item.item_id) if item.version == version else None
        return found[1] if found else None

    rows = []
    for item, feature in _choose_queries(
        index, shop.newest_items(CANDIDATES_PER_CATEGORY), feature_of, queries
    ):
        found = index.nearest(feature, Scope(version, without=item.item_id), NEIGHBOURS)
        rows.append(Row(card(item), [card(other.item, other.cosine) for other in found]))
    return rows


def photo_sheet(
    index: ItemQueries, settings: Settings, shop: Shop, before: datetime, path: Path, photos: int = 8
) -> Path:
    """Search by photos that are in no index; draw what they were taken for and their neighbours to `path`.

    The photos are those of items of as many categories as there are, registered `before` a time, whose
    documents have no feature.

    Raises:
        ConfigurationError: no space is published, or there is no such item.
    """
    search = PhotoSearch(index, identity(settings), settings)
    space = search.space
    with Features(settings) as features:
        rows = taken_for(index, search, features, shop, before, photos)
    if not rows:
        raise ConfigurationError("Every picture of the shop is in the index, so none is left to search with.")
    draw_contact_sheet(
        rows,
        path,
        title="Search by photo",
        subtitle=f"photos that are in no index; {index.name}, feature space {space.version}",
        query="photo",
    )
    return path


def taken_for(
    index: ItemQueries, search: PhotoSearch, features: Features, shop: Shop, before: datetime, photos: int
) -> list[Row]:
    """At most `photos` rows, the categories taking turns; a row's query says what it was taken for."""
    names, card = shop.category_names(), _cards(shop)

    def feature_of(item: Item) -> Feature | None:
        if item.version or not item.img_url:
            return None
        try:
            return features.of_picture(shop.picture(item.img_url).read_bytes()).vector
        except (OSError, InferenceError):
            return None

    rows = []
    for item, feature in _choose_queries(
        index, shop.newest_items(CANDIDATES_PER_CATEGORY, before=before), feature_of, photos
    ):
        classes = search.classes(feature)
        likeliest = within(classes)
        said = [f"{names.get(one, one)} ({share:.0%})" for one, share in classes if one in likeliest]
        found = search.nearest(feature, Setting(output_limit=NEIGHBOURS))
        query = replace(card(item), name=f"taken for {' or '.join(said)}")
        rows.append(Row(query, [card(other.item, other.cosine) for other in found]))
    return rows


def _cards(shop: Shop) -> Callable[..., Card]:
    names = shop.category_names()

    def card(item: Item, cosine: float | None = None) -> Card:
        category = item.category_id or ""
        picture = shop.picture(item.img_url) if item.img_url else None
        return Card(picture, item.item_name or item.item_id, names.get(category, category), cosine)

    return card


def _choose_queries(
    index: ItemQueries,
    by_category: Mapping[str, Sequence[str]],
    feature_of: Callable[[Item], Feature | None],
    queries: int,
) -> list[tuple[Item, Feature]]:
    """Items with a feature, the categories taking turns."""

    def of_category(item_ids: Sequence[str]) -> Iterator[tuple[Item, Feature]]:
        for item in index.items(item_ids).values():
            if (feature := feature_of(item)) is not None:
                yield item, feature

    in_turn = chain.from_iterable(zip_longest(*map(of_category, by_category.values())))
    return list(islice((found for found in in_turn if found is not None), queries))


def draw_contact_sheet(
    rows: Sequence[Row],
    path: Path,
    *,
    title: str = "Nearest pictures",
    subtitle: str = "",
    query: str = "query",
) -> None:
    """Write the rows to `path` as a PNG, whole or not at all; what is searched with is called `query`."""
    width = 2 * MARGIN + (NEIGHBOURS + 1) * CELL + NEIGHBOURS * GAP + GAP
    height = HEADER + len(rows) * (CELL + CAPTION + GAP) + MARGIN - GAP
    sheet = Image.new("RGB", (width, height), GROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 34), title, fill=INK, font=_font(34))
    pen.text((MARGIN + 2, 78), subtitle, fill=FAINT, font=_font(15))
    _legend(pen, width - MARGIN, 88, query)
    for column in range(NEIGHBOURS + 1):
        text = f"nearest {column}" if column else query
        pen.text((_left(column), 116), text, fill=FAINT if column else QUERY, font=_font(15))
    for number, row in enumerate(rows):
        top = HEADER + number * (CELL + CAPTION + GAP)
        for column, card in enumerate([row.query, *row.neighbours]):
            same = column > 0 and card.category == row.query.category
            edge = QUERY if column == 0 else (SAME_EDGE if same else EDGE)
            _draw_card(sheet, pen, card, _left(column), top, edge, same=same)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("wb") as file:
        sheet.save(file, "PNG", optimize=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _left(column: int) -> int:
    # The query stands a little apart.
    return MARGIN + column * (CELL + GAP) + (GAP if column else 0)


def _legend(pen: ImageDraw.ImageDraw, right: int, middle: int, query: str) -> None:
    text = f"same category as the {query}; the number is the cosine similarity"
    left = right - pen.textlength(text, font=_font(14))
    pen.text((left, middle), text, fill=FAINT, font=_font(14), anchor="lm")
    pen.ellipse((left - 18, middle - 5, left - 8, middle + 5), fill=SAME)


def _draw_card(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, card: Card, left: int, top: int, edge: Colour, *, same: bool
) -> None:
    sheet.paste(edge, (left, top), _rounded(CELL, CELL, 16))
    line = 1 if edge == EDGE else 2
    inner = CELL - 2 * line
    sheet.paste(PANEL, (left + line, top + line), _rounded(inner, inner, 16 - line))
    picture = _open(card.picture)
    if picture is None:
        pen.text((left + CELL / 2, top + CELL / 2), "no picture", fill=FAINT, font=_font(15), anchor="mm")
    else:
        picture = ImageOps.contain(picture, (CELL - 20, CELL - 20), Image.Resampling.LANCZOS)
        at = (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2)
        sheet.paste(picture, at, _rounded(*picture.size, 9))
    name_top = top + CELL + 9
    for number, text in enumerate(_wrapped(pen, card.name, CELL - 4)):
        pen.text((left + 2, name_top + number * 17), text, fill=INK, font=_font(14))
    below = top + CELL + 54
    if same:
        pen.ellipse((left + 2, below - 4, left + 10, below + 4), fill=SAME)
    pen.text((left + (15 if same else 2), below), card.category, fill=FAINT, font=_font(13), anchor="lm")
    if card.cosine is not None:
        pen.text((left + CELL - 2, below), f"{card.cosine:.2f}", fill=INK, font=_font(14), anchor="rm")


def _open(picture: Path | None) -> Image.Image | None:
    """The picture upright, RGB, on white; None where it is missing or broken."""
    if picture is None:
        return None
    try:
        with Image.open(picture) as opened:
            upright = ImageOps.exif_transpose(opened)
            if not upright.has_transparency_data:
                return upright.convert("RGB")
            white = Image.new("RGBA", upright.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return None


def _wrapped(pen: ImageDraw.ImageDraw, text: str, width: float) -> list[str]:
    """The text in at most two lines of `width` pixels, the end left out where it does not fit."""
    font = _font(14)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font=font) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > 2:
        lines = [lines[0], " ".join(lines[1:])]
    return [_shortened(pen, line, width) for line in lines]


def _shortened(pen: ImageDraw.ImageDraw, line: str, width: float) -> str:
    font = _font(14)
    if pen.textlength(line, font=font) <= width:
        return line
    while line and pen.textlength(line + "…", font=font) > width:
        line = line[:-1]
    return line.rstrip() + "…"


@cache
def _rounded(width: int, height: int, radius: int) -> Image.Image:
    """A mask with round corners."""
    large = Image.new("L", (width * SMOOTHING, height * SMOOTHING))
    box = (0, 0, large.width - 1, large.height - 1)
    ImageDraw.Draw(large).rounded_rectangle(box, radius * SMOOTHING, fill=255)
    return large.reduce(SMOOTHING)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)  # type: ignore[return-value]
