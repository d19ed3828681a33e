"""The feature space of a real shop's photos: each fifth of them, by a hash of the id, is searched with among
the others, from which the space was learnt.

How good it is is computed as by the DAG `feature_space`, which publishes what it finds for the first fifth.
"""

from pathlib import Path

import numpy as np

from benchmarks.figures import Figure
from benchmarks.shop import running_shop
from tasks.search.queries import ItemQueries
from tasks.settings import Settings
from tasks.shop.connections import Services
from tasks.space import fit
from tasks.space.evaluation import FOLDS, evaluated, fold, predicted
from tasks.space.snapshot import Snapshot

_GOALS: dict[str, tuple[str, float | None, float | None]] = {
    "accuracy": ("category predicted", 0.83, None),
    "top_2": ("category among the two likeliest", 0.94, None),
    "calibration_error": ("expected calibration error", None, 0.045),
    "precision_plain": ("precision at 5, plain search", None, None),
    "precision_near": ("precision at 5, within the predicted categories", 0.82, None),
    "near_any": ("one of its category among these five", 0.885, None),
    "precision_compact": ("precision at 5, compact vectors", None, None),
    "first_plain": ("1-NN accuracy, plain search", None, None),
    "first_compact": ("1-NN accuracy, compact vectors", None, None),
    "recall_compact": ("recall at 10, compact vectors", None, None),
    "recall_codes": ("recall at 10, 100 candidates by codes", 0.97, None),
}
"""What each figure of the evaluation is, and at least and at most what it should be."""


def measure(photos: Path) -> list[Figure]:
    """Fill an index with the photos' features, and learn and evaluate a space for each fifth.

    Raises:
        FeatureIndexError: the backfill failed.
    """
    with running_shop(photos) as shop:
        shop.backfill()
        settings, services = Settings.load(), Services.from_environment()
        items = fit.take_snapshot(ItemQueries(services.search, settings.index), settings)
        with Snapshot(fit.snapshot_path(settings)) as snapshot:
            found, weights, probabilities, truth = [], [], [], []
            folds = np.array([fold(item_id) for item_id in snapshot.names()])
            for number in range(FOLDS):
                held_out = folds == number
                space = fit.learnt(snapshot, held_out)
                queries = fit.queries(snapshot, held_out, space)
                found.append(evaluated(space, snapshot, held_out, queries))
                weights.append(len(queries.features))
                probabilities.append(space.categories.probabilities(queries.features))
                truth += queries.categories
    mean = {name: float(np.average([each[name] for each in found], weights=weights)) for name in _GOALS}
    # The error of few items is larger than that of all of them, so it is no mean.
    mean |= predicted(np.concatenate(probabilities), space.categories.categories, np.array(truth, object))
    return [
        Figure("items", items),
        Figure("items searched with", sum(weights)),
        *(
            Figure(what, mean[name], at_least=least, at_most=most)
            for name, (what, least, most) in _GOALS.items()
        ),
        Figure(
            "precision at 5, compact vectors / plain search",
            mean["precision_compact"] / mean["precision_plain"],
            at_least=1.0,
        ),
        Figure(
            "1-NN accuracy, compact vectors / plain search",
            mean["first_compact"] / mean["first_plain"],
            at_least=1.0,
        ),
    ]
