"""Tests of tasks/shop/catalogue.py against SQLite, and PostgreSQL and MariaDB with both types of time."""

import dataclasses
import itertools
import json
import re
import shutil
import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa

from local_stack.process import free_port
from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.shop import catalogue as module
from tasks.shop import database
from tasks.shop.catalogue import EARLIEST, LATEST, Catalogue, Item
from tasks.shop.connections import CATALOGUE, Connection
from tasks.shop.database import UnfitValueError
from tests.interpreter import peak_of
from tests.shop_fixtures import CATALOGUE_KINDS, MARIADB_KINDS, NOON, POSTGRES_KINDS

MICROSECOND = timedelta(microseconds=1)
SEOUL = timezone(timedelta(hours=9))


def ids(items):
    return {item.item_id for item in items}


@pytest.fixture
def statements(tmp_path, monkeypatch):
    """A folder of statements that a test may edit, as a shop does."""
    shutil.copytree(database.STATEMENTS, tmp_path / "sql")
    monkeypatch.setattr(database, "STATEMENTS", tmp_path / "sql")
    return tmp_path / "sql" / "catalogue"


@pytest.mark.parametrize("zone", [UTC, SEOUL], ids=["UTC bounds", "Seoul bounds"])
def test_start_is_included_and_end_is_not_to_the_microsecond(catalogue, zone):
    end = NOON + timedelta(hours=1)
    for item_id, time in {
        "just before": NOON - MICROSECOND,
        "on start": NOON,
        "just after start": NOON + MICROSECOND,
        "just before end": end - MICROSECOND,
        "on end": end,
    }.items():
        catalogue.add(item_id, "u", registered_at=time)

    reader = Catalogue(catalogue.connection)
    expected = {"on start", "just after start", "just before end"}
    bounds = NOON.astimezone(zone), end.astimezone(zone)
    assert ids(reader.changed(*bounds)) == expected
    assert ids(reader.of_categories(["00000010"], *bounds)) == expected


def test_the_later_of_change_and_registration_counts(catalogue):
    end = NOON + timedelta(hours=1)
    times = {
        "long before": NOON - timedelta(days=3),
        "just before": NOON - MICROSECOND,
        "start": NOON,
        "within": NOON + timedelta(minutes=5),
        "just before end": end - MICROSECOND,
        "end": end,
        "long after": end + timedelta(days=3),
        "null": None,
    }
    rows, expected = [], set()
    for registered, changed in itertools.product(times, times):
        item_id = f"{registered}, changed {changed}"
        both = {"registered_at": times[registered], "updated_at": times[changed]}
        rows.append({"item_id": item_id, "img_url": "u"} | both)
        known = [time for time in both.values() if time]
        expected |= {item_id} if known and NOON <= max(known) < end else set()
    catalogue.add_all(rows)
    reader = Catalogue(catalogue.connection)
    assert ids(reader.changed(NOON, end)) == expected
    assert sorted(reader.changed_ids(NOON, end)) == sorted(expected)
    # Published on a schedule, after it was changed.
    assert "within, changed long before" in expected
    # A category's range is about registration alone.
    of_category = ids(reader.of_categories(["00000010"], NOON, end))
    assert of_category == {f"{r}, changed {c}" for r in ("start", "within", "just before end") for c in times}


def test_open_ranges_hold_everything(catalogue):
    far = 2037 if catalogue.kind == "timestamp(6)" else 2999  # as far as MariaDB's goes
    catalogue.add("old", "u", registered_at=datetime(1970, 1, 2, tzinfo=UTC))
    catalogue.add("far", "u", registered_at=datetime(far, 1, 1, tzinfo=UTC))
    assert ids(Catalogue(catalogue.connection).changed(EARLIEST, LATEST)) == {"old", "far"}


