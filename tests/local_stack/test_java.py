import os
from pathlib import Path

import cjdk
import pytest

from local_stack import java
from tasks.errors import ConfigurationError

FULL = ("java.base", "jdk.incubator.vector", "jdk.jlink")


def make_java(home: Path, release: str, modules: tuple[str, ...] = FULL) -> Path:
    """A folder whose bin/java lists its modules as the real one does."""
    program = home / "bin" / "java"
    program.parent.mkdir(parents=True)
    listing = "\n".join(f"{module}@{release}" for module in modules)
    program.write_text(f'#!/bin/sh\n[ "$1" = --list-modules ] && cat <<END\n{listing}\nEND\n')
    program.chmod(0o755)
    return home


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one usual folder of a machine that has no Java yet and cannot fetch one."""
    usual = tmp_path / "jvm"
    usual.mkdir()
    monkeypatch.setattr(java, "USUAL_FOLDERS", (f"{usual}/*",))
    for variable in ("ES_JAVA_HOME", "JAVA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    # The fake programs need cat; the folders that have it may have a real Java too.
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "cat").symlink_to("/bin/cat")
    monkeypatch.setenv("PATH", str(tools))

    def offline(**_: object) -> Path:
        raise cjdk.InstallError("no network")

    monkeypatch.setattr(cjdk, "java_home", offline)
    return usual


def test_variables_come_before_folders_and_path(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    on_path = make_java(tmp_path / "on_path", "21")
    monkeypatch.setenv("PATH", f"{on_path / 'bin'}:{os.environ['PATH']}")
    assert java.find_java() == on_path
    usual = make_java(machine / "jdk", "21")
    assert java.find_java() == usual
    by_java_home = make_java(tmp_path / "java_home", "25.0.3")
    monkeypatch.setenv("JAVA_HOME", str(by_java_home))
    assert java.find_java() == by_java_home
    by_es_java_home = make_java(tmp_path / "es_java_home", "26-ea")
    monkeypatch.setenv("ES_JAVA_HOME", str(by_es_java_home))
    assert java.find_java() == by_es_java_home


def test_unsuitable_ones_are_passed_over(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAVA_HOME", str(make_java(tmp_path / "old", "17.0.15")))
    make_java(machine / "a", "20")
    make_java(machine / "b", "25", ("java.base", "jdk.jlink"))
    good = make_java(machine / "c", "21.0.1")
    assert java.find_java() == good


@pytest.mark.usefixtures("machine")
def test_program_on_the_path_may_be_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = make_java(tmp_path / "opt" / "jdk", "21")
    links = tmp_path / "links"
    links.mkdir()
    (links / "java").symlink_to(home / "bin" / "java")
    monkeypatch.setenv("PATH", f"{links}:{os.environ['PATH']}")
    assert java.find_java() == home


def test_message_says_what_was_wrong_with_each(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ES_JAVA_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setenv("JAVA_HOME", str(make_java(tmp_path / "old", "17.0.15")))
    make_java(machine / "jre", "21", ("java.base",))
    eight = make_java(machine / "zulu-8", "8")
    (eight / "bin" / "java").write_text("#!/bin/sh\necho Unrecognized option: --list-modules >&2; exit 1\n")
    with pytest.raises(ConfigurationError) as raised:
        java.find_java()
    message = str(raised.value)
    assert f"ES_JAVA_HOME {tmp_path}/nowhere: it has no bin/java." in message
    assert f"JAVA_HOME {tmp_path}/old: it is Java 17." in message
    assert f"{machine}/jre: it lacks jdk.incubator.vector and jdk.jlink" in message
    assert f"{machine}/zulu-8: it does not list its modules" in message
    assert "no network" in message
    for way_out in ("Install a JDK, 21 or newer", "set ES_JAVA_HOME", "set ELASTICSEARCH_URL"):
        assert way_out in message


def test_program_that_cannot_run_is_named(machine: Path):
    home = make_java(machine / "jdk", "21")
    (home / "bin" / "java").chmod(0o644)
    reason = java.why_unsuitable(home)
    assert reason is not None
    assert "Permission denied" in reason


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts programs as another user")
def test_java_that_the_servers_user_cannot_reach(machine: Path):
    home = make_java(machine / "jdk", "21")
    machine.chmod(0o700)
    assert java.why_unsuitable(home) is None
    reason = java.why_unsuitable(home, user="daemon")
    assert reason is not None
    assert reason.startswith("daemon cannot run it")


def test_one_is_fetched_where_there_is_none(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = {}

    def fetch(**request: object) -> Path:
        asked.update(request)
        return make_java(tmp_path / "fetched", "21")

    monkeypatch.setattr(cjdk, "java_home", fetch)
    make_java(machine / "old", "11")
    assert java.find_java(downloads=tmp_path) == tmp_path / "fetched"
    assert asked["version"] == "21"
    assert asked["cache_dir"] == tmp_path
