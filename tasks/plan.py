"""Stage 1: read the catalogue, leave out what is current, and write the items to do as chunks."""

import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from tasks import packs, reports
from tasks.catalogue import EARLIEST, LATEST, Catalogue, Item
from tasks.connections import Services
from tasks.database import batched
from tasks.errors import ConfigurationError
from tasks.ledger import Failure, Ledger
from tasks.model import feature_version
from tasks.progress import Progress, silent
from tasks.runs import Plan, Request, Retry
from tasks.search import SearchIndex
from tasks.settings import Settings

log = logging.getLogger(__name__)

MOST_CHUNKS = 1_000
LARGEST_CHUNK = 20_000
_USUAL_CHUNKS = 100
_PAGE = 5_000


def run(request: Request, settings: Settings, services: Services, progress: Progress = silent) -> Plan:
    """Plan a run anew; in a dry run only look.

    Raises:
        ConfigurationError: something a person has to set right; nothing was touched.
        ServiceUnavailableError: the catalogue, Elasticsearch or the data dir does not answer.
    """
    started = time.monotonic()
    created_at = datetime.now(UTC)
    if not settings.image_hosts:
        raise ConfigurationError(
            "FEATURES_IMAGE_HOSTS is empty, so pictures may come from nowhere. Set it to the hosts of the "
            "shop's pictures, separated by commas (a private one as host:port), or to * for any public host."
        )
    version = feature_version(settings)
    index = SearchIndex(services.search, settings.index)
    catalogue = Catalogue(services.catalog)
    exists = index.check()
    if exists:
        _refuse_second_version(index, version, settings)
    notices = request.notices + tuple(
        f"Planning is slower than need be: the catalogue lacks an index ({statement})."
        for statement in catalogue.missing_indexes()
    )
    for notice in notices:
        log.warning(notice)

    folder = request.folder(settings.data_dir) / f"plan-{uuid.uuid4().hex[:12]}"
    planned = to_do = 0
    ledger = Ledger(services.ledger, settings)
    with (
        packs.writing(folder / "items.parquet", packs.ITEMS) as items,
        packs.writing(folder / "settled.parquet", packs.ITEM_IDS) as settled,
    ):
        for page, asked_for in _pages(request, catalogue, ledger, created_at, progress):
            planned += len(page)
            for item in _not_current(page, index if exists else None, version, request):
                to_do += 1
                asked_for.discard(item.item_id)
                items.add({name: getattr(item, name) for name in Item.__slots__})
            for item_id in sorted(asked_for):
                settled.add({"item_id": item_id})
    bounds: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    if not request.dry_run:
        rows = packs.rows(folder / "items.parquet", ["category_id", "img_url"], at_once=_PAGE)
        bounds, labels = split(rows, chunk_size(to_do, settings))
        # Not before all that a person may have to set right has been seen.
        index.prepare()
    plan = Plan(
        folder=folder,
        request=request,
        feature_version=version,
        planned=planned,
        current=planned - to_do,
        created_at=created_at,
        bounds=bounds,
        labels=labels,
        notices=notices,
        seconds=time.monotonic() - started,
        preview=reports.expectation(settings, to_do) if request.dry_run else {},
    )
    plan.save()
    log.info("%d items planned: %d current, %d to do in %d chunks", planned, plan.current, to_do, len(labels))
    return plan


