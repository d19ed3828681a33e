"""The routes of the Feature index pages."""

import itertools
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, FastAPI, Form, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from plugins.feature_index import api, duplicates, failures, services, similar
from plugins.feature_index.access import BACKFILL, DAGS, NIGHTLY, READ, start
from plugins.feature_index.bodies import LimitedBodies
from plugins.feature_index.pages import page
from plugins.feature_index.runs import start_run
from tasks.errors import ConfigurationError, FeatureIndexError, ServiceUnavailableError
from tasks.inference.model import feature_version
from tasks.runs import reports
from tasks.runs.run import Origin
from tasks.runs.run import Request as RunRequest
from tasks.search.queries import Category, ItemQueries
from tasks.settings import Settings
from tasks.statuses import Status

_TASKS = {
    "plan": "plan",
    "download": "features.download/mapped",
    "extract": "features.extract/mapped",
    "index": "features.index/mapped",
    "summarise": "summarise",
}
"""Where Airflow shows the tasks of a run, by what we call them."""

_NIGHTS = 14
_ASKED_FOR = 5_000
"""Items that failed whose documents a page asks for at most."""
_RUNS = 50

router = APIRouter(dependencies=READ, default_response_class=Response)


def create_app() -> FastAPI:
    """The application; its routes are anonymous nowhere, so FastAPI's own pages of documentation are off."""
    app = FastAPI(title="Feature index", openapi_url=None)
    app.include_router(router)
    app.include_router(failures.router)
    app.include_router(similar.router)
    app.include_router(duplicates.router)
    app.add_middleware(LimitedBodies)
    app.include_router(api.router)
    app.include_router(api.pages)
    app.add_exception_handler(FeatureIndexError, _explain)
    app.add_exception_handler(StarletteHTTPException, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_input)
    return app


@router.get("/")
def coverage(request: Request, user: GetUserDep) -> Response:
    """How far the index is covered, and what the last nights did."""
    settings = Settings.load()
    version = feature_version(settings)
    nights = list(itertools.islice(reports.recent(settings, NIGHTLY), _NIGHTS))
    index = services.item_queries(settings)
    covered = index.coverage(version)
    return page(
        request,
        "coverage.html",
        user,
        version=version,
        index=settings.index,
        coverage=covered,
        gap=_gap(settings, index, covered.documents - covered.current, version, nights),
        most_reconciled=settings.reconcile_items,
        nights=nights,
        overdue=reports.overdue_run(nights, datetime.now(UTC), settings),
    )


def _gap(
    settings: Settings, index: ItemQueries, documents: int, version: str, nights: Sequence[dict[str, Any]]
) -> reports.Gap:
    """Why so many documents have no current feature."""
    on_record = None
    with suppress(FeatureIndexError):  # the page is about the index
        ledger = services.ledger(settings)
        failures = sum(count["waiting"] + count["given_up"] for count in ledger.counts().values())
        # Documents are asked for, since an item that failed need not have one.
        if documents and failures <= _ASKED_FOR:
            item_ids = [failure.item_id for failure in ledger.matching()]
            on_record = index.without_feature(item_ids[:_ASKED_FOR], version)
    return reports.gap(documents, on_record, nights)


@router.get("/backfill")
def backfill(request: Request, user: GetUserDep, category_id: str) -> Response:
    """What a backfill of one category would do, and the button that starts it."""
    settings = Settings.load()
    category = _category(settings, category_id)
    missing = category.documents - category.current
    return page(
        request,
        "backfill.html",
        user,
        category=category,
        missing=missing,
        expected=reports.expectation(settings, missing),
    )


@router.post("/backfill", dependencies=start(BACKFILL))
async def start_backfill(request: Request, category_id: Annotated[str, Form()]) -> Response:
    """Start the backfill of one category."""
    return await start_run(request, BACKFILL, {"category_ids": [category_id]})


@router.get("/runs")
def runs(request: Request, user: GetUserDep, dag: str = "") -> Response:
    """The reports of the last runs, of one DAG or of all."""
    if dag and dag not in DAGS:
        raise HTTPException(404, "No DAG of this name writes reports.")
    found = itertools.islice(reports.recent(Settings.load(), dag or "*"), _RUNS)
    shown = [(report, reports.bottleneck(report)) for report in found]
    return page(request, "runs.html", user, runs=shown, dags=DAGS, dag=dag, most=_RUNS)


@router.get("/runs/{dag_id}/{run_id}")
def run(request: Request, user: GetUserDep, dag_id: str, run_id: str) -> Response:
    """One run's report."""
    if dag_id not in DAGS:
        raise HTTPException(404, f"Runs of this DAG have no report; those of {', '.join(DAGS)} have.")
    return page(
        request,
        "run.html",
        user,
        dag_id=dag_id,
        run_id=run_id,
        tasks=_TASKS,
        origins={origin.value: origin.meaning for origin in Origin},
        **_report(dag_id, run_id),
    )


def _report(dag_id: str, run_id: str) -> dict[str, Any]:
    try:
        # Refuses a name that would lead out of the data dir.
        request = RunRequest(dag_id, run_id)
    except ConfigurationError as error:
        raise HTTPException(404, str(error)) from None
    report = reports.read(request, Settings.load())
    meanings = {status.value: status.meaning for status in Status}
    if report is None:
        return {"report": None, "bottleneck": None, "groups": [], "categories": [], "meanings": meanings}
    return {
        "report": report,
        "bottleneck": reports.bottleneck(report),
        "groups": reports.grouped_failures(report),
        "categories": reports.named_categories(report),
        "meanings": meanings,
    }


def _category(settings: Settings, category_id: str) -> Category:
    counted = services.item_queries(settings).category(category_id, feature_version(settings))
    if not counted.documents:
        raise HTTPException(404, "The index has no documents of this category.")
    return counted


async def _explain(request: Request, error: Exception) -> Response:
    passing = isinstance(error, ServiceUnavailableError)
    title = "A service does not answer" if passing else "Configuration error"
    return page(request, "error.html", None, status=503 if passing else 500, title=title, message=str(error))


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    titles = {401: "Please log in", 403: "Not allowed", 404: "Not found", 413: "Too large"}
    return page(
        request,
        "error.html",
        None,
        status=error.status_code,
        title=titles.get(error.status_code, "Request failed"),
        message="Log in to Airflow and open this page again."
        if error.status_code == 401
        else str(error.detail),
    )


async def _refuse_input(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    names = ", ".join(sorted({str(problem["loc"][-1]) for problem in error.errors()}))
    return page(
        request,
        "error.html",
        None,
        status=422,
        title="Request failed",
        message=f"The address or the form lacks, or has a wrong value for: {names}.",
    )
