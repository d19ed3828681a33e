"""The page Feature index in Airflow's navigation, and each run's report as a tab of the run and a link of its
tasks."""

from __future__ import annotations

import functools
from typing import Any
from urllib.parse import quote, urlsplit

from airflow.plugins_manager import AirflowPlugin
from airflow.sdk import BaseOperatorLink

PREFIX = "/feature-index"
REPORT = "feature-report"


@functools.cache
def _app() -> Any:
    from plugins.feature_index.app import create_app

    return create_app()


# Every Airflow process loads this file, and only the API server ever answers a request.
async def pages(scope: Any, receive: Any, send: Any) -> None:
    """The pages' application (ASGI), made at the first request."""
    # Airflow's own application, through which pages reach its REST API; ours takes its place in the scope.
    scope["airflow"] = scope["app"]
    await _app()(scope, receive, send)


class ReportLink(BaseOperatorLink):
    """From each task of a run to the run's report.

    The API server asks for it when it shows a task, so there is one in whatever state the task is.
    """

    name = "Feature report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002
        """The path of the report's tab; empty, which shows no link, where the DAG writes no reports."""
        from airflow.sdk import conf

        from plugins.feature_index.access import DAGS

        if ti_key.dag_id not in DAGS:
            return ""
        airflow = urlsplit(conf.get("api", "base_url", fallback="")).path.rstrip("/")
        return f"{airflow}/dags/{ti_key.dag_id}/runs/{quote(ti_key.run_id, safe='')}/plugin/{REPORT}"


class FeatureIndexPlugin(AirflowPlugin):
    """Shows how far the index is covered, what runs did, and what failed."""

    name = "feature_index"
    fastapi_apps = ({"app": pages, "url_prefix": PREFIX, "name": "Feature index"},)
    # Relative, so that they also hold where Airflow lives under a path.
    external_views = (
        {
            "name": "Feature index",
            "href": f"{PREFIX[1:]}/",
            "destination": "nav",
            "url_route": "feature-index",
        },
        {
            "name": "Feature report",
            "href": f"{PREFIX[1:]}/runs/{{DAG_ID}}/{{RUN_ID}}",
            "destination": "dag_run",
            "url_route": REPORT,
        },
    )
    # Links of the tasks' operator would also be on every other Python task.
    global_operator_extra_links = (ReportLink(),)