@pytest.mark.xdist_group("time_zone")  # MariaDB's is the whole server's, which all workers share
@pytest.mark.parametrize("kind", [*POSTGRES_KINDS, *MARIADB_KINDS])
def test_the_database_s_own_time_zone_moves_no_bound(new_catalogue, kind):
    catalogue = new_catalogue(kind)
    catalogue.add("in", "u", registered_at=NOON)
    catalogue.add("out", "u", registered_at=NOON + timedelta(hours=1))
    if kind in POSTGRES_KINDS:
        catalogue.execute(f"alter database \"{catalogue.connection.schema}\" set timezone = 'Asia/Seoul'")
        asked, zone = "show timezone", "Asia/Seoul"
    else:
        catalogue.execute("set global time_zone = '+09:00'")
        asked, zone = "select @@global.time_zone", "+09:00"
    try:
        with catalogue.engine.connect() as connection:
            assert connection.scalar(sa.text(asked)) == zone
        found = ids(Catalogue(catalogue.connection).changed(NOON, NOON + timedelta(hours=1)))
    finally:
        if kind in MARIADB_KINDS:
            catalogue.execute("set global time_zone = 'SYSTEM'")
    assert found == {"in"}


def test_rows_come_as_they_are_those_of_one_url_together(catalogue):
    catalogue.add("0007", "https://b", item_name="ünïcode 셔츠")
    catalogue.add("KR-7a", "https://a", item_name=None)
    catalogue.add("7", "https://b", category_id="00000030")
    catalogue.add("no url", None)
    catalogue.add("empty url", "")

    items = list(Catalogue(catalogue.connection).changed(EARLIEST, LATEST))

    assert sorted(items, key=lambda item: item.item_id) == [
        Item("0007", "ünïcode 셔츠", "00000010", "https://b"),
        Item("7", "blue shirt", "00000030", "https://b"),
        Item("KR-7a", None, "00000010", "https://a"),
        Item("empty url", "blue shirt", "00000010", ""),
        Item("no url", "blue shirt", "00000010", None),
    ]
    urls = [item.img_url for item in items]
    assert len(urls) - 1 == sum(a != b for a, b in itertools.pairwise(urls)) + 1


def test_categories_are_exactly_those_asked_for(catalogue):
    catalogue.add("a", "u", category_id="00000010")
    catalogue.add("b", "u", category_id="00000020")
    catalogue.add("c", "u", category_id="10")
    reader = Catalogue(catalogue.connection)
    assert ids(reader.of_categories(["00000010"], EARLIEST, LATEST)) == {"a"}
    assert ids(reader.of_categories(["00000010", "00000020"], EARLIEST, LATEST)) == {"a", "b"}


@pytest.mark.parametrize("attempt", ["') or 1=1 --", "'; drop table items; --", "%(x)s :start", '"'])
def test_values_stay_values(catalogue, attempt):
    catalogue.add("innocent", "u")
    catalogue.add(attempt, "v", category_id=attempt)
    reader = Catalogue(catalogue.connection)
    assert ids(reader.of_categories([attempt], EARLIEST, LATEST)) == {attempt}
    assert reader.urls([attempt]) == {attempt: "v"}
    assert ids(reader.of_ids([attempt])) == {attempt}
    assert ids(reader.changed(EARLIEST, LATEST)) == {"innocent", attempt}


def test_urls_of_now(catalogue):
    catalogue.add("a", "https://a")
    catalogue.add("none", None)
    catalogue.add("other", "https://other")
    assert Catalogue(catalogue.connection).urls(["a", "none", "left"]) == {"a": "https://a", "none": None}


def test_items_by_their_ids(catalogue, monkeypatch):
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 3)
    for number in range(7):
        catalogue.add(f"{number:03}", f"https://{number % 2}", item_name=f"item {number}")
    catalogue.add("O'Brien", None, category_id="00000030")
    catalogue.add("other", "https://other")
    asked_for = ["006", "left", "003", "000", "O'Brien", "002", "001", "004", "005"]

    items = list(Catalogue(catalogue.connection).of_ids(asked_for))

    assert sorted(items, key=lambda item: item.item_id) == [
        *(Item(f"{n:03}", f"item {n}", "00000010", f"https://{n % 2}") for n in range(7)),
        Item("O'Brien", "blue shirt", "00000030", None),
    ]
    # The URLs of each three of them stand together.
    assert [item.item_id for item in items][:2] == ["006", "003"]
    assert [item.item_id for item in items][-3:] == ["004", "001", "005"]
    assert list(Catalogue(catalogue.connection).of_ids([])) == []


def test_any_number_of_ids_may_be_asked_for(catalogue):
    add_many(catalogue, 12_000, "x")
    asked_for = [str(number) for number in range(40_000)]
    assert ids(Catalogue(catalogue.connection).of_ids(asked_for)) == set(asked_for[1:12_001])


