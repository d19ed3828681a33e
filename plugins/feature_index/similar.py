"""The page Search by photo: the items that look like a photo, like the picture at a URL, or like an item."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

import numpy as np
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, Depends, Form, HTTPException, Query, Request, UploadFile
from fastapi.responses import Response
from numpy.typing import NDArray

from plugins.feature_index import services
from plugins.feature_index.access import READ, from_our_page
from plugins.feature_index.pages import PHOTO_TYPES, page
from tasks.errors import ConfigurationError
from tasks.inference.model import DIMENSIONS, feature_version, identity
from tasks.search.exact import exact_nearest
from tasks.search.mapping import refuse_another_model
from tasks.search.queries import Item, ItemQueries, Neighbour, Scope
from tasks.serve.client import Inference, InferenceError
from tasks.serve.photos import ANY, MOST_FOUND, PhotoSearch
from tasks.settings import Settings
from tasks.space.categories import within
from tasks.space.published import Space
from tasks.statuses import Status
from tasks.urls import MAX_URL_LENGTH

_NEIGHBOURS = 12
_MATCHES = 24
_LONGEST_TEXT = 200
_EXACT = "exact search"
_LEAST_SHOWN = 0.05
"""Of a category's probability."""
_SHOWN_BYTES = 700_000
"""Of a photo that is shown again: its form carries it on, and a field of a form may have 1 MiB."""

Text = Annotated[str, Query(max_length=_LONGEST_TEXT)]
Field = Annotated[str, Form()]
Limit = Annotated[int, Query(ge=1, le=MOST_FOUND)]
LimitField = Annotated[int, Form(ge=1, le=MOST_FOUND)]


class By(StrEnum):
    """What items are compared by."""

    FEATURES = "features"
    COMPACT = "compact"
    BOTH = "both"


router = APIRouter(dependencies=READ, default_response_class=Response)


@dataclass(frozen=True)
class Sought:
    """The picture whose neighbours are sought."""

    name: str
    feature: NDArray[np.float32]
    picture: str | None
    """Its URL, or the photo itself as one."""
    item: Item | None = None

    @property
    def packed(self) -> str:
        """The feature as a form carries it."""
        return base64.b64encode(self.feature.astype("<f4").tobytes()).decode()


@dataclass(frozen=True)
class Ranking:
    """What one way of searching found."""

    by: str
    title: str
    neighbours: Sequence[Neighbour]

    @property
    def ids(self) -> set[str]:
        """Of the items found."""
        return {found.item.item_id for found in self.neighbours}

    def alone(self, rankings: Sequence["Ranking"]) -> set[str]:
        """Of the items that none of the other rankings has, if there are others."""
        others = [ranking.ids for ranking in rankings if ranking is not self]
        return self.ids.difference(*others) if others else set()


@router.get("/similar")
def similar_to_item(
    request: Request,
    user: GetUserDep,
    q: Text = "",
    item_id: str = "",
    category_id: str = "",
    limit: Limit = _NEIGHBOURS,
    by: By = By.FEATURES,
    compare: bool = False,
) -> Response:
    """Items that match a text, those that look like one of them, or some to start from."""
    settings = Settings.load()
    index = services.item_queries(settings)
    if not item_id:
        if q:
            shown = {"q": q, "matches": index.find(q, _MATCHES)}
        else:
            shown = {"newest": index.newest(feature_version(settings), _MATCHES)}
        return _page(request, user, settings, category_id=category_id, limit=limit, **shown)
    found = index.item(item_id)
    if found is None:
        raise HTTPException(
            404, "The index has no document of this item, or has not refreshed since it came."
        )
    item, feature = found
    if feature is None or item.version != feature_version(settings):
        return _page(request, user, settings, lacking=item)
    sought = Sought(item.item_name or item.item_id, feature, item.img_url, item)
    return _neighbours(request, user, settings, index, sought, category_id, limit, by, compare)


@router.post("/similar", dependencies=[Depends(from_our_page)])
def similar_to_picture(
    request: Request,
    user: GetUserDep,
    photo: list[UploadFile] | None = None,
    url: Field = "",
    name: Field = "",
    feature: Field = "",
    picture: Field = "",
    category_id: Field = "",
    limit: LimitField = _NEIGHBOURS,
    by: Annotated[By, Form()] = By.FEATURES,
    compare: Annotated[bool, Form()] = False,
) -> Response:
    """Items that look like a photo, like the picture at a URL, or like either once its feature is known."""
    settings = Settings.load()
    photos = [one for one in photo or [] if one.filename]  # a browser sends one without a name for none
    try:
        if feature:
            sought = Sought(name, _unpacked(feature), picture)
        elif len(photos) + bool(url) != 1:
            raise InferenceError(422, "bad_request", "Choose one photo, or paste the URL of one picture.")
        elif photos:
            sought = _photo(photos[0], settings)
        else:
            sought = Sought(url, Inference(settings).feature_of_url(url), url)
    except InferenceError as error:
        problem = _told(error, of_url=bool(url))
        return _page(
            request,
            user,
            settings,
            status=error.http_status,
            url=url,
            problem=problem,
            category_id=category_id,
            limit=limit,
        )
    index = services.item_queries(settings)
    return _neighbours(request, user, settings, index, sought, category_id, limit, by, compare)


