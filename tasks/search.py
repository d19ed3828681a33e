"""The one module that talks to Elasticsearch: the index's mapping, what it holds, and writing to it."""

import base64
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.connections import Connection
from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.settings import Settings

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

FEATURE = "imagenet_feature"
VERSION = "imagenet_feature_version"
URL = "imagenet_feature_img_url"
IMAGE = "imagenet_feature_image"
AT = "imagenet_feature_at"

FIELDS: dict[str, dict[str, Any]] = {
    # The index type is named: what Elasticsearch takes by default depends on its version and licence.
    FEATURE: {
        "type": "dense_vector",
        "dims": 2048,
        "similarity": "cosine",
        "index": True,
        "index_options": {"type": "int8_hnsw"},
    },
    VERSION: {"type": "keyword"},
    URL: {"type": "keyword", "ignore_above": 8191},
    IMAGE: {"type": "keyword"},
    AT: {"type": "date"},
}
"""The fields we add to the shop's documents."""

DOCUMENT_FIELDS: dict[str, dict[str, Any]] = {
    "item_id": {"type": "keyword"},
    "item_name": {"type": "text"},
    "category_id": {"type": "keyword"},
    "img_url": {"type": "keyword", "ignore_above": 8191},
}
"""The core server's fields, for an index that we create."""

_LONGEST_ID = 512
"""Bytes; Elasticsearch's own limit."""
_OLDEST_SERVER = (9, 3)
_BULK_RETRIES = 5
_BULK_BYTES = 20_000_000
_PATIENCE = (429, 503)
"""Answers with which Elasticsearch asks for another try later."""
_TRANSIENT = (*_PATIENCE, 500, 502, 504)
"""Answers after which another try may succeed: also what a node says of a document while it closes."""
_REFUSED = (401, 403)
"""Answers to a document that hold for the index: no privilege, or blocked for writing."""
_ADVICE = {413: " It was too large: lower FEATURES_BULK_SIZE."}
"""What to do about a request refused with this status, where that is known."""
_LONGEST_REASON = 300
"""Characters; what stands before a server may answer with a whole page."""
_MOST_CATEGORIES = 1_000
_CANDIDATES = 100
"""What the search of each shard's graph looks at, at least."""
_OVERSAMPLE = 3.0
"""Times as many neighbours as wanted are compared again by their raw vectors: at 20,000 documents that finds
0.98 of the ten nearest, where the rounded vectors alone find 0.82 (benchmarks/index_types.py)."""
_FEATURES_AT_ONCE = 1_000
_PACKED = [{"field": FEATURE, "format": "binary"}]
"""Features as base64: as numbers they take eight times as long to read."""
_SHOWN_FIELDS = ["item_name", "category_id", "img_url", VERSION]
_LASTING = ("illegal_argument_exception", "index_closed_exception")
"""Why a document cannot be read, where waiting does not help."""


@dataclass(frozen=True, slots=True)
class Document:
    """What a write has to know of a document as it is now."""

    index: str
    """The index that holds it, where our name for it is an alias."""
    img_url: str | None
    version: str | None
    feature_url: str | None
    image: str | None
    at: datetime | None
    seq_no: int
    primary_term: int


@dataclass(frozen=True, slots=True)
class Category:
    """How far one category is covered."""

    category_id: str
    documents: int
    current: int
    """Documents with a feature of the version asked for."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many documents have a feature of one version."""

    documents: int
    current: int
    categories: tuple[Category, ...]
    """By their ids, the first 1,000."""
    elsewhere: int
    """Documents without a category, or of those beyond the first 1,000."""
    versions: Mapping[str, int]
    """Documents by the version of their feature."""


@dataclass(frozen=True, slots=True)
class Item:
    """What people see of a document; what the core server left out is None."""

    item_id: str
    item_name: str | None
    category_id: str | None
    img_url: str | None
    version: str | None
    """Of its feature."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An item that a search by feature found."""

    item: Item
    cosine: float
    """Of the angle between the two features."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The documents that a search by feature can find: those with one of this version and category."""

    version: str
    category_id: str = ""
    """Empty: of any."""
    without: str = ""
    """The id of an item that is not to be found: the one whose neighbours are sought."""


