"""Writes what requests ask for into one index; those that come together share a page."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from tasks.errors import FeatureIndexError
from tasks.inference.model import Identity
from tasks.search.index import SearchIndex
from tasks.search.mapping import note_model
from tasks.search.writing import Ready, WriteOutcome, Writer
from tasks.serve.answers import refused
from tasks.serve.batches import Batches
from tasks.serve.features import Feature
from tasks.settings import Settings
from tasks.space.published import Reader
from tasks.statuses import Status

_CHECKED_FOR = 60.0
"""Seconds that an index is taken to be as it was seen: mapping, versions, what its name stands for."""


class Saving:
    """Saves features into an index; threads may share one."""

    def __init__(self, index: SearchIndex, model: Identity, settings: Settings, *, create: bool) -> None:
        """Save features of `model`.

        Args:
            create: write whole rows, and documents that are missing; else only add to what is there.
        """
        self.index = index
        self._model = model
        self._settings = settings
        self._spaces = Reader(settings, model)
        self._create = create
        self._writer: Writer | None = None
        self._checked_at = 0.0
        self._pages = Batches(self._write, sizes=range(1, settings.bulk_size + 1))

    def save(self, row: dict[str, Any], feature: Feature, at: datetime) -> None:
        """Write the feature that a request of that time asked for; return once Elasticsearch has it.

        Raises:
            InferenceError: it was not written; its status says why.
            ServiceUnavailableError: Elasticsearch does not answer.
            ConfigurationError: Elasticsearch or the index refuses us.
        """
        status, reason = self._pages(Ready(row, feature.image, feature.vector, at))
        if status is not Status.INDEXED:
            raise refused(status, reason or status.meaning)

    def close(self) -> None:
        """Save nothing any more."""
        self._pages.close()

    def _write(self, asked: Sequence[Ready]) -> list[WriteOutcome]:
        """What became of each, in order."""
        try:
            outcomes: list[WriteOutcome | None] = [None] * len(asked)
            # A page holds an item once: of two requests the later is written after the earlier.
            left = list(range(len(asked)))
            while left:
                page = {asked[place].item_id: place for place in reversed(left)}
                written = self._opened().write([asked[place] for place in page.values()])
                for item_id, place in page.items():
                    outcomes[place] = written[item_id]
                left = [place for place in left if outcomes[place] is None]
            return [outcome for outcome in outcomes if outcome is not None]
        except FeatureIndexError:
            self._writer = None  # the index may have changed
            raise

    def _opened(self) -> Writer:
        now = time.monotonic()
        if self._writer is None or now - self._checked_at > _CHECKED_FOR:
            if self.index.check():
                self.index.refuse_second_version(self._model.version, self._settings)
            concrete = self.index.prepare()
            note_model(self.index, concrete, self._model)
            self._writer = Writer(
                self.index,
                concrete,
                self._model.version,
                urls=lambda items: {item.item_id: item.row["img_url"] for item in items},
                compacting=self._spaces.compact_vectors,
                create=self._create,
            )
            self._checked_at = now
        return self._writer
