"""The HTTP API: passes requests on to the inference process, and the page that describes it."""

import functools
import importlib.metadata
import json
from collections.abc import Callable, Coroutine, Iterator
from typing import Any
from urllib.parse import urlencode

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from plugins.feature_index.access import ASK, CALL, READ
from plugins.feature_index.pages import page
from tasks.errors import FeatureIndexError
from tasks.serve.answers import CODES, MEANINGS, InferenceError
from tasks.serve.api import JSON_BYTES, answer_to, body_of, schema
from tasks.serve.client import Inference
from tasks.serve.concurrency import ConcurrencyLimit
from tasks.serve.photos import SETTING_BYTES
from tasks.settings import Settings

_PASSED_ON = ("content-type", "retry-after", "x-feature-version")
"""Headers of an answer."""


class _JsonRoute(APIRoute):
    """Answers a program: in JSON, also where it refuses."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except (FeatureIndexError, RequestValidationError) as error:
                return answer_to(error)
            except HTTPException as error:
                status = {401: "not_logged_in", 403: "not_allowed"}.get(error.status_code, "bad_request")
                return answer_to(InferenceError(error.status_code, status, str(error.detail)))

        return answer


router = APIRouter(route_class=_JsonRoute)
pages = APIRouter(dependencies=READ, default_response_class=Response)


@router.post("/saveImagenetFeature", dependencies=CALL)
@router.post("/saveAllImageInfo", dependencies=CALL)
async def save(request: Request) -> Response:
    """Pass it on; the path names the operation."""
    body = await body_of(request, JSON_BYTES)
    return await _passed_on("POST", request.scope["route"].path, body)


@router.post("/process_image", dependencies=ASK)
@router.post("/predict_class", dependencies=ASK)
async def photo(request: Request) -> Response:
    """Pass a form with a photo on; the path names the operation."""
    body = await body_of(request, Settings.load().max_image_bytes + SETTING_BYTES)
    kind = request.headers.get("content-type", "")
    return await _passed_on("POST", request.scope["route"].path, body, kind)


@router.get("/getImagenetFeature", dependencies=READ)
async def get_imagenet_feature(img_url: str) -> Response:
    """Pass it on."""
    return await _passed_on("GET", f"/getImagenetFeature?{urlencode({'img_url': img_url})}")


@pages.get("/openapi.json")
def openapi(request: Request) -> Response:
    """The API as OpenAPI describes it."""
    return JSONResponse(_described(request.scope["root_path"]))


@pages.get("/api")
def described(request: Request, user: GetUserDep) -> Response:
    """The same for a person."""
    statuses = [(CODES[name], name, meaning) for name, meaning in MEANINGS.items()]
    origin = f"{request.url.scheme}://{request.url.netloc}"
    root = request.scope["root_path"]
    return page(
        request,
        "api.html",
        user,
        operations=list(_operations(_described(root))),
        statuses=sorted(statuses),
        address=origin + root,
        airflow_address=origin + root.rpartition("/")[0],
    )


async def _passed_on(method: str, path: str, body: bytes = b"", kind: str = "application/json") -> Response:
    inference, limit = _inference()
    answer = await limit.run(lambda: inference.request(method, path, body, kind))
    headers = {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}
    return Response(answer.body, answer.http_status, headers)


@functools.cache
def _inference() -> tuple[Inference, ConcurrencyLimit]:
    # Threads of our own: Airflow's pages are answered in those that the server has for all routes.
    settings = Settings.load()
    inference = Inference(settings)
    return inference, ConcurrencyLimit(settings.serve_requests, inference.longest)


def _described(root: str) -> dict[str, Any]:
    found = schema("Picture features", importlib.metadata.version("picture-feature-index"))
    found["servers"] = [{"url": root}]
    found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    found["security"] = [{"token": []}]
    return found


def _operations(described: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the page shows of each: method, path, what it does, fields, and what it answers."""
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            answer = _schema_in(operation["responses"]["200"], described)
            given = {field["name"]: field["schema"] for field in operation.get("parameters", ())}
            if "requestBody" in operation:
                given = _schema_in(operation["requestBody"], described)["properties"]
            examples = {name: field["examples"][0] for name, field in given.items()}
            form = "multipart/form-data" in operation.get("requestBody", {}).get("content", ())
            yield {
                "method": method.upper(),
                "path": path,
                "about": operation["description"],
                "fields": given,
                # Of what may be null as well, the type that it has else.
                "answer": {n: {**f.get("anyOf", [{}])[0], **f} for n, f in answer["properties"].items()},
                "form": examples if form else {},
                "example": json.dumps(examples) if method == "post" and not form else "",
            }


def _schema_in(content: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    """Of an object, or of the objects in a list."""
    (of_kind,) = content["content"].values()
    found: dict[str, Any] = of_kind["schema"]
    found = found.get("items", found)
    if "$ref" in found:
        found = described["components"]["schemas"][found["$ref"].rpartition("/")[2]]
    return found
