"""A small shop for the tests of the stages: a catalogue in SQLite, PostgreSQL or MariaDB, documents as the
core server writes them, and chunks whose pictures and features a test chooses."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import numpy as np
import sqlalchemy as sa

from benchmarks.postgresql import connection_to
from tasks.runs import packs
from tasks.runs.run import Chunk, Plan, Request
from tasks.search.mapping import FEATURE, VERSION
from tasks.settings import REPOSITORY, Settings
from tasks.shop.connections import CATALOGUE, SEARCH, Connection, Services
from tasks.statuses import Status

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

POSTGRES_KINDS = ("timestamp", "timestamptz")
MARIADB_KINDS = ("datetime(6)", "timestamp(6)")
CATALOGUE_KINDS = ("sqlite", *POSTGRES_KINDS, *MARIADB_KINDS)
"""SQLite, and PostgreSQL and MariaDB with either type of time."""

NOON = datetime(2026, 10, 1, 12, tzinfo=UTC)
CATEGORY = "00000010"
FEATURE_VERSION = "inception_v3-0123456789ab-chosen"
"""The version of features that a test chose instead of computing them."""


class CatalogueBuilder:
    """A catalogue that a test writes; the code under test gets only `connection`."""

    def __init__(self, connection: Connection, engine: sa.Engine, kind: str, *, indexes: bool = True) -> None:
        self.connection = connection
        self.engine = engine
        self.kind = kind
        self.time = "text" if kind == "sqlite" else f"{kind} null"
        """The type of its times. MariaDB fills a timestamp that may not be null by itself."""
        self.text = "varchar(191)" if kind in MARIADB_KINDS else "text"
        """A type of texts that can have an index."""
        self.execute(
            f"create table items (item_id {self.text} primary key, item_name text, category_id {self.text}, "
            f"img_url {self.text}, registered_at {self.time}, updated_at {self.time})"
        )
        if indexes:
            for column in ("updated_at", "registered_at", "category_id"):
                self.execute(f"create index items_{column} on items ({column})")

    def execute(self, statement: str, *rows: Mapping[str, Any]) -> None:
        """Run a statement, once for each of `rows` where there are any."""
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement), list(rows) or None)

    def add(self, item_id: str, img_url: str | None, **columns: Any) -> None:
        """Register an item."""
        self.add_all([{"item_id": item_id, "img_url": img_url, **columns}])

    def add_all(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Register items; a column left out has a usual value."""
        usual = {
            "item_name": "blue shirt",
            "category_id": CATEGORY,
            "registered_at": NOON,
            "updated_at": None,
        }
        self.execute(
            "insert into items (item_id, item_name, category_id, img_url, registered_at, updated_at) "
            "values (:item_id, :item_name, :category_id, :img_url, :registered_at, :updated_at)",
            *({key: self._stored(value) for key, value in (usual | dict(row)).items()} for row in rows),
        )

    def change(self, item_id: str, **columns: Any) -> None:
        """Change columns of an item."""
        changes = ", ".join(f"{name} = :{name}" for name in columns)
        values = {key: self._stored(value) for key, value in columns.items()}
        self.execute(f"update items set {changes} where item_id = :item_id", values | {"item_id": item_id})

    def _stored(self, value: Any) -> Any:
        """A value as the shop's own software would store it."""
        if not isinstance(value, datetime) or self.kind == "timestamptz":
            return value
        value = value.astimezone(UTC)
        return f"{value:%Y-%m-%d %H:%M:%S.%f}" if self.kind == "sqlite" else value.replace(tzinfo=None)


def sqlite_catalogue(path: Path, **options: Any) -> CatalogueBuilder:
    """A new catalogue in a file."""
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.NullPool)
    return CatalogueBuilder(Connection(CATALOGUE, "sqlite", schema=str(path)), engine, "sqlite", **options)


