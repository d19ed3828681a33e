"""Stage 3: compute the feature of each distinct picture of a chunk, and leave a pack of features.

Pictures are decoded in processes of their own, which start while the model is loaded; one batch is
filled with them while the model computes others. Only computing holds the device's lock, so that a
second task on the same device is ready the moment the first one is done.
"""

import itertools
import math
import mmap
import os
import resource
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.inference.model import Identity, Model, load, unusable
from tasks.machine import locked
from tasks.pictures.decoders import Decoded, Decoders, Tensor, usual_number
from tasks.pictures.picture import SIDE, BadPictureError
from tasks.progress import Progress, silent
from tasks.runs import packs
from tasks.runs.run import Chunk
from tasks.settings import Settings
from tasks.statuses import Status

Row = dict[str, Any]


def run(chunk: Chunk, settings: Settings, progress: Progress = silent) -> dict[str, Any]:
    """Compute the chunk's features, or take the pack that is there already.

    A picture whose feature another chunk of the plan has computed is taken from there.

    Returns:
        The stage's statistics: pictures, computed, seconds of work, seconds waited for the device, and
        where the model was needed precision, device, incomplete (how many of those computed lacked their
        last rows) and `time_breakdown`: starting,
        waiting for the device, waiting for pictures, computing; and decoding, the CPU seconds of the
        decoders beside them.

    Raises:
        ConfigurationError: the model is not there or not the planned one.
        ServiceUnavailableError: the data dir cannot be read or written.
    """
    if (done := packs.finished_or_moved_aside(chunk.features)) is not None:
        return done
    started = time.monotonic()
    hashes = {row["sha256"] for row in packs.rows(chunk.pictures, ["sha256"]) if row["sha256"]}
    with packs.writing(chunk.features, packs.FEATURES) as pack:
        pack.statistics |= {"pictures": len(hashes), "computed": 0, "waited": 0.0}
        others = _OtherChunks(chunk, hashes)
        known = others.look()
        if hashes - known:
            known |= _compute(chunk, hashes - known, others, pack, settings, progress)
        for row in others.features(known):
            pack.add(row)
        pack.statistics["seconds"] = time.monotonic() - started - pack.statistics["waited"]
    return packs.statistics(chunk.features)


def _compute(
    chunk: Chunk,
    hashes: set[str],
    others: "_OtherChunks",
    pack: packs.Writer,
    settings: Settings,
    progress: Progress,
) -> set[str]:
    """Add a row for each of these pictures but those that another chunk had by then, and return those."""
    started = time.monotonic()
    decoding = _cpu_of_ended_processes()
    with Decoders(settings, min(usual_number(), len(hashes))) as decoders:
        model = load(settings)
        planned = Identity(chunk.plan.feature_version, chunk.plan.fingerprint)
        if not model.identity.same_as(planned):
            raise ConfigurationError(
                f"The run was planned for {planned}, but the model here is {model.identity}. Put the planned "
                "model back, or clear the run's `plan` task."
            )
        work = decoders.decode(_pictures(chunk.pictures, hashes))
        # One is there once every decoder is at work: they go on while we wait for the device.
        work = itertools.chain([next(work)], work)
        asked = time.monotonic()
        with _sole_use_of(model.device):
            pack.statistics["waited"] = time.monotonic() - asked
            known = others.look() & hashes
            device = _Device(model)
            work = (decoded for decoded in work if decoded[0] not in known)
            rows = _features(work, device, settings.batch_size)
            for row in progress(rows, "extract", len(hashes - known)):
                pack.add(row)
                pack.statistics["computed"] += 1
    pack.statistics |= {
        "precision": model.precision,
        "device": model.device,
        "incomplete": len(decoders.incomplete - known),
        "time_breakdown": {
            "starting": asked - started,
            "waiting for the device": pack.statistics["waited"],
            "waiting for pictures": device.waiting,
            "computing": device.computing,
            "decoding": _cpu_of_ended_processes() - decoding,
        },
    }
    return known


def _cpu_of_ended_processes() -> float:
    """CPU seconds of all child processes that this one has seen end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class _Device:
    """The model, and what its time went by with from now on."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._batches = 0
        self._since = time.monotonic()
        self.streams = model.streams
        self.computing = 0.0
        """Seconds in which it had a batch or more."""
        self.waiting = 0.0
        """Seconds without any."""

    def compute(self, batch: Tensor) -> Tensor:
        """As the model does; from as many threads at once as it has streams."""
        self._count(+1)
        try:
            return self._model.compute(batch)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            now = time.monotonic()
            if self._batches:
                self.computing += now - self._since
            else:
                self.waiting += now - self._since
            self._since = now
            self._batches += change


