"""Tests of plugins/feature_index/runs.py: what becomes of Airflow's refusals. That runs start is shown by
test_feature_index.py, in a real Airflow."""

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse, Response

from plugins.feature_index.runs import start_run

ROOT = "/shop/airflow"


def started(airflow: FastAPI) -> Response:
    """The answer to a form that asks this Airflow for a run."""
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "scheme": "https",
        "path": f"{ROOT}/feature-index/backfill",
        "root_path": f"{ROOT}/feature-index",
        "query_string": b"",
        "server": ("127.0.0.1", 8080),
        "headers": [
            (b"host", b"shop.example"),
            (b"cookie", b"_token=t"),
            (b"origin", b"https://shop.example"),
        ],
        "airflow": airflow,
    }
    return asyncio.run(start_run(Request(scope), "backfill", {"category_ids": ["00000020"]}))


def airflow_that(answers: Any) -> FastAPI:
    """An application at the place of Airflow's that answers every start so."""
    app = FastAPI(root_path=ROOT)
    app.post("/api/v2/dags/{dag_id}/dagRuns")(answers)
    return app


def test_the_request_is_the_users_and_leads_to_the_runs_report() -> None:
    asked = []

    async def answers(dag_id: str, request: Request) -> dict[str, str]:
        asked.append((dag_id, str(request.url), dict(request.headers), await request.json()))
        return {"dag_run_id": "manual__2026-10-01T12:00:00+00:00"}

    answer = started(airflow_that(answers))
    [(dag_id, url, headers, body)] = asked
    assert (dag_id, url) == ("backfill", f"https://shop.example{ROOT}/api/v2/dags/backfill/dagRuns")
    assert headers["cookie"] == "_token=t"
    assert "authorization" not in headers
    assert body == {"logical_date": None, "conf": {"category_ids": ["00000020"]}}
    assert answer.status_code == 303
    expected = f"{ROOT}/feature-index/runs/backfill/manual__2026-10-01T12%3A00%3A00%2B00%3A00"
    assert answer.headers["Location"] == expected


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409])
def test_airflows_own_words_are_passed_on(status: int) -> None:
    def answers() -> None:
        raise HTTPException(status, "the DAG is not there")

    with pytest.raises(HTTPException) as raised:
        started(airflow_that(answers))
    assert (raised.value.status_code, raised.value.detail) == (status, "the DAG is not there")


def test_an_airflow_that_fails_is_named() -> None:
    def breaks() -> None:
        raise RuntimeError("a secret of the server")

    def garbage() -> Response:
        return PlainTextResponse("upstream", 502)

    for answers, status in ((breaks, 500), (garbage, 502)):
        with pytest.raises(HTTPException) as raised:
            started(airflow_that(answers))
        assert raised.value.status_code == status
        assert raised.value.detail == f"Airflow answered {status}; the log of its API server says why."