def postgres_catalogue(
    server_url: str, kind: str, *, encoding: str = "UTF8", **options: Any
) -> CatalogueBuilder:
    """A new catalogue in PostgreSQL, in the place of the one that was made there before."""
    server = sa.create_engine(server_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    database = "shop" if encoding == "UTF8" else f"shop_{encoding.lower()}"
    with server.connect() as connection:
        # A database for each test would take a third of a second to create.
        if not connection.scalar(
            sa.text("select 1 from pg_database where datname = :name"), {"name": database}
        ):
            made = f"create database {database} encoding '{encoding}' template template0 locale 'C'"
            connection.execute(sa.text(made))
        connection.execute(sa.text(f"alter database {database} reset all"))
    url = sa.make_url(server_url).set(database=database)
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args={"client_encoding": "utf8"})
    with engine.begin() as connection:
        connection.execute(sa.text("drop schema public cascade"))
        connection.execute(sa.text("create schema public"))
    return CatalogueBuilder(connection_to(url, CATALOGUE), engine, kind, **options)


def mariadb_catalogue(socket: str, database: str, kind: str, **options: Any) -> CatalogueBuilder:
    """A new catalogue in MariaDB, in the place of the one that was made there before."""
    url = sa.URL.create("mysql+pymysql", username="root", query={"unix_socket": socket, "charset": "utf8mb4"})
    in_utc = {"init_command": "set time_zone = '+00:00'"}
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        connection.execute(sa.text(f"drop database if exists {database}"))
        connection.execute(sa.text(f"create database {database}"))
    engine = sa.create_engine(url.set(database=database), poolclass=sa.NullPool, connect_args=in_utc)
    connection = Connection(CATALOGUE, "mysql", login="root", schema=database, extra={"unix_socket": socket})
    return CatalogueBuilder(connection, engine, kind, **options)


def as_uri(connection: Connection) -> str:
    """A catalogue's connection as AIRFLOW_CONN_SHOP_CATALOG holds it."""
    if connection.conn_type == "sqlite":
        return f"sqlite:///{connection.schema}"
    if connection.conn_type == "mysql":
        return f"mysql://{connection.login}@/{connection.schema}?{urlencode(connection.extra)}"
    host = str(connection.host).replace("/", "%2F")
    return f"postgres://{connection.login}@{host}/{connection.schema}"


def search_connection(url: str, **fields: Any) -> Connection:
    """The connection to an Elasticsearch at `url`."""
    parts = urlsplit(url)
    return Connection(SEARCH, parts.scheme, host=parts.hostname, port=parts.port, **fields)