def test_nothing_can_be_written_through_it(catalogue, statements):
    catalogue.add("a", "u")
    statement = (
        "insert into items (item_id, registered_at) select 'b', '2026-10-01' where 'a' in :item_ids "
        "returning item_id, img_url"
    )
    if catalogue.kind in POSTGRES_KINDS:
        # There the cursor takes a select alone, so the insert has to hide in one.
        catalogue.execute(
            "create function hidden() returns text language sql volatile as "
            "$$ insert into items (item_id, registered_at) values ('b', now()) returning item_id $$"
        )
        statement = "select hidden() as item_id, null as img_url where 'a' in :item_ids"
    (statements / "urls.sql").write_text(statement)
    with pytest.raises(ConfigurationError, match=re.compile("read[- ]?only", re.IGNORECASE)):
        Catalogue(catalogue.connection).urls(["a"])
    with catalogue.engine.connect() as connection:
        assert connection.scalar(sa.text("select count(*) from items")) == 1


def add_many(catalogue, count, name):
    recursive = f"with recursive n(i) as (select 1 union all select i + 1 from n where i < {count})"
    numbers, text, time = (
        (f"({recursive} select i from n) as n", "text", "12:00:00.000000")
        if catalogue.kind == "sqlite"
        else (f"generate_series(1, {count}) as n(i)", "text", "12:00:00+00")
        if catalogue.kind in POSTGRES_KINDS
        else (f"(select seq as i from seq_1_to_{count}) as n", "char(9)", "12:00:00")
    )
    catalogue.execute(
        "insert into items (item_id, item_name, img_url, registered_at) "
        f"select cast(i as {text}), '{name}', cast(i as {text}), '2026-10-01 {time}' from {numbers}"
    )


def peak_of_reading(catalogue, work):
    """Bytes of Python's memory that work with `rows`, all that ever changed, has at most."""
    prepare = """
import json, sys
from datetime import UTC, datetime
from tasks.shop.catalogue import Catalogue
from tasks.shop.connections import Connection
connection, start, end = map(json.loads, sys.argv[1:])
rows = Catalogue(Connection(**connection)).changed(*map(datetime.fromisoformat, (start, end)))
"""
    connection = json.dumps(dataclasses.asdict(catalogue.connection))
    times = [json.dumps(time.isoformat()) for time in (EARLIEST, LATEST)]
    return peak_of(prepare, work, connection, *times)


def test_rows_are_streamed(catalogue):
    count, name = 20_000, "x" * 600
    add_many(catalogue, count, name)
    # The names alone, were they all held at once, take more than this.
    assert peak_of_reading(catalogue, f"assert sum(1 for _ in rows) == {count}") < count * len(name) * 0.8


@pytest.mark.parametrize("kind", POSTGRES_KINDS)
def test_postgresql_keeps_the_rows_until_they_are_asked_for(new_catalogue, kind):
    catalogue = new_catalogue(kind)
    add_many(catalogue, 20_000, "x")
    rows = Catalogue(catalogue.connection).changed(EARLIEST, LATEST)
    next(rows)
    with catalogue.engine.connect() as connection:
        query = sa.text(
            "select query from pg_stat_activity where datname = :name and pid != pg_backend_pid()"
        )
        (reading,) = connection.scalars(query, {"name": catalogue.connection.schema})
    assert "FETCH FORWARD" in reading.upper()
    rows.close()


def with_pictures(catalogue, **urls):
    """Make `items` a join of items and their pictures, as shops with several pictures have it."""
    catalogue.execute("alter table items rename to article")
    catalogue.execute(
        f"create table picture (id integer primary key, article {catalogue.text}, url text, place integer)"
    )
    catalogue.execute(
        "create view items as select article.item_id, article.item_name, article.category_id, "
        "picture.url as img_url, article.registered_at, article.updated_at "
        "from article join picture on picture.article = article.item_id"
    )
    rows = [(item_id, url) for item_id, given in urls.items() for url in given]
    catalogue.execute(
        "insert into picture (id, article, url, place) values (:id, :article, :url, :place)",
        *({"id": n, "article": a, "url": url, "place": n} for n, (a, url) in enumerate(rows)),
    )


