"""Stage 4: write the features of a chunk into its documents, and name what became of every item."""

import itertools
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks import packs
from tasks.catalogue import Catalogue
from tasks.clock import Clock
from tasks.connections import Services
from tasks.errors import ServiceUnavailableError
from tasks.progress import Progress, silent
from tasks.runs import Chunk, Plan
from tasks.search import AT, FEATURE, IMAGE, URL, VERSION, Document, SearchIndex
from tasks.settings import Settings
from tasks.statuses import Status

log = logging.getLogger(__name__)

_CONFLICT = 409
_MISSING = 404
_ROUNDS = 5
"""How often a document is read and written again when others write to it at the same moment."""
_LONGEST_ID = 512
"""Bytes; Elasticsearch's own limit."""

Outcome = tuple[Status, str | None]


@dataclass(frozen=True, slots=True)
class Ready:
    """An item with its feature, ready to be written."""

    row: Mapping[str, Any]
    """Its catalogue row."""
    image: str
    feature: npt.NDArray[np.float32]

    @property
    def item_id(self) -> str:
        return str(self.row["item_id"])


def run(chunk: Chunk, settings: Settings, services: Services, progress: Progress = silent) -> dict[str, Any]:
    """Write the chunk's features, or take the outcomes that are there already.

    Returns:
        The stage's statistics: items, seconds, the counts by status, and `split`: the seconds by what was
        done, those of the requests that are under way at once added up, so that they can exceed the
        stage's own. Its parts are "opening" (the index's mapping), "reading packs", "reading documents",
        "packing vectors", "writing" (mostly the wait for Elasticsearch) and "checking" what it holds.

    Raises:
        ServiceUnavailableError: Elasticsearch, the catalogue or the data dir does not answer; what was
            written stays, and doing it again writes only the rest.
        ConfigurationError: Elasticsearch refuses us.
    """
    if (done := packs.finished(chunk.outcomes)) is not None:
        return done
    started = time.monotonic()
    items = packs.slice_of(chunk.plan.items, chunk.start, chunk.stop)
    outcomes: dict[str, Outcome] = {}
    clock = Clock()
    with clock.measured("opening"):
        writer = _Writer(chunk.plan, settings, services, clock)
    ready = progress(_ready(chunk, items, outcomes), "index", len(items))
    for written in _written(writer, _pages(ready, settings.bulk_size, clock), settings.bulk_requests):
        outcomes.update(written)
    with clock.measured("checking"):
        outcomes.update(writer.missed(outcomes))
    counts: dict[str, int] = {}
    with packs.writing(chunk.outcomes, packs.OUTCOMES) as pack:
        for item in items:
            status, reason = outcomes[item["item_id"]]
            counts[status] = counts.get(status, 0) + 1
            pack.add(
                {"item_id": item["item_id"], "img_url": item["img_url"], "status": status, "reason": reason}
            )
        pack.statistics |= {
            "items": len(items),
            "counts": counts,
            "seconds": time.monotonic() - started,
            "split": clock.seconds,
        }
    return packs.statistics(chunk.outcomes)


def _ready(chunk: Chunk, items: Sequence[Mapping[str, Any]], outcomes: dict[str, Outcome]) -> Iterator[Ready]:
    """Yield the items that have a feature; put what became of the others into `outcomes`."""
    by_url: dict[str | None, list[Mapping[str, Any]]] = {}
    for item in items:
        by_url.setdefault(item["img_url"], []).append(item)
    by_image: dict[str, list[Mapping[str, Any]]] = {}
    for picture in packs.rows(chunk.pictures, ["img_url", "status", "reason", "sha256"]):
        for item in by_url[picture["img_url"]]:
            if picture["status"]:
                outcomes[item["item_id"]] = (Status(picture["status"]), picture["reason"])
            elif not 0 < len(item["item_id"].encode()) <= _LONGEST_ID:
                outcomes[item["item_id"]] = (Status.REJECTED, "the item id cannot be a document's id")
            else:
                by_image.setdefault(picture["sha256"], []).append(item)
    for batch in packs.batches(chunk.features):
        vectors = batch["feature"]
        for position, row in enumerate(batch.drop_columns(["feature"]).to_pylist()):
            for item in by_image.get(row["sha256"], ()):
                if row["status"]:
                    outcomes[item["item_id"]] = (Status(row["status"]), row["reason"])
                else:
                    feature = vectors[position].values.to_numpy()
                    yield Ready(item, row["sha256"], feature)


