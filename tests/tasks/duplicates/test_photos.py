"""The groups of a real shop's photos and of changed copies of them, by the real model's features.

A quarter of the photos; docs/near_duplicates.md has what was found with all of them.
"""

import csv
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from elasticsearch import helpers
from PIL import Image

from tasks.duplicates.find import find
from tasks.search.index import SearchIndex
from tasks.search.mapping import FEATURE, IMAGE, URL, VERSION
from tasks.serve.features import Features
from tasks.settings import Settings
from tasks.space.categories import CategoryModel
from tasks.space.published import Space, publish
from tasks.space.vectors import Codes, Compact
from tests.scripted_server import Reply, ScriptedServer
from tests.shop_fixtures import remember_model, search_connection
from tests.tasks.duplicates.shop import cropped, jpeg, with_logo

pytestmark = [pytest.mark.model, pytest.mark.slow]

SAME_FROM_THE_BEGINNING = {"4816005883", "4816020017"}
"""The shop's own items that show the same picture."""
COPIES = 25
"""Photos changed in each way."""


def resized(picture):
    return picture.resize((picture.width * 6 // 10, picture.height * 6 // 10), Image.Resampling.LANCZOS)


CHANGES = {
    "recompressed": lambda picture: jpeg(picture, 40),
    "resized": lambda picture: jpeg(resized(picture)),
    "with a logo": lambda picture: jpeg(with_logo(picture)),
    "cropped": lambda picture: jpeg(cropped(picture)),
}


def pictures_of(folder: Path) -> dict[str, bytes]:
    """Photos of the shop by the ids of their items, and some of them changed in each way."""
    with (folder / "items.csv").open(newline="") as file:
        paths = {row["item_id"]: row["img_path"].lstrip("/") for row in csv.DictReader(file)}
    taken = {*sorted(paths)[::4], *SAME_FROM_THE_BEGINNING}
    photos = {item_id: (folder / paths[item_id]).read_bytes() for item_id in sorted(taken)}
    pictures = dict(photos)
    chosen = np.random.default_rng(20).permutation(sorted(photos))
    for number, (how, change) in enumerate(CHANGES.items()):
        for item_id in chosen[number * COPIES : (number + 1) * COPIES]:
            pictures[f"{item_id} {how}"] = change(Image.open(io.BytesIO(photos[item_id])).convert("RGB"))
    return pictures


def test_copies_are_found_and_others_are_not(
    shop_photos: Path, search_client, elasticsearch_url: str, index: str, tmp_path: Path
) -> None:
    remember_model(tmp_path)
    pictures = pictures_of(shop_photos)
    with ScriptedServer() as server:
        settings = Settings(data_dir=tmp_path, index=index, image_hosts=(server.host,))
        with Features(settings) as computing, ThreadPoolExecutor(16) as threads:
            features = dict(zip(pictures, threads.map(computing.of_picture, pictures.values()), strict=True))
            model = computing.model.identity
        photos = np.array([features[item].vector for item in pictures if " " not in item])
        compact = Compact.learnt([photos])
        categories = CategoryModel(("a", "b"), np.zeros((2, 2048), np.float32), np.zeros(2, np.float32))
        publish(Space(model, compact, Codes.learnt(compact.vectors(photos)), categories), settings)
        connection = search_connection(elasticsearch_url)
        SearchIndex(connection, index).prepare()
        for number, content in enumerate(pictures.values()):
            server.answer(f"/{number}.jpg", Reply(body=content))
        helpers.bulk(
            search_client,
            (
                {
                    "_index": index,
                    "_id": item_id,
                    FEATURE: feature.vector.tolist(),
                    VERSION: model.version,
                    IMAGE: feature.image,
                    URL: server.url(f"/{number}.jpg"),
                }
                for number, (item_id, feature) in enumerate(features.items())
            ),
            refresh=True,
        )
        report = find(connection, model, settings)
        again = find(connection, model, settings)

    search_client.indices.refresh(index=index)
    hits = search_client.search(index=index, size=10_000)["hits"]["hits"]
    groups = {hit["_id"]: hit["_source"]["imagenet_feature_group"] for hit in hits}
    found = {
        how: np.mean(
            [groups[item] == groups[item.split()[0]] for item in pictures if item.endswith(f" {how}")]
        )
        for how in CHANGES
    }
    assert np.mean([found[how] for how in CHANGES if how != "cropped"]) >= 0.97, found
    assert found["cropped"] >= 0.85
    own = [groups[item] for item in pictures if " " not in item]
    joined = {item for item in pictures if " " not in item and own.count(groups[item]) > 1}
    assert joined == SAME_FROM_THE_BEGINNING
    names = {hashlib.sha256(content).hexdigest() for content in pictures.values()}
    assert set(groups.values()) <= names
    assert sum(report["counts"].values()) == report["planned"] == len(pictures)
    assert again["counts"] == {"current": len(pictures)}
