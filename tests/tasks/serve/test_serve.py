"""The inference process as it is used: started with the real model, asked over its socket."""

import io
import json
import os
import signal
import socket
import stat
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import psutil
import pytest
from PIL import Image

from local_stack import inference
from tasks.errors import ConfigurationError
from tasks.inference import model
from tasks.inference.model import feature_version
from tasks.search.mapping import AT, FEATURE, GROUP, IMAGE, URL, VERSION
from tasks.serve import __main__ as serve
from tasks.serve.client import Answer, Inference, InferenceError
from tasks.settings import REPOSITORY, Settings
from tests.picture_files import resized_with_pad, saved
from tests.scripted_server import Exchange, Reply, ScriptedServer

pytestmark = pytest.mark.model

PLACES = 4
MOST_BYTES = 300_000


@dataclass
class Serving:
    """A process that serves, and what it serves from and into."""

    process: subprocess.Popen[bytes]
    settings: Settings
    pictures: ScriptedServer
    search: Any

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        content = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        return Inference(self.settings).request(method, path, content)

    def get(self, url: str) -> Answer:
        return self.ask("GET", f"/getImagenetFeature?img_url={quote(url, safe='')}")

    def health(self) -> dict[str, Any]:
        return json.loads(self.ask("GET", "/health").body)


