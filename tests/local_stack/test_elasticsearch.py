import hashlib
import os
import shutil
import signal
import socket
import subprocess
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import elasticsearch as client_library
import numpy as np
import pytest
from elasticsearch import helpers

from local_stack import elasticsearch
from local_stack.elasticsearch import Elasticsearch
from tasks.errors import ConfigurationError, ServiceUnavailableError


@pytest.fixture(scope="session")
def _installed() -> None:
    """The server is there before a test's network guard is."""
    elasticsearch.install()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Path]:
    """A shop's folder, its data removed afterwards wherever that is."""
    folder = tmp_path / "shöp one"
    yield folder
    shutil.rmtree(elasticsearch.data_folder(folder), ignore_errors=True)


def running(data: Path) -> list[str]:
    """Every live process that belongs to a server on this data."""
    listing = subprocess.run(
        ["ps", "-ww", "-eo", "pid,pgid,stat,args"], capture_output=True, text=True, check=True
    )
    rows = [line.split(maxsplit=3) for line in listing.stdout.splitlines()[1:]]
    alive = [(pgid, args) for _, pgid, state, args in rows if not state.startswith("Z")]
    # Only some name the folder on their command line; the others share their group.
    groups = {pgid for pgid, args in alive if str(data) in args}
    return [args for pgid, args in alive if pgid in groups]


@pytest.mark.slow
@pytest.mark.usefixtures("_installed")
def test_documents_survive_a_kill_and_stop_leaves_no_process(shop: Path):
    data, log = elasticsearch.data_folder(shop), shop / "elasticsearch.log"
    server = Elasticsearch.start(data, log, brief=True)
    try:
        with client_library.Elasticsearch(server.url) as client:
            client.index(index="goods", id="0001", document={"item_name": "kettle"})
        assert len(running(data)) == 2  # the launcher and the server proper
        with pytest.raises(ConfigurationError, match="already runs on"):
            Elasticsearch.start(data, log)
        os.kill(int((data / "pid").read_text()), signal.SIGKILL)
        server.stop()
        assert running(data) == []

        server = Elasticsearch.start(data, log, brief=True)
        with client_library.Elasticsearch(server.url) as client:
            assert client.get(index="goods", id="0001")["_source"] == {"item_name": "kettle"}
    finally:
        server.stop()
    assert running(data) == []


