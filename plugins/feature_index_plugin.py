"""The page Feature index in Airflow's navigation, and each run's report as a tab of the run."""

from __future__ import annotations

import functools
from typing import Any

from airflow.plugins_manager import AirflowPlugin

PREFIX = "/feature-index"


@functools.cache
def _app() -> Any:
    from plugins.feature_index.app import create_app

    return create_app()


# Every Airflow process loads this file, and only the API server ever answers a request.
async def pages(scope: Any, receive: Any, send: Any) -> None:
    """The pages' application (ASGI), made at the first request."""
    await _app()(scope, receive, send)


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
            "url_route": "feature-report",
        },
    )
