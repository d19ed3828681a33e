"""A SQL database behind a connection, and the statements of sql/ that run in it."""

import itertools
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import sqlalchemy as sa

from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.settings import REPOSITORY
from tasks.shop.connections import Connection

STATEMENTS = REPOSITORY / "sql"

PATIENCE = 60
"""Seconds to wait for SQLite's lock while another process writes."""

_OPTIONAL = re.compile(r"^.*:(\w+).* -- optional$", re.MULTILINE)
"""A filter that counts only when its value is given. A condition that says so itself, as in (:any or …),
would keep SQLite from using the column's index."""

_CHAR = {"postgresql": 1042, "mysql": 254}
"""Each database's number of the type `char(n)`; SQLite's has no padding."""
_SQLITE_UNAVAILABLE = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_FULL")
_MYSQL_UNAVAILABLE = {
    *(0, *range(2000, 3000)),  # the client's own
    *(1021, 1037, 1040, 1041, 1053, 1077, *range(1158, 1162)),  # no disk, memory, place, end or network
    *(1203, 1205, 1213, 1226, 1317, 1927, 1969, 3024),  # limits and locks; ended by others or for its time
}
_MYSQL_UNFIT = (1267, 1270, 1271, 1300, 3988)
"""A character of the value is none of the column's character set."""

T = TypeVar("T")


class UnfitValueError(ConfigurationError):
    """A value that a statement was given cannot be one of its column, such as letters among numbers."""