def _features(work: Iterator[Decoded], device: _Device, batch_size: int) -> Iterator[Row]:
    """Each picture's row. While some batches are computed, in threads, the next one is filled."""
    with ThreadPoolExecutor(device.streams, thread_name_prefix="model") as threads:
        ahead: deque[tuple[list[str], Future[Tensor]]] = deque()
        for hashes, tensors, refused in _batches(work, batch_size, device.streams + 1):
            if hashes:
                ahead.append((hashes, threads.submit(device.compute, tensors)))
            yield from refused
            if len(ahead) > device.streams:
                yield from _computed(*ahead.popleft())
        for batch in ahead:
            yield from _computed(*batch)


def _batches(
    work: Iterator[Decoded], size: int, at_once: int
) -> Iterator[tuple[list[str], Tensor, list[Row]]]:
    """Hashes and tensors of at most `size` pictures, and the rows of those met that are none.

    Tensors are good until so many batches later the next one is asked for.
    """
    shape = (at_once, size, SIDE, SIDE, 3)
    # Pages of their own: TensorFlow copies what does not begin at a multiple of 64 bytes. Nobody shares them,
    # which makes the kernel's work at first use a third less.
    size_in_bytes = math.prod(shape) * np.dtype(np.float32).itemsize
    memory = mmap.mmap(-1, size_in_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    tensors = itertools.cycle(np.frombuffer(memory, np.float32).reshape(shape))
    batch = next(tensors)
    hashes: list[str] = []
    refused: list[Row] = []
    for sha256, decoded in work:
        if isinstance(decoded, BadPictureError):
            refused.append({"sha256": sha256, "status": decoded.status, "reason": decoded.reason})
            continue
        batch[len(hashes)] = decoded
        hashes.append(sha256)
        if len(hashes) == size:
            yield hashes, batch, refused
            batch, hashes, refused = next(tensors), [], []
    if hashes or refused:
        yield hashes, batch[: len(hashes)], refused


def _computed(hashes: list[str], features: Future[Tensor]) -> Iterator[Row]:
    computed = features.result()
    packed = computed.astype(packs.FEATURE, copy=False)
    for sha256, feature, reason in zip(hashes, packed, unusable(computed), strict=True):
        if reason:
            yield {"sha256": sha256, "status": Status.VECTOR_REFUSED, "reason": reason}
        else:
            yield {"sha256": sha256, "feature": feature.tobytes()}


def _pictures(path: Path, hashes: set[str]) -> Iterator[tuple[str, bytes]]:
    """Each of these pictures once, by its hash."""
    left = set(hashes)
    for row in packs.rows(path, ["sha256", "content"], at_once=32):
        if row["sha256"] in left:
            left.remove(row["sha256"])
            yield row["sha256"], row["content"]


class _OtherChunks:
    """Which of a chunk's pictures other chunks of its plan have computed, and where the features are.

    They only save work, so a pack that is damaged is left to its own chunk.
    """

    def __init__(self, chunk: Chunk, hashes: set[str]) -> None:
        self._wanted = pa.array(hashes, pa.string())
        self._unread = [other.features for other in chunk.plan.chunks if other.number != chunk.number]
        self._found: dict[Path, set[str]] = {}

    def look(self) -> set[str]:
        """Which pictures they have by now; a pack is read once."""
        there = [path for path in self._unread if path.exists()]
        for path in there:
            self._unread.remove(path)
            with suppress(packs.DamagedPackError):
                if held := self._held(path):
                    self._found[path] = held
        return set().union(*self._found.values())

    def _held(self, path: Path) -> set[str]:
        # In Arrow: as Python's own, the hashes of all chunks would take a gigabyte in a large plan.
        columns = (batch.column(0) for batch in packs.batches(path, ["sha256"], at_once=20_000))
        found = (column.filter(pc.is_in(column, value_set=self._wanted)) for column in columns)
        return {sha256 for column in found for sha256 in column.to_pylist()}

    def features(self, hashes: set[str]) -> Iterator[Row]:
        """The rows of these pictures.

        Raises:
            ServiceUnavailableError: a pack has them no longer; another attempt computes them.
        """
        left = set(hashes)
        for path, held in self._found.items():
            if left.isdisjoint(held):
                continue
            with suppress(packs.DamagedPackError):
                for batch in packs.batches(path):
                    for position, sha256 in enumerate(batch["sha256"].to_pylist()):
                        if sha256 in left:
                            left.remove(sha256)
                            yield batch.slice(position, 1).to_pylist()[0]
        if left:
            raise ServiceUnavailableError(
                f"The features of {len(left)} pictures, which another chunk had computed, are gone. "
                "Try again."
            )


@contextmanager
def _sole_use_of(device: str) -> Iterator[None]:
    """Hold this machine's lock of the device."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if device == "gpu" else ""
    with locked(f"{device}{visible.replace('/', '_')}"):
        yield
