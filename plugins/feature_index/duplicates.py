"""The page of near-duplicates: the largest groups of items that show the same picture."""

from typing import Annotated

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import Response

from plugins.feature_index import services
from plugins.feature_index.access import READ
from plugins.feature_index.pages import page
from tasks.inference.model import feature_version
from tasks.settings import Settings

_GROUPS = 20
_SHOWN = 6
"""Items of each, where all are shown."""
_MOST_ITEMS = 200
"""Of one group."""

router = APIRouter(dependencies=READ, default_response_class=Response)


@router.get("/duplicates")
def duplicates(
    request: Request, user: GetUserDep, group: Annotated[str, Query(max_length=200)] = ""
) -> Response:
    """The largest groups, some items of each; or more items of one."""
    settings = Settings.load()
    index = services.item_queries(settings)
    version = feature_version(settings)
    if group:
        found = index.group(group, version, _MOST_ITEMS)
        if not found.documents:
            raise HTTPException(404, "No item with a feature of the current version is in this group.")
        groups = [found]
    else:
        groups = index.largest_groups(version, _GROUPS, _SHOWN)
    return page(
        request,
        "duplicates.html",
        user,
        image_hosts=settings.image_hosts,
        groups=groups,
        one=bool(group),
        most_groups=_GROUPS,
    )