def environment(settings: Settings, search_url: str) -> dict[str, str]:
    """What makes a process have these settings."""
    given = {
        f"FEATURES_{name.upper()}": ",".join(value) if isinstance(value, tuple) else str(value)
        for name, value in settings.model_dump(exclude_defaults=True).items()
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FEATURES_")}
    return kept | given | {"AIRFLOW_CONN_SHOP_SEARCH": search_url}


@pytest.fixture(scope="module")
def serving(
    tmp_path_factory: pytest.TempPathFactory,
    met_model: tuple[str, Path],
    elasticsearch_url: str,
    search_client: Any,
) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("serve")
    index = f"test-{uuid.uuid4().hex}"
    with ScriptedServer() as pictures:
        settings = Settings(
            data_dir=met_model[1],
            serve_socket=folder / "s",
            serve_index=f"{index}-whole",
            serve_requests=PLACES,
            index=index,
            image_hosts=(pictures.host,),
            max_image_bytes=MOST_BYTES,
            read_timeout=5,
            precision="float32",
        )
        log = folder / "log"
        server = inference.start(settings, log, env=environment(settings, elasticsearch_url))
        try:
            yield Serving(server.process, settings, pictures, search_client)
        finally:
            server.stop()
            names = [settings.index, settings.serve_index]
            search_client.indices.delete(index=names, ignore_unavailable=True)


def pixels(seed: int, height: int = 60, width: int = 90) -> np.ndarray:
    """Noise of a coarse grain, which survives no other way of resizing."""
    grains = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    return np.repeat(np.repeat(grains, 10, 0), 10, 1)


@pytest.fixture(scope="module")
def keras_features() -> dict[int, np.ndarray]:
    """Features of pixels(1) to pixels(3) by Keras's own network, fed by TensorFlow's own resize."""
    tf = model.quiet_tensorflow()
    import keras

    network = keras.applications.InceptionV3(include_top=False, pooling="avg", weights=None)
    variables = tf.saved_model.load(str(Settings().model_dir)).variables
    network.set_weights([variable.numpy() for variable in variables])
    tensors = np.stack([resized_with_pad(pixels(seed)) for seed in (1, 2, 3)])
    return dict(zip((1, 2, 3), network(tensors * 2 - 1, training=False).numpy(), strict=True))


def vector_in(answer: Answer) -> np.ndarray:
    assert answer.http_status == 200, answer.body
    found = json.loads(answer.body)
    assert set(found) == {"imagenet_feature"}
    assert len(found["imagenet_feature"]) == 2048
    return np.array(found["imagenet_feature"], np.float32)


def error_in(answer: Answer) -> tuple[int, str]:
    found = json.loads(answer.body)
    assert set(found) == {"error"}
    assert set(found["error"]) == {"status", "message"}
    assert len(found["error"]["message"]) > 5
    return answer.http_status, found["error"]["status"]


def document(serving: Serving, item_id: str, **fields: Any) -> dict[str, Any]:
    """Write a document as the core server does."""
    body = {"item_id": item_id, "item_name": "hat", "category_id": "00000010"} | fields
    serving.search.index(index=serving.settings.index, id=item_id, document=body, refresh=True)
    return body


def held(serving: Serving, index: str, item_id: str) -> tuple[dict[str, Any], np.ndarray]:
    """A document's source, and its vector."""
    serving.search.indices.refresh(index=index)
    (hit,) = serving.search.search(
        index=index, query={"ids": {"values": [item_id]}}, fields=[FEATURE], source=True
    )["hits"]["hits"]
    return hit["_source"], np.array(hit["fields"][FEATURE], np.float32)


# What it answers ---------------------------------------------------------------------------------


def test_features_are_those_of_keras_by_url_and_by_bytes(
    serving: Serving, keras_features: dict[int, np.ndarray]
) -> None:
    content = saved(pixels(1), "PNG")
    serving.pictures.answer("/1.png", Reply(body=content))
    answer = serving.get(serving.pictures.url("/1.png"))
    np.testing.assert_allclose(vector_in(answer), keras_features[1], atol=1e-3)
    assert answer.headers["x-feature-version"] == feature_version(serving.settings)

    client = Inference(serving.settings)
    np.testing.assert_allclose(client.feature_of_picture(content), keras_features[1], atol=1e-3)
    np.testing.assert_allclose(
        client.feature_of_url(serving.pictures.url("/1.png")), keras_features[1], atol=1e-3
    )


def test_a_feature_is_added_to_the_document(serving: Serving, keras_features: dict[int, np.ndarray]) -> None:
    serving.pictures.answer("/2.png", Reply(body=saved(pixels(2), "PNG")))
    url = serving.pictures.url("/2.png")
    before = document(serving, "4816000185", img_url=url, price=1.5)
    answer = serving.ask("POST", "/saveImagenetFeature", {"item_id": "4816000185", "img_url": url})
    assert answer.http_status == 200, answer.body
    version = feature_version(serving.settings)
    assert json.loads(answer.body) == {
        "item_id": "4816000185",
        "status": "indexed",
        "imagenet_feature_version": version,
        "index": serving.settings.index,
    }
    source, vector = held(serving, serving.settings.index, "4816000185")
    assert before.items() <= source.items()
    assert set(source) - set(before) == {VERSION, URL, IMAGE, AT, GROUP}
    assert (source[VERSION], source[URL]) == (version, url)
    assert datetime.now(UTC) - datetime.fromisoformat(source[AT]) < timedelta(minutes=1)
    np.testing.assert_allclose(vector, keras_features[2], atol=1e-3)


def test_a_whole_document_is_written(serving: Serving, keras_features: dict[int, np.ndarray]) -> None:
    serving.pictures.answer("/3.png", Reply(body=saved(pixels(3), "PNG")))
    given = {
        "item_id": "007",
        "item_name": "파란 셔츠",
        "category_id": "00000030",
        "img_url": serving.pictures.url("/3.png"),
    }
    answer = serving.ask("POST", "/saveAllImageInfo", given | {"of_no_interest": 1})
    assert answer.http_status == 200, answer.body
    assert json.loads(answer.body)["index"] == serving.settings.serve_index
    source, vector = held(serving, serving.settings.serve_index, "007")
    assert {name: source[name] for name in given} == given
    assert set(source) - set(given) == {VERSION, URL, IMAGE, AT, GROUP}
    np.testing.assert_allclose(vector, keras_features[3], atol=1e-3)


# What it refuses ---------------------------------------------------------------------------------


def cut_short(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")


@pytest.mark.parametrize(
    ("answered", "expected"),
    [
        (Reply(404), (422, "gone")),
        (Reply(403), (502, "forbidden")),
        (Reply(500), (502, "unreachable")),
        (cut_short, (502, "unreachable")),
        (Reply(body=b"<html>Sorry</html>"), (422, "not_a_picture")),
        (Reply(body=b""), (422, "not_a_picture")),
        (Reply(body=saved(pixels(1), "TIFF")), (422, "unsupported_format")),
        (Reply(body=saved(pixels(1), "JPEG")[:300]), (422, "corrupt")),
        (Reply(body=bytes(MOST_BYTES + 1)), (413, "too_large")),
        (Reply(302, headers={"Location": "http://169.254.169.254/latest"}), (422, "blocked_address")),
        (Reply(302, headers={"Location": "file:///etc/passwd"}), (422, "invalid_url")),
    ],
)
def test_each_way_a_picture_can_fail_has_the_pipelines_status(
    serving: Serving, answered: Any, expected: tuple[int, str]
) -> None:
    path = f"/{uuid.uuid4().hex}"
    serving.pictures.answer(path, answered)
    url = serving.pictures.url(path)
    serving.pictures.answer("/good.png", Reply(body=saved(pixels(1), "PNG")))
    document(serving, "failing", img_url=url)
    whole = {"item_id": "failing", "item_name": "x", "category_id": "00000010", "img_url": url}
    for ask in (
        lambda: serving.get(url),
        lambda: serving.ask("POST", "/saveImagenetFeature", {"item_id": "failing", "img_url": url}),
        lambda: serving.ask("POST", "/saveAllImageInfo", whole),
    ):
        assert error_in(ask()) == expected
        # A host that gives nothing but failures would be left alone.
        assert serving.get(serving.pictures.url("/good.png")).http_status == 200
    assert not serving.search.exists(index=serving.settings.serve_index, id="failing")


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("http://127.0.0.1:1/a.jpg", "blocked_address"),
        ("http://169.254.169.254/latest/meta-data", "blocked_address"),
        ("http://[::ffff:127.0.0.1]/a.jpg", "blocked_address"),
        ("http://2130706433/a.jpg", "blocked_address"),
        ("https://pictures.example/a.jpg", "blocked_address"),
        ("file:///etc/passwd", "invalid_url"),
        ("/a.jpg", "invalid_url"),
        ("http://user:word@127.0.0.1/a.jpg", "invalid_url"),
        ("http://127.0.0.1/" + "a" * 9_000, "invalid_url"),
        ("", "invalid_url"),
    ],
)
def test_urls_that_may_not_be_asked_for_are_not(serving: Serving, url: str, status: str) -> None:
    before = len(serving.pictures.requests)
    assert error_in(serving.get(url)) == (422, status)
    assert len(serving.pictures.requests) == before


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "JSON"),
        (b"item_id=1", "JSON"),
        (b"[]", "object"),
        (b'{"item_id": "\\ud800", "img_url": "http://a/b"}', "JSON"),
        ({"item_id": "1"}, "img_url"),
        ({"img_url": "http://a/b"}, "item_id"),
        ({"item_id": 4816000185, "img_url": "http://a/b"}, "item_id"),
        ({"item_id": None, "img_url": "http://a/b"}, "item_id"),
        ({"item_id": "", "img_url": "http://a/b"}, "item_id"),
        ({"item_id": "x" * 513, "img_url": "http://a/b"}, "item_id"),
        ({"item_id": "1", "img_url": ["http://a/b"]}, "img_url"),
    ],
)
def test_a_request_that_is_none_is_told_what_is_wrong(serving: Serving, body: Any, named: str) -> None:
    answer = serving.ask("POST", "/saveImagenetFeature", body)
    assert error_in(answer) == (422, "bad_request")
    assert named in json.loads(answer.body)["error"]["message"]