@pytest.mark.parametrize(
    "urls", [["https://a/1", "https://a/1"], ["https://a/1", "https://z/9"], [None, "u"]]
)
def test_an_item_in_several_rows_is_named_whatever_their_urls(catalogue, urls):
    for item_id in ("p0", "p1", "p2"):
        catalogue.add(item_id, None)
    with_pictures(catalogue, p0=["https://k/0"], p1=urls, p2=["https://m/2"])
    reader = Catalogue(catalogue.connection)
    for rows, statement in (
        (reader.changed(EARLIEST, LATEST), "changed"),
        (reader.of_categories(["00000010"], EARLIEST, LATEST), "categories"),
        (reader.of_ids(["p0", "p1", "p2"]), "ids"),
    ):
        # Before any row is given.
        with pytest.raises(ConfigurationError, match=rf"sql/catalogue/{statement}\.sql gives item p1 twice"):
            next(rows)
    assert ids(reader.of_ids(["p0", "p2"])) == {"p0", "p2"}


@pytest.mark.parametrize(
    "shape",
    [
        "{};",
        "{} limit 1000 ; ",
        "{} -- and no more",
        "with of_the_night as ({}) select * from of_the_night",
        "select replace(item_id, '-', '-') as item_id, item_name, category_id, img_url from ({}) as x",
    ],
)
def test_a_shop_s_own_statement_may_have_any_shape(catalogue, statements, shape):
    text = "\n".join(
        line for line in (statements / "changed.sql").read_text().splitlines() if not line.startswith("--")
    ).replace("img_url\n", "img_url, registered_at\n")
    (statements / "changed.sql").write_text(shape.format(text))
    catalogue.add("p1", "https://a/1")
    catalogue.add("p2", "https://a/1")
    reader = Catalogue(catalogue.connection)
    assert ids(reader.changed(EARLIEST, LATEST)) == {"p1", "p2"}
    with_pictures(catalogue, p1=["https://a/1"], p2=["https://a/2", "https://b/2"])
    with pytest.raises(ConfigurationError, match="gives item p2 twice"):
        list(reader.changed(EARLIEST, LATEST))


def test_one_among_very_many_is_found_with_flat_memory(catalogue):
    add_many(catalogue, 60_000, "x" * 200)
    catalogue.execute("alter table items rename to article")
    catalogue.execute(
        "create view items as select * from article union all select item_id, item_name, category_id, "
        "'zzz' as img_url, registered_at, updated_at from article where item_id = '1'"
    )
    refused = """
try:
    next(rows)
except Exception as error:
    assert "gives item 1 twice" in str(error), error
else:
    raise AssertionError
"""
    # Their ids alone take more.
    assert peak_of_reading(catalogue, refused) < 3_000_000


def test_numbers_of_a_shop_s_own_statement_become_texts(catalogue, statements):
    catalogue.add("a", "u")
    (statements / "changed.sql").write_text(
        "select 7 as item_id, 1.5 as item_name, 30 as category_id, img_url from items where :start < :end"
    )
    assert list(Catalogue(catalogue.connection).changed(EARLIEST, LATEST)) == [Item("7", "1.5", "30", "u")]


COLUMNS = ("item_id", "item_name", "category_id", "img_url")
AS_BYTES = {
    "sqlite": ("sqlite", {}, "", "cast(x'{}' as text)"),
    "postgresql, SQL_ASCII": (
        "timestamptz",
        {"encoding": "SQL_ASCII"},
        "",
        "convert_from(decode('{}', 'hex'), 'SQL_ASCII')",
    ),
    "postgresql, bytea": (
        "timestamptz",
        {},
        "alter column {0} type bytea using convert_to({0}, 'UTF8')",
        "decode('{}', 'hex')",
    ),
    "mariadb, varbinary": ("datetime(6)", {}, "modify {} varbinary(191)", "x'{}'"),
}
"""How databases hold any bytes: the catalogue's kind and options, what makes a column of them, a value."""


@pytest.fixture(params=AS_BYTES)
def of_bytes(request, new_catalogue):
    """A catalogue whose columns may hold any bytes, and what makes one of a row of bytes by column."""
    kind, options, altered, value = AS_BYTES[request.param]
    catalogue = new_catalogue(kind, **options)
    for column in COLUMNS if altered else ():
        catalogue.execute(f"alter table items {altered.format(column)}")

    def add(**row):
        values = ", ".join(value.format(row[column].hex()) for column in COLUMNS)
        catalogue.execute(
            f"insert into items ({', '.join(COLUMNS)}, registered_at) values ({values}, :noon)",
            {"noon": catalogue._stored(NOON)},
        )

    return catalogue, add


