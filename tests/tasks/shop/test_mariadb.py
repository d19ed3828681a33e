"""Tests of tasks/shop/catalogue.py and database.py for what MariaDB has of its own."""

import gc
import json
import re
from datetime import timedelta

import pytest
import sqlalchemy as sa

from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.shop.catalogue import EARLIEST, LATEST, Catalogue, Item
from tasks.shop.connections import CATALOGUE, Connection
from tasks.shop.database import UnfitValueError
from tests.shop_fixtures import MARIADB_KINDS, NOON, as_uri


@pytest.fixture(params=MARIADB_KINDS)
def catalogue(request, new_catalogue):
    return new_catalogue(request.param)


@pytest.fixture
def plain(new_catalogue):
    """A catalogue for tests that the type of its times does not touch."""
    return new_catalogue("datetime(6)")


def ids(items):
    return {item.item_id for item in items}


def without_keys(catalogue, *, collation):
    """The same table, which may hold ids that are equal by its collation."""
    catalogue.execute("alter table items drop primary key")
    charset = collation.partition("_")[0]
    catalogue.execute(f"alter table items convert to character set {charset} collate {collation}")


ALIKE = ("a1", "A1", "a1 ", "\N{LATIN SMALL LETTER A WITH ACUTE}1")
COLLATIONS = (
    "utf8mb4_general_ci",
    "utf8mb4_unicode_ci",
    "utf8mb4_bin",
    "utf8mb3_general_ci",
    "latin1_swedish_ci",
)


@pytest.mark.parametrize("collation", COLLATIONS)
def test_ids_that_a_collation_takes_for_one_are_several(plain, collation):
    without_keys(plain, collation=collation)
    for number, item_id in enumerate(ALIKE):
        plain.add(item_id, f"https://a/{number}")
    reader = Catalogue(plain.connection)
    assert ids(reader.changed(EARLIEST, LATEST)) == set(ALIKE)
    for number, item_id in enumerate(ALIKE):
        assert ids(reader.of_ids([item_id])) == {item_id}
        assert reader.urls([item_id])[item_id] == f"https://a/{number}"
    assert ids(reader.of_ids(ALIKE[:2])) == set(ALIKE[:2])
    assert "a" not in reader.urls(["a"])

    plain.add("A1", "https://a/9")
    with pytest.raises(ConfigurationError, match="gives item A1 twice"):
        list(reader.changed(EARLIEST, LATEST))


@pytest.mark.parametrize("collation", COLLATIONS)
def test_categories_that_a_collation_takes_for_one_are_several(plain, collation):
    without_keys(plain, collation=collation)
    for category_id in ALIKE:
        plain.add(f"of {category_id}", "u", category_id=category_id)
    reader = Catalogue(plain.connection)
    for category_id in ALIKE:
        assert ids(reader.of_categories([category_id], EARLIEST, LATEST)) == {f"of {category_id}"}


def test_items_of_one_url_stand_together_whatever_urls_the_collation_takes_for_one(plain):
    urls = ["https://a/B.jpg", "https://a/b.jpg"]
    for number in range(8):
        plain.add(f"{number}", urls[number % 2])
    found = [item.img_url for item in Catalogue(plain.connection).changed(EARLIEST, LATEST)]
    assert sorted(found) == found


@pytest.mark.parametrize("charset", ["utf8mb4", "utf8mb3", "latin1", "euckr"])
def test_texts_come_as_they_are_meant_whatever_their_column_s_character_set(plain, charset):
    texts = {"utf8mb4": "caf\xe9 \N{SHOPPING BAGS}", "euckr": "\N{HANGUL SYLLABLE OS}"}
    text = texts.get(charset, "caf\xe9")
    plain.execute(f"alter table items convert to character set {charset}")
    plain.add(text, f"https://a/{text}", item_name=text, category_id=text)
    reader = Catalogue(plain.connection)
    item = Item(text, text, text, f"https://a/{text}")
    assert list(reader.changed(EARLIEST, LATEST)) == [item]
    assert list(reader.of_ids([text])) == [item]
    assert list(reader.of_categories([text], EARLIEST, LATEST)) == [item]
    assert reader.urls([text]) == {text: f"https://a/{text}"}


@pytest.mark.parametrize("charset", ["latin1", "euckr"])
def test_a_value_that_a_column_s_character_set_lacks_is_no_other_error(plain, charset):
    """MariaDB refuses to compare: Illegal mix of collations."""
    plain.execute(f"alter table items convert to character set {charset}")
    plain.add("a", "u")
    reader = Catalogue(plain.connection)
    with pytest.raises(UnfitValueError, match=r"Illegal mix of collations"):
        list(reader.of_ids(["a", "\N{SHOPPING BAGS}"]))
    assert ids(reader.of_ids(["a", "A"])) == {"a"}


