"""The shop that is tortured: catalogue, picture server, and an index that every round begins anew."""

import io
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elasticsearch import Elasticsearch, helpers
from PIL import Image, ImageDraw

from tasks.inference.model import feature_version
from tasks.settings import Settings
from tasks.statuses import Status
from tests.scripted_server import Reply, ScriptedServer
from tests.shop_fixtures import CATEGORY, CatalogueBuilder, as_uri, remember_model, sqlite_catalogue

OTHER_CATEGORY = "00000030"
VARIANTS = 4
"""Items of each picture: writing them is most of the work of index, and costs the other stages nothing."""

_EACH = 10
"""Of each so many pictures the same are flawed or come twice, so that every chunk has all kinds."""
_SHARED = 1
"""The picture that others have under URLs of their own, in every chunk."""
_STATUSES = {
    3: Status.GONE,
    4: Status.CORRUPT,
    5: Status.WAITING_FOR_DOCUMENT,
    6: Status.WAITING_FOR_DOCUMENT,
}
"""Where not all is well, by the picture's number modulo _EACH."""
_MET = "met"
"""A data dir that knows the model, so that no plan has to load it."""
_LATENCY = 0.1
"""Seconds before each picture, so that a download lasts long enough to be hit in the middle."""

# Small pages and batches, so that a kill finds a stage between two of them.
_SETTINGS = {
    "FEATURES_BATCH_SIZE": "4",
    "FEATURES_BULK_SIZE": "1",
    "FEATURES_DOWNLOADS_PER_HOST": "4",
    "FEATURES_FAILURE_BUDGET": "0.5",
}


@dataclass
class Shop:
    """Its items, each with the status that it must end in."""

    folder: Path
    catalogue: CatalogueBuilder
    server: ScriptedServer
    search: Elasticsearch
    environment: Mapping[str, str]
    """The variables that name the shop to the stages, all but the data dir and the index."""
    expected: dict[str, Status] = field(default_factory=dict)
    documents: list[dict[str, Any]] = field(default_factory=list)
    """What the core server writes."""

    @property
    def stage_environment(self) -> dict[str, str]:
        """The environment of a stage's process, without what this process' own says of another shop."""
        foreign = ("FEATURES_", "AIRFLOW_", "ELASTICSEARCH_")
        return {k: v for k, v in os.environ.items() if not k.startswith(foreign)} | dict(self.environment)

    def renew(self, data_dir: Path, index: str) -> None:
        """Begin anew: a data dir that knows the model alone, and an index with the core server's documents
        alone, which are mapped dynamically."""
        self.server.requests.clear()
        shutil.rmtree(data_dir, ignore_errors=True)
        shutil.copytree(self.folder / _MET, data_dir)
        self.search.indices.delete(index=index, ignore_unavailable=True)
        actions = (
            {"_index": index, "_id": source["item_id"], "_source": source} for source in self.documents
        )
        helpers.bulk(self.search, actions, refresh=True)


@contextmanager
def running_shop(
    folder: Path, search: Elasticsearch, search_url: str, chunks: int, pictures_in_chunk: int
) -> Iterator[Shop]:
    """A shop of so many pictures, its picture server running."""
    with ExitStack() as ending:
        server = ending.enter_context(ScriptedServer())
        catalogue = sqlite_catalogue(folder / "catalogue.db")
        environment = {
            "AIRFLOW_CONN_SHOP_CATALOG": as_uri(catalogue.connection),
            "AIRFLOW_CONN_SHOP_SEARCH": search_url,
            "FEATURES_CHUNK_SIZE": str(VARIANTS * pictures_in_chunk),
            "FEATURES_IMAGE_HOSTS": server.host,
            "TMPDIR": str(folder / "tmp"),  # the device's lock there is ours alone
            **_SETTINGS,
        }
        (folder / "tmp").mkdir()
        remember_model(folder / _MET)
        feature_version(Settings(data_dir=folder / _MET))
        shop = Shop(folder, catalogue, server, search, environment)
        _stock(shop, chunks * pictures_in_chunk)
        yield shop


def _stock(shop: Shop, pictures: int) -> None:
    for number in range(pictures):
        path, kind = f"/{number:04}.jpg", number % _EACH
        content = _picture(_SHARED if kind == 2 else number)
        if kind == 3:
            shop.server.answer(path, Reply(404, delay=_LATENCY))
        else:
            body = content[: len(content) // 2] if kind == 4 else content
            shop.server.answer(path, Reply(body=body, delay=_LATENCY))
        rows = [
            {
                "item_id": f"{number:06}-{variant}",
                "item_name": f"shirt {number}, {variant}",
                "category_id": CATEGORY,
                "img_url": shop.server.url(path),
            }
            for variant in range(VARIANTS)
        ]
        shop.catalogue.add_all(rows)
        shop.expected |= dict.fromkeys((row["item_id"] for row in rows), _STATUSES.get(kind, Status.INDEXED))
        if kind == 5:
            rows = [row | {"img_url": "https://pictures.example/before.jpg"} for row in rows]
        if kind != 6:
            # What else the core server writes is none of ours, and must stay.
            others = {"price": number + 0.25, "tags": ["new", f"size {number}"]}
            shop.documents += [row | others for row in rows]
    shop.documents += [
        {"item_id": f"other {number}", "category_id": OTHER_CATEGORY, "img_url": shop.server.url("/0000.jpg")}
        for number in range(5)
    ]


def _picture(seed: int) -> bytes:
    """A JPEG of its own for each seed, the same each time."""
    rng = random.Random(seed)
    image = Image.new("RGB", (480, 480), _colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        x, y, size = rng.randrange(480), rng.randrange(480), rng.randrange(20, 200)
        draw.ellipse((x, y, x + size, y + size), _colour(rng))
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def _colour(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randbytes(3))