def row(given, **columns):
    usual = {
        "item_name": "셔츠".encode(),
        "category_id": b"shirts",
        "img_url": f"https://a/{given}".encode(),
    }
    return usual | {"item_id": given.encode()} | columns


@pytest.mark.parametrize("column", COLUMNS)
def test_a_text_that_is_none_costs_its_item_alone(of_bytes, column):
    catalogue, add = of_bytes
    add(**row("보통"))
    add(**row("bad", **{column: b"a\xff\xc3"}))
    add(**row("z"))
    reader = Catalogue(catalogue.connection)
    good = {Item(i, "셔츠", "shirts", f"https://a/{i}") for i in ("보통", "z")}
    shown = {
        "item_id": "bad",
        "item_name": "셔츠",
        "category_id": "shirts",
        "img_url": "https://a/bad",
    } | {column: r"a\xff\xc3"}
    bad = Item(**shown, invalid=rf"{column} is not valid UTF-8: a\xff\xc3")

    assert set(reader.changed(EARLIEST, LATEST)) == good | {bad}
    assert set(reader.changed_ids(EARLIEST, LATEST)) == {"보통", "z", bad.item_id}
    of_category = good if column == "category_id" else good | {bad}
    assert set(reader.of_categories(["shirts"], EARLIEST, LATEST)) == of_category
    of_ids = good if column == "item_id" else good | {bad}
    assert set(reader.of_ids(["보통", "bad", "z"])) == of_ids
    assert reader.urls(["보통", "bad", "z"]) == {item.item_id: item.img_url for item in of_ids}


def test_what_a_reason_shows_of_a_text_is_short(of_bytes):
    catalogue, add = of_bytes
    add(**row("a", item_name=b"\xff" + b"x" * 190))
    (item,) = Catalogue(catalogue.connection).changed(EARLIEST, LATEST)
    assert len(item.invalid) < 120


def test_bytes_that_come_twice_are_named(of_bytes):
    catalogue, add = of_bytes
    add(**row("a", item_id=b"p\xff"))
    catalogue.execute("alter table items rename to article")
    catalogue.execute("create view items as select * from article union all select * from article")
    with pytest.raises(ConfigurationError, match="twice"):
        list(Catalogue(catalogue.connection).changed(EARLIEST, LATEST))


def test_ids_that_are_one_text_come_twice(new_catalogue):
    """In a column of SQLite's each value has a type of its own."""
    catalogue = new_catalogue("sqlite")
    catalogue.add("a", "u")
    catalogue.execute(
        "insert into items select x'61', item_name, category_id, 'v', registered_at, null from items"
    )
    with pytest.raises(ConfigurationError, match="gives item a twice"):
        list(Catalogue(catalogue.connection).changed(EARLIEST, LATEST))


@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_KR"])
def test_a_database_in_another_encoding(new_catalogue, encoding):
    catalogue = new_catalogue("timestamptz", encoding=encoding)
    text = {"LATIN1": "caf\xe9", "EUC_KR": "셔츠"}[encoding]
    catalogue.add(text, f"https://a/{text}", item_name=text, category_id=text)
    reader = Catalogue(catalogue.connection)
    item = Item(text, text, text, f"https://a/{text}")
    assert list(reader.changed(EARLIEST, LATEST)) == list(reader.of_ids([text])) == [item]
    assert list(reader.of_categories([text], EARLIEST, LATEST)) == [item]
    with pytest.raises(UnfitValueError, match="no character in its encoding"):
        list(reader.of_ids(["\N{SHOPPING BAGS}"]))


def test_a_database_without_an_encoding_whose_texts_are_not_utf_8(new_catalogue, statements):
    catalogue = new_catalogue("timestamptz", encoding="SQL_ASCII")
    catalogue.add("a", "u")
    shirt = "셔츠".encode("euc_kr").hex()
    catalogue.execute(f"update items set item_name = convert_from(decode('{shirt}', 'hex'), 'SQL_ASCII')")
    reader = Catalogue(catalogue.connection)
    (item,) = reader.changed(EARLIEST, LATEST)
    assert item.invalid.startswith("item_name is not valid UTF-8")

    # As docs/your_catalogue.md says.
    changed = statements / "changed.sql"
    converted = "convert(convert_to(item_name, 'SQL_ASCII'), 'EUC_KR', 'UTF8') as item_name"
    changed.write_text(
        changed.read_text().replace("select item_id, item_name", f"select item_id, {converted}")
    )
    assert list(reader.changed(EARLIEST, LATEST)) == [Item("a", "셔츠", "00000010", "u")]


