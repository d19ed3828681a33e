"""The Airflow of a shop: one start for most tests, each of which uses it as a person or a command would."""

import json
import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
import requests
import sqlalchemy as sa

from local_stack import airflow as module
from local_stack.airflow import Airflow, command_environment, environment, stop
from tasks.errors import ConfigurationError, ServiceUnavailableError

pytestmark = pytest.mark.airflow

REPOSITORY = Path(__file__).resolve().parents[2]

PROBE = """
import json, os, time
from pathlib import Path
from airflow.sdk import Param, dag, task, task_group

@dag(schedule=None, params={"fail": False, "sleep": 0, "numbers": Param([1, 2], type="array")})
def probe():
    @task(pool="picture_features_image_download")
    def plan(params=None, data_interval_start=None, data_interval_end=None):
        interval = [str(data_interval_start), str(data_interval_end)]
        file = Path(os.environ["PROBE_FILE"])
        part = file.with_suffix(".part")
        part.write_text(json.dumps({"interval": interval, "pid": os.getpid()}))
        part.replace(file)  # once it is there, it is whole
        if params["fail"]:
            raise ValueError("asked to fail")
        time.sleep(params["sleep"])
        return params["numbers"]

    @task(pool="picture_features_gpu")
    def extract(number):
        return number

    @task(pool="picture_features_elasticsearch")
    def index(number):
        return number

    @task_group
    def chunk(number):
        index(extract(number))

    chunk.expand(number=plan())

probe()
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("shop")
    (folder / "dags").mkdir()
    (folder / "dags" / "probe.py").write_text(PROBE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__CORE__DAGS_FOLDER", str(folder / "dags"))
        patch.setenv("AIRFLOW__CORE__PLUGINS_FOLDER", str(folder / "plugins"))
        yield folder


@pytest.fixture(scope="module")
def airflow(shop: Path) -> Iterator[Airflow]:
    started = Airflow.start(shop / "airflow", shop_env={"PROBE_FILE": str(shop / "probe.json")})
    started.unpause("probe")
    yield started
    started.stop()


def probed(airflow: Airflow) -> dict:
    return json.loads(Path(airflow.environment["PROBE_FILE"]).read_text())


def processes_in(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == folder:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_run_gets_its_interval_and_reports_its_progress(airflow: Airflow) -> None:
    interval = (datetime(2026, 10, 1, 15, tzinfo=UTC), datetime(2026, 10, 2, 15, tzinfo=UTC))
    progress = []
    run_id = airflow.trigger("probe", conf={"numbers": [1, 2, 3]}, data_interval=interval)
    assert airflow.wait("probe", run_id, progress.append) == "success"
    assert probed(airflow)["interval"] == [str(time) for time in interval]
    assert progress[-1] == {
        "plan": Counter(success=1),
        "chunk.extract": Counter(success=3),
        "chunk.index": Counter(success=3),
    }


def test_a_run_without_a_date_has_no_interval_and_failure_is_told(airflow: Airflow) -> None:
    run_id = airflow.trigger("probe", run_id="fails", conf={"fail": True})
    assert run_id == "fails"
    assert airflow.wait("probe", run_id) == "failed"
    assert probed(airflow)["interval"] == ["None", "None"]


def test_what_airflow_refuses_says_why(airflow: Airflow) -> None:
    with pytest.raises(ConfigurationError, match="is not of type 'array'"):
        airflow.trigger("probe", conf={"numbers": "1"})
    with pytest.raises(ConfigurationError, match="nothing_like_it"):
        airflow.trigger("nothing_like_it")


def test_nobody_gets_in_without_the_password(airflow: Airflow) -> None:
    right = {"username": airflow.username, "password": airflow.password}
    wrong = right | {"password": airflow.password + "x"}
    assert requests.post(f"{airflow.url}/auth/token", json=right, timeout=30).status_code == 201
    assert requests.post(f"{airflow.url}/auth/token", json=wrong, timeout=30).status_code == 401
    assert requests.get(f"{airflow.url}/auth/token", timeout=30).status_code == 403
    assert requests.get(f"{airflow.url}/api/v2/dags", timeout=30).status_code == 401


def test_secrets_are_for_the_owner_alone(airflow: Airflow) -> None:
    for name in ("environment.json", "passwords.json"):
        assert (airflow.home / name).stat().st_mode & 0o777 == 0o600


def test_the_command_talks_to_the_stack_and_sees_the_repositorys_pools(
    airflow: Airflow, tmp_path: Path
) -> None:
    listed = subprocess.run(
        [REPOSITORY / "bin" / "airflow", "pools", "export", tmp_path / "exported.json"],
        env=os.environ | airflow.environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert listed.returncode == 0, listed.stderr
    exported = json.loads((tmp_path / "exported.json").read_text())
    assert exported.pop("default_pool")
    assert exported == json.loads((REPOSITORY / "dags" / "pools.json").read_text())


def test_a_running_stack_is_found_again(airflow: Airflow, tmp_path: Path) -> None:
    found = Airflow.running(airflow.home)
    assert found is not None
    assert found.url == airflow.url
    assert found.wait("probe", "fails") == "failed"
    assert Airflow.running(tmp_path) is None


def test_what_was_killed_is_cleared_away_with_its_tasks_and_broken_dags_are_quoted(
    airflow: Airflow, shop: Path
) -> None:
    Path(airflow.environment["PROBE_FILE"]).unlink()
    airflow.trigger("probe", conf={"sleep": 600})
    deadline = time.monotonic() + 30
    while not Path(airflow.environment["PROBE_FILE"]).exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    task = psutil.Process(probed(airflow)["pid"])
    scheduler = json.loads((airflow.home / "processes.json").read_text())["scheduler"]
    os.kill(scheduler, signal.SIGKILL)
    os.waitpid(scheduler, 0)
    assert task.is_running()
    assert Airflow.running(airflow.home) is None

    (shop / "dags" / "broken.py").write_text(
        "import a_module_nobody_has\nfrom airflow.sdk import DAG\nDAG('broken')\n"
    )
    with pytest.raises(ServiceUnavailableError, match=r"broken\.py(.|\n)*a_module_nobody_has"):
        Airflow.start(airflow.home, shop_env={})
    assert not task.is_running()
    assert processes_in(airflow.home) == []
    password = json.loads((airflow.home / "passwords.json").read_text())
    assert password == {airflow.username: airflow.password}


def test_a_process_that_only_has_a_recorded_id_is_left_alone(tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        (tmp_path / "processes.json").write_text(json.dumps({"scheduler": stranger.pid}))
        stop(tmp_path)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_taken_port_names_the_variable_that_moves_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigurationError, match="AIRFLOW_PORT"):
            Airflow.start(tmp_path, shop_env={}, port=taken.getsockname()[1])


def test_the_users_variables_win_except_for_which_airflow_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SHOP_CATALOG", "postgresql://mine")
    monkeypatch.setenv("AIRFLOW_HOME", "/somewhere/else")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://production")
    shop_env = {"AIRFLOW_CONN_SHOP_CATALOG": "sqlite:///theirs", "FEATURES_IMAGE_HOSTS": "127.0.0.1:1"}
    made = environment(tmp_path, shop_env=shop_env, port=1234)
    assert made["AIRFLOW_CONN_SHOP_CATALOG"] == "postgresql://mine"
    assert made["FEATURES_IMAGE_HOSTS"] == "127.0.0.1:1"
    assert made["AIRFLOW_HOME"] == str(tmp_path)
    database = sa.make_url(made["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"])
    assert (database.drivername, database.database) == ("sqlite", f"{tmp_path}/airflow.db")


def test_a_writer_waits_a_minute_for_its_turn_at_the_database(tmp_path: Path) -> None:
    made = environment(tmp_path, shop_env={}, port=1234)
    engine = sa.create_engine(made["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"])
    with engine.connect() as connection:
        assert connection.scalar(sa.text("PRAGMA busy_timeout")) == 60_000
    engine.dispose()


def test_the_command_chooses_its_shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    for name in ("AIRFLOW_HOME", "SHOP", "FEATURES_INDEX"):
        monkeypatch.delenv(name, raising=False)
    assert command_environment()["AIRFLOW_HOME"] == str(tmp_path / "var" / "airflow")

    for age, shop in enumerate(["newer", "older"]):
        file = tmp_path / "var" / shop / "airflow" / "environment.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"AIRFLOW_HOME": str(file.parent), "FEATURES_INDEX": shop}))
        os.utime(file, (1e9 - age, 1e9 - age))
    assert command_environment()["FEATURES_INDEX"] == "newer"
    monkeypatch.setenv("SHOP", "older")
    assert command_environment()["FEATURES_INDEX"] == "older"
    monkeypatch.setenv("FEATURES_INDEX", "mine")
    assert command_environment()["FEATURES_INDEX"] == "mine"
    monkeypatch.setenv("SHOP", "unknown")
    with pytest.raises(ConfigurationError, match="SHOP=unknown"):
        command_environment()
    monkeypatch.setenv("AIRFLOW_HOME", "/somewhere/else")
    assert command_environment()["AIRFLOW_HOME"] == "/somewhere/else"
