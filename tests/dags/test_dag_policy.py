"""What every DAG owes its operators, checked without a scheduler."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.errors import ConfigurationError
from tasks.runs.category_names import CategoryNames
from tasks.settings import Settings
from tasks.statuses import Status
from tests.shop_fixtures import remember_model

REPOSITORY = Path(__file__).resolve().parents[2]
DAGS = REPOSITORY / "dags"

FEATURE_DAGS = {"nightly_feature_index", "category_backfill", "retry_failed_images"}
"""Those with the stages from plan to summarise."""
DAG_IDS = FEATURE_DAGS | {
    "picture_features_housekeeping",
    "feature_space",
    "compact_vectors",
    "near_duplicates",
}
"""A DAG that is not named here is not tested either: add it, and its tests."""

QUEUES = {"picture_features_io", "picture_features_gpu"}
HEAVY = {"tensorflow", "tensorflow_hub", "keras", "pandas", "elasticsearch", "pyarrow"}


def _parsed(folder, **settings):
    """The DAGs as Airflow reads them with these settings, and its errors by the names of their files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(folder))
        patch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
        for name, value in settings.items():
            patch.setenv(name, value)
        patch.delitem(sys.modules, "dags.feature_stages", raising=False)  # which has read its settings
        from airflow.dag_processing.dagbag import DagBag

        bag = DagBag(str(DAGS))
    return bag.dags, {Path(name).name: error for name, error in bag.import_errors.items()}


@pytest.fixture(scope="module")
def dags(tmp_path_factory):
    dags, errors = _parsed(tmp_path_factory.mktemp("airflow"))
    assert errors == {}
    return dags


def _tasks(dags):
    return [(f"{dag.dag_id}.{task.task_id}", task) for dag in dags.values() for task in dag.tasks]


def _argument(task, name):
    """A mapped task keeps what its instances get in partial_kwargs."""
    return (
        task.partial_kwargs[name] if task.is_mapped and name in task.partial_kwargs else getattr(task, name)
    )


def test_each_dag_file_defines_the_dag_of_its_name(dags):
    assert set(dags) == DAG_IDS
    shared = set((DAGS / ".airflowignore").read_text().split())
    files = {path.stem for path in DAGS.glob("*.py") if path.name not in shared}
    assert files == DAG_IDS


def test_forms_name_the_categories_that_the_catalogue_names(tmp_path):
    names = {f"{number:08}": "{{ 7 * 7 }}" if number else "<b>hat</b>" for number in range(50)}
    CategoryNames(names).save(Settings(data_dir=tmp_path))
    dags, errors = _parsed(tmp_path, FEATURES_DATA_DIR=str(tmp_path))
    assert errors == {}
    for dag_id in ("category_backfill", "retry_failed_images"):
        told = dags[dag_id].params.get_param("category_ids").description
        assert "The shop has: 00000000 <b>hat</b>, 00000001 {{ 7 * 7 }}, 00000002" in told
        assert told.endswith("00000029 {{ 7 * 7 }}, and 20 more.")


def test_dags_are_documented_tagged_and_owned(dags):
    for dag in dags.values():
        assert dag.description
        assert dag.doc_md
        assert dag.doc_md.lstrip().startswith("# ")
        assert dag.tags == {"picture-features"}
        # It would skip summarise, and with it the report.
        assert dag.dagrun_timeout is None
        for task_id, task in _tasks({dag.dag_id: dag}):
            assert _argument(task, "owner") == "shop-search", task_id


def test_tasks_retry_and_end(dags):
    for task_id, task in _tasks(dags):
        assert _argument(task, "retries") >= 1, task_id
        assert _argument(task, "execution_timeout") is not None, task_id
        assert _argument(task, "retry_policy") is not None, task_id


def test_pools_are_those_of_pools_json_and_queues_those_of_the_workers(dags):
    pools = json.loads((DAGS / "pools.json").read_text())
    used = {_argument(task, "pool") for _, task in _tasks(dags)}
    assert used == set(pools)
    assert all(pool["slots"] > 0 for pool in pools.values())
    assert {_argument(task, "queue") for _, task in _tasks(dags)} == QUEUES


