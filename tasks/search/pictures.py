"""The index by its pictures: which documents show which, and what is known of each."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.search.client import IndexClient
from tasks.search.mapping import (
    FEATURE,
    GROUP,
    IMAGE,
    PACKED,
    URL,
    VERSION,
    vector_of,
)

DOCUMENTS_AT_ONCE = 5_000
_FEATURES_AT_ONCE = 1_000


class Shown(NamedTuple):
    """A document with the picture that its feature is of."""

    item_id: str
    image: str
    """sha256 of the picture."""
    group: str | None
    """The group that it is in."""


class Picture(NamedTuple):
    """A picture as one of the documents has it."""

    feature: NDArray[np.float32]
    """[dims]"""
    url: str | None


class PictureQueries(IndexClient):
    """The pictures of the shop's index, as far as it has refreshed.

    Every method raises ServiceUnavailableError when Elasticsearch does not answer, and
    ConfigurationError when it refuses for a reason that a person has to mend.
    """

    def count(self, version: str) -> int:
        """How many documents `shown` will give."""
        return self.found_by(_with_picture(version))

    def shown(self, version: str) -> Iterator[list[Shown]]:
        """The documents with a feature of `version`, 5,000 at once, as the index is at one moment."""
        fields = [{"field": IMAGE}, {"field": GROUP}]
        query = _with_picture(version)
        for hits in self.pages(query, DOCUMENTS_AT_ONCE, source=False, docvalue_fields=fields):
            yield [
                Shown(hit["_id"], hit["fields"][IMAGE][0], hit["fields"].get(GROUP, [None])[0])
                for hit in hits
            ]

    def described(self, images: Sequence[str], version: str) -> dict[str, Picture]:
        """These pictures by their sha256; one that no document has any more is absent."""
        found = {}
        for begin in range(0, len(images), _FEATURES_AT_ONCE):
            some = list(images[begin : begin + _FEATURES_AT_ONCE])
            with self.errors_explained():
                answer = self.search(
                    size=len(some),
                    query={"bool": {"filter": [_with_picture(version), {"terms": {IMAGE: some}}]}},
                    collapse={"field": IMAGE},
                    source=[URL],
                    docvalue_fields=PACKED,
                    filter_path="hits.hits._source,hits.hits.fields",
                )
            for hit in answer.get("hits", {}).get("hits", []):
                url = hit.get("_source", {}).get(URL)
                feature = vector_of(hit)
                assert feature is not None
                found[hit["fields"][IMAGE][0]] = Picture(feature, url)
        return found

    def in_groups(self, item_ids: Sequence[str]) -> dict[str, str]:
        """The groups of these items, at most 10,000; refreshes first. One that is in none is absent."""
        self.refresh()
        with self.errors_explained():
            hits = (
                self.search(
                    size=len(item_ids),
                    query={"ids": {"values": list(item_ids)}},
                    source=False,
                    docvalue_fields=[{"field": GROUP}],
                    filter_path="hits.hits._id,hits.hits.fields",
                )
                .get("hits", {})
                .get("hits", [])
            )
        return {hit["_id"]: hit["fields"][GROUP][0] for hit in hits if "fields" in hit}


def _with_picture(version: str) -> dict[str, Any]:
    exist = [{"exists": {"field": field}} for field in (FEATURE, IMAGE)]
    return {"bool": {"filter": [{"term": {VERSION: version}}, *exist]}}
