"""Names of the shop's categories, which people see beside the ids: as the last plan read them.

They lie in the data dir, so that pages, forms and the HTTP API need no access to the catalogue.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tasks import files
from tasks.settings import Settings


class CategoryNames:
    """Names by category id; an id without one stands for itself."""

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        self._names = names or {}

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """The names of the last plan; none where there are none, or they cannot be read."""
        path = _path(settings)
        try:
            status = path.stat()
            return cls(_read(path, status.st_ino, status.st_mtime_ns))
        except (OSError, ValueError):
            return cls()

    def save(self, settings: Settings) -> None:
        """Keep them in the place of those before.

        Raises:
            ServiceUnavailableError: the data dir cannot be written.
        """
        if self._names != type(self).load(settings)._names:
            files.write_json(_path(settings), self._names)

    def of(self, category_id: str) -> str:
        """The id with its name, such as `00000030 t-shirt`."""
        name = self._names.get(category_id)
        return f"{category_id} {name}" if name else category_id

    def among(self, category_ids: Sequence[str]) -> dict[str, str]:
        """The names of those of these categories that have one, by id."""
        return {id_: self._names[id_] for id_ in category_ids if id_ in self._names}

    def id_of(self, text: str) -> str:
        """The id in what `of` gave; any other text as it is."""
        known = (id_ for id_ in self._names if text.startswith(id_) and self.of(id_) == text)
        return next(known, text)

    def first(self, count: int) -> list[str]:
        """So many of them with their ids, in the order of the ids, and last how many there are besides."""
        shown = [self.of(id_) for id_ in sorted(self._names)[:count]]
        left = len(self._names) - len(shown)
        return [*shown, f"and {left} more"] if left else shown


def _path(settings: Settings) -> Path:
    return settings.data_dir / "category_names.json"


@functools.lru_cache(maxsize=1)
def _read(path: Path, _inode: int, _modified: int) -> dict[str, str]:
    """What the file holds, read again only when it is another one."""
    found = files.read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no names")
    return {str(id_): str(name) for id_, name in found.items()}