@pytest.mark.parametrize("category", [30, "30", "0000003x", "000000300", None])
def test_a_category_is_eight_digits_of_text(serving: Serving, category: Any) -> None:
    whole = {"item_id": "1", "item_name": "x", "category_id": category, "img_url": "http://a/b"}
    answer = serving.ask("POST", "/saveAllImageInfo", whole)
    assert error_in(answer) == (422, "bad_request")
    assert "category_id" in json.loads(answer.body)["error"]["message"]


def test_what_is_too_large_is_not_read_to_its_end(serving: Serving) -> None:
    padded = {"item_id": "1", "img_url": "http://a/" + "b" * 70_000}
    assert error_in(serving.ask("POST", "/saveImagenetFeature", padded)) == (413, "too_large")
    assert error_in(serving.ask("POST", "/feature", bytes(MOST_BYTES + 1))) == (413, "too_large")
    with pytest.raises(InferenceError) as refused:
        Inference(serving.settings).feature_of_picture(bytes(MOST_BYTES + 1))
    assert (refused.value.http_status, refused.value.status) == (413, "too_large")


def test_a_missing_url_and_an_unknown_path(serving: Serving) -> None:
    assert error_in(serving.ask("GET", "/getImagenetFeature")) == (422, "bad_request")
    assert serving.ask("GET", "/docs").http_status == 404
    assert serving.ask("GET", "/openapi.json").http_status == 404