def test_a_run_may_have_as_many_tasks_as_the_pools_let(dags):
    slots = sum(pool["slots"] for pool in json.loads((DAGS / "pools.json").read_text()).values())
    for dag in (dags[dag_id] for dag_id in FEATURE_DAGS):
        assert dag.max_active_tasks == slots


def test_tonight_comes_before_retries_and_these_before_backfills(dags):
    weights = {}
    for dag_id, dag in dags.items():
        own = {_argument(task, "priority_weight") for task in dag.tasks}
        # Absolute: what comes first in a run does not come first among runs.
        assert {_argument(task, "weight_rule").value for task in dag.tasks} == {"absolute"}
        assert len(own) == 1, dag_id
        weights[dag_id] = own.pop()
    night, retry, backfill = (
        weights.pop(dag_id)
        for dag_id in ("nightly_feature_index", "retry_failed_images", "category_backfill")
    )
    assert night > retry > backfill > max(weights.values())


def test_writing_cannot_keep_runs_from_being_planned_and_summarised(dags):
    for dag in (dags[dag_id] for dag_id in FEATURE_DAGS):
        pools = {task.task_id: _argument(task, "pool") for task in dag.tasks}
        own = {pools.pop("plan"), pools.pop("summarise")}
        assert len(own) == 1
        assert own.isdisjoint(pools.values())


def test_chunks_are_named_and_summarise_runs_whatever_happened(dags):
    for dag in (dags[dag_id] for dag_id in FEATURE_DAGS):
        for stage in ("download", "extract", "index"):
            assert "label" in _argument(dag.get_task(f"features.{stage}"), "map_index_template")
        assert _argument(dag.get_task("summarise"), "trigger_rule").value == "all_done"


def test_steps_in_the_docs_are_the_tasks_in_order(dags):
    for dag in (dags[dag_id] for dag_id in FEATURE_DAGS):
        stages = ["plan", "download", "extract", "index", "summarise"]
        places = [dag.doc_md.index(f"**{stage}**") for stage in stages]
        assert places == sorted(places), dag.dag_id


def test_schedules(dags):
    from airflow.sdk import CronDataIntervalTimetable

    nightly = dags["nightly_feature_index"]
    assert isinstance(nightly.timetable, CronDataIntervalTimetable)
    assert nightly.timetable.expression == "0 0 * * *"
    assert str(nightly.timetable.timezone) == "Asia/Seoul"
    assert nightly.catchup is False
    assert nightly.max_active_runs == 1
    assert set(dags["category_backfill"].params) == {
        "category_ids",
        "all_items",
        "registered_from",
        "registered_to",
        "force",
        "dry_run",
    }
    retry = dags["retry_failed_images"]
    assert retry.timetable.expression == "30 * * * *"
    assert retry.catchup is False
    assert retry.max_active_runs == 1
    assert set(retry.params) == {"category_ids", "statuses", "item_ids"}


def test_compact_vectors_start_when_a_space_is_published_or_features_are_written(dags):
    dag = dags["compact_vectors"]
    asked = dag.timetable.asset_condition
    assert type(asked).__name__ == "AssetAny"
    assert {asset.name for asset in asked.objects} == {"picture_feature_space", "picture_features"}
    assert dag.max_active_runs == 1
    (outlet,) = dags["feature_space"].get_task("fit").outlets
    assert outlet.name == "picture_feature_space"


def test_without_a_space_compact_vectors_are_skipped(dags, tmp_path, monkeypatch):
    from airflow.sdk.exceptions import AirflowSkipException

    remember_model(tmp_path)
    monkeypatch.setenv("FEATURES_DATA_DIR", str(tmp_path))
    with pytest.raises(AirflowSkipException, match="run feature_space"):
        dags["compact_vectors"].get_task("compact").python_callable()


