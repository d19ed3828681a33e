"""The shop's catalogue: read-only, streamed, with the statements of sql/catalogue/."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from tasks.errors import ConfigurationError
from tasks.runs.labels import brief
from tasks.shop.connections import Connection
from tasks.shop.database import Database, Transaction, batched, padded

# Bounds that leave a range open.
EARLIEST = datetime(1, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 12, 31, tzinfo=UTC)

LONGEST_ID = 512
"""Bytes; Elasticsearch's own limit of a document's id."""

_ROWS_AT_ONCE = 5_000
_COLUMNS = ("item_id", "item_name", "category_id", "img_url")
_MOST_NAMES, _LONGEST_NAME = 100_000, 200
"""Of categories that people see names of; characters of one."""
_SHOWN_ID = 120
"""Characters of an id that no document can have."""
_SHOWN = "backslashreplace"

Read = Callable[..., str | None]
"""Makes a text of a column's value. Bytes that are no text raise UnicodeDecodeError, or are shown as \\xff
where its second argument is _SHOWN."""


class Item(NamedTuple):
    """One catalogue row."""

    item_id: str
    item_name: str | None
    category_id: str | None
    img_url: str | None
    invalid: str | None = None
    """Why nothing can be done for it: no document can have its id, or a text is in no valid encoding. The
    texts are then such as can be shown, and the id need not be the catalogue's own."""


class Catalogue:
    """The catalogue behind the connection shop_catalog (SQLite, PostgreSQL, MariaDB or MySQL).

    A database may take texts for equal that are not, such as a1 and A1: what it gives is compared again with
    what was asked for.
    """

    def __init__(self, connection: Connection) -> None:
        self._database = Database(
            connection,
            "catalogue",
            kinds=("sqlite", "postgres", "mysql", "mariadb"),
            remedy="Edit the statement to the shop's tables, or point shop_catalog at the right database.",
            read_only=True,
            undecoded=True,
        )
        file = self._database.file
        if file is not None and not file.is_file():
            raise ConfigurationError(
                f"The connection {connection.conn_id} names the SQLite file {file}, which is not there."
            )

    def changed(self, start: datetime, end: datetime) -> Iterator[Item]:
        """Items registered or changed in [start, end), those of one URL together.

        Raises:
            ConfigurationError: the statement does not fit the catalogue, or gives an item twice.
            ServiceUnavailableError: the catalogue does not answer.
        """
        return self._items("changed", {"start": self._database.time(start), "end": self._database.time(end)})

    def changed_ids(self, start: datetime, end: datetime) -> Iterator[str]:
        """The ids of these items; errors as for `changed`, which alone looks for items that come twice."""
        bounds = {"start": self._database.time(start), "end": self._database.time(end)}
        with self._database.transaction() as transaction:
            rows = transaction.run("changed", bounds, at_once=_ROWS_AT_ONCE, within="item_ids")
            (read_id,) = _readers(transaction, rows, ["item_id"])
            for item_id in rows.scalars():
                yield _id(read_id, item_id)[0]

    def of_categories(self, category_ids: Sequence[str], start: datetime, end: datetime) -> Iterator[Item]:
        """Items of these categories registered in [start, end); order and errors as for `changed`."""
        times = {"start": self._database.time(start), "end": self._database.time(end)}
        asked = list(category_ids)
        return self._items("categories", {"category_ids": asked} | times, "category_id", asked)

    def all(self) -> Iterator[Item]:
        """All items, whether they have a category and times or not; order and errors as for `changed`."""
        return self._items("all", {})

    def of_ids(self, item_ids: Sequence[str]) -> Iterator[Item]:
        """These items, without those that left the catalogue; errors as for `changed`.

        Of every 5,000 ids in turn, the items of one URL come together.
        """
        for page in batched(item_ids, _ROWS_AT_ONCE):
            yield from self._items("ids", {"item_ids": page}, "item_id", page)

    def urls(self, item_ids: Sequence[str]) -> dict[str, str | None]:
        """The URL that each of these items has now; an item that left the catalogue is absent."""
        columns = ["item_id", "img_url"]
        with self._database.transaction() as transaction:
            rows = _rows(transaction, "urls", columns, {"item_ids": list(item_ids)})
            item_id, img_url = _readers(transaction, rows, columns)
            return {_id(item_id, row.item_id)[0]: img_url(row.img_url, _SHOWN) for row in rows}

    def category_names(self, statement: Path | None = None) -> dict[str, str]:
        """The names of the categories by id, cut where they are very long; of a category's several names the
        first. A text that is none is shown as \\xff.

        Args:
            statement: the file of the statement; None: sql/catalogue/category_names.sql, without which there
                are no names.

        Raises:
            ConfigurationError: the statement cannot be read, or does not fit the catalogue.
            ServiceUnavailableError: the catalogue does not answer.
        """
        columns = ["category_id", "category_name"]
        names: dict[str, str] = {}
        with self._database.transaction() as transaction:
            if statement is None and not transaction.file_of("category_names").is_file():
                return names
            try:
                rows = _rows(transaction, statement or "category_names", columns, {})
            except OSError as error:
                raise ConfigurationError(f"{transaction.last} cannot be read: {error.strerror}.") from None
            read_id, read_name = _readers(transaction, rows, columns)
            for row in rows:
                category_id, name = read_id(row.category_id, _SHOWN), read_name(row.category_name, _SHOWN)
                if category_id is not None and name and len(names) < _MOST_NAMES:
                    names.setdefault(category_id, brief(" ".join(name.split()), _LONGEST_NAME))
        return names

    def missing_indexes(self) -> list[str]:
        """What to create so that planning stays fast in a large catalogue; empty when all is there."""
        with self._database.transaction() as transaction:
            rows = _rows(transaction, "indexes", ["definition"], {})
            (read,) = _readers(transaction, rows, ["definition"])
            found = {_first_column(str(read(row.definition))) for row in rows}
        wanted = ("updated_at", "registered_at", "category_id")
        return [f"create index … on items ({column})" for column in wanted if column not in found]

    def _items(
        self, statement: str, parameters: Mapping[str, Any], column: str = "", values: Sequence[str] = ()
    ) -> Iterator[Item]:
        """The rows of a statement; where a column is named, those that have one of the values there."""
        with self._database.transaction() as transaction:
            _refuse_duplicates(transaction, statement, parameters)
            rows = _rows(transaction, statement, _COLUMNS, parameters)
            readers = _readers(transaction, rows, _COLUMNS)
            place = _COLUMNS.index(column) if column else None
            asked = set() if place is None else set(map(readers[place], values))
            # A statement may give its columns in any order, and others besides.
            pages: Iterator[Sequence[Sequence[Any]]] = rows.columns(*_COLUMNS).partitions(_ROWS_AT_ONCE)
            for page in pages:
                for item in _items(page, readers):
                    if place is None or item[place] in asked:
                        yield item


