import http.client
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from local_stack.image_server import ImageServer
from local_stack.process import free_port
from tasks.settings import REPOSITORY

JPEG = b"\xff\xd8\xff\xe0 the picture's bytes"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    (root / "hat").mkdir(parents=True)
    (root / "hat" / "one.jpg").write_bytes(JPEG)
    (root / "hat" / "zwei drei ü.png").write_bytes(b"png")
    (root / "empty.gif").write_bytes(b"")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (root / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "outside").symlink_to(tmp_path)
    (root / "inside.jpg").symlink_to(root / "hat" / "one.jpg")
    (tmp_path / "pictures-too").mkdir()
    (tmp_path / "pictures-too" / "x.jpg").write_bytes(b"secret")
    return root


@pytest.fixture
def port(folder: Path) -> Iterator[int]:
    with ImageServer(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def get(port: int, target: str, method: str = "GET") -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        # putrequest sends the target as it stands: nothing may tidy up the ".." on the way.
        connection.putrequest(method, target)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def test_it_serves_a_picture(port: int) -> None:
    status, headers, body = get(port, "/hat/one.jpg")
    assert (status, body) == (200, JPEG)
    assert headers["Content-Type"] == "image/jpeg"
    assert headers["Content-Length"] == str(len(JPEG))


@pytest.mark.parametrize(
    ("target", "kind", "body"),
    [
        ("/hat/zwei%20drei%20%C3%BC.png", "image/png", b"png"),
        ("/empty.gif", "image/gif", b""),
        ("/hat/one.jpg?size=large", "image/jpeg", JPEG),
        ("/inside.jpg", "image/jpeg", JPEG),
        ("/hat/../hat/one.jpg", "image/jpeg", JPEG),
    ],
)
def test_names_are_decoded(port: int, target: str, kind: str, body: bytes) -> None:
    status, headers, content = get(port, target)
    assert (status, headers["Content-Type"], content) == (200, kind, body)


@pytest.mark.parametrize(
    "target",
    [
        "/hat/two.jpg",
        "/",
        "/hat",
        "/hat/",
        "/../secret.jpg",
        "/hat/../../secret.jpg",
        "/%2e%2e/secret.jpg",
        "/..%2fsecret.jpg",
        "//../secret.jpg",
        "/out.jpg",
        "/outside/secret.jpg",
        "/../pictures-too/x.jpg",
        "//etc/hostname",
        "/%2fetc/hostname",
        "/hat/one.jpg%00",
        "/" + "x" * 5000,
    ],
)
def test_nothing_else_is_there(port: int, target: str) -> None:
    status, _, body = get(port, target)
    assert status == 404
    assert b"secret" not in body
    assert b"one" not in body


def test_head_answers_without_the_picture(port: int) -> None:
    status, headers, body = get(port, "/hat/one.jpg", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(len(JPEG)), b"")


def test_other_methods_are_refused(port: int) -> None:
    assert get(port, "/hat/one.jpg", "DELETE")[0] == 501


def test_a_connection_is_kept(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/hat/one.jpg")
    connection.getresponse().read()
    first = connection.sock
    connection.request("GET", "/hat/missing.jpg")
    assert connection.getresponse().read() == b"There is no such picture.\n"
    connection.request("GET", "/hat/one.jpg")
    assert connection.getresponse().read() == JPEG
    assert first is not None
    assert connection.sock is first
    connection.close()


def test_sixty_four_connections_at_once(port: int) -> None:
    barrier = threading.Barrier(64)

    def client(_: int) -> list[bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        barrier.wait()
        bodies = []
        for _ in range(5):
            connection.request("GET", "/hat/one.jpg")
            bodies.append(connection.getresponse().read())
        connection.close()
        return bodies

    with ThreadPoolExecutor(64) as pool:
        assert list(pool.map(client, range(64))) == [[JPEG] * 5] * 64


def test_a_client_that_hangs_up_disturbs_nobody(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /hat/one.jpg HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    assert get(port, "/hat/one.jpg")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_latency_is_waited(folder: Path) -> None:
    with ImageServer(folder, 0, latency=0.2) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        start = time.monotonic()
        get(server.server_port, "/hat/one.jpg")
        assert time.monotonic() - start >= 0.2
        server.shutdown()
        thread.join()


def command(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "local_stack.image_server", *map(str, arguments)],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_serves_quietly_and_ends_on_sigterm(folder: Path) -> None:
    port = free_port()
    process = command(folder, port)
    deadline = time.monotonic() + 20
    while True:
        try:
            assert get(port, "/hat/one.jpg")[2] == JPEG
            break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    # A connection that is kept open must not keep the process alive.
    with socket.create_connection(("127.0.0.1", port)):
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 0
    assert errors == ""


def test_a_taken_port_is_said_without_a_traceback(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = command(folder, taken.getsockname()[1])
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "IMAGE_PORT=PORT" in errors
    assert "Traceback" not in errors


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    process = command(tmp_path / "nowhere", free_port())
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert f"there is no folder {tmp_path / 'nowhere'}" in errors
