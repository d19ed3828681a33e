"""Starting runs as the user who asked for it."""

from typing import Any
from urllib.parse import quote

import httpx
from fastapi import HTTPException, Request
from fastapi.responses import RedirectResponse

_CREDENTIALS = ("authorization", "cookie")
"""Headers that say whose request it is."""


async def start_run(request: Request, dag_id: str, conf: dict[str, Any]) -> RedirectResponse:
    """Queue a run through Airflow's REST API, with the credentials of this request, and lead to its report.

    Raises:
        HTTPException: Airflow refuses, as when the DAG is not there or a param is wrong.
    """
    airflow = request.scope["root_path"].rpartition("/")[0]
    url = request.url.replace(path=f"{airflow}/api/v2/dags/{dag_id}/dagRuns", query="")
    headers = {name: request.headers[name] for name in _CREDENTIALS if name in request.headers}
    # In this process: the address that the browser knows may lead nowhere from here.
    transport = httpx.ASGITransport(
        request.scope["airflow"],
        raise_app_exceptions=False,
        client=request.client or ("", 0),
    )
    async with httpx.AsyncClient(transport=transport) as client:
        answer = await client.post(str(url), json={"logical_date": None, "conf": conf}, headers=headers)
    if answer.is_error:
        raise HTTPException(answer.status_code, _reason(answer))
    run_id = quote(answer.json()["dag_run_id"], safe="")
    return RedirectResponse(f"{request.scope['root_path']}/runs/{dag_id}/{run_id}", 303)


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"Airflow answered {answer.status_code}; the log of its API server says why."