class _Writer:
    """Writes pages of features; knows when a document must be left alone. Threads may share one."""

    def __init__(self, plan: Plan, settings: Settings, services: Services, clock: Clock) -> None:
        self._plan = plan
        self._clock = clock
        self._stopped = threading.Event()
        self._create = settings.create_documents
        self._index = SearchIndex(services.search, settings.index)
        # An alias may have moved since the plan, to an index that would map a vector as it likes.
        if not self._index.check():
            raise ServiceUnavailableError(
                f"The index {settings.index} was there for the plan and is not there now. Bring it back, or "
                "clear the run's `plan` task, which makes a new one."
            )
        self._target = self._index.prepare()
        self._catalogue = Catalogue(services.catalog)

    def write(self, page: Sequence[Ready]) -> dict[str, Outcome]:
        """Write one page, reading its documents first; again for those that changed in between."""
        outcomes: dict[str, Outcome] = {}
        left = list(page)
        for _ in range(_ROUNDS):
            if self._stopped.is_set():
                return outcomes
            with self._clock.measured("reading documents"):
                documents = self._documents([item.item_id for item in left])
                outcomes.update(self._left_alone(left, documents))
            to_write = {item.item_id: item for item in left if item.item_id not in outcomes}
            with self._clock.measured("packing vectors"):
                actions = [self._action(item, documents.get(item.item_id)) for item in to_write.values()]
            with self._clock.measured("writing"):
                for item_id, code, reason in self._index.write(actions):
                    if 200 <= code < 300:
                        outcomes[item_id] = (Status.INDEXED, None)
                    elif code not in (_CONFLICT, _MISSING):
                        outcomes[item_id] = (Status.REJECTED, f"{code}: {reason}"[:500])
            left = [item for item_id, item in to_write.items() if item_id not in outcomes]
            if not left:
                return outcomes
        reason = f"the document changed at each of {_ROUNDS} attempts"
        return outcomes | {item.item_id: (Status.REJECTED, reason) for item in left}

    def stop(self) -> None:
        """Let no thread begin another round; pages that are being written stay as they are."""
        self._stopped.set()

    def missed(self, outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
        """What became of the items that were written, but that searches do not find.

        Success is what the index holds, not what it answered.
        """
        written = [item_id for item_id, (status, _) in outcomes.items() if status is Status.INDEXED]
        if not written:
            return {}
        absent = set(written) - self._index.holding(written, self._plan.feature_version)
        if not absent:
            return {}
        there = self._documents(sorted(absent))
        return {
            item_id: (Status.REJECTED, "the index accepted the feature and does not hold it")
            if item_id in there and there[item_id].version == self._plan.feature_version
            else (Status.SUPERSEDED, "the document was replaced after it was written")
            if item_id in there
            else (Status.WAITING_FOR_DOCUMENT, "the document was deleted after it was written")
            for item_id in absent
        }

    def _documents(self, item_ids: Sequence[str]) -> dict[str, Document]:
        documents = self._index.documents(item_ids)
        if any(document.index != self._target for document in documents.values()):
            raise ServiceUnavailableError(
                f"{self._index.name} stands for another index since this chunk began. Doing the chunk again "
                "writes there."
            )
        return documents

    def _left_alone(self, page: Sequence[Ready], documents: Mapping[str, Document]) -> dict[str, Outcome]:
        """The items whose document must not be written, and why."""
        outcomes: dict[str, Outcome] = {}
        unsure: list[Ready] = []
        for item in page:
            document = documents.get(item.item_id)
            if document is None:
                if self._create:
                    unsure.append(item)
                else:
                    outcomes[item.item_id] = (Status.WAITING_FOR_DOCUMENT, None)
            elif self._create or document.img_url != item.row["img_url"]:
                unsure.append(item)
            elif outcome := self._written_since(item, document):
                outcomes[item.item_id] = outcome
        now = self._catalogue.urls([item.item_id for item in unsure]) if unsure else {}
        for item in unsure:
            if now.get(item.item_id) != item.row["img_url"]:
                has = "has another URL by now" if item.item_id in now else "no longer has the item"
                outcomes[item.item_id] = (Status.SUPERSEDED, f"the catalogue {has}")
            elif not self._create:
                outcomes[item.item_id] = (
                    Status.WAITING_FOR_DOCUMENT,
                    "the document does not have the catalogue's URL yet",
                )
            elif (document := documents.get(item.item_id)) and (
                outcome := self._written_since(item, document)
            ):
                outcomes[item.item_id] = outcome
        return outcomes

    def _written_since(self, item: Ready, document: Document) -> Outcome | None:
        """What a feature for this URL, of our own plan or of a later one, makes of the item.

        A feature carries the time of its plan, so that of two runs the later plan wins, whichever of
        them writes last.
        """
        if (
            document.at is None
            or document.at < self._plan.created_at
            or document.feature_url != item.row["img_url"]
        ):
            return None
        if (document.version, document.image) == (self._plan.feature_version, item.image):
            return Status.INDEXED, None
        if document.at == self._plan.created_at:
            return None
        return Status.SUPERSEDED, "a later run has written a feature"

    def _action(self, item: Ready, document: Document | None) -> dict[str, Any]:
        from elasticsearch import helpers

        fields = {
            FEATURE: helpers.pack_dense_vector(item.feature),
            VERSION: self._plan.feature_version,
            URL: item.row["img_url"],
            IMAGE: item.image,
            AT: self._plan.created_at.isoformat(),
        }
        if self._create:
            fields = dict(item.row) | fields
        if document is None:
            return {
                "_op_type": "create",
                "_index": self._target,
                "_id": item.item_id,
                "_source": fields,
            }
        return {
            "_op_type": "update",
            "_index": self._target,
            "_id": item.item_id,
            "if_seq_no": document.seq_no,
            "if_primary_term": document.primary_term,
            "doc": fields,
        }


def _written(
    writer: _Writer, pages: Iterable[Sequence[Ready]], at_once: int
) -> Iterator[Mapping[str, Outcome]]:
    """Write pages, so many at once, and yield what became of each as it is done.

    The first error ends them all: nothing is written any more when it comes out of here.
    """
    with ThreadPoolExecutor(at_once, thread_name_prefix="index") as pool:
        try:
            under_way: set[Future[dict[str, Outcome]]] = set()
            for page in pages:
                under_way.add(pool.submit(writer.write, page))
                if len(under_way) == at_once:
                    done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while under_way:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BaseException:
            writer.stop()
            raise


def _pages(items: Iterable[Ready], size: int, clock: Clock) -> Iterator[list[Ready]]:
    iterator = iter(items)
    while True:
        with clock.measured("reading packs"):
            page = list(itertools.islice(iterator, size))
        if not page:
            return
        yield page
