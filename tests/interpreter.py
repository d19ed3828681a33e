"""A Python of its own, for what a test cannot do in its own process."""

import subprocess
import sys

from tasks.settings import REPOSITORY


def output_of(script: str, *arguments: object) -> str:
    """What a script prints, which ends well within a minute."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