def test_a_document_that_is_missing_or_has_another_url(serving: Serving) -> None:
    serving.pictures.answer("/w.png", Reply(body=saved(pixels(1), "PNG")))
    url = serving.pictures.url("/w.png")
    answer = serving.ask("POST", "/saveImagenetFeature", {"item_id": "missing", "img_url": url})
    assert error_in(answer) == (409, "waiting_for_document")
    assert not serving.search.exists(index=serving.settings.index, id="missing")
    document(serving, "moved", img_url="http://elsewhere/1.jpg")
    answer = serving.ask("POST", "/saveImagenetFeature", {"item_id": "moved", "img_url": url})
    assert error_in(answer) == (409, "waiting_for_document")
    assert "URL" in json.loads(answer.body)["error"]["message"]


# Many at once ------------------------------------------------------------------------------------


def test_what_is_too_much_at_once_is_told_to_come_again(serving: Serving) -> None:
    hold, asked = threading.Event(), threading.Semaphore(0)
    content = saved(pixels(1), "PNG")

    def slow(exchange: Exchange) -> None:
        asked.release()
        assert hold.wait(30)
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)

    for number in range(PLACES):
        serving.pictures.answer(f"/slow-{number}", slow)
    with ThreadPoolExecutor(PLACES) as threads:
        under_way = [
            threads.submit(serving.get, serving.pictures.url(f"/slow-{number}")) for number in range(PLACES)
        ]
        try:
            for _ in range(PLACES):
                assert asked.acquire(timeout=10)
            answer = serving.get(serving.pictures.url("/1.png"))
            assert error_in(answer) == (429, "busy")
            assert int(answer.headers["retry-after"]) >= 1
            assert serving.health()["requests"] == PLACES == serving.health()["most_requests"]
        finally:
            hold.set()
        assert all(future.result(30).http_status == 200 for future in under_way)
    deadline = time.monotonic() + 10
    while serving.health()["requests"]:
        assert time.monotonic() < deadline
    serving.pictures.answer("/1.png", Reply(body=content))
    assert serving.get(serving.pictures.url("/1.png")).http_status == 200


def test_one_url_that_many_ask_for_is_fetched_once(serving: Serving) -> None:
    hold = threading.Event()
    content = saved(pixels(2), "PNG")

    def slow(exchange: Exchange) -> None:
        assert hold.wait(30)
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)

    serving.pictures.answer("/shared", slow)
    with ThreadPoolExecutor(PLACES) as threads:
        under_way = [threads.submit(serving.get, serving.pictures.url("/shared")) for _ in range(PLACES)]
        deadline = time.monotonic() + 10
        while serving.health()["requests"] < PLACES or not serving.pictures.count("/shared"):
            assert time.monotonic() < deadline
        hold.set()
        vectors = [vector_in(future.result(30)) for future in under_way]
    assert serving.pictures.count("/shared") == 1
    assert all(np.allclose(vector, vectors[0], atol=1e-4) for vector in vectors)


