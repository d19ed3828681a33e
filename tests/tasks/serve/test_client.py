"""Tests of tasks/serve/client.py against a server at a socket that answers whatever a test wants."""

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest

from tasks.serve.client import Inference, InferenceError
from tasks.settings import Settings

FEATURE = np.random.default_rng(1).random(2048, np.float32)


class Handler(BaseHTTPRequestHandler):
    """Answers as the server says, and notes what it was asked."""

    def do_GET(self) -> None:
        """Answer."""
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, self.path, content))
        code, headers, body = self.server.answer
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Answer."""
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def address_string(self) -> str:
        """A Unix socket's client has none."""
        return ""


Answering = Callable[[int, dict[str, str], bytes], list[tuple[str, str, bytes]]]


@pytest.fixture
def settings(model_version: str, tmp_path: Path) -> Settings:
    assert model_version
    return Settings(data_dir=tmp_path / "var", max_image_bytes=1_000)


@pytest.fixture
def answering(settings: Settings) -> Iterator[Answering]:
    """Makes the server answer so; gives what it was asked."""
    path = settings.data_dir / settings.serve_socket
    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        server.daemon_threads = True
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()

        def answer(code: int, headers: dict[str, str], body: bytes) -> list[tuple[str, str, bytes]]:
            server.answer = code, headers, body
            return server.asked

        yield answer
        server.shutdown()
        thread.join()


def feature_body(numbers: object) -> bytes:
    return json.dumps({"imagenet_feature": numbers}).encode()


def test_a_feature_arrives_to_the_last_bit(
    settings: Settings, answering: Answering, model_version: str
) -> None:
    asked = answering(200, {"X-Feature-Version": model_version}, feature_body(FEATURE.tolist()))
    client = Inference(settings)
    for feature in (client.feature_of_url("http://a/b?c=1&d=한"), client.feature_of_picture(b"bytes")):
        assert feature.dtype == np.float32
        np.testing.assert_array_equal(feature, FEATURE)
    assert asked == [
        ("GET", "/getImagenetFeature?img_url=http%3A%2F%2Fa%2Fb%3Fc%3D1%26d%3D%ED%95%9C", b""),
        ("POST", "/feature", b"bytes"),
    ]


def test_a_refusal_keeps_its_status_and_words(settings: Settings, answering: Answering) -> None:
    body = {"error": {"status": "not_a_picture", "message": "the file is a web page"}}
    answering(422, {}, json.dumps(body).encode())
    with pytest.raises(InferenceError) as refused:
        Inference(settings).feature_of_picture(b"<html>")
    error = refused.value
    assert (error.http_status, error.status, error.message) == (
        422,
        "not_a_picture",
        "the file is a web page",
    )
    assert error.to_json() == body


def test_features_of_a_model_that_computes_something_else_are_refused(
    settings: Settings, answering: Answering, model_version: str
) -> None:
    headers = {"X-Feature-Version": model_version, "X-Model-Fingerprint": "3c00" * 16}
    answering(200, headers, feature_body(FEATURE.tolist()))
    with pytest.raises(InferenceError, match=r"fingerprint (3c00){16}, and the model here.*Restart it"):
        Inference(settings).feature_of_url("u")


def test_features_of_another_model_are_refused(settings: Settings, answering: Answering) -> None:
    answering(200, {"X-Feature-Version": "inception_v3-another"}, feature_body(FEATURE.tolist()))
    with pytest.raises(InferenceError, match=r"inception_v3-another.*Restart it") as refused:
        Inference(settings).feature_of_url("http://a/b")
    assert (refused.value.http_status, refused.value.status) == (503, "unavailable")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"half a {",
        b"[]",
        b"{}",
        feature_body([]),
        feature_body([1.0] * 2047),
        feature_body(["x"] * 2048),
    ],
)
@pytest.mark.parametrize("code", [200, 500])
def test_an_answer_that_makes_no_sense_is_an_error(
    settings: Settings, answering: Answering, model_version: str, body: bytes, code: int
) -> None:
    answering(code, {"X-Feature-Version": model_version}, body)
    with pytest.raises(InferenceError) as refused:
        Inference(settings).feature_of_url("http://a/b")
    assert refused.value.status == "unavailable"


def test_what_is_too_large_is_not_sent(settings: Settings, answering: Answering) -> None:
    asked = answering(200, {}, b"")
    with pytest.raises(InferenceError) as refused:
        Inference(settings).feature_of_picture(bytes(1_001))
    assert (refused.value.http_status, refused.value.status) == (413, "too_large")
    assert asked == []


def test_a_process_that_is_not_there_is_named(settings: Settings) -> None:
    with pytest.raises(InferenceError, match=r"python -m tasks\.serve.*make up") as refused:
        Inference(settings).feature_of_url("http://a/b")
    assert (refused.value.http_status, refused.value.status) == (503, "unavailable")
