"""What people ask of the index: how far it is covered, its items, and the nearest ones to a feature."""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigurationError
from tasks.search.client import IndexClient
from tasks.search.document_fields import values
from tasks.search.mapping import (
    COMPACT,
    FEATURE,
    GROUP,
    PACKED,
    URL,
    VERSION,
    not_of_version,
    of_space,
    of_version,
    vector_of,
)

_MOST_CATEGORIES = 1_000
_CANDIDATES = 100
"""What the search of each shard's graph looks at, at least."""
_OVERSAMPLE = 3.0
"""Times as many neighbours as wanted are compared again by their raw vectors: the rounded ones alone miss
many of the nearest ("recall" of int8_hnsw in docs/figures.md)."""
PAGE = 1_000
"""Features that are read at once."""


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
    """Documents without a category, and those of categories beyond the first 1,000."""
    versions: Mapping[str, int]
    """Documents by the version of their feature."""


@dataclass(frozen=True, slots=True)
class Item:
    """What people see of a document, of several values the first; what the core server left out is None."""

    item_id: str
    item_name: str | None
    category_id: str | None
    img_url: str | None
    """Of several the one that its feature is of, which also stands for it where documents hold none."""
    version: str | None
    """Of its feature."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An item that a search by feature found."""

    item: Item
    cosine: float
    """Of the angle between the two features, or compact vectors."""


@dataclass(frozen=True, slots=True)
class Group:
    """Items that show the same picture."""

    group: str
    documents: int
    items: tuple[Item, ...]
    """Some of them, by their ids."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The documents that a search by feature can find: those with one of this version."""

    version: str
    category_ids: tuple[str, ...] = ()
    """Of one of these; none: of any."""
    without: str = ""
    """The id of an item that is not to be found: the one whose neighbours are sought."""
    space: str = ""
    """Only those with a compact vector of this space, by which they are compared; none: by their features."""


