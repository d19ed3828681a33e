"""Files that appear whole or not at all."""

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tasks.errors import ServiceUnavailableError


@contextmanager
def atomic_write(path: Path, *, keep_first: bool = False) -> Iterator[Path]:
    """Yield a temporary path, unique to this attempt, that becomes `path` when the block ends well.

    Two live attempts never write the same bytes, and a reader sees the file complete or not at all.
    With `keep_first`, a file that another attempt has finished meanwhile stays as it is: what was read
    from it must not change.

    Raises:
        ServiceUnavailableError: the folder cannot be written, or the disk is full.
    """
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        if keep_first:
            with suppress(FileExistsError):
                os.link(temporary, path)
        else:
            temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError | TimeoutError):
            raise  # an error of the block's own work
        raise _cannot_be_written(path, error) from error
    finally:
        with suppress(OSError):  # what went wrong above says more
            temporary.unlink()


Identity = tuple[int, int]
"""Of a file, whatever its name: device and inode."""


def identity(path: Path) -> Identity | None:
    """Which file, folder or link is at `path`; None if there is none."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def move_aside(path: Path, damaged: Identity) -> Path | None:
    """Give what was found damaged at `path` a hidden name beside it, and return that.

    None where it is not there any more: another attempt has met the same damage, and what it may have left
    in the place stays. Should that come just between our last look and our rename, it gets its name back.

    Raises:
        ServiceUnavailableError: the folder cannot be written.
    """
    if identity(path) != damaged:
        return None
    aside = _beside(path, "damaged-")
    try:
        path.rename(aside)
        if identity(aside) == damaged:
            return aside
        # A link never takes the place of what is there: should a third attempt have left its own, that stays.
        with suppress(FileExistsError):
            os.link(aside, path)
        aside.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _cannot_be_written(path, error) from error
    return None


def is_left_over(name: str) -> bool:
    """Whether a name is one this module gives: to a file being written, or to what it moved aside."""
    return re.fullmatch(r"\..+\.(damaged-)?[0-9a-f]{32}", name, re.DOTALL) is not None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON that a person can read."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read what write_json wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def _beside(path: Path, mark: str = "") -> Path:
    return path.with_name(f".{path.name}.{mark}{uuid.uuid4().hex}")


def _cannot_be_written(path: Path, error: OSError) -> ServiceUnavailableError:
    return ServiceUnavailableError(
        f"{path} cannot be written: {error.strerror or error} ({_free_space(path)}). "
        "Make room or give the folder's rights to this user; what is finished is kept."
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_space(path: Path) -> str:
    try:
        return f"{shutil.disk_usage(path.parent).free / 1e9:.1f} GB free there"
    except OSError:
        return "the folder is not there"
