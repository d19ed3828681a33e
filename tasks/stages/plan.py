"""Stage 1: read the catalogue, leave out what is current, and write the items to do as chunks."""

import gc
import itertools
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.errors import ConfigurationError, FeatureIndexError
from tasks.inference.model import Identity, identity
from tasks.progress import Progress, silent
from tasks.runs import packs, reports
from tasks.runs.category_names import CategoryNames
from tasks.runs.labels import brief, named_host
from tasks.runs.run import IsActive, Origin, Plan, Request, Retry, check_category_ids, never_active
from tasks.search.document_fields import DocumentFields
from tasks.search.index import SearchIndex
from tasks.search.mapping import note_model, refuse_another_model
from tasks.settings import Settings
from tasks.shop.catalogue import EARLIEST, LATEST, Catalogue, Item
from tasks.shop.connections import Services
from tasks.shop.database import batched
from tasks.shop.ledger import Failure, Ledger
from tasks.stages.clock import Clock
from tasks.stages.prefetch import prefetched
from tasks.stages.reconcile import IdSet, WithoutFeature, find_lost
from tasks.statuses import Status

log = logging.getLogger(__name__)

MOST_CHUNKS = 1_000
LARGEST_CHUNK = 20_000
_USUAL_CHUNKS = 100
_PAGE = 5_000


def run(
    request: Request,
    settings: Settings,
    services: Services,
    progress: Progress = silent,
    is_active: IsActive = never_active,
) -> Plan:
    """Make a new plan for a run; in a dry run only count.

    Args:
        is_active: tells of which runs a retry takes no items: they may be at work on them.

    Raises:
        ConfigurationError: something a person has to set right; nothing was touched.
        ServiceUnavailableError: the catalogue, Elasticsearch or the data dir does not answer.
    """
    started = time.monotonic()
    created_at = datetime.now(UTC)
    check_category_ids(request.category_ids, settings)
    if request.retry:
        check_category_ids(request.retry.category_ids, settings)
    if not settings.image_hosts:
        raise ConfigurationError(
            "FEATURES_IMAGE_HOSTS is empty, so pictures may come from nowhere. Set it to the hosts of the "
            "shop's pictures, separated by commas (a private one as host:port), or to * for any public host."
        )
    model = identity(settings)
    index = SearchIndex(services.search, settings.index, DocumentFields.of(settings))
    catalogue = Catalogue(services.catalogue)
    exists = index.check()
    notices = request.notices
    if exists:
        index.refuse_second_version(model.version, settings)
        notices += _whose_features(index, model)
        if not settings.create_documents:
            index.refuse_unknown_urls()
    notices += tuple(
        f"Planning is slower than need be: the catalogue lacks an index ({statement})."
        for statement in catalogue.missing_indexes()
    )
    names, unnamed = _category_names(catalogue, settings, request)
    notices += unnamed
    for notice in notices:
        log.warning(notice)

    folder = request.folder(settings.data_dir) / f"plan-{uuid.uuid4().hex[:12]}"
    not_current = _NotCurrent(index if exists else None, model.version, request.force)
    ledger = Ledger(services.ledger, settings)
    retrying = _Retrying(request, settings, ledger, created_at, is_active)
    pages = _pages(request, catalogue, retrying, progress)
    clock = Clock()

    def lost(planned: IdSet) -> tuple[list[Item], WithoutFeature]:
        with clock.measured("reconciling"):
            return find_lost(index, catalogue, ledger, model.version, planned, settings.reconcile_items)

    reconciles = request.reconcile and exists and settings.reconcile_items
    with _loaded_objects_frozen():
        tally = _write_items(
            folder,
            _asked(pages, not_current, clock),
            _origins(request, catalogue, clock),
            lost if reconciles else None,
        )
    planned, current = tally.planned.total(), tally.current.total()
    to_do = planned - current
    notices += tally.notices + retrying.notices
    bounds: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    if not request.dry_run:
        rows = packs.rows(folder / "items.parquet", ["category_id", "img_url"], at_once=_PAGE)
        bounds, labels = chunk_bounds(rows, chunk_size(to_do, settings), names)
        # Not before all that a person may have to set right has been seen.
        if to_do:
            note_model(index, index.prepare(), model)
    plan = Plan(
        folder=folder,
        request=request,
        feature_version=model.version,
        fingerprint=model.fingerprint,
        planned=planned,
        current=current,
        created_at=created_at,
        bounds=bounds,
        labels=labels,
        notices=notices,
        seconds=time.monotonic() - started,
        time_breakdown=clock.seconds,
        origins=tally.origins,
        without_feature=tally.without_feature.counts if tally.without_feature else {},
        preview=reports.expectation(settings, to_do) if request.dry_run else {},
        swept=retrying.swept,
    )
    plan.save()
    log.info("%d items planned: %d current, %d to do in %d chunks", planned, current, to_do, len(labels))
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


