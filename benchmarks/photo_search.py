"""Search by photo under load: 32 clients, through Airflow's log-in, with the shop's own photos.

Each photo is decoded and computed, its category predicted, and its nearest items found by Elasticsearch,
which has the same cores. Before and after, the model alone computes ready tensors. Then more clients than
there are places ask.
"""

from collections import Counter
from pathlib import Path
from statistics import mean, median

from benchmarks.cpu import elasticsearch_seconds, family_seconds
from benchmarks.figures import Figure
from benchmarks.model_alone import tensors_of
from benchmarks.serving import BATCH, CLIENTS, Health, alone, serving
from benchmarks.shop import running_shop
from tasks.errors import RunFailedError
from tasks.inference.model import load
from tasks.search.queries import ItemQueries
from tasks.settings import Settings
from tasks.shop.connections import Services
from tasks.space import fit

PROCESS = "process_image"
SECONDS = 60.0
WARM_UP = 15.0
CROWD = 200
CROWD_SECONDS = 10.0


def measure(photos: Path) -> list[Figure]:
    """Fill the index with the shop's photos, learn a space, and search with the same photos.

    Raises:
        FeatureIndexError: a server did not come up, or nothing was answered.
    """
    with running_shop(photos) as shop:
        shop.backfill()
        settings, services = Settings.load(), Services.from_environment()
        fit.take_snapshot(ItemQueries(services.search, settings.index), settings)
        fit.fit(settings)
        model = load(settings)
        tensors = tensors_of(photos, BATCH)
        paces = [alone(model, tensors)]
        what = {"photos": [str(path) for path in sorted(photos.rglob("*.jpg"))]}
        with serving(shop.folder, shop.environment) as served:
            served.ask(PROCESS, WARM_UP, first=0, **what)
            leaders = served.leaders()
            pids = {"inference": served.inference.process.pid, "Airflow's API server": leaders["api-server"]}
            before = {name: family_seconds(pid) for name, pid in pids.items()}
            search, memory = elasticsearch_seconds(shop.search), served.memory()
            with Health(served.airflow) as health:
                answered = served.ask(PROCESS, SECONDS, first=0, **what)
            used = {name: family_seconds(pid) - before[name] for name, pid in pids.items()}
            used["Elasticsearch"] = elasticsearch_seconds(shop.search) - search
            grown = served.memory() / memory
            crowd = served.ask(PROCESS, CROWD_SECONDS, first=0, clients=CROWD, **what)
        paces.append(alone(model, tensors))
    done, seconds = answered["codes"].get("200", 0), answered["seconds"]
    if not done:
        raise RunFailedError(f"The API did nothing: {answered['codes']} {answered['errors']}")
    counts = Counter(answered["codes"]) + Counter(crowd["codes"])
    clock, found = mean(pace for pace, _ in paces), done / answered["elapsed"]
    return [
        Figure("model alone, pictures/s", clock),
        Figure(f"{PROCESS}, photos/s", found),
        Figure(f"{PROCESS} / model alone, by the clock", found / clock, at_least=0.75),
        Figure(
            "answers that are neither done nor 429", counts.total() - counts["200"] - counts["429"], at_most=0
        ),
        Figure(f"{CLIENTS} clients: answers 429", answered["codes"].get("429", 0)),
        Figure(
            f"{CROWD} clients, {settings.serve_requests} places: answers 429",
            crowd["codes"].get("429", 0),
            at_least=1,
        ),
        Figure("memory of the inference process at the end / at the beginning", grown, at_most=1.05),
        Figure("slowest answer of Airflow's health", max(health.seconds), "s", at_most=5.0),
        Figure("median answer", median(seconds), "s"),
        Figure("99 of 100 answers within", seconds[int(len(seconds) * 0.99)], "s"),
        *(Figure(f"CPU of {name}, ms a photo", 1000 * cpu / done) for name, cpu in used.items()),
    ]
