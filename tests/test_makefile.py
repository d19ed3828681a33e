"""`make browser` and `make mariadb`, with programs that only write down how they were called."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PROGRAMS = {"browser": ("chromium", "chromedriver"), "mariadb": ("mariadb-install-db",)}
PACKAGES = {"browser": "chromium chromium-driver", "mariadb": "mariadb-server-core"}


@pytest.fixture(params=PROGRAMS)
def target(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(tmp_path: Path, target: str):
    """Runs the target where only these programs are, and gives its output and the calls."""
    calls = tmp_path / "calls"
    calls.touch()

    def run(*programs: str, user: int, fails: str = "") -> tuple[str, list[str]]:
        (tmp_path / "sh").symlink_to(str(shutil.which("sh")))
        for name in (*programs, "id"):
            prints = f"echo {user}" if name == "id" else f'echo "{name} $*" >> {calls}'
            (tmp_path / name).write_text(f"#!{shutil.which('sh')}\n{prints}\n{'exit 1' * (name == fails)}\n")
            (tmp_path / name).chmod(0o755)
        done = subprocess.run(
            [str(shutil.which("make")), "--silent", "SHELL=/bin/sh", target],
            cwd=REPOSITORY,
            env={"PATH": str(tmp_path)} | {k: v for k, v in os.environ.items() if k == "LANG"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr, calls.read_text().splitlines()

    return run


@pytest.mark.parametrize("user", [0, 1000])
def test_where_it_is_there_nothing_is_done(make, target: str, user: int) -> None:
    assert make(*PROGRAMS[target], "apt-get", user=user) == ("", [])


def test_root_on_debian_gets_it_installed(make, target: str) -> None:
    _, calls = make(*PROGRAMS[target][:-1], "apt-get", user=0)
    assert len(calls) == 2
    assert "update" in calls[0]
    wanted = {"install", "--yes", "--no-install-recommends", *PACKAGES[target].split()}
    assert wanted <= set(calls[1].split())


@pytest.mark.parametrize(("user", "programs"), [(1000, ("apt-get",)), (0, ())], ids=["no root", "no Debian"])
def test_others_are_told_what_to_install(make, target: str, user: int, programs: tuple[str, ...]) -> None:
    told, calls = make(*programs, user=user)
    assert f"apt-get install {PACKAGES[target]}" in told
    assert calls == []


def test_what_cannot_be_installed_ends_no_test_run(make) -> None:
    told, _ = make("apt-get", user=0, fails="apt-get")
    assert "could not be installed" in told


def test_all_of_them_come_before_the_tests() -> None:
    (line,) = [
        line for line in (REPOSITORY / "Makefile").read_text().splitlines() if line.startswith("test:")
    ]
    assert set(PROGRAMS) <= set(line.partition("#")[0].split())
