"""What everything but the model costs, and so what would feed a faster one, such as a GPU's.

Each stage does its work on a model that costs nothing, once to warm up and then `rounds` times. It is
compared with the decoder's own limit, bare Pillow and our resize in a loop on every core, measured between
the rounds. The limit of requests a second is out of the way, as it has to be where a GPU is fed.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import free_model
from benchmarks.cpu import cpu_seconds
from benchmarks.figures import Figure
from benchmarks.shop import variables_set
from benchmarks.volume import CATEGORY, VolumeShop, volume_shop
from tasks.errors import RunFailedError
from tasks.machine import cores
from tasks.pictures.decoders import environment
from tasks.runs.run import Request
from tasks.settings import Settings
from tasks.shop.connections import Services
from tasks.stages import download, extract, index, plan


def measure(photos: Path, rounds: int) -> list[Figure]:
    """What each stage costs a picture, on a model that costs nothing.

    Raises:
        FeatureIndexError: a stage failed, or did not index every item.
    """
    with volume_shop(photos) as shop:
        free_model.save(shop.folder / "free_model")
        free = {
            "FEATURES_MODEL_DIR": str(shop.folder / "free_model"),
            "FEATURES_PRECISION": "float32",  # to round its pictures to bfloat16 would be its only cost
            "FEATURES_REQUESTS_PER_SECOND_PER_HOST": "1e6",
        }
        with variables_set(free):
            items = Settings.load().chunk_size
            _stage_by_stage(shop, "warm-up", 100)
            limits, measured = [], []
            for number in range(rounds):
                limits.append(_decoder_limit(photos))
                measured.append(_stage_by_stage(shop, f"free-{number + 1}", items))
    stages = {name: median(used[name] for used in measured) for name in measured[0]}
    own = [items / sum(used.values()) for used in measured]
    extract_alone = [items / used["extract"] for used in measured]

    def share(rates: list[float]) -> float:
        return median(rate / limit for rate, limit in zip(rates, limits, strict=True))

    return [
        *(
            Figure(f"free model: {name}, CPU ms a picture", 1000 * cpu / items)
            for name, cpu in stages.items()
        ),
        Figure("bare decoding and resizing, CPU ms a picture", 1000 / median(limits)),
        Figure("free model: pictures a CPU second, so a core", median(own)),
        Figure("free model: extract alone, pictures a CPU second", median(extract_alone)),
        Figure("free model: pipeline / bare decoding, CPU", share(own), at_least=0.7),
        Figure("free model: extract / bare decoding, CPU", share(extract_alone)),
    ]


def _stage_by_stage(shop: VolumeShop, name: str, items: int) -> dict[str, float]:
    """CPU seconds of each stage, in this process, which has TensorFlow imported already."""
    print(f"{items} items on a free model ...", file=sys.stderr, flush=True)
    shop.stock([shop.url(item) for item in range(items)])
    settings, services = Settings.load(), Services.from_environment()
    used: dict[str, float] = {}

    def counted(stage: str, work: Callable[[], Any]) -> Any:
        cpu = cpu_seconds()
        result = work()
        used[stage] = used.get(stage, 0.0) + cpu_seconds() - cpu
        return result

    request = Request("benchmark", name, category_ids=(CATEGORY,))
    planned = counted("plan", lambda: plan.run(request, settings, services))
    indexed = 0
    for chunk in planned.chunks:
        counted("download", lambda c=chunk: download.run(c, settings))
        counted("extract", lambda c=chunk: extract.run(c, settings))
        indexed += counted("index", lambda c=chunk: index.run(c, settings, services))["counts"]["indexed"]
    if indexed != items:
        raise RunFailedError(f"{items} items were to be indexed, and {indexed} were.")
    return used


def _decoder_limit(photos: Path) -> float:
    """Pictures a CPU second of decoding and resizing alone, on every core at once as in a run."""
    command = [sys.executable, "-m", "benchmarks.bare_decoding", str(photos)]
    # In the decoders' environment: malloc's defaults would take a fifth longer.
    loops = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
        for _ in range(cores())
    ]
    return median(float(loop.communicate()[0]) for loop in loops)
