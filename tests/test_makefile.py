"""`make browser`, with programs that only write down how they were called."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
BOTH = ("chromium", "chromedriver")


@pytest.fixture
def make(tmp_path):
    """Runs `make browser` where only these programs are, and gives its output and the calls."""
    calls = tmp_path / "calls"
    calls.touch()

    def run(*programs: str, user: int, fails: str = "") -> tuple[str, list[str]]:
        (tmp_path / "sh").symlink_to(str(shutil.which("sh")))
        for name in (*programs, "id"):
            prints = f"echo {user}" if name == "id" else f'echo "{name} $*" >> {calls}'
            (tmp_path / name).write_text(f"#!{shutil.which('sh')}\n{prints}\n{'exit 1' * (name == fails)}\n")
            (tmp_path / name).chmod(0o755)
        done = subprocess.run(
            [str(shutil.which("make")), "--silent", "SHELL=/bin/sh", "browser"],
            cwd=REPOSITORY,
            env={"PATH": str(tmp_path)} | {k: v for k, v in os.environ.items() if k == "LANG"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr, calls.read_text().splitlines()

    return run


@pytest.mark.parametrize("user", [0, 1000])
def test_where_there_is_a_browser_nothing_is_done(make, user: int) -> None:
    assert make(*BOTH, "apt-get", user=user) == ("", [])


def test_root_on_debian_gets_it_installed(make) -> None:
    _, calls = make("chromium", "apt-get", user=0)
    assert len(calls) == 2
    assert "update" in calls[0]
    assert {"install", "--yes", "--no-install-recommends", "chromium", "chromium-driver"} <= set(
        calls[1].split()
    )


@pytest.mark.parametrize(("user", "programs"), [(1000, ("apt-get",)), (0, ())], ids=["no root", "no Debian"])
def test_others_are_told_what_to_install(make, user: int, programs: tuple[str, ...]) -> None:
    told, calls = make(*programs, user=user)
    assert "apt-get install chromium chromium-driver" in told
    assert calls == []


def test_what_cannot_be_installed_ends_no_test_run(make) -> None:
    told, _ = make("apt-get", user=0, fails="apt-get")
    assert "could not be installed" in told
