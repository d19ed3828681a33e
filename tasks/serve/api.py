"""The HTTP API of the inference process: what it takes, what it answers, and how much of it at once."""

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

from tasks.errors import ConfigurationError, FeatureIndexError, ServiceUnavailableError
from tasks.runs.category_names import CategoryNames
from tasks.serve.answers import (
    CODES,
    FINGERPRINT_HEADER,
    MEANINGS,
    VERSION_HEADER,
    InferenceError,
    refused,
)
from tasks.serve.concurrency import ConcurrencyLimit
from tasks.serve.features import Feature, Features
from tasks.serve.photos import SETTING_BYTES, Asked, PhotoSearch, asked
from tasks.serve.saving import Saving
from tasks.settings import Settings
from tasks.shop.catalogue import can_be_id
from tasks.statuses import Status

log = logging.getLogger(__name__)

JSON_BYTES = 65_536
"""Bytes of a request's JSON at most; a URL has 8,191 characters."""

_EXAMPLE_URL = "https://img.example.org/4816000185.jpg"

Given = TypeVar("Given", bound=BaseModel)

router = APIRouter()


def _an_id(text: str) -> str:
    if not can_be_id(text):
        raise ValueError("it cannot be a document's id, which has 1 to 512 bytes")
    return text


def _a_category_id(text: str, info: ValidationInfo[Settings]) -> str:
    settings = info.context
    if not settings.is_category_id(text):
        raise ValueError(f"it does not match FEATURES_CATEGORY_PATTERN, {settings.category_pattern!r}")
    return text


class SaveImagenetFeature(BaseModel):
    """Whose feature to add, and the picture to compute it from."""

    # Ids are text: a number would have lost its leading zeros.
    model_config = ConfigDict(strict=True)

    item_id: Annotated[
        str,
        AfterValidator(_an_id),
        Field(examples=["4816000185"], description="the document's id"),
    ]
    img_url: Annotated[str, Field(examples=[_EXAMPLE_URL])]


class SaveAllImageInfo(SaveImagenetFeature):
    """A whole document."""

    item_name: Annotated[str, Field(examples=["blue shirt"])]
    category_id: Annotated[
        str,
        AfterValidator(_a_category_id),
        Field(examples=["00000030"], description="as FEATURES_CATEGORY_PATTERN says"),
    ]


class Saved(BaseModel):
    """What was done."""

    item_id: Annotated[str, Field(examples=["4816000185"])]
    status: Annotated[str, Field(examples=["indexed"])]
    imagenet_feature_version: Annotated[str, Field(examples=["inception_v3-71715aec4c39-pad299"])]
    index: Annotated[str, Field(examples=["img_list"])]


class ImagenetFeature(BaseModel):
    """A picture's feature."""

    imagenet_feature: Annotated[list[float], Field(min_length=2048, max_length=2048)]


class Found(BaseModel):
    """An item that looks like a photo."""

    model_config = ConfigDict(populate_by_name=True)

    path: Annotated[str | None, Field(examples=[_EXAMPLE_URL], description="the URL of its picture")]
    category: Annotated[str | None, Field(alias="class", examples=["00000030"])]
    item_id: Annotated[str, Field(examples=["4816000185"])]
    score: Annotated[float, Field(examples=[0.83], description="the cosine of the angle between features")]


class Probability(BaseModel):
    """How likely a photo is of a category."""

    model_config = ConfigDict(populate_by_name=True)

    category: Annotated[str, Field(alias="class", examples=["00000030"])]
    probability: Annotated[float, Field(examples=[0.91])]


class Problem(BaseModel):
    """What became of a request, in a word and in a sentence."""

    status: str
    message: str


class Refusal(BaseModel):
    """Why it was not done."""

    error: Problem


class Health(BaseModel):
    """What the process is, and how busy."""

    feature_version: str
    device: str
    precision: str
    requests: int
    """Under way."""
    most_requests: int
    pictures: int
    """Computed since the start, in so many `batches`."""
    batches: int


_REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {
        "model": Refusal,
        "description": " ".join(f"`{name}`: {MEANINGS[name]}" for name in CODES if CODES[name] == code),
    }
    for code in sorted(set(CODES.values()))
}
"""The answers of every operation where something is not done."""


@dataclass(frozen=True)
class Service:
    """What the operations work with."""

    features: Features
    documents: Saving
    """Takes the features of documents that are there."""
    whole_documents: Saving
    photos: PhotoSearch
    limit: ConcurrencyLimit
    settings: Settings


def create_app(service: Service) -> FastAPI:
    """The application of a running service."""
    app = FastAPI(openapi_url=None)
    app.state.service = service
    app.include_router(router)
    for kind in (FeatureIndexError, RequestValidationError, MemoryError, Exception):
        app.add_exception_handler(kind, _answer)
    return app


def schema(title: str, version: str) -> dict[str, Any]:
    """The operations as OpenAPI describes them."""
    app = FastAPI(title=title, version=version)
    app.include_router(router)
    return app.openapi()