class Database:
    """A SQLite file, or a database of PostgreSQL, MariaDB or MySQL, in UTC, that runs the statements of
    sql/<name>/.

    Args:
        name: what the database is, as messages call it.
        kinds: the types of connections that there are statements for.
        remedy: what to do when it cannot do what a statement asks, in a sentence.
        read_only: let the database itself refuse every write.
        undecoded: give texts as the bytes that they are, be they valid or not; see Transaction.encoding.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        *,
        kinds: Sequence[str] = ("sqlite", "postgres"),
        remedy: str,
        read_only: bool = False,
        undecoded: bool = False,
    ) -> None:
        self._name = name
        self._remedy = remedy
        self._undecoded = undecoded
        self._conn_id = connection.conn_id
        self.file: Path | None = None
        kind = {"postgresql": "postgres"}.get(connection.conn_type, connection.conn_type)
        if kind not in kinds:
            raise ConfigurationError(
                f"The connection {connection.conn_id} has the type {connection.conn_type!r}; "
                f"a {name} is {', '.join(kinds[:-1])} or {kinds[-1]}. What Airflow's form does not offer is "
                f"entered as a URI, in AIRFLOW_CONN_{connection.conn_id.upper()} or by airflow connections "
                "add."
            )
        # What else a connection holds than its place may be secret.
        if kind == "sqlite":
            # sqlite:////folder/file puts the path into the schema, sqlite://%2Ffolder%2Ffile into the host.
            self.file = REPOSITORY / (connection.schema or connection.host or "")
            self._place = str(self.file)
            self._engine = _sqlite(self.file, read_only)
        elif kind == "postgres":
            self._place = f"{connection.host}:{connection.port or 5432}/{connection.schema}"
            self._engine = _postgresql(connection, read_only)
        else:
            server = connection.extra.get("unix_socket") or f"{connection.host}:{connection.port or 3306}"
            self._place = f"{server}/{connection.schema}"
            self._engine = _mysql(connection, read_only)

    def time(self, time: datetime) -> datetime | str:
        """A time as statements take it: UTC, without a zone; text in SQLite."""
        naive = time.astimezone(UTC).replace(tzinfo=None)
        # isoformat, unlike strftime, writes years before 1000 with four digits.
        return naive if self.file is None else naive.isoformat(" ", "microseconds")

    @contextmanager
    def transaction(self) -> Iterator["Transaction"]:
        """Statements that take effect together when the block ends well, or else not at all.

        Raises:
            ConfigurationError: the database cannot do what a statement asks.
            ServiceUnavailableError: the database does not answer, or no longer.
        """
        transaction = None
        try:
            with self._engine.begin() as connection:
                encoding = _leave_undecoded(connection) if self._undecoded else ""
                transaction = Transaction(connection, self._name, encoding)
                with _left_unread(connection):
                    yield transaction
        except sa.exc.StatementError as error:
            asked = transaction.last if transaction else f"The connection {self._conn_id}"
            raise self._explained(error, asked) from None
        except UnicodeError:
            # Of a driver: texts of types of their own, such as citext, are decoded there.
            asked = transaction.last if transaction else f"The connection {self._conn_id}"
            raise ConfigurationError(
                f"{asked} does not fit the {self._name} {self._place}: a text of it is in no valid encoding. "
                f"{self._remedy}"
            ) from None
        except (TypeError, ValueError, AttributeError, OSError) as error:
            if transaction:
                raise
            # As PyMySQL says that it knows no such option, or finds no such file of certificates.
            raise ConfigurationError(
                f"The connection {self._conn_id} does not fit the {self._name} {self._place}: {error}."
            ) from None

    def _explained(self, error: sa.exc.StatementError, asked: str) -> Exception:
        # The driver's first line says what is wrong and holds no password; SQLAlchemy's text would
        # add the statement with its parameters.
        what = str(error.orig.args[-1] if error.orig and error.orig.args else error.orig).strip()
        what = what.partition("\n")[0]
        if _may_pass(error):
            return ServiceUnavailableError(
                f"The {self._name} {self._place} does not answer: {what}. "
                f"Check that it runs and that the connection {self._conn_id} is right."
            )
        unfit = isinstance(error, sa.exc.DataError) or _number(error) in _MYSQL_UNFIT
        return (UnfitValueError if unfit else ConfigurationError)(
            f"{asked} does not fit the {self._name} {self._place}: {what}. {self._remedy}"
        )


class Transaction:
    """Runs statements by the names of their files; made by Database.transaction."""

    def __init__(self, connection: sa.Connection, name: str, encoding: str) -> None:
        self._connection = connection
        self._name = name
        self.encoding = encoding
        """Of the texts, as Python names it, where they are given as bytes; else empty."""
        self.last = f"sql/{name}"
        """The file of the statement that ran last."""

    def run(
        self,
        statement: str | Path,
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        at_once: int = 0,
        within: str = "",
    ) -> sa.CursorResult[Any]:
        """Run a statement of sql/<name>/, see `file_of`, or a file of one's own, once for each of several
        `parameters`.

        Args:
            parameters: values by their names in the statement; a list is for `in`. Without a value, a line
                that ends with "-- optional" is left out.
            at_once: stream the rows, so many at a time, instead of holding all.
            within: another statement, to be run around this one: where it says {statement}.

        Raises:
            UnfitValueError: no text of the database can be one of the values.
        """
        if isinstance(statement, Path):
            self.last = str(statement)
        else:
            self.last = f"sql/{self._name}/{self.file_of(statement).name}"
        sql = self._sql(statement)
        if isinstance(parameters, Mapping):
            given = set(parameters)
            sql = _OPTIONAL.sub(lambda line: line[0] if line[1] in given else "", sql)
        text = sa.text(self._sql(within).replace("{statement}", sql.rstrip("; \n")) if within else sql)
        if isinstance(parameters, Mapping):
            lists = [name for name, value in parameters.items() if isinstance(value, list)]
            # With a type, so that no value at all can be written too.
            text = text.bindparams(*(sa.bindparam(name, expanding=True, type_=sa.String) for name in lists))
        options = {"yield_per": at_once} if at_once else {}
        try:
            return self._connection.execute(text, parameters, execution_options=options)
        except UnicodeDecodeError:  # of what it gives
            raise
        except ValueError:
            raise UnfitValueError(
                f"{self.last} was given a text that the {self._name} cannot hold: one with a NUL, or with "
                "what is no character in its encoding."
            ) from None

    def run_script(self, script: str) -> None:
        """Run the statements of a file of sql/<name>/, each of which a semicolon ends, one after another."""
        self.last = f"sql/{self._name}/{self.file_of(script).name}"
        for statement in self._sql(script).split(";"):
            if statement.strip():
                self._connection.execute(sa.text(statement))

    def _sql(self, statement: str | Path) -> str:
        """The SQL of a statement without comments: a colon in one would name a parameter."""
        file = statement if isinstance(statement, Path) else self.file_of(statement)
        lines = file.read_text(encoding="utf-8").splitlines()
        return "\n".join(line for line in lines if not line.lstrip().startswith("--"))

    def file_of(self, statement: str) -> Path:
        """Where a statement is: in <statement>_<dialect>.sql, of sqlite, postgresql or mysql, else in
        <statement>.sql; an optional one need not be there.
        """
        folder, dialect = STATEMENTS / self._name, self._connection.dialect.name
        own = folder / f"{statement}_{dialect}.sql"
        return own if own.is_file() else folder / f"{statement}.sql"

    def holds(self, table: str) -> bool:
        """Whether the database has this table."""
        return sa.inspect(self._connection).has_table(table)


def padded(rows: sa.CursorResult[Any]) -> set[str]:
    """The columns that are `char(n)`, whose values come filled up with spaces that mean nothing."""
    char = _CHAR.get(rows.context.dialect.name)
    return {name for name, kind, *_ in rows.cursor.description if kind == char} if char else set()


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Values, at most `size` at once: a statement takes only so many."""
    iterator = iter(values)
    while page := list(itertools.islice(iterator, size)):
        yield page


