"""A real Airflow with the Feature index pages, asked as its users' browsers ask."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import requests

from local_stack.airflow import Airflow
from tasks.inference.model import Identity
from tasks.runs.category_names import CategoryNames
from tasks.search.index import SearchIndex
from tasks.search.mapping import FEATURE, URL, VERSION
from tasks.settings import Settings
from tasks.space.categories import CategoryModel
from tasks.space.published import Space, folder, publish
from tasks.space.vectors import Codes, Compact
from tests.shop_fixtures import remember_model, search_connection, some_vector

HOSTILE = '<script>alert(1)</script>"onload='

# Asked in a process of its own with the running Airflow's settings, as they cannot change within ours.
ASK = """
import json, sys
from airflow.api_fastapi.app import init_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow import plugins_manager
from plugins.feature_index.app import create_app as pages
from tasks.inference.model import feature_version
from tasks.settings import Settings
manager = init_auth_manager()
roles = {"admin": "admin", "viewer": "viewer", "nobody": None}
tokens = {
    name: manager.generate_jwt(SimpleAuthManagerUser(username=name, role=role))
    for name, role in roles.items()
}
routes = []
def walk(routes_):
    for route in routes_:
        if hasattr(route, "methods"):
            routes.extend([method, route.path] for method in route.methods)
        else:
            walk(route.original_router.routes)
walk(pages().routes)
plugins, errors = plugins_manager._get_plugins()
answer = {"tokens": tokens, "routes": routes, "version": feature_version(Settings.load()),
    "plugins": [p.name for p in plugins if "/plugins/" in str(p.source) or p.name == "feature_index"],
    "errors": errors}
print("ANSWER" + json.dumps(answer))
"""


@dataclass
class Site:
    """A running Airflow with our pages, and what the shop behind it holds."""

    airflow: Airflow
    settings: Settings
    answer: dict[str, Any]

    def ask(self, method: str, path: str, role: str | None = "admin", **options: Any) -> requests.Response:
        """A request as the browser of a user of this role makes it; None is nobody logged in."""
        cookies = {"_token": self.answer["tokens"][role]} if role else {}
        url = f"{self.airflow.url}/feature-index{path}"
        return requests.request(
            method, url, cookies=cookies, timeout=30, **{"allow_redirects": False} | options
        )

    def form_token(self, role: str = "admin") -> str:
        """The token in a page's form."""
        form = Read.of(self.ask("GET", "/backfill?category_id=00000020", role).text)
        return form.values["token"]


class Read(HTMLParser):
    """What a test looks for in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, str] = {}
        self.tags: set[str] = set()
        self.hrefs: set[str] = set()
        self.actions: set[str] = set()
        self.scripts: list[dict[str, str | None]] = []
        self.text = ""

    @classmethod
    def of(cls, page: str) -> "Read":
        """Read a page."""
        read = cls()
        read.feed(page)
        return read

    def handle_data(self, data: str) -> None:
        """Add a text, as a browser shows it."""
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        self.tags.add(tag)
        given = dict(attrs)
        if tag == "script":
            self.scripts.append(given)
        if tag == "input" and given.get("name"):
            self.values[given["name"] or ""] = given.get("value") or ""
        if given.get("action"):
            self.actions.add(given["action"] or "")
        if given.get("href"):
            self.hrefs.add(given["href"] or "")


@pytest.fixture(scope="package")
def site(
    tmp_path_factory: pytest.TempPathFactory, elasticsearch_url: str, search_client: Any
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("pages")
    remember_model(folder / "var")
    index = f"test-{uuid.uuid4().hex}"
    settings = Settings(data_dir=folder / "var", index=index)
    environment = {
        "AIRFLOW_CONN_SHOP_SEARCH": elasticsearch_url,
        "FEATURES_INDEX": index,
        "FEATURES_DATA_DIR": str(settings.data_dir),
        "FEATURES_IMAGE_HOSTS": "pictures.example",
        "FEATURES_EXACT_SEARCH_DOCUMENTS": "20",
        "FEATURES_CATEGORY_PATTERN": "[0-9]{8}|.*/.*",
    }
    airflow = Airflow.start(folder / "airflow", shop_env=environment)
    try:
        asked = subprocess.run(
            [sys.executable, "-c", ASK],
            env=os.environ | airflow.environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert asked.returncode == 0, asked.stderr
        answer = json.loads(asked.stdout.partition("ANSWER")[2])
        fill_index(search_client, elasticsearch_url, index, answer["version"])
        yield Site(airflow, settings, answer)
    finally:
        airflow.stop()
        search_client.indices.delete(index=index, ignore_unavailable=True)


@contextmanager
def named(site: Site, names: Mapping[str, str]) -> Iterator[None]:
    """For the block the categories have these names."""
    CategoryNames(names).save(site.settings)
    try:
        yield
    finally:
        CategoryNames().save(site.settings)


@contextmanager
def published_space(site: Site, probabilities: Mapping[str, float]) -> Iterator[None]:
    """For the block a feature space is published that takes any photo for these categories."""
    space = Space(
        Identity(site.answer["version"]),
        Compact(np.zeros(2048, np.float32), np.eye(2048, 128, dtype=np.float32)),
        Codes(np.eye(128, dtype=np.float32)),
        CategoryModel(
            tuple(probabilities),
            np.zeros((len(probabilities), 2048), np.float32),
            np.log(np.array(list(probabilities.values()), np.float32)),
        ),
    )
    publish(space, site.settings)
    try:
        yield
    finally:
        shutil.rmtree(folder(site.settings))


def fill_index(client: Any, url: str, index: str, version: str) -> None:
    """Documents as the core server writes them: two of 00000010 with features, one of two of 00000020."""
    shop = {"1": "00000010", "2": "00000010", "3": "00000020", "4": "00000020", "5": HOSTILE}
    for item_id, category_id in shop.items():
        client.index(index=index, id=item_id, document={"item_id": item_id, "category_id": category_id})
    SearchIndex(search_connection(url), index).prepare()
    for item_id in ("1", "2", "3"):
        feature = {FEATURE: some_vector(int(item_id)).tolist(), VERSION: version, URL: "u"}
        client.update(index=index, id=item_id, doc=feature)
    client.indices.refresh(index=index)
