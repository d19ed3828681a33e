"""Who may start and who may end a shop; the servers themselves are tested where they are started."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from local_stack import demo, stack, up
from local_stack.process import Server, free_port, port_from_environment, require_free
from tasks import files
from tasks.errors import ConfigurationError


@pytest.fixture
def var(tmp_path, monkeypatch):
    """The folder of the shops, with none in it."""
    monkeypatch.setattr(stack, "REPOSITORY", tmp_path)
    for variable in (stack.CATALOGUE_VARIABLE, stack.SEARCH_VARIABLE, "ELASTICSEARCH_URL"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "var"


@pytest.fixture
def server():
    """A process that stands for a shop's server."""
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    )
    yield process
    process.kill()
    process.wait()


def _record(folder, server, owner):
    identity = [server.pid, psutil.Process(server.pid).create_time()]
    files.write_json(folder / "processes.json", {"owner": owner, "servers": {"image server": identity}})


@pytest.mark.parametrize("command", [demo.demonstrate, up.up])
def test_a_shop_that_runs_is_neither_started_again_nor_ended(var, server, command):
    _record(var / "rendered", server, owner=None)
    with pytest.raises(ConfigurationError, match="make down"):
        command(None)
    assert server.poll() is None


def test_another_demos_shop_is_left_to_it(var, server):
    _record(var / "rendered", server, owner=[os.getppid(), psutil.Process(os.getppid()).create_time()])
    with pytest.raises(ConfigurationError, match=f"process {os.getppid()}"):
        demo.demonstrate(None)
    assert server.poll() is None


def test_down_ends_what_an_interrupted_demo_left_and_nothing_else(var, server, capsys):
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    try:
        _record(var / "rendered", server, owner=[server.pid, 0.0])
        # An id that was used again since: the start time tells.
        files.write_json(
            var / "older" / "processes.json", {"owner": None, "servers": {"image server": [other.pid, 1.0]}}
        )
        up.down()
        assert not psutil.pid_exists(server.pid)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    assert capsys.readouterr().out == "Ended: rendered.\n"
    assert stack.running_shops() == []


def test_a_shop_of_which_only_airflow_runs_is_found(var):
    files.write_json(var / "theirs" / "airflow" / "processes.json", {})
    assert stack.running_shops() == [var / "theirs"]


def test_shops_never_share_a_folder(var, tmp_path):
    folders = {stack.shop_folder(path) for path in (None, tmp_path / "a" / "shop", tmp_path / "b" / "shop")}
    assert len(folders) == 3
    assert {folder.parent for folder in folders} == {var}


def test_a_free_port_is_kept_for_its_server():
    port = free_port()
    with socket.socket() as anyone, pytest.raises(OSError, match="in use"):
        anyone.bind(("127.0.0.1", port))
    require_free(port, "a server", "PORT")
    with socket.create_server(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
        pass


@pytest.mark.parametrize("value", ["0", "65536", "x", "-1", "80.5"])
def test_what_is_no_port_is_named(monkeypatch, value):
    monkeypatch.setenv("AIRFLOW_PORT", value)
    with pytest.raises(ConfigurationError, match="AIRFLOW_PORT"):
        port_from_environment("AIRFLOW_PORT", 8080)


def test_bad_items_are_named_before_anything_starts(var, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "items.csv").write_text("item_id,item_name,category_id,registered_at\n")
    with pytest.raises(ConfigurationError, match="img_path"):
        demo.demonstrate(images)
    assert not list(Path(var).rglob("*.log"))


def test_an_inference_process_is_started_again_only_when_it_has_ended(var, server, monkeypatch):
    started = []

    def start(settings, log):
        started.append((settings.data_dir, log))
        return Server("inference", server, log)

    monkeypatch.setattr(stack.inference, "start", start)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    folder = var / "rendered"
    _record(folder, server, owner=None)
    environment = {"FEATURES_DATA_DIR": str(folder)}
    assert stack.serve_again(folder, environment)
    assert started == [(folder, folder / "inference.log")]
    assert set(files.read_json(folder / "processes.json")["servers"]) == {"image server", "inference"}
    assert not stack.serve_again(folder, environment)
    assert len(started) == 1
