"""The HTTP API under load: 32 clients for a minute, through Airflow's log-in, with local pictures.

Each client asks for the feature of one item after another to be saved (saveImagenetFeature): each picture is
fetched, decoded and computed, its document read and its feature written; Elasticsearch has the same cores.
Then they ask for features alone (getImagenetFeature). Beside them Airflow's own
health is asked for, and the memory of the inference process is read. Before and after, the model alone
computes ready tensors. CPU seconds are those of our own processes: the inference process with its decoders,
and Airflow's API server.
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean, median

import psutil

from benchmarks.cpu import elasticsearch_seconds, family_seconds, process_seconds
from benchmarks.figures import Figure
from benchmarks.model_alone import Pace, tensors_of
from benchmarks.serving import BATCH, Health, Serving, alone, serving
from benchmarks.volume import VolumeShop, volume_shop
from tasks.errors import RunFailedError
from tasks.inference.model import load
from tasks.settings import Settings

SAVE, GET = "saveImagenetFeature", "getImagenetFeature"
SECONDS = 60.0
WARM_UP = 15.0
"""Seconds of load before what is measured: batches of each size are optimised when first met."""
GET_SECONDS = 20.0
ITEMS = 4_000


def measure(photos: Path) -> list[Figure]:
    """Measure the model alone, the API, and the model alone again.

    Raises:
        FeatureIndexError: a server did not come up, or nothing was answered.
    """
    with volume_shop(photos) as shop:
        shop.stock([shop.url(number) for number in range(ITEMS)])
        model = load(Settings.load())
        tensors = tensors_of(photos, BATCH)
        paces = [alone(model, tensors)]
        with serving(shop.folder, shop.environment) as served:
            save, read, figures = _under_load(shop, served)
        paces.append(alone(model, tensors))
    clock, cpu = (mean(of[place] for of in paces) for place in (0, 1))
    return [
        Figure("model alone, pictures/s", clock),
        Figure(f"{SAVE}, pictures/s", save[0]),
        Figure(f"{SAVE} / model alone, by the clock", save[0] / clock, at_least=0.8),
        Figure(f"{SAVE} / model alone, CPU of our own processes", save[1] / cpu, at_least=0.8),
        Figure(f"{GET}, pictures/s", read),
        Figure(f"{GET} / model alone, by the clock", read / clock, at_least=0.8),
        *figures,
    ]


def _under_load(shop: VolumeShop, served: Serving) -> tuple[Pace, float, list[Figure]]:
    what = {"url": shop.url(0).removesuffix("0"), "items": ITEMS}
    leaders = served.leaders()
    pids = {"inference": served.inference.process.pid, "Airflow's API server": leaders.pop("api-server")}
    served.ask(SAVE, WARM_UP, first=0, **what)
    before = {name: family_seconds(pid) for name, pid in pids.items()}
    others = _others(shop, leaders)
    memory, counted = served.memory(), served.counted()
    psutil.cpu_times_percent()  # from now on
    with Health(served.airflow) as health:
        answered = served.ask(SAVE, SECONDS, first=1_000, **what)
    idle = psutil.cpu_times_percent().idle / 100
    used = {name: family_seconds(pid) - before[name] for name, pid in pids.items()}
    beside = {name: seconds - others[name] for name, seconds in _others(shop, leaders).items()}
    pictures, batches = served.counted()
    done = answered["codes"].get("200", 0)
    if not done:
        raise RunFailedError(f"The API did nothing: {answered['codes']} {answered['errors']}")
    errors = sum(count for code, count in answered["codes"].items() if code not in ("200", "429"))
    seconds = answered["seconds"]
    figures = [
        Figure("answers that are neither done nor 429", errors, at_most=0),
        Figure("answers 429", answered["codes"].get("429", 0)),
        Figure(
            "memory of the inference process at the end / at the beginning",
            served.memory() / memory,
            at_most=1.05,
        ),
        Figure("memory of the inference process, MB", memory / 1e6),
        Figure("slowest answer of Airflow's health", max(health.seconds), "s", at_most=5.0),
        Figure("unanswered questions for Airflow's health", health.failures, at_most=0),
        Figure("pictures a batch", (pictures - counted[0]) / (batches - counted[1])),
        Figure("share of the cores' time that was idle", idle),
        Figure("median answer", median(seconds), "s"),
        Figure("99 of 100 answers within", seconds[int(len(seconds) * 0.99)], "s"),
        *(Figure(f"CPU of {name}, ms a picture", 1000 * cpu / done) for name, cpu in (used | beside).items()),
    ]
    read = served.ask(GET, GET_SECONDS, first=0, **what)
    if set(read["codes"]) != {"200"}:
        raise RunFailedError(f"Not all features were given: {read['codes']} {read['errors']}")
    save = (done / answered["elapsed"], done / sum(used.values()))
    return save, read["codes"]["200"] / read["elapsed"], figures


def _others(shop: VolumeShop, leaders: Mapping[str, int]) -> dict[str, float]:
    return {
        "the rest of Airflow": sum(family_seconds(pid) for pid in leaders.values()),
        "Elasticsearch": elasticsearch_seconds(shop.search),
        "the image server": process_seconds(shop.server.process.pid),
    }