@dataclass
class SmallShop:
    """A catalogue and the index that the same items have documents in."""

    catalogue: CatalogueBuilder
    client: "Elasticsearch"
    index: str
    services: Services
    data_dir: Path

    def settings(self, **changes: Any) -> Settings:
        """Settings for this shop; pictures may come from anywhere public."""
        usual = {"data_dir": self.data_dir, "index": self.index, "image_hosts": ("*",)}
        return Settings(**(usual | changes))

    def stock(self, *item_ids: str, **columns: Any) -> None:
        """Register items with a URL each, and write their documents."""
        for item_id in item_ids:
            row = {"img_url": url_of(item_id)} | columns
            self.catalogue.add(item_id, **row)
            self.write_document(item_id, img_url=row["img_url"])

    def write_document(self, item_id: str, **fields: Any) -> None:
        """Write a whole document, as the core server does; without an index it is mapped dynamically."""
        document = {
            "item_id": item_id,
            "item_name": "blue shirt",
            "category_id": CATEGORY,
            "img_url": url_of(item_id),
        }
        self.client.index(index=self.index, id=item_id, document=document | fields, refresh=True)

    def sources(self) -> dict[str, dict[str, Any]]:
        """Every document's _source by id."""
        self.client.indices.refresh(index=self.index)
        hits = self.client.search(index=self.index, size=1_000)["hits"]["hits"]
        return {hit["_id"]: hit["_source"] for hit in hits}

    def vector(self, item_id: str, field: str = FEATURE) -> np.ndarray:
        """The feature, or another vector, that the index holds for an item; empty where it holds none."""
        self.client.indices.refresh(index=self.index)
        answer = self.client.search(
            index=self.index, query={"ids": {"values": [item_id]}}, source=False, fields=[field]
        )
        return np.array(answer["hits"]["hits"][0].get("fields", {}).get(field, ()), np.float32)

    def versions(self) -> dict[str, str | None]:
        """The feature version of every document."""
        return {item_id: source.get(VERSION) for item_id, source in self.sources().items()}

    def sequence_numbers(self) -> dict[str, int]:
        """What every write to a document makes larger."""
        self.client.indices.refresh(index=self.index)
        answer = self.client.search(index=self.index, size=1_000, seq_no_primary_term=True, source=False)
        return {hit["_id"]: hit["_seq_no"] for hit in answer["hits"]["hits"]}

    def chunk(
        self,
        pictures: Mapping[str, "np.ndarray | Status"],
        *,
        run: str = "chosen",
        feature_version: str = FEATURE_VERSION,
        created_at: datetime | None = None,
    ) -> Chunk:
        """A planned chunk whose pictures are fetched and computed: each item with its vector or failure.

        Items with the same vector share a picture; their catalogue rows are those of now.
        """
        with self.catalogue.engine.connect() as connection:
            found = connection.execute(sa.text("select item_id, item_name, category_id, img_url from items"))
            rows = [dict(row._mapping) for row in found if row.item_id in pictures]
        rows.sort(key=lambda row: row["img_url"] or "")
        request = Request(dag="tests", run=run)
        plan = Plan(
            folder=request.folder(self.data_dir) / f"plan-{len(list(self.data_dir.glob('*/*/plan-*')))}",
            request=request,
            feature_version=feature_version,
            planned=len(rows),
            current=0,
            created_at=created_at or datetime.now(UTC),
            bounds=(0, len(rows)),
            labels=("all",),
        )
        with packs.writing(plan.items, packs.ITEMS) as pack:
            for row in rows:
                pack.add(row)
        plan.save()
        chunk = plan.chunks[0]
        write_packs(chunk, {row["img_url"]: pictures[row["item_id"]] for row in rows})
        return chunk


def write_packs(chunk: Chunk, pictures: "Mapping[str | None, np.ndarray | Status]") -> None:
    """Leave what download and extract would leave of these URLs."""
    features: dict[str, np.ndarray] = {}
    with packs.writing(chunk.pictures, packs.PICTURES) as pack:
        for url, outcome in pictures.items():
            if isinstance(outcome, Status):
                pack.add({"img_url": url, "status": outcome, "reason": "as chosen"})
            else:
                content = outcome.astype("<f4").tobytes()
                sha256 = hashlib.sha256(content).hexdigest()
                features[sha256] = outcome
                pack.add({"img_url": url, "content": content, "sha256": sha256})
        pack.statistics |= {"seconds": 1.0, "bytes": 1_000 * len(pictures), "requests": len(pictures)}
    with packs.writing(chunk.features, packs.FEATURES) as pack:
        for sha256, feature in features.items():
            pack.add({"sha256": sha256, "feature": feature.astype("<f4").tobytes()})
        pack.statistics |= {"seconds": 2.0, "precision": "float32", "device": "cpu"}


def remember_model(data_dir: Path) -> None:
    """Give a data dir what a first run finds out about the model, which would take half a minute of CPU."""
    met = REPOSITORY / "var" / "met_model"
    met.mkdir(parents=True, exist_ok=True)
    with (met.parent / ".met_model").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other worker may be at it
        if not (met / "known_models").is_dir():
            program = "from tasks.inference import model; model.load(model.Settings.load())"
            environment = os.environ | {"FEATURES_DATA_DIR": str(met)}
            # A process of its own: TensorFlow stays in the one that imported it.
            subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, env=environment, check=True)
    shutil.copytree(met, data_dir, dirs_exist_ok=True)


def url_of(item_id: str) -> str:
    """The URL of an item's picture, where a test does not say otherwise."""
    return f"https://pictures.example/{item_id.encode().hex()}.jpg"


def some_vector(seed: int) -> np.ndarray:
    """A feature like the model's: 2048 float32, not negative, one for each seed."""
    return np.random.default_rng(seed).gamma(0.5, 0.5, 2048).astype(np.float32)
