"""Files that appear whole or not at all."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tasks.errors import ServiceUnavailableError


@contextmanager
def appearing_whole(path: Path, *, keep_first: bool = False) -> Iterator[Path]:
    """Yield a temporary path, unique to this attempt, that becomes `path` when the block ends well.

    Two live attempts never write the same bytes, and a reader sees the file complete or not at all.
    With `keep_first`, a file that another attempt has finished meanwhile stays as it is: what was read
    from it must not change.

    Raises:
        ServiceUnavailableError: the folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
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
        free = _free_space(path)
        raise ServiceUnavailableError(
            f"{path} cannot be written: {error.strerror or error} ({free}). "
            "Make room or give the folder's rights to this user; what is finished is kept."
        ) from error
    finally:
        with suppress(OSError):  # what went wrong above says more
            temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON that a person can read."""
    with appearing_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read what write_json wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


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
