"""From the features in the index to a published space."""

import logging
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigurationError, RunFailedError
from tasks.inference.model import identity
from tasks.progress import Progress, silent
from tasks.search.mapping import refuse_another_model
from tasks.search.queries import PAGE, ItemQueries, Scope
from tasks.settings import Settings
from tasks.space import published
from tasks.space.categories import CategoryModel
from tasks.space.evaluation import MOST_QUERIES, Queries, evaluated, fold
from tasks.space.published import Space
from tasks.space.snapshot import ROWS_AT_ONCE, Snapshot, writing
from tasks.space.vectors import Codes, Compact, Floats

log = logging.getLogger(__name__)

_FEWEST_HELD_OUT = 20
"""Items that an evaluation needs to mean anything."""
_MOST_LEARNT = 20_000
"""Items that a space is learnt from: more add minutes and gigabytes, and hardly anything
else."""
_WORSE = 0.02
"""By how much a figure may be below that of the published space."""
_GUARDED = ("accuracy", "precision_near", "precision_compact", "recall_codes")


def snapshot_path(settings: Settings) -> Path:
    """Where the last snapshot of the index lies."""
    return published.folder(settings) / "snapshot.h5"


def take_snapshot(index: ItemQueries, settings: Settings, progress: Progress = silent) -> int:
    """Write all features of the current version into the snapshot; returns how many.

    Raises:
        ConfigurationError: the index holds none, or those of another model.
        ServiceUnavailableError: Elasticsearch does not answer, or the data dir cannot be written.
    """
    model = identity(settings)
    refuse_another_model(index, model)
    scope = Scope(model.version)
    total = index.count(scope)
    if not total:
        raise ConfigurationError(
            f"The index {index.name} holds no feature of {scope.version}: run category_backfill first."
        )
    with writing(snapshot_path(settings), model) as snapshot:
        for rows in progress(index.rows(scope), "snapshot, pages", -(-total // PAGE)):
            snapshot.add(*rows)
    return total


def fit(settings: Settings) -> dict[str, Any]:
    """Learn a space from the snapshot, evaluate it, and publish it unless the published one is better.

    Every fifth item, by a hash of its id, is held out: what is published is what was evaluated.

    Returns:
        The published space's facts, its `version` among them.

    Raises:
        ConfigurationError: there is no snapshot, or too little in it to learn from.
        RunFailedError: the published space is better; it stays.
    """
    with Snapshot(snapshot_path(settings)) as snapshot:
        folds = np.array([fold(item_id) for item_id in snapshot.names()])
        held_out = folds == 0
        try:
            space = learnt(snapshot, held_out)
        except ValueError as error:
            raise ConfigurationError(
                f"No space can be learnt from the {len(snapshot)} items with a feature: {error}."
            ) from None
        held = queries(snapshot, held_out, space)
        if len(held.features) < _FEWEST_HELD_OUT:
            raise ConfigurationError(
                f"Only {len(held.features)} items are held out, too few to evaluate a space by: it takes "
                "some hundred items with features."
            )
        facts: dict[str, Any] = {
            "learnt_at": datetime.now(UTC).isoformat(),
            "items": len(snapshot),
            "held_out": int(held_out.sum()),
            "queries": len(held.features),
            "left_out": _left_out(snapshot.categories(), space.categories.categories),
            "evaluation": evaluated(space, snapshot, held_out, held),
        }
        if worse := _worse_than_published(facts["evaluation"], snapshot, held_out, held, settings):
            raise RunFailedError(
                f"The new space is worse than the published one, which stays: {worse}. Either the shop's "
                "items have changed in kind, or features are missing; to publish it nevertheless, remove "
                f"{published.folder(settings) / 'published.json'} and fit again."
            )
    space = Space(space.model, space.compact, space.codes, space.categories, facts)
    return {"version": published.publish(space, settings), **facts}


def described(facts: dict[str, Any]) -> str:
    """A fit in words, a line a fact."""
    left_out = ", ".join(f"{name or 'none'} ({count})" for name, count in facts["left_out"].items())
    return "\n".join(
        [
            f"Published the feature space {facts['version']}, learnt from {facts['items']} items.",
            f"Evaluated with {facts['queries']} of the {facts['held_out']} that were held out:",
            *(f"  {name.replace('_', ' ')}: {value:.3f}" for name, value in facts["evaluation"].items()),
            f"Categories left out, with too few items to learn: {left_out or 'none'}.",
        ]
    )


def learnt(snapshot: Snapshot, held_out: NDArray[np.bool_]) -> Space:
    """A space learnt from the rows that are not `held_out` [rows], without facts.

    Raises:
        ValueError: there is too little to learn from.
    """
    categories = np.array(snapshot.categories(), object)
    chosen = _sample(~held_out & (categories != ""), _MOST_LEARNT)
    features = _rows(snapshot, chosen)
    compact = Compact.learnt(
        features[begin : begin + ROWS_AT_ONCE] for begin in range(0, len(features), ROWS_AT_ONCE)
    )
    model = CategoryModel.learnt(features, list(categories[chosen]))
    return Space(snapshot.model, compact, Codes.learnt(compact.vectors(features)), model)


def queries(snapshot: Snapshot, held_out: NDArray[np.bool_], space: Space) -> Queries:
    """What to evaluate a space with: some of the rows held out, of categories that it knows."""
    categories = np.array(snapshot.categories(), object)
    chosen = _sample(held_out & np.isin(categories, space.categories.categories), MOST_QUERIES)
    return Queries(_rows(snapshot, chosen), list(categories[chosen]))


def _sample(wanted: NDArray[np.bool_], most: int) -> NDArray[np.bool_]:
    """As many of the wanted rows at most, evenly over all."""
    rows = np.flatnonzero(wanted)
    chosen = np.zeros(len(wanted), bool)
    chosen[rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]] = True
    return chosen


def _rows(snapshot: Snapshot, chosen: NDArray[np.bool_]) -> Floats:
    return np.concatenate([page[chosen[begin : begin + len(page)]] for begin, page in snapshot.pages()])


def _left_out(categories: Sequence[str], known: tuple[str, ...]) -> dict[str, int]:
    """Items by category that are not learnt, as theirs has too few; the empty one is of those without."""
    return dict(sorted(Counter(category for category in categories if category not in known).items()))


def _worse_than_published(
    new: dict[str, float],
    snapshot: Snapshot,
    held_out: NDArray[np.bool_],
    held: Queries,
    settings: Settings,
) -> str:
    try:
        before = published.published(settings, snapshot.model)
    except ConfigurationError as error:
        log.info("Nothing to compare with. %s", error)
        return ""
    old = evaluated(before, snapshot, held_out, held)
    return ", ".join(
        f"{name} {new[name]:.3f}, before {old[name]:.3f}"
        for name in _GUARDED
        if new[name] < old[name] - _WORSE
    )
