"""The DAGs run by Airflow's own scheduler on a small shop; expectations are counted in the catalogue."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from local_stack import image_server
from local_stack.airflow import COMMAND, Airflow
from local_stack.shop import Shop
from tasks.runs.run import Plan, Request
from tasks.settings import REPOSITORY, Settings
from tasks.shop.ledger import Ledger
from tests.dags.webhook import webhook
from tests.shop_fixtures import remember_model

pytestmark = pytest.mark.airflow

NIGHTLY = "nightly_feature_index"
BACKFILL = "category_backfill"
RETRY = "retry_failed_images"
HOUSEKEEPING = "picture_features_housekeeping"
ITEMS = 140
PASSWORD = "s3cret-of-the-search"
HATS = "00000020"
"""A category without any of the flawed items."""
BOOTS = 'shoes/boots {{ 1 / 0 }} "신발" %s & d\'été'


@pytest.fixture(scope="module")
def stack(tmp_path_factory, elasticsearch_url):
    """A rendered shop with its servers, and Airflow's real scheduler with this repository's DAGs."""
    from elasticsearch import Elasticsearch

    folder = tmp_path_factory.mktemp("shop")
    now = datetime.now(UTC)
    shop = Shop.rendered(folder, now=now, items=ITEMS)
    index = f"dag-runs-{os.getpid()}"
    search = Elasticsearch(elasticsearch_url, request_timeout=60)
    shop.write_documents(search, index)
    model = folder / "model"
    model.symlink_to(REPOSITORY / "model" / "inception_v3")

    requested, at_request = Counter(), []

    class Counting(image_server._Handler):
        def do_GET(self):  # noqa: N802
            requested[self.path] += 1
            while at_request:
                at_request.pop()()
            super().do_GET()

    remember_model(folder / "data")
    server = image_server.ImageServer(shop.image_root, shop.image_port)
    server.RequestHandlerClass = Counting
    threading.Thread(target=server.serve_forever, daemon=True).start()
    airflow = None
    ending = ExitStack()
    hook = ending.enter_context(webhook())
    try:
        airflow = Airflow.start(
            folder / "airflow",
            shop_env={
                "AIRFLOW_CONN_SHOP_CATALOG": f"sqlite:///{shop.catalog_path}",
                # A server without security takes any log-in; its password must be seen nowhere.
                "AIRFLOW_CONN_SHOP_SEARCH": elasticsearch_url.replace("://", f"://shop:{PASSWORD}@"),
                "FEATURES_DATA_DIR": str(folder / "data"),
                "FEATURES_IMAGE_HOSTS": shop.image_hosts,
                "FEATURES_INDEX": index,
                "FEATURES_MODEL_DIR": str(model),
                # Two chunks for the night that has most to do: each costs an import of TensorFlow.
                "FEATURES_CHUNK_SIZE": "60",
                # Two bad items are a large share of nights as small as these.
                "FEATURES_FAILURE_BUDGET": "0.5",
                "AIRFLOW_CONN_FEATURE_ALERTS_WEBHOOK": json.dumps({"conn_type": "http", "host": hook.url}),
                "FEATURES_NIGHTLY_DEADLINE_HOURS": str(5 / 3600),
            },
        )
        airflow.unpause(BACKFILL)
        yield SimpleNamespace(
            airflow=airflow,
            shop=shop,
            search=search,
            index=index,
            data=folder / "data",
            model=model,
            now=now,
            requested=requested,
            at_request=at_request,
            hook=hook,
        )
    finally:
        if airflow is not None:
            airflow.stop()
        ending.close()
        server.shutdown()
        server.server_close()
        search.indices.delete(index=index, ignore_unavailable=True)
        search.close()


def _run(stack, dag_id, **how):
    run_id = stack.airflow.trigger(dag_id, **how)
    return run_id, stack.airflow.wait(dag_id, run_id), _report(stack, dag_id, run_id)


def _report(stack, dag_id, run_id):
    return json.loads((stack.data / dag_id / run_id / "report.json").read_text())


def _in_catalogue(stack, where, *parameters):
    with sqlite3.connect(stack.shop.catalog_path) as catalogue:
        return [row[0] for row in catalogue.execute(f"select item_id from items where {where}", parameters)]


def _changed_in(stack, start, end):
    return _in_catalogue(
        stack,
        "max(registered_at, coalesce(updated_at, registered_at)) >= ? "
        "and max(registered_at, coalesce(updated_at, registered_at)) < ?",
        *(f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}" for time in (start, end)),
    )


def _with_feature(stack):
    stack.search.indices.refresh(index=stack.index)
    query = {"exists": {"field": "imagenet_feature"}}
    return {
        hit["_id"] for hit in stack.search.search(index=stack.index, size=1000, query=query)["hits"]["hits"]
    }


def _with_document(stack):
    return set(_sequence_numbers(stack))


def _sequence_numbers(stack):
    stack.search.indices.refresh(index=stack.index)
    answer = stack.search.search(index=stack.index, size=1000, seq_no_primary_term=True, source=False)
    return {hit["_id"]: hit["_seq_no"] for hit in answer["hits"]["hits"]}


def _instances(stack, dag_id, run_id):
    found = stack.airflow._call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit=100")
    return found["task_instances"]


def _clear_plan(stack, dag_id, run_id):
    stack.airflow._call(
        "POST",
        f"/api/v2/dags/{dag_id}/clearTaskInstances",
        body={
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": ["plan"],
            "include_downstream": True,
            "only_failed": False,
            "reset_dag_runs": True,
        },
    )
    return stack.airflow.wait(dag_id, run_id), _report(stack, dag_id, run_id)


def test_preview_touches_nothing(stack):
    before = stack.search.indices.get_mapping(index=stack.index), _sequence_numbers(stack)
    everything = _in_catalogue(stack, "true")
    _, state, report = _run(stack, BACKFILL, conf={"all_items": True, "dry_run": True})
    assert state == "success"
    assert report["counts"] == {"current": 0, "to_do": len(everything)}
    assert report["planned"] == len(everything) >= ITEMS
    assert report["expected"]["from_runs"] == 0
    assert not stack.requested
    assert (stack.search.indices.get_mapping(index=stack.index), _sequence_numbers(stack)) == before


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        (
            {"category_ids": [HATS], "registered_from": "2026-10-02", "registered_to": "2026-10-01"},
            "ends before it starts",
        ),
        ({"category_ids": [""]}, "No category is given"),
    ],
)
def test_what_a_person_has_to_mend_ends_the_log_without_retries(stack, conf, message):
    run_id, state, report = _run(stack, BACKFILL, conf=conf)
    assert state == "failed"
    assert report["state"] == "failed"
    assert (report["planned"], report["counts"]) == (0, {})
    plan = next(task for task in _instances(stack, BACKFILL, run_id) if task["task_id"] == "plan")
    assert (plan["state"], plan["try_number"]) == ("failed", 1)
    logs = stack.airflow.home / "logs" / f"dag_id={BACKFILL}" / f"run_id={run_id}" / "task_id=plan"
    lines = [json.loads(line) for line in (logs / "attempt=1.log").read_text().splitlines()]
    last = [line for line in lines if not line["event"].startswith("::")][-1]
    assert message in last["reason"]


def test_category_that_is_not_8_digits_is_refused_at_the_form(stack):
    from tasks.errors import ConfigurationError

    for conf in ({"category_ids": ["60"]}, {"category_ids": []}, {"category_ids": [], "all_items": True}):
        with pytest.raises(ConfigurationError, match="category_ids"):
            stack.airflow.trigger(BACKFILL, conf=conf)


def test_chunk_whose_task_died_is_unfinished_and_clearing_plan_does_it(stack, tmp_path):
    whole = stack.model.readlink()
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "variables").symlink_to(whole / "variables")
    (broken / "saved_model.pb").write_bytes(b"not a graph")
    hats = _in_catalogue(stack, "category_id = ?", HATS)

    def put(model):
        link = stack.model.with_name("next")
        link.symlink_to(model)
        link.replace(stack.model)

    # Planning would refuse it: it comes with the first request for a picture.
    stack.at_request.append(lambda: put(broken))
    run_id, state, report = _run(stack, BACKFILL, conf={"category_ids": [HATS]})
    stack.at_request.clear()
    put(whole)

    assert state == "failed"
    assert report["counts"] == {"unfinished": len(hats)}
    assert report["planned"] == len(hats)
    assert "unfinished" in report["reasons"][0]
    assert not _with_feature(stack)
    states = {task["task_id"]: task["state"] for task in _instances(stack, BACKFILL, run_id)}
    assert states["features.download"] == "success"
    assert states["features.extract"] == "failed"
    assert states["features.index"] == "upstream_failed"

    state, report = _clear_plan(stack, BACKFILL, run_id)
    assert state == "success"
    assert report["counts"] == {"indexed": len(hats)}
    assert _with_feature(stack) == set(hats)
    labels = {
        task["rendered_map_index"]
        for task in _instances(stack, BACKFILL, run_id)
        if task["task_id"] == "features.extract"
    }
    assert labels == {f"items 1-{len(hats)} · category {HATS} · host 127.0.0.1:{stack.shop.image_port}"}


def test_next_scheduled_night_takes_up_three_missed_ones(stack):
    night_start, night_end = stack.shop.newest_night(now=stack.now)
    last_good_end = night_start - timedelta(days=3)
    last_good = _night(last_good_end - timedelta(days=1), "the last good one")
    _ledger(stack).record(last_good, [])
    stack.airflow.unpause(NIGHTLY)
    run_id = f"scheduled__{night_end.isoformat()}"
    expected = _changed_in(stack, last_good_end - timedelta(days=1), night_end)
    assert len(expected) > 0.5 * ITEMS
    changed = _changed_in(stack, night_start, night_end)
    # No change explains why the others' documents have no feature, so the night takes these, too.
    lost = _with_document(stack) - _with_feature(stack) - set(expected)
    assert lost
    had = _with_feature(stack)
    already = had & set(expected)
    _wait_for(stack, NIGHTLY, run_id)
    state = stack.airflow.wait(NIGHTLY, run_id)
    report = _report(stack, NIGHTLY, run_id)

    assert state == "success"
    assert {origin: counts["planned"] for origin, counts in report["origins"].items()} == {
        "changed": len(changed),
        "caught_up": len(expected) - len(changed),
        "reconciled": len(lost),
    }
    assert report["planned"] == len(expected) + len(lost)
    assert report["interval"] == {"start": night_start.isoformat(), "end": night_end.isoformat()}
    assert report["notices"] == []
    assert _ledger(stack).covered_until(NIGHTLY, night_end) == night_end
    assert report["counts"] == {
        "current": len(already),
        "indexed": len(expected) + len(lost) - len(already) - 3,
        "waiting_for_document": 1,
        "gone": 1,
        "corrupt": 1,
    }
    bad = {failure["status"]: failure["item_id"] for failure in report["failures"]}
    assert {status: _name(stack, item) for status, item in bad.items()} == {
        "gone": "picture missing",
        "corrupt": "picture corrupt",
        "waiting_for_document": "no document",
    }
    assert report["chunks"] > 1
    assert _with_feature(stack) == (had | set(expected) | lost) - set(bad.values())


def test_clearing_plan_does_only_what_is_not_current(stack):
    night_start, night_end = stack.shop.newest_night(now=stack.now)
    run_id = f"scheduled__{night_end.isoformat()}"
    before = _report(stack, NIGHTLY, run_id)
    # What was lost is not any more.
    planned = before["planned"] - before["origins"]["reconciled"]["planned"]
    # The ledger forgets the nights before, so that Airflow is asked: it knows one that succeeded, one that
    # failed, and one that somebody started.
    _ledger(stack).uncover(NIGHTLY, "the last good one")
    first = night_start - timedelta(days=3)
    _pretend_runs(
        stack,
        [
            (run_type, first + timedelta(days=days), ended)
            for days, run_type, ended in (
                (0, "scheduled", "success"),
                (1, "scheduled", "failed"),
                (2, "manual", "success"),
            )
        ],
    )
    stack.requested.clear()
    (late,) = stack.shop.without_document
    with sqlite3.connect(stack.shop.catalog_path) as catalogue:
        row = catalogue.execute(
            "select item_id, item_name, category_id, img_url from items where item_id = ?", (late,)
        )
        document = dict(zip(("item_id", "item_name", "category_id", "img_url"), row.fetchone(), strict=True))
    stack.search.index(index=stack.index, id=late, document=document, refresh=True)

    state, report = _clear_plan(stack, NIGHTLY, run_id)
    assert state == "success"
    assert report["counts"] == {"current": planned - 3, "indexed": 1, "gone": 1, "corrupt": 1}
    assert report["start"] == before["start"]
    assert "from Airflow's history" in " ".join(report["notices"])
    # The missing picture's 404 is final, so each of the three is asked for once.
    assert sum(stack.requested.values()) == 3
    assert late in _with_feature(stack)


def test_same_night_again_downloads_and_writes_only_what_failed_and_a_new_url(stack):
    night = stack.shop.newest_night(now=stack.now)
    items = _changed_in(stack, *night)
    flawed = 2
    changed = sorted(set(items) & _with_feature(stack))[0]
    with sqlite3.connect(stack.shop.catalog_path) as catalogue:
        catalogue.execute("update items set img_url = img_url || '?v=2' where item_id = ?", (changed,))
        (url,) = catalogue.execute("select img_url from items where item_id = ?", (changed,)).fetchone()
    stack.search.update(index=stack.index, id=changed, doc={"img_url": url}, refresh=True)
    before = _sequence_numbers(stack)
    stack.requested.clear()
    _, state, report = _run(stack, NIGHTLY, data_interval=night)
    assert state == "success"
    assert report["planned"] == len(items)
    assert report["counts"] == {"current": len(items) - flawed - 1, "indexed": 1, "gone": 1, "corrupt": 1}
    assert sum(stack.requested.values()) == flawed + 1
    held = stack.search.get(index=stack.index, id=changed)["_source"]
    assert held["imagenet_feature_img_url"] == url
    after = _sequence_numbers(stack)
    assert {item for item in after if after[item] != before[item]} == {changed}


def test_failed_items_are_in_the_ledger_and_tried_again_by_hand(stack):
    from tasks.statuses import Status

    ledger = _ledger(stack)
    assert {_name(stack, row.item_id): row.status for row in ledger.matching()} == {
        "picture missing": "gone",
        "picture corrupt": "corrupt",
    }
    (gone,) = ledger.matching(statuses=[Status.GONE])
    assert gone.attempts >= 2, "the night ran more than once"
    with sqlite3.connect(stack.shop.catalog_path) as catalogue:
        (good,) = catalogue.execute("select img_url from items where category_id = ?", (HATS,)).fetchone()
        catalogue.execute(
            "update items set img_url = ?, category_id = ? where item_id = ?", (good, BOOTS, gone.item_id)
        )
    stack.search.update(index=stack.index, id=gone.item_id, doc={"img_url": good}, refresh=True)
    stack.requested.clear()

    stack.airflow.unpause(RETRY)
    # The form sends a line left empty as an empty string.
    conf = {"statuses": ["gone"], "item_ids": [""]}
    run_id, state, report = _run(stack, RETRY, conf=conf)
    assert state == "success"
    assert (report["planned"], report["counts"]) == (1, {"indexed": 1})
    # Whatever a category's id is, Airflow shows it as it is.
    labels = {task["rendered_map_index"] for task in _instances(stack, RETRY, run_id)} - {None}
    assert labels == {f"items 1-1 · category {BOOTS} · host 127.0.0.1:{stack.shop.image_port}"}
    assert sum(stack.requested.values()) == 1
    assert gone.item_id in _with_feature(stack)
    assert [row.status for row in ledger.matching()] == [Status.CORRUPT]

    # Nothing is due yet, so an hourly run does nothing.
    _, state, report = _run(stack, RETRY)
    assert (state, report["planned"]) == ("success", 0)
    assert sum(stack.requested.values()) == 1


def test_force_does_all_again(stack):
    """How is tested without Airflow: here, that the form's word gets to the plan."""
    hats = _in_catalogue(stack, "category_id = ?", HATS)
    conf = {"category_ids": [HATS], "force": True, "dry_run": True}
    _, _, report = _run(stack, BACKFILL, conf=conf)
    assert report["counts"] == {"current": 0, "to_do": len(hats)}


