"""The one module that loads the model: pictures in, features out, and which model it was.

What is loaded is the SavedModel as one frozen graph, which is kept in the SavedModel's own folder. A graph is
a program, so it may lie only where whoever writes decides on the model anyway: never in the data dir, where
every worker writes.

TensorFlow is imported inside the functions that need it, and not at all to name a model met before.
"""

import contextlib
import gc
import hashlib
import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.files import atomic_write, read_json, write_json
from tasks.inference import fingerprint, graph
from tasks.machine import cores, multiplies_bfloat16, processor
from tasks.pictures.picture import PREPROCESSING_TAG, SIDE
from tasks.settings import Settings

NAME = "inception_v3"
DIMENSIONS = 2048
"""Floats in one feature."""
OUR_WEIGHTS = "71715aec4c39018d36b0d8262ed3b0d223265db3e7c8dab7d199eb9cfc082196"
"""The digest of the weights that `make model` builds with."""
OUR_FINGERPRINT = "34f3b517a9c42dcf21022e57b920ac4b2ce12e63b44334d4b938b5282b74aeed"
"""Of what it builds."""

log = logging.getLogger(__name__)

_loading = threading.Lock()
"""Who asks while the model is loaded waits for it: it would not be faster twice at once."""

_PRECISIONS = ("float32", "bfloat16")

_KEPT = "frozen_graph"
"""The graph's file in the SavedModel's folder."""

_MEASURED = 4
"""Times that each precision is measured; the best one counts."""
_MEASURED_AT_ONCE = 2
"""Pictures."""

_MOST_STREAMS = 4
"""Each takes the memory of a batch on its way through the network, several hundred megabytes."""


def weights_digest(arrays: Iterable[NDArray[Any]]) -> str:
    """The identity of a network's weights, as 64 hex digits.

    Each tensor is hashed with sha256: first its shape as ASCII text, the sizes in decimal joined by
    commas and ended by a newline (`3,3,3,32\\n`, a scalar is `\\n` alone), then its values as
    little-endian float32 in C order. The result is the sha256 of those 32-byte hashes, sorted and
    joined. Neither names nor order count, so the same weights from another file are the same.
    """
    hashes = []
    for array in arrays:
        digest = hashlib.sha256(",".join(map(str, array.shape)).encode() + b"\n")
        digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
        hashes.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(hashes))).hexdigest()


class Identity(NamedTuple):
    """Which model made, or makes, features."""

    version: str
    """What every feature is labelled with: model name, weights and preprocessing."""
    fingerprint: str = ""
    """What its network makes of a fixed picture (tasks/inference/fingerprint.py); empty where that was not
    noted."""

    def same_as(self, other: "Identity") -> bool:
        """Whether the features of both can be compared, as far as is noted."""
        return self.version == other.version and fingerprint.same(self.fingerprint, other.fingerprint)

    def __str__(self) -> str:
        return f"{self.version} with the fingerprint {self.fingerprint}" if self.fingerprint else self.version


class _Installed(NamedTuple):
    """What is known of a SavedModel."""

    weights: str
    """Their digest."""
    fingerprint: str

    def __str__(self) -> str:
        """As FEATURES_MODEL_DIGEST has it."""
        return f"{self.weights}-{self.fingerprint}"


def installed_digest(settings: Settings) -> str:
    """The weights' digest of the SavedModel in `settings.model_dir`; cost and errors as of `identity`."""
    return _installed(settings).weights


def identity(settings: Settings) -> Identity:
    """Which model is in `settings.model_dir`.

    It is remembered in the data dir by the hash of the SavedModel's files, so only the first call for a new
    model has to import TensorFlow and load it (about ten seconds).

    Raises:
        ConfigurationError: there is no SavedModel, it is not usable, it is not the one that
            `settings.model_digest` demands, or it has our weights and computes something else with them.
    """
    installed = _installed(settings)
    return Identity(f"{NAME}-{installed.weights[:12]}-{PREPROCESSING_TAG}", installed.fingerprint)


