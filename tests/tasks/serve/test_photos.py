"""Search by photo, with spaces and documents whose neighbours NumPy can tell."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest
from elasticsearch import helpers
from fastapi import Request

from tasks.errors import ConfigurationError
from tasks.inference.model import Identity
from tasks.runs.category_names import CategoryNames
from tasks.search.document_fields import DocumentFields
from tasks.search.index import SearchIndex
from tasks.search.mapping import FEATURE, VERSION, note_model
from tasks.search.queries import ItemQueries
from tasks.serve.answers import InferenceError
from tasks.serve.photos import Asked, PhotoSearch, Setting, asked
from tasks.settings import Settings
from tasks.space.categories import CategoryModel
from tasks.space.published import Space, publish
from tasks.space.vectors import Codes, Compact
from tests.shop_fixtures import search_connection
from tests.tasks.space.synthetic import features_of, shop

MODEL = Identity("some-model", "3c00" * 16)
IDS, CATEGORIES = shop({"hat": 40, "shoes/boots": 40, "dress": 40})


@pytest.fixture(scope="module")
def features() -> Any:
    return features_of(CATEGORIES)


@pytest.fixture(scope="module")
def space(features: Any) -> Space:
    compact = Compact(np.zeros(2048, np.float32), np.eye(2048, 128, dtype=np.float32))
    return Space(
        MODEL,
        compact,
        Codes(np.eye(128, dtype=np.float32)),
        CategoryModel.learnt(features, CATEGORIES),
    )


@pytest.fixture
def settings(tmp_path: Any, index: str) -> Settings:
    return Settings(data_dir=tmp_path, index=index)


@pytest.fixture
def search(
    settings: Settings, space: Space, features: Any, search_client: Any, elasticsearch_url: str
) -> PhotoSearch:
    connection = search_connection(elasticsearch_url)
    fields = DocumentFields.of(settings)
    SearchIndex(connection, settings.index, fields).prepare()
    helpers.bulk(
        search_client,
        (
            {
                "_index": settings.index,
                "_id": item_id,
                "item_id": item_id,
                "category_id": category,
                "img_url": f"https://pictures.example/{item_id}.jpg",
                FEATURE: feature.tolist(),
                VERSION: MODEL.version,
            }
            for item_id, category, feature in zip(IDS, CATEGORIES, features, strict=True)
        ),
        refresh=True,
    )
    publish(space, settings)
    return PhotoSearch(ItemQueries(connection, settings.index, fields), MODEL, settings)


def brute_force(features: Any, feature: Any, among: set[str], most: int) -> list[str]:
    cosines = features @ feature / np.linalg.norm(features, axis=1) / np.linalg.norm(feature)
    order = [row for row in np.argsort(-cosines) if CATEGORIES[row] in among]
    return [IDS[row] for row in order[:most]]


def test_a_sure_photo_is_searched_within_its_category(search: PhotoSearch, features: Any) -> None:
    photo = features_of(["hat"], seed=50)[0]
    (likeliest, sure), *_ = search.classes(photo)
    assert (likeliest, sure >= 0.7) == ("hat", True)
    found = search.nearest(photo, Setting())
    assert [one.item.item_id for one in found] == brute_force(features, photo, {"hat"}, 12)
    unit = features[IDS.index(found[0].item.item_id)]
    cosine = unit @ photo / np.linalg.norm(unit) / np.linalg.norm(photo)
    assert found[0].cosine == pytest.approx(cosine, abs=1e-4)


def test_an_unsure_photo_is_searched_within_the_two_likeliest(search: PhotoSearch, features: Any) -> None:
    sides = [features_of([name], seed=3)[0] for name in ("hat", "shoes/boots")]
    shares = np.linspace(0, 1, 200)[:, None]
    probabilities = search.space.categories.probabilities(shares * sides[0] + (1 - shares) * sides[1])
    share = shares[np.abs(probabilities.max(axis=1) - 0.55).argmin()]
    photo = share * sides[0] + (1 - share) * sides[1]
    classes = search.classes(photo)
    assert classes[0][1] < 0.7
    assert sum(probability for _, probability in classes) == pytest.approx(1, abs=1e-5)
    within = {name for name, _ in classes[:2]}
    found = search.nearest(photo, Setting(output_limit=30))
    assert [one.item.item_id for one in found] == brute_force(features, photo, within, 30)


def test_a_class_of_ones_own_or_any_is_taken(search: PhotoSearch, features: Any) -> None:
    photo = features_of(["hat"], seed=50)[0]
    chosen = search.nearest(photo, Setting(category="shoes/boots", output_limit=5))
    assert [one.item.item_id for one in chosen] == brute_force(features, photo, {"shoes/boots"}, 5)
    anywhere = search.nearest(photo, Setting(category="any", output_limit=100))
    assert [one.item.item_id for one in anywhere] == brute_force(features, photo, set(CATEGORIES), 100)


def test_a_class_may_be_given_with_its_name(search: PhotoSearch, settings: Settings, features: Any) -> None:
    CategoryNames({"shoes/boots": "Stiefel", "hat": "Hut"}).save(settings)
    photo = features_of(["hat"], seed=50)[0]
    chosen = search.nearest(photo, Setting(category="shoes/boots Stiefel", output_limit=5))
    assert [one.item.item_id for one in chosen] == brute_force(features, photo, {"shoes/boots"}, 5)
    with pytest.raises(InferenceError, match="no item of 'shoes/boots Hut'"):
        search.nearest(photo, Setting(category="shoes/boots Hut"))


def test_a_class_that_no_item_has_is_refused(search: PhotoSearch) -> None:
    with pytest.raises(InferenceError, match="no item of 'umbrella'") as error:
        search.nearest(features_of(["hat"])[0], Setting(category="umbrella"))
    assert error.value.http_status == 422


def test_without_a_space_it_says_which_dag_to_run_and_any_class_needs_none(
    search: PhotoSearch, settings: Settings, tmp_path: Any
) -> None:
    empty = settings.model_copy(update={"data_dir": tmp_path / "empty"})
    bare = PhotoSearch(search._index, MODEL, empty)
    photo = features_of(["hat"])[0]
    for ask in (lambda: bare.classes(photo), lambda: bare.nearest(photo, Setting())):
        with pytest.raises(ConfigurationError, match="Run the DAG feature_space"):
            ask()
    assert len(bare.nearest(photo, Setting(category="any"))) == 12


def test_a_space_of_another_feature_version_is_refused(search: PhotoSearch, settings: Settings) -> None:
    other = PhotoSearch(search._index, Identity("another-model"), settings)
    with pytest.raises(ConfigurationError, match=f"of features {MODEL}, and the model here makes another"):
        other.classes(features_of(["hat"])[0])


def test_an_index_of_a_model_that_computes_something_else_is_not_searched(
    search: PhotoSearch, settings: Settings
) -> None:
    note_model(search._index, settings.index, MODEL)
    photo, anything = features_of(["hat"])[0], Setting(category="any")
    assert search.nearest(photo, anything)
    other = PhotoSearch(search._index, Identity(MODEL.version, "4000" * 16), settings)
    with pytest.raises(ConfigurationError, match="computes something else with the same weights"):
        other.nearest(photo, anything)


def test_a_space_that_is_published_meanwhile_is_taken(
    search: PhotoSearch, settings: Settings, space: Space, features: Any
) -> None:
    before = search.space
    assert search.space is before, "it is read once"
    renamed = [name.upper() for name in CATEGORIES]
    model = CategoryModel.learnt(features, renamed)
    publish(Space(MODEL, space.compact, space.codes, model), settings)
    assert search.classes(features_of(["hat"], seed=50)[0])[0][0] == "HAT"


# Forms ------------------------------------------------------------------------------------------

PHOTO = ("filepath", "photo.jpg", b"some bytes")


def read(*parts: tuple[str, str | None, bytes], kind: str | None = None) -> Asked:
    boundary = "limit"
    body = b"".join(
        b'--%s\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
        % (
            boundary.encode(),
            name.encode(),
            b'; filename="%s"' % filename.encode() if filename is not None else b"",
            content,
        )
        for name, filename, content in parts
    )
    kind = kind if kind is not None else f"multipart/form-data; boundary={boundary}"
    request = Request({"type": "http", "headers": [(b"content-type", kind.encode())]})
    return asyncio.run(asked(request, body + b"--limit--\r\n", Settings(max_image_bytes=1_000)))


def test_a_form_of_the_prototype_is_read() -> None:
    setting = json.dumps({"output_limit": 3, "class": "hat"}).encode()
    given = read(PHOTO, ("setting", None, setting))
    assert given == Asked(b"some bytes", Setting(output_limit=3, category="hat"))
    assert read(PHOTO).setting == Setting(output_limit=12, category=None)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([], "filepath: one photo"),
        ([("setting", None, b"{}")], "filepath: one photo"),
        ([PHOTO, PHOTO], "filepath: one photo"),
        ([("photo", "a.jpg", b"x")], "filepath: one photo"),
        ([("filepath", None, b"x")], "filepath: one photo"),
        ([("filepath", "a.jpg", b"")], "the file is empty"),
        ([PHOTO, ("setting", None, b"no JSON")], "setting: "),
        ([PHOTO, ("setting", None, b"[]")], "setting: "),
        *(
            ([PHOTO, ("setting", None, json.dumps(setting).encode())], "setting: ")
            for setting in (
                {"output_limit": 0},
                {"output_limit": 101},
                {"output_limit": "5"},
                {"output_limit": 1.5},
                {"output_limit": True},
                {"class": ""},
                {"class": 5},
                {"class": "x" * 1_001},
                {"limit": 5},
            )
        ),
        ([PHOTO] * 3, "cannot be read"),
        ([PHOTO, ("a", None, b""), ("b", None, b""), ("c", None, b"")], "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_form_is_named(parts: list[Any], says: str) -> None:
    with pytest.raises(InferenceError, match=says) as error:
        read(*parts)
    assert (error.value.http_status, error.value.status) == (422, "bad_request")


@pytest.mark.parametrize(
    "kind", ["application/json", "multipart/form-data", "text/plain; boundary=limit", " "]
)
def test_what_is_no_form_says_so(kind: str) -> None:
    with pytest.raises(InferenceError, match="cannot be read") as error:
        read(PHOTO, kind=kind)
    assert error.value.http_status == 422
