"""The HTTP API as it is served, behind Airflow's log-in, and clients that keep asking it."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import requests

from benchmarks.model_alone import Pace, pace
from local_stack import inference
from local_stack.airflow import Airflow
from local_stack.process import Server
from tasks.errors import RunFailedError
from tasks.inference.model import Model
from tasks.serve.client import Inference
from tasks.settings import REPOSITORY, Settings

CLIENTS = 32
BATCH = 16

_PICTURES_ALONE = 640
_HEALTH_EVERY = 0.5


def alone(model: Model, tensors: np.ndarray) -> Pace:
    """The pace of the model alone, in batches as the inference process has them under load."""
    pace(model, tensors, BATCH)
    return pace(model, tensors, BATCH, _PICTURES_ALONE // len(tensors))


@dataclass(frozen=True)
class Serving:
    """A running Airflow and the inference process behind its API."""

    airflow: Airflow
    inference: Server

    def ask(self, operation: str, seconds: float, **what: Any) -> dict[str, Any]:
        """Have the clients ask for so long; see benchmarks/api_clients.py for what, and what is answered.

        Raises:
            RunFailedError: the clients failed.
        """
        credentials = {"username": self.airflow.username, "password": self.airflow.password}
        answer = requests.post(f"{self.airflow.url}/auth/token", json=credentials, timeout=60)
        parts = urlsplit(self.airflow.url)
        work = {
            "host": parts.hostname,
            "port": parts.port,
            "operation": operation,
            "token": answer.json()["access_token"],
            "clients": CLIENTS,
            "seconds": seconds,
            **what,
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

    def leaders(self) -> dict[str, int]:
        """The ids of Airflow's processes, each of which may have others below it, by name."""
        leaders: dict[str, int] = json.loads((self.airflow.home / "processes.json").read_text())
        return leaders

    def counted(self) -> tuple[int, int]:
        """Pictures and batches that the inference process has computed."""
        health = json.loads(Inference(Settings.load()).request("GET", "/health").body)
        return health["pictures"], health["batches"]

    def memory(self) -> int:
        """Bytes that the inference process itself has in memory."""
        resident: int = psutil.Process(self.inference.process.pid).memory_info().rss
        return resident


@contextmanager
def serving(folder: Path, environment: Mapping[str, str]) -> Iterator[Serving]:
    """Serve the shop that the environment names; both servers end with the block.

    Raises:
        ServiceUnavailableError: one did not come up.
    """
    process = inference.start(Settings.load(), folder / "inference.log")
    try:
        airflow = Airflow.start(folder / "airflow", shop_env=environment)
        try:
            yield Serving(airflow, process)
        finally:
            airflow.stop()
    finally:
        process.stop()


class Health:
    """Asks for Airflow's health again and again, in a thread, until its block ends."""

    def __init__(self, airflow: Airflow) -> None:
        self._url = f"{airflow.url}/api/v2/monitor/health"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.seconds: list[float] = [0.0]
        self.failures = 0

    def __enter__(self) -> "Health":
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
