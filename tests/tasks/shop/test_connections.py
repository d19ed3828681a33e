import importlib
import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import ConfigurationError
from tasks.shop.connections import CATALOGUE, SEARCH, Connection, Services

FIELDS = ("conn_type", "host", "port", "login", "password", "schema")

CATALOGUE_VARIABLE = "AIRFLOW_CONN_SHOP_CATALOG"
SEARCH_VARIABLE = "AIRFLOW_CONN_SHOP_SEARCH"


@pytest.fixture(scope="module", autouse=True)
def airflow_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import Airflow where the folder it makes on import does not end up in the user's home."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
        importlib.import_module("airflow.sdk")


@pytest.fixture(autouse=True)
def no_connections_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (CATALOGUE_VARIABLE, SEARCH_VARIABLE, "ELASTICSEARCH_URL"):
        monkeypatch.delenv(name, raising=False)


def ours(value: str) -> dict[str, Any]:
    """What we read from a variable, an empty text counting as none: nothing we do tells them apart."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(CATALOGUE_VARIABLE, value)
        read = Connection.from_environment(CATALOGUE)
    assert read.conn_id == CATALOGUE
    return {name: getattr(read, name) or None for name in FIELDS} | {"extra": dict(read.extra)}


def airflows(value: str) -> dict[str, Any]:
    """What Airflow reads from the same variable."""
    from airflow.sdk import Connection as AirflowConnection

    parse = AirflowConnection.from_json if value.lstrip().startswith("{") else AirflowConnection.from_uri
    read = parse(value, conn_id=CATALOGUE)
    return {name: getattr(read, name) or None for name in FIELDS} | {"extra": read.extra_dejson}


URIS = [
    "sqlite:////var/shop/catalogue.db",
    "sqlite:///catalogue.db",
    "sqlite:////tmp/a%20b.db?mode=ro",
    "sqlite://%2Fvar%2Fshop%2FCatalog.db",
    "sqlite://Data%2FCatalog.db",
    "sqlite://%2fvar%2fshop%2fcatalogue.db",
    "postgres://user:pass@host:5432/shop",
    "postgresql://user:pass@host:5432/shop",
    "postgresql+psycopg2://user:pass@host:5432/shop",
    "POSTGRES://HOST.Example/DB",
    "postgres://us%40er:p%3Aa%2Fss%25@host.example/shop%20db?sslmode=require&a=b%26c",
    "postgres://user:p%2523@host/db",
    "postgres://a@b:c@host/db",
    "postgres://user@host/",
    "postgres://:pass@host/db",
    "postgres://user:@host/db",
    "postgres://host",
    "postgres://host:0/db",
    "postgres://host/a/b/c",
    "postgres:///db?host=%2Fvar%2Frun",
    "postgres://u:p@%2Fvar%2Frun%2Fpostgresql/db",
    "postgres://u:p@%2Fvar%2Frun%2Fpostgresql:5433/db",
    "postgres://host/db?x=&y=1&x=2",
    "mysql://user:pass@host:3306/shop?ssl_ca=%2Fetc%2Fca.pem",
    "mariadb://user:pass@host/shop",
    "mysql://user@/shop?unix_socket=%2Frun%2Fmysqld.sock",
    "google-cloud-platform://?project=1",
    "elasticsearch://elastic:changeme@es.example:9200/https",
    "elasticsearch://elastic:changeme@es.example:9200/?scheme=https&verify_certs=false",
    "elasticsearch://es.example:9200/http?__extra__=%7B%22api_key%22%3A+%22abc%22%2C+%22n%22%3A1%7D",
    "elasticsearch://https://u:p@es.example:9200/x?y=z",
    "https://elastic:pw@es.example:9243",
    "http://127.0.0.1:9200",
    "http://[::1]:9200",
    "http://user:pw@[2001:db8::1]:9200/",
    "http://https://es.example:9200/",
    "http://https%3A%2F%2Fes.example:9200/x",
]


@pytest.mark.parametrize("uri", URIS)
def test_a_uri_reads_as_airflow_reads_it(uri: str) -> None:
    assert ours(uri) == airflows(uri)


JSONS: list[dict[str, Any]] = [
    {"conn_type": "postgres", "host": "h", "port": 5432, "login": "l", "password": "p", "schema": "s"},
    {"conn_type": "postgres", "host": "h", "port": "5432", "extra": {"sslmode": "require", "n": [1]}},
    {"conn_type": "postgresql", "extra": '{"sslmode": "require"}'},
    {"conn_type": "mysql", "host": "h", "schema": "s", "extra": {"ssl": {"ca": "/etc/ca.pem"}}},
    {"conn_type": "google-cloud-platform", "port": None, "extra": None},
    {"conn_type": "sqlite", "schema": "/var/상점/catalogue.db", "extra": ""},
    {"conn_type": "elasticsearch", "login": "", "password": "", "host": "", "extra": {}},
    {"conn_type": "http", "host": "https://es.example", "port": 0, "description": "the shop's"},
]


@pytest.mark.parametrize("value", JSONS)
def test_json_reads_as_airflow_reads_it(value: dict[str, Any]) -> None:
    for text in (json.dumps(value), "\n  " + json.dumps(value, indent=2)):
        assert ours(text) == airflows(text)


names = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    login=names,
    password=names,
    host=st.from_regex(r"\A[a-z][a-z0-9.-]{0,12}\Z"),
    port=st.none() | st.integers(1, 65_535),
    schema=names,
    extra=st.dictionaries(names.filter(lambda name: name != "__extra__"), names, max_size=3),
)
def test_whatever_airflow_writes_we_read(
    login: str, password: str, host: str, port: int | None, schema: str, extra: dict[str, str]
) -> None:
    from airflow.sdk import Connection as AirflowConnection

    written = AirflowConnection(
        conn_id=CATALOGUE,
        conn_type="postgres",
        host=host,
        port=port,
        login=login,
        password=password,
        schema=schema,
        extra=json.dumps(extra),
    )
    expected = {
        "conn_type": "postgres",
        "host": host,
        "port": port,
        "login": login,
        "password": password,
        "schema": schema,
        "extra": extra,
    }
    assert ours(written.get_uri()) == expected
    assert ours(written.as_json()) == expected


# Where we are stricter: Airflow would go on without what it could not read.
BROKEN = [
    "hunter2",
    "://hunter2",
    "postgres://",
    "post gres://user:hunter2@host/db",
    "postgres://user:hunter2@host:port/db",
    "postgres://user:hunter2@host:99999/db",
    "postgres://user:hunter2@[::1/db",
    "elasticsearch://user:hunter2@https://es.example:9200",
    "postgres://host/db?__extra__=hunter2",
    "postgres://host/db?__extra__=[1]",
    '{"conn_type": "postgres", "password": "hunter2"',
    '{"password": "hunter2"}',
    '{"conn_type": 5, "password": "hunter2"}',
    '{"conn_type": null, "password": "hunter2"}',
    '{"conn_type": "postgres", "password": "hunter2", "port": "x"}',
    '{"conn_type": "postgres", "password": "hunter2", "extra": "hunter2"}',
    '{"conn_type": "postgres", "password": "hunter2", "extra": [1]}',
]


@pytest.mark.parametrize("value", BROKEN)
def test_what_cannot_be_read_names_the_variable_and_no_secret(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CATALOGUE_VARIABLE, value)
    with pytest.raises(ConfigurationError) as refused:
        Connection.from_environment(CATALOGUE)
    assert CATALOGUE_VARIABLE in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__, "the first error quotes the value"


@pytest.mark.parametrize(
    "value",
    [
        "elasticsearch://elastic:hunter2@es.example:9200/https?api_key=hunter2",
        "elasticsearch://https://elastic:hunter2@es.example:9200/",
        f"postgres://elastic:{quote('://hunter2', safe='')}@es.example/db",
        json.dumps({"conn_type": "http", "login": "elastic", "password": "hunter2", "host": "es.example"}),
        json.dumps({"conn_type": "http", "host": "es.example", "extra": {"api_key": "hunter2"}}),
    ],
)
def test_a_connection_shown_holds_no_secret(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CATALOGUE_VARIABLE, value)
    monkeypatch.setenv(SEARCH_VARIABLE, value)
    services = Services.from_environment()
    assert "hunter2" in repr([services.catalogue.password, services.catalogue.extra])
    for shown in (repr(services), str(services.search), f"{services.catalogue}"):
        assert "es.example" in shown
        assert "hunter2" not in shown


def test_no_connection_says_which_variable_to_set() -> None:
    with pytest.raises(ConfigurationError, match=CATALOGUE_VARIABLE):
        Services.from_environment()
    with pytest.raises(ConfigurationError, match=f"{SEARCH_VARIABLE}, as for Airflow, to a URI or to JSON"):
        Connection.from_environment(SEARCH, or_url_in="ELASTICSEARCH_URL")


def test_elasticsearch_url_serves_where_the_connection_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CATALOGUE_VARIABLE, "sqlite:////var/shop/catalogue.db")
    monkeypatch.setenv("ELASTICSEARCH_URL", "https://elastic:pw@es.example:9243")
    search = Services.from_environment().search
    assert search == Connection(SEARCH, "https", host="es.example", port=9243, login="elastic", password="pw")

    monkeypatch.setenv(SEARCH_VARIABLE, "http://127.0.0.1:9201")
    assert Services.from_environment().search.port == 9201
    monkeypatch.setenv(SEARCH_VARIABLE, "")
    assert Services.from_environment().search.port == 9243
    assert Services.from_environment().catalogue.schema == "/var/shop/catalogue.db"


def test_a_broken_elasticsearch_url_is_named_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELASTICSEARCH_URL", "127.0.0.1:9200")
    with pytest.raises(ConfigurationError, match="ELASTICSEARCH_URL is neither a URI"):
        Connection.from_environment(SEARCH, or_url_in="ELASTICSEARCH_URL")


# Through Airflow --------------------------------------------------------------------------------


def finder(**uris: str) -> Any:
    """What Airflow has, by connection id, as its own class reads it."""
    from airflow.models import Connection as OfServers

    def find(conn_id: str) -> Connection | None:
        if conn_id not in uris:
            return None
        return Connection.from_airflow(conn_id, OfServers(conn_id=conn_id, uri=uris[conn_id]))

    return find


def test_airflows_connections_are_taken_over_field_by_field() -> None:
    uri = "https://user:word@search.example.org:9243/shop?ca_certs=%2Fetc%2Fca.pem"
    services = Services.found_by(finder(shop_search=uri, shop_catalog="sqlite:////srv/catalogue.db"))
    assert services.search == Connection.parse(SEARCH, uri, named="test")
    assert (services.catalogue.conn_type, services.catalogue.schema) == ("sqlite", "/srv/catalogue.db")
    assert services.ledger is None


def test_a_connection_that_airflow_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = "sqlite:////srv/catalogue.db"
    with pytest.raises(ConfigurationError, match=r"no connection shop_search.*AIRFLOW_CONN_SHOP_SEARCH"):
        Services.found_by(finder(shop_catalog=catalogue))
    monkeypatch.setenv("ELASTICSEARCH_URL", "http://127.0.0.1:9200")
    assert Services.found_by(finder(shop_catalog=catalogue)).search.host == "127.0.0.1"
    with pytest.raises(ConfigurationError, match="no connection shop_catalog"):
        Services.found_by(finder())
