"""The download benchmark's own side counts what it fetched, and says so where img2dataset cannot be had."""

import json
import subprocess
import sys

import pytest

from benchmarks import download
from tasks.errors import ServiceUnavailableError
from tasks.settings import REPOSITORY
from tests.scripted_server import Reply, ScriptedServer


def test_own_side_states_the_pictures_that_came(tmp_path):
    with ScriptedServer() as server:
        for number in range(7):
            server.answer(f"/{number}", Reply(body=b"photo %d" % number))
        urls = tmp_path / "urls.txt"
        urls.write_text("\n".join(server.url(f"/{number}") for number in range(9)))
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.download", urls, "4", tmp_path / "output"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            check=True,
        )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["pictures"] == 7, "two are not there"
    assert result["seconds"] > 0
    assert result["cpu_seconds"] > 0


def test_missing_img2dataset_says_what_to_do(tmp_path, monkeypatch):
    requirements = tmp_path / "img2dataset.txt"
    requirements.write_text("img2dataset==1.47.0 --hash=sha256:" + "0" * 64)
    monkeypatch.setattr(download, "_REQUIREMENTS", requirements)
    monkeypatch.setattr(download, "REPOSITORY", tmp_path)
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(ServiceUnavailableError, match="name the other benchmarks alone") as refused:
        download._img2dataset_python()
    assert str(requirements) in str(refused.value)
