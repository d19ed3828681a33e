"""What `python -m benchmarks` says when it cannot begin."""

import subprocess
import sys

import pytest

from benchmarks import __main__ as module
from tasks.settings import REPOSITORY


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--photos", "no/such/folder"], 1, "There is no no/such/folder/items.csv. The benchmarks need"),
        (["speed"], 2, "there is no benchmark speed, only pipeline, feed, model_speed, "),
        (["--rounds", "0"], 2, "'0' is no number of rounds"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(arguments, code, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    monkeypatch.setattr(module, "interrupt_when_told_to_end", lambda: None)
    try:
        ended = module.main()
    except SystemExit as refused:
        ended = refused.code
    assert ended == code
    assert said in capsys.readouterr().err


def test_server_that_does_not_answer_is_named(tmp_path, monkeypatch):
    (tmp_path / "items.csv").write_text(
        "item_id,item_name,category_id,img_path,registered_at\n"
        "1,hat,00000020,/hat.jpg,2026-10-01T02:14:26+00:00\n"
    )
    monkeypatch.setenv("ELASTICSEARCH_URL", "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--photos", tmp_path, "retrieval"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 1
    assert "http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
