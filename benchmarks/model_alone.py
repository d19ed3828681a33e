"""The model alone, fed with ready tensors in as many streams as it takes."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.cpu import cpu_seconds
from benchmarks.photo_server import photos_in
from tasks.inference.model import Model
from tasks.pictures.picture import decode, to_tensor
from tasks.settings import Settings

Pace = tuple[float, float]
"""Pictures a second, and pictures a CPU second."""


def tensors_of(photos: Path, count: int) -> np.ndarray:
    """The first so many photos as the model takes them."""
    limit = Settings.load().max_image_pixels
    return np.stack([to_tensor(decode(content, limit)) for content in photos_in(photos)[:count]])


def pace(model: Model, tensors: np.ndarray, size: int, times: int = 1) -> Pace:
    """How fast it computes the tensors, so many times over, in batches of `size`."""
    batches = [tensors[start : start + size] for start in range(0, len(tensors), size)] * times
    pictures = len(tensors) * times
    with ThreadPoolExecutor(model.streams) as threads:
        started, cpu = time.monotonic(), cpu_seconds()
        for _ in threads.map(model.compute, batches):
            pass
        return pictures / (time.monotonic() - started), pictures / (cpu_seconds() - cpu)
