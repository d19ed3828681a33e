import numpy as np
import pytest

from tasks.errors import ConfigurationError
from tasks.space.search import ByCodes, add_codes, exact
from tasks.space.snapshot import Snapshot, writing
from tests.tasks.space.synthetic import MODEL, features_of, shop, write

IDS, CATEGORIES = shop({"hat": 800, "shoe": 700})


@pytest.fixture(scope="module")
def features():
    return features_of(CATEGORIES)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory, features):
    path = tmp_path_factory.mktemp("search") / "all.h5"
    with writing(path, MODEL) as writer:
        writer.add(IDS, CATEGORIES, [f"{i}.jpg" for i in IDS], features)
        add_codes(writer)
    with Snapshot(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def query():
    return features_of(["hat"], seed=99)[0]


def brute_force(query, features):
    """Cosines of all, in double precision."""
    query, features = query.astype(np.float64), features.astype(np.float64)
    return features @ query / np.linalg.norm(query) / np.linalg.norm(features, axis=1)


def test_exact_finds_what_brute_force_finds(snapshot, features, query):
    cosines = brute_force(query, features)
    order = np.argsort(-cosines)[:7]
    found = exact(snapshot, query, 7)
    assert [item.name for item in found] == [IDS[row] for row in order]
    assert [item.picture for item in found] == [f"{IDS[row]}.jpg" for row in order]
    np.testing.assert_allclose([item.cosine for item in found], cosines[order], atol=1e-5)


def test_an_item_of_the_file_finds_itself_first_in_both_ways(snapshot, features):
    by_codes = ByCodes(snapshot)
    for row in (0, 1_023, 1_024, 1_499):
        for found in (exact(snapshot, features[row], 1), by_codes.nearest(features[row], 1, 10)):
            assert found[0].name == IDS[row]
            assert found[0].cosine == pytest.approx(1, abs=1e-5)


def test_all_as_candidates_is_exact(snapshot, query):
    every = ByCodes(snapshot).nearest(query, 7, 10_000)
    assert [item.name for item in every] == [item.name for item in exact(snapshot, query, 7)]


def test_candidates_find_most_of_the_nearest(snapshot):
    by_codes, shares = ByCodes(snapshot), []
    for query in features_of(["hat"] * 20 + ["shoe"] * 20, seed=5):
        right = {item.name for item in exact(snapshot, query, 10)}
        shares.append(len(right & {item.name for item in by_codes.nearest(query, 10, 300)}) / 10)
    assert np.mean(shares) > 2 * 300 / 1_500, "a fifth would be found by chance"


def test_more_than_there_are_is_all_there_are(tmp_path, features, query):
    path = write(tmp_path / "few.h5", IDS[:3], CATEGORIES[:3], features[:3])
    with Snapshot(path) as few:
        assert {item.name for item in exact(few, query, 10)} == set(IDS[:3])
        with pytest.raises(ConfigurationError, match="no codes"):
            ByCodes(few)
