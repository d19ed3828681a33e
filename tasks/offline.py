"""Features in a file, and search in it: no catalogue, no Elasticsearch, no Airflow."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tasks.errors import ConfigurationError
from tasks.inference.model import Identity, identity
from tasks.pictures.decoders import Tensor
from tasks.progress import Progress, silent
from tasks.search.mapping import refuse_another_model
from tasks.search.queries import PAGE, ItemQueries, Scope
from tasks.serve.answers import InferenceError, refused
from tasks.serve.features import Feature, Features
from tasks.settings import Settings
from tasks.space import sheet
from tasks.space.search import ByCodes, Found, add_codes, exact
from tasks.space.snapshot import Snapshot, Writer, writing
from tasks.statuses import Status

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif", ".tif", ".tiff")
_AT_ONCE = 64
"""Pictures whose files are in memory."""


@dataclass(frozen=True)
class Exported:
    """What an export has left."""

    items: int
    refused: dict[str, str]
    """Pictures that have no feature: their paths, and why."""


def export_index(index: ItemQueries, to: Path, settings: Settings, progress: Progress = silent) -> Exported:
    """Write the features of the current version in the index into a file; an item's name is its id.

    Raises:
        ConfigurationError: the index holds fewer than two, or those of another model.
        ServiceUnavailableError: Elasticsearch does not answer, or the file cannot be written.
    """
    model = identity(settings)
    refuse_another_model(index, model)
    scope = Scope(model.version)

    def fill(writer: Writer) -> None:
        pages = -(-index.count(scope) // PAGE)
        for rows in progress(index.rows(scope), "export", pages):
            writer.add(*rows)

    return Exported(_written(to, model, fill), {})


def export_folder(folder: Path, to: Path, settings: Settings, progress: Progress = silent) -> Exported:
    """Compute the features of all pictures below a folder and write them into a file; an item's name is its
    path within the folder, and its category the folder that it lies in.

    Raises:
        ConfigurationError: there is no such folder, or fewer than two pictures of it have a feature.
        ServiceUnavailableError: decoders cannot be started, or the file cannot be written.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"There is no folder {folder}.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    problems: dict[str, str] = {}

    def fill(writer: Writer) -> None:
        with Features(settings) as features:
            found = _in_order(paths, partial(_feature, features, settings))
            for path, feature in progress(found, "export", len(paths)):
                name = path.relative_to(folder)
                if isinstance(feature, InferenceError):
                    problems[str(name)] = f"{feature.status}: {feature.message}"
                    continue
                category = "" if name.parent == Path() else str(name.parent)
                writer.add([str(name)], [category], [str(path.resolve())], feature.vector[np.newaxis])

    return Exported(_written(to, identity(settings), fill), problems)


def find(
    photo: Path, file: Path, settings: Settings, *, top: int, candidates: int | None, sheet_to: Path | None
) -> list[Found]:
    """The items of a file that are nearest to a photo, nearest first: exact, or among the `candidates` whose
    codes are nearest; drawn to `sheet_to` where that is given.

    Raises:
        ConfigurationError: the file is none of features, or of those of another model.
        InferenceError: the photo has no feature.
        ServiceUnavailableError: decoders cannot be started, or the sheet cannot be written.
    """
    with Snapshot(file) as snapshot:
        if not snapshot.model.same_as(model := identity(settings)):
            raise ConfigurationError(
                f"{file} holds features {snapshot.model}, and the model here makes {model}, which "
                "cannot be compared with them. Export the file again."
            )
        with Features(settings) as features:
            content = _content(photo, settings)
            vector = features.of_picture(content).vector
            if candidates is None:
                found = exact(snapshot, vector, top)
            else:
                found = ByCodes(snapshot).nearest(vector, top, candidates)
            if sheet_to is not None:
                cells = [
                    (item.name, item.cosine, _tensor(features, settings, item.picture)) for item in found
                ]
                sheet.draw(sheet_to, (photo.name, features.decoded(content)), cells)
    return found


def _written(to: Path, model: Identity, fill: Callable[[Writer], None]) -> int:
    with writing(to, model) as writer:
        fill(writer)
        if len(writer) < 2:
            raise ConfigurationError(
                f"There are {len(writer)} features of {model.version} to export; it takes two at least."
            )
        add_codes(writer)
        return len(writer)


def _in_order(
    paths: Sequence[Path], compute: Callable[[Path], Feature | InferenceError]
) -> Iterator[tuple[Path, Feature | InferenceError]]:
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for begin in range(0, len(paths), _AT_ONCE):
            some = paths[begin : begin + _AT_ONCE]
            yield from zip(some, threads.map(compute, some), strict=True)


def _feature(features: Features, settings: Settings, path: Path) -> Feature | InferenceError:
    try:
        return features.of_picture(_content(path, settings))
    except InferenceError as error:
        return error


def _tensor(features: Features, settings: Settings, picture: str) -> Tensor | None:
    """What to draw of an item; None where its picture cannot be had any more."""
    try:
        remote = picture.startswith(("http://", "https://"))
        return features.decoded(features.fetched(picture) if remote else _content(Path(picture), settings))
    except (InferenceError, ConfigurationError):
        return None


def _content(path: Path, settings: Settings) -> bytes:
    try:
        size = path.stat().st_size
        if size > settings.max_image_bytes:
            raise refused(Status.TOO_LARGE, f"{size} bytes, more than {settings.max_image_bytes}")
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
