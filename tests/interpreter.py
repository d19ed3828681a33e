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


def peak_of(prepare: str, work: str, *arguments: object) -> int:
    """Bytes of Python's memory that `work` has at most, after `prepare`. Here, beside the threads of
    TensorFlow and Arrow, tracing memory has come to a deadlock.
    """
    measured = f"import tracemalloc\ntracemalloc.start()\n{work}\nprint(tracemalloc.get_traced_memory()[1])\n"
    return int(output_of(f"{prepare}\n{measured}", *arguments))
