"""The HTTP API under load: 32 clients for a minute, through Airflow's log-in, with local pictures.

Each client asks for the feature of one item after another to be saved (saveImagenetFeature): each picture is
fetched, decoded and computed, its document read and its feature written; Elasticsearch has the same cores.
Then they ask for features alone (getImagenetFeature). Beside them Airflow's own
health is asked for, and the memory of the inference process is read. Before and after, the model alone
computes ready tensors. CPU seconds are those of our own processes: the inference process with its decoders,
and Airflow's API server.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any
from urllib.parse import urlsplit

import psutil
import requests

from benchmarks.cpu import elasticsearch_seconds, family_seconds, process_seconds
from benchmarks.figures import Figure
from benchmarks.model_alone import Pace, pace, tensors_of
from benchmarks.volume import VolumeShop, volume_shop
from local_stack import inference
from local_stack.airflow import Airflow
from local_stack.process import Server
from tasks.errors import RunFailedError
from tasks.inference.model import load
from tasks.serve.client import Inference
from tasks.settings import REPOSITORY, Settings

SAVE, GET = "saveImagenetFeature", "getImagenetFeature"
CLIENTS = 32
SECONDS = 60.0
WARM_UP = 15.0
"""Seconds of load before what is measured: batches of each size are optimised when first met."""
GET_SECONDS = 20.0
ITEMS = 4_000
BATCH = 16
PICTURES_ALONE = 640

_HEALTH_EVERY = 0.5


def measure(photos: Path) -> list[Figure]:
    """Measure the model alone, the API, and the model alone again.

    Raises:
        FeatureIndexError: a server did not come up, or nothing was answered.
    """
    with volume_shop(photos) as shop:
        shop.stock([shop.url(number) for number in range(ITEMS)])
        settings = Settings.load()
        model = load(settings)
        tensors = tensors_of(photos, BATCH)
        alone = [_alone(model, tensors)]
        serving = inference.start(settings, shop.folder / "inference.log")
        try:
            airflow = Airflow.start(shop.folder / "airflow", shop_env=shop.environment)
            try:
                save, read, figures = _under_load(shop, airflow, serving)
            finally:
                airflow.stop()
        finally:
            serving.stop()
        alone.append(_alone(model, tensors))
    clock, cpu = (mean(of[place] for of in alone) for place in (0, 1))
    return [
        Figure("model alone, pictures/s", clock),
        Figure(f"{SAVE}, pictures/s", save[0]),
        Figure(f"{SAVE} / model alone, by the clock", save[0] / clock, at_least=0.8),
        Figure(f"{SAVE} / model alone, CPU of our own processes", save[1] / cpu, at_least=0.8),
        Figure(f"{GET}, pictures/s", read),
        Figure(f"{GET} / model alone, by the clock", read / clock, at_least=0.8),
        *figures,
    ]


def _alone(model: Any, tensors: Any) -> Pace:
    pace(model, tensors, BATCH)
    return pace(model, tensors, BATCH, PICTURES_ALONE // len(tensors))


def _under_load(shop: VolumeShop, airflow: Airflow, serving: Server) -> tuple[Pace, float, list[Figure]]:
    leaders = _leaders(airflow)
    pids = {"inference": serving.process.pid, "Airflow's API server": leaders.pop("api-server")}
    _ask(shop, airflow, SAVE, WARM_UP, 0)
    before = {name: family_seconds(pid) for name, pid in pids.items()}
    others = _others(shop, leaders)
    memory, counted = _memory(serving), _counted()
    psutil.cpu_times_percent()  # from now on
    with _Health(airflow) as health:
        answered = _ask(shop, airflow, SAVE, SECONDS, 1_000)
    idle = psutil.cpu_times_percent().idle / 100
    used = {name: family_seconds(pid) - before[name] for name, pid in pids.items()}
    beside = {name: seconds - others[name] for name, seconds in _others(shop, leaders).items()}
    pictures, batches = _counted()
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
            _memory(serving) / memory,
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
    read = _ask(shop, airflow, GET, GET_SECONDS, 0)
    if set(read["codes"]) != {"200"}:
        raise RunFailedError(f"Not all features were given: {read['codes']} {read['errors']}")
    save = (done / answered["elapsed"], done / sum(used.values()))
    return save, read["codes"]["200"] / read["elapsed"], figures


def _ask(shop: VolumeShop, airflow: Airflow, operation: str, seconds: float, first: int) -> dict[str, Any]:
    token = requests.post(
        f"{airflow.url}/auth/token",
        json={"username": airflow.username, "password": airflow.password},
        timeout=60,
    ).json()["access_token"]
    parts = urlsplit(airflow.url)
    work = {
        "host": parts.hostname,
        "port": parts.port,
        "operation": f"/feature-index/{operation}",
        "token": token,
        "url": shop.url(0).removesuffix("0"),
        "items": ITEMS,
        "first": first,
        "clients": CLIENTS,
        "seconds": seconds,
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.api_clients"],
        input=json.dumps(work),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    if done.returncode != 0:
        raise RunFailedError(f"The clients failed.\n{done.stderr}")
    answered: dict[str, Any] = json.loads(done.stdout)
    return answered


def _leaders(airflow: Airflow) -> dict[str, int]:
    leaders: dict[str, int] = json.loads((airflow.home / "processes.json").read_text())
    return leaders


def _counted() -> tuple[int, int]:
    """Pictures and batches that the inference process has computed."""
    health = json.loads(Inference(Settings.load()).request("GET", "/health").body)
    return health["pictures"], health["batches"]


def _others(shop: VolumeShop, leaders: Mapping[str, int]) -> dict[str, float]:
    return {
        "the rest of Airflow": sum(family_seconds(pid) for pid in leaders.values()),
        "Elasticsearch": elasticsearch_seconds(shop.search),
        "the image server": process_seconds(shop.server.process.pid),
    }


def _memory(serving: Server) -> int:
    """Bytes that the process itself has in memory."""
    resident: int = psutil.Process(serving.process.pid).memory_info().rss
    return resident


class _Health:
    """Asks for Airflow's health again and again, in a thread, until its block ends."""

    def __init__(self, airflow: Airflow) -> None:
        self._url = f"{airflow.url}/api/v2/monitor/health"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.seconds: list[float] = [0.0]
        self.failures = 0

    def __enter__(self) -> "_Health":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._over.wait(_HEALTH_EVERY):
            asked = time.monotonic()
            try:
                requests.get(self._url, timeout=60).raise_for_status()
            except requests.RequestException:
                self.failures += 1
            self.seconds.append(time.monotonic() - asked)
