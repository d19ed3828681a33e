"""Airflow on this machine: its real scheduler, DAG processor and API server on SQLite, all in one folder."""

import base64
import contextlib
import importlib.metadata
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import requests

from local_stack.process import Server, free_port, require_free, stop_group
from tasks import files
from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.settings import REPOSITORY

# -P, because `python -m` would look for the module in the working directory first.
COMMAND = (sys.executable, "-P", "-m", "airflow")
"""The airflow command of the environment that runs this."""

SERVERS = {
    "api-server": ["api-server"],
    # The API server reads the log files itself, and the scheduler's log server would take a fixed port.
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "dag-processor": ["dag-processor"],
}
"""Subcommands by name. There is no triggerer, since no task defers."""

START_SECONDS = 180
POLL_SECONDS = 1

_LOCK_SECONDS = 60
"""How long a writer to the database waits for its turn. After SQLite's own 5, commands on a busy machine
failed while the scheduler wrote."""

Progress = Mapping[str, Counter[str]]
"""By task id, how many of its instances are in each state; "none" is one that is not scheduled yet."""


def environment(
    home: Path, *, shop_env: Mapping[str, str], port: int, root_path: str = "", all_admins: bool = False
) -> dict[str, str]:
    """The variables that make a process part of the Airflow in `home`.

    What the user's environment sets already wins, except for what says which Airflow this is: a stack must
    never migrate or fill the database of another one. Secrets come from an earlier start where there was
    one.
    """
    defaults = _repository_settings() | _TUNING | dict(shop_env)
    url = f"http://127.0.0.1:{port}{root_path}"
    return {name: os.environ.get(name, value) for name, value in defaults.items()} | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}?timeout={_LOCK_SECONDS}",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__AUTH_MANAGER": (
            "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"
        ),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": str(all_admins),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        **_secrets(home),
    }


def command_environment() -> dict[str, str]:
    """The whole environment of `bin/airflow`: that of a shop's stack, the user's own variables over it.

    The shop is `SHOP`, else one whose stack runs, else the one that ran last. With AIRFLOW_HOME set, or
    before any stack ever ran, it is an Airflow of its own with this repository's DAGs.

    Raises:
        ConfigurationError: when `SHOP` names a shop that never ran.
    """
    var = REPOSITORY / "var"
    settings = _repository_settings() | {"AIRFLOW_HOME": str(var / "airflow")}
    if "AIRFLOW_HOME" not in os.environ:
        shop = os.environ.get("SHOP")
        homes = [file.parent for file in var.glob(f"{shop or '*'}/airflow/environment.json")]
        if shop and not homes:
            raise ConfigurationError(f"SHOP={shop}: no stack of that name ran here, {var / shop} has none.")
        if homes:
            home = max(homes, key=lambda home: (bool(Airflow.running(home)), _file(home).stat().st_mtime))
            settings = json.loads(_file(home).read_text())
    return settings | dict(os.environ)


def _repository_settings() -> dict[str, str]:
    return {
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }


_TUNING = {
    # Seconds between two looks at the database, 12 ms each. With the default of 1, eight empty tasks one
    # after another and in pairs took 5.0 s; now 1.7 s.
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.25",
    # The pools decide how much runs at once. A worker process often notices the end of its task only at its
    # next heartbeat, up to 5 s later, so there are twice as many as are busy; each takes 24 MB.
    "AIRFLOW__CORE__PARALLELISM": "12",
    # Each look at a file takes half a second of CPU. One that has changed is looked at whatever this says.
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
    # How soon tasks that were killed with their scheduler run again after the next start.
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
    # While TensorFlow has every core, the default of 5 s is not enough to answer a task.
    "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "30",
}


def _file(home: Path) -> Path:
    return home / "environment.json"


