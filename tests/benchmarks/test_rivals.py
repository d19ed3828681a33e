"""What is said where a program that we compare with cannot be had."""

import pytest

from benchmarks import rivals
from tasks.errors import ServiceUnavailableError


def test_one_that_cannot_be_installed_says_what_to_do(tmp_path, monkeypatch):
    locked = tmp_path / "benchmarks" / "rival.txt"
    locked.parent.mkdir()
    locked.write_text("img2dataset==1.47.0 --hash=sha256:" + "0" * 64)
    monkeypatch.setattr(rivals, "REPOSITORY", tmp_path)
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(ServiceUnavailableError, match="name the other benchmarks alone") as refused:
        rivals.python_with("rival")
    assert str(locked) in str(refused.value)
    assert not list(tmp_path.glob("var/rival-*/installed"))
