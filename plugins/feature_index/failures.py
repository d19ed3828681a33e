"""The page of failures: the ledger, and the button that tries an item again."""

from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import urlencode

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from plugins.feature_index import services
from plugins.feature_index.access import READ, RETRY, start
from plugins.feature_index.pages import page
from plugins.feature_index.runs import start_run
from tasks.runs.category_names import CategoryNames
from tasks.settings import Settings
from tasks.statuses import Status

_ROWS = 50

InLedger = Literal[""] | Status
"""A status to filter by; a form sends nothing chosen as an empty text."""

router = APIRouter(dependencies=READ, default_response_class=Response)


@router.get("/failures")
def failures(
    request: Request,
    user: GetUserDep,
    category_id: str = "",
    status: InLedger = "",
    item_id: str = "",
    sort: Literal["last", "item"] = "last",
    after_last_at: datetime | None = None,
    after_item_id: str = "",
) -> Response:
    """The ledger, a page at a time."""
    settings = Settings.load()
    ledger = services.ledger(settings)
    # It may be copied from a page, with its name.
    category_id = CategoryNames.load(settings).id_of(category_id)
    filters = {"category_id": category_id, "status": str(status), "item_id": item_id}
    found = ledger.page(
        category_id=category_id,
        status=Status(status) if status else None,
        item_id=item_id,
        latest_first=sort == "last",
        after=(after_last_at, after_item_id) if after_last_at else None,
        at_most=_ROWS + 1,
    )
    shown = found[:_ROWS]
    query = {name: value for name, value in filters.items() if value} | {"sort": sort}
    more = ""
    if len(found) > _ROWS:
        end = shown[-1]
        more = urlencode(query | {"after_last_at": end.last_at.isoformat(), "after_item_id": end.item_id})
    return page(
        request,
        "failures.html",
        user,
        failures=shown,
        counts=ledger.counts(),
        statuses=[status for status in Status if status.failure or status.retried],
        filters=filters,
        sort=sort,
        more=more,
    )


@router.post("/failures/retry", dependencies=start(RETRY))
async def retry(
    request: Request,
    category_id: Annotated[str, Form()] = "",
    status: Annotated[str, Form()] = "",
    item_id: Annotated[str, Form()] = "",
) -> Response:
    """Try the failures again that match all that is given; with nothing given, those that are due."""
    chosen = {"category_ids": category_id, "statuses": status, "item_ids": item_id}
    return await start_run(request, RETRY, {key: [v] for key, v in chosen.items() if v})