def test_a_run_tells_how_far_it_is_and_leaves_an_event_with_its_counts(stack):
    hats = _in_catalogue(stack, "category_id = ?", HATS)
    run_id, _, _ = _run(stack, BACKFILL, conf={"category_ids": [HATS]})
    preview, _, _ = _run(stack, BACKFILL, conf={"category_ids": [HATS], "dry_run": True})
    call = stack.airflow._call
    store = f"/api/v2/dags/{BACKFILL}/dagRuns/{run_id}/taskInstances/plan/state-store"
    entries = call("GET", store)["task_state_store"]
    told = {entry["key"]: entry["value"] for entry in entries}
    assert told["progress"].startswith(f"{len(hats)} done, ")
    events = call("GET", "/api/v2/assets/events", params={"limit": 100})["asset_events"]
    of_run = {event["source_run_id"]: event["extra"]["counts"] for event in events}
    assert of_run[run_id] == {"planned": len(hats), "current": len(hats)}
    assert preview not in of_run


def test_past_nights_by_backfill_create(stack):
    newest = stack.shop.newest_night(now=stack.now)[0]
    nights = [newest - timedelta(days=days) for days in (5, 4)]
    first, last = (_seoul(night) for night in nights)
    # SQLite refuses at once to write what was read before another wrote, as the scheduler does when it starts
    # the first run of the backfill while the command makes the next.
    stack.airflow.pause(NIGHTLY)
    answer = subprocess.run(
        [*COMMAND, "backfill", "create", "--dag-id", NIGHTLY, "--from-date", first, "--to-date", last],
        env=os.environ | stack.airflow.environment,
        capture_output=True,
        text=True,
        cwd=stack.airflow.home,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    stack.airflow.unpause(NIGHTLY)
    for night in nights:
        end = night + timedelta(days=1)
        run_id = f"backfill__{end.isoformat()}"
        _wait_for(stack, NIGHTLY, run_id)
        assert stack.airflow.wait(NIGHTLY, run_id) == "success"
        report = _report(stack, NIGHTLY, run_id)
        assert report["planned"] == len(_changed_in(stack, night, end)) > 0
        assert report["start"] == night.isoformat()


def test_a_night_that_is_overdue_or_fails_is_alerted_once(stack):
    whole = stack.model.readlink()
    stack.model.unlink()
    run_id, state, report = _run(stack, NIGHTLY, data_interval=stack.shop.newest_night(now=stack.now))
    stack.model.symlink_to(whole)
    assert state == "failed"

    def told(what):
        return [body for _, body in stack.hook.posts if (body["run"], body["what"]) == (run_id, what)]

    _until(lambda: told("failed"))
    [failed] = told("failed")
    assert report["reasons"][0] in failed["why"]
    # Every night here takes longer than the seconds that this stack gives it.
    _until(lambda: any(body["what"] == "overdue" for _, body in stack.hook.posts))
    overdue = Counter(body["run"] for _, body in stack.hook.posts if body["what"] == "overdue")
    assert set(overdue.values()) == {1}
    assert {body["dag"] for _, body in stack.hook.posts} == {NIGHTLY}


def test_housekeeping_removes_what_expired_and_nothing_else(stack):
    def old_plan(dag, run):
        picture = stack.data / dag / run / "plan-0123456789ab" / "chunk-0000" / "pictures.parquet"
        picture.parent.mkdir(parents=True)
        picture.write_bytes(b"old")
        for path in (picture, picture.parent, picture.parent.parent):
            os.utime(path, (0, 0))
        return picture.parent.parent

    run_id = "by_hand"
    expired = old_plan("command_line", "long ago")
    # As if the run that removes were one with plans itself: it is running, whatever the clock says.
    running = old_plan(HOUSEKEEPING, run_id)
    before = {path for path in stack.data.rglob("*") if path.is_file()}
    # In this order: the scheduler may start a run of its own once the DAG is not paused.
    stack.airflow.trigger(HOUSEKEEPING, run_id=run_id)
    stack.airflow.unpause(HOUSEKEEPING)
    assert stack.airflow.wait(HOUSEKEEPING, run_id) == "success"
    after = {path for path in stack.data.rglob("*") if path.is_file()}
    assert before - after == {expired / "chunk-0000" / "pictures.parquet"}
    assert not expired.parent.exists()
    assert running.is_dir()


def test_no_password_is_in_logs_reports_or_xcom(stack):
    logs = [path for path in (stack.airflow.home / "logs").rglob("*.log") if path.is_file()]
    assert any("task_id=features.index" in str(path) for path in logs)
    reports = list(stack.data.rglob("report.json"))
    assert reports
    # Whatever a task pushed, and every run's conf, is in Airflow's database.
    everything = [*logs, *reports, *stack.airflow.home.glob("*.db*")]
    assert any(path.suffix == ".db" for path in everything)
    assert [path for path in everything if PASSWORD.encode() in path.read_bytes()] == []


def _name(stack, item_id):
    """What is wrong with an item, as its name says in brackets."""
    with sqlite3.connect(stack.shop.catalog_path) as catalogue:
        (name,) = catalogue.execute("select item_name from items where item_id = ?", (item_id,)).fetchone()
    return name.rpartition("(")[2].rstrip(")")


def _seoul(time):
    return (time + timedelta(hours=9)).strftime("%Y-%m-%dT%H:%M:%S+09:00")


def _wait_for(stack, dag_id, run_id):
    """Until the scheduler has made the run."""
    for _ in range(120):
        runs = stack.airflow._call("GET", f"/api/v2/dags/{dag_id}/dagRuns?limit=100")["dag_runs"]
        if run_id in {run["dag_run_id"] for run in runs}:
            return
        threading.Event().wait(0.5)
    raise AssertionError(f"no run {run_id}, only {[run['dag_run_id'] for run in runs]}")


def _until(holds):
    """Until it does, for three minutes at most."""
    deadline = time.monotonic() + 180
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.25)


