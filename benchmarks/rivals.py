"""Environments of their own for programs of the benchmarks alone, whose packages are not ours."""

import hashlib
import subprocess
import sys
from pathlib import Path

from tasks.errors import ServiceUnavailableError
from tasks.settings import REPOSITORY


def python_with(name: str) -> Path:
    """The interpreter of the environment locked in benchmarks/<name>.txt, made where it is not there yet.

    Raises:
        ServiceUnavailableError: it cannot be installed.
    """
    locked = REPOSITORY / "benchmarks" / f"{name}.txt"
    environment = REPOSITORY / "var" / f"{name}-{hashlib.sha256(locked.read_bytes()).hexdigest()[:12]}"
    python, installed = environment / "bin" / "python", environment / "installed"
    if not installed.exists():
        print(f"Installing {name} into an environment of its own ...", file=sys.stderr, flush=True)
        uv = Path(sys.executable).with_name("uv")
        for arguments in (
            ["venv", "--clear", "--python", sys.executable, environment],
            ["pip", "install", "--python", python, "--require-hashes", "-r", locked],
        ):
            done = subprocess.run([uv, "-q", *arguments], capture_output=True, text=True)
            if done.returncode != 0:
                raise ServiceUnavailableError(
                    f"{name} cannot be installed from {locked}:\n{done.stderr}\nThis benchmark needs it: "
                    "let uv reach a package index (UV_DEFAULT_INDEX=URL, HTTPS_PROXY), or "
                    "name the other benchmarks alone."
                )
        installed.touch()
    return python