def test_a_shop_elsewhere_has_its_own_nights_and_categories(tmp_path):
    from airflow.sdk.exceptions import ParamValidationError

    dags, errors = _parsed(
        tmp_path,
        FEATURES_TIME_ZONE="Europe/Berlin",
        FEATURES_NIGHTLY_SCHEDULE="30 2 * * 1-5",
        FEATURES_CATEGORY_PATTERN="[a-z]+(/[a-z]+)*|7",
    )
    assert errors == {}
    timetable = dags["nightly_feature_index"].timetable
    assert (timetable.expression, str(timetable.timezone)) == ("30 2 * * 1-5", "Europe/Berlin")
    timetable = dags["feature_space"].timetable
    assert (timetable.expression, str(timetable.timezone)) == ("0 7 * * 0", "Europe/Berlin")
    for dag_id in ("category_backfill", "retry_failed_images"):
        param = dags[dag_id].params.get_param("category_ids")
        good = ["shoes/boots", "shoes", "7", ""]
        assert param.resolve(good) == good
        for bad in ("00000030", "7shoes", "shoes/", "77"):
            with pytest.raises(ParamValidationError):
                param.resolve([bad])


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FEATURES_TIME_ZONE", "KST"),
        ("FEATURES_NIGHTLY_SCHEDULE", "at midnight"),
        ("FEATURES_CATEGORY_PATTERN", "[0-9"),
    ],
)
def test_a_setting_that_cannot_be_is_named_in_airflow_s_import_errors(tmp_path, variable, value):
    dags, errors = _parsed(tmp_path, **{variable: value})
    assert set(errors) >= {"nightly_feature_index.py", "category_backfill.py"}
    assert not {"nightly_feature_index", "category_backfill"} & set(dags)
    for error in errors.values():
        assert f"{variable}={value!r}" in error


def test_a_retry_offers_every_status_that_the_ledger_can_hold(dags):
    statuses = dags["retry_failed_images"].params.get_param("statuses").schema
    fine_and_done = {"current", "indexed"}
    assert set(statuses["items"]["enum"]) == {status.value for status in Status} - fine_and_done
    assert statuses["examples"] == statuses["items"]["enum"]


@pytest.mark.parametrize(
    ("value", "good"),
    [
        (["00000030"], True),
        (["00000030", "00000040", ""], True),
        ([], False),
        (["30"], False),
        (["0000003x"], False),
        (["000000300"], False),
        ([30], False),
        ("00000030", False),
        (None, True),  # nothing is given: all items, or the run is refused
    ],
)
def test_category_ids_param(dags, value, good):
    from airflow.sdk.exceptions import ParamValidationError

    param = dags["category_backfill"].params.get_param("category_ids")
    if good:
        assert param.resolve(value) == value
    else:
        with pytest.raises(ParamValidationError):
            param.resolve(value)


def _backfill(dag, **given):
    """What is asked for by a form with these values, all else left as it is."""
    from dags.category_backfill import _request

    params = {name: given.get(name, dag.params.get_param(name).value) for name in dag.params}
    return _request(
        {"params": params, "dag_run": SimpleNamespace(dag_id=dag.dag_id, run_id="manual", run_type="manual")}
    )


def test_a_backfill_takes_categories_or_all_items_and_nothing_by_itself(dags):
    backfill = dags["category_backfill"]
    request = _backfill(backfill, all_items=True)
    assert (request.all_items, request.category_ids) == (True, ())
    request = _backfill(backfill, category_ids=["all", "00000030", ""])
    assert (request.all_items, request.category_ids) == (False, ("all", "00000030"))
    for nothing in (None, [], ["", ""]):
        with pytest.raises(ConfigurationError, match="No category is given"):
            _backfill(backfill, category_ids=nothing)
    for choice in ({"category_ids": ["00000030"]}, {"registered_from": "2026-10-01"}):
        with pytest.raises(ConfigurationError, match="neither categories nor times"):
            _backfill(backfill, all_items=True, **choice)


@pytest.mark.parametrize("value", [None, [], ["", ""]])
def test_every_field_of_a_retry_may_be_left_empty(dags, value):
    from dags.retry_failed_images import _request

    retry = dags["retry_failed_images"]
    params = {name: retry.params.get_param(name).resolve(value) for name in ("category_ids", "item_ids")}
    params["statuses"] = retry.params.get_param("statuses").resolve(None if value is None else [])
    dag_run = SimpleNamespace(dag_id=retry.dag_id, run_id="manual", run_type="manual")
    request = _request({"params": params, "dag_run": dag_run})
    assert request.retry is not None
    assert not request.retry.chosen


