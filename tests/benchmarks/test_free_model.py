"""The model that costs nothing gives features that count as such."""

import numpy as np
import pytest

from benchmarks import free_model
from benchmarks.model_alone import pace
from tasks.inference import model
from tasks.settings import Settings

pytestmark = pytest.mark.model


def test_its_features_tell_the_middle_pixels_apart_and_are_never_zeros(tmp_path):
    free_model.save(tmp_path / "free")
    loaded = model.load(Settings(data_dir=tmp_path / "var", model_dir=tmp_path / "free", precision="float32"))
    pictures = np.zeros((5, 299, 299, 3), np.float32)
    pictures[1:, 149, 149, 0] = [1, 1, 0.5, 0]
    pictures[4] = 1
    pictures[4, 149, 149] = 0

    features = loaded.compute(pictures)

    assert features.any(axis=1).all()
    np.testing.assert_array_equal(features[1], features[2])
    np.testing.assert_array_equal(features[0], features[4])
    np.testing.assert_allclose(features[3], (features[0] + features[1]) / 2, rtol=1e-5)
    assert not np.allclose(features[0], features[1])
    assert min(pace(loaded, pictures, 2)) > 0