def chunk_bounds(
    rows: Iterable[Mapping[str, Any]], size: int, names: CategoryNames | None = None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Cut items into chunks of at least `size`, the last one less, not between two of one URL.

    Only a URL that more than LARGEST_CHUNK items share is cut, and so fetched more than once.

    Args:
        rows: img_url and category_id of each item, those of one URL together.
        names: of the categories, for the labels.

    Returns:
        Bounds, chunk i holding the items [bounds[i], bounds[i + 1]), and a label for each chunk.
    """
    names = names or CategoryNames()
    bounds, labels = [0], []
    position, previous, label = 0, None, _Label(names)
    for row in rows:
        length = position - bounds[-1]
        if length >= LARGEST_CHUNK or (length >= size and row["img_url"] != previous):
            labels.append(label.text(bounds[-1], position))
            bounds.append(position)
            label = _Label(names)
        label.add(row)
        previous = row["img_url"]
        position += 1
    if position:
        labels.append(label.text(bounds[-1], position))
        bounds.append(position)
    return tuple(bounds), tuple(labels)


def _category_names(
    catalogue: Catalogue, settings: Settings, request: Request
) -> tuple[CategoryNames, tuple[str, ...]]:
    """The names of the categories, kept for whoever shows them, and what is to be noticed of them.

    Raises:
        FeatureIndexError: they cannot be read, in a preview; another run does without.
    """
    try:
        names = CategoryNames(catalogue.category_names(settings.category_names_sql))
        if not request.dry_run:
            names.save(settings)
    except FeatureIndexError as error:
        if request.dry_run:
            raise
        return CategoryNames.load(settings), (f"The names of the categories are those of before. {error}",)
    return names, ()


def _whose_features(index: SearchIndex, model: Identity) -> tuple[str, ...]:
    """Refuse features of another model under this one's version; where the index does not say, a notice."""
    if refuse_another_model(index, model) or model.version not in index.versions():
        return ()
    return (
        f"The index {index.name} holds features of {model.version} and does not say what their model "
        "computes, as earlier releases left it. They count as the model's here, whose fingerprint the first "
        "run that writes will note.",
    )


def _selected(catalogue: Catalogue, request: Request) -> Iterator[Item]:
    if request.all_items:
        return catalogue.all()
    start, end = request.start or EARLIEST, request.end or LATEST
    if not request.category_ids and (start, end) == (EARLIEST, LATEST):
        raise ConfigurationError(
            "The run names neither categories nor times, so it would take the whole catalogue."
        )
    if request.category_ids:
        return catalogue.of_categories(request.category_ids, start, end)
    return catalogue.changed(start, end)


@dataclass(frozen=True)
class _Page:
    """Catalogue rows, and the failures by item id that are to be mended by them, if it is a retry."""

    items: Sequence[Item]
    failures: Mapping[str, Failure] = field(default_factory=dict)
    tried: bool = True
    """Whether the items are planned; else only what became of the failures by now counts."""


class _Retrying:
    """Chooses the failures that a retry takes."""

    def __init__(
        self, request: Request, settings: Settings, ledger: Ledger, now: datetime, is_active: IsActive
    ) -> None:
        self._run = request.dag, request.run
        self._at_most = settings.retry_items
        self._ledger = ledger
        self._now = now
        self._is_active = is_active
        self._beyond = 0
        self._left_to: list[str] = []
        self.swept = False
        """Whether it looked through what is given up."""

    def due(self) -> list[Failure]:
        """What the schedule tries again."""
        found = self._ledger.due(self._now, self._at_most, self._is_at_work)
        self._beyond = found.beyond
        return found.failures

    def matching(self, retry: Retry) -> Iterator[Failure]:
        """What a person has chosen."""
        return self._ledger.matching(
            category_ids=retry.category_ids,
            statuses=retry.statuses,
            item_ids=retry.item_ids,
            is_active=self._is_at_work,
        )

    def given_up(self) -> Iterator[Failure]:
        """What is given up, once a day.

        It is not tried, but it need not be listed for ever. But for invalid rows, of which not finding them
        by their ids says nothing.
        """
        self.swept = self._ledger.sweep_is_due(self._now)
        return itertools.filterfalse(_of_invalid_row, self._ledger.given_up() if self.swept else ())

    @property
    def notices(self) -> tuple[str, ...]:
        """What it left, once it has chosen."""
        beyond = (
            f"{self._beyond} more items are due than the {self._at_most} that a retry takes "
            "(FEATURES_RETRY_ITEMS): the next ones take them, the longest due first."
        )
        left = f"Runs that are at work keep their items: {', '.join(self._left_to)}."
        return ((beyond,) if self._beyond else ()) + ((left,) if self._left_to else ())

    def _is_at_work(self, dag: str, run: str) -> bool:
        at_work = (dag, run) != self._run and self._is_active(dag, run)
        if at_work and f"{dag} {run}" not in self._left_to:
            self._left_to.append(f"{dag} {run}")
        return at_work


def _pages(
    request: Request, catalogue: Catalogue, retrying: _Retrying, progress: Progress
) -> Iterator[_Page]:
    """The catalogue rows that a request selects, a page at a time."""
    retry = request.retry
    if retry is None:
        for items in batched(progress(_selected(catalogue, request), "plan", 0), _PAGE):
            yield _Page(items)
    elif retry.chosen:
        invalid: dict[str, Failure] = {}
        for failures in _by_id(progress(retrying.matching(retry), "plan", 0)):
            invalid |= {item_id: failure for item_id, failure in failures.items() if _of_invalid_row(failure)}
            asked = {item_id: failure for item_id, failure in failures.items() if item_id not in invalid}
            yield _Page(list(catalogue.of_ids(list(asked))), asked)
        if invalid:
            yield from _looked_for(catalogue, invalid)
    else:
        for failures in _by_id(progress(retrying.due(), "plan", 0)):
            yield _Page(list(catalogue.of_ids(list(failures))), failures)
        for failures in _by_id(retrying.given_up()):
            yield _Page(list(catalogue.of_ids(list(failures))), failures, tried=False)


def _of_invalid_row(failure: Failure) -> bool:
    """Whether the ledger may have the item under an id that is not the catalogue's own."""
    return failure.status is Status.INVALID_ROW


def _looked_for(catalogue: Catalogue, failures: Mapping[str, Failure]) -> Iterator[_Page]:
    """The rows of these failures, whatever their ids: all of the catalogue is read."""
    left = dict(failures)
    rows = (item for item in catalogue.all() if item.item_id in failures)
    for items in batched(rows, _PAGE):
        found = {item.item_id: failures[item.item_id] for item in items}
        for item_id in found:
            left.pop(item_id, None)
        yield _Page(items, found)
    yield _Page((), left)


def _asked(
    pages: Iterable[_Page], not_current: "_NotCurrent", clock: Clock
) -> Iterator[tuple[_Page, Sequence[Item]]]:
    """Pages in order, each with what of it is needed; asked in a thread while the next page is read."""

    def ask(page: _Page) -> list[Item]:
        with clock.measured("asking Elasticsearch"):
            return list(not_current(page))

    def read() -> Iterator[_Page]:
        iterator = iter(pages)
        while True:
            with clock.measured("reading the catalogue"):
                page = next(iterator, None)
            if page is None:
                return
            yield page

    with ThreadPoolExecutor(1, thread_name_prefix="plan") as thread:
        yield from prefetched(thread, ask, read())


@dataclass
class _Tally:
    """What a plan holds."""

    planned: Counter[Origin | None] = field(default_factory=Counter)
    current: Counter[Origin | None] = field(default_factory=Counter)
    without_feature: WithoutFeature | None = None

    @property
    def origins(self) -> dict[str, dict[str, int]]:
        return {
            origin: {"planned": count, "current": self.current[origin]}
            for origin, count in self.planned.items()
            if origin
        }

    @property
    def notices(self) -> tuple[str, ...]:
        left = self.without_feature.next_nights if self.without_feature else 0
        words = (
            f"{left} documents without a feature are left to the next nights, since a night takes no more "
            f"than {self.planned[Origin.RECONCILED]} of them (FEATURES_RECONCILE_ITEMS)."
        )
        return (words,) if left else ()


Origins = Callable[[Sequence[Item]], Sequence[Origin | None]]
"""Tells of items why they are taken; None where a person chose them, or the ledger has them."""
Lost = Callable[[IdSet], tuple[Sequence[Item], WithoutFeature]]
"""Finds the items that are to be planned besides those that are."""


def _origins(request: Request, catalogue: Catalogue, clock: Clock) -> Origins:
    """Tells what changed in the run's own interval from what is caught up."""
    if not request.of_times or not request.interval or request.start == request.interval[0]:
        return lambda items: [Origin.CHANGED if request.of_times else None] * len(items)
    of_interval = IdSet()
    with clock.measured("reading the catalogue"):
        of_interval.add(catalogue.changed_ids(*request.interval))

    def origins(items: Sequence[Item]) -> list[Origin]:
        known = of_interval.has([item.item_id for item in items])
        return [Origin.CHANGED if of_it else Origin.CAUGHT_UP for of_it in known]

    return origins


def _write_items(
    folder: Path, pages: Iterable[tuple[_Page, Sequence[Item]]], origins: Origins, lost: Lost | None
) -> _Tally:
    """Write the items to do, the lost ones last, and the failures that are resolved."""
    tally, planned = _Tally(), IdSet()
    with (
        packs.writing(folder / "items.parquet", packs.ITEMS) as items,
        packs.writing(folder / "resolved.parquet", packs.ITEM_IDS) as resolved,
    ):
        for page, not_current in pages:
            needed = {item.item_id for item in not_current}
            if page.tried:
                if lost:
                    planned.add(item.item_id for item in page.items)
                why = origins(page.items)
                tally.planned.update(why)
                for item, origin in zip(page.items, why, strict=True):
                    if item.item_id in needed:
                        items.add(item._asdict() | {"origin": origin})
                    else:
                        tally.current[origin] += 1
            for item_id in page.failures.keys() - needed:
                resolved.add({"item_id": item_id})
        if lost:
            found, tally.without_feature = lost(planned)
            tally.planned[Origin.RECONCILED] += len(found)
            for item in found:
                items.add(item._asdict() | {"origin": Origin.RECONCILED})
    return tally


@contextmanager
def _loaded_objects_frozen() -> Iterator[None]:
    """Keep the garbage collector from looking at all that is in memory by now.

    Pages of answers make it look for garbage again and again, through every module loaded: more than half
    of the time that planning takes.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _by_id(failures: Iterable[Failure]) -> Iterator[dict[str, Failure]]:
    for page in batched(failures, _PAGE):
        yield {failure.item_id: failure for failure in page}


class _NotCurrent:
    """Leaves out what the index has already."""

    def __init__(self, index: SearchIndex | None, version: str, force: bool) -> None:
        self._index = index
        self._version = version
        self._force = force

    def __call__(self, page: _Page) -> Iterator[Item]:
        """The items without a feature, or whose feature is older than a failed attempt to replace it, or what
        the index made of that attempt's."""
        if self._force or self._index is None:
            yield from page.items
            return
        valid = {item.item_id: item.img_url for item in page.items if not item.invalid}
        current = self._index.current(valid, self._version) if valid else set()
        documents = self._index.documents([item_id for item_id in page.failures if item_id in current])
        for item_id, document in documents.items():
            failure = page.failures[item_id]
            refused = failure.status is Status.REJECTED and document.at == failure.planned_at
            older = document.at is None or document.at < failure.planned_at
            if (older or refused) and document.feature_url == failure.img_url:
                current.remove(item_id)
        yield from (item for item in page.items if item.invalid or item.item_id not in current)


class _Label:
    """Says in a few words what is in a chunk."""

    def __init__(self, names: CategoryNames) -> None:
        self._names = names
        self._categories: set[str | None] = set()
        self._hosts: set[str] = set()

    def add(self, row: Mapping[str, Any]) -> None:
        self._categories.add(row["category_id"])
        self._hosts.add(named_host(row["img_url"]))

    def text(self, start: int, stop: int) -> str:
        named = {id_ if id_ is None else self._names.of(id_) for id_ in self._categories}
        categories = _one_or_count(named, "category", "categories")
        hosts = _one_or_count(self._hosts, "host", "hosts")
        return f"items {start + 1}-{stop} · {categories} · {hosts}"


def _one_or_count(names: Collection[str | None], one: str, many: str) -> str:
    if len(names) > 1:
        return f"{len(names)} {many}"
    (name,) = names
    # Strangers choose it, and Airflow keeps 250 characters of a label.
    return f"no {one}" if name is None else f"{one} {brief(name)}"
