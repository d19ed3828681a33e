"""The shop's catalogue: read-only, streamed, with the statements of sql/catalogue/."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from tasks.errors import ConfigurationError
from tasks.shop.connections import Connection
from tasks.shop.database import Database, Transaction, batched, padded

# Bounds that leave a range open.
EARLIEST = datetime(1, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 12, 31, tzinfo=UTC)

_ROWS_AT_ONCE = 5_000


class Item(NamedTuple):
    """One catalogue row."""

    item_id: str
    item_name: str | None
    category_id: str | None
    img_url: str | None


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
            (read_id,) = _readers(rows, ["item_id"])
            for item_id in rows.scalars():
                yield str(read_id(item_id))

    def of_categories(self, category_ids: Sequence[str], start: datetime, end: datetime) -> Iterator[Item]:
        """Items of these categories registered in [start, end); order and errors as for `changed`."""
        times = {"start": self._database.time(start), "end": self._database.time(end)}
        asked = list(category_ids)
        return self._items("categories", {"category_ids": asked} | times, "category_id", asked)

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
            item_id, img_url = _readers(rows, columns)
            return {str(item_id(row.item_id)): img_url(row.img_url) for row in rows}

    def missing_indexes(self) -> list[str]:
        """What to create so that planning stays fast in a large catalogue; empty when all is there."""
        with self._database.transaction() as transaction:
            rows = _rows(transaction, f"indexes_{self._database.dialect}", ["definition"], {})
            (read,) = _readers(rows, ["definition"])
            found = {_first_column(str(read(row.definition))) for row in rows}
        wanted = ("updated_at", "registered_at", "category_id")
        return [f"create index … on items ({column})" for column in wanted if column not in found]

    def _items(
        self, statement: str, parameters: Mapping[str, Any], column: str = "", values: Sequence[str] = ()
    ) -> Iterator[Item]:
        """The rows of a statement; where a column is named, those that have one of the values there."""
        with self._database.transaction() as transaction:
            _refuse_duplicates(transaction, statement, parameters)
            rows = _rows(transaction, statement, Item._fields, parameters)
            readers = _readers(rows, Item._fields)
            read_id, read_name, read_category, read_url = readers
            place = Item._fields.index(column) if column else None
            asked = set() if place is None else set(map(readers[place], values))
            # A statement may give its columns in any order, and others besides.
            pages: Iterator[Sequence[Sequence[Any]]] = rows.columns(*Item._fields).partitions(_ROWS_AT_ONCE)
            for page in pages:
                for item_id, name, category_id, img_url in page:
                    item = Item(
                        str(read_id(item_id)), read_name(name), read_category(category_id), read_url(img_url)
                    )
                    if place is None or item[place] in asked:
                        yield item


def _refuse_duplicates(transaction: Transaction, statement: str, parameters: Mapping[str, Any]) -> None:
    """Refuse a statement that gives an item in several rows: of two URLs neither would stay the current one.

    Raises:
        ConfigurationError: naming the statement and an item.
    """
    rows = transaction.run(statement, parameters, within="duplicates")
    (read_id,) = _readers(rows, ["item_id"])
    for row in rows:
        raise ConfigurationError(
            f"{transaction.last} gives item {read_id(row.item_id)} twice; change it so that it gives one row "
            "an item. docs/your_catalogue.md shows how to choose one of several pictures."
        )


def _rows(
    transaction: Transaction, statement: str, columns: Sequence[str], parameters: Mapping[str, Any]
) -> sa.CursorResult[Any]:
    """The rows of a statement, streamed.

    Raises:
        ConfigurationError: it does not give these columns.
    """
    rows = transaction.run(statement, parameters, at_once=_ROWS_AT_ONCE)
    if absent := sorted(set(columns) - set(rows.keys())):
        raise ConfigurationError(f"{transaction.last} does not give {', '.join(absent)}; it must.")
    return rows


def _first_column(definition: str) -> str:
    """The column that an index begins with, of its columns as they stand between parentheses."""
    return re.split(r"[\s,)]", definition.strip(), maxsplit=1)[0].strip('"`').lower()


def _readers(rows: sa.CursorResult[Any], columns: Sequence[str]) -> list[Callable[[Any], str | None]]:
    """What makes a text of a value, for each of these columns.

    A shop's own statement may give numbers or UUIDs; from here on all are texts, without their column's
    padding.
    """
    filled_up = padded(rows)
    return [_unpadded if column in filled_up else _text for column in columns]


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):  # of MariaDB's binary and varbinary
        return value.decode()
    return None if value is None else str(value)


def _unpadded(value: Any) -> str | None:
    text = _text(value)
    return text and text.rstrip(" ")
