"""The index as the stages need it: what it holds already, the documents as they are, and writing to them."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.search.client import IndexClient, in_words
from tasks.search.mapping import (
    AT,
    COMPACT,
    COMPACT_VERSION,
    FEATURE,
    FIELDS,
    GROUP,
    IMAGE,
    PACKED,
    PACKED_COMPACT,
    URL,
    VERSION,
    check_server,
    compatible_mapping,
    not_of_version,
    of_space,
    of_version,
    unpacked,
    vector_of,
)
from tasks.settings import Settings

_BULK_RETRIES = 5
_BULK_BYTES = 20_000_000
_PATIENCE = (429, 503)
"""Answers with which Elasticsearch asks for another try later."""
_TRANSIENT = (*_PATIENCE, 500, 502, 504)
"""Answers after which another try may succeed: also what a node says of a document while it closes."""
_IDS_AT_ONCE = 5_000
_LOOKED_AT = 100
"""Documents."""
_CONFLICT, _MISSING = 409, 404
_REFUSED = (401, 403)
"""Answers to a document that hold for the index: no privilege, or blocked for writing."""
_LASTING = ("illegal_argument_exception", "index_closed_exception")
"""Why a document cannot be read, where waiting does not help."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A document as it was read."""

    item_id: str
    seq_no: int
    primary_term: int

    def update(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The bulk action that changes these fields, unless the document has changed since."""
        return {
            "_op_type": "update",
            "_id": self.item_id,
            "if_seq_no": self.seq_no,
            "if_primary_term": self.primary_term,
            "doc": fields,
        }


@dataclass(frozen=True, slots=True)
class Document(Seen):
    """What a write has to know of a document as it is now."""

    index: str
    """The index that holds it, where our name for it is an alias."""
    urls: tuple[str, ...] | None
    """Those of its pictures; None where the shop's documents hold none."""
    version: str | None
    feature_url: str | None
    image: str | None
    at: datetime | None
    compact_version: str | None
    """Of the space that its compact vector is of."""
    group: str | None
    """Of the items that show the same picture."""

    def lacks(self, url: str | None) -> bool:
        """Whether it should hold this URL and does not."""
        return self.urls is not None and url not in self.urls


class Held(NamedTuple):
    """A document with its vectors, None where it has none."""

    document: Document
    feature: NDArray[np.float32] | None
    """[2048]."""
    compact: NDArray[np.float32] | None
    """[128]."""


@dataclass(frozen=True, slots=True)
class WithFeature(Seen):
    """One with its feature."""

    version: str
    compact_version: str | None
    feature: NDArray[np.float32]
    """[2048]."""


class Written(NamedTuple):
    """What Elasticsearch answered to a write."""

    item_id: str
    status: int
    """Of HTTP."""
    reason: str
    """Empty where the status is a success."""
    seq_no: int | None
    """What the document had then: negative where an ingest pipeline dropped it, None where it was refused."""

    @property
    def done(self) -> bool:
        """Whether it was taken."""
        return 200 <= self.status < 300

    @property
    def outdated(self) -> bool:
        """Whether the document has changed since it was read, or is gone."""
        return self.status in (_CONFLICT, _MISSING)

    @property
    def refusal(self) -> str:
        """Why it was not taken, in a sentence that is not too long to keep."""
        return f"{self.status}: {self.reason}"[:500]


class SearchIndex(IndexClient):
    """The shop's index behind the connection shop_search.

    Every method raises ServiceUnavailableError when Elasticsearch does not answer, and
    ConfigurationError when it refuses for a reason that a person has to mend.
    """

    def check(self) -> bool:
        """Refuse an index that cannot take the feature; touches nothing.

        Returns:
            Whether the index exists.
        """
        with self.errors_explained():
            check_server(self)
            if not self.client.indices.exists(index=self.name):
                return False
            compatible_mapping(self)
            routed = self.search(size=0, query={"exists": {"field": "_routing"}}, track_total_hits=True)
            if count := routed["hits"]["total"]["value"]:
                raise ConfigurationError(
                    f"{count} documents of {self.name} carry a routing, as those of a join do, and features "
                    "are written by a document's id alone. Reindex them without (in _reindex, "
                    '"routing": "discard"), or point FEATURES_INDEX at an index that has none.'
                )
            return True

    def prepare(self) -> str:
        """Create the index, or add the fields it lacks. `check` comes first.

        Returns:
            The name of the one index that ours stands for; an alias may move to another one.
        """
        from elasticsearch import BadRequestError

        with self.errors_explained():
            if not self.client.indices.exists(index=self.name):
                try:
                    self.client.indices.create(
                        index=self.name, mappings={"properties": self.fields.properties() | FIELDS}
                    )
                except BadRequestError as error:
                    if error.error != "resource_already_exists_exception":  # the core server was faster
                        raise
            concrete, mapping = compatible_mapping(self)
            held = mapping.get("properties", {})
            # A field that is there stays as the shop has tuned it.
            if lacking := {field: wanted for field, wanted in FIELDS.items() if field not in held}:
                self.client.indices.put_mapping(index=concrete, properties=lacking)
            return concrete

    def versions(self) -> dict[str, int]:
        """The feature versions in the index, with the number of documents of each."""
        with self.errors_explained():
            answer = self.search(size=0, aggs={"versions": {"terms": {"field": VERSION, "size": 100}}})
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

    def refuse_unknown_urls(self) -> None:
        """Refuse an index none of whose documents holds a URL where the settings say.

        Raises:
            ConfigurationError: every item would wait for its document.
        """
        field = self.fields.url
        if field is None:
            return
        # Those that have the field come first; where it is not mapped, any may have it.
        query = {"bool": {"should": [{"exists": {"field": field}}, {"match_all": {}}]}}
        with self.errors_explained():
            hits = self.search(size=_LOOKED_AT, query=query, source=[field])["hits"]["hits"]
        if hits and not any(self.fields.urls(hit.get("_source", {})) for hit in hits):
            raise ConfigurationError(
                f"No document of {self.name} holds the URL of its picture in {field}, so every item would "
                "wait for its document. Set FEATURES_DOCUMENT_URL_FIELD to the field that holds it, such as "
                "image.src, or to none if documents hold none; then the catalogue's URL counts."
            )

    def current(self, urls: Mapping[str, str | None], version: str) -> set[str]:
        """Of these items, with their URLs, the ones whose feature is of `version` and of this URL.

        Sees what the index has refreshed; at most 10,000 items at once.
        """
        # An empty id, which no document can have, would make Elasticsearch refuse them all.
        item_ids = [item_id for item_id in urls if item_id]
        with self.errors_explained():
            answer = self.search(
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

    def without_feature(self, version: str) -> tuple[int, Iterable[list[str]]]:
        """How many documents have no feature of `version`, and their ids, 5,000 at once.

        Sees what the index has refreshed; the ids are those of one moment.
        """
        query = not_of_version(version)
        with self.errors_explained():
            hits = self.search(
                size=_IDS_AT_ONCE,
                query=query,
                source=False,
                track_total_hits=True,
                filter_path="hits.total.value,hits.hits._id",
            )["hits"]
        total = hits["total"]["value"]
        found = hits.get("hits", [])
        # Mostly this is all, and a point in time would take four requests more.
        pages = [found] if total == len(found) else self.pages(query, _IDS_AT_ONCE, source=False)
        return total, ([hit["_id"] for hit in page] for page in pages)

    def compact_coverage(self, version: str, space: str) -> tuple[int, int]:
        """How many documents with a feature of `version` have a compact vector of `space`, and how many lack
        it. Sees what the index has refreshed.
        """
        having = {"bool": {"filter": [of_version(version), of_space(space)]}}
        return self.found_by(having), self.found_by(_lacking(version, space))

    def without_compact(self, version: str, space: str, size: int) -> Generator[list[WithFeature]]:
        """The latter, `size` at once, as they are at one moment. Close it where it may not have ended."""
        pages = self.pages(
            _lacking(version, space),
            size,
            source=[VERSION, COMPACT_VERSION],
            docvalue_fields=PACKED,
            seq_no_primary_term=True,
        )
        with closing(pages):
            for page in pages:
                yield [_with_feature_of(hit, vector_of(hit)) for hit in page]

    def feature_now(self, item_id: str) -> WithFeature | None:
        """The document of an item with its feature as it is now, refreshed or not; None without either."""
        from elasticsearch import NotFoundError

        with self.errors_explained():
            try:
                found = self.client.get(
                    index=self.name,
                    id=item_id,
                    source_includes=[VERSION, COMPACT_VERSION, FEATURE],
                    source_exclude_vectors=False,
                )
            except NotFoundError as error:
                if "found" not in error.body:  # it is the index that is not there
                    raise
                return None
        source = found["_source"]
        if not (source.get(FEATURE) and source.get(VERSION)):
            return None
        return _with_feature_of(found.body, unpacked(source[FEATURE]))

    def compact_without_feature(self, size: int) -> Generator[list[Seen]]:
        """The documents with a compact vector and without the feature that it is of, `size` at once."""
        compact = [{"exists": {"field": field}} for field in (COMPACT, COMPACT_VERSION)]
        query = {
            "bool": {
                "should": compact,
                "minimum_should_match": 1,
                "must_not": {"exists": {"field": FEATURE}},
            }
        }
        pages = self.pages(query, size, source=False, seq_no_primary_term=True)
        with closing(pages):
            for page in pages:
                yield [Seen(hit["_id"], hit["_seq_no"], hit["_primary_term"]) for hit in page]

    def documents(self, item_ids: Sequence[str]) -> dict[str, Document]:
        """The documents of these items as they are now, refreshed or not; a missing one is absent."""
        if not item_ids:
            return {}
        with self.errors_explained():
            answer = self.client.mget(
                index=self.name,
                ids=list(item_ids),
                source_includes=self._read,
            )
        result = {}
        for found in answer["docs"]:
            if "error" in found:
                error = found["error"]
                raise (ConfigurationError if error["type"] in _LASTING else ServiceUnavailableError)(
                    f"Elasticsearch at {self.url} cannot read {found['_id']!r} from {self.name}: "
                    f"{in_words(error)}."
                )
            if found["found"]:
                result[found["_id"]] = self._document(found)
        return result

    def documents_in(self, target: str, item_ids: Sequence[str]) -> dict[str, Document]:
        """The same, as long as our name stands for the index `target`."""
        documents = self.documents(item_ids)
        if any(document.index != target for document in documents.values()):
            raise ServiceUnavailableError(
                f"{self.name} stands for another index since this work began. Doing it again writes there."
            )
        return documents

    def with_vectors(self, item_ids: Sequence[str]) -> dict[str, Held]:
        """The documents of these items with their vectors, as far as the index has refreshed."""
        with self.errors_explained():
            hits = self.search(
                size=len(item_ids),
                query={"ids": {"values": list(item_ids)}},
                source=self._read,
                docvalue_fields=[*PACKED, PACKED_COMPACT],
                seq_no_primary_term=True,
            )["hits"]["hits"]
        return {
            hit["_id"]: Held(self._document(hit), vector_of(hit), vector_of(hit, COMPACT)) for hit in hits
        }

    def pipelines(self) -> str:
        """Which ingest pipelines the index itself names, in words."""
        with self.errors_explained():
            (found,) = self.client.indices.get_settings(index=self.name).values()
        names = ("default_pipeline", "final_pipeline")
        held = [
            f"{name} {found['settings']['index'][name]}"
            for name in names
            if name in found["settings"]["index"]
        ]
        return (
            f"the index has the {' and the '.join(held)}"
            if held
            else "the index itself names no ingest pipeline"
        )

    @property
    def _read(self) -> list[str]:
        return [*filter(None, [self.fields.url]), VERSION, URL, IMAGE, AT, COMPACT_VERSION, GROUP]

    def _document(self, found: Mapping[str, Any]) -> Document:
        source = found.get("_source", {})
        return Document(
            item_id=found["_id"],
            index=found["_index"],
            urls=self.fields.urls(source),
            version=source.get(VERSION),
            feature_url=source.get(URL),
            image=source.get(IMAGE),
            at=_time(source.get(AT)),
            compact_version=source.get(COMPACT_VERSION),
            group=source.get(GROUP),
            seq_no=found["_seq_no"],
            primary_term=found["_primary_term"],
        )

    def write(self, actions: Iterable[Mapping[str, Any]]) -> Iterator[Written]:
        """Send bulk actions, to the index each names, else to ours. An item is tried again while
        Elasticsearch asks for patience, for a quarter of a minute.

        Yields:
            the answer to each action.
        """
        from elasticsearch import helpers

        answers: Any = helpers.streaming_bulk(  # a generator, which its type does not say
            # The helper pauses before it sends again; the client would send all these bytes at once.
            self.client.options(retry_on_status=()),
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
        with self.errors_explained(), closing(answers):
            for _, answer in answers:
                result = next(iter(answer.values()))
                status = result["status"]
                reason = in_words(result["error"]) if "error" in result else ""
                if status in _PATIENCE:
                    raise ServiceUnavailableError(
                        f"Elasticsearch at {self.url} takes nothing for {self.name} at the moment "
                        f"({status}: {reason})."
                    )
                if status in _REFUSED:
                    raise ConfigurationError(
                        f"Elasticsearch at {self.url} refuses to write to {self.name} ({status}: {reason})."
                    )
                yield Written(result["_id"], status, reason, result.get("_seq_no"))

    def holding(self, item_ids: Sequence[str], version: str) -> set[str]:
        """Of these items, the ones that searches find with a feature of `version`; refreshes first."""
        return self._holding(item_ids, of_version(version))

    def holding_compact(self, item_ids: Sequence[str], space: str) -> set[str]:
        """The same with a compact vector of `space`."""
        return self._holding(item_ids, of_space(space))

    def _holding(self, item_ids: Sequence[str], what: Mapping[str, Any]) -> set[str]:
        if not item_ids:
            return set()
        self.refresh()
        found: set[str] = set()
        with self.errors_explained():
            for start in range(0, len(item_ids), 10_000):
                ids = {"ids": {"values": list(item_ids[start : start + 10_000])}}
                answer = self.search(
                    size=10_000,
                    query={"bool": {"filter": [ids, what]}},
                    source=False,
                    filter_path="hits.hits._id",
                )
                found |= {hit["_id"] for hit in answer.get("hits", {}).get("hits", [])}
        return found


def _lacking(version: str, space: str) -> dict[str, Any]:
    return {"bool": {"filter": of_version(version), "must_not": of_space(space)}}


def _with_feature_of(found: Mapping[str, Any], feature: NDArray[np.float32] | None) -> WithFeature:
    assert feature is not None
    source = found["_source"]
    return WithFeature(
        found["_id"],
        found["_seq_no"],
        found["_primary_term"],
        source[VERSION],
        source.get(COMPACT_VERSION),
        feature,
    )


def _with_feature(item_ids: Sequence[str], version: str) -> dict[str, Any]:
    return {
        "bool": {
            "filter": [
                {"ids": {"values": list(item_ids)}},
                of_version(version),
            ]
        }
    }


def _time(value: object) -> datetime | None:
    """The time of a feature; None where there is none, or it was not written by us."""
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
