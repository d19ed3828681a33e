"""Tests of tasks/inference/model.py: the identity of a model, and what is refused as one."""

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.errors import ConfigurationError
from tasks.inference import model
from tasks.machine import multiplies_bfloat16
from tasks.pictures.picture import PREPROCESSING_TAG
from tasks.settings import Settings

pytestmark = pytest.mark.model


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
        "import sys; from pathlib import Path; from tasks.inference.model import feature_version; "
        "from tasks.settings import Settings; "
        f"print(feature_version(Settings(data_dir=Path({str(settings.data_dir)!r})))); "
        "assert 'tensorflow' not in sys.modules"
    )

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == version


def test_tensorflow_comes_without_keras_until_somebody_wants_it() -> None:
    program = (
        "import sys; from tasks.inference.model import quiet_tensorflow; tf = quiet_tensorflow(); "
        "assert not {'keras', 'sklearn'} & sys.modules.keys(); "
        "assert tf.keras.layers.Dense(1).units == 1"
    )

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("damage", ["torn", "not text", "no object", "another field", "no digest"])
def test_a_damaged_note_of_the_model_is_made_anew(damage: str, tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    settings = Settings(data_dir=tmp_path / "var", model_dir=tmp_path / "model")
    installed = model.identity(settings)
    (note,) = (settings.data_dir / "known_models").iterdir()
    whole = note.read_bytes()
    note.write_bytes(
        {
            "torn": whole[:40],
            "not text": b"\xff\0",
            "no object": b"[1, 2]",
            "another field": b'{"weights": "0", "print": "0"}',
            "no digest": whole.replace(installed.fingerprint.encode(), b"../../etc"),
        }[damage]
    )

    assert model.identity(settings) == installed
    assert note.read_bytes() == whole


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

    assert not (tmp_path / "var").exists()


def test_features_of_another_width_are_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", width=1001)

    with pytest.raises(ConfigurationError, match=r"1001.*2048"):
        model.feature_version(Settings(data_dir=tmp_path / "var", model_dir=tmp_path / "model"))


@pytest.mark.parametrize("called", [True, False], ids=["callable", "TF-Hub's default signature"])
def test_computes_any_number_of_pictures(called: bool, tmp_path: Path) -> None:
    kernel = save_tiny(tmp_path / "model", called=called)
    settings = Settings(data_dir=tmp_path / "var", model_dir=tmp_path / "model", precision="float32")
    loaded = model.load(settings)
    pictures = np.random.default_rng(3).random((5, 299, 299, 3), np.float32)

    for count in (1, 5, 2):
        features = loaded.compute(pictures[:count])
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, pictures[:count].mean(axis=(1, 2)) @ kernel, rtol=1e-4)

    assert loaded.precision == "float32"
    assert loaded.device in ("cpu", "gpu")
    assert loaded.version == model.feature_version(settings)


