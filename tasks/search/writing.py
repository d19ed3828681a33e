"""Writing features into documents: which document must be skipped, and what became of each item."""

import functools
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.search.index import Document, Held, SearchIndex
from tasks.search.mapping import AT, COMPACT, COMPACT_VERSION, FEATURE, GROUP, IMAGE, URL, VERSION
from tasks.statuses import Status

_ROUNDING = 1e-5
"""Of a compact vector's numbers, which depend a little on how many are computed at once."""
ROUNDS = 5
"""How often a document is read and written again when others write to it at the same moment."""

WriteOutcome = tuple[Status, str | None]
"""What became of an item, and the reason."""


@dataclass(frozen=True, slots=True)
class Ready:
    """An item with its feature, ready to be written."""

    row: Mapping[str, Any]
    """Its catalogue row."""
    image: str
    feature: npt.NDArray[np.float32]
    at: datetime
    """When its plan was made, or its request came: of two features of one URL the later one wins."""

    @property
    def item_id(self) -> str:
        return str(self.row["item_id"])


class CompactVector(NamedTuple):
    """A feature in a few numbers, and the version of the space that it was made with."""

    version: str
    vector: npt.NDArray[np.float32]
    """[128], of length 1."""


Compacting = Callable[[Sequence[npt.NDArray[np.float32]]], Sequence[CompactVector | None]]
"""Gives the compact vectors of features [2048], None where there is none."""
Urls = Callable[[Sequence[Ready]], Mapping[str, str | None]]
"""Gives the URLs that these items have now, by item id, according to who decides it; one that has left is
absent."""


