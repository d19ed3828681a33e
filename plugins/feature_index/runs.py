"""Starting runs as the user who asked for it."""

from typing import Any
from urllib.parse import quote

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.core_api.datamodels.dag_run import TriggerDAGRunPostBody
from airflow.api_fastapi.core_api.routes.public.dag_run import trigger_dag_run
from airflow.models.dagbag import DBDagBag
from fastapi import Request
from fastapi.responses import RedirectResponse
from sqlalchemy.orm import Session


def start_run(
    request: Request, dag_id: str, conf: dict[str, Any], user: BaseUser, session: Session
) -> RedirectResponse:
    """Queue a run as Airflow's own API does, and lead to its report.

    Raises:
        HTTPException: Airflow refuses, as when the DAG is not there or a param is wrong.
    """
    body = TriggerDAGRunPostBody(logical_date=None, conf=conf)
    run = trigger_dag_run(dag_id, body, DBDagBag(), user, session, request)
    run_id = quote(run.run_id, safe="")
    return RedirectResponse(f"{request.scope['root_path']}/runs/{dag_id}/{run_id}", 303)
