"""What is known of the index's pictures from before: their codes, and who leads their groups.

It is kept in one file and made from the index alone: without it, everything is compared again. Codes of two
feature spaces cannot be compared, so the space that it began with stays, whichever is published since.
"""

import hashlib
import io
import logging
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks import files
from tasks.inference.model import Identity
from tasks.settings import Settings
from tasks.space import published
from tasks.space.vectors import COMPACT, Codes, Compact

log = logging.getLogger(__name__)

SHA256 = np.dtype("S32")
"""A picture's sha256. NumPy does not count zeros at its end, which between digests of one length changes
nothing."""

Pictures = NDArray[np.bytes_]
Rows = NDArray[np.int64]


def _no_pictures() -> Pictures:
    return np.empty(0, SHA256)


@dataclass
class Known:
    """The pictures that are in groups by now: 56 bytes each."""

    model: Identity
    compact: Compact
    codes_of: Codes
    pictures: Pictures = field(default_factory=_no_pictures)
    """[n], in the order in which they came."""
    codes: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, COMPACT // 8), np.uint8))
    """[n, 16]."""
    leaders: Rows = field(default_factory=lambda: np.empty(0, np.int64))
    """[n], the row of each one's leader, its own where it leads."""

    @classmethod
    def load(cls, settings: Settings, model: Identity) -> "Known":
        """What the last run has left; nothing, with the published space, where that was none of this model.

        Raises:
            ConfigurationError: there is nothing from before, and no space is published.
            ServiceUnavailableError: the file cannot be read.
        """
        try:
            if (found := cls._read(_path(settings))).model.same_as(model):
                return found
            log.info("The groups were of features of %s; they are made anew.", found.model)
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("%s cannot be read (%s): the groups are made anew.", _path(settings), error)
        space = published.published(settings, model)
        return cls(model, space.compact, space.codes)

    @classmethod
    def _read(cls, path: Path) -> "Known":
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as held:
            known = cls(
                Identity(str(held["feature_version"]), str(held["model_fingerprint"])),
                Compact(held["mean"], held["directions"]),
                Codes(held["rotation"]),
                held["pictures"],
                held["codes"],
                held["leaders"],
            )
        if not len(known.pictures) == len(known.codes) == len(known.leaders):
            raise ValueError("its columns differ in length")
        return known

    def save(self, settings: Settings) -> None:
        """Keep it for the next run.

        Raises:
            ServiceUnavailableError: the data dir cannot be written.
        """
        with files.atomic_write(_path(settings)) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                feature_version=np.array(self.model.version),
                model_fingerprint=np.array(self.model.fingerprint),
                mean=self.compact.mean,
                directions=self.compact.directions,
                rotation=self.codes_of.rotation,
                pictures=self.pictures,
                codes=self.codes,
                leaders=self.leaders,
            )

    def keep(self, there: Pictures) -> None:
        """Forget the pictures that are not `there` any more, which is sorted, and those that they led: who
        leads these is seen anew.
        """
        kept = _holds(there, self.pictures)
        kept &= kept[self.leaders]
        moved = np.cumsum(kept) - 1
        self.pictures, self.codes = self.pictures[kept], self.codes[kept]
        self.leaders = moved[self.leaders[kept]]

    def add(self, pictures: Pictures, codes: NDArray[np.uint8], leaders: Rows) -> None:
        """Take in new pictures with their codes and the rows of their leaders."""
        self.pictures = np.concatenate([self.pictures, pictures])
        self.codes = np.concatenate([self.codes, codes])
        self.leaders = np.concatenate([self.leaders, leaders])

    def without(self, pictures: Pictures) -> Pictures:
        """Those of `pictures` that are not known, in their order."""
        return pictures[~_holds(np.sort(self.pictures), pictures)]


class Groups:
    """The group of each picture, by its sha256."""

    def __init__(self, known: Known) -> None:
        order = np.argsort(known.pictures, kind="stable")
        self._known = known.pictures
        self._ordered = known.pictures[order]
        self._leaders = known.leaders[order]
        self.sizes = np.zeros(len(order), np.int64)
        """Documents that were counted, by the row of their leader."""

    def of(self, pictures: Sequence[str]) -> list[str]:
        """The groups of pictures, given as hexadecimal digests: the digests of their leaders; its own for one
        that is not known."""
        leaders, known = self._led_by(pictures)
        found = iter(hexadecimal(self._known[leaders]))
        return [
            next(found) if is_known else picture for picture, is_known in zip(pictures, known, strict=True)
        ]

    def count(self, pictures: Sequence[str]) -> None:
        """Count documents that show these pictures."""
        np.add.at(self.sizes, self._led_by(pictures)[0], 1)

    def _led_by(self, pictures: Sequence[str]) -> tuple[Rows, NDArray[np.bool_]]:
        """The leaders' rows of those pictures that are known, and which these are."""
        asked = digests(pictures)
        known = _holds(self._ordered, asked)
        return self._leaders[np.searchsorted(self._ordered, asked[known])], known


def digests(pictures: Iterable[str]) -> Pictures:
    """Digests [n] as bytes, of hexadecimal ones. For a text that is none, as anyone may have written it,
    stands one that no picture has.
    """
    whole = b"".join(map(_digest, pictures))
    return np.frombuffer(whole, SHA256) if whole else _no_pictures()


def _digest(picture: str) -> bytes:
    try:
        digest = bytes.fromhex(picture)
    except ValueError:
        digest = b""
    if digest.hex() == picture and len(digest) == SHA256.itemsize:
        return digest
    return hashlib.sha256(picture.encode(errors="surrogatepass")).digest()


def hexadecimal(pictures: Pictures) -> list[str]:
    """The same digests as people read them."""
    whole = np.ascontiguousarray(pictures).tobytes()
    return [whole[begin : begin + SHA256.itemsize].hex() for begin in range(0, len(whole), SHA256.itemsize)]


def _holds(ordered: Pictures, asked: Pictures) -> NDArray[np.bool_]:
    if not len(ordered):
        return np.zeros(len(asked), bool)
    at = np.searchsorted(ordered, asked).clip(max=len(ordered) - 1)
    return np.asarray(ordered[at] == asked)


def _path(settings: Settings) -> Path:
    return settings.data_dir / "duplicates" / "known.npz"
