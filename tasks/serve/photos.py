"""Search by photo: what a photo shows, and the shop's items that look like it."""

import json
import math
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from tasks.inference.model import Identity
from tasks.runs.category_names import CategoryNames
from tasks.search.mapping import refuse_another_model
from tasks.search.queries import ItemQueries, Neighbour, Scope
from tasks.serve.answers import refused
from tasks.settings import Settings
from tasks.space.categories import Ranked, ranked, within
from tasks.space.published import Reader, Space

MOST_FOUND = 100
SETTING_BYTES = 65_536
"""Of a form besides the photo."""
_CHECKED_FOR = 60.0
"""Seconds that an index is taken to be of the model that it was seen to be of."""
ANY = "any"
"""The class that stands for all of them."""


class Setting(BaseModel):
    """What to find."""

    model_config = ConfigDict(strict=True, populate_by_name=True, extra="forbid")

    output_limit: Annotated[int, Field(ge=1, le=MOST_FOUND)] = 12
    category: Annotated[str | None, Field(alias="class", min_length=1, max_length=1_000)] = None
    """One of the shop's, by its id or with its name as answers have it, or `any`; None looks where the photo
    seems to belong."""


@dataclass(frozen=True)
class Asked:
    """A photo as a form brings it."""

    photo: bytes
    setting: Setting


class PhotoSearch:
    """Searches the shop's index within the categories of a photo; threads may share one.

    Its methods raise ConfigurationError where no space is published, or the space or the index is of another
    model, ServiceUnavailableError where Elasticsearch does not answer, and InferenceError where a class is
    asked for that no item has.
    """

    def __init__(self, index: ItemQueries, model: Identity, settings: Settings) -> None:
        """Search for features of `model`."""
        self._index = index
        self._model = model
        self._settings = settings
        self._spaces = Reader(settings, model)
        self._checked_at = -math.inf

    @property
    def space(self) -> Space:
        """The published space, read again when another one is."""
        return self._spaces.space

    def classes(self, feature: NDArray[np.float32]) -> Ranked:
        """The categories that a photo with this feature [2048] may be of, with their probabilities, the
        likeliest first.
        """
        model = self.space.categories
        (probabilities,) = model.probabilities(feature[np.newaxis])
        return ranked(probabilities, model.categories)

    def nearest(self, feature: NDArray[np.float32], setting: Setting) -> list[Neighbour]:
        """The items that look like it, nearest first: of its category where that is as sure as 0.7, else of
        the two likeliest, or of the one that the setting names.
        """
        self._check_index()
        if setting.category is None:
            wanted = tuple(within(self.classes(feature)))
        else:
            named = CategoryNames.load(self._settings).id_of(setting.category)
            wanted = () if setting.category == ANY else (named,)
        scope = Scope(self._model.version, wanted)
        found = self._index.nearest(feature, scope, setting.output_limit)
        if not found and setting.category not in (None, ANY) and not self._index.count(scope):
            raise refused("bad_request", f"class: no item of {setting.category!r} has a feature")
        return found

    def _check_index(self) -> None:
        if (now := time.monotonic()) - self._checked_at > _CHECKED_FOR:
            refuse_another_model(self._index, self._model)
            self._checked_at = now


async def asked(request: Request, content: bytes, settings: Settings) -> Asked:
    """The photo `filepath` and the JSON `setting` of a form.

    Raises:
        InferenceError: there is not exactly one photo, or the setting is none.
    """

    async def stream() -> AsyncGenerator[bytes, None]:
        yield content

    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise refused("bad_request", "The request cannot be read: a form (multipart/form-data) is wanted.")
    try:
        form = await MultiPartParser(
            request.headers,
            stream(),
            max_files=2,
            max_fields=2,
            max_part_size=settings.max_image_bytes + SETTING_BYTES,
        ).parse()
    except (MultiPartException, HTTPException, KeyError, ValueError) as error:
        message = getattr(error, "message", "") or "a form (multipart/form-data) is wanted"
        raise refused("bad_request", f"The request cannot be read: {message}.") from None
    photos = [value for name, value in form.multi_items() if isinstance(value, UploadFile)]
    if len(photos) != 1 or not isinstance(form.get("filepath"), UploadFile):
        raise refused("bad_request", "filepath: one photo is wanted, as a file")
    given = form.get("setting") or "{}"
    try:
        setting = Setting.model_validate_json(given if isinstance(given, str) else "")
    except ValidationError as error:
        raise refused("bad_request", f"setting: {_in_words(error)}") from None
    photo = await photos[0].read()
    if not photo:
        raise refused("bad_request", "filepath: the file is empty")
    return Asked(photo, setting)


def _in_words(error: ValidationError) -> str:
    return "; ".join(
        ": ".join([*map(str, problem["loc"]), problem["msg"]]) for problem in json.loads(error.json())
    )