def can_be_id(text: str) -> bool:
    """Whether a document can have this id."""
    return 0 < len(text.encode()) <= LONGEST_ID


def _refuse_duplicates(transaction: Transaction, statement: str, parameters: Mapping[str, Any]) -> None:
    """Refuse a statement that gives an item in several rows: of two URLs neither would stay the current one.

    Raises:
        ConfigurationError: naming the statement and an item.
    """
    rows = transaction.run(statement, parameters, within="duplicates")
    (read_id,) = _readers(transaction, rows, ["item_id"])
    for row in rows:
        raise ConfigurationError(
            f"{transaction.last} gives item {_id(read_id, row.item_id)[0]} twice; change it so that it gives "
            "one row an item. docs/your_catalogue.md shows how to choose one of several pictures."
        )


def _rows(
    transaction: Transaction, statement: str | Path, columns: Sequence[str], parameters: Mapping[str, Any]
) -> sa.CursorResult[Any]:
    """The rows of a statement, streamed.

    Raises:
        ConfigurationError: it does not give these columns.
    """
    rows = transaction.run(statement, parameters, at_once=_ROWS_AT_ONCE)
    if absent := sorted(set(columns) - set(rows.keys() if rows.returns_rows else ())):
        raise ConfigurationError(f"{transaction.last} does not give {', '.join(absent)}; it must.")
    return rows


def _first_column(definition: str) -> str:
    """The column that an index begins with, of its columns as they stand between parentheses."""
    return re.split(r"[\s,)]", definition.strip(), maxsplit=1)[0].strip('"`').lower()


def _readers(transaction: Transaction, rows: sa.CursorResult[Any], columns: Sequence[str]) -> list[Read]:
    """What makes a text of a value, for each of these columns.

    A shop's own statement may give numbers or UUIDs; from here on all are texts, without their column's
    padding.
    """
    filled_up = padded(rows)
    return [_reader(transaction.encoding, column in filled_up) for column in columns]


def _reader(encoding: str, filled_up: bool) -> Read:
    def read(value: Any, errors: str = "strict") -> str | None:
        if isinstance(value, bytes):
            text = value.decode(encoding, errors)
        elif value is None:
            return None
        elif isinstance(value, memoryview):  # of PostgreSQL's bytea
            text = bytes(value).decode(encoding, errors)
        else:
            text = str(value)
        return text.rstrip(" ") if filled_up else text

    return read


def _items(page: Sequence[Sequence[Any]], readers: Sequence[Read]) -> Iterator[Item]:
    """The items of these rows, which hold a value for each of the readers."""
    read_id, read_name, read_category, read_url = readers
    for row in page:
        item_id, name, category_id, img_url = row
        item = None
        try:
            text = read_id(item_id)
            # The usual one, as quickly as can be.
            if text and len(text) * 4 <= LONGEST_ID and "\0" not in text:
                item = Item(text, read_name(name), read_category(category_id), read_url(img_url))
        except UnicodeDecodeError:
            pass
        yield item or _looked_at(row, readers)


def _looked_at(row: Sequence[Any], readers: Sequence[Read]) -> Item:
    """The item of a row in which something is unusual, and what, where nothing can be done for it."""
    item_id, invalid = _id(readers[0], row[0])
    problems = [invalid] if invalid else []
    others = []
    for column, read, value in zip(_COLUMNS[1:], readers[1:], row[1:], strict=True):
        try:
            others.append(read(value))
        except UnicodeDecodeError as error:
            others.append(read(value, _SHOWN))
            problems.append(_undecodable(column, error))
    name, category_id, img_url = others
    return Item(item_id, name, category_id, img_url, "; ".join(problems) or None)


def _id(read: Read, value: Any) -> tuple[str, str | None]:
    """An item's id, and why no document can have it, if so: then it is only to be shown."""
    try:
        text = read(value)
    except UnicodeDecodeError as error:
        return brief(str(read(value, _SHOWN)), _SHOWN_ID), _undecodable("item_id", error)
    if text is None:
        return "(null)", "item_id is null"
    if not text:
        return "(empty)", "item_id is empty"
    if "\0" in text:
        return brief(text, _SHOWN_ID), "item_id holds a NUL character"
    if not can_be_id(text):
        return brief(text, _SHOWN_ID), f"item_id is longer than {LONGEST_ID} bytes"
    return text, None


def _undecodable(column: str, error: UnicodeDecodeError) -> str:
    encoding = error.encoding.upper().replace("_", "-")
    shown = brief(error.object.decode(error.encoding, _SHOWN))
    return f"{column} is not valid {encoding}: {shown}"
