"""Who may see and do what: Airflow's own rights, and forms that only our own pages can send."""

from typing import Annotated, Any
from urllib.parse import urlsplit

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, get_user, requires_access_dag
from airflow.configuration import conf
from fastapi import Depends, Form, HTTPException, Request
from itsdangerous import BadSignature, URLSafeTimedSerializer

NIGHTLY = "nightly_feature_index"
BACKFILL = "category_backfill"
RETRY = "retry_failed_images"
DAGS = (NIGHTLY, BACKFILL, RETRY)
"""Those whose runs end with a report."""

_TOKEN_SECONDS = 12 * 3_600

# Each page shows something of every DAG.
READ = [Depends(get_user)] + [
    Depends(requires_access_dag("GET", DagAccessEntity.RUN, param_dag_id=dag_id)) for dag_id in DAGS
]
"""What every route depends on."""


def start(dag_id: str) -> list[Any]:
    """What a route that starts runs of a DAG depends on besides."""
    return [
        Depends(requires_access_dag("POST", DagAccessEntity.RUN, param_dag_id=dag_id)),
        Depends(from_our_page),
    ]


def _not_from_another_site(request: Request) -> None:
    # A browser adds the cookie to whatever a page sends; the header, only what knows the token.
    if "authorization" not in request.headers and not _same_origin(request):
        raise HTTPException(403, "This request came from another site, so nothing was done.")


ASK = [*READ, Depends(_not_from_another_site)]
"""What a route depends on that takes a photo and writes nothing."""
CALL = [
    Depends(get_user),
    Depends(requires_access_dag("POST", DagAccessEntity.RUN, param_dag_id=BACKFILL)),
    Depends(_not_from_another_site),
]
"""What a route depends on that writes features at a program's request: the right to have them written."""


def form_token(user: BaseUser) -> str:
    """What a form has to carry, of use to this user alone and for twelve hours."""
    return _signer().dumps(user.get_id())


def from_our_page(request: Request, user: GetUserDep, token: Annotated[str, Form()] = "") -> None:
    """What a route that takes a form depends on: only this user's own pages can send it."""
    if not _same_origin(request):
        raise HTTPException(403, "This form came from another site, so nothing was done.")
    try:
        owner = _signer().loads(token, max_age=_TOKEN_SECONDS)
    except BadSignature:
        owner = None
    if owner != user.get_id():
        raise HTTPException(403, "The form has expired, so nothing was done. Open its page again.")


def _same_origin(request: Request) -> bool:
    if site := request.headers.get("sec-fetch-site"):
        return site == "same-origin"
    # Browsers send no Sec-Fetch-Site over plain HTTP.
    origin = request.headers.get("origin")
    ours = {request.headers.get("host"), urlsplit(conf.get("api", "base_url", fallback="")).netloc}
    return origin is None or urlsplit(origin).netloc in ours - {"", None}


def _signer() -> URLSafeTimedSerializer:
    # Not by airflow.sdk's conf: where no key is set, that gives a text which everyone knows.
    return URLSafeTimedSerializer(conf.get_mandatory_value("api", "secret_key"), salt="feature-index")
