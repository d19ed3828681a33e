"""The official Elasticsearch server on this machine: fetched once, started and stopped, no Docker."""

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from local_stack.java import find_java
from local_stack.process import Server, free_port, require_free
from tasks.errors import ConfigurationError, ServiceUnavailableError

VERSION = "9.5.0"
SHA256 = "db0e275fd790f723eca7bcde96069fd6fed304ad23afdb70c8c09553dd9e8b1b"
"""Digest of the server's zip, org.elasticsearch.distribution.integ-test-zip:elasticsearch."""

START_SECONDS = 180
"""How long a start may take: 10 seconds on an idle machine, far longer on a busy one."""

# Elasticsearch refuses to run as root. This account exists on every Linux and macOS, and unlike
# `nobody` it is meant to own files.
SERVER_USER = "daemon" if os.geteuid() == 0 else None
"""Who runs the server, where that is not the user we are."""

# The distribution's own logging writes seven rolling files; one log is enough here.
LOGGING = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d{ISO8601}][%-5p][%c{1.}] %m%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
"""


class Elasticsearch:
    """A running server, alone on its data."""

    def __init__(self, server: Server, url: str) -> None:
        self._server = server
        self.pid = server.process.pid
        """The leader of the server's process group."""
        self.url = url

    @classmethod
    def start(
        cls, data: Path, log: Path, *, port: int | None = None, heap: str = "512m", brief: bool = False
    ) -> "Elasticsearch":
        """Start a server on the loopback interface and wait until it takes requests.

        Args:
            data: everything the server writes, created where missing; it survives restarts. Use
                `data_folder`, which picks one that the server's user can reach.
            log: what the server prints is appended here.
            port: None takes any free one.
            heap: the memory of its Java heap, as Java spells it; the process needs about as much again.
            brief: it will live for minutes, too short for Java's thorough compiler to pay: a start takes half
                the CPU, and searching many vectors is slower.

        Raises:
            ConfigurationError: the port is taken, the data is in use, no Java serves, or the server's
                zip is not the expected one.
            ServiceUnavailableError: the zip cannot be fetched, or the server does not come up.
        """
        if port is None:
            port = free_port()
        else:
            require_free(port, "Elasticsearch", "ELASTICSEARCH_PORT")
        _refuse_data_in_use(data)
        java = find_java(user=SERVER_USER, downloads=_cache() / "jdk")
        home = install()
        _prepare(data, home, port)
        _say(f"Starting Elasticsearch {VERSION} on port {port} ...")
        server = Server.start(
            "Elasticsearch",
            [home / "bin" / "elasticsearch", "-p", data / "pid"],
            log,
            env=os.environ
            | {
                "ES_JAVA_HOME": str(java),
                "ES_PATH_CONF": str(data / "config"),
                "ES_TMPDIR": str(data / "tmp"),
                "ES_JAVA_OPTS": f"-Xms{heap} -Xmx{heap}" + " -XX:TieredStopAtLevel=1" * brief,
                # The launcher, a Java of its own, would leave an empty folder in /tmp at every start.
                "JDK_JAVA_OPTIONS": f'"-Djava.io.tmpdir={data / "tmp"}"',
            },
            user=SERVER_USER,
            cwd=home,
        )
        try:
            server.wait_until(lambda: _takes_requests(port), START_SECONDS)
        except BaseException:
            server.stop()
            raise
        return cls(server, f"http://127.0.0.1:{port}")

    def stop(self) -> None:
        """End the server, every process of it; a second stop does nothing."""
        self._server.stop()


def server_url_from_environment() -> str | None:
    """ELASTICSEARCH_URL: the server that somebody wants used instead of one that we start."""
    return os.environ.get("ELASTICSEARCH_URL") or None