class Writer:
    """Writes pages of features; knows when a document must be skipped. Threads may share one.

    Its methods raise ServiceUnavailableError and ConfigurationError as SearchIndex does.
    """

    def __init__(
        self,
        index: SearchIndex,
        target: str,
        version: str,
        *,
        urls: Urls,
        compacting: Compacting,
        create: bool,
        measured: Callable[[str], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Write features of `version` to the index behind the name, which is `target` now.

        Args:
            urls: who decides which URL an item has.
            compacting: gives the compact vectors that are written beside the features; where it gives none,
                the one of the feature before goes.
            create: write whole rows, and documents that are missing; else only add to what is there.
            measured: measures what is done, by name.
        """
        self._index = index
        self._target = target
        self._version = version
        self._urls = urls
        self._compacting = compacting
        self._create = create
        self._measured = measured
        self._stopped = threading.Event()
        self._written: dict[str, tuple[int | None, str | None]] = {}
        """The sequence numbers that documents had when they were written: with another, somebody else has
        written since; and the versions of their compact vectors."""

    def write(self, page: Sequence[Ready]) -> dict[str, WriteOutcome]:
        """Write one page, reading its documents first; again for those that changed in between."""
        outcomes: dict[str, WriteOutcome] = {}
        left = list(page)
        for _ in range(ROUNDS):
            if self._stopped.is_set():
                return outcomes
            with self._measured("reading documents"):
                documents = self._index.documents_in(self._target, [item.item_id for item in left])
                outcomes.update(self._skipped(left, documents))
            to_write = {item.item_id: item for item in left if item.item_id not in outcomes}
            with self._measured("packing vectors"):
                compacts = self._compacts(to_write.values())
                actions = [
                    self._action(item, documents.get(item_id), compacts[item_id])
                    for item_id, item in to_write.items()
                ]
            with self._measured("writing"):
                for written in self._index.write(actions):
                    if written.done:
                        outcomes[written.item_id] = (Status.INDEXED, None)
                        compact = compacts[written.item_id]
                        self._written[written.item_id] = written.seq_no, compact and compact.version
                    elif not written.outdated:
                        outcomes[written.item_id] = (Status.REJECTED, written.refusal)
            left = [item for item_id, item in to_write.items() if item_id not in outcomes]
            if not left:
                return outcomes
        reason = f"the document changed at each of {ROUNDS} attempts"
        return outcomes | {item.item_id: (Status.REJECTED, reason) for item in left}

    def stop(self) -> None:
        """Let no thread begin another round; pages that are being written stay as they are."""
        self._stopped.set()

    def missed(self, outcomes: Mapping[str, WriteOutcome]) -> dict[str, WriteOutcome]:
        """What became of the items that were written, but that searches do not find.

        Success is what the index holds, not what it answered.
        """
        written = [item_id for item_id, (status, _) in outcomes.items() if status is Status.INDEXED]
        if not written:
            return {}
        absent = set(written) - self._index.holding(written, self._version)
        if not absent:
            return {}
        there = self._index.documents_in(self._target, sorted(absent))
        return {item_id: self._missing(item_id, there.get(item_id)) for item_id in absent}

    def _missing(self, item_id: str, document: Document | None) -> WriteOutcome:
        """What became of an item that was written, but that searches do not find."""
        seq_no, _ = self._written.get(item_id, (None, None))
        dropped = seq_no is not None and seq_no < 0
        if document is None and not dropped:
            return Status.WAITING_FOR_DOCUMENT, "the document was deleted after it was written"
        if dropped or (document and (document.version == self._version or document.seq_no == seq_no)):
            why = "the index accepted the feature and does not hold it"
            return Status.REJECTED, f"{why}; {self._pipelines}"
        return Status.SUPERSEDED, "the document was replaced after it was written"

    def altered(self, written: Sequence[Ready]) -> dict[str, WriteOutcome]:
        """What became of those of these items whose document holds other values than were written.

        `missed` comes first: it refreshes.
        """
        held = self._index.with_vectors([item.item_id for item in written])
        compacts = self._compacts(written)
        outcomes: dict[str, WriteOutcome] = {}
        for item in written:
            item_id = item.item_id
            if item_id in held and (field := self._changed(item, held[item_id], compacts[item_id])):
                why = f"the index holds another {field} than was written"
                outcomes[item_id] = (Status.REJECTED, f"{why}; {self._pipelines}")
        return outcomes

    def _changed(self, item: Ready, held: Held, compact: CompactVector | None) -> str | None:
        """The first of our fields that is not as we wrote it; None where all are, or someone wrote later."""
        document = held.document
        # Without a sequence number an earlier attempt wrote it, which the time tells.
        seq_no, space = self._written.get(item.item_id, (None, document.compact_version))
        if document.seq_no != seq_no if seq_no is not None else document.at != item.at:
            return None
        if compact and compact.version != document.compact_version:
            compact = None  # another space has been published since
        wanted = {
            VERSION: document.version == self._version,
            URL: document.feature_url == item.row["img_url"],
            IMAGE: document.image == item.image,
            AT: document.at == item.at,
            FEATURE: _same(held.feature, item.feature),
            COMPACT_VERSION: document.compact_version == space,
            COMPACT: compact is None or _same(held.compact, compact.vector, _ROUNDING),
        }
        return next((field for field, same in wanted.items() if not same), None)

    @functools.cached_property
    def _pipelines(self) -> str:
        return self._index.pipelines()

    def _skipped(self, page: Sequence[Ready], documents: Mapping[str, Document]) -> dict[str, WriteOutcome]:
        """The items whose document must not be written, and why."""
        outcomes: dict[str, WriteOutcome] = {}
        unsure: list[Ready] = []
        for item in page:
            document = documents.get(item.item_id)
            if document is None:
                if self._create:
                    unsure.append(item)
                else:
                    outcomes[item.item_id] = (Status.WAITING_FOR_DOCUMENT, None)
            # A document may hold several URLs, of which the first is its picture as far as it tells.
            elif self._create or not document.urls or item.row["img_url"] != document.urls[0]:
                unsure.append(item)
            elif outcome := self._written_since(item, document):
                outcomes[item.item_id] = outcome
        now = self._urls(unsure) if unsure else {}
        for item in unsure:
            if now.get(item.item_id) != item.row["img_url"]:
                has = "has another URL by now" if item.item_id in now else "no longer has the item"
                outcomes[item.item_id] = (Status.SUPERSEDED, f"the catalogue {has}")
                continue
            document = documents.get(item.item_id)
            if document and not self._create and document.lacks(item.row["img_url"]):
                reason = "the document does not have this URL yet"
                outcomes[item.item_id] = (Status.WAITING_FOR_DOCUMENT, reason)
            elif document and (outcome := self._written_since(item, document)):
                outcomes[item.item_id] = outcome
        return outcomes

    def _written_since(self, item: Ready, document: Document) -> WriteOutcome | None:
        """What a feature for this URL, of our own plan or of later work, makes of the item.

        A feature carries the time of its plan or request, so that of two the later wins, whichever of
        them writes last.
        """
        if document.at is None or document.at < item.at or document.feature_url != item.row["img_url"]:
            return None
        if (document.version, document.image) == (self._version, item.image):
            return Status.INDEXED, None
        if document.at == item.at:
            return None
        return Status.SUPERSEDED, "later work has written a feature"

    def _compacts(self, items: Collection[Ready]) -> dict[str, CompactVector | None]:
        found = self._compacting([item.feature for item in items])
        return {item.item_id: compact for item, compact in zip(items, found, strict=True)}

    def _action(
        self, item: Ready, document: Document | None, compact: CompactVector | None
    ) -> dict[str, Any]:
        from elasticsearch import helpers

        fields: dict[str, Any] = {
            FEATURE: helpers.pack_dense_vector(item.feature),
            VERSION: self._version,
            URL: item.row["img_url"],
            IMAGE: item.image,
            AT: item.at.isoformat(),
        }
        if compact:
            fields |= compact_fields(compact)
        elif document and document.compact_version:
            fields |= NO_COMPACT
        # Another picture leaves the group of the one before: from now on it is with those of the same bytes,
        # until tasks/duplicates/ has compared it.
        if document is None or document.group is None or document.image != item.image:
            fields[GROUP] = item.image
        if self._create:
            fields = self._index.fields.document(item.row) | fields
        if document is None:
            return {
                "_op_type": "create",
                "_index": self._target,
                "_id": item.item_id,
                "_source": fields,
            }
        return {"_index": self._target, **document.update(fields)}


NO_COMPACT: dict[str, Any] = {COMPACT: None, COMPACT_VERSION: None}
"""What takes a document's compact vector away."""


def compact_fields(compact: CompactVector) -> dict[str, Any]:
    """What gives a document its compact vector."""
    from elasticsearch import helpers

    return {COMPACT: helpers.pack_dense_vector(compact.vector), COMPACT_VERSION: compact.version}


def _same(
    held: npt.NDArray[np.float32] | None, written: npt.NDArray[np.float32], rounding: float = 0.0
) -> bool:
    # Cosine keeps length and direction apart, which rounds.
    return held is not None and np.allclose(held, written, rtol=1e-5, atol=rounding)
