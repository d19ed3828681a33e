"""Stage 4: write the features of a chunk into its documents, and name what became of every item."""

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tasks.errors import ServiceUnavailableError
from tasks.inference.model import Identity
from tasks.progress import Progress, silent
from tasks.runs import packs
from tasks.runs.run import Chunk, Plan
from tasks.search.document_fields import DocumentFields
from tasks.search.index import SearchIndex
from tasks.search.mapping import note_model
from tasks.search.writing import Ready, WriteOutcome, Writer
from tasks.settings import Settings
from tasks.shop.catalogue import Catalogue
from tasks.shop.connections import Services
from tasks.space.published import Reader
from tasks.stages.clock import Clock
from tasks.stages.prefetch import several_at_once
from tasks.statuses import Status

_SAMPLE = 20
"""Documents of a chunk whose fields are compared with what was written."""


def run(chunk: Chunk, settings: Settings, services: Services, progress: Progress = silent) -> dict[str, Any]:
    """Write the chunk's features, or take the outcomes that are there already.

    Returns:
        The stage's statistics: items, seconds, the counts by status, and `time_breakdown`: seconds by
        activity, those of the requests that are under way at once added up, so that they can exceed the
        stage's own. Its parts are "opening" (the index's mapping), "reading stage files", "reading
        documents", "packing vectors", "writing" (mostly the wait for Elasticsearch) and
        "checking" what it holds.

    Raises:
        ServiceUnavailableError: Elasticsearch, the catalogue or the data dir does not answer; what was
            written stays, and doing it again writes only the rest.
        ConfigurationError: Elasticsearch refuses us.
    """
    if (done := packs.finished_or_moved_aside(chunk.outcomes)) is not None:
        return done
    started = time.monotonic()
    items = packs.slice_of(chunk.plan.items, chunk.start, chunk.stop)
    outcomes: dict[str, WriteOutcome] = {}
    clock = Clock()
    with clock.measured("opening"):
        writer = _writer(chunk.plan, settings, services, clock)
    sample: list[Ready] = []
    every = max(len(items) // _SAMPLE, 1)
    ready = progress(_sampled(_ready(chunk, items, outcomes), every, sample), "index", len(items))
    pages = _pages(ready, settings.bulk_size, clock)
    for written in several_at_once(writer.write, pages, settings.bulk_requests, "index", writer.stop):
        outcomes.update(written)
    with clock.measured("checking"):
        outcomes.update(writer.missed(outcomes))
        everything = _pages(_ready(chunk, items, {}), settings.bulk_size, clock)
        outcomes.update(_altered(writer, sample, everything, outcomes))
    counts: dict[str, int] = {}
    with packs.writing(chunk.outcomes, packs.OUTCOMES) as pack:
        for item in items:
            # Another item may have the id that an invalid row is shown with.
            valid = _valid(item)
            status, reason = outcomes[item["item_id"]] if valid else (Status.INVALID_ROW, item["invalid"])
            counts[status] = counts.get(status, 0) + 1
            pack.add(
                {"item_id": item["item_id"], "img_url": item["img_url"], "status": status, "reason": reason}
            )
        pack.statistics |= {
            "items": len(items),
            "counts": counts,
            "seconds": time.monotonic() - started,
            "time_breakdown": clock.seconds,
        }
    return packs.statistics(chunk.outcomes)


def _writer(plan: Plan, settings: Settings, services: Services, clock: Clock) -> Writer:
    index = SearchIndex(services.search, settings.index, DocumentFields.of(settings))
    # An alias may have moved since the plan, to an index that would map a vector as it likes.
    if not index.check():
        raise ServiceUnavailableError(
            f"The index {settings.index} was there for the plan and is not there now. Bring it back, or "
            "clear the run's `plan` task, which makes a new one."
        )
    concrete = index.prepare()
    model = Identity(plan.feature_version, plan.fingerprint)
    note_model(index, concrete, model)
    catalogue = Catalogue(services.catalogue)
    return Writer(
        index,
        concrete,
        plan.feature_version,
        urls=lambda items: catalogue.urls([item.item_id for item in items]),
        compacting=Reader(settings, model).compact_vectors,
        create=settings.create_documents,
        measured=clock.measured,
    )


def _ready(
    chunk: Chunk, items: Sequence[Mapping[str, Any]], outcomes: dict[str, WriteOutcome]
) -> Iterator[Ready]:
    """Yield the items that have a feature; put what became of the others into `outcomes`."""
    by_url: dict[str | None, list[Mapping[str, Any]]] = {}
    for item in filter(_valid, items):
        by_url.setdefault(item["img_url"], []).append(item)
    by_image: dict[str, list[Mapping[str, Any]]] = {}
    for picture in packs.rows(chunk.pictures, ["img_url", "status", "reason", "sha256"]):
        for item in by_url[picture["img_url"]]:
            if picture["status"]:
                outcomes[item["item_id"]] = (Status(picture["status"]), picture["reason"])
            else:
                by_image.setdefault(picture["sha256"], []).append(item)
    for batch in packs.batches(chunk.features):
        vectors = batch["feature"]
        for position, row in enumerate(batch.drop_columns(["feature"]).to_pylist()):
            for item in by_image.get(row["sha256"], ()):
                if row["status"]:
                    outcomes[item["item_id"]] = (Status(row["status"]), row["reason"])
                else:
                    feature = np.frombuffer(vectors[position].as_buffer(), packs.FEATURE)
                    yield Ready(item, row["sha256"], feature, chunk.plan.created_at)


def _valid(item: Mapping[str, Any]) -> bool:
    return item["invalid"] is None


def _sampled(ready: Iterable[Ready], every: int, sample: list[Ready]) -> Iterator[Ready]:
    """Pass the items on; keep some of them, spread over all."""
    for number, item in enumerate(ready):
        if number % every == 0:
            # A copy: the original keeps all that was read with it in memory.
            sample.append(replace(item, feature=item.feature.copy()))
        yield item


def _altered(
    writer: Writer,
    sample: Sequence[Ready],
    everything: Iterable[Sequence[Ready]],
    done: Mapping[str, WriteOutcome],
) -> dict[str, WriteOutcome]:
    """The items whose documents hold other values than were written; where one of the sample is among them,
    all are looked at."""

    def indexed(items: Iterable[Ready]) -> list[Ready]:
        return [item for item in items if done[item.item_id][0] is Status.INDEXED]

    altered = writer.altered(indexed(sample))
    if altered:
        for page in everything:
            altered |= writer.altered(indexed(page))
    return altered


def _pages(items: Iterable[Ready], size: int, clock: Clock) -> Iterator[list[Ready]]:
    iterator = iter(items)
    while True:
        with clock.measured("reading stage files"):
            page = list(itertools.islice(iterator, size))
        if not page:
            return
        yield page
