import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import sqlalchemy

from tasks.settings import REPOSITORY

ENDED_BY_SIGNAL = """
import time
from pathlib import Path
import pytest
import sqlalchemy

@pytest.mark.parametrize("number", range(4))
def test_that_is_ended(postgres_url, number):
    with sqlalchemy.create_engine(postgres_url).connect() as connection:
        folder = connection.scalar(sqlalchemy.text("show data_directory"))
    Path(__file__).with_name(f"runs-{number}").write_text(folder)
    time.sleep(60)
"""


@pytest.mark.parametrize("address", ["192.0.2.1", "shop.example", "::ffff:192.0.2.1"])
def test_guard_refuses_other_machines(address: str):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe, pytest.raises(RuntimeError, match=address):
        probe.connect((address, 80))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_guard_lets_this_machine_through(host: str):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as probe:
        probe.connect((host, server.getsockname()[1]))
        assert probe.getpeername() == server.getsockname()


def test_postgres_answers(postgres_url: str):
    with sqlalchemy.create_engine(postgres_url).connect() as connection:
        assert connection.scalar(
            sqlalchemy.text("select timestamptz '2026-01-01 09:00+09' = '2026-01-01 00:00Z'")
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "sent"),
    [(0, signal.SIGTERM), (2, signal.SIGTERM), (2, signal.SIGINT)],
    ids=["one process", "two workers", "two workers by Ctrl-C"],
)
def test_no_server_is_left_running(tmp_path: Path, workers: int, sent: signal.Signals):
    (tmp_path / "test_ended.py").write_text(ENDED_BY_SIGNAL)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", f"--rootdir={tmp_path}", "-n", workers]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [*map(str, command), tmp_path / "test_ended.py"],
            stdout=log,
            cwd=REPOSITORY,
            # Tests in the background of a shell ignore Ctrl-C, and what they start would too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            start_new_session=True,
        ) as tests,
    ):
        folders = _folders(tmp_path, max(1, workers), tests)
        assert all(_servers_of(folder) for folder in folders)
        if sent == signal.SIGINT:
            os.killpg(tests.pid, sent)  # as a terminal does
            tests.wait(60)
        for _ in range(300):  # again and again, while it ends its servers
            tests.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                tests.wait(0.1)
                break
    assert tests.returncode == pytest.ExitCode.INTERRUPTED
    assert not any(_servers_of(folder) for folder in folders)


def _folders(tmp_path: Path, count: int, tests: subprocess.Popen[bytes]) -> list[str]:
    """The data of so many servers, once they run."""
    until = time.monotonic() + 120
    while len(begun := [path for path in tmp_path.glob("runs-*") if path.read_text()]) < count:
        assert tests.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < until
        time.sleep(0.05)
    return [path.read_text() for path in begun]


def _servers_of(folder: str) -> list[psutil.Process]:
    return [
        process for process in psutil.process_iter(["cmdline"]) if folder in (process.info["cmdline"] or ())
    ]
