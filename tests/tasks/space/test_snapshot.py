import h5py
import numpy as np
import pytest

from tasks.errors import ConfigurationError
from tasks.inference.model import Identity
from tasks.space.snapshot import Snapshot, writing
from tests.tasks.space.synthetic import MODEL, features_of, shop, write

IDS, CATEGORIES = shop({"hat": 1_000, "shoe": 900, "": 300})


@pytest.fixture(scope="module")
def features():
    return features_of(CATEGORIES)


@pytest.fixture(scope="module")
def path(tmp_path_factory, features):
    return write(tmp_path_factory.mktemp("snapshot") / "all.h5", IDS, CATEGORIES, features)


def test_rows_come_back_in_pages_at_length_1(path, features):
    with Snapshot(path) as snapshot:
        assert (len(snapshot), snapshot.model) == (2_200, MODEL)
        assert snapshot.names() == IDS
        assert snapshot.categories() == CATEGORIES
        assert snapshot.pictures([3, 2_199]) == ["item-00003.jpg", "item-02199.jpg"]
        pages = list(snapshot.pages())
    assert [begin for begin, _ in pages] == [0, 1_024, 2_048]
    found = np.concatenate([page for _, page in pages])
    expected = features / np.sqrt((features.astype(np.float64) ** 2).sum(axis=1))[:, None]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_rows_are_picked_wherever_they_lie(path):
    with Snapshot(path) as snapshot:
        everything = np.concatenate([page for _, page in snapshot.pages()])
        rows = np.array([2_199, 0, 1_024, 1_023])
        np.testing.assert_array_equal(snapshot.features(rows), everything[rows])


def test_a_reader_of_plain_files_finds_features_and_names(path):
    with h5py.File(path) as file:
        features, names = file["dataset_1"], file["dataset_2"]
        assert features.shape == (2_200, 2048)
        assert names[5].decode() == IDS[5]
        np.testing.assert_allclose(np.linalg.norm(features[:50], axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_feature_without_a_direction_is_refused_and_leaves_no_file(tmp_path, bad):
    path = tmp_path / "all.h5"
    with pytest.raises(ValueError, match="direction"), writing(path, MODEL) as writer:
        writer.add(["a"], [""], [""], np.full((1, 2048), bad, np.float32))
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stays_until_the_next_is_whole(tmp_path, features):
    kept = tmp_path / "all.h5"
    write(kept, IDS[:3], CATEGORIES[:3], features[:3])
    with pytest.raises(ValueError, match="direction"), writing(kept, Identity("another")) as writer:
        writer.add(["a", "b"], ["", ""], ["", ""], np.stack([features[0], features[0] * 0]))
    with Snapshot(kept) as snapshot:
        assert (len(snapshot), snapshot.model) == (3, MODEL)


def test_no_file_is_said(tmp_path):
    with pytest.raises(ConfigurationError, match=r"There is no file .*all\.h5"):
        Snapshot(tmp_path / "all.h5")


@pytest.mark.parametrize("content", [b"", b"no HDF5", "cut"])
def test_another_file_says_that_it_is_none(path, tmp_path, content):
    other = tmp_path / "other.h5"
    if content == "cut":
        content = path.read_bytes()[:50_000]
    other.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"other\.h5 is no file of features"):
        Snapshot(other)


def test_features_that_lie_otherwise_are_no_snapshot(tmp_path):
    with h5py.File(tmp_path / "packed.h5", "w") as file:
        file.attrs["feature_version"] = "v"
        file.create_dataset("dataset_1", data=np.ones((5, 2048), np.float32), compression="gzip")
        file["dataset_2"] = ["a"] * 5
    with pytest.raises(ConfigurationError, match="no file of features"):
        Snapshot(tmp_path / "packed.h5")