def test_ids_that_no_document_can_have(catalogue):
    longest = "é" * 256
    catalogue.execute(
        {
            "sqlite": "drop index items_category_id",  # its primary key takes a null
            **dict.fromkeys(POSTGRES_KINDS, "alter table items drop constraint items_pkey"),
            **dict.fromkeys(MARIADB_KINDS, "alter table items drop primary key, modify item_id text"),
        }[catalogue.kind]
    )
    if catalogue.kind in POSTGRES_KINDS:
        catalogue.execute("alter table items alter item_id drop not null")
    for item_id in (None, None, "", longest, longest + "x"):
        catalogue.add(item_id, "u")
    found = sorted(Catalogue(catalogue.connection).changed(EARLIEST, LATEST), key=str)
    usual = ("blue shirt", "00000010", "u")
    assert found == [
        Item("(empty)", *usual, invalid="item_id is empty"),
        *[Item("(null)", *usual, invalid="item_id is null")] * 2,
        Item(longest, *usual),
        Item(f"{longest[:119]}…", *usual, invalid="item_id is longer than 512 bytes"),
    ]


@pytest.mark.parametrize("kind", ["sqlite", *MARIADB_KINDS])  # PostgreSQL takes none
def test_an_id_with_a_nul_is_none(new_catalogue, kind):
    catalogue = new_catalogue(kind)
    catalogue.add("a\0b", "u", item_name="a\0b")
    catalogue.add("c", "u\0v", item_name="a\0b")
    catalogue_ = Catalogue(catalogue.connection)
    by_id = {item.item_id: item for item in catalogue_.changed(EARLIEST, LATEST)}
    assert by_id["a\N{REPLACEMENT CHARACTER}b"].invalid == "item_id holds a NUL character"
    assert by_id["c"] == Item("c", "a\0b", "00000010", "u\0v")


def test_an_id_that_is_no_text_is_asked_for_in_vain_or_refused(catalogue):
    """As a shell passes on what is no UTF-8."""
    catalogue.add("a", "u")
    reader = Catalogue(catalogue.connection)
    with pytest.raises(UnfitValueError):
        list(reader.of_ids(["a\ud800"]))


@pytest.mark.parametrize("kind", POSTGRES_KINDS)
def test_the_padding_of_char_columns_is_no_part_of_a_text(new_catalogue, kind):
    catalogue = new_catalogue(kind)
    for column in ("item_id", "item_name", "category_id", "img_url"):
        catalogue.execute(f"alter table items alter {column} type char(20)")
    catalogue.add("a1", "https://a/1")
    catalogue.add("b2", None, category_id=None)
    catalogue.add(" c 3", "https://a/3", category_id="shoes/boots")
    a1, b2 = Item("a1", "blue shirt", "00000010", "https://a/1"), Item("b2", "blue shirt", None, None)
    c3 = Item(" c 3", "blue shirt", "shoes/boots", "https://a/3")

    reader = Catalogue(catalogue.connection)
    assert set(reader.changed(EARLIEST, LATEST)) == {a1, b2, c3}
    assert set(reader.of_categories(["00000010", "shoes/boots"], EARLIEST, LATEST)) == {a1, c3}
    assert set(reader.of_ids(["a1", "b2", " c 3", "c 3"])) == {a1, b2, c3}
    assert reader.urls(["a1", "b2", " c 3"]) == {"a1": "https://a/1", "b2": None, " c 3": "https://a/3"}