def _may_pass(error: sa.exc.StatementError) -> bool:
    """Whether the database was not to be had, rather than unable to do what it was asked."""
    # SQLite calls nearly everything an operational error, a slip in the SQL included.
    if isinstance(error.orig, sqlite3.Error):
        return getattr(error.orig, "sqlite_errorname", "").startswith(_SQLITE_UNAVAILABLE)
    cut = isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated
    number = _number(error)
    if number is not None:  # nearly all of theirs are operational errors, too
        return cut or number in _MYSQL_UNAVAILABLE
    return cut or isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)


def _number(error: sa.exc.StatementError) -> int | None:
    """MariaDB's or MySQL's number of an error."""
    number = error.orig.args[0] if error.orig and error.orig.args else None
    return number if isinstance(number, int) else None


def _sqlite(path: Path, read_only: bool) -> sa.Engine:
    query = {"mode": "ro" if read_only else "rwc", "uri": "true"}
    url = sa.URL.create("sqlite", database=f"file:{quote(str(path))}", query=query)
    return sa.create_engine(url, poolclass=sa.NullPool, connect_args={"timeout": PATIENCE})


def _postgresql(connection: Connection, read_only: bool) -> sa.Engine:
    from psycopg2 import extensions

    url = _url("postgresql+psycopg2", connection, connection.extra)
    # A network that falls silent would otherwise be waited for by the hour.
    alive = {
        "connect_timeout": 10,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,
    }
    # A database without an encoding holds what it was sent, which nearly always is UTF-8.
    extensions.encodings.update(dict.fromkeys(("SQL_ASCII", "SQLASCII"), "utf_8"))
    # In UTC, a time without a zone means the same against timestamp and timestamptz.
    options = "-c timezone=UTC"
    if read_only:
        # One snapshot: what a statement gives is what another has looked through.
        options += " -c default_transaction_read_only=on -c default_transaction_isolation=repeatable\\ read"
    return sa.create_engine(
        url,
        poolclass=sa.NullPool,
        connect_args={"options": options, **alive},
        # Rows are written many to a round trip.
        executemany_mode="values_plus_batch",
    )


def _mysql(connection: Connection, read_only: bool) -> sa.Engine:
    from pymysql.converters import encoders

    # What is no text, such as {"ssl": {"ca": "/path"}} in JSON, is PyMySQL's own.
    texts = {key: value for key, value in connection.extra.items() if isinstance(value, str)}
    url = _url("mysql+pymysql", connection, texts)
    engine = sa.create_engine(
        url,
        poolclass=sa.NullPool,
        connect_args={
            **{key: value for key, value in connection.extra.items() if key not in texts},
            "charset": "utf8mb4",
            # A network that falls silent would otherwise be waited for without end.
            "connect_timeout": 10,
            "read_timeout": 600,
            "write_timeout": 60,
            # Values come as the texts that they are sent as.
            "conv": encoders,
        },
    )

    @sa.event.listens_for(engine, "connect")
    def set_up(opened: Any, _: object) -> None:
        with opened.cursor() as cursor:
            # In UTC, times mean the same against timestamp and datetime. And the server is to wait for us
            # while another service keeps us from reading on.
            cursor.execute("set time_zone = '+00:00', net_write_timeout = 3600")
            if read_only:
                cursor.execute("set session transaction read only")

    return engine


def _url(driver: str, connection: Connection, options: Mapping[str, Any]) -> sa.URL:
    return sa.URL.create(
        driver,
        username=connection.login,
        password=connection.password,
        host=connection.host,
        port=connection.port,
        database=connection.schema,
        query={str(key): str(value) for key, value in options.items()},
    )


def _leave_undecoded(connection: sa.Connection) -> str:
    """Have texts given as the bytes that they are, from now on; returns their encoding."""
    opened: Any = connection.connection.dbapi_connection
    if connection.dialect.name == "postgresql":
        from psycopg2 import extensions

        extensions.register_type(extensions.BYTES, opened)
        return str(extensions.encodings[opened.encoding])
    if connection.dialect.name == "sqlite":
        opened.text_factory = bytes
    else:
        opened.use_unicode = False
    return "utf_8"


@contextmanager
def _left_unread(connection: sa.Connection) -> Iterator[None]:
    """Cut the connection where the block ends in an error or early: PyMySQL would first read all that a
    statement still gives."""
    opened: Any = connection.connection.dbapi_connection
    try:
        yield
    except BaseException:
        if connection.dialect.name == "mysql":
            if opened._result is not None:
                opened._result.unbuffered_active = False  # else its end would still want to read
            connection.invalidate()
        raise
