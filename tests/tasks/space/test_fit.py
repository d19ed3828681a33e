"""A space from a snapshot, evaluated as independent computations do, and published unless it is worse."""

import dataclasses

import numpy as np
import pytest

from tasks.errors import ConfigurationError, RunFailedError
from tasks.settings import Settings
from tasks.space import fit, published
from tasks.space.evaluation import Queries, evaluated, fold
from tasks.space.published import Space
from tasks.space.snapshot import Snapshot
from tests.tasks.space.synthetic import MODEL, features_of, shop, write

IDS, CATEGORIES = shop({"hat": 160, "shoe": 160, "dress": 130, "rare": 10})


@pytest.fixture(scope="module")
def features():
    return features_of(CATEGORIES)


@pytest.fixture(scope="module")
def settings(tmp_path_factory, features):
    settings = Settings(data_dir=tmp_path_factory.mktemp("fit"))
    write(fit.snapshot_path(settings), IDS, CATEGORIES, features)
    return settings


@pytest.fixture(scope="module")
def facts(settings):
    return fit.fit(settings)


@pytest.fixture(scope="module")
def space(settings, facts) -> Space:
    found = published.published(settings, MODEL)
    assert found.version == facts["version"]
    return found


def test_a_fit_counts_what_it_took_and_left_out(facts):
    held_out = [item for item in IDS if fold(item) == 0]
    known = [item for item, category in zip(IDS, CATEGORIES, strict=True) if category != "rare"]
    assert facts["items"] == len(IDS)
    assert facts["held_out"] == len(held_out)
    assert facts["queries"] == len(set(held_out) & set(known))
    assert facts["left_out"] == {"rare": 10}
    assert f"rare ({10})" in fit.described(facts)


def test_folds_are_about_a_fifth_each_and_stay():
    counts = np.bincount([fold(f"{number:010}") for number in range(5_000)])
    assert len(counts) == 5
    assert (abs(counts - 1_000) < 5 * 30).all(), "five standard deviations"
    assert fold("4816000185") == fold("4816000185")


def test_figures_are_those_of_brute_force(space, facts, features):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    out = np.array([fold(item) == 0 for item in IDS])
    truth = np.array(CATEGORIES)
    gallery = truth[~out]
    queries = np.flatnonzero(out & (truth != "rare"))
    probabilities = space.categories.probabilities(features[queries])
    names = np.array(space.categories.categories)

    def nearest(vectors, query, among):
        cosines = np.where(among, vectors[~out] @ vectors[query], -2)
        return np.argsort(-cosines)[:10]

    compact = space.compact.vectors(features)
    everyone = np.full((~out).sum(), True)
    right = {name: [] for name in facts["evaluation"]}
    for query, of_query in zip(queries, probabilities, strict=True):
        order = np.argsort(-of_query)
        right["accuracy"].append(names[order[0]] == truth[query])
        right["top_2"].append(truth[query] in names[order[:2]])
        plain = nearest(unit, query, everyone)
        small = nearest(compact, query, everyone)
        wanted = names[order[:1]] if of_query.max() >= 0.7 else names[order[:2]]
        near = nearest(unit, query, np.isin(gallery, wanted))[:5]
        right["first_plain"].append(gallery[plain[0]] == truth[query])
        right["first_compact"].append(gallery[small[0]] == truth[query])
        right["precision_plain"].append((gallery[plain[:5]] == truth[query]).mean())
        right["precision_compact"].append((gallery[small[:5]] == truth[query]).mean())
        right["precision_near"].append((gallery[near] == truth[query]).mean())
        right["near_any"].append((gallery[near] == truth[query]).any())
        right["recall_compact"].append(len(set(plain) & set(small)) / 10)
        bits = compact @ space.codes.rotation > 0
        differing = (bits[~out] != bits[query]).sum(axis=1)
        candidates = np.argsort(differing, kind="stable")[:100]
        cosines = unit[~out][candidates] @ unit[query]
        right["recall_codes"].append(len(set(plain) & set(candidates[np.argsort(-cosines)[:10]])) / 10)
    for name, values in right.items():
        if values:
            assert facts["evaluation"][name] == pytest.approx(np.mean(values), abs=0.02), name
    assert facts["evaluation"]["accuracy"] > 0.8, "a third would be right by chance"


def test_the_calibration_error_is_that_of_its_definition(settings, space, features):
    out = np.array([fold(item) == 0 for item in IDS])
    chosen = np.flatnonzero(out & (np.array(CATEGORIES) != "rare"))
    with Snapshot(fit.snapshot_path(settings)) as snapshot:
        unit = features[chosen] / np.linalg.norm(features[chosen], axis=1, keepdims=True)
        found = evaluated(space, snapshot, out, Queries(unit, [CATEGORIES[row] for row in chosen]))
    probabilities = space.categories.probabilities(features[chosen])
    error = 0.0
    tenths = np.minimum(np.floor(probabilities.max(axis=1).astype(np.float64) * 10), 9)
    for tenth in range(10):
        inside = tenths == tenth
        if inside.any():
            right = np.array(space.categories.categories)[probabilities[inside].argmax(axis=1)]
            accuracy = (right == np.array(CATEGORIES)[chosen][inside]).mean()
            error += inside.mean() * abs(accuracy - probabilities[inside].max(axis=1).mean())
    assert found["calibration_error"] == pytest.approx(error, abs=1e-4)


def test_a_worse_space_is_not_published_and_says_why(space, features, tmp_path):
    again = Settings(data_dir=tmp_path)
    published.publish(space, again)
    shuffled = np.random.default_rng(1).permutation(CATEGORIES).tolist()
    mixed = [a if fold(item) == 0 else b for item, a, b in zip(IDS, CATEGORIES, shuffled, strict=True)]
    write(fit.snapshot_path(again), IDS, mixed, features)
    with pytest.raises(RunFailedError, match=r"which stays: accuracy 0\.\d{3}, before 1\.000"):
        fit.fit(again)
    kept = published.published(again, MODEL)
    assert dataclasses.asdict(kept.categories)["categories"] == space.categories.categories
    assert kept.version == space.version


@pytest.mark.parametrize(
    ("counts", "says"),
    [({"hat": 60}, "no two categories"), ({"hat": 32, "shoe": 32}, "items are held out, too few")],
)
def test_too_little_to_learn_from_is_said(tmp_path, counts, says):
    settings = Settings(data_dir=tmp_path)
    ids, categories = shop(counts)
    write(fit.snapshot_path(settings), ids, categories, features_of(categories))
    with pytest.raises(ConfigurationError, match=says):
        fit.fit(settings)