def test_spaces_of_other_columns_are_part_of_them(catalogue):
    if catalogue.kind in MARIADB_KINDS:  # whose usual collations take both ids for the same
        catalogue.execute("alter table items convert to character set utf8mb4 collate utf8mb4_nopad_bin")
    catalogue.add("a1 ", "https://a/1 ", item_name=" x ", category_id="shoes ")
    catalogue.add("a1", "https://a/1")
    spaced = Item("a1 ", " x ", "shoes ", "https://a/1 ")
    reader = Catalogue(catalogue.connection)
    assert spaced in list(reader.changed(EARLIEST, LATEST))
    assert list(reader.of_ids(["a1 "])) == [spaced]
    assert reader.urls(["a1 ", "a1"]) == {"a1 ": "https://a/1 ", "a1": "https://a/1"}
    assert list(reader.of_categories(["shoes "], EARLIEST, LATEST)) == [spaced]


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("select item_id, item_name, img_url from items", "does not give category_id"),
        ("select item_id, item_name, category, img_url from items", "category"),
        ("select * from articles", "articles"),
        ("selec item_id from items", "syntax"),
        ("select * from items where registered_at > :since", "since"),
    ],
    ids=["column not given", "missing column", "missing table", "syntax", "unknown parameter"],
)
def test_a_statement_that_does_not_fit_is_named(catalogue, statements, statement, said):
    (statements / "changed.sql").write_text(statement)
    with pytest.raises(ConfigurationError, match=r"changed\.sql") as refused:
        list(Catalogue(catalogue.connection).changed(EARLIEST, LATEST))
    assert said in str(refused.value)


def test_a_comment_may_hold_anything(catalogue, statements):
    catalogue.add("a", "u")
    text = (statements / "changed.sql").read_text()
    (statements / "changed.sql").write_text(f"-- at 12:30 :not_a_parameter; drop table items\n{text}")
    assert ids(Catalogue(catalogue.connection).changed(EARLIEST, LATEST)) == {"a"}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=re.escape(str(tmp_path / "none.db"))):
        Catalogue(Connection(CATALOGUE, "sqlite", schema=str(tmp_path / "none.db")))
    assert not (tmp_path / "none.db").exists()


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "text.db").write_text("item_id,item_name\n" * 100)
    reader = Catalogue(Connection(CATALOGUE, "sqlite", schema=str(tmp_path / "text.db")))
    with pytest.raises(ConfigurationError, match="not a database"):
        list(reader.changed(EARLIEST, LATEST))


def test_a_path_may_hold_what_means_something_in_a_uri(tmp_path, new_catalogue):
    catalogue = new_catalogue("sqlite")
    catalogue.add("a", "u")
    odd = tmp_path / "100% new? #1 %20"
    odd.mkdir()
    path = Path(catalogue.connection.schema).rename(odd / "catalogue.db")
    assert ids(Catalogue(Connection(CATALOGUE, "sqlite", schema=str(path))).changed(EARLIEST, LATEST)) == {
        "a"
    }


def test_a_locked_file_may_be_free_later(new_catalogue, monkeypatch):
    catalogue = new_catalogue("sqlite")
    connect = sqlite3.dbapi2.connect
    impatient = {"timeout": 0}
    monkeypatch.setattr(sqlite3.dbapi2, "connect", lambda *a, **k: connect(*a, **(k | impatient)))
    holder = sqlite3.connect(catalogue.connection.schema)
    holder.execute("begin exclusive")
    with pytest.raises(ServiceUnavailableError, match="locked"):
        list(Catalogue(catalogue.connection).changed(EARLIEST, LATEST))
    holder.close()


@pytest.mark.parametrize("kind", ["postgres", "mysql", "mariadb"])
def test_an_unreachable_server_is_named_and_no_password(kind):
    port = free_port()
    connection = Connection(
        CATALOGUE, kind, host="127.0.0.1", port=port, login="reader", password="hunter2", schema="shop"
    )
    with pytest.raises(ServiceUnavailableError) as failed:
        list(Catalogue(connection).changed(EARLIEST, LATEST))
    assert f"127.0.0.1:{port}" in str(failed.value)
    assert "hunter2" not in str(failed.value) + repr(failed.value.__cause__) + repr(connection)


def test_a_connection_of_another_type_is_refused():
    with pytest.raises(
        ConfigurationError, match=r"'mssql'; a catalogue is sqlite, postgres, mysql or mariadb"
    ):
        Catalogue(Connection(CATALOGUE, "mssql", host="h"))


# Names of categories ----------------------------------------------------------------------------

NAMES = "select category_id, category_name from categories"
HOSTILE_NAMES = {
    "1": "<script>alert(1)</script>",
    "2": "{{ 7 * 7 }}{% raw %}",
    "3": "חולצות",
    "4": "cut " + "x" * 5_000,
    "5": " two\n lines ",
    "6": "a\u202eb",
}