def test_every_param_says_what_it_is(dags):
    for dag in dags.values():
        for name in dag.params:
            described = dag.params.get_param(name)
            assert described.description, (dag.dag_id, name)
            assert described.schema["title"], (dag.dag_id, name)


def _modules_after(code):
    answer = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    return {name.partition(".")[0] for name in json.loads(answer.stdout.splitlines()[-1])}


def test_parsing_the_dags_imports_nothing_heavy():
    paths = sorted(map(str, DAGS.glob("*.py")))
    loaded = _modules_after(f"import runpy\nfor path in {paths}: runpy.run_path(path)")
    assert "airflow" in loaded
    assert not loaded & HEAVY


def test_tasks_import_neither_airflow_nor_what_stands_above_them():
    files = [path.relative_to(REPOSITORY) for path in (REPOSITORY / "tasks").rglob("*.py")]
    names = [".".join(path.with_suffix("").parts) for path in files if path.stem != "__main__"]
    loaded = _modules_after("\n".join(f"import {name}" for name in names))
    assert "tasks" in loaded
    assert not loaded & {"airflow", "dags", "plugins", "local_stack"}


AIRFLOW = {
    # What Airflow documents for authors of DAGs and plugins, by the page that names it.
    # "Public Interface": airflow.sdk, all of its __all__, and the exceptions.
    "airflow.sdk": None,
    "airflow.sdk.exceptions": {
        "AirflowNotFoundException",
        "AirflowSecretsBackendAccessDenied",
        "AirflowSkipException",
    },
    # "Notifications" of the providers.
    "airflow.providers.http.notifications.http": {"HttpNotifier"},
    "airflow.providers.smtp.notifications.smtp": {"SmtpNotifier"},
    # "Plugins": the class, and how an application of a plugin knows its user and what he may do.
    "airflow.plugins_manager": {"AirflowPlugin"},
    "airflow.api_fastapi.core_api.security": {"GetUserDep", "get_user", "requires_access_dag"},
    # "Auth manager": what its methods take, and so the dependencies of "Plugins" too.
    "airflow.api_fastapi.auth.managers.models.base_user": {"BaseUser"},
    "airflow.api_fastapi.auth.managers.models.resource_details": {"DagAccessEntity"},
    # "Auth manager" reads [api] by it. There is no way around: in airflow.sdk's conf, a secret key that is
    # not set is the text {SECRET_KEY}, with which anyone could sign a form.
    "airflow.configuration": {"conf"},
}
"""What dags/ and plugins/ may import of Airflow, and nothing else: the rest changes without notice."""


def test_dags_and_plugins_use_nothing_of_airflow_that_is_private():
    from airflow import sdk

    used = {}
    for folder in ("dags", "plugins"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    # By name, so that each name can be compared.
                    assert not [a.name for a in node.names if a.name.partition(".")[0] == "airflow"], path
                elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "airflow":
                    used.setdefault(node.module, set()).update(alias.name for alias in node.names)
                # Nor by a name that is put together at run time.
                assert not (isinstance(node, ast.Name) and node.id == "__import__"), path
                assert not (isinstance(node, ast.Attribute) and node.attr == "import_module"), path
    assert used.pop("airflow.sdk") <= set(sdk.__all__)
    assert used == {module: names for module, names in AIRFLOW.items() if names}


def _events(*counts):
    """What a run gets that other runs have started."""
    events = [SimpleNamespace(extra={"counts": count} if count is not None else {}) for count in counts]
    return {"triggering_asset_events": {"picture_features": events} if events else {}}


def test_near_duplicates_are_sought_when_a_run_has_written_features(dags):
    from dags.near_duplicates import _written

    (asset,) = dags["near_duplicates"].timetable.asset_condition.objects
    assert asset.name == "picture_features"
    assert _written(_events())
    assert _written(_events({"planned": 3, "current": 3}, {"planned": 5, "indexed": 1}))
    assert not _written(_events({"planned": 3, "current": 3}, {}, None))