def test_a_lost_decoder_does_not_end_it(serving: Serving) -> None:
    decoders = psutil.Process(serving.process.pid).children()
    assert decoders
    for decoder in decoders:
        decoder.kill()
    content = saved(pixels(1), "PNG")
    client = Inference(serving.settings)
    for _ in decoders:
        assert client.feature_of_picture(content).shape == (2048,)
    assert serving.process.poll() is None


def test_it_listens_for_its_user_alone_within_its_memory(serving: Serving) -> None:
    status = (serving.settings.data_dir / serving.settings.serve_socket).stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_uid == os.getuid()
    limits = Path(f"/proc/{serving.process.pid}/limits").read_text()
    (line,) = (line for line in limits.splitlines() if line.startswith("Max data size"))
    assert line.split()[3] == str(serving.settings.serve_memory)
    listening = [c for c in psutil.Process(serving.process.pid).net_connections() if c.status == "LISTEN"]
    assert listening == []


def test_a_second_process_says_that_there_is_one(serving: Serving, elasticsearch_url: str) -> None:
    done = subprocess.run(
        inference.COMMAND,
        env=environment(serving.settings, elasticsearch_url),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "Another process serves" in done.stderr
    assert "Traceback" not in done.stderr
    assert serving.health()["requests"] == 0


# Beginning and end -------------------------------------------------------------------------------


def test_a_killed_one_is_replaced_and_a_signal_ends_one_cleanly(
    tmp_path: Path, met_model: tuple[str, Path], elasticsearch_url: str
) -> None:
    hold, asked = threading.Event(), threading.Event()

    def slow(_: Exchange) -> None:
        asked.set()
        hold.wait(30)

    with ScriptedServer() as pictures, ThreadPoolExecutor(1) as thread:
        settings = Settings(
            data_dir=met_model[1], serve_socket=tmp_path / "s", image_hosts=(pictures.host,), read_timeout=5
        )
        log = tmp_path / "log"
        env = environment(settings, elasticsearch_url)
        killed = inference.start(settings, log, env=env).process
        decoders = psutil.Process(killed.pid).children()
        killed.kill()
        killed.wait()
        psutil.wait_procs(decoders, timeout=10)
        assert (tmp_path / "s").exists()
        with pytest.raises(InferenceError, match=r"not running.*python -m tasks\.serve.*make up"):
            Inference(settings).request("GET", "/health")

        process = inference.start(settings, log, env=env).process
        family = psutil.Process(process.pid).children(recursive=True)
        pictures.answer("/slow", slow)
        left = thread.submit(Inference(settings).feature_of_url, pictures.url("/slow"))
        assert asked.wait(10)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
        with pytest.raises(InferenceError):
            left.result(30)
        hold.set()
    assert not (tmp_path / "s").exists()
    assert not [p for p in psutil.wait_procs(family, timeout=10)[1] if p.status() != psutil.STATUS_ZOMBIE]
    assert "Traceback" not in log.read_text()


def test_what_a_dead_process_left_is_replaced_and_what_is_no_socket_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serve._listening(path) as listening:
        listening.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert not path.exists()
    path.write_text("something of somebody's")
    with pytest.raises(ConfigurationError, match="FEATURES_SERVE_SOCKET"), serve._listening(path):
        pass
    assert path.read_text() == "something of somebody's"


def test_a_path_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="107 bytes"), serve._held(tmp_path / ("x" * 108)):
        pass


@pytest.mark.parametrize("arguments", [["--help"], ["--health"]])
def test_the_command_says_what_it_is_and_whether_it_runs(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [*inference.COMMAND, *arguments],
        env=os.environ | {"FEATURES_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=60,
    )
    if arguments == ["--help"]:
        assert done.returncode == 0
        assert "inference process" in done.stdout
    else:
        assert done.returncode == 1
        assert "not running" in done.stderr
        assert "Traceback" not in done.stderr


def test_picture_of_any_kind_is_taken_as_in_a_run(serving: Serving) -> None:
    file = io.BytesIO()
    Image.fromarray(pixels(2)).convert("CMYK").save(file, "JPEG", quality=95)
    feature = Inference(serving.settings).feature_of_picture(file.getvalue())
    assert feature.dtype == np.float32
    assert feature.min() >= 0
    assert feature.any()
