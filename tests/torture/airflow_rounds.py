"""Rounds of Airflow's own scheduler, whose tasks are killed; its normal retry does the rest."""

import json
import os
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import psutil

from local_stack.airflow import Airflow
from tests.shop_fixtures import CATEGORY
from tests.torture import outcome
from tests.torture.kills import Kill, Task
from tests.torture.outcome import Outcome, TortureError
from tests.torture.shop import Shop

TASK = "kill -9 of the scheduler's task"
BOTH = "kill -9 of the scheduler's task and its supervisor"
WAYS = (TASK, TASK, BOTH)

_DAG = "category_backfill"
_LOOK_SECONDS = 0.2
_PATIENCE = 600
"""Seconds for a run, which takes less than one of them."""
_CHILDREN_PATIENCE = 15
"""Seconds in which the children of a killed task must have ended."""

_TUNING = {
    # Where the supervisor died too, only silence tells Airflow; by default it listens for five minutes.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "1",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
}
# A cluster policy, by which operators overrule what DAGs say: the same retries, only sooner.
_POLICY = """\
from datetime import timedelta


def task_policy(task):
    task.retry_delay = timedelta(seconds=1)
"""

Instances = Mapping[Task, Mapping[str, Any]]
"""Airflow's task instances."""


class AirflowRounds:
    """Runs of one shop by one Airflow. The first, undisturbed, says how long its tasks take."""

    def __init__(self, shop: Shop, airflow: Airflow, index: str, undisturbed: Outcome) -> None:
        self._shop = shop
        self._airflow = airflow
        self._index = index
        self._undisturbed = undisturbed
        self._usual: dict[str, float] = {}
        self._run("undisturbed", ())

    def run(self, number: int, kills: Sequence[Kill]) -> list[Kill]:
        """A round; returns the kills that hit: the others came after their task's end.

        Raises:
            TortureError: the run does not leave what an undisturbed one leaves.
        """
        return self._run(f"round-{number}", kills)

    def _run(self, run_id: str, kills: Sequence[Kill]) -> list[Kill]:
        data_dir = self._shop.folder / "airflow_data"
        self._shop.renew(data_dir, self._index)
        self._airflow.trigger(_DAG, run_id=run_id, conf={"category_ids": [CATEGORY]})
        folder = data_dir / _DAG / run_id
        run = _Run(self._airflow, folder, kills, self._usual)
        tasks = run.wait()
        outcome.require_whole_files(folder)
        found, plan = outcome.read(self._shop.search, self._index, folder, data_dir)
        outcome.require_not_fetched_again(plan, self._shop.server.requests)
        outcome.require_equal(found, self._undisturbed)
        # The next round's: what else the machine does comes and goes.
        self._usual |= _durations(tasks)
        return run.hits(tasks)


def _durations(tasks: Instances) -> dict[str, float]:
    """Seconds that each stage took, on average over its tasks that took a single attempt."""
    seconds = defaultdict(list)
    for (stage, _), instance in tasks.items():
        if instance["try_number"] == 1:
            seconds[stage].append(instance["duration"])
    return {stage: mean(of_stage) for stage, of_stage in seconds.items()}


@contextmanager
def running_airflow(shop: Shop, undisturbed: Outcome) -> Iterator[AirflowRounds]:
    """An Airflow for the shop; both it and the index end with the block."""
    home, index = shop.folder / "airflow", f"torture-{uuid.uuid4().hex}"
    (home / "config").mkdir(parents=True)
    (home / "config" / "airflow_local_settings.py").write_text(_POLICY)
    settings = {"FEATURES_DATA_DIR": str(shop.folder / "airflow_data"), "FEATURES_INDEX": index, **_TUNING}
    # What our own environment says would win over what we ask for, and name another shop.
    with mock.patch.dict(os.environ, shop.stage_environment, clear=True):
        airflow = Airflow.start(home, shop_env=shop.environment | settings)
    try:
        airflow.unpause(_DAG)
        yield AirflowRounds(shop, airflow, index, undisturbed)
    finally:
        airflow.stop()
        shop.search.indices.delete(index=index, ignore_unavailable=True)


