"""Starts the process behind the HTTP API, `python -m tasks.serve`."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from local_stack.process import Server
from tasks.serve.client import Inference, InferenceError
from tasks.settings import Settings

COMMAND = (sys.executable, "-P", "-m", "tasks.serve")

_START_SECONDS = 120
"""To import TensorFlow and load the model, while other servers start beside it."""


def start(settings: Settings, log: Path, *, env: Mapping[str, str] | None = None) -> Server:
    """Start it, and return once it answers.

    Args:
        settings: what it will read from its environment, where the socket is among it.
        log: what its output is appended to.
        env: its environment; None is ours.

    Raises:
        ServiceUnavailableError: it did not come up, and nothing of it is left.
    """
    server = Server.start("python -m tasks.serve", COMMAND, log, env=env)
    inference = Inference(settings)

    def answers() -> bool:
        with suppress(InferenceError):
            return inference.request("GET", "/health").http_status == 200
        return False

    try:
        server.wait_until(answers, _START_SECONDS)
    except BaseException:
        server.stop()
        raise
    return server