class SearchIndex:
    """The shop's index behind the connection shop_search.

    Every method raises ServiceUnavailableError when Elasticsearch does not answer, and
    ConfigurationError when it refuses for a reason that a person has to mend.
    """

    def __init__(self, connection: Connection, index: str) -> None:
        self.name = index
        self._url = address(connection)
        self._client = client(connection)

    def check(self) -> bool:
        """Refuse an index that cannot take the feature; touches nothing.

        Returns:
            Whether the index exists.
        """
        with self._explained():
            self._check_server()
            if not self._client.indices.exists(index=self.name):
                return False
            self._compatible_mapping()
            return True

    def prepare(self) -> str:
        """Create the index, or add the fields it lacks. `check` comes first.

        Returns:
            The name of the one index that ours stands for; an alias may move to another one.
        """
        from elasticsearch import BadRequestError

        with self._explained():
            if not self._client.indices.exists(index=self.name):
                try:
                    self._client.indices.create(
                        index=self.name, mappings={"properties": DOCUMENT_FIELDS | FIELDS}
                    )
                except BadRequestError as error:
                    if error.error != "resource_already_exists_exception":  # the core server was faster
                        raise
            concrete, mapping = self._compatible_mapping()
            held = mapping.get("properties", {})
            # A field that is there stays as the shop has tuned it.
            if lacking := {field: wanted for field, wanted in FIELDS.items() if field not in held}:
                self._client.indices.put_mapping(index=concrete, properties=lacking)
            return concrete

    def versions(self) -> dict[str, int]:
        """The feature versions in the index, with the number of documents of each."""
        with self._explained():
            answer = self._search(size=0, aggs={"versions": {"terms": {"field": VERSION, "size": 100}}})
            buckets = answer["aggregations"]["versions"]["buckets"]
            return {bucket["key"]: bucket["doc_count"] for bucket in buckets}

    def refuse_second_version(self, version: str, settings: Settings) -> None:
        """Refuse to add features of `version` beside those of another, unless `settings.mix_versions`.

        Raises:
            ConfigurationError: naming the versions that are there.
        """
        others = {other: count for other, count in self.versions().items() if other != version}
        if others and not settings.mix_versions:
            held = ", ".join(f"{other} ({count} documents)" for other, count in others.items())
            raise ConfigurationError(
                f"The index {self.name} holds features of {held}, and this would add {version}. "
                "Features of two versions cannot be compared. Install the model they were made with, take "
                "another index, or set FEATURES_MIX_VERSIONS=true if searches filter on the version."
            )

    def coverage(self, version: str) -> Coverage:
        """Count documents with a feature of `version`, by category, in two requests and without a scan.

        Sees what the index has refreshed.

        Raises:
            ConfigurationError: the index does not exist, or holds no category that can be counted.
        """
        with self._explained():
            categories = {"terms": self._categories()}
            answer = self._search(
                size=0,
                track_total_hits=True,
                aggs={
                    "versions": {"terms": {"field": VERSION, "size": 100}},
                    "categories": categories,
                    # Once for all: in each category anew, the filter would cost three times as much.
                    "current": {"filter": _of_version(version), "aggs": {"categories": categories}},
                },
            )
        counted = answer["aggregations"]
        documents = answer["hits"]["total"]["value"]
        current = {b["key"]: b["doc_count"] for b in counted["current"]["categories"]["buckets"]}
        found = tuple(
            Category(str(bucket["key"]), bucket["doc_count"], current.get(bucket["key"], 0))
            for bucket in counted["categories"]["buckets"]
        )
        return Coverage(
            documents=documents,
            current=counted["current"]["doc_count"],
            categories=found,
            elsewhere=documents - sum(category.documents for category in found),
            versions={bucket["key"]: bucket["doc_count"] for bucket in counted["versions"]["buckets"]},
        )

    def category(self, category_id: str, version: str) -> Category:
        """Count one category as `coverage` does, in two requests too."""
        with self._explained():
            answer = self._search(
                size=0,
                query={"term": {self._category_field: category_id}},
                track_total_hits=True,
                aggs={"current": {"filter": _of_version(version)}},
            )
        counted = answer["aggregations"]["current"]["doc_count"]
        return Category(category_id, answer["hits"]["total"]["value"], counted)

    def find(self, text: str, at_most: int) -> list[Item]:
        """Items whose id is `text`, then those with all its words in their name; the last word may be cut
        off. Sees what the index has refreshed."""
        named = {"match_bool_prefix": {"item_name": {"query": text, "operator": "and"}}}
        with self._explained():
            answer = self._search(
                size=at_most,
                query={"bool": {"should": [{"ids": {"values": [text], "boost": 1_000}}, named]}},
                track_total_hits=False,
                source=_SHOWN_FIELDS,
            )
        return [_item(hit) for hit in answer["hits"]["hits"]]

    def item(self, item_id: str) -> tuple[Item, NDArray[np.float32] | None] | None:
        """An item with its feature [dims], whatever its version; None where the index has no such item, as
        far as it has refreshed."""
        with self._explained():
            answer = self._search(
                query={"ids": {"values": [item_id]}}, source=_SHOWN_FIELDS, docvalue_fields=_PACKED
            )
        for hit in answer["hits"]["hits"]:
            return _item(hit), _features([hit])[0] if FEATURE in hit.get("fields", {}) else None
        return None

    def items(self, item_ids: Sequence[str]) -> dict[str, Item]:
        """These items, at most 10,000; one that is not there is absent."""
        with self._explained():
            answer = self._search(
                size=len(item_ids), query={"ids": {"values": list(item_ids)}}, source=_SHOWN_FIELDS
            )
        return {hit["_id"]: _item(hit) for hit in answer["hits"]["hits"]}

    def categories(self, version: str) -> dict[str, int]:
        """The categories with a feature of `version`, the first 1,000, with the number of such documents."""
        with self._explained():
            answer = self._search(
                size=0, query=_of_version(version), aggs={"categories": {"terms": self._categories()}}
            )
        buckets = answer["aggregations"]["categories"]["buckets"]
        return {str(bucket["key"]): bucket["doc_count"] for bucket in buckets}

    def count(self, scope: Scope) -> int:
        """How many items a search within the scope can find."""
        with self._explained():
            answer = self._search(size=0, query=self._within(scope), track_total_hits=True)
        total: int = answer["hits"]["total"]["value"]
        return total

    def nearest(self, feature: NDArray[np.float32], scope: Scope, at_most: int) -> list[Neighbour]:
        """The nearest items to a feature [dims], nearest first, by Elasticsearch's approximate search."""
        with self._explained():
            answer = self._search(
                size=at_most,
                knn={
                    "field": FEATURE,
                    "query_vector": feature.tolist(),
                    "k": at_most,
                    "num_candidates": max(_CANDIDATES, at_most),
                    "filter": self._within(scope),
                    "rescore_vector": {"oversample": _OVERSAMPLE},
                },
                source=_SHOWN_FIELDS,
            )
        # Elasticsearch scores a cosine as (1 + cosine) / 2.
        return [Neighbour(_item(hit), 2 * hit["_score"] - 1) for hit in answer["hits"]["hits"]]

    def features(self, scope: Scope) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Every feature that a search within the scope can find, as the index is at one moment.

        Yields:
            item ids and their features [n, dims], 1,000 at most.
        """
        with self._explained():
            point = self._client.open_point_in_time(index=self.name, keep_alive="1m")["id"]
            try:
                after = None
                while True:
                    answer = self._client.search(
                        pit={"id": point, "keep_alive": "1m"},
                        size=_FEATURES_AT_ONCE,
                        query=self._within(scope),
                        sort=["_shard_doc"],
                        search_after=after,
                        source=False,
                        docvalue_fields=_PACKED,
                        track_total_hits=False,
                        allow_partial_search_results=False,
                        filter_path="hits.hits._id,hits.hits.sort,hits.hits.fields",
                    )
                    hits = answer.get("hits", {}).get("hits", [])
                    if not hits:
                        return
                    yield [hit["_id"] for hit in hits], _features(hits)
                    after = hits[-1]["sort"]
            finally:
                self._client.close_point_in_time(id=point)

    def current(self, urls: Mapping[str, str | None], version: str) -> set[str]:
        """Of these items, with their URLs, the ones whose feature is of `version` and of this URL.

        Sees what the index has refreshed; at most 10,000 items at once.
        """
        # An empty id, which no document can have, would make Elasticsearch refuse them all.
        item_ids = [item_id for item_id in urls if item_id]
        with self._explained():
            answer = self._search(
                size=len(urls),
                query=_with_feature(item_ids, version),
                source=False,
                docvalue_fields=[{"field": URL}],
                filter_path="hits.hits._id,hits.hits.fields",
            )
        current, untold = set(), []
        for hit in answer.get("hits", {}).get("hits", []):
            values = hit.get("fields", {}).get(URL)
            if values is None:  # longer than ignore_above: only _source has it
                untold.append(hit["_id"])
            elif values[0] == urls[hit["_id"]]:
                current.add(hit["_id"])
        documents = self.documents(untold)
        return current | {item for item, held in documents.items() if held.feature_url == urls[item]}

    def documents(self, item_ids: Sequence[str]) -> dict[str, Document]:
        """The documents of these items as they are now, refreshed or not; a missing one is absent."""
        if not item_ids:
            return {}
        with self._explained():
            answer = self._client.mget(
                index=self.name,
                ids=list(item_ids),
                source_includes=["img_url", VERSION, URL, IMAGE, AT],
            )
        result = {}
        for found in answer["docs"]:
            if "error" in found:
                error = found["error"]
                raise (ConfigurationError if error["type"] in _LASTING else ServiceUnavailableError)(
                    f"Elasticsearch at {self._url} cannot read {found['_id']!r} from {self.name}: "
                    f"{error['reason']}."
                )
            if found["found"]:
                source = found.get("_source", {})
                result[found["_id"]] = Document(
                    index=found["_index"],
                    img_url=source.get("img_url"),
                    version=source.get(VERSION),
                    feature_url=source.get(URL),
                    image=source.get(IMAGE),
                    at=_time(source.get(AT)),
                    seq_no=found["_seq_no"],
                    primary_term=found["_primary_term"],
                )
        return result

    def write(self, actions: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, int, str]]:
        """Send bulk actions, to the index each names, else to ours. An item is tried again while
        Elasticsearch asks for patience, for a quarter of a minute.

        Yields:
            item id, HTTP status, and the reason where the status is not a success.
        """
        from elasticsearch import helpers

        answers: Any = helpers.streaming_bulk(  # a generator, which its type does not say
            # The helper pauses before it sends again; the client would send all these bytes at once.
            self._client.options(retry_on_status=()),
            ({"_index": self.name, **action} for action in actions),
            chunk_size=5_000,  # the caller's pages are smaller; bytes are what bounds a request
            max_chunk_bytes=_BULK_BYTES,
            raise_on_error=False,
            max_retries=_BULK_RETRIES,
            initial_backoff=0.5,
            max_backoff=20,
            retry_on_status=_TRANSIENT,
        )
        # Closed here, in the thread that opened it: left to the garbage collector, its trace of the request
        # would be ended in any other.
        with self._explained(), closing(answers):
            for _, answer in answers:
                result = next(iter(answer.values()))
                status, reason = result["status"], (result.get("error") or {}).get("reason", "")
                if status in _PATIENCE:
                    raise ServiceUnavailableError(
                        f"Elasticsearch at {self._url} takes nothing for {self.name} at the moment "
                        f"({status}: {reason})."
                    )
                if status in _REFUSED:
                    raise ConfigurationError(
                        f"Elasticsearch at {self._url} refuses to write to {self.name} ({status}: {reason})."
                    )
                yield result["_id"], status, reason

    def holding(self, item_ids: Sequence[str], version: str) -> set[str]:
        """Of these items, the ones that searches find with a feature of `version`; refreshes first."""
        with self._explained():
            failed = self._client.indices.refresh(index=self.name)["_shards"]["failed"]
            if failed:
                raise ServiceUnavailableError(
                    f"Elasticsearch at {self._url} cannot refresh {failed} shards of {self.name}. Try later."
                )
            found: set[str] = set()
            for start in range(0, len(item_ids), 10_000):
                answer = self._search(
                    size=10_000,
                    query=_with_feature(item_ids[start : start + 10_000], version),
                    source=False,
                    filter_path="hits.hits._id",
                )
                found |= {hit["_id"] for hit in answer.get("hits", {}).get("hits", [])}
            return found

    def _categories(self) -> dict[str, Any]:
        """The aggregation that counts documents by category."""
        return {"field": self._category_field, "size": _MOST_CATEGORIES, "order": {"_key": "asc"}}

    def _within(self, scope: Scope) -> dict[str, Any]:
        """The query for a scope's documents."""
        filters = [_of_version(scope.version)]
        if scope.category_id:
            filters.append({"term": {self._category_field: scope.category_id}})
        excluded = [{"ids": {"values": [scope.without]}}] if scope.without else []
        return {"bool": {"filter": filters, "must_not": excluded}}

    @functools.cached_property
    def _category_field(self) -> str:
        return self._keyword("category_id")

    def _keyword(self, field: str) -> str:
        """The field that `field` can be counted by: itself, or its keyword where it is mapped as text."""
        from elasticsearch import NotFoundError

        names = (field, f"{field}.keyword")
        try:
            found = self._client.field_caps(index=self.name, fields=list(names))["fields"]
        except NotFoundError:
            raise ConfigurationError(
                f"There is no index {self.name} at {self._url} yet. It appears with the shop's first "
                "document; if it has another name, set FEATURES_INDEX."
            ) from None
        for name in names:
            if name in found and all(kind["aggregatable"] for kind in found[name].values()):
                return name
        raise ConfigurationError(
            f"The index {self.name} cannot be counted by {field}: neither {' nor '.join(names)} is a keyword."
        )

    def _search(self, **request: Any) -> Any:
        # What one shard alone answers is no answer: the rest would count as absent.
        return self._client.search(index=self.name, allow_partial_search_results=False, **request)

    def _compatible_mapping(self) -> tuple[str, Mapping[str, Any]]:
        """The one index behind our name and its mapping, once that is seen to take the feature."""
        found = self._client.indices.get(index=self.name)
        (concrete, described), *others = found.items()
        if others or self.name not in (concrete, *described["aliases"]):
            raise ConfigurationError(
                f"FEATURES_INDEX={self.name} stands for {', '.join(sorted(found))}. "
                "It must be the name of one index, or an alias of one."
            )
        mode = described["settings"]["index"].get("mapping", {}).get("source", {}).get("mode")
        _check_mapping(concrete, described["mappings"], keeps_source=mode != "disabled")
        return concrete, described["mappings"]

    def _check_server(self) -> None:
        from elasticsearch import AuthorizationException

        try:
            # The root answers versions too, but not on every distribution of the server.
            nodes = self._client.nodes.info(filter_path="nodes.*.version")["nodes"].values()
            versions = [node["version"] for node in nodes]
        except AuthorizationException:
            versions = [self._client.info()["version"]["number"]]
        oldest = min(versions, key=_major_and_minor)
        if _major_and_minor(oldest) < _OLDEST_SERVER:
            raise ConfigurationError(
                f"Elasticsearch at {self._url} is {oldest}; the features need 9.3 or newer."
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
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
                f"Elasticsearch at {self._url} refuses us ({error.status_code}: {_reason(error)}). "
                "Check the log-in of the connection shop_search and its privileges on the index."
            ) from None
        except ApiError as error:
            if error.status_code in (408, 429) or error.status_code >= 500:
                raise ServiceUnavailableError(
                    f"Elasticsearch at {self._url} answers {error.status_code}: {_reason(error)}. Try later."
                ) from None
            raise ConfigurationError(
                f"Elasticsearch at {self._url} refuses a request on the index {self.name} "
                f"({error.status_code}: {_reason(error)}).{_ADVICE.get(error.status_code, '')}"
            ) from None
        except TransportError as error:
            raise ServiceUnavailableError(
                # Of an answer that cannot be read, the client quotes all.
                f"Elasticsearch at {self._url} does not answer: {str(error.message)[:_LONGEST_REASON]}. "
                "Check that it runs and that the connection shop_search (or ELASTICSEARCH_URL) is right."
            ) from None


