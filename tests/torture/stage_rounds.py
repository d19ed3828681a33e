"""Rounds whose stages run as processes of their own, killed or stopped at moments of our choice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import mean

import psutil

from tasks.runs.run import Plan, Request
from tasks.settings import REPOSITORY
from tests.shop_fixtures import CATEGORY
from tests.torture import outcome
from tests.torture.attempt import BEGUN
from tests.torture.kills import Kill, Task
from tests.torture.outcome import Outcome, TortureError
from tests.torture.shop import Shop

KILLED = "kill -9"
STOPPED = "stopped, continued beside its retry"
WAYS = (KILLED, KILLED, KILLED, STOPPED)
"""One in four."""

_DAG = "torture"
_PATIENCE = 120
"""Seconds for an attempt, which takes a few."""
_CHILDREN_PATIENCE = 15
"""Seconds in which the children of a killed attempt must have ended."""


class StageRounds:
    """Runs of one shop. The first, undisturbed, says what the others must leave and how long stages take."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        with _running(shop, "undisturbed", (), {}) as run:
            outcome.require_each_fetched_once(shop.server.requests)
            self.undisturbed = run.read()
            outcome.require_expected(self.undisturbed, shop.expected)
            self._usual = run.durations()

    def run(self, number: int, kills: Sequence[Kill]) -> list[Kill]:
        """A round; returns the kills that hit: the others came after their attempt's end.

        Raises:
            TortureError: the run does not leave what the undisturbed one left.
        """
        with _running(self._shop, f"round-{number}", kills, self._usual) as run:
            outcome.require_equal(run.read(), self.undisturbed)
            # The next round's: what else the machine does comes and goes.
            self._usual |= run.durations()
            return run.hits


class _Run:
    """One run, each task of it in as many attempts as it takes."""

    def __init__(self, shop: Shop, name: str, kills: Sequence[Kill], usual: Mapping[str, float]) -> None:
        self._shop = shop
        self._kills = kills
        self._usual = usual
        self._data_dir = shop.folder / name
        self._index = f"torture-{uuid.uuid4().hex}"
        self._request = Request(_DAG, name, category_ids=(CATEGORY,))
        self._stopped: list[_Attempt] = []
        self._lock = threading.Lock()
        self._ended = False
        self.attempts: list[_Attempt] = []
        self.hits: list[Kill] = []

    def run(self) -> None:
        """From plan to summarise, the chunks side by side."""
        self._shop.renew(self._data_dir, self._index)
        folder = self._task(("plan", 0), json.dumps(self._request.to_json())).strip()
        chunks = len(Plan.load(Path(folder)).chunks)
        with ThreadPoolExecutor(chunks) as threads:
            try:
                list(threads.map(lambda number: self._chunk(folder, number), range(chunks)))
            except BaseException:
                self.end()  # the other chunks' threads with it
                raise
        self._task(("summarise", 0), folder)
        for attempt in self._stopped:
            attempt.output()
        if left := [line for attempt in self.attempts for line in attempt.left()]:
            raise TortureError(f"left running: {left}")

    def durations(self) -> dict[str, float]:
        """Seconds that each stage took, on average over its tasks that took a single attempt."""
        attempts = Counter(attempt.task for attempt in self.attempts)
        seconds = defaultdict(list)
        for attempt in self.attempts:
            if attempts[attempt.task] == 1:
                seconds[attempt.task[0]].append(attempt.seconds)
        return {stage: mean(of_stage) for stage, of_stage in seconds.items()}

    def read(self) -> Outcome:
        """What it left, once that is seen to be whole and nothing to have been fetched again.

        Raises:
            TortureError: it is not.
        """
        outcome.require_whole_files(self._folder)
        found, plan = outcome.read(self._shop.search, self._index, self._folder, self._data_dir)
        stopped = {attempt.task for attempt in self._stopped}
        began = {attempt.name: attempt.begun for attempt in self.attempts if attempt.task in stopped}
        outcome.require_not_fetched_again(plan, self._shop.server.requests, began)
        return found

    def forget(self) -> None:
        """Remove its files, which are only worth a look where something was wrong."""
        shutil.rmtree(self._data_dir)

    def end(self) -> None:
        """End what still runs, start nothing more, and remove the index."""
        with self._lock:
            self._ended = True
            for attempt in self.attempts:
                attempt.end()
        self._shop.search.indices.delete(index=self._index, ignore_unavailable=True)

    @property
    def _folder(self) -> Path:
        return self._request.folder(self._data_dir)

    def _chunk(self, folder: str, number: int) -> None:
        for stage in ("download", "extract", "index"):
            self._task((stage, number), folder, str(number))

    def _task(self, task: Task, *arguments: str) -> str:
        """Start attempts until one ends by itself; returns what that printed."""
        stopped: tuple[Kill, _Attempt] | None = None
        for kill in [*(kill for kill in self._kills if kill.task == task), None]:
            attempt = self._start(task, arguments)
            if stopped is not None:
                attempt.waits(stopped[0].pause * self._usual[task[0]])
                stopped[1].go_on()
                stopped = None
            if kill is None or not self._hit(attempt, kill):
                return attempt.output()
            if kill.way == STOPPED:
                stopped = kill, attempt
        raise AssertionError("the last attempt has no kill")

    def _start(self, task: Task, arguments: Sequence[str]) -> "_Attempt":
        with self._lock:
            if self._ended:
                raise TortureError("the run was given up")
            name = f"attempt-{len(self.attempts):03}"
            settings = {
                "FEATURES_DATA_DIR": str(self._data_dir),
                "FEATURES_INDEX": self._index,
                "FEATURES_USER_AGENT": name,  # tells whose a request was
            }
            log = self._data_dir / f"{name}-{task[0]}.log"
            attempt = _Attempt(name, task, arguments, self._shop.stage_environment | settings, log)
            self.attempts.append(attempt)
        attempt.wait_until_begun()
        return attempt

    def _hit(self, attempt: "_Attempt", kill: Kill) -> bool:
        """Kill or stop the attempt when it is its time; tells whether it was still at work."""
        if not kill.comes(self._folder, kill.share * self._usual[kill.stage], attempt.runs):
            return False
        if not (attempt.stop() if kill.way == STOPPED else attempt.kill()):
            return False
        with self._lock:
            self.hits.append(kill)
            if kill.way == STOPPED:
                self._stopped.append(attempt)
        outcome.require_whole_files(self._folder)
        return True