def chunk_size(to_do: int, settings: Settings) -> int:
    """Items a chunk: large enough that a run has about 100 chunks at most.

    Raises:
        ConfigurationError: even the largest chunks would be too many; split the run.
    """
    size = min(max(settings.chunk_size, -(-to_do // _USUAL_CHUNKS)), LARGEST_CHUNK)
    if to_do > size * MOST_CHUNKS:
        raise ConfigurationError(
            f"{to_do} items are more than {MOST_CHUNKS} chunks of {size}. "
            "Split the run: by category, or by a shorter range of registration times."
        )
    return size


def split(rows: Iterable[Mapping[str, Any]], size: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Cut items into chunks of at least `size`, the last one less, not between two of one URL.

    Only a URL that more than LARGEST_CHUNK items share is cut, and so fetched more than once.

    Args:
        rows: img_url and category_id of each item, those of one URL together.

    Returns:
        Bounds, chunk i holding the items [bounds[i], bounds[i + 1]), and a label for each chunk.
    """
    bounds, labels = [0], []
    position, previous, label = 0, None, _Label()
    for row in rows:
        length = position - bounds[-1]
        if length >= LARGEST_CHUNK or (length >= size and row["img_url"] != previous):
            labels.append(label.text(bounds[-1], position))
            bounds.append(position)
            label = _Label()
        label.add(row)
        previous = row["img_url"]
        position += 1
    if position:
        labels.append(label.text(bounds[-1], position))
        bounds.append(position)
    return tuple(bounds), tuple(labels)


def _selected(catalogue: Catalogue, request: Request) -> Iterator[Item]:
    start, end = request.start or EARLIEST, request.end or LATEST
    if not request.category_ids and (start, end) == (EARLIEST, LATEST):
        raise ConfigurationError(
            "The run names neither categories nor times, so it would take the whole catalogue."
        )
    if request.category_ids:
        return catalogue.of_categories(request.category_ids, start, end)
    return catalogue.changed(start, end)


def _pages(
    request: Request, catalogue: Catalogue, ledger: Ledger, now: datetime, progress: Progress
) -> Iterator[tuple[list[Item], set[str]]]:
    """The catalogue rows that a request selects, a page at a time, each with the ids that the ledger gave."""
    if request.retry is None:
        for page in batched(progress(_selected(catalogue, request), "plan", 0), _PAGE):
            yield page, set()
        return
    for failures in batched(progress(_failures(ledger, request.retry, now), "plan", 0), _PAGE):
        item_ids = [failure.item_id for failure in failures]
        yield list(catalogue.of_ids(item_ids)), set(item_ids)


def _failures(ledger: Ledger, retry: Retry, now: datetime) -> Iterator[Failure]:
    if not retry.chosen:
        return ledger.due(now)
    return ledger.matching(category_ids=retry.category_ids, statuses=retry.statuses, item_ids=retry.item_ids)


def _not_current(
    page: Sequence[Item], index: SearchIndex | None, version: str, request: Request
) -> Iterator[Item]:
    if request.force or index is None:
        yield from page
        return
    current = index.current({item.item_id: item.img_url for item in page}, version)
    yield from (item for item in page if item.item_id not in current)


def _refuse_second_version(index: SearchIndex, version: str, settings: Settings) -> None:
    others = {other: count for other, count in index.versions().items() if other != version}
    if others and not settings.mix_versions:
        held = ", ".join(f"{other} ({count} documents)" for other, count in others.items())
        raise ConfigurationError(
            f"The index {settings.index} holds features of {held}, and this run would add {version}. "
            "Features of two versions cannot be compared. Install the model they were made with, point "
            "FEATURES_INDEX at another index, or set FEATURES_MIX_VERSIONS=true if searches filter on "
            "the version."
        )


class _Label:
    """Says in a few words what is in a chunk."""

    def __init__(self) -> None:
        self._categories: set[str] = set()
        self._hosts: set[str] = set()

    def add(self, row: Mapping[str, Any]) -> None:
        self._categories.add(str(row["category_id"]))
        self._hosts.add(_host(row["img_url"]))

    def text(self, start: int, stop: int) -> str:
        categories = _one_or_count(self._categories, "category", "categories")
        hosts = _one_or_count(self._hosts, "host", "hosts")
        return f"items {start + 1}-{stop} · {categories} · {hosts}"


def _host(url: str | None) -> str:
    try:
        # Strangers choose it, and Airflow keeps 250 characters of a label.
        return (urlsplit(url or "").hostname or "no host")[:60]
    except ValueError:
        return "no host"


def _one_or_count(names: set[str], one: str, many: str) -> str:
    return f"{one} {next(iter(names))}" if len(names) == 1 else f"{len(names)} {many}"
