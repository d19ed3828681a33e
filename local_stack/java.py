"""Finds a Java that the Elasticsearch server runs on."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import ConfigurationError

OLDEST = 21
"""The oldest Java release that Elasticsearch 9 runs on."""

MODULES = ("jdk.incubator.vector", "jdk.jlink")
"""What the server loads beyond java.base and a small JRE may lack."""

USUAL_FOLDERS = (
    "/usr/lib/jvm/*",
    "/usr/lib64/jvm/*",
    "/usr/java/*",
    "/opt/java*",
    "/opt/java/*",
    "/opt/jdk*",
    "/Library/Java/JavaVirtualMachines/*/Contents/Home",
    "~/.sdkman/candidates/java/*",
    "~/.jdks/*",
)
"""Where distributions and installers put one Java a folder."""


def find_java(*, user: str | None = None, downloads: Path | None = None) -> Path:
    """The home folder of a Java that Elasticsearch runs on; fetched where this machine has none.

    Looked at in this order: ES_JAVA_HOME, JAVA_HOME, the usual folders, `java` on the PATH.

    Args:
        user: who will run it, where that is somebody else than we are; only root can ask this.
        downloads: keeps a Java that had to be fetched; None is cjdk's own cache.

    Raises:
        ConfigurationError: what was found, why it does not serve, and what to install.
    """
    refused = []
    seen = set()
    for origin, home in _candidates():
        if home.resolve() in seen:
            continue
        seen.add(home.resolve())
        if (reason := why_unsuitable(home, user)) is None:
            return home.resolve()
        refused.append(f"{origin} {home}: {reason}.")
    try:
        home = _fetch(downloads)
        if (reason := why_unsuitable(home, user)) is None:
            return home
        refused.append(f"fetched {home}: {reason}.")
    except Exception as error:  # whatever stops the download, the advice is the same
        refused.append(f"Fetching one failed: {error}")
    raise ConfigurationError(
        "\n  ".join([f"Elasticsearch needs Java {OLDEST} or newer, and there is none:", *refused])
        + f"\nInstall a JDK, {OLDEST} or newer (the distribution's package or Temurin), or set ES_JAVA_HOME "
        "to the folder of one, or set ELASTICSEARCH_URL to a server that already runs."
    )


def why_unsuitable(home: Path, user: str | None = None) -> str | None:
    """Why Elasticsearch cannot run on the Java in `home` as `user`; None when it can."""
    try:
        # One question answers all: it runs, it is new enough to know modules, and here they are.
        answer = subprocess.run(
            [home / "bin" / "java", "--list-modules"],
            capture_output=True,
            text=True,
            timeout=60,
            user=user,
            group=user,
            extra_groups=[] if user else None,
            cwd="/",
        )
    except FileNotFoundError:
        return "it has no bin/java"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{user or 'this user'} cannot run it ({getattr(error, 'strerror', 'no answer')})"
    release = re.search(r"^java\.base@(\d+)", answer.stdout, re.MULTILINE)
    if release is None:
        return "it does not list its modules, as Java 9 and newer do"
    if int(release[1]) < OLDEST:
        return f"it is Java {release[1]}"
    present = {line.split("@")[0] for line in answer.stdout.splitlines()}
    if missing := [module for module in MODULES if module not in present]:
        return f"it lacks {' and '.join(missing)}; a full JDK has them"
    return None


def _candidates() -> Iterator[tuple[str, Path]]:
    """Where Java may be, best first: how it was found, and its home folder."""
    for variable in ("ES_JAVA_HOME", "JAVA_HOME"):
        if value := os.environ.get(variable):
            yield variable, Path(value)
    for pattern in USUAL_FOLDERS:
        whole = Path(pattern).expanduser()
        for home in sorted(Path(whole.anchor).glob(str(whole.relative_to(whole.anchor)))):
            if (home / "bin" / "java").exists():
                yield "found", home
    if program := shutil.which("java"):
        yield "java on the PATH, in", Path(program).resolve().parent.parent


def _fetch(downloads: Path | None) -> Path:
    """Download a JDK, with a progress bar, unless that was done before."""
    import cjdk

    home: Path = cjdk.java_home(vendor="adoptium", version=str(OLDEST), cache_dir=downloads)
    return home