@contextmanager
def _running(shop: Shop, name: str, kills: Sequence[Kill], usual: Mapping[str, float]) -> Iterator[_Run]:
    run = _Run(shop, name, kills, usual)
    try:
        run.run()
        yield run
        run.forget()
    finally:
        run.end()


class _Attempt:
    """A process at work on a task, leader of a session of its own."""

    def __init__(
        self, name: str, task: Task, arguments: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.task = task
        self.begun = 0.0
        """By time.monotonic()."""
        self.seconds = 0.0
        """From its begin to its end, once it has printed all."""
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.torture.attempt", task[0], *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=dict(environment),
                cwd=REPOSITORY,
                text=True,
                start_new_session=True,
            )

    def wait_until_begun(self) -> None:
        """Return once the stage is about to be called."""
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != BEGUN:
            self.output()
        self.begun = time.monotonic()

    def runs(self) -> bool:
        """Whether the process itself does."""
        return self._process.poll() is None

    def waits(self, seconds: float) -> None:
        """Return after so many seconds, or at its end."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def kill(self) -> bool:
        """Kill the process, not its children; tells whether it was alive.

        Raises:
            TortureError: its children do not end by themselves.
        """
        self._process.kill()
        was_alive = self._process.wait() == -signal.SIGKILL
        until = time.monotonic() + _CHILDREN_PATIENCE
        while left := self.left():
            if time.monotonic() > until:
                raise TortureError(f"children of a killed {self.task} run on: {left}")
            time.sleep(0.05)
        return was_alive

    def stop(self) -> bool:
        """Let it stand still; tells whether it was alive."""
        self._process.send_signal(signal.SIGSTOP)
        return self._process.poll() is None

    def go_on(self) -> None:
        """Let it continue."""
        self._process.send_signal(signal.SIGCONT)

    def output(self) -> str:
        """What it printed after its begin, once it has ended.

        Raises:
            TortureError: it did not end well.
        """
        try:
            printed, _ = self._process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            raise TortureError(f"{self.task} has not ended after {_PATIENCE} s") from None
        self.seconds = time.monotonic() - self.begun
        if self._process.returncode != 0:
            raise TortureError(f"{self.task} failed by itself:\n{self._log.read_text()[-2000:]}")
        return printed

    def left(self) -> list[str]:
        """The command lines of what still runs of it, its children included."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            with suppress(ProcessLookupError):
                ours = os.getsid(process.pid) == self._process.pid
                if ours and process.info["status"] != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.info["cmdline"] or []))
        return found

    def end(self) -> None:
        """Kill what is left of it."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