def feature_version(settings: Settings) -> str:
    """What every feature is labelled with; cost and errors as of `identity`."""
    return identity(settings).version


def _installed(settings: Settings) -> _Installed:
    folder, remembered = settings.model_dir, _note(settings)
    installed = _read_note(remembered)
    if installed is None:
        saved_model, function = _open(folder)
        installed = _Installed(
            weights_digest(variable.numpy() for variable in saved_model.variables),
            fingerprint.taken(lambda pictures: function(quiet_tensorflow().constant(pictures)).numpy()),
        )
        write_json(remembered, installed._asdict())
    if installed.weights == OUR_WEIGHTS and not fingerprint.same(installed.fingerprint, OUR_FINGERPRINT):
        raise ConfigurationError(
            f"The model in {folder} has our model's weights and computes something else with them, so that "
            "its features could not be distinguished from ours: its fingerprint is "
            f"{installed.fingerprint}, not {OUR_FINGERPRINT}. Remove the folder and run `make model`."
        )
    _refuse_other_than(settings.model_digest, installed, folder)
    return installed


def _refuse_other_than(demanded: str, installed: _Installed, folder: Path) -> None:
    """Refuse a model that is not the one that FEATURES_MODEL_DIGEST demands, where it does."""
    weights, _, made = demanded.partition("-")
    if weights == OUR_WEIGHTS:
        made = made or OUR_FINGERPRINT
    if not demanded or (
        weights == installed.weights and made and fingerprint.same(made, installed.fingerprint)
    ):
        return
    raise ConfigurationError(
        f"The model in {folder} has the digest {installed}, but FEATURES_MODEL_DIGEST demands {demanded}"
        f"{'' if made else ', which does not say what is computed with the weights'}. Put the right "
        "SavedModel there, or correct the setting."
    )


