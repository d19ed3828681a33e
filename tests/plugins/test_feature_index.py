"""The Feature index pages inside a real Airflow, with its log-in and its DAGs, and a real Elasticsearch."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pytest
import requests

from local_stack import inference
from tasks.errors import RunFailedError
from tasks.runs import reports
from tasks.runs.run import Plan, Request
from tasks.search.mapping import URL, VERSION
from tasks.serve.client import Inference
from tasks.settings import Settings
from tasks.shop.connections import Connection
from tasks.shop.ledger import ItemOutcome, Ledger
from tasks.stages import summarise
from tasks.statuses import Status
from tests.picture_files import saved
from tests.plugins.site import HOSTILE, Read, Site, named, published_space
from tests.scripted_server import Reply, ScriptedServer
from tests.shop_fixtures import NOON

pytestmark = pytest.mark.airflow

NIGHTLY, BACKFILL, RETRY = "nightly_feature_index", "category_backfill", "retry_failed_images"
# The same Airflow as it is served under a path: each request's status, where it leads, and its text.
ASK_UNDER_A_PATH = """
import json, sys
from fastapi.testclient import TestClient
from airflow.api_fastapi.app import create_app
token, *requests = sys.argv[1:]
client = TestClient(create_app("core"), cookies={"_token": token}, follow_redirects=False)
answers = [client.request(**json.loads(request)) for request in requests]
print("ANSWER" + json.dumps([[a.status_code, a.headers.get("location"), a.text] for a in answers]))
"""


SEARCHES = {"/similar", "/process_image", "/predict_class"}
"""What readers may ask for with a photo."""


def write_report(settings: Settings, dag: str, run: str, **changes: Any) -> None:
    """A report as a run writes it."""
    end = datetime.now(UTC) - timedelta(hours=1)
    report = {
        "dag": dag,
        "run": run,
        "interval": {"start": (end - timedelta(days=1)).isoformat(), "end": end.isoformat()},
        "retry": None,
        "dry_run": False,
        "planned": 10,
        "counts": {"current": 4, "indexed": 3, "gone": 3},
        "failures": [],
        "notices": [],
        "reasons": [],
        "state": "success",
        "seconds": 12.5,
        "bytes": 4_000_000,
        "requests": 6,
        "chunks": 1,
        "precision": "float32",
        "device": "cpu",
        "finished_at": end.isoformat(),
        "stages": {
            "plan": {"items": 10, "seconds": 0.1, "items_per_second": 100.0},
            "download": {"items": 6, "seconds": 1.5, "items_per_second": 4.0},
            "extract": {"items": 6, "seconds": 8.0, "items_per_second": 0.75},
            "index": {"items": 6, "seconds": 0.5, "items_per_second": 12.0},
        },
    }
    path = reports.path(Request(dag, run), settings)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(report | changes))


def paths(site: Site) -> list[tuple[str, str]]:
    filled = {"{dag_id}": NIGHTLY, "{run_id}": "any"}
    found = []
    for method, path in site.answer["routes"]:
        for name, value in filled.items():
            path = path.replace(name, value)
        found.append((method, path))
    return found


# Rights -----------------------------------------------------------------------------------------


def test_airflow_loads_the_plugin_and_none_of_its_parts_as_another(site: Site) -> None:
    assert site.answer["plugins"] == ["feature_index"]
    assert site.answer["errors"] == {}


def test_every_route_refuses_those_who_are_not_logged_in_or_have_no_rights(site: Site) -> None:
    assert len(site.answer["routes"]) >= 12
    for method, path in paths(site):
        assert site.ask(method, path, None).status_code == 401, (method, path)
        assert site.ask(method, path, "nobody").status_code == 403, (method, path)
    for path in ("/docs", "/redoc"):
        assert site.ask("GET", path, None).status_code in (401, 404)


def test_a_viewer_reads_every_page_and_starts_nothing(site: Site) -> None:
    for method, path in paths(site):
        answer = site.ask(method, path, "viewer", data={"token": site.form_token("viewer")})
        if method == "GET" or path in SEARCHES:
            # 422: it needs to know a category, or a picture; 503: no inference process runs.
            assert answer.status_code in (200, 422, 503), path
        else:
            assert answer.status_code == 403, path
    assert dag_runs(site, BACKFILL) == []


def dag_runs(site: Site, dag_id: str) -> list[dict[str, Any]]:
    return site.airflow._call("GET", f"/api/v2/dags/{dag_id}/dagRuns")["dag_runs"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
def test_forms_of_other_sites_are_refused(site: Site, headers: dict[str, str]) -> None:
    body = {"token": site.form_token(), "category_id": "00000020"}
    for method, path in paths(site):
        if method != "GET":
            assert site.ask(method, path, data=body, headers=headers).status_code == 403
    assert dag_runs(site, BACKFILL) == []


def test_a_form_needs_its_users_own_token(site: Site) -> None:
    for token in ("", "x", site.form_token("viewer")):
        answer = site.ask("POST", "/backfill", data={"token": token, "category_id": "00000020"})
        assert answer.status_code == 403
        assert "expired" in answer.text
    assert dag_runs(site, BACKFILL) == []


# Coverage and backfill --------------------------------------------------------------------------


def test_coverage_tells_of_each_category_and_links_its_gap(site: Site) -> None:
    answer = site.ask("GET", "/", "viewer")
    assert answer.status_code == 200
    assert "3 of 5 documents" in " ".join(answer.text.split())
    assert "60.0 %" in answer.text
    assert "No nightly run has succeeded yet" in answer.text
    read = Read.of(answer.text)
    assert "/feature-index/backfill?category_id=00000020" in read.hrefs
    assert "/feature-index/backfill?category_id=00000010" not in read.hrefs


def test_pages_keep_to_themselves_and_strangers_text_stays_text(site: Site) -> None:
    failures = [
        {"item_id": HOSTILE, "img_url": "javascript:alert(1)", "status": "invalid_url", "reason": HOSTILE},
        {"item_id": "2", "img_url": "https://img.example/2.jpg", "status": "gone", "reason": "404"},
    ]
    write_report(site.settings, RETRY, "hostile", failures=failures, notices=[HOSTILE])
    for path in ("/", "/runs", "/failures", f"/runs/{RETRY}/hostile"):
        answer = site.ask("GET", path)
        assert answer.status_code == 200, answer.text
        read = Read.of(answer.text)
        assert not [href for href in read.hrefs if href.startswith("javascript")]
        policy = answer.headers["Content-Security-Policy"]
        # Ours alone, which no stranger's text can pretend to be: the nonce is new in each answer.
        assert [set(script) for script in read.scripts] == [{"nonce"}]
        assert f"script-src 'nonce-{read.scripts[0]['nonce']}'" in policy
        assert read.scripts[0]["nonce"] not in site.ask("GET", path).text
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
    assert "https://img.example/2.jpg" in read.hrefs


NAMES = ["t-shirt", HOSTILE, "{{ 7 * 7 }}{% raw %}", "חולצות", "n" * 200, "&amp;"]


@pytest.mark.usefixtures("book")
@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:9])
def test_pages_show_names_of_categories_as_they_are(site: Site, name: str) -> None:
    run = f"named-{uuid.uuid4().hex}"
    write_report(site.settings, BACKFILL, run, category_ids=["00000020"], category_names={"00000020": name})
    pages = (
        "/",
        "/backfill?category_id=00000020",
        "/failures",
        f"/runs/{BACKFILL}/{run}",
        "/similar?item_id=3",
    )
    with named(site, {"00000020": name}):
        for path in pages:
            answer = site.ask("GET", path)
            assert answer.status_code == 200, answer.text
            assert f"00000020 {name}" in Read.of(answer.text).text, path
            assert "/feature-index/backfill?category_id=00000010" not in Read.of(answer.text).hrefs
            if HOSTILE in name:
                assert HOSTILE not in answer.text
        assert "/feature-index/backfill?category_id=00000020" in Read.of(site.ask("GET", "/").text).hrefs
        filtered = site.ask("GET", f"/failures?category_id={quote(f'00000020 {name}', safe='')}")
        assert len(shown_items(filtered.text)) == len(shown_items(site.ask("GET", "/failures").text)) == 50
    assert f"00000020 {name}" not in Read.of(site.ask("GET", "/").text).text


def test_a_gap_becomes_a_backfill_in_the_users_name(site: Site) -> None:
    preview = site.ask("GET", "/backfill?category_id=00000020").text
    assert "2 documents, 1 with a feature" in " ".join(preview.split())
    assert dag_runs(site, BACKFILL) == []  # looking starts nothing

    body = {"token": site.form_token(), "category_id": "00000020"}
    origin = {"Origin": site.airflow.url, "Sec-Fetch-Site": "same-origin"}
    answer = site.ask("POST", "/backfill", data=body, headers=origin)

    assert answer.status_code == 303, answer.text
    (run,) = dag_runs(site, BACKFILL)
    assert run["conf"] == {"category_ids": ["00000020"]}
    assert run["triggering_user_name"] == "admin"
    assert answer.headers["Location"].startswith(f"/feature-index/runs/{BACKFILL}/manual__")
    page = requests.get(
        site.airflow.url + answer.headers["Location"],
        cookies={"_token": site.answer["tokens"]["admin"]},
        timeout=30,
    )
    assert "No report yet" in page.text


def test_a_start_is_the_users_own_in_airflows_audit_log(site: Site) -> None:
    answer = site.ask(
        "POST",
        "/backfill",
        None,
        headers=bearer(site),
        data={"token": site.form_token(), "category_id": "00000020"},
    )
    assert answer.status_code == 303, answer.text
    run_id = unquote(answer.headers["Location"].rpartition("/")[2])
    (run,) = [run for run in dag_runs(site, BACKFILL) if run["dag_run_id"] == run_id]
    assert (run["triggering_user_name"], run["run_type"]) == ("admin", "manual")
    logs = site.airflow._call("GET", f"/api/v2/eventLogs?dag_id={BACKFILL}&event=trigger_dag_run")
    assert {entry["owner"] for entry in logs["event_logs"]} == {"admin"}
    # One entry a start, whoever asked for it.
    assert logs["total_entries"] == len(dag_runs(site, BACKFILL))


def test_a_category_s_id_may_hold_what_means_something_elsewhere(site: Site) -> None:
    (link,) = [href for href in Read.of(site.ask("GET", "/").text).hrefs if quote(HOSTILE, safe="") in href]
    form = Read.of(site.ask("GET", link.removeprefix("/feature-index")).text).values
    assert form["category_id"] == HOSTILE
    before = len(dag_runs(site, BACKFILL))
    answer = site.ask("POST", "/backfill", data=form)
    assert answer.status_code == 303, answer.text
    started = dag_runs(site, BACKFILL)
    assert len(started) == before + 1
    assert {"category_ids": [HOSTILE]} in [run["conf"] for run in started]
    filtered = site.ask("GET", f"/failures?category_id={quote(HOSTILE, safe='')}")
    assert Read.of(filtered.text).values["category_id"] == HOSTILE


def test_airflow_checks_what_a_backfill_is_asked_for(site: Site) -> None:
    before = dag_runs(site, BACKFILL)
    answer = site.ask("POST", "/backfill", data={"token": site.form_token(), "category_id": "x"})
    assert answer.status_code == 400
    # Airflow's own words for it.
    assert "category_ids" in answer.text
    assert "does not match" in answer.text
    assert dag_runs(site, BACKFILL) == before
    assert site.ask("GET", "/backfill?category_id=00000099").status_code == 404


# Runs -------------------------------------------------------------------------------------------


def test_a_report_shows_its_counts_and_bottleneck(site: Site) -> None:
    write_report(site.settings, NIGHTLY, "scheduled__2026-10-02T15:00:00+00:00", incomplete_pictures=3)
    address = f"/runs/{NIGHTLY}/scheduled__2026-10-02T15%3A00%3A00%2B00%3A00"
    assert f"/feature-index{address}" in links(site, "/runs")
    assert f"/feature-index{address}" in links(site, f"/runs?dag={NIGHTLY}")
    assert f"/feature-index{address}" in links(site, "/")
    assert f"/feature-index{address}" not in links(site, f"/runs?dag={BACKFILL}")
    assert "No nightly run has succeeded" not in site.ask("GET", "/").text
    text = site.ask("GET", address).text
    extract = text[text.index('<th scope="row">extract') :]
    assert "Bottleneck." in extract[: extract.index("</tr>")]
    assert text.count("Bottleneck.") == 1
    assert "3 pictures lack their last rows" in text
    run = f"/dags/{address.removeprefix('/runs/').replace('/', '/runs/')}"
    tasks = site.airflow._call("GET", f"/api/v2/dags/{NIGHTLY}/tasks")["tasks"]
    # Those of the group are mapped with it, one for each chunk.
    expected = {f"{run}/tasks/{t['task_id']}{'/mapped' * ('.' in t['task_id'])}" for t in tasks}
    assert len(expected) == 5
    assert {href for href in links(site, address) if href.startswith("/dags/")} == {run} | expected


def links(site: Site, path: str) -> set[str]:
    read = Read.of(site.ask("GET", path).text)
    return read.hrefs


def test_the_gap_is_explained_and_origins_are_told_apart(site: Site) -> None:
    """Items 4 and 5 have no feature; the last night found that one of them has left the catalogue."""
    without = {
        "documents": 4,
        "planned": 0,
        "on_record": 0,
        "left_catalogue": 1,
        "reconciled": 3,
        "next_nights": 0,
    }
    origins = {
        "changed": {"planned": 4, "counts": {"current": 3, "indexed": 1}},
        "caught_up": {"planned": 2, "counts": {"current": 1, "gone": 1}},
        "reconciled": {"planned": 4, "counts": {"indexed": 2, "gone": 2}},
    }
    run = "scheduled__2026-10-03T15:00:00+00:00"
    write_report(site.settings, NIGHTLY, run, without_feature=without, origins=origins)

    def explained() -> list[str]:
        text = " ".join(site.ask("GET", "/").text.split())
        listed = text.partition("Of the 2 without one:")[2].partition("</ul>")[0]
        return re.findall(r"<li>(\d+) (have|belong|are)", listed)

    assert explained() == [("1", "belong"), ("1", "are")]
    failed = Plan(Path("plan-1"), Request(NIGHTLY, "r"), "v", planned=2, current=0, created_at=NOON)
    ledger = Ledger(None, site.settings)
    # The second has no document, which the page is about.
    gone = [ItemOutcome(i, "00000020", "http://img/1.jpg", Status.GONE, None) for i in ("4", "no document")]
    ledger.record(failed, gone, now=NOON)
    try:
        assert explained() == [("1", "have"), ("1", "belong")]
    finally:
        (site.settings.data_dir / "ledger.db").unlink()

    shown = " ".join(site.ask("GET", f"/runs/{NIGHTLY}/{quote(run)}").text.split())
    for origin, results in {
        "changed": "current 3, indexed 1",
        "caught_up": "current 1, gone 1",
        "reconciled": "indexed 2, gone 2",
    }.items():
        assert re.search(rf'<th scope="row">{origin}</th><td class="number">\d</td><td>{results}</td>', shown)
    assert "4 documents had no current feature when the run was planned" in shown


def test_reports_of_runs_that_only_looked_or_were_never_planned_are_shown(site: Site) -> None:
    look = Request(BACKFILL, "look", category_ids=("00000020",), dry_run=True)
    plan = Plan(
        folder=Path("plan-1"),
        request=look,
        feature_version="v",
        planned=3,
        current=1,
        created_at=NOON,
        preview={"bytes": 5_500_000, "seconds": 41.0, "from_runs": 2},
    )
    summarise.run(plan, site.settings, Ledger(None, site.settings))
    with pytest.raises(RunFailedError):
        summarise.run_without_plan(NIGHTLY, "unplanned", site.settings, Ledger(None, site.settings))
    for path in ("/", "/runs"):
        assert site.ask("GET", path).status_code == 200
    looked = site.ask("GET", f"/runs/{BACKFILL}/look").text
    assert "to_do" in looked
    assert "5.5 MB of pictures and 41 s" in looked
    assert "planning did not finish" in site.ask("GET", f"/runs/{NIGHTLY}/unplanned").text


@pytest.mark.parametrize(
    "path",
    [
        "/runs/..%2F..%2Fsecret/x",
        f"/runs/{NIGHTLY}/..",
        f"/runs/{NIGHTLY}/%2E%2E",
        f"/runs/{NIGHTLY}/..%2F..%2Fetc",
        f"/runs/{NIGHTLY}/%2e%2e%2fsecret",
        f"/runs/{NIGHTLY}/a%00b",
        "/runs/another_dag/x",
        "/runs?dag=../*",
    ],
)
def test_no_name_leads_out_of_the_data_dir(site: Site, path: str) -> None:
    outside = site.settings.data_dir.parent / "report.json"
    outside.write_text(json.dumps({"secret": "found"}))
    session = requests.Session()
    prepared = requests.Request(
        "GET", site.airflow.url, cookies={"_token": site.answer["tokens"]["admin"]}
    ).prepare()
    prepared.url = f"{site.airflow.url}/feature-index{path}"  # as it is, without normalising
    answer = session.send(prepared, timeout=30)
    assert answer.status_code == 404 or f"/runs/{NIGHTLY}/.." in path
    assert "found" not in answer.text.lower().replace("not found", "")


def test_every_task_of_ours_leads_to_its_runs_report_whatever_its_state(site: Site) -> None:
    for dag_id, conf in ((BACKFILL, {"category_ids": ["00000020"]}), ("picture_features_housekeeping", {})):
        run_id = site.airflow.trigger(dag_id, conf=conf)
        run = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances"
        tasks = site.airflow._call("GET", run)["task_instances"]
        assert tasks
        for task in tasks:
            given = site.airflow._call(
                "GET", f"{run}/{task['task_id']}/links", params={"map_index": task["map_index"]}
            )
            link = f"/dags/{dag_id}/runs/{quote(run_id, safe='')}/plugin/feature-report"
            assert given["extra_links"] == {"Feature report": link if dag_id == BACKFILL else None}


def test_links_forms_and_redirects_hold_under_a_path(site: Site) -> None:
    write_report(site.settings, BACKFILL, "under a path")
    run_id = site.airflow.trigger(BACKFILL, conf={"category_ids": ["00000020"]})
    root = "/shop/airflow"
    report = f"/runs/{BACKFILL}/under%20a%20path"
    pages = ("/", "/runs", "/failures", "/backfill?category_id=00000020", report)
    asked = [{"method": "GET", "url": f"{root}/feature-index{page}"} for page in pages]
    form = {"token": site.form_token(), "category_id": "00000020"}
    asked.append({"method": "POST", "url": f"{root}/feature-index/backfill", "data": form})
    instance = f"{root}/api/v2/dags/{BACKFILL}/dagRuns/{quote(run_id)}/taskInstances/plan"
    asked.append({"method": "GET", "url": f"{instance}/links"})
    program = [sys.executable, "-c", ASK_UNDER_A_PATH, site.answer["tokens"]["admin"]]
    answered = subprocess.run(
        [*program, *map(json.dumps, asked)],
        env=os.environ | site.airflow.environment | {"AIRFLOW__API__BASE_URL": f"http://x.example{root}"},
        cwd=site.airflow.home,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answered.returncode == 0, answered.stderr
    *shown, started, links = json.loads(answered.stdout.partition("ANSWER")[2])

    read = [Read.of(text) for _, _, text in shown]
    assert [status for status, *_ in shown] == [200] * len(pages)
    assert {action for page in read for action in page.actions} == {
        f"{root}/feature-index/{name}" for name in ("backfill", "failures", "runs")
    }
    hrefs = {href for page in read for href in page.hrefs}
    assert all(href.startswith((f"{root}/", "#")) for href in hrefs)
    assert hrefs >= {
        f"{root}/feature-index/",
        f"{root}/feature-index/runs",
        f"{root}/feature-index/failures",
        f"{root}/feature-index/backfill?category_id=00000020",
        f"{root}/dags/{BACKFILL}/runs/under%20a%20path",
    }
    assert started[0] == 303
    assert started[1].startswith(f"{root}/feature-index/runs/{BACKFILL}/manual__")
    report = f"{root}/dags/{BACKFILL}/runs/{quote(run_id, safe='')}/plugin/feature-report"
    assert json.loads(links[2])["extra_links"] == {"Feature report": report}


# The HTTP API -----------------------------------------------------------------------------------

SAVING = {"/saveImagenetFeature", "/saveAllImageInfo"}
API_PATHS = SAVING | {"/getImagenetFeature", "/process_image", "/predict_class"}


def bearer(site: Site, role: str = "admin") -> dict[str, str]:
    return {"Authorization": f"Bearer {site.answer['tokens'][role]}"}


def error_in(answer: requests.Response) -> tuple[int, str]:
    found = answer.json()
    assert set(found) == {"error"}
    assert set(found["error"]) == {"status", "message"}
    return answer.status_code, found["error"]["status"]


def test_the_api_refuses_in_json(site: Site) -> None:
    api = [(method, path) for method, path in paths(site) if path in API_PATHS]
    assert {path for _, path in api} == API_PATHS
    for method, path in api:
        assert error_in(site.ask(method, path, None)) == (401, "not_logged_in")
        assert error_in(site.ask(method, path, "nobody")) == (403, "not_allowed")
        assert error_in(site.ask(method, path, None, headers={"Authorization": "Bearer x"}))[0] in (401, 403)
        if method == "POST":
            other = {"Origin": "http://evil.example"}
            assert error_in(site.ask(method, path, headers=other, json={})) == (403, "not_allowed")
            expected = (403, "not_allowed") if path in SAVING else (503, "unavailable")
            assert error_in(site.ask(method, path, "viewer", json={})) == expected
    assert error_in(site.ask("GET", "/getImagenetFeature", "viewer")) == (422, "bad_request")


def test_the_api_says_what_to_start_where_no_inference_process_runs(site: Site) -> None:
    answer = site.ask("GET", "/getImagenetFeature?img_url=http://img.example/1.jpg", "viewer")
    assert error_in(answer) == (503, "unavailable")
    assert "python -m tasks.serve" in answer.json()["error"]["message"]
    body = {"item_id": "1", "img_url": "http://img.example/1.jpg"}
    # With a token there is no cookie that another site's page could make use of.
    foreign = bearer(site) | {"Sec-Fetch-Site": "cross-site"}
    answer = site.ask("POST", "/saveImagenetFeature", None, headers=foreign, json=body)
    assert error_in(answer) == (503, "unavailable")


def test_the_api_is_described_to_people_and_programs(site: Site) -> None:
    described = site.ask("GET", "/openapi.json", "viewer").json()
    assert described["openapi"].startswith("3.")
    assert set(described["paths"]) == API_PATHS
    assert described["servers"] == [{"url": "/feature-index"}]
    given = described["paths"]["/saveAllImageInfo"]["post"]["requestBody"]["content"]["application/json"]
    assert set(given["schema"]["required"]) == {"item_id", "item_name", "category_id", "img_url"}
    codes = set(described["paths"]["/saveImagenetFeature"]["post"]["responses"])
    assert codes >= {"200", "401", "403", "409", "413", "422", "429", "502", "503", "504"}
    text = site.ask("GET", "/api", "viewer").text
    for path in API_PATHS:
        assert f"curl {site.airflow.url}/feature-index{path}" in text.replace("curl -G ", "curl ")
    assert f"curl -s {site.airflow.url}/auth/token" in text
    for status in ("waiting_for_document", "blocked_address", "busy"):
        assert f"<code>{status}</code>" in text
    # It asks nobody for anything: its only script stands in it.
    [(tag, attributes)] = re.findall(r"<(script|link|img)\b *([^>]*)", text)
    assert tag == "script"
    assert re.fullmatch('nonce="[^"]+"', attributes)


def test_the_api_s_requests_are_carried_out(site: Site, search_client: Any) -> None:
    """From a program with a token, through Airflow, to the document."""
    content = saved(np.full((30, 30, 3), 90, np.uint8), "PNG")
    index = site.settings.index
    with ScriptedServer() as pictures:
        environment = os.environ | site.airflow.environment | {"FEATURES_IMAGE_HOSTS": pictures.host}
        serving = inference.start(site.settings, site.settings.data_dir / "inference.log", env=environment)
        try:
            pictures.answer("/1.png", Reply(body=content))
            url = pictures.url("/1.png")
            search_client.index(index=index, id="api", document={"item_id": "api", "img_url": url})
            body = {"item_id": "api", "img_url": url}
            answer = site.ask("POST", "/saveImagenetFeature", None, headers=bearer(site), json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["status"] == "indexed"
            source = search_client.get(index=index, id="api")["_source"]
            assert (source[URL], source[VERSION]) == (url, site.answer["version"])

            got = site.ask("GET", f"/getImagenetFeature?img_url={quote(url, safe='')}", "viewer")
            assert got.headers["X-Feature-Version"] == site.answer["version"]
            np.testing.assert_allclose(
                got.json()["imagenet_feature"],
                Inference(site.settings).feature_of_picture(content),
                atol=0.02,
            )
            photo = {"filepath": ("photo.png", content, "image/png")}
            unlearnt = site.ask("POST", "/predict_class", "viewer", files=photo)
            assert error_in(unlearnt) == (500, "misconfigured")
            assert "Run the DAG feature_space" in unlearnt.json()["error"]["message"]
            any_class = {"setting": json.dumps({"output_limit": 2, "class": "any"})}
            search_client.indices.refresh(index=index)
            found = site.ask("POST", "/process_image", "viewer", files=photo, data=any_class).json()
            assert [set(one) for one in found] == [{"path", "class", "item_id", "score"}] * 2
            assert (found[0]["item_id"], found[0]["path"], found[0]["class"]) == ("api", url, None)
            assert found[0]["score"] == pytest.approx(1, abs=1e-3)
            with published_space(site, {"00000010": 0.5, "00000020": 0.5}):
                token = bearer(site, "viewer")
                classes = site.ask("POST", "/predict_class", None, headers=token, files=photo)
                assert classes.json() == [
                    {"class": category, "probability": 0.5} for category in ("00000010", "00000020")
                ]
                within = site.ask("POST", "/process_image", "viewer", files=photo).json()
                assert {one["item_id"] for one in within} == {"1", "2", "3"}
                with named(site, {"00000020": "hat"}):
                    classes = site.ask("POST", "/predict_class", "viewer", files=photo)
                    assert {one["class"] for one in classes.json()} == {"00000010", "00000020 hat"}
                    hats = {"setting": json.dumps({"class": "00000020 hat"})}
                    found = site.ask("POST", "/process_image", "viewer", files=photo, data=hats).json()
                    assert [(one["item_id"], one["class"]) for one in found] == [("3", "00000020 hat")]
            missing = {"item_id": "missing", "img_url": url}
            answer = site.ask("POST", "/saveImagenetFeature", None, headers=bearer(site), json=missing)
            assert error_in(answer) == (409, "waiting_for_document")
            large = b'{"item_id": "' + b"x" * 70_000
            answer = site.ask("POST", "/saveImagenetFeature", None, headers=bearer(site), data=large)
            assert error_in(answer) == (413, "too_large")
        finally:
            serving.stop()
            search_client.options(ignore_status=404).delete(index=index, id="api", refresh=True)


# Failures ---------------------------------------------------------------------------------------


@pytest.fixture
def book(site: Site) -> Iterator[sqlite3.Connection]:
    """Sixty failures of one minute each, written through the ledger; the SQL to look them up with."""
    plan = Plan(
        folder=Path("plan-1"),
        request=Request(NIGHTLY, "r"),
        feature_version="v",
        planned=60,
        current=0,
        created_at=NOON,
    )
    gone = [
        ItemOutcome(f"g{n:02}", "00000020", "javascript:alert(1)", Status.GONE, HOSTILE) for n in range(57)
    ]
    large = [ItemOutcome(f"t{n}", "00000010", "http://img/1.jpg", Status.TOO_LARGE, None) for n in range(3)]
    Ledger(None, site.settings).record(plan, gone + large, now=NOON)
    with closing(sqlite3.connect(site.settings.data_dir / "ledger.db")) as connection:
        yield connection
    (site.settings.data_dir / "ledger.db").unlink()


def shown_items(page: str) -> list[str]:
    return re.findall(r'<tr><th scope="row">([gt]\d+)</th>', page)


@pytest.mark.parametrize(
    ("query", "condition", "order"),
    [
        ("", "true", "last_at desc, item_id desc"),
        ("sort=item", "true", "item_id"),
        ("status=too_large&sort=item", "status = 'too_large'", "item_id"),
        ("category_id=00000020&sort=item", "category_id = '00000020'", "item_id"),
        ("item_id=g07", "item_id = 'g07'", "item_id"),
        ("item_id=g07&status=too_large", "false", "item_id"),
    ],
)
def test_failures_are_filtered_sorted_and_paged(
    site: Site, book: sqlite3.Connection, query: str, condition: str, order: str
) -> None:
    sql = f"select item_id from failures where {condition} order by {order}"
    expected = [item_id for (item_id,) in book.execute(sql)]
    seen: list[str] = []
    path: str | None = f"/failures?{query}"
    while path:
        text = site.ask("GET", path, "viewer").text
        seen += shown_items(text)
        following = [href for href in Read.of(text).hrefs if "after_item_id=" in href]
        path = following[0].removeprefix("/feature-index") if following else None
    assert seen == expected


def test_failures_say_why_and_when_and_what_is_given_up(site: Site, book: sqlite3.Connection) -> None:
    page = site.ask("GET", "/failures?sort=item&item_id=t1").text
    assert "given up" in page[page.index('<th scope="row">t1') :]
    page = site.ask("GET", "/failures?sort=item&item_id=g01").text
    row = page[page.index('<th scope="row">g01') :]
    (next_at,) = book.execute("select next_at from failures where item_id = 'g01'").fetchone()
    assert str(next_at)[:16] in row
    assert "gone" in row
    read = Read.of(page)
    assert len(read.scripts) == 1
    assert not [href for href in read.hrefs if href.startswith("javascript")]


@pytest.mark.usefixtures("book")
def test_a_failure_is_retried_in_the_users_name(site: Site) -> None:
    token = site.form_token()
    body = {"token": token, "item_id": "g07"}
    assert site.ask("POST", "/failures/retry", data=body).status_code == 303
    body = {"token": token, "status": "too_large", "category_id": "00000010"}
    assert site.ask("POST", "/failures/retry", data=body).status_code == 303
    assert site.ask("POST", "/failures/retry", data={"token": token, "status": "x"}).status_code == 400
    runs = [run for run in dag_runs(site, RETRY) if run["run_type"] == "manual"]
    assert {run["triggering_user_name"] for run in runs} == {"admin"}
    confs = [run["conf"] for run in runs]
    assert len(confs) == 2
    assert {"item_ids": ["g07"]} in confs
    assert {"category_ids": ["00000010"], "statuses": ["too_large"]} in confs


def test_connections_are_those_of_airflow(site: Site, tmp_path: Path) -> None:
    """The ledger behind a connection that stands in Airflow's database alone."""
    file = tmp_path / "elsewhere.db"
    found = Connection("feature_ledger", "sqlite", schema=str(file))
    plan = Plan(
        folder=Path("plan-2"),
        request=Request(NIGHTLY, "r"),
        feature_version="v",
        planned=1,
        current=0,
        created_at=NOON,
    )
    outcome = ItemOutcome("g99", "00000020", "http://img/1.jpg", Status.GONE, None)
    Ledger(found, site.settings).record(plan, [outcome], now=NOON)
    assert shown_items(site.ask("GET", "/failures").text) == []
    body = {"connection_id": "feature_ledger", "conn_type": "sqlite", "schema": str(file)}
    site.airflow._call("POST", "/api/v2/connections", body=body)
    try:
        assert shown_items(site.ask("GET", "/failures").text) == ["g99"]
    finally:
        site.airflow._session.delete(f"{site.airflow.url}/api/v2/connections/feature_ledger", timeout=30)
    assert shown_items(site.ask("GET", "/failures").text) == []


def test_an_address_that_makes_no_sense_is_refused(site: Site) -> None:
    for query in ("status=x", "sort=x", "after_last_at=x"):
        assert site.ask("GET", f"/failures?{query}").status_code == 422


# What is not there ------------------------------------------------------------------------------


def test_pages_say_what_to_do_where_elasticsearch_lacks_the_index(site: Site, search_client: Any) -> None:
    index = site.settings.index
    search_client.indices.close(index=index)
    try:
        answer = site.ask("GET", "/")
        assert answer.status_code in (500, 503)
        assert index in answer.text
    finally:
        search_client.indices.open(index=index, wait_for_active_shards=1)
        search_client.cluster.health(index=index, wait_for_status="yellow")
