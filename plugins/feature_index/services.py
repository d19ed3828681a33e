"""The shop's services as the API server reaches them, through Airflow's connections."""

from airflow.sdk import Connection as AirflowConnection
from airflow.sdk.exceptions import AirflowNotFoundException

from tasks.search.document_fields import DocumentFields
from tasks.search.queries import ItemQueries
from tasks.settings import Settings
from tasks.shop.connections import LEDGER, Connection, search_found_by
from tasks.shop.ledger import Ledger


def item_queries(settings: Settings) -> ItemQueries:
    """The shop's index; raises ConfigurationError where there is no connection shop_search."""
    return ItemQueries(search_found_by(_find), settings.index, DocumentFields.of(settings))


def ledger(settings: Settings) -> Ledger:
    """The ledger of failures."""
    return Ledger(_find(LEDGER), settings)


def _find(conn_id: str) -> Connection | None:
    try:
        return Connection.from_airflow(conn_id, AirflowConnection.get(conn_id))
    except AirflowNotFoundException:
        return None