async def body_of(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        InferenceError: it has more than `most` bytes.
    """
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > most:
            raise refused(Status.TOO_LARGE, f"The request has more than {most} bytes.")
    return bytes(content)


def in_words(problems: "ValidationError | RequestValidationError") -> str:
    """What is wrong with a request, field by field."""
    return "; ".join(
        ": ".join([*(str(part) for part in problem["loc"] if part not in ("body", "query")), problem["msg"]])
        for problem in problems.errors()
    )


def _json(model: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a body that we read ourselves, not before its size is seen to be small."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["filepath"],
                    "properties": {
                        "filepath": {
                            "type": "string",
                            "format": "binary",
                            "description": "the photo",
                            "examples": ["@photo.jpg"],
                        },
                        "setting": {
                            "type": "string",
                            "description": "JSON: `output_limit` from 1 to 100, 12 by default; `class`, a "
                            "category to look in, by its id or as an answer names it, or `any`",
                            "examples": ['{"output_limit": 12}'],
                        },
                    },
                }
            }
        },
    }
}


@router.post("/saveImagenetFeature", responses=_REFUSALS, openapi_extra=_json(SaveImagenetFeature))
async def save_imagenet_feature(request: Request) -> Saved:
    """Compute the picture's feature and add it to the item's document, which must be there with this URL."""
    service: Service = request.app.state.service
    return await _save(request, SaveImagenetFeature, service.documents)


@router.post("/saveAllImageInfo", responses=_REFUSALS, openapi_extra=_json(SaveAllImageInfo))
async def save_all_image_info(request: Request) -> Saved:
    """Compute the feature of the picture and write the whole document."""
    service: Service = request.app.state.service
    return await _save(request, SaveAllImageInfo, service.whole_documents)


@router.get("/getImagenetFeature", responses=_REFUSALS, response_model=ImagenetFeature)
async def get_imagenet_feature(
    request: Request, img_url: Annotated[str, Query(examples=[_EXAMPLE_URL])]
) -> Response:
    """Compute the feature of the picture; nothing is written."""
    service: Service = request.app.state.service
    return _feature(service, await service.limit.run(lambda: service.features.of_url(img_url)))


@router.post("/process_image", responses=_REFUSALS, openapi_extra=_FORM)
async def process_image(request: Request) -> list[Found]:
    """Find the items that look like a photo, nearest first: of the category that the photo is taken for where
    that is as sure as 0.7, else of the two likeliest.
    """
    service: Service = request.app.state.service

    def work(given: Asked) -> list[Found]:
        vector = service.features.of_picture(given.photo).vector
        names = CategoryNames.load(service.settings)
        return [
            Found(
                path=neighbour.item.img_url,
                category=neighbour.item.category_id and names.of(neighbour.item.category_id),
                item_id=neighbour.item.item_id,
                score=neighbour.cosine,
            )
            for neighbour in service.photos.nearest(vector, given.setting)
        ]

    return await service.limit.run_after_reading(lambda: _asked(request), work)


@router.post("/predict_class", responses=_REFUSALS, openapi_extra=_FORM)
async def predict_class(request: Request) -> list[Probability]:
    """Tell which categories a photo may be of, with their probabilities, the likeliest first."""
    service: Service = request.app.state.service

    def work(given: Asked) -> list[Probability]:
        vector = service.features.of_picture(given.photo).vector
        names = CategoryNames.load(service.settings)
        return [
            Probability(category=names.of(name), probability=probability)
            for name, probability in service.photos.classes(vector)
        ]

    return await service.limit.run_after_reading(lambda: _asked(request), work)


@router.post("/feature", include_in_schema=False)
async def feature(request: Request) -> Response:
    """The feature of a picture, whose bytes are the body."""
    service: Service = request.app.state.service
    found = await service.limit.run_after_reading(
        lambda: body_of(request, service.settings.max_image_bytes), service.features.of_picture
    )
    return _feature(service, found)


@router.get("/health", include_in_schema=False)
async def health(request: Request) -> Health:
    """What the process is, and how busy."""
    service: Service = request.app.state.service
    model = service.features.model
    return Health(
        feature_version=model.version,
        device=model.device,
        precision=model.precision,
        requests=service.limit.running,
        most_requests=service.limit.most,
        pictures=service.features.pictures,
        batches=service.features.batches,
    )


async def _save(request: Request, model: type[SaveImagenetFeature], saving: Saving) -> Saved:
    service: Service = request.app.state.service
    at = datetime.now(UTC)
    given = await _parsed(request, model, service.settings)

    def work() -> None:
        saving.save(given.model_dump(), service.features.of_url(given.img_url), at)

    await service.limit.run(work)
    return Saved(
        item_id=given.item_id,
        status=Status.INDEXED,
        imagenet_feature_version=service.features.model.version,
        index=saving.index.name,
    )


async def _asked(request: Request) -> Asked:
    settings: Settings = request.app.state.service.settings
    content = await body_of(request, settings.max_image_bytes + SETTING_BYTES)
    return await asked(request, content, settings)


async def _parsed(request: Request, model: type[Given], settings: Settings) -> Given:
    try:
        return model.model_validate_json(await body_of(request, JSON_BYTES), context=settings)
    except ValidationError as error:
        raise refused("bad_request", in_words(error)) from None


def _feature(service: Service, found: Feature) -> Response:
    # By hand: it is numbers alone, which need none of a model's checks.
    content = json.dumps({"imagenet_feature": found.vector.tolist()})
    version, fingerprint = service.features.model.identity
    headers = {VERSION_HEADER: version, FINGERPRINT_HEADER: fingerprint}
    return Response(content, media_type="application/json", headers=headers)


def answer_to(error: Exception) -> Response:
    """An error as it is answered."""
    refusal = _refusal(error)
    return JSONResponse(refusal.to_json(), refusal.http_status, refusal.headers)


def _refusal(error: Exception) -> InferenceError:
    match error:
        case InferenceError():
            return error
        case RequestValidationError():
            return refused("bad_request", in_words(error))
        case ServiceUnavailableError():
            return refused("unavailable", str(error))
        case ConfigurationError():
            return refused("misconfigured", str(error))
        case MemoryError():
            log.error("Out of memory: FEATURES_SERVE_MEMORY is too little for what is asked. %s", error)
            return refused("unavailable", "The inference process has no memory left for this at the moment.")
    # The server logs it.
    return refused("failed", "An error in the program; the inference process's log has it.")


async def _answer(_: Request, error: Exception) -> Response:
    return answer_to(error)
