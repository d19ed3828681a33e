"""Starts a server as a process group of its own, waits for it, and ends the whole group, whatever ends us."""

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tasks.errors import ConfigurationError, ServiceUnavailableError

TERM_SECONDS = 20
"""How long a group may take to end by itself before it is killed."""


def interrupt_when_told_to_end() -> None:
    """Take SIGTERM for Ctrl-C, which ends what we started first, and heed that in the background as well.

    SIGTERM counts once: a time limit may say it to us and to our group, while the servers are being ended.
    """

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def free_port() -> int:
    """A TCP port of the loopback interface that is kept for a server for the next minute."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        # Of a connection that this side ends first, the port lingers for a minute: only who names it gets it,
        # neither another one who wants any port, nor a connection that goes out.
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()
            client.recv(1)
    return port


def port_from_environment(variable: str, default: int) -> int:
    """The port that a variable names.

    Raises:
        ConfigurationError: it names none.
    """
    value = os.environ.get(variable) or str(default)
    if not value.isdecimal() or not 0 < int(value) < 65536:
        raise ConfigurationError(f"{variable}={value!r} is not a port; use a number from 1 to 65535.")
    return int(value)


def require_free(port: int, purpose: str, variable: str) -> None:
    """Refuse a taken port.

    Raises:
        ConfigurationError: naming what wanted the port and the variable that moves it.
    """
    with socket.socket() as probe:
        # A port whose last connections still linger is free for a server, so ask as servers do.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigurationError(
                f"Port {port}, meant for {purpose}, is taken ({error.strerror}). "
                f"Stop what listens there, or choose another with {variable}=PORT."
            ) from None


class Server:
    """One server process with its children and its log file."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: Path | None = None,
    ) -> "Server":
        """Start `command` in a new session, output appended to `log`; `user` only works for root."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env) if env is not None else None,
                user=user,
                group=pwd.getpwnam(user).pw_gid if user else None,
                extra_groups=[] if user else None,
                cwd=cwd,
                start_new_session=True,
            )
        return cls(name, process, log)

    @classmethod
    def start_listening(
        cls, name: str, command: Sequence[str | Path], port: int, log: Path, *, cwd: Path, seconds: float
    ) -> "Server":
        """As `start`, and return once it takes connections on a port of the loopback interface.

        Raises:
            ServiceUnavailableError: it did not within `seconds`; nothing of it is left.
        """
        server = cls.start(name, command, log, cwd=cwd)

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        try:
            server.wait_until(listens, seconds)
        except BaseException:
            server.stop()
            raise
        return server

    def wait_until(self, healthy: Callable[[], bool], seconds: float) -> None:
        """Return once `healthy()`, asked every 0.2 seconds.

        Raises:
            ServiceUnavailableError: with the end of the log when the process ends or time is up.
        """
        deadline = time.monotonic() + seconds
        while not healthy():
            if self.process.poll() is not None:
                raise ServiceUnavailableError(f"{self.name} ended at once.\n{self.last_lines()}")
            if time.monotonic() > deadline:
                raise ServiceUnavailableError(
                    f"{self.name} was not ready after {seconds:.0f} s.\n{self.last_lines()}"
                )
            time.sleep(0.2)

    def last_lines(self, count: int = 15) -> str:
        """The end of the log, with where to read the rest."""
        lines = self.log.read_text(errors="replace").splitlines()[-count:]
        return "\n".join([f"The last lines of {self.log}:", *lines])

    def stop(self) -> None:
        """End the process and everything it started."""
        stop_group(self.process.pid)
        self.process.wait()


def stop_group(leader: int) -> None:
    """End the process group of `leader`: politely, then by force; one that is gone is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGTERM)
        deadline = time.monotonic() + TERM_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(leader, os.WNOHANG)
            os.killpg(leader, 0)
            time.sleep(0.1)
        os.killpg(leader, signal.SIGKILL)
