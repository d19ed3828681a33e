"""Writes documents' groups: under the guards of the feature's writing, each document ends in one status."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tasks.search.index import Document, SearchIndex
from tasks.search.mapping import GROUP
from tasks.search.pictures import PictureQueries, Shown
from tasks.search.writing import ROUNDS
from tasks.statuses import Status


class GroupWriter:
    """Writes groups into documents that still show the picture that was compared.

    Its methods raise ServiceUnavailableError and ConfigurationError as SearchIndex does.
    """

    def __init__(self, index: SearchIndex, pictures: PictureQueries, target: str, version: str) -> None:
        """Write to the index behind the name, which is `target` now, where features are of `version`."""
        self._index = index
        self._pictures = pictures
        self._target = target
        self._version = version

    def write(self, page: Sequence[Shown], groups: Sequence[str]) -> dict[str, Status]:
        """Bring a page of documents into their groups; returns what became of each."""
        wanted = {shown.item_id: _Wanted(shown, group) for shown, group in zip(page, groups, strict=True)}
        outcomes = {
            item_id: Status.CURRENT for item_id, want in wanted.items() if want.shown.group == want.group
        }
        left = [want for item_id, want in wanted.items() if item_id not in outcomes]
        for _ in range(ROUNDS):
            if not left:
                break
            documents = self._index.documents_in(self._target, [want.shown.item_id for want in left])
            actions = list(self._actions(left, documents, outcomes))
            for written in self._index.write(actions):
                if written.done:
                    outcomes[written.item_id] = Status.INDEXED
                elif not written.outdated:
                    outcomes[written.item_id] = Status.REJECTED
            left = [want for want in left if want.shown.item_id not in outcomes]
        outcomes |= dict.fromkeys((want.shown.item_id for want in left), Status.REJECTED)
        return outcomes | self._missed(wanted, outcomes)

    def _actions(
        self,
        left: Sequence["_Wanted"],
        documents: Mapping[str, Document],
        outcomes: dict[str, Status],
    ) -> Iterator[dict[str, Any]]:
        """What to write; of the documents that must not be written, puts what became of them into
        `outcomes`."""
        for (item_id, image, _), group in left:
            document = documents.get(item_id)
            if document is None:
                outcomes[item_id] = Status.WAITING_FOR_DOCUMENT
            elif (document.version, document.image) != (self._version, image):
                outcomes[item_id] = Status.SUPERSEDED
            elif document.group == group:
                outcomes[item_id] = Status.CURRENT
            else:
                yield {"_index": self._target, **document.update({GROUP: group})}

    def _missed(self, wanted: Mapping[str, "_Wanted"], outcomes: Mapping[str, Status]) -> dict[str, Status]:
        """What became of those that were written and are not found so: what the index holds is what counts,
        not what it answered."""
        written = [item_id for item_id, status in outcomes.items() if status is Status.INDEXED]
        if not written:
            return {}
        held = self._pictures.in_groups(written)
        absent = [item_id for item_id in written if held.get(item_id) != wanted[item_id].group]
        there = self._index.documents_in(self._target, absent)
        return {item_id: self._fate(wanted[item_id], there.get(item_id)) for item_id in absent}

    def _fate(self, want: "_Wanted", document: Document | None) -> Status:
        if document is None:
            return Status.WAITING_FOR_DOCUMENT
        if (document.version, document.image) != (self._version, want.shown.image):
            return Status.SUPERSEDED
        return Status.INDEXED if document.group == want.group else Status.REJECTED


class _Wanted(NamedTuple):
    shown: Shown
    group: str
