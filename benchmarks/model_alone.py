"""The model alone, fed with ready tensors in as many streams as it takes."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.cpu import cpu_seconds
from tasks.model import Model

Pace = tuple[float, float]
"""Pictures a second, and pictures a CPU second."""


def pace(model: Model, tensors: np.ndarray, size: int) -> Pace:
    """How fast it computes the tensors in batches of `size`."""
    batches = [tensors[start : start + size] for start in range(0, len(tensors), size)]
    with ThreadPoolExecutor(model.streams) as threads:
        started, cpu = time.monotonic(), cpu_seconds()
        for _ in threads.map(model.compute, batches):
            pass
        return len(tensors) / (time.monotonic() - started), len(tensors) / (cpu_seconds() - cpu)
