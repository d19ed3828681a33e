"""The connection to Elasticsearch: the client with its patience, and its errors in words."""

import functools
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.search.document_fields import USUAL_FIELDS, DocumentFields
from tasks.shop.connections import Connection

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

_ADVICE = {413: " It was too large: lower FEATURES_BULK_SIZE."}
"""What to do about a request refused with this status, where that is known."""
_LONGEST_REASON = 300
"""Characters; what stands before a server may answer with a whole page."""

_KEPT_BETWEEN_PAGES = "10m"
"""Whoever takes a page may write it and wait for a refresh, with several attempts, before the next one."""
_OF_A_HIT = ("_id", "sort", "fields", "_source", "_seq_no", "_primary_term")


class IndexClient:
    """One index, or an alias of one, as the connection shop_search reaches it.

    What is asked within `errors_explained` raises ServiceUnavailableError when Elasticsearch does not answer,
    and ConfigurationError when it refuses for a reason that a person has to mend.
    """

    def __init__(self, connection: Connection, index: str, fields: DocumentFields = USUAL_FIELDS) -> None:
        """Reach the index, whose documents hold the shop's values in `fields`."""
        self.name = index
        self.fields = fields
        self.url = address(connection)
        """Of the server, without log-in."""
        self.client = client(connection)

    def search(self, **request: Any) -> Any:
        """Search the index, all of its shards."""
        # What one shard alone answers is no answer: the rest would count as absent.
        return self.client.search(index=self.name, allow_partial_search_results=False, **request)

    def found_by(self, query: Mapping[str, Any]) -> int:
        """How many documents a query finds."""
        with self.errors_explained():
            answer = self.search(size=0, query=query, track_total_hits=True)
        total: int = answer["hits"]["total"]["value"]
        return total

    def refresh(self) -> None:
        """Let searches see what has been written."""
        with self.errors_explained():
            failed = self.client.indices.refresh(index=self.name)["_shards"]["failed"]
        if failed:
            raise ServiceUnavailableError(
                f"Elasticsearch at {self.url} cannot refresh {failed} shards of {self.name}. Try later."
            )

    def pages(self, query: Mapping[str, Any], size: int, **what: Any) -> Generator[list[dict[str, Any]]]:
        """What a query finds, `size` hits at once, as the index is at one moment.

        Close it where it may not have ended: the garbage collector would do so in the middle of another
        request, which may hold what this one waits for.

        Args:
            what: of the documents is wanted, as in a search.
        """
        with self.errors_explained():
            point = self.client.open_point_in_time(index=self.name, keep_alive=_KEPT_BETWEEN_PAGES)["id"]
            try:
                after = None
                while True:
                    answer = self.client.search(
                        pit={"id": point, "keep_alive": _KEPT_BETWEEN_PAGES},
                        size=size,
                        query=query,
                        sort=["_shard_doc"],
                        search_after=after,
                        track_total_hits=False,
                        allow_partial_search_results=False,
                        filter_path=[f"hits.hits.{part}" for part in _OF_A_HIT],
                        **what,
                    )
                    hits: list[dict[str, Any]] = answer.get("hits", {}).get("hits", [])
                    if not hits:
                        return
                    yield hits
                    after = hits[-1]["sort"]
            finally:
                self.client.options(ignore_status=404).close_point_in_time(id=point)

    @contextmanager
    def errors_explained(self) -> Iterator[None]:
        """Turn the client's errors into ours."""
        from elasticsearch import (
            ApiError,
            AuthenticationException,
            AuthorizationException,
            TransportError,
        )

        try:
            yield
        except (AuthenticationException, AuthorizationException) as error:
            raise ConfigurationError(
                f"Elasticsearch at {self.url} refuses us ({error.status_code}: {_reason(error)}). "
                "Check the log-in of the connection shop_search and its privileges on the index."
            ) from None
        except ApiError as error:
            if error.status_code in (408, 429) or error.status_code >= 500:
                raise ServiceUnavailableError(
                    f"Elasticsearch at {self.url} answers {error.status_code}: {_reason(error)}. Try later."
                ) from None
            if "search_context_missing_exception" in str(error.body):
                raise ServiceUnavailableError(
                    f"Elasticsearch at {self.url} has lost the state of {self.name} that was being read, as "
                    "after a restart or a long pause. Try again."
                ) from None
            if error.error == "index_not_found_exception":
                raise ConfigurationError(
                    f"There is no index {self.name} at {self.url} yet. It appears with the shop's first "
                    "document; if it has another name, set FEATURES_INDEX."
                ) from None
            raise ConfigurationError(
                f"Elasticsearch at {self.url} refuses a request on the index {self.name} "
                f"({error.status_code}: {_reason(error)}).{_ADVICE.get(error.status_code, '')}"
            ) from None
        except TransportError as error:
            raise ServiceUnavailableError(
                # Of an answer that cannot be read, the client quotes all.
                f"Elasticsearch at {self.url} does not answer: {str(error.message)[:_LONGEST_REASON]}. "
                "Check that it runs and that the connection shop_search (or ELASTICSEARCH_URL) is right."
            ) from None