def data_folder(shop_folder: Path) -> Path:
    """Where the server of a shop keeps its data: `elasticsearch` in the shop's folder.

    For root that is a link to a folder below /var/tmp, since the user who runs the server may not
    be able to reach a home or a clone. Removing the shop's folder starts both from nothing.
    """
    folder = shop_folder.resolve() / "elasticsearch"
    if SERVER_USER is None:
        return folder
    target = _cache() / "data" / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    if not folder.is_symlink() or folder.readlink() != target:
        shutil.rmtree(target, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.unlink(missing_ok=True)
        folder.symlink_to(target)
        target.parent.mkdir(exist_ok=True)
        target.parent.chmod(0o755)  # to be reached whatever the umask
    return target


def install() -> Path:
    """The folder of the unpacked server; the first call downloads 130 MB, with a progress bar.

    Raises:
        ConfigurationError: what was downloaded is not the server we know.
        ServiceUnavailableError: Maven Central cannot be reached.
    """
    cache = _cache()
    home = cache / f"elasticsearch-{VERSION}"
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            # The lock is ours, so what is there was left by a process that was killed.
            unfinished = cache / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            try:
                archive = _download(unfinished)
                require_digest(archive, SHA256)
                _say(f"Unpacking Elasticsearch {VERSION} into {cache} ...")
                _unpack(archive, unfinished)
                (unfinished / home.name).rename(home)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return home


def require_digest(archive: Path, expected: str) -> None:
    """Refuse a file whose sha256 is another.

    Raises:
        ConfigurationError: naming both digests.
    """
    with archive.open("rb") as content:
        actual = hashlib.file_digest(content, "sha256").hexdigest()
    if actual != expected:
        raise ConfigurationError(
            f"{archive.name} is not the file it should be: its sha256 is {actual}, expected {expected}. "
            "It was not used. Look for a proxy or mirror that changes downloads, or set ELASTICSEARCH_URL "
            "to a server that already runs."
        )


def _cache() -> Path:
    """The folder that keeps the unpacked server, private to the user who starts it."""
    if SERVER_USER is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "picture-feature-index"
        cache.mkdir(parents=True, exist_ok=True)
        return cache
    cache = Path("/var/tmp/picture-feature-index-root")
    cache.mkdir(exist_ok=True)
    # Anybody may create folders in /var/tmp, and we are about to run programs from this one.
    if cache.is_symlink() or cache.stat().st_uid != os.geteuid():
        raise ConfigurationError(f"{cache} belongs to somebody else than root. Remove it and start again.")
    cache.chmod(0o755)
    return cache


def _download(folder: Path) -> Path:
    import requests
    from jgo.maven import MavenContext, PythonResolver

    maven = MavenContext(repo_cache=folder, resolver=PythonResolver(progress_callback=_progress))
    project = maven.project("org.elasticsearch.distribution.integ-test-zip", "elasticsearch")
    try:
        return project.at_version(VERSION).artifact(packaging="zip").resolve()
    except (requests.RequestException, RuntimeError) as error:
        raise ServiceUnavailableError(
            f"The Elasticsearch server could not be fetched from Maven Central: {error}. Try again with a "
            "connection to it, or set ELASTICSEARCH_URL to a server that already runs."
        ) from error


@contextlib.contextmanager
def _progress(name: str, size: int) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    with tqdm(total=size, desc=name, unit="B", unit_scale=True) as bar:
        yield bar.update


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack for everybody to read, whatever the umask; zipfile itself drops the run bits."""
    with zipfile.ZipFile(archive) as content:
        for member in content.infolist():
            path = Path(content.extract(member, folder))
            runs = member.is_dir() or (member.external_attr >> 16) & 0o111
            path.chmod(0o755 if runs else 0o644)


def _prepare(data: Path, home: Path, port: int) -> None:
    """Write the configuration and give the folder to the user who runs the server."""
    config = data / "config"
    for leftover in (config, data / "tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    for folder in (config, data / "tmp", data / "indices", data / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "cluster.name": "picture-feature-index",
        "discovery.type": "single-node",
        "network.host": "127.0.0.1",
        "http.port": port,
        "transport.port": 0,  # any: nothing but the node itself uses it
        "path.data": str(data / "indices"),
        "path.logs": str(data / "logs"),
        "xpack.security.enabled": False,
        "xpack.ml.enabled": False,
        # A laptop's disk is often fuller than the 85 % at which a cluster would stop allocating.
        "cluster.routing.allocation.disk.threshold_enabled": False,
    }
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in settings.items()]
    (config / "elasticsearch.yml").write_text("".join(lines), encoding="utf-8")
    (config / "log4j2.properties").write_text(LOGGING)
    # Less the garbage collection log, which may grow to 2 GB.
    options = (home / "config" / "jvm.options").read_text().splitlines(keepends=True)
    (config / "jvm.options").write_text("".join(line for line in options if not line.startswith("-Xlog:gc")))
    if SERVER_USER is not None:
        for path in (data, *data.iterdir(), *config.iterdir()):
            shutil.chown(path, SERVER_USER, SERVER_USER)


def _refuse_data_in_use(data: Path) -> None:
    """Elasticsearch locks its data as long as it lives; the file alone, after a kill, means nothing."""
    with contextlib.suppress(FileNotFoundError), (data / "indices" / "node.lock").open("r+b") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = (data / "pid").read_text().strip()
            raise ConfigurationError(
                f"An Elasticsearch server, process {pid}, already runs on {data}. Stop what started it; "
                f"where that was killed and left it behind, `kill {pid}` ends it."
            ) from None


def _takes_requests(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/_cluster/health?wait_for_status=yellow&timeout=5s")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False


def _say(message: str) -> None:
    # Next to tqdm's bars, and out of the way of a command's results.
    print(message, file=sys.stderr, flush=True)
