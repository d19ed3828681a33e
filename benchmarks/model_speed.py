"""The model alone, as the runs load it, against OpenVINO on the same CPU, both in bfloat16.

OpenVINO reads the same SavedModel in an environment of its own, made here from benchmarks/openvino.txt.
Both compute the same tensors by turns; each is taken in the batches, and OpenVINO with the number of streams,
in which it is fastest by CPU time.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.figures import Figure
from benchmarks.model_alone import Pace, pace, tensors_of
from benchmarks.rivals import python_with
from tasks.errors import RunFailedError
from tasks.inference.model import load
from tasks.machine import cores
from tasks.settings import REPOSITORY, Settings

PICTURES = 128
BATCHES = (16, 32)


def measure(photos: Path, rounds: int) -> list[Figure]:
    """Both compute the same pictures by turns, `rounds` times.

    Raises:
        FeatureIndexError: OpenVINO cannot be installed, or its features are others.
    """
    settings = Settings.load()
    model = load(settings)
    tensors = tensors_of(photos, PICTURES)
    paces: dict[str, list[Pace]] = {}
    for size in BATCHES:  # the first of a size is optimised
        pace(model, tensors, size)
    with _openvino(settings.model_dir, tensors, model.compute(tensors[:1])[0]) as openvino:
        for number in range(rounds):
            for size in BATCHES:
                ways: dict[str, Callable[[], Pace]] = {"ours": lambda s=size: pace(model, tensors, s)}
                for streams in sorted({1, cores()}):
                    ways[f"OpenVINO, {streams} streams"] = lambda n=streams, s=size: openvino(n, s)
                for name, way in ways.items():
                    measured = way()
                    paces.setdefault(f"{name}, batches of {size}", []).append(measured)
                    print(
                        f"round {number + 1}, {name}, batches of {size}: {measured[1]:.1f} a CPU second",
                        file=sys.stderr,
                        flush=True,
                    )
    ours, theirs = (_best(paces, name) for name in ("ours", "OpenVINO"))
    # OpenVINO computes in bfloat16 wherever the CPU can: only then do both do the same.
    goal = 0.9 if model.precision == "bfloat16" else None

    def ratio(which: int) -> float:
        return median(a[which] / b[which] for a, b in zip(paces[ours], paces[theirs], strict=True))

    return [
        *(
            Figure(f"{name}, pictures a CPU second", median(cpu for _, cpu in measured))
            for name, measured in paces.items()
        ),
        Figure(f"{ours} / {theirs}, CPU", ratio(1), at_least=goal),
        Figure(f"{ours} / {theirs}, clock", ratio(0)),
    ]


def _best(paces: dict[str, list[Pace]], beginning: str) -> str:
    names = (name for name in paces if name.startswith(beginning))
    return max(names, key=lambda name: median(cpu for _, cpu in paces[name]))


@contextmanager
def _openvino(
    model_dir: Path, tensors: np.ndarray, expected: np.ndarray
) -> Iterator[Callable[[int, int], Pace]]:
    """What asks OpenVINO to compute the tensors with so many streams in batches of a size.

    The first feature has to be about as expected.
    """
    with tempfile.TemporaryDirectory(prefix="openvino-") as folder:
        python = python_with("openvino")
        np.save(Path(folder) / "tensors.npy", tensors)
        script = REPOSITORY / "benchmarks" / "openvino_speed.py"
        process = subprocess.Popen(
            [python, script, model_dir, Path(folder) / "tensors.npy"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin
        assert process.stdout

        def ask(streams: int, size: int) -> Pace:
            print(streams, size, file=process.stdin, flush=True)
            answer = process.stdout.readline()
            if not answer:
                raise RunFailedError("OpenVINO ended; what it wrote stands above.")
            took = json.loads(answer)
            feature = np.array(took["feature"])
            cosine = feature @ expected / np.linalg.norm(feature) / np.linalg.norm(expected)
            if cosine < 0.995:
                raise RunFailedError(f"OpenVINO computes other features than we: cosine {cosine:.4f}.")
            return len(tensors) / took["seconds"], len(tensors) / took["cpu"]

        try:
            yield ask
        finally:
            process.kill()
            process.wait()