class ItemQueries(IndexClient):
    """The shop's items as the index has them, as far as it has refreshed.

    Every method raises ServiceUnavailableError when Elasticsearch does not answer, and
    ConfigurationError when it refuses for a reason that a person has to mend.
    """

    def coverage(self, version: str) -> Coverage:
        """Count documents with a feature of `version`, by category, in two requests and without a scan.

        Sees what the index has refreshed.

        Raises:
            ConfigurationError: the index does not exist, or holds no category that can be counted.
        """
        with self.errors_explained():
            categories = self._by_category()
            answer = self.search(
                size=0,
                track_total_hits=True,
                aggs={
                    "versions": {"terms": {"field": VERSION, "size": 100}},
                    **categories,
                    # Once for all: in each category anew, the filter would cost three times as much.
                    "current": {"filter": of_version(version), "aggs": categories},
                },
            )
        counted = answer["aggregations"]
        documents = answer["hits"]["total"]["value"]
        current = {b["key"]: b["doc_count"] for b in _buckets(counted["current"])}
        found = tuple(
            Category(str(bucket["key"]), bucket["doc_count"], current.get(bucket["key"], 0))
            for bucket in _buckets(counted)
        )
        # Not what is left of the sum: a document of several categories counts in each of them.
        elsewhere = (
            counted["without"]["doc_count"] + counted["categories"]["sum_other_doc_count"]
            if categories
            else documents
        )
        return Coverage(
            documents=documents,
            current=counted["current"]["doc_count"],
            categories=found,
            elsewhere=elsewhere,
            versions={bucket["key"]: bucket["doc_count"] for bucket in counted["versions"]["buckets"]},
        )

    def category(self, category_id: str, version: str) -> Category:
        """Count one category as `coverage` does, in two requests too."""
        with self.errors_explained():
            answer = self.search(
                size=0,
                query=self._of_categories((category_id,)),
                track_total_hits=True,
                aggs={"current": {"filter": of_version(version)}},
            )
        counted = answer["aggregations"]["current"]["doc_count"]
        return Category(category_id, answer["hits"]["total"]["value"], counted)

    def without_feature(self, item_ids: Sequence[str], version: str) -> int:
        """How many of these items, at most 10,000, have a document without a feature of `version`."""
        wanted = {"bool": {"filter": [{"ids": {"values": list(item_ids)}}, not_of_version(version)]}}
        return self.found_by(wanted)

    def find(self, text: str, at_most: int) -> list[Item]:
        """Items whose id is `text`, then those with all its words in their name; the last word may be cut
        off, unless the server allows no expensive queries. Sees what the index has refreshed."""
        from elasticsearch import BadRequestError

        with self.errors_explained():
            try:
                return self._found(text, at_most, "match_bool_prefix")
            except BadRequestError as error:
                if "search.allow_expensive_queries" not in str(error.body):
                    raise
                return self._found(text, at_most, "match")

    def _found(self, text: str, at_most: int, by_name: str) -> list[Item]:
        wanted: list[dict[str, Any]] = [{"ids": {"values": [text], "boost": 1_000}}]
        if name := self.fields.name:
            wanted.append({by_name: {name: {"query": text, "operator": "and"}}})
        answer = self.search(
            size=at_most, query={"bool": {"should": wanted}}, track_total_hits=False, source=self._shown
        )
        return [self._item(hit) for hit in answer["hits"]["hits"]]

    def newest(self, version: str, at_most: int) -> list[Item]:
        """The items with a feature of `version` whose documents were written last, the last one first; of an
        index with several shards about so.
        """
        with self.errors_explained():
            answer = self.search(
                size=at_most,
                query=of_version(version),
                sort=[{"_seq_no": "desc"}],
                track_total_hits=False,
                source=self._shown,
            )
        return [self._item(hit) for hit in answer["hits"]["hits"]]

    def item(self, item_id: str) -> tuple[Item, NDArray[np.float32] | None] | None:
        """An item with its feature [dims], whatever its version; None where the index has no such item, as
        far as it has refreshed."""
        with self.errors_explained():
            answer = self.search(
                query={"ids": {"values": [item_id]}}, source=self._shown, docvalue_fields=PACKED
            )
        for hit in answer["hits"]["hits"]:
            return self._item(hit), vector_of(hit)
        return None

    def items(self, item_ids: Sequence[str]) -> dict[str, Item]:
        """These items, at most 10,000; one that is not there is absent."""
        with self.errors_explained():
            answer = self.search(
                size=len(item_ids), query={"ids": {"values": list(item_ids)}}, source=self._shown
            )
        return {hit["_id"]: self._item(hit) for hit in answer["hits"]["hits"]}

    def categories(self, version: str) -> dict[str, int]:
        """The categories with a feature of `version`, the first 1,000, with the number of such documents."""
        with self.errors_explained():
            answer = self.search(size=0, query=of_version(version), aggs=self._by_category())
        return {str(b["key"]): b["doc_count"] for b in _buckets(answer.get("aggregations", {}))}

    def count(self, scope: Scope) -> int:
        """How many items a search within the scope can find."""
        with self.errors_explained():
            query = self._within(scope)
        return self.found_by(query)

    def largest_groups(self, version: str, at_most: int, shown: int) -> list[Group]:
        """The largest groups of items with a feature of `version`, so many at most and of two items at least,
        with so many of their items.
        """
        groups = {
            "terms": {"field": GROUP, "size": at_most, "min_doc_count": 2},
            "aggs": {"items": {"top_hits": {"size": shown, "_source": self._shown}}},
        }
        with self.errors_explained():
            answer = self.search(size=0, query=of_version(version), aggs={"groups": groups})
        return [
            Group(bucket["key"], bucket["doc_count"], self._in_order(bucket["items"]["hits"]["hits"]))
            for bucket in answer["aggregations"]["groups"]["buckets"]
        ]

    def group(self, group: str, version: str, shown: int) -> Group:
        """One group of items with a feature of `version`, with so many of them."""
        with self.errors_explained():
            answer = self.search(
                size=shown,
                query={"bool": {"filter": [of_version(version), {"term": {GROUP: group}}]}},
                sort=["_doc"],
                track_total_hits=True,
                source=self._shown,
            )
        hits = answer["hits"]
        return Group(group, hits["total"]["value"], self._in_order(hits["hits"]))

    def _in_order(self, hits: Sequence[Mapping[str, Any]]) -> tuple[Item, ...]:
        return tuple(sorted((self._item(hit) for hit in hits), key=lambda item: item.item_id))

    def nearest(self, vector: NDArray[np.float32], scope: Scope, at_most: int) -> list[Neighbour]:
        """The nearest items, nearest first, by Elasticsearch's approximate search.

        Args:
            vector: a feature [dims], or a compact vector [128] of the scope's space.
        """
        with self.errors_explained():
            answer = self.search(
                size=at_most,
                knn={
                    "field": COMPACT if scope.space else FEATURE,
                    "query_vector": vector.tolist(),
                    "k": at_most,
                    "num_candidates": max(_CANDIDATES, at_most),
                    "filter": self._within(scope),
                    "rescore_vector": {"oversample": _OVERSAMPLE},
                },
                source=self._shown,
            )
        # Elasticsearch scores a cosine as (1 + cosine) / 2.
        return [Neighbour(self._item(hit), 2 * hit["_score"] - 1) for hit in answer["hits"]["hits"]]

    def features(self, scope: Scope) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Every feature that a search within the scope can find, as the index is at one moment.

        Yields:
            item ids and their features [n, dims], 1,000 at most.
        """
        for hits in self._pages(scope, source=False):
            yield [hit["_id"] for hit in hits], _features(hits)

    def rows(self, scope: Scope) -> Iterator[tuple[list[str], list[str], list[str], NDArray[np.float32]]]:
        """The same with what else is known of the items.

        Yields:
            item ids, categories and URLs of pictures, empty where the document has none, and features
            [n, dims].
        """
        for hits in self._pages(scope, source=self._shown):
            items = [self._item(hit) for hit in hits]
            yield (
                [item.item_id for item in items],
                [item.category_id or "" for item in items],
                [item.img_url or "" for item in items],
                _features(hits),
            )

    def _pages(self, scope: Scope, source: Any) -> Iterator[list[dict[str, Any]]]:
        with self.errors_explained():
            query = self._within(scope)
        return self.pages(query, PAGE, source=source, docvalue_fields=PACKED)

    @property
    def _shown(self) -> list[str]:
        return [*self.fields.read, URL, VERSION]

    def _item(self, hit: Mapping[str, Any]) -> Item:
        """A document as searches give it; what it holds is what anyone has written there."""
        source = hit.get("_source", {})
        fields = self.fields
        urls = fields.urls(source)
        feature_url = source.get(URL)
        return Item(
            hit["_id"],
            item_name=_first(source, fields.name),
            category_id=_first(source, fields.category),
            img_url=urls[0] if urls and feature_url not in urls else feature_url,
            version=_first(source, VERSION),
        )

    def _by_category(self) -> dict[str, Any]:
        """The aggregations that count documents by category, and those without any."""
        if self._category_field is None:
            return {}
        terms = {"field": self._category_field, "size": _MOST_CATEGORIES, "order": {"_key": "asc"}}
        return {"categories": {"terms": terms}, "without": {"missing": {"field": self._category_field}}}

    def _of_categories(self, category_ids: Sequence[str]) -> dict[str, Any]:
        field = self._category_field
        return {"terms": {field: list(category_ids)}} if field else {"match_none": {}}

    def _within(self, scope: Scope) -> dict[str, Any]:
        """The query for a scope's documents."""
        filters = [of_version(scope.version)]
        if scope.space:
            filters.append(of_space(scope.space))
        if scope.category_ids:
            filters.append(self._of_categories(scope.category_ids))
        excluded = [{"ids": {"values": [scope.without]}}] if scope.without else []
        return {"bool": {"filter": filters, "must_not": excluded}}

    @functools.cached_property
    def _category_field(self) -> str | None:
        """The field that documents can be counted by: that of the category, or a keyword made of it."""
        field = self.fields.category
        if field is None:
            return None
        outer = [field[: dot.start()] for dot in re.finditer(r"\.", field)]
        found = self.client.field_caps(index=self.name, fields=[*outer, field, f"{field}.*"])["fields"]
        if not found.get(field, {}).keys() & {"object", "nested"}:
            # Of several the usual one first.
            within = sorted(found.keys() - {field, *outer}, key=lambda name: name != f"{field}.keyword")
            for name in (field, *within):
                kinds = found.get(name, {}).values()
                if kinds and all(k["aggregatable"] for k in kinds) and self._is_seen(name, outer, found):
                    return str(name)
        raise ConfigurationError(
            f"The index {self.name} cannot be counted by {field}: it is no keyword outside of nested "
            "objects, and has none. Set FEATURES_DOCUMENT_CATEGORY_FIELD to the field of the category, "
            "or to none."
        )

    def _is_seen(self, field: str, outer: Sequence[str], found: Mapping[str, Any]) -> bool:
        """Whether searches of whole documents see the field: of nested objects they see what is included."""
        if not any("nested" in found.get(name, {}) for name in outer):
            return True
        answer = self.search(size=0, query={"exists": {"field": field}}, track_total_hits=1)
        return bool(answer["hits"]["total"]["value"])


def _buckets(aggregations: Mapping[str, Any]) -> list[dict[str, Any]]:
    buckets: list[dict[str, Any]] = aggregations.get("categories", {}).get("buckets", [])
    return buckets


def _first(source: Mapping[str, Any], field: str | None) -> str | None:
    found = values(source, field) if field else []
    return str(found[0]) if found else None


def _features(hits: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
    """The features [n, dims] of documents that have one."""
    return np.array([vector_of(hit) for hit in hits], np.float32)