def test_threads_that_ask_at_once_load_it_once(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    settings = Settings(data_dir=tmp_path / "var", model_dir=tmp_path / "model")
    with ThreadPoolExecutor(4) as threads:
        loaded = list(threads.map(model.load, [settings] * 4))
    assert len({id(each._network) for each in loaded}) == 1


def test_the_graph_is_kept_and_the_savedmodel_not_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = save_tiny(tmp_path / "model")
    settings = Settings(data_dir=tmp_path / "var", model_dir=tmp_path / "model", precision="float32")
    pictures = np.random.default_rng(3).random((2, 299, 299, 3), np.float32)
    first = model.load(settings).compute(pictures)
    kept = settings.model_dir / "frozen_graph"
    before = kept.stat()
    model._network.cache_clear()  # as in another process

    def opened(_: Path) -> None:
        raise AssertionError("the SavedModel was opened although its graph is kept")

    with monkeypatch.context() as patched:
        patched.setattr(model, "_open", opened)
        np.testing.assert_array_equal(model.load(settings).compute(pictures), first)
    np.testing.assert_allclose(first, pictures.mean(axis=(1, 2)) @ kernel, rtol=1e-4)
    assert kept.stat().st_ino == before.st_ino


@pytest.mark.parametrize("changed", ["variables", "graph"])
def test_another_model_in_the_folder_has_a_graph_of_its_own(changed: str, tmp_path: Path) -> None:
    import tensorflow as tf

    class Scaled(tf.Module):
        variables: Any = ()

        def __init__(self, kernel: np.ndarray, scale: float) -> None:
            self.variables = [tf.Variable(kernel)]
            self.scale = scale

        @tf.function(input_signature=[tf.TensorSpec([None, 299, 299, 3], tf.float32)])
        def __call__(self, images: Any) -> Any:
            return tf.reduce_mean(images, [1, 2]) @ self.variables[0] * self.scale

    kernel = np.random.default_rng(2).random((3, model.DIMENSIONS), np.float32)
    other = (kernel + 1, 1.0) if changed == "variables" else (kernel, 3.0)
    pictures = np.random.default_rng(3).random((2, 299, 299, 3), np.float32)
    settings = Settings(data_dir=tmp_path / "var", model_dir=tmp_path / "model", precision="float32")
    for weights, scale in ((kernel, 1.0), other):
        tf.saved_model.save(Scaled(weights, scale), str(settings.model_dir))
        np.testing.assert_allclose(
            model.load(settings).compute(pictures), pictures.mean(axis=(1, 2)) @ weights * scale, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("asked", "device", "fast", "given"),
    [
        ("auto", "cpu", False, "float32"),
        ("auto", "gpu", True, "float32"),
        ("float32", "cpu", True, "float32"),
        ("bfloat16", "cpu", True, "bfloat16"),
        ("bfloat16", "cpu", False, None),
        ("bfloat16", "gpu", True, None),
    ],
)
def test_precision_is_what_setting_and_machine_allow(
    asked: Any, device: str, fast: bool, given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "multiplies_bfloat16", lambda: fast)
    settings = Settings(precision=asked)
    if given is None:
        with pytest.raises(ConfigurationError, match=r"FEATURES_PRECISION .* auto or float32"):
            model._precision(settings, device)
    else:
        assert model._precision(settings, device) == given


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """measured(faster): from now on the CPU is one that computes faster so, and what it is made to compute.

    A machine has one CPU, and so only one side of the choice.
    """

    def on_a_cpu(faster: str) -> list[str]:
        computed: list[str] = []

        def network(_: bytes, *, bfloat16: bool, streams: int, threads: int) -> Callable[[np.ndarray], None]:
            assert (streams, threads) == (1, 1)
            precision = "bfloat16" if bfloat16 else "float32"

            def compute(pictures: np.ndarray) -> None:
                computed.append(precision)
                end = time.process_time() + (0.001 if precision == faster else 0.02) * len(pictures)
                while time.process_time() < end:
                    pass

            return compute

        monkeypatch.setattr(model.graph, "network", network)
        return computed

    monkeypatch.setattr(model, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(model, "processor", lambda: "one CPU")
    return on_a_cpu


@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_of_two_precisions_the_faster_one_is_found_out_once(
    faster: str, measured: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(tmp_path / "model")
    settings = Settings(data_dir=tmp_path / "var", model_dir=tmp_path / "model")
    computed = measured(faster)

    assert model._precision(settings, "cpu") == faster
    assert set(computed) == {"float32", "bfloat16"}
    computed.clear()
    assert model._precision(settings, "cpu") == faster
    assert not computed, "it is remembered"

    (note,) = (settings.data_dir / "precisions").iterdir()
    for change in ("damaged", "another CPU", "another model"):
        if change == "damaged":
            note.write_bytes(b"\xff\0")
        elif change == "another CPU":
            monkeypatch.setattr(model, "processor", lambda: "another CPU")
        else:
            save_tiny(tmp_path / "model")
        computed.clear()
        assert model._precision(settings, "cpu") == faster
        assert computed, change


def test_where_nothing_can_be_noted_it_is_measured_each_time(
    measured: Callable[[str], list[str]], tmp_path: Path
) -> None:
    save_tiny(tmp_path / "model")
    settings = Settings(data_dir=tmp_path / "var", model_dir=tmp_path / "model")
    computed = measured("float32")
    settings.data_dir.mkdir()
    (settings.data_dir / "precisions").write_text("no folder")
    for _ in range(2):
        computed.clear()
        assert model._precision(settings, "cpu") == "float32"
        assert computed


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Noise of several grains: what is alike in all pictures would hide a difference."""
    random = np.random.default_rng(5)
    grains = (1, 13, 23)
    coarse = [random.random((299 // grain, 299 // grain, 3), np.float32) for grain in grains]
    grown = [np.repeat(np.repeat(one, grain, 0), grain, 1) for one, grain in zip(coarse, grains, strict=True)]
    return np.stack([one[:299, :299] for one in grown])


@pytest.fixture(scope="module")
def keras_features(settings: Settings, pictures: np.ndarray) -> np.ndarray:
    """Their features by Keras's own network, with the SavedModel's variables in it."""
    tf = model.quiet_tensorflow()
    import keras

    network = keras.applications.InceptionV3(include_top=False, pooling="avg", weights=None)
    variables = tf.saved_model.load(str(settings.model_dir)).variables
    network.set_weights([variable.numpy() for variable in variables])
    features: np.ndarray = network(pictures * 2 - 1, training=False).numpy()
    return features


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_features_agree_with_keras_in_any_batch(
    precision: Any, settings: Settings, pictures: np.ndarray, keras_features: np.ndarray
) -> None:
    if precision == "bfloat16" and not multiplies_bfloat16():
        pytest.skip("this CPU does not compute in bfloat16")
    loaded = model.load(settings.model_copy(update={"precision": precision}))

    # A first batch, a last one that is shorter, each alone, and more than before.
    batches = ([pictures, pictures[:1]], [pictures[:2], pictures[2:]], np.split(pictures, 3))
    runs = [np.concatenate([loaded.compute(batch) for batch in of_run])[:3] for of_run in batches]

    assert loaded.precision == precision
    for features in runs:
        assert features.shape == (3, 2048)
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, runs[0], atol=1e-4 if precision == "float32" else 0.02)
        if precision == "float32":
            np.testing.assert_allclose(features, keras_features, atol=1e-3)
        else:
            cosine = (features * keras_features).sum(axis=1) / (
                np.linalg.norm(features, axis=1) * np.linalg.norm(keras_features, axis=1)
            )
            assert 0.998 < cosine.min() < 1 - 1e-6, "close, and yet not float32"