@dataclass(frozen=True)
class Model:
    """A loaded model, ready to compute."""

    identity: Identity
    device: str
    """"gpu" or "cpu"."""
    _network: graph.Network
    precision: str
    """"float32" or "bfloat16", in which it multiplies; told in reports, no part of the version."""
    streams: int
    """How many batches to compute at once, each in a thread of the caller's, for the device to be busy."""

    @property
    def version(self) -> str:
        """The feature version of what it computes."""
        return self.identity.version

    def compute(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features [n, 2048] of pictures [n, 299, 299, 3] in [0, 1]; n may differ from call to call."""
        return self._network(batch)


def load(settings: Settings) -> Model:
    """Load the model onto the GPU where TensorFlow sees one, else onto the CPU.

    Raises:
        ConfigurationError: as `identity` does, FEATURES_PRECISION asks for what this machine does not have,
            or what is computed here is not what the SavedModel computes.
    """
    with _loading:
        which = identity(settings)
        tf = quiet_tensorflow()
        device = "gpu" if tf.config.list_physical_devices("GPU") else "cpu"
        precision = _precision(settings, device)
        # Threads that share a batch wait for each other after each operation, the longer the more else runs.
        streams = min(cores(), _MOST_STREAMS) if device == "cpu" else 1
        folder = settings.model_dir
        network, made = _network(folder, _made_from(folder), precision == "bfloat16", streams)
        if not fingerprint.same(made, which.fingerprint, rounded=precision == "bfloat16"):
            _network.cache_clear()
            raise ConfigurationError(
                f"The model in {folder} computes something else on this machine, in {precision}, than its "
                f"fingerprint {which.fingerprint} says: {made}. Remove {folder / _KEPT} and "
                f"{_note(settings)}, which are made again."
            )
        return Model(which, device, network, precision, streams)


@lru_cache(1)  # a program that does chunk after chunk needs it again
def _network(folder: Path, made_from: str, bfloat16: bool, streams: int) -> tuple[graph.Network, str]:
    """The network, and its fingerprint as it computes here."""
    content = _graph(folder, made_from)
    network = graph.network(content, bfloat16=bfloat16, streams=streams, threads=cores() // streams)
    return network, fingerprint.taken(network)


def keep_graph(settings: Settings) -> None:
    """Keep the graph of the model in `settings.model_dir`, so that no process has to make it for itself.

    Raises:
        ConfigurationError: there is no SavedModel, or it is not usable.
    """
    _graph(settings.model_dir, _made_from(settings.model_dir))


def _graph(folder: Path, made_from: str) -> bytes:
    return graph.kept(folder / _KEPT, made_from, lambda: _frozen(folder))


def _made_from(folder: Path) -> str:
    """A name for all that a graph is made from.

    Raises:
        ConfigurationError: there is no SavedModel.
    """
    return hashlib.sha256(f"{_files_digest(folder)} {installed_version('tensorflow')}".encode()).hexdigest()


def _precision(settings: Settings, device: str) -> str:
    has_bfloat16 = device == "cpu" and multiplies_bfloat16()
    if settings.precision == "bfloat16" and not has_bfloat16:
        raise ConfigurationError(
            f"FEATURES_PRECISION is bfloat16, which this machine's {device.upper()} does not compute here. "
            "Leave it out, or make it auto or float32."
        )
    if settings.precision == "auto":
        return _faster_precision(settings) if has_bfloat16 else "float32"
    return settings.precision


def _faster_precision(settings: Settings) -> str:
    """In which precision this CPU computes the network faster: measured once, and remembered in the data dir.

    That it multiplies bfloat16 itself does not tell: it took half of float32's time on AMD's Zen 4, and one
    and a half times it on an Intel Xeon whose AMX its virtual machine hides.
    """
    made_from = _made_from(settings.model_dir)
    case = hashlib.sha256(f"{made_from} {processor()}".encode()).hexdigest()
    remembered = settings.data_dir / "precisions" / case
    with contextlib.suppress(OSError):
        word = remembered.read_text(errors="replace").strip()
        if word in _PRECISIONS:
            return word
    log.info("Measuring in which precision this CPU computes faster, once: some ten seconds.")
    seconds = _cpu_seconds(_graph(settings.model_dir, made_from))
    faster = min(_PRECISIONS, key=lambda precision: seconds[precision])
    log.info("Computing in %s: CPU seconds of %d pictures are %s.", faster, _MEASURED_AT_ONCE, seconds)
    # Without the note it is only measured again.
    with contextlib.suppress(ServiceUnavailableError), atomic_write(remembered) as temporary:
        temporary.write_text(faster + "\n")
    return faster


def _cpu_seconds(frozen: bytes) -> dict[str, float]:
    """What a few pictures take the network in each precision: CPU time, since others may have the core, too.

    By turns, since threads of ours that do other work meanwhile count as well.
    """
    pictures = np.random.default_rng(1).random((_MEASURED_AT_ONCE, SIDE, SIDE, 3), np.float32)
    networks = {
        precision: graph.network(frozen, bfloat16=precision == "bfloat16", streams=1, threads=1)
        for precision in _PRECISIONS
    }
    seconds: dict[str, list[float]] = {precision: [] for precision in _PRECISIONS}
    for _ in range(1 + _MEASURED):
        for precision, network in networks.items():
            started = time.process_time()
            network(pictures)
            seconds[precision].append(time.process_time() - started)
    # The first time prepares the weights.
    return {precision: min(found[1:]) for precision, found in seconds.items()}


def unusable(features: NDArray[np.float32]) -> list[str]:
    """Why each of these features [n, 2048] means nothing to cosine similarity; empty where it is fine."""
    finite = np.isfinite(features).all(axis=1, keepdims=True)
    told = np.where(features.any(axis=1, keepdims=True), "", "the feature is all zeros")
    reasons: list[str] = np.where(finite, told, "the feature is not finite").ravel().tolist()
    return reasons


def quiet_tensorflow() -> Any:
    """Import TensorFlow without its start-up chatter, which would bury a task's own log."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with contextlib.ExitStack() as meanwhile:
        if "tensorflow" not in sys.modules:
            meanwhile.enter_context(_stderr_dropped())
            meanwhile.enter_context(_garbage_left())
            meanwhile.enter_context(_without_keras())
        import tensorflow as tf

    tf.get_logger().setLevel("ERROR")
    # TensorFlow would otherwise round to TF32 on newer GPUs, and call it float32.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    return tf


@contextlib.contextmanager
def _stderr_dropped() -> Iterator[None]:
    """Drop what native code writes: TensorFlow's import heeds no setting. Exceptions still come out."""
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@contextlib.contextmanager
def _without_keras() -> Iterator[None]:
    """Have TensorFlow find no Keras, which it otherwise loads at once: no SavedModel needs it, and it takes a
    third of the time, scikit-learn and SciPy included."""
    if "keras" in sys.modules:
        yield
        return
    sys.modules["keras"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["keras"]


@contextlib.contextmanager
def _garbage_left() -> Iterator[None]:
    """Look for no garbage: what an import makes is there to stay, and looking takes a fifth of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _open(folder: Path) -> tuple[Any, Any]:
    """The SavedModel as loaded, and its concrete function from [n, 299, 299, 3] to [n, 2048]."""
    tf = quiet_tensorflow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorflow_hub imports pkg_resources, which warns
        import tensorflow_hub as hub

    try:
        saved_model = hub.load(str(folder))
        # TF-Hub's older format has no call, only named signatures; its feature vector is "default".
        call = saved_model if callable(saved_model) else saved_model.signatures["default"]

        @tf.function(input_signature=[tf.TensorSpec([None, SIDE, SIDE, 3], tf.float32)])  # type: ignore[untyped-decorator]
        def network(batch: Any) -> Any:
            output = call(batch)
            return output["default"] if isinstance(output, dict) else output

        function = network.get_concrete_function()
        shape = function.output_shapes
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise  # the machine's trouble, not the model's: a later attempt may succeed
    # Whatever else a broken or foreign file makes TensorFlow raise, the remedy is the same.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ConfigurationError(
            f"{folder} is not a SavedModel that can be used ({type(error).__name__}: {reason}). "
            "Remove the folder and run `make model`."
        ) from error
    if not tf.TensorShape([None, DIMENSIONS]).is_compatible_with(shape):
        raise ConfigurationError(
            f"The SavedModel in {folder} gives {shape}, not features of shape [n, {DIMENSIONS}]. "
            "Put an Inception-v3 feature vector there, or remove the folder and run `make model`."
        )
    if not getattr(saved_model, "variables", ()):
        raise ConfigurationError(
            f"The SavedModel in {folder} keeps no variables, so its weights cannot be told apart "
            "from others. Remove the folder and run `make model`."
        )
    return saved_model, function


def _frozen(folder: Path) -> bytes:
    log.info("Making the model ready for this TensorFlow, once: some ten seconds.")
    # The function itself does not keep the variables, which live as long as the SavedModel.
    _saved_model, function = _open(folder)
    return graph.frozen(function)


def _files_digest(folder: Path) -> str:
    """sha256 over what the SavedModel's network is made from: its graph, then its variables files, in the
    order of their names."""
    network = folder / "saved_model.pb"
    variables = sorted((folder / "variables").glob("variables.*"))
    if not network.is_file() or not variables:
        raise ConfigurationError(f"There is no SavedModel in {folder}: run `make model`.")
    return hashlib.sha256(b"".join(map(_file_digest, [network, *variables]))).hexdigest()


def _file_digest(path: Path) -> bytes:
    status = path.stat()
    return _digest_of(path, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(8)  # loading asks more than once, a page of the UI each time, and the weights are 87 MB
def _digest_of(path: Path, _state: tuple[int, int, int]) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _note(settings: Settings) -> Path:
    """Where it is remembered which model is in `settings.model_dir`."""
    return settings.data_dir / "known_models" / _files_digest(settings.model_dir)


def _read_note(path: Path) -> _Installed | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        note = _Installed(**read_json(path))
        if all(isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) for value in note):
            return note
    return None