@pytest.mark.usefixtures("_installed")
def test_start_that_is_broken_off_leaves_nothing(shop: Path, monkeypatch: pytest.MonkeyPatch):
    data = elasticsearch.data_folder(shop)
    seen: list[str] = []

    def interrupted(_: int) -> bool:
        deadline = time.monotonic() + 60
        while not seen and time.monotonic() < deadline:
            seen.extend(running(data))
            time.sleep(0.1)
        raise KeyboardInterrupt

    monkeypatch.setattr(elasticsearch, "_takes_requests", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Elasticsearch.start(data, shop / "elasticsearch.log")
    assert seen
    assert running(data) == []


@pytest.mark.usefixtures("_installed")
def test_server_that_cannot_start_says_why(shop: Path):
    with pytest.raises(ServiceUnavailableError, match="-Xms7q"):
        Elasticsearch.start(elasticsearch.data_folder(shop), shop / "elasticsearch.log", heap="7q")


def test_taken_port_is_refused(shop: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"Port {port}, meant for Elasticsearch, is taken"):
            Elasticsearch.start(elasticsearch.data_folder(shop), shop / "elasticsearch.log", port=port)
    assert not (shop / "elasticsearch.log").exists()


def test_vectors_are_indexed_and_found(search_client: client_library.Elasticsearch, index: str):
    versions = {node["version"] for node in search_client.nodes.info()["nodes"].values()}
    assert versions == {"9.5.0"} or elasticsearch.server_url_from_environment()

    feature_field = {
        "type": "dense_vector",
        "dims": 2048,
        "similarity": "cosine",
        "index_options": {"type": "int8_hnsw"},
    }
    search_client.indices.create(
        index=index,
        mappings={"properties": {"imagenet_feature": feature_field, "category_id": {"type": "keyword"}}},
    )
    features = np.random.default_rng(7).random((200, 2048), dtype=np.float32)
    packed = (
        {
            "_index": index,
            "_id": f"{row:04}",
            "imagenet_feature": helpers.pack_dense_vector(feature),
            "category_id": f"{row % 2:08}",
        }
        for row, feature in enumerate(features)
    )
    assert helpers.bulk(search_client, packed, refresh=True) == (200, [])

    query = features[40] + 0.05 * features[41]
    found = search_client.search(
        index=index,
        knn={
            "field": "imagenet_feature",
            "query_vector": query.tolist(),
            "k": 3,
            "num_candidates": 200,
            "filter": {"term": {"category_id": "00000000"}},
        },
        fields=["category_id"],
    )["hits"]["hits"]
    assert found[0]["_id"] == "0040"
    assert {hit["fields"]["category_id"][0] for hit in found} == {"00000000"}
    cosine = query @ features[40] / (np.linalg.norm(query) * np.linalg.norm(features[40]))
    assert found[0]["_score"] == pytest.approx((1 + cosine) / 2, abs=0.01)


def test_tampered_download_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def tampered(folder: Path) -> Path:
        folder.mkdir()
        archive = folder / "elasticsearch-9.5.0.zip"
        with zipfile.ZipFile(archive, "w") as content:
            content.writestr("elasticsearch-9.5.0/bin/elasticsearch", "#!/bin/sh\n")
        return archive

    monkeypatch.setattr(elasticsearch, "_cache", lambda: tmp_path)
    monkeypatch.setattr(elasticsearch, "_download", tampered)
    with pytest.raises(ConfigurationError, match="expected db0e275fd790f723eca7bcde96069fd6"):
        elasticsearch.install()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_processes_that_install_at_once_share_one_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    downloads = []

    def slow(folder: Path) -> Path:
        downloads.append(folder)
        folder.mkdir()
        archive = folder / "elasticsearch-9.5.0.zip"
        with zipfile.ZipFile(archive, "w") as content:
            program = zipfile.ZipInfo("elasticsearch-9.5.0/bin/elasticsearch")
            program.external_attr = 0o755 << 16
            content.writestr(program, "#!/bin/sh\n")
        monkeypatch.setattr(elasticsearch, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
        time.sleep(0.2)
        return archive

    monkeypatch.setattr(elasticsearch, "_cache", lambda: tmp_path)
    monkeypatch.setattr(elasticsearch, "_download", slow)
    (tmp_path / "unfinished").mkdir()  # as a killed process leaves it
    with ThreadPoolExecutor(3) as pool:
        homes = [started.result() for started in [pool.submit(elasticsearch.install) for _ in range(3)]]
    assert homes == [tmp_path / "elasticsearch-9.5.0"] * 3
    assert len(downloads) == 1
    assert os.access(homes[0] / "bin" / "elasticsearch", os.X_OK)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "elasticsearch-9.5.0"]


def test_both_digests_are_named(tmp_path: Path):
    archive = tmp_path / "server.zip"
    archive.write_bytes(b"abc")
    actual = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # as FIPS 180 prints it
    elasticsearch.require_digest(archive, actual)
    with pytest.raises(ConfigurationError) as raised:
        elasticsearch.require_digest(archive, "0" * 64)
    assert actual in str(raised.value)
    assert "0" * 64 in str(raised.value)


def test_data_goes_with_the_shop(tmp_path: Path):
    shop, other = tmp_path / "shop", tmp_path / "other"
    data = elasticsearch.data_folder(shop)
    try:
        data.mkdir(parents=True)
        (data / "kept").touch()
        assert elasticsearch.data_folder(shop) == data
        assert (shop / "elasticsearch" / "kept").exists()
        assert elasticsearch.data_folder(other) != data
        shutil.rmtree(shop)
        assert not (elasticsearch.data_folder(shop) / "kept").exists()
    finally:
        shutil.rmtree(data, ignore_errors=True)


def test_environment_names_another_server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ELASTICSEARCH_URL", "")
    assert elasticsearch.server_url_from_environment() is None
    monkeypatch.setenv("ELASTICSEARCH_URL", "https://search.shop.example:9200")
    assert elasticsearch.server_url_from_environment() == "https://search.shop.example:9200"