def _ledger(stack):
    stack.data.mkdir(exist_ok=True)  # no run may have been there yet
    return Ledger(None, Settings(data_dir=stack.data))


def _night(start, run_id):
    """The plan of a scheduled night that had nothing to do."""
    interval = (start, start + timedelta(days=1))
    request = Request(NIGHTLY, run_id, *interval, interval=interval, scheduled=True)
    return Plan(Path(run_id), request, "v", planned=0, current=0, created_at=interval[1])


def _pretend_runs(stack, runs):
    """Put runs of the past into Airflow's database, of which each is its type, the start of its day and its
    state: time cannot be waited for."""
    program = """
import json, sys
from datetime import datetime, timedelta
from airflow.models.dag_version import DagVersion
from airflow.models.dagbag import DBDagBag
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.timetables.base import DataInterval
from airflow.utils.session import create_session
from airflow.utils.types import DagRunTriggeredByType, DagRunType
dag_id, runs = sys.argv[1], json.loads(sys.argv[2])
with create_session() as session:
    plan = DBDagBag().get_latest_version_of_dag(dag_id, session=session).get_task("plan")
    version = DagVersion.get_latest_version(dag_id, session=session)
    for run_type, start, state in runs:
        start = datetime.fromisoformat(start)
        end = start + timedelta(days=1)
        run = DagRun(
            dag_id=dag_id, run_id=f"{run_type}__{end.isoformat()}", logical_date=start,
            data_interval=DataInterval(start, end), run_after=end, run_type=DagRunType(run_type), state=state,
            triggered_by=DagRunTriggeredByType.TEST,
        )
        session.add(run)
        session.flush()
        session.add(TaskInstance(plan, dag_version_id=version.id, run_id=run.run_id, state=state))
"""
    given = [(run_type, start.isoformat(), state) for run_type, start, state in runs]
    subprocess.run(
        [sys.executable, "-c", program, NIGHTLY, json.dumps(given)],
        env=os.environ | stack.airflow.environment,
        check=True,
        capture_output=True,
        cwd=Path(stack.airflow.home),
    )
