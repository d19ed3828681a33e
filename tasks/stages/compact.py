"""Write the published space's compact vectors into all documents, from the features that these hold.

No picture is fetched. What a document holds already of this space stays, so that doing it again after it
was stopped does the rest.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from tasks.errors import ConfigurationError, RunFailedError, ServiceUnavailableError
from tasks.inference.model import identity
from tasks.progress import Progress, silent
from tasks.search.document_fields import DocumentFields
from tasks.search.index import SearchIndex, WithFeature
from tasks.search.mapping import refuse_another_model
from tasks.search.writing import NO_COMPACT, ROUNDS, compact_fields
from tasks.settings import Settings
from tasks.shop.connections import Connection
from tasks.space.published import Reader
from tasks.stages.prefetch import several_at_once
from tasks.statuses import FAILURES, Status

_CHECKED_AT_ONCE = 10_000
"""Documents after which the index is asked whether searches find what it took."""
_FIRST_FAILURES = 20


class Outcome(NamedTuple):
    """What became of a document."""

    item_id: str
    status: Status
    reason: str = ""
    seq_no: int | None = None
    """What it had when it was written."""


def run(settings: Settings, search: Connection, progress: Progress = silent) -> dict[str, Any]:
    """Write the compact vectors that the documents with a feature of the current version lack, and take away
    those of documents that have lost their feature.

    Returns:
        `space`, `planned` (the documents with such a feature), `counts` of them by status, which add up to
        it, `removed` (compact vectors of documents without a feature), `first_failures` and `seconds`.

    Raises:
        ConfigurationError: there is no space that can be used, or Elasticsearch or the index refuses us.
        ServiceUnavailableError: Elasticsearch does not answer, or another space was published meanwhile; what
            was written stays, and doing it again writes the rest.
        RunFailedError: more documents failed than FEATURES_FAILURE_BUDGET allows.
    """
    started = time.monotonic()
    model = identity(settings)
    spaces = Reader(settings, model)
    space = spaces.space
    index = _opened(settings, search)
    refuse_another_model(index, model)
    index.refresh()
    current, lacking = index.compact_coverage(model.version, space.version)
    counts = Counter({Status.CURRENT: current} if current else {})
    failures: list[Outcome] = []
    fill = _Fill(index, model.version, spaces)
    with closing(index.without_compact(model.version, space.version, settings.bulk_size)) as pages:
        written = several_at_once(fill.write, pages, settings.bulk_requests, "compact", fill.stop)
        outcomes = progress(itertools.chain.from_iterable(written), "compact", lacking)
        for outcome in _checked(index, space.version, outcomes):
            counts[outcome.status] += 1
            if outcome.status in FAILURES and len(failures) < _FIRST_FAILURES:
                failures.append(outcome)
    result = {
        "space": space.version,
        "planned": counts.total(),
        "counts": {str(status): count for status, count in counts.items()},
        "removed": _removed(index, settings.bulk_size),
        "first_failures": [[item_id, str(status), reason] for item_id, status, reason, _ in failures],
        "seconds": time.monotonic() - started,
    }
    failed = sum(count for status, count in counts.items() if status in FAILURES)
    if failed > settings.failure_budget * counts.total():
        raise RunFailedError(
            f"{failed} of {counts.total()} documents got no compact vector, more than "
            f"FEATURES_FAILURE_BUDGET ({settings.failure_budget:g}) allows; the others have theirs.\n"
            f"{described(result)}"
        )
    return result


def described(result: dict[str, Any]) -> str:
    """A fill in words, a line a fact."""
    counts = ", ".join(f"{status} {count}" for status, count in result["counts"].items())
    return "\n".join(
        [
            f"Compact vectors of the feature space {result['space']}: {result['planned']} documents with a "
            f"feature ({counts or 'none'}), in {result['seconds']:.1f} s.",
            *(
                [f"Taken away from documents without a feature: {result['removed']}."]
                if result["removed"]
                else []
            ),
            *(" ".join(failure) for failure in result["first_failures"]),
        ]
    )


def _opened(settings: Settings, search: Connection) -> SearchIndex:
    """The one index behind the name, with our fields: an alias that moves changes nothing any more."""
    fields = DocumentFields.of(settings)
    named = SearchIndex(search, settings.index, fields)
    if not named.check():
        raise ConfigurationError(
            f"There is no index {settings.index} yet, so no document could have a compact vector."
        )
    return SearchIndex(search, named.prepare(), fields)


class _Fill:
    """Writes pages of compact vectors; threads may share one."""

    def __init__(self, index: SearchIndex, version: str, spaces: Reader) -> None:
        self._index = index
        self._version = version
        self._spaces = spaces
        self._space = spaces.space
        self._stopped = threading.Event()

    def write(self, page: Sequence[WithFeature]) -> list[Outcome]:
        """Write one page, each document only as it was read; those that changed are read again."""
        if self._spaces.space.version != self._space.version:
            raise ServiceUnavailableError(
                f"The feature space {self._spaces.space.version} was published while compact vectors of "
                f"{self._space.version} were written. Doing it again writes those of the new one."
            )
        outcomes: list[Outcome] = []
        left = {document.item_id: document for document in page}
        for _ in range(ROUNDS):
            if self._stopped.is_set():
                return outcomes
            changed = self._written(left, outcomes)
            if not changed:
                return outcomes
            before, left = left, {}
            for item_id in changed:
                now = self._index.feature_now(item_id)
                if outcome := self._resolved(item_id, before[item_id], now):
                    outcomes.append(outcome)
                elif now:
                    left[item_id] = now
        reason = f"the document changed at each of {ROUNDS} attempts"
        return [*outcomes, *(Outcome(item_id, Status.REJECTED, reason) for item_id in left)]

    def stop(self) -> None:
        """Let no thread begin another round; pages that are being written stay as they are."""
        self._stopped.set()

    def _written(self, documents: dict[str, WithFeature], outcomes: list[Outcome]) -> list[str]:
        """Write them, add what became of them, and return the ids of those that have changed."""
        compacts = self._space.compact_vectors([document.feature for document in documents.values()])
        actions = []
        for (item_id, document), compact in zip(documents.items(), compacts, strict=True):
            if compact is None:
                reason = "the feature is the mean of all, so that its compact vector has no direction"
                outcomes.append(Outcome(item_id, Status.VECTOR_REFUSED, reason))
            else:
                actions.append(document.update(compact_fields(compact)))
        changed = []
        for written in self._index.write(actions):
            if written.done:
                outcomes.append(Outcome(written.item_id, Status.INDEXED, "", written.seq_no))
            elif written.outdated:
                changed.append(written.item_id)
            else:
                outcomes.append(Outcome(written.item_id, Status.REJECTED, written.refusal))
        return changed

    def _resolved(self, item_id: str, before: WithFeature, now: WithFeature | None) -> Outcome | None:
        """What became of a document that was written by others since it was read; None if it is still to be
        written, from the feature that it has now."""
        if now is None or now.version != self._version:
            return Outcome(item_id, Status.SUPERSEDED, "the document has lost this feature, or is gone")
        if now.compact_version == self._space.version:
            return Outcome(item_id, Status.CURRENT)
        if now.compact_version not in (before.compact_version, None):
            return Outcome(item_id, Status.SUPERSEDED, "a compact vector of another space was written")
        return None


def _checked(index: SearchIndex, space: str, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """The outcomes, but that only what searches find counts as indexed."""
    iterator = iter(outcomes)
    while some := list(itertools.islice(iterator, _CHECKED_AT_ONCE)):
        written = {found.item_id: found for found in some if found.status is Status.INDEXED}
        if absent := set(written) - index.holding_compact(list(written), space):
            there = index.documents(sorted(absent))
            for item_id in absent:
                document = there.get(item_id)
                if document and document.seq_no == written[item_id].seq_no:
                    reason = f"the index accepted it and does not hold it; {index.pipelines()}"
                    written[item_id] = Outcome(item_id, Status.REJECTED, reason)
                else:
                    reason = "the document was replaced or deleted after it was written"
                    written[item_id] = Outcome(item_id, Status.SUPERSEDED, reason)
        yield from (written.get(outcome.item_id, outcome) for outcome in some)


def _removed(index: SearchIndex, at_once: int) -> int:
    """Take the compact vectors of documents without a feature away; returns how many."""
    removed = 0
    with closing(index.compact_without_feature(at_once)) as pages:
        for page in pages:
            answers = index.write([document.update(NO_COMPACT) for document in page])
            # One that was written meanwhile is for the next time.
            removed += sum(written.done for written in answers)
    return removed
