"""The download benchmark's own side counts what it fetched."""

import json
import subprocess
import sys

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
