"""kubernetes/values.yaml against what it names of ours; no cluster and no chart is asked."""

import json
from pathlib import Path
from typing import Any

import yaml

from tasks.settings import Settings

REPOSITORY = Path(__file__).resolve().parent.parent
VALUES: dict[str, Any] = yaml.safe_load((REPOSITORY / "kubernetes" / "values.yaml").read_text())
COMPOSE = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
POOLS = json.loads((REPOSITORY / "dags" / "pools.json").read_text())
SETTINGS: dict[str, str] = yaml.safe_load(VALUES["extraConfigMaps"]["picture-features-settings"]["data"])
WORKERS = {workers["name"]: workers for workers in VALUES["workers"]["celery"]["sets"]}


def environment(entries: list[dict[str, str]]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in entries}


def test_settings_are_ours(monkeypatch) -> None:
    names = {f"FEATURES_{name.upper()}" for name in Settings.model_fields}
    assert SETTINGS.keys() <= names
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    mounts = {mount["mountPath"] for mount in VALUES["volumeMounts"]}
    assert str(settings.data_dir) in mounts
    assert settings.image_hosts


def test_workers_serve_the_dags_queues_with_room_for_their_pools() -> None:
    assert {workers["queue"] for workers in WORKERS.values()} == {
        "picture_features_io",
        "picture_features_gpu",
    }
    assert not VALUES["workers"]["celery"]["enableDefault"]
    room = {
        name: workers["replicas"] * int(environment(workers["env"])["AIRFLOW__CELERY__WORKER_CONCURRENCY"])
        for name, workers in WORKERS.items()
    }
    assert room["gpu"] == POOLS["picture_features_gpu"]["slots"]
    slots = {name: pool["slots"] for name, pool in POOLS.items()}
    assert room["io"] == 2 * (sum(slots.values()) - slots["picture_features_gpu"])
    assert int(environment(VALUES["env"])["AIRFLOW__CORE__PARALLELISM"]) >= sum(slots.values())


def test_it_is_the_image_and_the_airflow_of_docker_compose() -> None:
    assert VALUES["images"]["airflow"]["tag"] == COMPOSE["x-airflow"]["image"].partition(":")[2]
    compose = COMPOSE["x-airflow-environment"]
    for name, value in environment(VALUES["env"]).items():
        assert compose[name] == value, name
    requirements = (REPOSITORY / "requirements.in").read_text()
    assert f"apache-airflow=={VALUES['airflowVersion']} " in requirements


def test_paths_in_the_image_are_there() -> None:
    root = "/opt/picture-feature-index/"
    text = (REPOSITORY / "kubernetes" / "values.yaml").read_text()
    named = {word.removeprefix(root) for word in text.split() if word.startswith(root)}
    assert named == {"dags", "plugins", "dags/pools.json"}
    assert all((REPOSITORY / name).exists() for name in named)


def test_the_inference_process_shares_its_socket_with_the_api_server() -> None:
    server = VALUES["apiServer"]
    [inference] = server["extraContainers"]
    folder = str(Path(SETTINGS["FEATURES_SERVE_SOCKET"]).parent)
    [mount] = [m for m in server["extraVolumeMounts"] if m["mountPath"] == folder]
    assert mount in inference["volumeMounts"]
    assert mount["name"] in {volume["name"] for volume in server["extraVolumes"]}
    # And all that every other container has.
    assert inference["envFrom"] == yaml.safe_load(VALUES["extraEnvFrom"])
    assert all(mount in inference["volumeMounts"] for mount in VALUES["volumeMounts"])