def _secrets(home: Path) -> dict[str, str]:
    """What the servers must agree on, the same for as long as the folder lives."""
    made = {
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(64),
        "AIRFLOW__API__SECRET_KEY": secrets.token_urlsafe(64),
        "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    }
    try:
        kept = json.loads(_file(home).read_text())
    except FileNotFoundError:
        return made
    return {name: kept[name] for name in made}


class Airflow:
    """The Airflow in one folder, running; its REST API is version 2."""

    username = "admin"

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self.home = home
        self.environment = environment
        """The variables that make a process, such as the airflow command, part of this Airflow."""
        self.url = environment["AIRFLOW__API__BASE_URL"]
        self.password: str = json.loads((home / "passwords.json").read_text())[self.username]
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy stands between this machine and itself

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        shop_env: Mapping[str, str],
        port: int | None = None,
        root_path: str = "",
        all_admins: bool = False,
    ) -> "Airflow":
        """Start the servers in `folder`, which becomes AIRFLOW_HOME, and return when the DAGs are there.

        What an earlier start left running in the folder is ended first. `shop_env` is the shop's own
        settings and connections, where the user's environment does not name others. `port` defaults to a
        free one; `root_path` is where the UI is there, as /shop/airflow; `all_admins` asks nobody for the
        password.

        Raises:
            ConfigurationError: when the port is taken.
            ServiceUnavailableError: when a server does not come up, or a DAG file does not import.
        """
        home = folder.resolve()
        home.mkdir(parents=True, exist_ok=True)
        stop(home)
        if port is None:
            port = free_port()
        require_free(port, "Airflow's UI", "AIRFLOW_PORT")
        settings = environment(home, shop_env=shop_env, port=port, root_path=root_path, all_admins=all_admins)
        _write_private(_file(home), settings)
        if not (home / "passwords.json").exists():
            _write_private(home / "passwords.json", {cls.username: secrets.token_urlsafe(12)})
        airflow = cls(home, settings)
        try:
            airflow._migrate()
            airflow._start_servers()
        except BaseException:
            stop(home)
            raise
        return airflow

    @classmethod
    def running(cls, folder: Path) -> "Airflow | None":
        """The Airflow that an earlier start left running in `folder`, None unless all of it runs."""
        home = folder.resolve()
        leaders = _recorded(home)
        if leaders.keys() != SERVERS.keys() or not all(
            _alive(pid) and _ours(home, pid) for pid in leaders.values()
        ):
            return None
        return cls(home, json.loads(_file(home).read_text()))

    def stop(self) -> None:
        """End the servers and every task they run."""
        stop(self.home)

    def unpause(self, dag_id: str) -> None:
        """Let the scheduler start runs of the DAG, manual ones included."""
        self._call("PATCH", f"/api/v2/dags/{dag_id}", body={"is_paused": False})

    def pause(self, dag_id: str) -> None:
        """Start no more runs of the DAG."""
        self._call("PATCH", f"/api/v2/dags/{dag_id}", body={"is_paused": True})

    def trigger(
        self,
        dag_id: str,
        *,
        run_id: str | None = None,
        conf: dict[str, Any] | None = None,
        logical_date: datetime | None = None,
        data_interval: tuple[datetime, datetime] | None = None,
    ) -> str:
        """Queue a manual run, which starts once the DAG is not paused, and return its id.

        An interval needs a logical date, which no other run of the DAG may have: it defaults to now.

        Raises:
            ConfigurationError: when Airflow refuses the params in `conf`, the id or the date.
        """
        if data_interval and logical_date is None:
            logical_date = datetime.now(UTC)
        body: dict[str, Any] = {
            "dag_run_id": run_id,
            "conf": conf or {},
            "logical_date": logical_date.isoformat() if logical_date else None,
        }
        if data_interval:
            body["data_interval_start"], body["data_interval_end"] = (t.isoformat() for t in data_interval)
        queued: str = self._call("POST", f"/api/v2/dags/{dag_id}/dagRuns", body=body)["dag_run_id"]
        return queued

    def wait(
        self,
        dag_id: str,
        run_id: str,
        on_progress: Callable[[Progress], None] | None = None,
        every: float = POLL_SECONDS,
    ) -> str:
        """Return the run's last state, "success" or "failed", calling `on_progress` until then.

        Airflow is asked `every` so many seconds; each question takes it some 35 ms of CPU.

        Raises:
            ServiceUnavailableError: when the servers are gone.
        """
        run = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"
        while True:
            state: str = self._call("GET", run)["state"]
            if on_progress is not None:
                on_progress(self._progress(run))
            if state in {"success", "failed"}:
                return state
            if not Airflow.running(self.home):
                raise ServiceUnavailableError(f"Airflow ended during {run_id}; its logs are in {self.home}.")
            time.sleep(every)

    def _progress(self, run: str) -> Progress:
        progress: dict[str, Counter[str]] = {}
        seen = 0
        while True:
            page = self._call("GET", f"{run}/taskInstances", params={"limit": 100, "offset": seen})
            for instance in page["task_instances"]:
                progress.setdefault(instance["task_id"], Counter())[instance["state"] or "none"] += 1
            seen += len(page["task_instances"])
            if seen >= page["total_entries"] or not page["task_instances"]:
                return progress

    def _migrate(self) -> None:
        """Bring the database to the installed Airflow, which takes seconds also when it is there already.

        A new one is a copy of the first that was made so: nothing in it is of one Airflow alone yet.
        """
        version = importlib.metadata.version("apache-airflow-core")
        done = self.home / "migrated"
        if done.exists() and done.read_text() == version:
            return
        database = self.home / "airflow.db"
        migrated = REPOSITORY / "var" / f"airflow-{version}.db"
        if not database.exists() and migrated.exists():
            shutil.copy(migrated, database)
        else:
            is_new = not database.exists()
            self._run_migration()
            if is_new:
                with files.atomic_write(migrated) as temporary:
                    shutil.copy(database, temporary)
        done.write_text(version)

    def _run_migration(self) -> None:
        migration = self._start_server("db-migrate", ["db", "migrate"])
        try:
            if migration.process.wait() != 0:
                raise ServiceUnavailableError(
                    f"Airflow's database was not migrated.\n{migration.last_lines()}"
                )
        finally:
            migration.stop()

    def _start_servers(self) -> None:
        started = datetime.now(UTC)
        servers: dict[str, Server] = {}
        for name, arguments in SERVERS.items():
            servers[name] = self._start_server(name, arguments)
            _record(self.home, {name: server.process.pid for name, server in servers.items()})

        def ready() -> bool:
            for server in servers.values():
                if server.process.poll() is not None:
                    raise ServiceUnavailableError(f"{server.name} ended at once.\n{server.last_lines()}")
            return self._healthy(started) and self._parsed(started)

        servers["api-server"].wait_until(ready, START_SECONDS)
        self._import_pools()

    def _start_server(self, name: str, arguments: list[str]) -> Server:
        return Server.start(
            f"airflow {name}",
            [*COMMAND, *arguments],
            self.home / f"{name}.log",
            env=os.environ | self.environment,
            cwd=self.home,  # stop() knows our processes by it
        )

    def _healthy(self, since: datetime) -> bool:
        try:
            # The API that tasks talk to is only built when first asked, which takes seconds.
            self._session.get(f"{self.url}/execution/health", timeout=60)
            health = self._session.get(f"{self.url}/api/v2/monitor/health", timeout=60).json()
        except requests.RequestException:
            return False
        return all(
            _not_before(since, health[name][f"latest_{name}_heartbeat"])
            for name in ("scheduler", "dag_processor")
        )

    def _parsed(self, since: datetime) -> bool:
        """Whether every file that defines a DAG was read.

        Raises:
            ServiceUnavailableError: quoting the files that do not import.
        """
        folder = Path(self.environment["AIRFLOW__CORE__DAGS_FOLDER"])
        expected = {
            file.name
            for file in folder.glob("*.py")
            if re.search(r"@dag\b|\bDAG\(", file.read_text(errors="replace"))
        }
        errors = {
            error["filename"]: error["stack_trace"]
            for error in self._call("GET", "/api/v2/importErrors", params={"limit": 100})["import_errors"]
            if _not_before(since, error["timestamp"])
        }
        parsed = {
            dag["relative_fileloc"]
            for dag in self._call("GET", "/api/v2/dags", params={"limit": 100})["dags"]
            if _not_before(since, dag["last_parsed_time"])
        }
        if expected - parsed - {Path(name).name for name in errors}:
            return False
        if errors:
            quoted = "\n".join(f"{name}:\n{trace}" for name, trace in sorted(errors.items()))
            raise ServiceUnavailableError(f"These DAG files do not import.\n{quoted}")
        return True

    def _import_pools(self) -> None:
        """What `airflow pools import dags/pools.json` does, without its two seconds of start-up."""
        pools = json.loads((REPOSITORY / "dags" / "pools.json").read_text())
        entities = [{"name": name, **pool} for name, pool in pools.items()]
        action = {"action": "create", "action_on_existence": "overwrite", "entities": entities}
        errors = self._call("PATCH", "/api/v2/pools", body={"actions": [action]})["create"]["errors"]
        if errors:
            raise ConfigurationError(f"Airflow refuses dags/pools.json: {errors}")

    def _call(
        self, method: str, path: str, *, body: object = None, params: Mapping[str, int] | None = None
    ) -> Any:
        try:
            response = self._session.request(
                method, f"{self.url}{path}", json=body, params=params, timeout=60
            )
            if response.status_code == 401:  # no token yet, or it expired
                self._log_in()
                response = self._session.request(
                    method, f"{self.url}{path}", json=body, params=params, timeout=60
                )
        except requests.RequestException as error:
            raise ServiceUnavailableError(f"Airflow at {self.url} does not answer: {error}") from None
        if response.status_code >= 500:
            raise ServiceUnavailableError(f"Airflow failed at {method} {path}: {response.text}")
        if not response.ok:
            raise ConfigurationError(f"Airflow refuses {method} {path}: {response.text}")
        return response.json()

    def _log_in(self) -> None:
        credentials = {"username": self.username, "password": self.password}
        response = self._session.post(f"{self.url}/auth/token", json=credentials, timeout=60)
        if not response.ok:
            raise ConfigurationError(f"Airflow at {self.url} refuses our password: {response.text}")
        self._session.headers["Authorization"] = f"Bearer {response.json()['access_token']}"


