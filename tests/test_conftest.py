import contextlib
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import sqlalchemy

from tasks.settings import REPOSITORY

ENDED_BY_SIGTERM = """
import time
import sqlalchemy

def test_that_is_ended(postgres_url):
    with sqlalchemy.create_engine(postgres_url).connect() as connection:
        print("data in", connection.scalar(sqlalchemy.text("show data_directory")), flush=True)
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


def test_sigterm_leaves_no_server_running(tmp_path: Path):
    (tmp_path / "test_ended.py").write_text(ENDED_BY_SIGTERM)
    command = [sys.executable, "-m", "pytest", "-s", "-p", "tests.conftest", f"--rootdir={tmp_path}"]
    with subprocess.Popen(
        [*command, tmp_path / "test_ended.py"], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as tests:
        folder = next(line for line in tests.stdout if "data in " in line).split()[-1]
        assert _servers_of(folder)
        for _ in range(300):  # again and again, while it ends its servers
            tests.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                tests.communicate(timeout=0.1)
                break
    assert tests.returncode == pytest.ExitCode.INTERRUPTED
    assert not _servers_of(folder)


def _servers_of(folder: str) -> list[psutil.Process]:
    return [
        process for process in psutil.process_iter(["cmdline"]) if folder in (process.info["cmdline"] or ())
    ]