def test_names_of_categories(catalogue, statements):
    reader = Catalogue(catalogue.connection)
    assert reader.category_names() == {}
    catalogue.execute(f"create table categories (category_id {catalogue.text}, category_name text)")
    insert = "insert into categories values (:id, :name)"
    catalogue.execute(insert, *({"id": id_, "name": name} for id_, name in HOSTILE_NAMES.items()))
    for id_, name in (("7", None), ("8", ""), (None, "x"), ("1", "another"), ("9", "t-shirt")):
        catalogue.execute(insert, {"id": id_, "name": name})
    (statements / "category_names.sql").write_text(NAMES)
    found = reader.category_names()
    assert found.pop("1") in ("<script>alert(1)</script>", "another")
    assert found == {
        "2": "{{ 7 * 7 }}{% raw %}",
        "3": "חולצות",
        "4": f"cut {'x' * 195}…",
        "5": "two lines",
        "6": "a\N{REPLACEMENT CHARACTER}b",
        "9": "t-shirt",
    }


def test_a_name_that_is_no_text_is_shown(of_bytes, tmp_path):
    catalogue, add = of_bytes
    add(**row("a", item_name=b"t-\xff"))
    statement = tmp_path / "names.sql"
    statement.write_text("select category_id, item_name as category_name from items")
    assert Catalogue(catalogue.connection).category_names(statement) == {"shirts": r"t-\xff"}


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("select category_id from items", "does not give category_name"),
        ("select * from no_such_table", "no_such_table"),
        ("drop table items", "does not fit"),
        ("", "does not"),
    ],
)
def test_a_statement_of_names_that_does_not_fit_is_named(catalogue, statements, statement, said):
    (statements / "category_names.sql").write_text(statement)
    with pytest.raises(ConfigurationError, match=said) as refused:
        Catalogue(catalogue.connection).category_names()
    assert "sql/catalogue/category_names.sql" in str(refused.value)


def test_a_statement_of_names_that_is_not_there_is_named(new_catalogue, tmp_path):
    reader = Catalogue(new_catalogue("sqlite").connection)
    with pytest.raises(ConfigurationError, match=r"nowhere\.sql cannot be read: No such file"):
        reader.category_names(tmp_path / "nowhere.sql")


# Indexes ----------------------------------------------------------------------------------------


def test_all_indexes_are_recognised(catalogue):
    assert Catalogue(catalogue.connection).missing_indexes() == []


@pytest.mark.parametrize("kind", CATALOGUE_KINDS)
def test_missing_indexes_are_told(new_catalogue, kind):
    catalogue = new_catalogue(kind, indexes=False)
    told = Catalogue(catalogue.connection).missing_indexes()
    assert told == [
        f"create index … on items ({column})" for column in ("updated_at", "registered_at", "category_id")
    ]
    # What it says is what it wants, spelled however.
    for number, statement in enumerate(told):
        # MariaDB's names of tables are those of files.
        catalogue.execute(statement.replace("…", f"it{number}").upper().replace("ITEMS", "items"))
    assert Catalogue(catalogue.connection).missing_indexes() == []


@pytest.mark.parametrize("kind", CATALOGUE_KINDS)
def test_an_index_counts_by_the_column_that_it_begins_with(new_catalogue, kind):
    catalogue = new_catalogue(kind, indexes=False)
    catalogue.execute("create index a on items(registered_at, category_id)")
    catalogue.execute("create index b on items (category_id desc)")
    catalogue.execute("create index c on items (img_url, updated_at)")
    assert Catalogue(catalogue.connection).missing_indexes() == ["create index … on items (updated_at)"]


@pytest.mark.parametrize("kind", ["sqlite", *POSTGRES_KINDS])
def test_a_catalogue_with_the_index_of_before_works_and_is_told(new_catalogue, kind):
    catalogue = new_catalogue(kind, indexes=False)
    catalogue.execute("create index items_changed on items (coalesce(updated_at, registered_at))")
    catalogue.execute("create index items_category on items (category_id)")
    catalogue.add("a", "u", registered_at=NOON)
    reader = Catalogue(catalogue.connection)
    assert ids(reader.changed(NOON, LATEST)) == {"a"}
    assert reader.missing_indexes() == [
        "create index … on items (updated_at)",
        "create index … on items (registered_at)",
    ]
