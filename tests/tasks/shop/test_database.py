"""Tests of tasks/shop/database.py against SQLite and PostgreSQL; those of the catalogue and the ledger do
the rest."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
import sqlalchemy as sa

from tasks.errors import ConfigurationError
from tasks.shop import database
from tasks.shop.connections import Connection
from tasks.shop.database import Database, UnfitValueError, batched


@pytest.fixture(params=["sqlite", "timestamptz"], ids=["sqlite", "postgresql"])
def store(request, new_catalogue):
    """A database with a table things(name, number) that a test may look into."""
    store = new_catalogue(request.param)
    store.execute("create table things (name text primary key, number integer check (number < 100))")
    return store


@pytest.fixture
def statements(tmp_path, monkeypatch):
    """Statements of a database called `shelf`, by name."""
    folder = tmp_path / "sql" / "shelf"
    folder.mkdir(parents=True)
    for name, text in {
        "add": "-- Adds: a :thing\ninsert into things (name, number) values (:name, :number)",
        "among": "select name from things where name in :names order by name",
        "all": "select name, number from things order by name",
    }.items():
        (folder / f"{name}.sql").write_text(text)
    monkeypatch.setattr(database, "STATEMENTS", tmp_path / "sql")
    return folder


@pytest.fixture
def shelf(store, statements):  # noqa: ARG001
    return Database(store.connection, "shelf", remedy="Tidy the shelf.")


def things(store):
    with store.engine.connect() as connection:
        return dict(connection.execute(sa.text("select name, number from things")).tuples().all())


@pytest.mark.parametrize("count", [1, 250])
def test_a_statement_runs_once_for_each_of_several_rows(shelf, store, count):
    rows = [{"name": f"O'Brien {number}", "number": number % 100} for number in range(count)]
    with shelf.transaction() as transaction:
        transaction.run("add", rows)
    assert things(store) == {row["name"]: row["number"] for row in rows}


@pytest.mark.parametrize("name", ["a\0", "a\udcff"])
def test_a_text_that_it_cannot_hold_is_unfit(shelf, store, name):
    """As a form or a shell may bring it."""
    if name == "a\0" and store.kind == "sqlite":
        with shelf.transaction() as transaction:
            assert transaction.run("among", {"names": [name]}).all() == []
        return
    with (
        pytest.raises(UnfitValueError, match=r"sql/shelf/among\.sql .* cannot hold"),
        shelf.transaction() as it,
    ):
        it.run("among", {"names": [name]})


@pytest.mark.parametrize(
    "names", [[], ["b"], ["a", "c", "none"], [f"{n}" for n in range(5_000)] + ["c"]], ids=len
)
def test_a_list_may_have_any_length(shelf, names):
    with shelf.transaction() as transaction:
        transaction.run("add", [{"name": name, "number": 1} for name in "abc"])
        rows = transaction.run("among", {"names": names})
        assert [row.name for row in rows] == sorted(set(names) & {"a", "b", "c"})


def test_statements_take_effect_together_or_not_at_all(shelf, store):
    def add(names):
        with shelf.transaction() as transaction:
            for name in names:
                transaction.run("add", {"name": name, "number": 1})
                assert name not in things(store)

    add("ab")
    assert set(things(store)) == {"a", "b"}
    with pytest.raises(ZeroDivisionError):
        add(name if name == "c" else 1 // 0 for name in "cd")
    with pytest.raises(ConfigurationError):
        add(["c", "a"])
    assert set(things(store)) == {"a", "b"}


def test_what_does_not_fit_names_the_file_the_place_and_the_remedy_but_no_values(shelf, store):
    with pytest.raises(ConfigurationError) as refused, shelf.transaction() as transaction:
        transaction.run("add", {"name": "personal", "number": 1_000})
    told = str(refused.value)
    assert told.startswith("sql/shelf/add.sql does not fit the shelf ")
    assert store.connection.schema in told
    assert told.endswith("Tidy the shelf.")
    assert "personal" not in told
    assert refused.value.__cause__ is None


def test_a_table_is_there_or_not(shelf, store):
    with shelf.transaction() as transaction:
        assert transaction.holds("things")
        assert not transaction.holds("thing")
        store.execute("create table thing (id integer)")
        assert transaction.holds("thing")


def test_sqlite_waits_for_another_s_lock(statements, new_catalogue):
    (statements / "patience.sql").write_text("pragma busy_timeout")
    shelf = Database(new_catalogue("sqlite").connection, "shelf", remedy="Tidy the shelf.")
    with shelf.transaction() as transaction:
        assert transaction.run("patience").scalar_one() == 60_000


def test_times_go_in_as_utc_and_sort_as_they_should(shelf, store):
    times = [
        datetime.min.replace(tzinfo=UTC),
        datetime(999, 12, 31, 23, 59, 59, 999_999, UTC),
        datetime(2026, 10, 1, 0, 0, tzinfo=timezone(timedelta(hours=9))),
        datetime(2026, 9, 30, 15, 0, 0, 1, UTC),
        datetime(2026, 9, 30, 15, 0, 0, 10, UTC),
        datetime(9999, 12, 31, tzinfo=UTC),
    ]
    values = [shelf.time(time) for time in times]
    assert values == sorted(values)
    if store.kind == "sqlite":
        assert values[2] == "2026-09-30 15:00:00.000000"
    else:
        assert values[2] == datetime(2026, 9, 30, 15)


def test_an_option_that_there_is_not_is_a_matter_of_the_connection():
    connection = Connection(
        "shelf_db", "postgres", host="127.0.0.1", password="hunter2", extra={"cursor": "x"}
    )
    shelf = Database(connection, "shelf", remedy="Tidy the shelf.")
    told = r"^The connection shelf_db does not fit the shelf .*cursor.* Tidy the shelf\.$"
    with pytest.raises(ConfigurationError, match=told) as refused, shelf.transaction():
        pass
    assert "hunter2" not in str(refused.value)


def test_values_come_in_pages():
    assert [*batched(range(7), 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [*batched(iter("ab"), 2)] == [["a", "b"]]
    assert [*batched([], 2)] == []
    endless = iter(int, 1)
    assert next(batched(endless, 2)) == [0, 0]
