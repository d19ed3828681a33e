"""Tests of tasks/model.py: the identity of a model, and what is refused as one."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import model
from tasks.errors import ConfigurationError
from tasks.picture import PREPROCESSING_TAG
from tasks.settings import Settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The real model, which `make model` has built, and a data dir of its own."""
    return Settings(data_dir=tmp_path_factory.mktemp("var"))


def save_tiny(folder: Path, width: int = model.DIMENSIONS, *, called: bool = True) -> np.ndarray:
    """Write a SavedModel whose feature is each picture's mean times a kernel, and return the kernel.

    With `called` false it looks like TF-Hub's older modules: only a signature named `default`.
    """
    import tensorflow as tf

    kernel = np.random.default_rng(7).random((3, width), np.float32)

    class Tiny(tf.Module):
        variables: Any = ()

        @tf.function(input_signature=[tf.TensorSpec([None, 299, 299, 3], tf.float32)])
        def features(self, images: Any) -> Any:
            return {"default": tf.linalg.matmul(tf.reduce_mean(images, [1, 2]), self.variables[0])}

    tiny = Tiny()
    tiny.variables = [tf.Variable(kernel)]
    if called:
        tiny.__call__ = tf.function(
            lambda images: tiny.features(images)["default"],
            input_signature=[tf.TensorSpec([None, 299, 299, 3], tf.float32)],
        )
    tf.saved_model.save(tiny, str(folder), signatures={"default": tiny.features})
    return kernel


def test_digest_is_as_the_contract_says() -> None:
    # 1.0, 2.0 and -3.0 as little-endian float32, each tensor after the line of its shape.
    one = b"2\n" + bytes.fromhex("0000803f00000040")
    scalar = b"\n" + bytes.fromhex("000040c0")
    hashes = sorted(hashlib.sha256(tensor).digest() for tensor in (one, scalar))
    expected = hashlib.sha256(hashes[0] + hashes[1]).hexdigest()

    assert model.weights_digest([np.array([1, 2], np.float32), np.array(-3, np.float32)]) == expected
    assert model.weights_digest([np.array(-3, ">f4"), np.array([1, 2], np.int64)]) == expected


def test_digest_sees_every_value_and_shape_but_no_order() -> None:
    first = np.arange(6, dtype=np.float32).reshape(2, 3)
    second = np.ones(4, np.float32)
    digest = model.weights_digest([first, second])

    assert model.weights_digest([second, np.asfortranarray(first)]) == digest
    changed = first.copy()
    changed[1, 2] = np.nextafter(changed[1, 2], np.float32(9))
    others = [
        [first],
        [first, second, second],
        [first.reshape(3, 2), second],
        [first.T, second],
        [changed, second],
    ]
    digests = {model.weights_digest(arrays) for arrays in others}
    assert len(digests) == len(others)
    assert digest not in digests


def test_version_names_model_weights_and_preprocessing(settings: Settings) -> None:
    digest = model.installed_digest(settings)

    assert len(digest) == 64
    assert model.feature_version(settings) == f"inception_v3-{digest[:12]}-{PREPROCESSING_TAG}"


def test_a_version_met_before_needs_no_tensorflow(settings: Settings) -> None:
    version = model.feature_version(settings)
    program = (
        "import sys; from pathlib import Path; from tasks.model import feature_version; "
        "from tasks.settings import Settings; "
        f"print(feature_version(Settings(data_dir=Path({str(settings.data_dir)!r})))); "
        "assert 'tensorflow' not in sys.modules"
    )

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == version


def test_a_torn_note_of_the_digest_is_made_anew(settings: Settings) -> None:
    digest = model.installed_digest(settings)
    (note,) = (settings.data_dir / "weight_digests").iterdir()
    assert note.read_text() == digest + "\n"
    note.write_text(digest[:40])

    assert model.installed_digest(settings) == digest
    assert note.read_text() == digest + "\n"


def test_no_model_says_how_to_make_one(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "var", model_dir=tmp_path / "inception_v3")

    for ask in (model.feature_version, model.load):
        with pytest.raises(ConfigurationError, match="make model") as missing:
            ask(settings)
        assert str(tmp_path / "inception_v3") in str(missing.value)


def test_another_model_than_demanded_is_refused(settings: Settings) -> None:
    digest = model.installed_digest(settings)
    demanded = "0123456789abcdef" * 4

    with pytest.raises(ConfigurationError) as refused:
        model.load(settings.model_copy(update={"model_digest": demanded}))

    assert demanded in str(refused.value)
    assert digest in str(refused.value)
    assert model.installed_digest(settings.model_copy(update={"model_digest": digest})) == digest


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    (tmp_path / "model" / "saved_model.pb").write_bytes(b"half a graph")

    with pytest.raises(ConfigurationError, match="make model"):
        model.load(Settings(data_dir=tmp_path / "var", model_dir=tmp_path / "model"))

    assert not (tmp_path / "var" / "weight_digests").exists()


def test_features_of_another_width_are_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", width=1001)

    with pytest.raises(ConfigurationError, match=r"1001.*2048"):
        model.feature_version(Settings(data_dir=tmp_path / "var", model_dir=tmp_path / "model"))


@pytest.mark.parametrize("called", [True, False], ids=["callable", "TF-Hub's default signature"])
def test_computes_any_number_of_pictures_in_one_trace(called: bool, tmp_path: Path) -> None:
    kernel = save_tiny(tmp_path / "model", called=called)
    loaded = model.load(Settings(data_dir=tmp_path / "var", model_dir=tmp_path / "model"))
    pictures = np.random.default_rng(3).random((5, 299, 299, 3), np.float32)

    for count in (1, 5, 2):
        features = loaded.compute(pictures[:count])
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, pictures[:count].mean(axis=(1, 2)) @ kernel, rtol=1e-4)

    assert loaded._network.experimental_get_tracing_count() == 1
    assert loaded.precision == "float32"
    assert loaded.device in ("cpu", "gpu")
    assert loaded.version == model.feature_version(
        Settings(data_dir=tmp_path / "var", model_dir=tmp_path / "model")
    )


def test_the_real_model_gives_the_same_feature_in_any_batch(settings: Settings) -> None:
    loaded = model.load(settings)
    pictures = np.random.default_rng(5).random((3, 299, 299, 3), np.float32)

    together = loaded.compute(pictures)

    assert together.shape == (3, 2048)
    assert np.linalg.norm(together, axis=1).min() > 1
    alone = np.concatenate([loaded.compute(pictures[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(alone, together, atol=1e-4)
