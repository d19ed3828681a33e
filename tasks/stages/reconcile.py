"""Features that got lost: items whose documents lack one although nothing of theirs changed in the catalogue.

A document that is written anew as a whole loses what we added to it, and no change in the catalogue tells of
it. So a night also asks the index which documents lack a current feature, and takes those that nothing
explains.
"""

import functools
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.search.index import SearchIndex
from tasks.shop.catalogue import Catalogue, Item
from tasks.shop.database import UnfitValueError
from tasks.shop.ledger import Failure, Ledger
from tasks.statuses import Status


class IdSet:
    """Ids, at 8 bytes each, added before any is looked for; of 2^64 others one may count as one of them."""

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, item_ids: Iterable[str]) -> None:
        """Add ids, be they in it or not."""
        self._hashes.extend(map(hash, item_ids))

    def has(self, item_ids: Sequence[str]) -> NDArray[np.bool_]:
        """Whether it has each of these ids."""
        asked = np.fromiter(map(hash, item_ids), np.int64, len(item_ids))
        if not self._hashes:
            return np.zeros(len(asked), bool)
        nearest = self._sorted.take(np.searchsorted(self._sorted, asked), mode="clip")
        return np.equal(nearest, asked)

    @functools.cached_property
    def _sorted(self) -> NDArray[np.int64]:
        return np.sort(np.array(self._hashes))


@dataclass
class WithoutFeature:
    """How many documents had no current feature when a night was planned, by what becomes of them."""

    planned: int = 0
    """Their items have changed, so that the night takes them anyway."""
    on_record: int = 0
    """A failure on record explains it: the hourly retry, or a person, has to do with it."""
    left_catalogue: int = 0
    """Their items are in the catalogue no more. They are not touched: documents are the core server's."""
    reconciled: int = 0
    """Nothing explains it, so that the night takes them, too."""
    next_nights: int = 0
    """The night had enough by then: the next ones look at them."""

    @property
    def counts(self) -> dict[str, int]:
        """As reports have it: `documents` is the sum of the others."""
        counts = asdict(self)
        return {"documents": sum(counts.values())} | counts


def find_lost(
    index: SearchIndex, catalogue: Catalogue, ledger: Ledger, version: str, planned: IdSet, at_most: int
) -> tuple[list[Item], WithoutFeature]:
    """The items whose documents lack a feature of `version` though nothing explains it, those of one URL
    together.

    Sees what the index has refreshed. Takes memory for `at_most` items.

    Args:
        planned: items that are planned anyway.
    """
    lost: list[Item] = []
    found = WithoutFeature()
    not_looked_at, pages = index.without_feature(version)
    for item_ids in pages:
        not_looked_at -= len(item_ids)
        others = [id_ for id_, known in zip(item_ids, planned.has(item_ids), strict=True) if not known]
        found.planned += len(item_ids) - len(others)
        room = at_most - len(lost)
        unexplained = _unexplained(others, index, catalogue, ledger, found)
        lost += unexplained[:room]
        if len(unexplained) >= room:
            # The index has changed since it counted, if less is left than none.
            found.next_nights = len(unexplained) - room + max(not_looked_at, 0)
            break
    found.reconciled = len(lost)
    lost.sort(key=lambda item: item.img_url or "")
    return lost, found


def _unexplained(
    item_ids: Sequence[str],
    index: SearchIndex,
    catalogue: Catalogue,
    ledger: Ledger,
    found: WithoutFeature,
) -> list[Item]:
    """The items of which it is not known why they have no feature; the others are counted."""
    if not item_ids:
        return []
    items = _of_catalogue(catalogue, item_ids)
    failures = {failure.item_id: failure for failure in ledger.matching(item_ids=item_ids)}
    # Of what they waited for in vain, the document may have come since.
    waited = [id_ for id_, failure in failures.items() if _waited_in_vain(failure) and id_ in items]
    ready = {id_ for id_, held in index.documents(waited).items() if not held.lacks(items[id_].img_url)}
    unexplained = []
    for item_id in item_ids:
        item, failure = items.get(item_id), failures.get(item_id)
        if failure and item_id not in ready and (item is None or _explains(failure, item)):
            found.on_record += 1
        elif item is None:
            found.left_catalogue += 1
        else:
            unexplained.append(item)
    return unexplained


def _waited_in_vain(failure: Failure) -> bool:
    return failure.next_at is None and not failure.status.failure


def _explains(failure: Failure, item: Item) -> bool:
    """Whether what went wrong then still keeps the item from its feature."""
    if failure.status is Status.INVALID_ROW:
        return item.invalid is not None
    return failure.next_at is not None or failure.img_url == item.img_url


def _of_catalogue(catalogue: Catalogue, item_ids: Sequence[str]) -> dict[str, Item]:
    """The catalogue's items among these ids, which anyone may have given to a document."""
    storable = [item_id for item_id in item_ids if "\0" not in item_id]
    try:
        # A database may take another spelling of an id for the same.
        return {item.item_id: item for item in catalogue.of_ids(storable)}
    except UnfitValueError:
        if len(storable) == 1:
            return {}
        half = len(storable) // 2
        return _of_catalogue(catalogue, storable[:half]) | _of_catalogue(catalogue, storable[half:])
