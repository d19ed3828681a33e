"""The whole pipeline, from catalogue to searchable, against the model alone and against the prototype's way.

Three things take turns, each round: the model alone, fed with ready tensors in the batches that are best for
it; the pipeline as a program, Python's start, TensorFlow's import and loading the model included; and the
prototype, without its start. CPU seconds are those of our own processes; what Elasticsearch and the image
server took beside them is stated apart.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks import prototype
from benchmarks.cpu import cpu_seconds, elasticsearch_seconds, process_seconds
from benchmarks.figures import Figure
from benchmarks.model_alone import Pace, pace, tensors_of
from benchmarks.volume import VolumeShop, volume_shop
from tasks.errors import RunFailedError
from tasks.inference.model import DIMENSIONS, load
from tasks.search.mapping import FEATURE
from tasks.settings import REPOSITORY, Settings
from tasks.shop.connections import SEARCH

ITEMS = 5_000
PROTOTYPE_ITEMS = 60
BATCHES = (16, 32, 64)
PICTURES, TIMES = 128, 4
"""The model alone computes so many in each size of batch, and each so often, since machines are noisy."""


def measure(photos: Path, rounds: int) -> list[Figure]:
    """Measure the model, the pipeline and the prototype `rounds` times by turns.

    Raises:
        FeatureIndexError: a run failed, or did not index every item.
    """
    with volume_shop(photos) as shop:
        model = load(Settings.load())
        tensors = tensors_of(photos, PICTURES)
        for size in BATCHES:  # the first batch of a size is optimised
            pace(model, tensors, size)
        paces: dict[str, list[Pace]] = {}
        servers: list[dict[str, float]] = []
        for number in range(rounds):
            for size in BATCHES:
                name = f"batches of {size}"
                paces.setdefault(name, []).append(
                    _said(number, name, lambda s=size: pace(model, tensors, s, TIMES))
                )
            before = _servers(shop)
            paces.setdefault("pipeline", []).append(
                _said(number, "pipeline", lambda n=number: _pipeline(shop, f"round-{n}"))
            )
            servers.append({name: used - before[name] for name, used in _servers(shop).items()})
            paces.setdefault("prototype", []).append(_said(number, "prototype", lambda: _prototype(shop)))
        return [
            *_compared(paces),
            *(
                Figure(
                    f"CPU of {name} beside the pipeline, ms a picture",
                    1000 * median(used[name] for used in servers) / ITEMS,
                )
                for name in servers[0]
            ),
        ]


def _servers(shop: VolumeShop) -> dict[str, float]:
    """CPU seconds so far of what runs beside us."""
    return {
        "Elasticsearch": elasticsearch_seconds(shop.search),
        "the image server": process_seconds(shop.server.process.pid),
    }


def _compared(paces: dict[str, list[Pace]]) -> list[Figure]:
    best = max(
        (name for name in paces if name.startswith("batches")),
        key=lambda name: median(cpu for _, cpu in paces[name]),
    )
    figures = [
        Figure(f"{shown}, pictures a {unit}", median(measured[which] for measured in paces[name]))
        for name, shown in (
            (best, f"model alone, {best}"),
            ("pipeline", "pipeline"),
            ("prototype", "prototype"),
        )
        for which, unit in ((0, "second"), (1, "CPU second"))
    ]

    def ratio(name: str, other: str, which: int) -> float:
        return median(a[which] / b[which] for a, b in zip(paces[name], paces[other], strict=True))

    return [
        *figures,
        Figure("pipeline / model alone, CPU", ratio("pipeline", best, 1), at_least=0.90),
        Figure("pipeline / model alone, clock", ratio("pipeline", best, 0), at_least=0.80),
        Figure("pipeline / prototype, clock", ratio("pipeline", "prototype", 0), at_least=2.6),
        Figure("pipeline / prototype, CPU", ratio("pipeline", "prototype", 1)),
    ]


def _said(number: int, name: str, measured: Callable[[], Pace]) -> Pace:
    print(f"round {number + 1}, {name} ...", end=" ", file=sys.stderr, flush=True)
    found = measured()
    print(f"{found[0]:.1f} a second, {found[1]:.1f} a CPU second", file=sys.stderr, flush=True)
    return found


def _pipeline(shop: VolumeShop, name: str) -> Pace:
    shop.stock([shop.url(item) for item in range(ITEMS)])
    cpu = cpu_seconds()
    seconds, report = shop.run(name)
    cpu = cpu_seconds() - cpu
    if report["counts"] != {"indexed": ITEMS}:
        raise RunFailedError(f"The pipeline was to index {ITEMS} items and reports {report['counts']}.")
    return ITEMS / seconds, ITEMS / cpu


def _prototype(shop: VolumeShop) -> Pace:
    urls = [shop.url(item) for item in range(PROTOTYPE_ITEMS + prototype.WARM_UP)]
    shop.stock(urls)
    vector = {"type": "dense_vector", "dims": DIMENSIONS, "similarity": "cosine"}
    shop.search.indices.put_mapping(index=shop.index, properties={FEATURE: vector})
    server = shop.environment[f"AIRFLOW_CONN_{SEARCH.upper()}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.prototype", server, shop.index],
        input="".join(f"{item:010}\t{url}\n" for item, url in enumerate(urls)),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    if done.returncode != 0:
        raise RunFailedError(f"The prototype failed.\n{done.stderr}")
    took = json.loads(done.stdout)
    shop.search.indices.refresh(index=shop.index)
    found = shop.search.count(index=shop.index, query={"exists": {"field": FEATURE}})["count"]
    if found != len(urls) or took["items"] != PROTOTYPE_ITEMS:
        raise RunFailedError(f"The prototype was to index {len(urls)} items, and {found} have a feature.")
    return took["items"] / took["seconds"], took["items"] / took["cpu"]
