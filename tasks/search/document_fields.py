"""Where the shop's documents hold what a catalogue row has: the fields that the core server writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from tasks.settings import Settings

NONE = "none"
"""What a setting says where documents do not have the field."""


@dataclass(frozen=True, slots=True)
class DocumentFields:
    """Names of fields, dotted paths such as `image.src`; None where documents have no such field."""

    url: str | None = "img_url"
    category: str | None = "category_id"
    name: str | None = "item_name"

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Those of the shop's documents."""
        names = (
            settings.document_url_field,
            settings.document_category_field,
            settings.document_name_field,
        )
        return cls(*(None if name == NONE else name for name in names))

    @property
    def read(self) -> list[str]:
        """All of them that documents have, to ask for."""
        return [field for field in (self.url, self.category, self.name) if field]

    def urls(self, source: Mapping[str, Any]) -> tuple[str, ...] | None:
        """The picture URLs that a document holds, in its order; None where documents hold none at all."""
        return None if self.url is None else tuple(v for v in values(source, self.url) if isinstance(v, str))

    def document(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A whole document of a catalogue row, as the core server would write it."""
        document: dict[str, Any] = {"item_id": row["item_id"]}
        columns = {"item_name": self.name, "category_id": self.category, "img_url": self.url}
        for column, field in columns.items():
            if field and column in row:
                _put(document, field, row[column])
        return document

    def properties(self) -> dict[str, Any]:
        """The mapping of such documents, for an index that we create."""
        properties: dict[str, Any] = {"item_id": {"type": "keyword"}}
        mapped = {
            self.name: {"type": "text"},
            self.category: {"type": "keyword"},
            self.url: {"type": "keyword", "ignore_above": 8191},
        }
        for field, mapping in mapped.items():
            if field:
                _put(properties, field.replace(".", ".properties."), mapping)
        return properties


USUAL_FIELDS = DocumentFields()


def values(source: Any, path: str) -> list[Any]:
    """What a document holds at a dotted path, in its order, arrays unpacked; neither objects nor nulls.

    As Elasticsearch reads it: a dot leads into an object or is part of a key, and an array is all its
    elements.
    """
    found = []
    left = [(source, f"{path}.")]
    while left:  # no recursion: how deep a document goes is up to others
        value, rest = left.pop()
        if isinstance(value, list):
            left += [(element, rest) for element in reversed(value)]
        elif isinstance(value, dict):
            within = [
                (inner, rest[len(key) + 1 :]) for key, inner in value.items() if rest.startswith(f"{key}.")
            ]
            left += reversed(within)
        elif not rest and value is not None:
            found.append(value)
    return found


def _put(into: dict[str, Any], path: str, value: Any) -> None:
    *outer, last = path.split(".")
    for key in outer:
        into = into.setdefault(key, {})
    into[last] = value