def stop(folder: Path) -> None:
    """End what runs of the Airflow in `folder`, whoever started it and however much of it is left."""
    home = folder.resolve()
    with ThreadPoolExecutor(len(SERVERS)) as threads:
        list(threads.map(lambda leader: _end_session(home, leader), _recorded(home).values()))
    (home / "processes.json").unlink(missing_ok=True)


def _end_session(home: Path, leader: int) -> None:
    if not _ours(home, leader):
        return
    if _alive(leader) and not _runs_tasks(leader):
        stop_group(leader)
    # The scheduler would wait for its tasks, and they may be killed at any time: the next start finds them
    # as orphans and runs them again. Its idle workers, once it is gone, ignore a polite signal.
    left = _session(leader)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=5)


def _runs_tasks(leader: int) -> bool:
    """Whether the session has process groups besides the server's own: each task is one."""
    for process in _session(leader):
        with contextlib.suppress(OSError):
            if os.getpgid(process.pid) != leader:
                return True
    return False


def _recorded(home: Path) -> dict[str, int]:
    """The session leaders that were started in `home`, by server."""
    try:
        leaders: dict[str, int] = json.loads((home / "processes.json").read_text())
    except FileNotFoundError:
        return {}
    return leaders


def _record(home: Path, leaders: Mapping[str, int]) -> None:
    _write_private(home / "processes.json", leaders)


def _session(leader: int) -> list[psutil.Process]:
    """The living processes of the session that `leader` led or leads."""
    members = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
        except (OSError, psutil.NoSuchProcess):
            continue
    return members


def _ours(home: Path, leader: int) -> bool:
    """Whether the session is one of ours, not of a program that got the same id since.

    Servers rewrite their command lines and with them their environment, but keep their working directory.
    """
    for process in _session(leader):
        try:
            if Path(process.cwd()) == home:
                return True
        except psutil.Error:
            continue
    return False


def _alive(leader: int) -> bool:
    """Whether the server itself, not just what it left behind, is there."""
    try:
        return psutil.Process(leader).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _not_before(since: datetime, time: str | None) -> bool:
    return time is not None and datetime.fromisoformat(time) >= since


def _write_private(file: Path, content: object) -> None:
    """Write JSON as a whole or not at all, for its owner's eyes only."""
    temporary = file.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps(content, indent=4))
    temporary.replace(file)