def _neighbours(
    request: Request,
    user: BaseUser,
    settings: Settings,
    index: ItemQueries,
    sought: Sought,
    category_id: str,
    limit: int,
    by: By,
    compare: bool,
) -> Response:
    model = identity(settings)
    if not sought.item:
        refuse_another_model(index, model)
    search = PhotoSearch(index, model, settings)
    space = _space(search)
    classes = search.classes(sought.feature) if space and not sought.item else []
    predicted = within(classes)
    chosen = () if category_id == ANY else (category_id,)
    wanted = chosen if category_id else tuple(predicted)
    scope = Scope(model.version, wanted, sought.item.item_id if sought.item else "")
    among = index.count(scope)
    of_space = replace(scope, space=space.version) if space else None
    compact_among = index.count(of_space) if of_space and among else 0
    rankings = []
    if among and (by is not By.COMPACT or not compact_among):
        found = index.nearest(sought.feature, scope, limit)
        rankings.append(Ranking("approximate search", "By features, 2,048 numbers each", found))
    if space and of_space and compact_among and by is not By.FEATURES:
        (compact,) = space.compact.vectors(sought.feature[np.newaxis])
        found = index.nearest(compact, of_space, limit)
        rankings.append(Ranking("compact vectors", "By compact vectors, 128 numbers each", found))
    if compare and among and among <= settings.exact_search_documents:
        exact = exact_nearest(index, sought.feature, scope, limit)
        title = f"Exact, compared with all {exact.compared:,}"
        rankings.append(Ranking(_EXACT, title, exact.neighbours))
    return _page(
        request,
        user,
        settings,
        sought=sought,
        classes=[(name, probability) for name, probability in classes if probability >= _LEAST_SHOWN],
        predicted=predicted,
        category_id=category_id,
        limit=limit,
        by=by,
        version=scope.version,
        among=among,
        compact_among=compact_among,
        space=space.version if space else "",
        rankings=rankings,
        reference=next((ranking for ranking in rankings if ranking.by == _EXACT), rankings[0])
        if len(rankings) > 1
        else None,
    )


def _space(search: PhotoSearch) -> Space | None:
    """The published feature space; None as long as there is none."""
    try:
        return search.space
    except ConfigurationError:
        return None


def _page(
    request: Request, user: BaseUser, settings: Settings, *, status: int = 200, **values: object
) -> Response:
    shown: dict[str, object] = dict.fromkeys(("problem", "q", "url", "category_id"), "")
    shown |= dict.fromkeys(("matches", "newest", "lacking", "sought"))
    shown |= {"classes": [], "predicted": [], "limit": _NEIGHBOURS, "by": By.FEATURES}
    return page(
        request,
        "similar.html",
        user,
        status=status,
        image_hosts=settings.image_hosts,
        most_bytes=settings.max_image_bytes,
        categories=services.item_queries(settings).categories(feature_version(settings)),
        most_matches=_MATCHES,
        usual_limit=_NEIGHBOURS,
        most_found=MOST_FOUND,
        longest_text=_LONGEST_TEXT,
        longest_url=MAX_URL_LENGTH,
        exact_at_most=settings.exact_search_documents,
        **shown | values,
    )


def _photo(photo: UploadFile, settings: Settings) -> Sought:
    """An uploaded photo with its feature.

    Raises:
        InferenceError: it has none.
    """
    content = photo.file.read(settings.max_image_bytes + 1)
    shown = None
    if len(content) <= _SHOWN_BYTES and photo.content_type in PHOTO_TYPES:
        shown = f"data:{photo.content_type};base64,{base64.b64encode(content).decode()}"
    return Sought(photo.filename or "the photo", Inference(settings).feature_of_picture(content), shown)


def _unpacked(text: str) -> NDArray[np.float32]:
    """The feature that a form carried."""
    try:
        feature = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    except ValueError:
        feature = np.empty(0, np.float32)
    length = np.linalg.norm(feature)
    if feature.shape != (DIMENSIONS,) or not np.isfinite(length) or length == 0:
        raise HTTPException(422, "The form holds no feature. Choose the picture again.")
    return feature


def _told(error: InferenceError, *, of_url: bool) -> str:
    """Why a picture has no feature, and of one at a URL, what to do where that is known."""
    if error.status not in set(Status):
        return error.message
    remedy = Status(error.status).remedy if of_url else ""
    return f"{error.status}: {error.message.removesuffix('.')}. {remedy}"