def address(connection: Connection) -> str:
    """The server's URL, without log-in."""
    return _client_options(connection)[0]


def client(connection: Connection) -> "Elasticsearch":
    """A client that is patient: requests that may be repeated are, three times.

    Raises:
        ConfigurationError: the connection lacks a host or has an unknown scheme.
    """
    from elasticsearch import Elasticsearch

    url, options = _client_options(connection)
    return Elasticsearch(
        url,
        node_class=_node_class(),
        serializer=_serializer(),
        request_timeout=60,
        max_retries=3,
        retry_on_timeout=True,
        retry_on_status=(429, 502, 503, 504),
        **options,
    )


@functools.cache
def _serializer() -> Any:
    import orjson
    from elasticsearch.serializer import JsonSerializer

    class FastJsonSerializer(JsonSerializer):
        """Writes with orjson, but takes all that the client's own does, and reads as that does.

        The client's own for orjson refuses half of a surrogate pair, which others' documents may hold. What
        is not finite becomes null, where the client's own would write what is no JSON.
        """

        def json_dumps(self, data: Any) -> bytes:
            try:
                return orjson.dumps(data, default=self.default)
            except TypeError:
                return super().json_dumps(data)

    return FastJsonSerializer()


@functools.cache
def _node_class() -> type:
    import elastic_transport

    class ElasticsearchNode(elastic_transport.Urllib3HttpNode):
        """Takes no answer of a load balancer's for one of Elasticsearch, which signs all of its own.

        The client itself looks at the first answer alone, and a page for maintenance comes later.
        """

        def perform_request(self, *args: Any, **kwargs: Any) -> Any:
            answer = super().perform_request(*args, **kwargs)
            meta = answer.meta
            signed = meta.headers.get("x-elastic-product") == "Elasticsearch"
            if not signed and (meta.status < 300 or meta.status == 404):
                raise elastic_transport.ConnectionError(
                    f"{meta.status} with {meta.mimetype} came, and not from Elasticsearch"
                )
            return answer

    return ElasticsearchNode


def _client_options(connection: Connection) -> tuple[str, dict[str, Any]]:
    """The server's URL, without secrets, and the client's other options."""
    extra = connection.extra
    host = connection.host or ""
    scheme, separator, bare_host = host.rpartition("://")
    if not separator:
        by_type = connection.conn_type if connection.conn_type in ("http", "https") else None
        scheme = extra.get("scheme") or by_type or connection.schema or "http"
    if not bare_host or scheme not in ("http", "https"):
        raise ConfigurationError(
            f"The connection {connection.conn_id} needs a host and the scheme http or https, "
            "such as http://localhost:9200."
        )
    default_port = 443 if connection.conn_type == "https" else 9200
    options: dict[str, Any] = {}
    if extra.get("api_key"):
        options["api_key"] = extra["api_key"]
    elif connection.login:
        options["basic_auth"] = (connection.login, connection.password or "")
    if extra.get("ca_certs"):
        options["ca_certs"] = extra["ca_certs"]
    return f"{scheme}://{bare_host}:{connection.port or default_port}", options


def _reason(error: Any) -> str:
    """What Elasticsearch gives as the reason, without the request."""
    body = error.body if isinstance(error.body, dict) else {}
    cause = body.get("error")
    return (in_words(cause) if isinstance(cause, dict) else str(cause or error.message))[:_LONGEST_REASON]


def in_words(error: Mapping[str, Any]) -> str:
    """Why Elasticsearch refuses something, from the roots that it names: what it says first may be no more
    than "all shards failed"."""
    reasons = []
    for root in error.get("root_cause") or [error]:
        innermost = root
        while innermost.get("caused_by"):
            innermost = innermost["caused_by"]
        outer = str(root.get("reason") or "")
        inner = str(innermost.get("reason") or innermost.get("type") or "")
        reasons.append(outer if inner in outer else f"{outer}: {inner}" if outer else inner)
    return "; ".join(dict.fromkeys(reasons))