class _Run:
    """A run that goes on."""

    def __init__(
        self, airflow: Airflow, folder: Path, kills: Sequence[Kill], usual: Mapping[str, float]
    ) -> None:
        self._airflow = airflow
        self._scheduler: int = json.loads((airflow.home / "processes.json").read_text())["scheduler"]
        self._folder = folder
        self._path = f"/api/v2/dags/{_DAG}/dagRuns/{folder.name}"
        self._usual = usual
        self._to_come = list(kills)
        self._tried: set[tuple[Task, int]] = set()
        self._threads: list[threading.Thread] = []
        self._dealt: list[Kill] = []
        self._killed: list[int] = []
        """Process ids of the tasks, which lead groups of their own."""

    def wait(self) -> Instances:
        """Deal the kills until the run ends; returns its task instances as they are then.

        Raises:
            TortureError: it fails, does not end, or leaves processes behind.
        """
        until = time.monotonic() + _PATIENCE
        while (state := self._airflow._call("GET", self._path)["state"]) not in ("success", "failed"):
            if time.monotonic() > until:
                raise TortureError(f"{self._path} is {state} after {_PATIENCE} s")
            for task, instance in self._instances().items():
                self._aim(task, instance)
            time.sleep(_LOOK_SECONDS)
        for thread in self._threads:
            thread.join()
        if state == "failed":
            tries = {task: (i["state"], i["try_number"]) for task, i in self._instances().items()}
            raise TortureError(f"{self._path} failed; its tasks with their tries: {tries}")
        self._require_ended()
        return self._instances()

    def hits(self, tasks: Instances) -> list[Kill]:
        """The kills that made a retry: each of the others found its task with nothing left to do."""
        left = Counter({task: instance["try_number"] - 1 for task, instance in tasks.items()})
        hits = []
        for kill in self._dealt:
            if left[kill.task] > 0:
                left[kill.task] -= 1
                hits.append(kill)
        if more := +left:
            raise TortureError(f"tasks were retried that nobody had killed: {dict(more)}")
        return hits

    def _instances(self) -> Instances:
        found = self._airflow._call("GET", f"{self._path}/taskInstances", params={"limit": 100})
        return {
            (instance["task_id"].removeprefix("features."), max(instance["map_index"], 0)): instance
            for instance in found["task_instances"]
        }

    def _aim(self, task: Task, instance: Mapping[str, Any]) -> None:
        """Let the kill that waits for a new attempt at a task wait for its moment."""
        attempt = task, instance["try_number"]
        if instance["state"] != "running" or instance["pid"] is None or attempt in self._tried:
            return
        self._tried.add(attempt)
        kill = next((kill for kill in self._to_come if kill.task == task), None)
        if kill is None:
            return
        self._to_come.remove(kill)
        runs_for = (datetime.now(UTC) - datetime.fromisoformat(instance["start_date"])).total_seconds()
        delay = kill.share * self._usual[kill.stage] - runs_for
        self._threads.append(threading.Thread(target=self._deal, args=(kill, instance["pid"], delay)))
        self._threads[-1].start()

    def _deal(self, kill: Kill, pid: int, delay: float) -> None:
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            task = psutil.Process(pid)
            supervisor = task.parent()
            if not kill.comes(self._folder, delay, task.is_running):
                return
            # The supervisor first, which would tell of the other's end.
            if kill.way == BOTH and supervisor is not None:
                _kill_of(self._scheduler, supervisor)
            _kill_of(self._scheduler, task)
            self._dealt.append(kill)
            self._killed.append(pid)

    def _require_ended(self) -> None:
        until = time.monotonic() + _CHILDREN_PATIENCE
        while left := [line for pid in self._killed for line in _group(pid)]:
            if time.monotonic() > until:
                raise TortureError(f"children of killed tasks run on: {left}")
            time.sleep(0.05)


def _kill_of(scheduler: int, process: psutil.Process) -> None:
    """Kill a process of the scheduler's session: a number may be another's by now."""
    if os.getsid(process.pid) == scheduler:
        process.kill()


def _group(leader: int) -> list[str]:
    """The command lines of the processes of a group."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        with suppress(ProcessLookupError):
            if os.getpgid(process.pid) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.info["cmdline"] or []))
    return found
