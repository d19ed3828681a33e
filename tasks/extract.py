"""Stage 3: compute the feature of each distinct picture of a chunk, and leave a pack of features.

Reading and decoding run ahead in threads, and so does loading the model. Only computing holds the
device's lock, so that a second task on the same device is ready the moment the first one is done.
"""

import fcntl
import itertools
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks import packs
from tasks.errors import ConfigurationError
from tasks.model import Model, load
from tasks.picture import BadPictureError, decode, to_tensor
from tasks.progress import Progress, silent
from tasks.runs import Chunk
from tasks.settings import Settings
from tasks.statuses import Status

Decoded = tuple[str, NDArray[np.float32] | BadPictureError]


def run(chunk: Chunk, settings: Settings, progress: Progress = silent) -> dict[str, Any]:
    """Compute the chunk's features, or take the pack that is there already.

    A picture whose feature another chunk of the plan has computed is taken from there.

    Returns:
        The stage's statistics: pictures, computed, seconds of work, seconds waited for the device,
        precision, device.

    Raises:
        ConfigurationError: the model is not there or not the planned one.
        ServiceUnavailableError: the data dir cannot be read or written.
    """
    if chunk.features.exists():
        return packs.statistics(chunk.features)
    started = time.monotonic()
    waited = 0.0
    hashes = {row["sha256"] for row in packs.rows(chunk.pictures, ["sha256"]) if row["sha256"]}
    with packs.writing(chunk.features, packs.FEATURES) as pack:
        known = _computed_elsewhere(chunk, hashes)
        pack.statistics |= {"pictures": len(hashes), "computed": 0}
        if hashes - known:
            model = load(settings)
            if model.version != chunk.plan.feature_version:
                raise ConfigurationError(
                    f"The run was planned for {chunk.plan.feature_version}, but the model here is "
                    f"{model.version}. Put the planned model back, or clear the run's `plan` task."
                )
            work = _decoded(chunk.pictures, hashes - known, settings)
            # The first picture is given once many are on their way: those wait with us for the device.
            work = itertools.chain([next(work)], work)
            asked = time.monotonic()
            with _sole_use_of(model.device):
                waited = time.monotonic() - asked
                # While this task waited for the device, another chunk may have met the same picture.
                known |= _computed_elsewhere(chunk, hashes - known)
                features = _features(work, known, model, settings.batch_size)
                for row in progress(features, "extract", len(hashes - known)):
                    pack.add(row)
                    pack.statistics["computed"] += 1
            pack.statistics |= {"precision": model.precision, "device": model.device}
        for row in _taken_from_elsewhere(chunk, known):
            pack.add(row)
        pack.statistics |= {"seconds": time.monotonic() - started - waited, "waited": waited}
    return packs.statistics(chunk.features)


def _features(
    work: Iterator[Decoded], known: set[str], model: Model, batch_size: int
) -> Iterator[dict[str, Any]]:
    batch: list[tuple[str, NDArray[np.float32]]] = []
    for sha256, decoded in work:
        if sha256 in known:
            continue
        if isinstance(decoded, BadPictureError):
            yield {"sha256": sha256, "status": decoded.status, "reason": decoded.reason}
            continue
        batch.append((sha256, decoded))
        if len(batch) == batch_size:
            yield from _computed(batch, model)
            batch = []
    if batch:
        yield from _computed(batch, model)


def _computed(batch: list[tuple[str, NDArray[np.float32]]], model: Model) -> Iterator[dict[str, Any]]:
    features = model.compute(np.stack([tensor for _, tensor in batch]))
    for (sha256, _), feature in zip(batch, features, strict=True):
        if not np.isfinite(feature).all():
            yield {"sha256": sha256, "status": Status.VECTOR_REFUSED, "reason": "the feature is not finite"}
        elif not feature.any():
            yield {"sha256": sha256, "status": Status.VECTOR_REFUSED, "reason": "the feature is all zeros"}
        else:
            yield {"sha256": sha256, "feature": feature}


def _decoded(pictures: Path, hashes: set[str], settings: Settings) -> Iterator[Decoded]:
    """Decode each distinct picture once, a bounded number of them ahead of who takes them."""
    left = set(hashes)
    ahead: deque[tuple[str, Future[NDArray[np.float32] | BadPictureError]]] = deque()
    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode") as pool:
        for row in packs.rows(pictures, ["sha256", "content"], at_once=settings.batch_size):
            if row["sha256"] not in left:
                continue
            left.remove(row["sha256"])
            ahead.append((row["sha256"], pool.submit(_tensor, row["content"], settings.max_image_pixels)))
            if len(ahead) > 2 * settings.batch_size:
                sha256, future = ahead.popleft()
                yield sha256, future.result()
        while ahead:
            sha256, future = ahead.popleft()
            yield sha256, future.result()


def _tensor(content: bytes, max_pixels: int) -> NDArray[np.float32] | BadPictureError:
    try:
        return to_tensor(decode(content, max_pixels))
    except BadPictureError as error:
        return error


def _other_packs(chunk: Chunk) -> list[Path]:
    others = (other.features for other in chunk.plan.chunks if other.number != chunk.number)
    return [path for path in others if path.exists()]


def _computed_elsewhere(chunk: Chunk, hashes: set[str]) -> set[str]:
    """Of these pictures, the ones that a finished chunk of the same plan has."""
    return {
        row["sha256"] for path in _other_packs(chunk) for row in packs.rows(path, ["sha256"], at_once=5_000)
    } & hashes


def _taken_from_elsewhere(chunk: Chunk, hashes: set[str]) -> Iterator[dict[str, Any]]:
    left = set(hashes)
    for path in _other_packs(chunk):
        if not left:
            return
        if left.isdisjoint(row["sha256"] for row in packs.rows(path, ["sha256"], at_once=5_000)):
            continue
        for batch in packs.batches(path):
            for position, sha256 in enumerate(batch["sha256"].to_pylist()):
                if sha256 in left:
                    left.remove(sha256)
                    yield batch.slice(position, 1).to_pylist()[0]


@contextmanager
def _sole_use_of(device: str) -> Iterator[None]:
    """Hold this machine's lock of the device; it ends with the process, however that ends."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if device == "gpu" else ""
    # Each user's own: another user's file in the temporary folder cannot be opened.
    name = f"picture-feature-index-{os.getuid()}-{device}{visible.replace('/', '_')}.lock"
    descriptor = os.open(Path(tempfile.gettempdir()) / name, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