@pytest.mark.parametrize(
    ("column_type", "value"),
    [
        ("tinyint", "-7"),
        ("bigint unsigned", "18446744073709551615"),
        ("uuid", "123e4567-e89b-12d3-a456-426655440000"),
        ("binary(4)", "ab-1"),
        ("enum('a', 'B')", "B"),
    ],
)
def test_ids_of_any_type_are_their_texts(plain, column_type, value):
    plain.execute(f"alter table items modify item_id {column_type}")
    plain.add(value, "u")
    reader = Catalogue(plain.connection)
    assert ids(reader.changed(EARLIEST, LATEST)) == ids(reader.of_ids([value])) == {value}
    assert reader.urls([value]) == {value: "u"}
    if value != value.swapcase():
        assert ids(reader.of_ids([value.swapcase()])) == set()


def test_char_and_binary_columns_are_texts(plain):
    plain.execute("alter table items modify item_id varbinary(20), modify category_id char(20)")
    plain.execute("alter table items modify img_url varbinary(200), modify item_name blob")
    plain.execute("set global sql_mode = concat(@@sql_mode, ',PAD_CHAR_TO_FULL_LENGTH')")
    plain.add("A1", "https://a/\xe9", category_id="shoes", item_name="caf\xe9")
    try:
        reader = Catalogue(plain.connection)
        item = Item("A1", "caf\xe9", "shoes", "https://a/\xe9")
        assert list(reader.changed(EARLIEST, LATEST)) == [item]
        assert list(reader.of_ids(["A1"])) == [item]
        assert list(reader.of_ids(["a1"])) == []
        assert list(reader.of_categories(["shoes"], EARLIEST, LATEST)) == [item]
    finally:
        plain.execute("set global sql_mode = default")


@pytest.mark.parametrize("column_type", ["int", "decimal(4,1)"])
def test_numbers_are_texts_and_no_text_is_taken_for_a_number(plain, column_type):
    plain.execute(f"alter table items modify item_id {column_type}")
    plain.add("7", "u")
    (item,) = Catalogue(plain.connection).changed(EARLIEST, LATEST)
    assert item.item_id == {"int": "7", "decimal(4,1)": "7.0"}[column_type]
    # MariaDB itself finds 7 equal to each of them.
    assert ids(Catalogue(plain.connection).of_ids(["7 shirts", "007", "7.00"])) == set()
    assert ids(Catalogue(plain.connection).of_ids([item.item_id])) == {item.item_id}


def test_a_time_of_zeros_does_not_count(catalogue):
    """As older shops have it instead of null, in columns that may not be null."""
    for column in ("registered_at", "updated_at"):
        catalogue.execute(f"alter table items modify {column} {catalogue.kind} not null default 0")
    zero = "0000-00-00 00:00:00"
    catalogue.execute("set global sql_mode = ''")
    try:
        catalogue.add("never changed", "u", updated_at=zero)
        catalogue.add("never registered", "u", registered_at=zero, updated_at=NOON)
        catalogue.add("neither", "u", registered_at=zero, updated_at=zero)
        catalogue.add("changed since", "u", updated_at=NOON + timedelta(hours=1))
    finally:
        catalogue.execute("set global sql_mode = default")
    reader = Catalogue(catalogue.connection)
    end = NOON + timedelta(hours=1)
    assert ids(reader.changed(NOON, end)) == {"never changed", "never registered"}
    assert ids(reader.of_categories(["00000010"], NOON, end)) == {"never changed", "changed since"}


def test_a_time_without_fractions_is_the_whole_second(new_catalogue):
    catalogue = new_catalogue("datetime(6)")
    catalogue.execute("alter table items modify registered_at datetime")
    catalogue.add("a", "u")
    reader = Catalogue(catalogue.connection)
    assert ids(reader.changed(NOON, NOON + timedelta(seconds=1))) == {"a"}
    assert ids(reader.changed(NOON + timedelta(microseconds=1), LATEST)) == set()
    assert ids(reader.changed(EARLIEST, NOON)) == set()


