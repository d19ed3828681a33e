import io

import numpy as np
import pytest

from tasks.errors import ConfigurationError
from tasks.inference.model import Identity
from tasks.settings import Settings
from tasks.space.categories import CategoryModel
from tasks.space.published import Space, folder, publish, published
from tasks.space.vectors import Codes, Compact

MODEL = Identity("v", "3c00" * 16)


def space(model=MODEL, seed=0, **facts):
    rng = np.random.default_rng(seed)

    def floats(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return Space(
        model,
        Compact(floats(64), floats(64, 128)),
        Codes(floats(128, 128)),
        CategoryModel(("00000010", "shoes/boots é"), floats(2, 64), floats(2)),
        facts,
    )


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path)


def test_what_is_published_is_what_was_learnt(settings):
    made = space(items=5, evaluation={"accuracy": 0.5})
    name = publish(made, settings)
    assert name.startswith("v-")
    found = published(settings, MODEL)
    assert (found.version, found.facts, found.categories.categories) == (
        name,
        made.facts,
        made.categories.categories,
    )
    features = np.abs(np.random.default_rng(1).normal(size=(3, 64))).astype(np.float32)
    np.testing.assert_array_equal(found.compact.vectors(features), made.compact.vectors(features))
    np.testing.assert_array_equal(
        found.categories.probabilities(features), made.categories.probabilities(features)
    )


def test_a_name_stands_for_its_content(settings):
    assert publish(space(seed=1), settings) == publish(space(seed=1), settings)
    assert publish(space(seed=2), settings) != publish(space(seed=1), settings)


def test_none_yet_says_which_dag_to_run(settings):
    with pytest.raises(ConfigurationError, match="Run the DAG feature_space"):
        published(settings, MODEL)


def test_one_of_another_feature_version_is_refused(settings):
    publish(space(Identity("old")), settings)
    with pytest.raises(ConfigurationError, match=r"of features old, and the model here makes new"):
        published(settings, Identity("new"))


def test_one_of_a_model_that_computes_something_else_is_refused(settings):
    publish(space(), settings)
    other = Identity(MODEL.version, "4000" * 16)
    with pytest.raises(ConfigurationError, match=f"of features v .*{MODEL.fingerprint}.* makes v .*40004000"):
        published(settings, other)


def test_one_of_before_fingerprints_were_taken_is_of_its_version(settings):
    publish(space(Identity("v")), settings)
    assert published(settings, MODEL).model == ("v", "")
    with np.load(next(folder(settings).glob("*.npz"))) as held:
        arrays = {name: held[name] for name in held if name != "model_fingerprint"}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    assert Space.read(buffer.getvalue()).model == ("v", "")


@pytest.mark.parametrize("damage", [lambda content: content[:-1] + b"x", lambda _: b""])
def test_a_damaged_one_is_refused(settings, damage):
    publish(space(), settings)
    (file,) = folder(settings).glob("*.npz")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ConfigurationError, match="damaged"):
        published(settings, MODEL)


def test_a_pointer_that_cannot_be_read_is_damage_too(settings):
    publish(space(), settings)
    (folder(settings) / "published.json").write_text("{")
    with pytest.raises(ConfigurationError, match="damaged"):
        published(settings, MODEL)


def test_no_code_is_run_from_a_space(settings):
    """An array of objects would be unpickled."""
    publish(space(), settings)
    (file,) = folder(settings).glob("*.npz")
    with np.load(file) as held:
        hostile = dict(held) | {"mean": np.array([{"a": 1}], object)}
    np.savez(file, **hostile)
    with pytest.raises(ValueError, match="allow_pickle"):
        Space.read(file.read_bytes())
