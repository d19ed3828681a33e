"""The groups of items that show the same picture, from the features in the index to the documents.

Pictures are compared once, when they come. A new one is compared with the pictures that lead groups: those
whose codes differ in few bits are candidates, the cosine of their features decides of most, and of the rest
the pictures themselves, which are fetched for that alone.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.duplicates.candidates import Rows, near
from tasks.duplicates.known import Groups, Known, Pictures, digests, hexadecimal
from tasks.duplicates.leading import led
from tasks.duplicates.looks import ALIKE, Look, likeness
from tasks.duplicates.second_looks import SecondLooks
from tasks.duplicates.writing import GroupWriter
from tasks.errors import ConfigurationError
from tasks.inference.model import Identity
from tasks.progress import Progress, silent
from tasks.search.document_fields import DocumentFields
from tasks.search.index import SearchIndex
from tasks.search.mapping import refuse_another_model
from tasks.search.pictures import DOCUMENTS_AT_ONCE, Picture, PictureQueries, Shown
from tasks.settings import Settings
from tasks.shop.connections import Connection
from tasks.space.vectors import Floats

_AT_ONCE = 500
"""New pictures that are compared at once: with the features of their candidates some 100 MB."""
_BETWEEN_SAVES = 50
"""So many of these."""
BITS = 32
"""Codes of candidates differ in so many of 128 bits at most."""
CANDIDATES = 20
"""Of each new picture, at most."""
SURE = 0.95
"""Pictures with this cosine show the same."""
DOUBTFUL = 0.75
"""Those with less do not; between the two they are looked at."""
LOOKED_AT, LOOKED_AT_BESIDE = 5, 20
"""Of the leaders that a new picture is in doubt with, and of the new ones beside it, so many: those with the
highest cosines."""


def find(
    search: Connection, model: Identity, settings: Settings, progress: Progress = silent
) -> dict[str, Any]:
    """Bring the groups of the items whose features are of `model` up to date in the index.

    Takes memory for some hundred bytes of each distinct picture in the index, and for one page of features.

    Returns:
        `planned` documents and `counts` by status, which sum to it; distinct `pictures`, of which `new` ones
        were compared now; `looked_at`, those that were fetched for it; `put_off`, those that wait for a
        picture that may be had later; `groups` of several documents, and how many are `in_groups`.

    Raises:
        ConfigurationError: no feature space is published, or the index cannot take groups or holds features
            of another model.
        ServiceUnavailableError: Elasticsearch does not answer, or the data dir cannot be read or written;
            what is written stays, and doing it again does the rest.
    """
    index = SearchIndex(search, settings.index, DocumentFields.of(settings))
    pictures = PictureQueries(search, settings.index)
    if not index.check():
        raise ConfigurationError(f"There is no index {index.name} yet: run category_backfill first.")
    target = index.prepare()
    refuse_another_model(index, model)
    known = Known.load(settings, model)

    def documents(stage: str) -> Iterable[list[Shown]]:
        pages = -(-pictures.count(model.version) // DOCUMENTS_AT_ONCE)
        return progress(pictures.shown(model.version), stage, pages)

    there, leading = _there(documents("reading, pages"))
    known.keep(there)
    new = known.without(there)
    # Who led before leads again, where all is compared anew.
    leads = np.isin(new, leading)
    new = np.concatenate([new[leads], new[~leads]])
    facts = _compared(known, new, pictures, settings, progress)
    writer = GroupWriter(index, pictures, target, model.version)
    groups = Groups(known)
    counts = _written(writer, documents("writing, pages"), groups)
    return {
        "planned": sum(counts.values()),
        "counts": dict(counts),
        "pictures": len(there),
        "new": len(new),
        **facts,
        "groups": int((groups.sizes > 1).sum()),
        "in_groups": int(groups.sizes[groups.sizes > 1].sum()),
    }


def described(report: Mapping[str, Any]) -> str:
    """A report in words."""
    counts = ", ".join(f"{status} {count}" for status, count in sorted(report["counts"].items()))
    return "\n".join(
        [
            f"{report['planned']} documents: {counts or 'none'}.",
            f"They show {report['pictures']} different pictures, of which {report['new']} were compared "
            f"now. {report['looked_at']} were looked at, {report['put_off']} wait for one that did not come.",
            f"{report['groups']} groups of near-duplicates hold {report['in_groups']} of the documents.",
        ]
    )


def _there(documents: Iterable[list[Shown]]) -> tuple[Pictures, Pictures]:
    """The distinct pictures in the index, sorted, and those that lead groups in which there are others."""
    pages, leading = [digests([])], [digests([])]
    for page in documents:
        pages.append(digests([shown.image for shown in page]))
        leading.append(digests({s.group for s in page if s.group and s.group != s.image}))
    return np.unique(np.concatenate(pages)), np.unique(np.concatenate(leading))


def _compared(
    known: Known, new: Pictures, pictures: PictureQueries, settings: Settings, progress: Progress
) -> dict[str, int]:
    """Take the new pictures into what is known."""
    begins = range(0, len(new), _AT_ONCE)
    put_off = 0
    with SecondLooks(settings) as looks:
        for number, begin in enumerate(progress(begins, "comparing, pages", len(begins)), 1):
            page = hexadecimal(new[begin : begin + _AT_ONCE])
            put_off += _compare(known, page, pictures, looks)
            if number % _BETWEEN_SAVES == 0:
                known.save(settings)
        known.save(settings)
        return {"looked_at": looks.fetched, "put_off": put_off}


def _compare(known: Known, page: Sequence[str], pictures: PictureQueries, looks: SecondLooks) -> int:
    """Take one page of new pictures into what is known; returns how many are put off."""
    found = pictures.described(page, known.model.version)
    new = [image for image in page if image in found]  # others have left since
    if not new:
        return 0
    codes = known.codes_of.of(known.compact.vectors(_features(found, new)))
    asked, rows = _candidates(known, codes)
    before = len(known.pictures)
    leaders = np.unique(rows[rows < before])
    names = dict(zip(leaders.tolist(), hexadecimal(known.pictures[leaders]), strict=True))
    names |= dict(enumerate(new, before))
    found |= pictures.described([names[row] for row in leaders.tolist()], known.model.version)
    links: dict[int, dict[int, float]] = {row: {} for row in range(before, before + len(new))}
    doubtful: list[tuple[int, int, float]] = []
    looked_at: Counter[tuple[int, bool]] = Counter()
    for one, other, cosine in _pairs(known, found, names, asked + before, rows):
        if cosine >= SURE:
            links[one][other] = 1 + cosine
        elif looked_at[one, other < before] < (LOOKED_AT if other < before else LOOKED_AT_BESIDE):
            looked_at[one, other < before] += 1
            doubtful.append((one, other, cosine))
    in_doubt = {names[row] for one, other, _ in doubtful for row in (one, other)}
    seen = looks.of({image: found[image].url for image in in_doubt})
    waiting = set()
    for one, other, cosine in doubtful:
        if not {names[one], names[other]} <= seen.keys():
            waiting.add(one)
        elif _alike(seen[names[one]], seen[names[other]]):
            links[one][other] = cosine
    put_off = {row for row in waiting if not links[row]}
    # What waits leads nobody: whom it shows the same as is seen when it comes.
    sure = [
        {other: how for other, how in of_row.items() if other not in put_off} for of_row in links.values()
    ]
    kept = np.array([row not in put_off for row in links])
    moved = np.concatenate([np.arange(before), before + np.cumsum(kept) - 1])
    led_by = led(known.leaders, sure)
    known.add(digests(new)[kept], codes[kept], moved[led_by[kept]])
    return len(put_off)


def _candidates(known: Known, codes: NDArray[np.uint8]) -> tuple[Rows, Rows]:
    """Pairs of new pictures, by their numbers, and rows that may show the same: leaders, and new ones before
    them, whose rows go on from there."""
    leading = np.flatnonzero(known.leaders == np.arange(len(known.leaders)))
    asked, at = near(codes, known.codes[leading], BITS, CANDIDATES)
    beside, before = near(codes, codes, BITS, len(codes))
    earlier = before < beside
    return (
        np.concatenate([asked, beside[earlier]]),
        np.concatenate([leading[at], before[earlier] + len(known.pictures)]),
    )


def _pairs(
    known: Known, found: Mapping[str, Picture], names: Mapping[int, str], ones: Rows, others: Rows
) -> list[tuple[int, int, float]]:
    """Those pairs of rows that may show the same, with their cosines, by the first, the nearest first."""
    rows = [row for row, image in names.items() if image in found]  # a leader may have left since
    place = dict(zip(rows, range(len(rows)), strict=True))
    directions = known.compact.centred(_features(found, [names[row] for row in rows]))
    pairs = [
        (one, other, float(directions[place[one]] @ directions[place[other]]))
        for one, other in zip(ones.tolist(), others.tolist(), strict=True)
        if other in place
    ]
    return sorted((pair for pair in pairs if pair[2] >= DOUBTFUL), key=lambda pair: (pair[0], -pair[2]))


def _features(found: Mapping[str, Picture], images: Sequence[str]) -> Floats:
    return np.array([found[image].feature for image in images], np.float32)


def _alike(one: Look | None, other: Look | None) -> bool:
    """Whether two pictures look alike; of one that is not to be had any more nobody can say so."""
    return one is not None and other is not None and likeness(one, other) >= ALIKE


def _written(writer: GroupWriter, pages: Iterable[list[Shown]], groups: Groups) -> Counter[str]:
    """Bring documents into their groups; returns what became of them."""
    counts: Counter[str] = Counter()
    for page in pages:
        images = [shown.image for shown in page]
        groups.count(images)
        outcomes = writer.write(page, groups.of(images))
        counts.update(status.value for status in outcomes.values())
    return counts