def sent(catalogue):
    """Rows that the server has sent since it started."""
    with catalogue.engine.connect() as connection:
        return int(connection.execute(sa.text("show global status like 'Rows_sent'")).one()[1])


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_rows_that_are_not_asked_for_are_not_waited_for(plain):
    """A run that ends early, as on an error of Elasticsearch's, does not first read the rest."""
    count = 20_000
    plain.execute(
        "insert into items (item_id, item_name, img_url, registered_at) "
        f"select seq, repeat('x', 1000), 'u', '2026-10-01 12:00:00' from seq_1_to_{count}"
    )
    before = sent(plain)
    rows = Catalogue(plain.connection).changed(EARLIEST, LATEST)
    assert next(rows).img_url == "u"
    with pytest.raises(ZeroDivisionError):
        rows.throw(ZeroDivisionError())
    rows = Catalogue(plain.connection).changed(EARLIEST, LATEST)
    next(rows)
    rows.close()
    del rows
    gc.collect()
    # A page of 5,000 each, and what fits between server and client; all of them would be 40,000.
    assert sent(plain) - before < count


def test_what_does_not_fit_is_named_as_the_database_says_it(plain):
    plain.execute("alter table items rename column img_url to picture")
    with pytest.raises(ConfigurationError) as refused:
        list(Catalogue(plain.connection).changed(EARLIEST, LATEST))
    assert "does not fit" in str(refused.value)
    assert "Unknown column 'img_url'" in str(refused.value)
    assert "1054" not in str(refused.value)


def test_a_database_that_is_not_there_is_a_matter_of_the_connection(plain):
    connection = Connection(
        CATALOGUE, "mariadb", login="root", schema="nowhere", extra=plain.connection.extra
    )
    with pytest.raises(ConfigurationError, match=r"The connection shop_catalog .*Unknown database 'nowhere'"):
        list(Catalogue(connection).changed(EARLIEST, LATEST))


def test_an_option_that_there_is_not_is_a_matter_of_the_connection(plain):
    extra = plain.connection.extra | {"cursor": "x"}
    connection = Connection(CATALOGUE, "mysql", password="hunter2", schema="shop", extra=extra)
    with pytest.raises(ConfigurationError, match=r"The connection shop_catalog .*'cursor'") as refused:
        list(Catalogue(connection).changed(EARLIEST, LATEST))
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("extra", [{"ssl": {"ca": "/nowhere/ca.pem"}}, {"ssl_ca": "/nowhere/ca.pem"}])
def test_certificates_that_are_not_there_are_a_matter_of_the_connection(plain, extra):
    """In the form that Airflow's own connections to MySQL have, and in that of a URI."""
    connection = Connection(CATALOGUE, "mysql", schema="shop", extra=plain.connection.extra | extra)
    with pytest.raises(ConfigurationError, match=r"The connection shop_catalog .*No such file"):
        list(Catalogue(connection).changed(EARLIEST, LATEST))


def test_a_server_that_is_not_there_may_be_there_later():
    with pytest.raises(ServiceUnavailableError, match="does not answer"):
        Catalogue(
            Connection(CATALOGUE, "mysql", schema="shop", extra={"unix_socket": "/nowhere/socket"})
        ).urls(["a"])


def test_a_query_that_was_killed_may_succeed_later(plain, tmp_path, monkeypatch):
    from tasks.shop import database

    folder = tmp_path / "sql" / "catalogue"
    folder.mkdir(parents=True)
    (folder / "urls.sql").write_text(
        "set statement max_statement_time = 0.01 for "
        "select item_id, sleep(5) as img_url from items where item_id in :item_ids"
    )
    monkeypatch.setattr(database, "STATEMENTS", tmp_path / "sql")
    plain.add("a", "u")
    with pytest.raises(ServiceUnavailableError, match="max_statement_time"):
        Catalogue(plain.connection).urls(["a"])


@pytest.mark.parametrize("scheme", ["mysql", "mariadb"])
def test_it_may_be_named_by_a_uri_or_by_json(plain, scheme):
    plain.add("a", "u")
    uri = as_uri(plain.connection).replace("mysql:", f"{scheme}:")
    as_json = {"conn_type": scheme, "login": "root", "schema": plain.connection.schema}
    for value in (uri, json.dumps(as_json | {"extra": dict(plain.connection.extra)})):
        connection = Connection.parse(CATALOGUE, value, named="it")
        assert ids(Catalogue(connection).changed(EARLIEST, LATEST)) == {"a"}


def test_nothing_can_be_written_through_it(plain, tmp_path, monkeypatch):
    from tasks.shop import database

    plain.add("a", "u")
    folder = tmp_path / "sql" / "catalogue"
    folder.mkdir(parents=True)
    monkeypatch.setattr(database, "STATEMENTS", tmp_path / "sql")
    for statement in ("update items set img_url = 'x'", "create table x (a int)", "truncate items"):
        (folder / "urls.sql").write_text(f"{statement} -- :item_ids")
        with pytest.raises(ConfigurationError, match=re.compile("read only", re.IGNORECASE)):
            Catalogue(plain.connection).urls(["a"])
