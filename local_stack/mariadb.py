"""A real MariaDB server for tests and benchmarks: Debian's, on a socket in a folder that goes with it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local_stack.elasticsearch import SERVER_USER
from local_stack.process import Server

_START_SECONDS = 60


def missing() -> str | None:
    """What has to be installed before the server can be started; None where all is there."""
    return (
        None if _program() else "There is no MariaDB server; on Debian: apt-get install mariadb-server-core"
    )


@contextmanager
def running(parent: Path | None = None) -> Iterator[str]:
    """The path of the socket of an empty server that takes any log-in and is at no port.

    Args:
        parent: where its folder is made; None: among other temporary files.

    Raises:
        ServiceUnavailableError: it did not come up.
    """
    import pymysql

    with tempfile.TemporaryDirectory(prefix="mariadb-", dir=parent) as name:
        folder = Path(name)
        (folder / "data").mkdir()
        if SERVER_USER:  # it refuses to run as root
            for path in (folder, folder / "data"):
                shutil.chown(path, SERVER_USER)
        socket = str(folder / "socket")
        server = Server.start("MariaDB", _command(folder, socket), folder / "log", user=SERVER_USER)

        def takes_requests() -> bool:
            try:
                pymysql.connect(unix_socket=socket).close()
            except pymysql.OperationalError:
                return False
            return True

        try:
            server.wait_until(takes_requests, _START_SECONDS)
            yield socket
        finally:
            server.stop()


def _program() -> str | None:
    # Debian's is where only root's PATH leads.
    return shutil.which("mariadbd", path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")


def _command(folder: Path, socket: str) -> list[str]:
    return [
        str(_program()),
        "--no-defaults",
        f"--datadir={folder / 'data'}",
        f"--tmpdir={folder}",
        f"--socket={socket}",
        f"--pid-file={folder / 'pid'}",
        "--skip-networking",
        # Without the tables of users and what else takes seconds to make.
        "--skip-grant-tables",
        "--innodb-stats-persistent=0",
        # What is lost with the folder need not be safe.
        "--innodb-log-file-size=32M",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-flush-method=nosync",
        "--innodb-doublewrite=0",
        "--sync-frm=0",
        "--character-set-server=utf8mb4",
    ]
