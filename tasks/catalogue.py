"""The shop's catalogue: read-only, streamed, with the statements of sql/catalogue/."""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from tasks.connections import Connection
from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.settings import REPOSITORY

STATEMENTS = REPOSITORY / "sql" / "catalogue"

# Bounds that leave a range open.
EARLIEST = datetime(1, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 12, 31, tzinfo=UTC)

_ROWS_AT_ONCE = 5_000
_SQLITE_UNAVAILABLE = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_CANTOPEN")


@dataclass(frozen=True, slots=True)
class Item:
    """One catalogue row."""

    item_id: str
    item_name: str | None
    category_id: str | None
    img_url: str | None


class Catalogue:
    """The catalogue behind the connection shop_catalog (SQLite or PostgreSQL)."""

    def __init__(self, connection: Connection) -> None:
        self._engine = _engine(connection)
        # For messages; what else a connection holds may be secret.
        self._place = (
            str(_sqlite_path(connection))
            if connection.conn_type == "sqlite"
            else f"{connection.host}:{connection.port or 5432}/{connection.schema}"
        )

    def changed(self, start: datetime, end: datetime) -> Iterator[Item]:
        """Items registered or changed in [start, end), those of one URL together.

        Raises:
            ConfigurationError: the statement does not fit the catalogue, or gives an item twice.
            ServiceUnavailableError: the catalogue does not answer.
        """
        return self._items("changed", start=self._bound(start), end=self._bound(end))

    def of_categories(self, category_ids: Sequence[str], start: datetime, end: datetime) -> Iterator[Item]:
        """Items of these categories registered in [start, end); order and errors as for `changed`."""
        return self._items(
            "categories", category_ids=list(category_ids), start=self._bound(start), end=self._bound(end)
        )

    def urls(self, item_ids: Sequence[str]) -> dict[str, str | None]:
        """The URL that each of these items has now; an item that left the catalogue is absent."""
        with self._rows("urls", ["item_id", "img_url"], item_ids=list(item_ids)) as rows:
            return {str(row.item_id): _text(row.img_url) for row in rows}

    def missing_indexes(self) -> list[str]:
        """What to create so that planning stays fast in a large catalogue; empty when all is there."""
        with self._rows(f"indexes_{self._engine.dialect.name}", ["definition"]) as rows:
            definitions = [re.sub(r'[\s"]|::[a-z ]+', "", str(row.definition).lower()) for row in rows]
        wanted = {
            "(coalesce(updated_at,registered_at)": "on items (coalesce(updated_at, registered_at))",
            "(category_id": "on items (category_id)",
        }
        return [
            f"create index … {index}"
            for start, index in wanted.items()
            if not any(start in definition for definition in definitions)
        ]

    def _items(self, statement: str, **parameters: Any) -> Iterator[Item]:
        previous = None
        with self._rows(statement, Item.__slots__, **parameters) as rows:
            for row in rows:
                # A shop's own statement may give numbers or UUIDs; from here on all are texts.
                item = Item(str(row.item_id), *map(_text, (row.item_name, row.category_id, row.img_url)))
                if previous is not None and item.item_id == previous.item_id:
                    raise ConfigurationError(
                        f"sql/catalogue/{statement}.sql gives item {item.item_id} twice; "
                        "change it so that it gives one row an item."
                    )
                previous = item
                yield item

    def _bound(self, time: datetime) -> datetime | str:
        """A time as this catalogue compares it: UTC, without a zone; text in SQLite."""
        naive = time.astimezone(UTC).replace(tzinfo=None)
        # isoformat, unlike strftime, writes years before 1000 with four digits.
        return naive.isoformat(" ", "microseconds") if self._engine.dialect.name == "sqlite" else naive

    @contextmanager
    def _rows(
        self, statement: str, columns: Sequence[str], **parameters: Any
    ) -> Iterator[sa.CursorResult[Any]]:
        text = sa.text(_without_comments(statement))
        lists = [name for name, value in parameters.items() if isinstance(value, list)]
        text = text.bindparams(*(sa.bindparam(name, expanding=True) for name in lists))
        try:
            with self._engine.connect().execution_options(yield_per=_ROWS_AT_ONCE) as connection:
                rows = connection.execute(text, parameters)
                if absent := sorted(set(columns) - set(rows.keys())):
                    raise ConfigurationError(
                        f"sql/catalogue/{statement}.sql does not give {', '.join(absent)}; it must."
                    )
                yield rows
        except sa.exc.StatementError as error:
            raise self._explained(statement, error) from None

    def _explained(self, statement: str, error: sa.exc.StatementError) -> Exception:
        # The driver's first line says what is wrong and holds no password; SQLAlchemy's text would
        # add the statement with its parameters.
        what = str(error.orig).strip().partition("\n")[0]
        if _may_pass(error):
            return ServiceUnavailableError(
                f"The catalogue {self._place} does not answer: {what}. "
                "Check that it runs and that the connection shop_catalog is right."
            )
        return ConfigurationError(
            f"sql/catalogue/{statement}.sql does not fit the catalogue {self._place}: {what}. "
            "Edit the statement to the shop's tables, or point shop_catalog at the right database."
        )


def _may_pass(error: sa.exc.StatementError) -> bool:
    """Whether the database was not to be had, rather than unable to do what it was asked."""
    # SQLite calls nearly everything an operational error, a slip in the SQL included.
    if isinstance(error.orig, sqlite3.Error):
        return getattr(error.orig, "sqlite_errorname", "").startswith(_SQLITE_UNAVAILABLE)
    return isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _without_comments(name: str) -> str:
    """The SQL of one file; a colon in a comment would name a parameter."""
    lines = (STATEMENTS / f"{name}.sql").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("--"))


def _engine(connection: Connection) -> sa.Engine:
    if connection.conn_type == "sqlite":
        path = _sqlite_path(connection)
        if not path.is_file():
            raise ConfigurationError(
                f"The connection {connection.conn_id} names the SQLite file {path}, which is not there."
            )
        # Opened read-only by the database itself.
        url = sa.URL.create(
            "sqlite", database=f"file:{quote(str(path))}", query={"mode": "ro", "uri": "true"}
        )
        return sa.create_engine(url, poolclass=sa.NullPool)
    if connection.conn_type in ("postgres", "postgresql"):
        url = sa.URL.create(
            "postgresql+psycopg2",
            username=connection.login,
            password=connection.password,
            host=connection.host,
            port=connection.port,
            database=connection.schema,
            query={str(key): str(value) for key, value in connection.extra.items()},
        )
        # In UTC, a bound without a zone means the same against timestamp and timestamptz.
        options = "-c timezone=UTC -c default_transaction_read_only=on"
        arguments = {"options": options, "connect_timeout": 10}
        return sa.create_engine(url, poolclass=sa.NullPool, connect_args=arguments)
    raise ConfigurationError(
        f"The connection {connection.conn_id} has the type {connection.conn_type!r}; "
        "a catalogue is sqlite or postgres."
    )


def _sqlite_path(connection: Connection) -> Path:
    # sqlite:////folder/file puts the path into the schema, sqlite://%2Ffolder%2Ffile into the host.
    return REPOSITORY / (connection.schema or connection.host or "")
