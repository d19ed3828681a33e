"""A file of features as an index: the nearest items by comparing all, or those whose codes are nearest."""

from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigurationError
from tasks.space.snapshot import ROWS_AT_ONCE, Snapshot, Writer
from tasks.space.vectors import Codes, Compact, Floats, distances, fewest

_CODES, _LEARNT = "items/code", "codes"
_SAMPLE_PAGES = 20


def add_codes(writer: Writer) -> None:
    """Learn codes from the features that were written, and write them beside.

    Raises:
        ValueError: there are fewer than two features.
    """
    file = writer.file
    features = file["dataset_1"]
    pages = [slice(begin, begin + ROWS_AT_ONCE) for begin in range(0, len(features), ROWS_AT_ONCE)]
    sample = pages[:: max(1, len(pages) // _SAMPLE_PAGES)]
    compact = Compact.learnt(features[page] for page in sample)
    codes = Codes.learnt(np.concatenate([compact.vectors(features[page]) for page in sample]))
    learnt = file.create_group(_LEARNT)
    for name, array in (
        ("mean", compact.mean),
        ("directions", compact.directions),
        ("rotation", codes.rotation),
    ):
        learnt[name] = array
    written = file.create_dataset(_CODES, (len(features), codes.rotation.shape[0] // 8), np.uint8)
    for page in pages:
        written[page] = codes.of(compact.vectors(features[page]))


class Found(NamedTuple):
    """An item that a search found."""

    name: str
    picture: str
    """Its path or URL; empty where none is known."""
    cosine: float


def exact(snapshot: Snapshot, feature: Floats, most: int) -> list[Found]:
    """The nearest items to a feature [2048], nearest first, by comparing with all."""
    direction = feature / np.linalg.norm(feature)
    cosines = np.empty(len(snapshot), np.float32)
    for begin, page in snapshot.pages():
        np.matmul(page, direction, out=cosines[begin : begin + len(page)])
    return _best(snapshot, np.arange(len(cosines)), cosines, most)


class ByCodes:
    """The same among candidates: the items whose codes differ in the fewest bits."""

    def __init__(self, snapshot: Snapshot) -> None:
        """Read the codes, 16 bytes an item.

        Raises:
            ConfigurationError: the file holds none.
        """
        try:
            learnt: h5py.Group = snapshot.file[_LEARNT]
            self._compact = Compact(learnt["mean"][()], learnt["directions"][()])
            self._codes = Codes(learnt["rotation"][()])
            self._all = snapshot.file[_CODES][()]
        except KeyError:
            raise ConfigurationError(
                "The file holds no codes: export it again, or search it exactly."
            ) from None
        self._snapshot = snapshot

    def nearest(self, feature: Floats, most: int, candidates: int) -> list[Found]:
        """The nearest items to a feature [2048], nearest first, out of so many candidates."""
        direction = feature / np.linalg.norm(feature)
        (code,) = self._codes.of(self._compact.vectors(direction[np.newaxis]))
        rows = fewest(distances(code, self._all), candidates)
        return _best(self._snapshot, rows, self._snapshot.features(rows) @ direction, most)


def _best(snapshot: Snapshot, rows: NDArray[np.int64], cosines: Floats, most: int) -> list[Found]:
    """Of these rows those with the highest cosines; of equal ones the first."""
    if most < len(rows):
        least = np.partition(cosines, -most)[-most]
        kept = cosines >= least
        rows, cosines = rows[kept], cosines[kept]
    order = np.argsort(-cosines, kind="stable")[:most]
    return _described(snapshot, rows[order], cosines[order])


def _described(snapshot: Snapshot, rows: NDArray[np.int64], cosines: Floats) -> list[Found]:
    known = [(int(row), float(cosine)) for row, cosine in zip(rows, cosines, strict=True)]
    in_order = sorted(row for row, _ in known)
    named = zip(snapshot.names(in_order), snapshot.pictures(in_order), strict=True)
    by_row = dict(zip(in_order, named, strict=True))
    return [Found(*by_row[row], cosine) for row, cosine in known]
