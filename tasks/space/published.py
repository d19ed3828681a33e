"""A space in one file with its digest, and which space is published.

The file's name holds the digest of what is in it, so that a space never changes under its name; which one is
published is said by a small file beside them, replaced at once.
"""

import hashlib
import io
import json
import logging
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tasks import files
from tasks.errors import ConfigurationError
from tasks.inference.model import Identity
from tasks.search.writing import CompactVector
from tasks.settings import Settings
from tasks.space.categories import CategoryModel
from tasks.space.vectors import Codes, Compact, Floats

log = logging.getLogger(__name__)

_DIGITS = 12


@dataclass(frozen=True)
class Space:
    """What is learnt from the features of one model."""

    model: Identity
    compact: Compact
    codes: Codes
    categories: CategoryModel
    facts: dict[str, Any] = field(default_factory=dict)
    """When it was learnt, from how many items, and its evaluation."""
    version: str = ""
    """Its name once it is published, which its compact vectors carry: that of the features and its digest."""

    def compact_vectors(self, features: Sequence[Floats]) -> list[CompactVector | None]:
        """Those of features [dims]; None where a feature is the mean of all, which has no direction."""
        if not features:
            return []
        return [
            CompactVector(self.version, vector) if vector @ vector > 0 else None
            for vector in self.compact.vectors(np.stack(features))
        ]

    def content(self) -> bytes:
        """The bytes of its file, NumPy's npz: arrays alone, no code. The same space gives the same bytes."""
        arrays = {
            "feature_version": np.array(self.model.version),
            "model_fingerprint": np.array(self.model.fingerprint),
            "facts": np.array(json.dumps(self.facts, sort_keys=True)),
            "mean": self.compact.mean,
            "directions": self.compact.directions,
            "rotation": self.codes.rotation,
            "categories": np.array(self.categories.categories, np.str_),
            "weights": self.categories.weights,
            "biases": self.categories.biases,
        }
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, array in arrays.items():
                member = io.BytesIO()
                np.save(member, array, allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())  # without a time
        return buffer.getvalue()

    @classmethod
    def read(cls, content: bytes) -> "Space":
        """The space whose `content` this is, without a name.

        Raises:
            ValueError, KeyError: it is none.
        """
        with np.load(io.BytesIO(content), allow_pickle=False) as held:
            return cls(
                model=Identity(
                    str(held["feature_version"]),
                    str(held["model_fingerprint"]) if "model_fingerprint" in held else "",
                ),
                compact=Compact(held["mean"], held["directions"]),
                codes=Codes(held["rotation"]),
                categories=CategoryModel(
                    tuple(map(str, held["categories"])), held["weights"], held["biases"]
                ),
                facts=json.loads(str(held["facts"])),
            )


def folder(settings: Settings) -> Path:
    """Where spaces lie."""
    return settings.data_dir / "spaces"


def publish(space: Space, settings: Settings) -> str:
    """Write a space and have it taken from now on; returns its version.

    Raises:
        ServiceUnavailableError: the data dir cannot be written.
    """
    content = space.content()
    digest = _digest(content)
    with files.atomic_write(_file(settings, digest)) as temporary:
        temporary.write_bytes(content)
    files.write_json(pointer(settings), {"sha256": digest})
    return _name(space.model.version, digest)


def published(settings: Settings, model: Identity) -> Space:
    """The published space.

    Raises:
        ConfigurationError: there is none, it is damaged, or it is of the features of another model.
    """
    try:
        digest = str(files.read_json(pointer(settings))["sha256"])
        content = _file(settings, digest).read_bytes()
        damaged = _digest(content) != digest
    except FileNotFoundError:
        raise ConfigurationError(
            f"There is no feature space in {folder(settings)} yet. Run the DAG feature_space, or "
            "python -m tasks space."
        ) from None
    except (ValueError, KeyError, TypeError):
        damaged = True
    if damaged:
        raise ConfigurationError(
            f"The feature space in {folder(settings)} is damaged: remove the folder's published.json, and "
            "run the DAG feature_space again."
        )
    space = Space.read(content)
    space = replace(space, version=_name(space.model.version, digest))
    if not space.model.same_as(model):
        raise ConfigurationError(
            f"The published feature space is of features {space.model}, and the model here makes {model}. "
            "Run the DAG feature_space once the index has features of that model."
        )
    return space


class Reader:
    """The published space, read again when another one is; threads may share one."""

    def __init__(self, settings: Settings, model: Identity) -> None:
        """Read spaces of the features of `model`."""
        self._settings = settings
        self._model = model
        self._lock = threading.Lock()
        self._read: tuple[Space, tuple[int, int]] | None = None
        """The space, and which pointer said so."""
        self._unusable = ""
        """Why there was none, the last time that there was none."""

    @property
    def space(self) -> Space:
        """The published space; raises as `published` does."""
        with self._lock:
            found = _which(pointer(self._settings))
            if self._read is None or self._read[1] != found:
                self._read = published(self._settings, self._model), found
            return self._read[0]

    @property
    def usable(self) -> Space | None:
        """The published space, or None where there is none that can be used, which the log says once."""
        try:
            return self.space
        except ConfigurationError as error:
            if str(error) != self._unusable:
                self._unusable = str(error)
                log.info("No compact vectors are written. %s", error)
            return None

    def compact_vectors(self, features: Sequence[Floats]) -> list[CompactVector | None]:
        """Those of features [dims] by the published space, None of each where there is none."""
        space = self.usable
        return space.compact_vectors(features) if space else [None] * len(features)


def _which(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns


def _name(feature_version: str, digest: str) -> str:
    return f"{feature_version}-{digest[:_DIGITS]}"


def _file(settings: Settings, digest: str) -> Path:
    return folder(settings) / f"space-{digest[:_DIGITS]}.npz"


def pointer(settings: Settings) -> Path:
    """The small file that says which space is published."""
    return folder(settings) / "published.json"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
