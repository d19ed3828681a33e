"""What it takes to reach the shop's services, in the fields that Airflow's connections have.

The DAGs fill a Connection from Airflow; `python -m tasks` fills it from the same environment
variables, in either of the two forms that Airflow reads there: a URI or JSON.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from tasks.errors import ConfigurationError

CATALOGUE = "shop_catalog"
SEARCH = "shop_search"
LEDGER = "feature_ledger"


@dataclass(frozen=True)
class Services:
    """The services a run works with."""

    catalogue: "Connection"
    search: "Connection"
    ledger: "Connection | None" = None
    """None: a SQLite file in the data dir."""

    @classmethod
    def from_environment(cls) -> Self:
        """Read the connections; ELASTICSEARCH_URL serves where AIRFLOW_CONN_SHOP_SEARCH is not set."""
        return cls(
            Connection.from_environment(CATALOGUE),
            search_from_environment(),
            ledger_from_environment(),
        )

    @classmethod
    def found_by(cls, find: "Find") -> Self:
        """Ask Airflow for the connections; ELASTICSEARCH_URL serves where it has no shop_search.

        Raises:
            ConfigurationError: shop_catalog or shop_search is not there.
        """
        return cls(required(CATALOGUE, find(CATALOGUE)), search_found_by(find), find(LEDGER))


def search_from_environment() -> "Connection":
    """The connection shop_search alone, as `Services.from_environment` reads it."""
    return Connection.from_environment(SEARCH, or_url_in="ELASTICSEARCH_URL")


def search_found_by(find: "Find") -> "Connection":
    """The connection shop_search alone, as `Services.found_by` finds it."""
    found = find(SEARCH)
    if found is None and "ELASTICSEARCH_URL" in os.environ:
        return search_from_environment()
    return required(SEARCH, found)


def required(conn_id: str, connection: "Connection | None") -> "Connection":
    """The connection itself.

    Raises:
        ConfigurationError: there is none, with what to do about it.
    """
    if connection is None:
        raise ConfigurationError(
            f"Airflow has no connection {conn_id}. Add it under Admin, Connections, or set "
            f"AIRFLOW_CONN_{conn_id.upper()}."
        )
    return connection


def ledger_from_environment() -> "Connection | None":
    """The ledger's connection; None where AIRFLOW_CONN_FEATURE_LEDGER is not set."""
    return Connection.from_environment(LEDGER) if os.environ.get(f"AIRFLOW_CONN_{LEDGER.upper()}") else None


class AirflowConnection(Protocol):
    """What we read of Airflow's own objects, of which it has one for tasks and one for its servers."""

    conn_type: Any
    host: Any
    port: Any
    login: Any
    password: Any
    schema: Any

    @property
    def extra_dejson(self) -> dict[str, Any]:
        """The extra as an object."""


@dataclass(frozen=True)
class Connection:
    """An Airflow connection's fields. Its repr holds no secret."""

    conn_id: str
    conn_type: str
    host: str | None = None
    port: int | None = None
    login: str | None = None
    password: str | None = field(default=None, repr=False)
    schema: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_airflow(cls, conn_id: str, found: AirflowConnection) -> Self:
        """Take over the fields of Airflow's object."""
        return cls(
            conn_id=conn_id,
            conn_type=found.conn_type,
            host=found.host,
            port=found.port,
            login=found.login,
            password=found.password,
            schema=found.schema,
            extra=found.extra_dejson,
        )

    @classmethod
    def from_environment(cls, conn_id: str, *, or_url_in: str = "") -> Self:
        """Read AIRFLOW_CONN_<ID>, or else the variable that `or_url_in` names.

        Raises:
            ConfigurationError: the variable is not set or is neither a URI nor JSON.
        """
        variable = f"AIRFLOW_CONN_{conn_id.upper()}"
        if or_url_in and not os.environ.get(variable) and os.environ.get(or_url_in):
            variable = or_url_in
        value = os.environ.get(variable)
        if not value:
            raise ConfigurationError(
                f"No connection {conn_id}. Set {variable}, as for Airflow, to a URI or to JSON."
            )
        return cls.parse(conn_id, value, named=variable)

    @classmethod
    def parse(cls, conn_id: str, value: str, *, named: str) -> Self:
        """Read a URI or JSON.

        Raises:
            ConfigurationError: it is neither; the message names what held it as `named`.
        """
        try:
            fields = _from_json(value) if value.lstrip().startswith("{") else _from_uri(value)
            return cls(conn_id, **fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            # Not the error's text: it can quote the value, which can hold a password.
            raise ConfigurationError(
                f"{named} is neither a URI nor JSON as Airflow reads them ({type(error).__name__})."
            ) from None


Find = Callable[[str], Connection | None]
"""Gives a connection by its id, None where Airflow has none."""


def _from_json(value: str) -> dict[str, Any]:
    given = json.loads(value)
    return {
        "conn_type": _conn_type(given["conn_type"]),
        "host": given.get("host"),
        "port": int(given["port"]) if given.get("port") else None,
        "login": given.get("login"),
        "password": given.get("password"),
        "schema": given.get("schema"),
        "extra": _extra(given.get("extra") or {}),
    }


def _from_uri(value: str) -> dict[str, Any]:
    # Airflow also reads scheme://protocol://host, where the protocol belongs to the host.
    scheme, _, rest = value.partition("://")
    protocol, doubled, host_part = rest.partition("://")
    if doubled and not protocol.isalnum():
        raise ValueError("a second :// that no protocol precedes")
    uri = urlsplit(f"{scheme}://{host_part if doubled else rest}")
    if not uri.scheme or not rest:
        raise ValueError("no scheme")
    query = dict(parse_qsl(uri.query, keep_blank_values=True))
    host = unquote(uri.hostname or "")
    if "/" in host:
        # A path in the host's place, which would not survive the lower case of urlsplit's hostname.
        host = unquote(uri.netloc.rpartition("@")[2].partition(":")[0])
    return {
        "conn_type": _conn_type(uri.scheme),
        "host": f"{protocol}://{host}" if doubled else host or None,
        "port": uri.port,
        "login": unquote(uri.username) if uri.username else None,
        "password": unquote(uri.password) if uri.password else None,
        "schema": unquote(uri.path.removeprefix("/")) or None,
        "extra": _extra(query["__extra__"]) if "__extra__" in query else query,
    }


def _conn_type(name: str) -> str:
    return "postgres" if name == "postgresql" else name.replace("-", "_")


def _extra(given: Any) -> dict[str, Any]:
    extra = json.loads(given) if isinstance(given, str) else given
    if not isinstance(extra, dict):
        raise TypeError("the extra is no JSON object")
    return extra
