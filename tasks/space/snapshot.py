"""The features of many items in one HDF5 file, which is an index without a server as well.

`dataset_1` holds the features and `dataset_2` the items' names, as readers of such files expect; what else
is known of the items lies in the group `items`. Rows are written and read in a stream, whatever their number.
"""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from tasks import files
from tasks.errors import ConfigurationError
from tasks.inference.model import Identity

ROWS_AT_ONCE = 1_024
"""Rows of a page, a chunk of the file: 8 MB of features."""
_DIMENSIONS = 2_048

_FEATURES, _NAMES, _CATEGORIES, _PICTURES = "dataset_1", "dataset_2", "items/category", "items/picture"
_TEXT = h5py.string_dtype()

Floats = NDArray[np.float32]


class Writer:
    """Appends rows to a snapshot."""

    def __init__(self, file: h5py.File) -> None:
        self.file = file
        self._features = self._column(_FEATURES, "<f4", _DIMENSIONS)
        self._texts = [self._column(name, _TEXT) for name in (_NAMES, _CATEGORIES, _PICTURES)]

    def __len__(self) -> int:
        return len(self._features)

    def add(
        self, names: Sequence[str], categories: Sequence[str], pictures: Sequence[str], features: Floats
    ) -> None:
        """Append items with their categories, paths or URLs of pictures, and features [n, 2048], which need
        not have length 1.

        Raises:
            ValueError: a feature of zeros, or one that is not finite.
        """
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise ValueError("a feature without a direction")
        begin = len(self._features)
        for column, values in zip(
            (self._features, *self._texts), (features / lengths, names, categories, pictures), strict=True
        ):
            column.resize(begin + len(names), axis=0)
            column[begin:] = values

    def _column(self, name: str, kind: object, *width: int) -> h5py.Dataset:
        return self.file.create_dataset(
            name, (0, *width), kind, maxshape=(None, *width), chunks=(ROWS_AT_ONCE, *width)
        )


@contextmanager
def writing(path: Path, model: Identity) -> Iterator[Writer]:
    """A Writer whose snapshot of the model's features is at `path` once the block ends well, and whole.

    Raises:
        ServiceUnavailableError: the folder cannot be written, or the disk is full.
    """
    with files.atomic_write(path) as temporary, h5py.File(temporary, "w", libver="latest") as file:
        file.attrs["feature_version"] = model.version
        file.attrs["model_fingerprint"] = model.fingerprint
        yield Writer(file)


class Snapshot:
    """A snapshot that was written; use it in a `with` block. Its features are read where they lie, from the
    file that is mapped into memory.
    """

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            ConfigurationError: there is no such file, or it is none of features.
        """
        if not path.is_file():
            raise ConfigurationError(f"There is no file {path}.")
        try:
            with ExitStack() as opened:
                self.file = opened.enter_context(h5py.File(path))
                self.model = Identity(
                    str(self.file.attrs["feature_version"]), str(self.file.attrs.get("model_fingerprint", ""))
                )
                self._names, self._categories, self._pictures = (
                    self.file[name].asstr() for name in (_NAMES, _CATEGORIES, _PICTURES)
                )
                self._pages = _mapped(self.file[_FEATURES], path)
                self._open = opened.pop_all()
        except (OSError, KeyError, ValueError) as error:
            raise ConfigurationError(f"{path} is no file of features: {error}.") from None

    def __enter__(self) -> "Snapshot":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def __len__(self) -> int:
        return len(self._names)

    def names(self, rows: slice | Sequence[int] = slice(None)) -> list[str]:
        """The items' names; `rows` are in order."""
        return list(self._names[rows])

    def categories(self, rows: slice = slice(None)) -> list[str]:
        """Their categories; empty where an item has none."""
        return list(self._categories[rows])

    def pictures(self, rows: slice | Sequence[int] = slice(None)) -> list[str]:
        """The paths or URLs of their pictures; empty where none is known."""
        return list(self._pictures[rows])

    def pages(self) -> Iterator[tuple[int, Floats]]:
        """All features in pages [n, 2048], each of length 1, with the number of a page's first row."""
        for number, page in enumerate(self._pages):
            yield number * ROWS_AT_ONCE, page

    def features(self, rows: NDArray[np.int64]) -> Floats:
        """The features of some rows [n, 2048]."""
        return np.array([self._pages[row // ROWS_AT_ONCE][row % ROWS_AT_ONCE] for row in rows])


def _mapped(features: h5py.Dataset, path: Path) -> list[Floats]:
    """The pages of a dataset [n, 2048] as they lie in the file.

    Raises:
        ValueError: it is none that `writing` has left.
    """
    rows, width = features.shape
    if (width, features.dtype.str, features.chunks) != (_DIMENSIONS, "<f4", (ROWS_AT_ONCE, width)):
        raise ValueError("its features lie otherwise than in one that was exported")
    count = -(-rows // ROWS_AT_ONCE)
    if not count:
        return []
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    pages = {}
    for number in range(count):
        info = features.id.get_chunk_info(number)
        if info.byte_offset is None or info.filter_mask:
            raise ValueError("its features are compressed, or not all there")
        begin = info.chunk_offset[0]
        shape = (min(ROWS_AT_ONCE, rows - begin), width)
        pages[begin] = np.ndarray(shape, "<f4", mapped, info.byte_offset)
    return [pages[begin] for begin in sorted(pages)]