def can_be_id(item_id: str) -> bool:
    """Whether a document can have this id."""
    return 0 < len(item_id.encode()) <= _LONGEST_ID


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


def _with_feature(item_ids: Sequence[str], version: str) -> dict[str, Any]:
    return {
        "bool": {
            "filter": [
                {"ids": {"values": list(item_ids)}},
                _of_version(version),
            ]
        }
    }


def _of_version(version: str) -> dict[str, Any]:
    return {"bool": {"filter": [{"term": {VERSION: version}}, {"exists": {"field": FEATURE}}]}}


def _item(hit: Mapping[str, Any]) -> Item:
    """A document as searches give it; what it holds is what anyone has written there."""
    source = hit.get("_source", {})
    shown = (source.get(field) for field in _SHOWN_FIELDS)
    return Item(hit["_id"], *(None if value is None else str(value) for value in shown))


def _features(hits: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
    """The features [n, dims] of documents that have one."""
    return np.array([_feature(hit["fields"][FEATURE]) for hit in hits], np.float32)


def _feature(values: list[Any]) -> NDArray[Any]:
    if isinstance(values[0], str):
        return np.frombuffer(base64.b64decode(values[0]), ">f4")
    return np.array(values).ravel()  # a server before 9.4 knows no other format


def _time(value: object) -> datetime | None:
    """The time of a feature; None where there is none, or it was not written by us."""
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _major_and_minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _check_mapping(index: str, mapping: Mapping[str, Any], *, keeps_source: bool) -> None:
    source = mapping.get("_source", {})
    if not keeps_source or source.get("enabled") is False:
        raise ConfigurationError(
            f"The index {index} keeps no _source, so documents cannot be updated in part. "
            "Reindex it with _source enabled."
        )
    # Not only for our fields: our own partial updates would wipe whatever else is left out.
    if source.get("excludes") or source.get("includes", ["*"]) != ["*"]:
        raise ConfigurationError(
            f"The mapping of {index} leaves fields out of _source (excludes {source.get('excludes', [])}, "
            f"includes {source.get('includes', [])}): any partial update of a document wipes them. Reindex "
            "with a mapping whose _source has neither; Elasticsearch 9.2 and newer keeps vectors out of the "
            "stored source by itself."
        )
    properties = mapping.get("properties", {})
    for field, wanted in FIELDS.items():
        held = properties.get(field)
        if held is None:
            continue
        for key in ("type", "dims", "similarity"):
            if key in wanted and held.get(key) != wanted[key]:
                raise ConfigurationError(
                    f"The field {field} of {index} has {key} {held.get(key)!r}, but must have "
                    f"{wanted[key]!r}. A field's mapping cannot be changed: reindex without the field, or "
                    "point FEATURES_INDEX at another index."
                )
        if wanted.get("index") and held.get("index") is False:
            raise ConfigurationError(
                f"The field {field} of {index} is not indexed, so no search can use it. "
                "Reindex with index: true."
            )


def _reason(error: Any) -> str:
    """What Elasticsearch gives as the reason, without the request."""
    body = error.body if isinstance(error.body, dict) else {}
    cause = body.get("error")
    if isinstance(cause, dict):
        cause = cause.get("reason") or cause.get("type")
    return str(cause or error.message)[:_LONGEST_REASON]
