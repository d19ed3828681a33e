"""Stage files, packs for short: Parquet between the stages. Rows stream through them, so memory stays flat.

A pack carries the stage's statistics in its own metadata: one file, whole or absent, holds both. All of
it is under checksums, so that a reader gets what was written or an error: Parquet's own cover the rows,
ours what its footer says of columns, number of rows and statistics.
"""

import errno
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import files
from tasks.errors import ServiceUnavailableError

ITEMS = pa.schema(
    [
        ("item_id", pa.string()),
        ("item_name", pa.string()),
        ("category_id", pa.string()),
        ("img_url", pa.string()),
        ("invalid", pa.string()),
        ("origin", pa.string()),
    ]
)
"""The catalogue rows to do; `invalid` says why nothing can be done for one, and `origin`, an Origin, why a
run of times takes it."""

ITEM_IDS = pa.schema([("item_id", pa.string())])
"""Items of the ledger that need nothing more."""

PICTURES = pa.schema(
    [
        ("img_url", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("sha256", pa.string()),
        ("content", pa.binary()),
    ]
)
"""One row a distinct URL: either content with its sha256, or a status and its reason."""

FEATURE = np.dtype("<f4")
"""Of the 2,048 numbers of a feature, in the bytes that a pack holds."""

FEATURES = pa.schema(
    [
        ("sha256", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        # Bytes: of a list Parquet would count every number.
        ("feature", pa.binary(2048 * FEATURE.itemsize)),
    ]
)
"""One row a distinct picture: either its feature, or a status and its reason."""

OUTCOMES = pa.schema(
    [("item_id", pa.string()), ("img_url", pa.string()), ("status", pa.string()), ("reason", pa.string())]
)
"""One row an item: the status it ended in; the reason is null where the status says it all."""

log = logging.getLogger(__name__)

_SCHEMAS = {
    "items": ITEMS,
    "resolved": ITEM_IDS,
    "pictures": PICTURES,
    "features": FEATURES,
    "outcomes": OUTCOMES,
}
"""What the packs hold that have these names; a release before or after this one may have left another."""

_TASKS = {"pictures": "download", "features": "extract", "outcomes": "index"}
"""Which task leaves which pack of a chunk."""

_STATISTICS = b"statistics"
_CHECKSUM = b"checksum"
_OF_DAMAGE = (None, errno.ENOENT, errno.EISDIR, errno.ELOOP, errno.EIO)
"""Errors that reading the same file again gives again; None is Parquet's own word on its content."""
_ROWS_IN_GROUP = 500
_BYTES_IN_GROUP = 4_000_000


class DamagedPackError(ServiceUnavailableError):
    """What is at a pack's place is not what was written there."""


class Writer:
    """Takes rows one by one and writes them as row groups bounded in rows and bytes."""

    def __init__(self, schema: pa.Schema, file: pq.ParquetWriter) -> None:
        self._schema = schema
        self._file = file
        self._rows: list[Mapping[str, Any]] = []
        self._bytes = 0
        self._written = 0
        self.statistics: dict[str, Any] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Add one row; a column left out is null."""
        self._rows.append(row)
        self._bytes += len(row.get("content") or b"")
        if len(self._rows) >= _ROWS_IN_GROUP or self._bytes >= _BYTES_IN_GROUP:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting as a row group."""
        if self._rows:
            columns = {name: [row.get(name) for row in self._rows] for name in self._schema.names}
            self._file.write_table(pa.table(columns, schema=self._schema))
            self._written += len(self._rows)
            self._rows, self._bytes = [], 0

    def finish(self) -> None:
        """Write what is waiting, and the statistics."""
        self.flush()
        statistics = json.dumps(self.statistics).encode()
        checksum = _footer_checksum(self._schema, self._written, statistics)
        self._file.add_key_value_metadata({_STATISTICS: statistics, _CHECKSUM: checksum})


@contextmanager
def writing(path: Path, schema: pa.Schema) -> Iterator[Writer]:
    """A Writer whose pack is at `path` once the block ends well, and whole.

    A pack that another attempt has finished by then stays: later stages may have read it.
    """
    with (
        files.atomic_write(path, keep_first=True) as temporary,
        pq.ParquetWriter(
            temporary,
            schema,
            compression="none",
            # Pictures and vectors never repeat.
            use_dictionary=[column.name for column in schema if column.type == pa.string()],
            write_page_checksum=True,
        ) as file,
    ):
        writer = Writer(schema, file)
        yield writer
        writer.finish()


def finished_or_moved_aside(path: Path) -> dict[str, Any] | None:
    """The statistics of a pack that is there and can be read to its end; None: the stage has to be done.

    A damaged pack is moved aside. So are features whose pictures are not there any more: the pictures may
    come back as others, and index looks the ones up in the others. Outcomes stay, whatever became of what
    they were made from: they tell what the search index holds.

    Raises:
        ServiceUnavailableError: the pack may be good and cannot be read, as for want of rights.
    """
    made_from_it = path.with_stem("features")
    # Before a look at the pictures: another attempt that is about to leave them cannot have been followed
    # by features yet.
    outlived = files.identity(made_from_it) if path.stem == "pictures" else None
    done = _read_to_its_end(path)
    if done is None and outlived and (aside := files.move_aside(made_from_it, outlived)):
        log.warning("%s has lost its pictures; moved aside as %s.", made_from_it, aside.name)
    return done


def _read_to_its_end(path: Path) -> dict[str, Any] | None:
    """What `finished_or_moved_aside` says of the pack itself."""
    while seen := files.identity(path):
        try:
            for _ in batches(path):
                pass
            return statistics(path)
        except DamagedPackError as damage:
            # Where another attempt has put a pack there since, it stays there and is looked at in turn.
            if aside := files.move_aside(path, seen):
                log.warning("%s Moved aside as %s; the stage does it again.", damage, aside.name)
    return None


def rows(path: Path, columns: list[str] | None = None, at_once: int = 500) -> Iterator[dict[str, Any]]:
    """The rows of a pack in order, read a batch at a time.

    Raises:
        ServiceUnavailableError: the pack is not there or cannot be read.
    """
    for batch in batches(path, columns, at_once):
        yield from batch.to_pylist()


def batches(path: Path, columns: list[str] | None = None, at_once: int = 500) -> Iterator[pa.RecordBatch]:
    """As `rows`, but as Arrow batches of at most `at_once` rows."""
    with _open_rows(path) as file:
        left = file.metadata.num_rows
        for batch in file.iter_batches(batch_size=at_once, columns=columns, use_threads=False):
            left -= batch.num_rows
            yield batch
        _require(left == 0)


def slice_of(path: Path, start: int, stop: int) -> list[dict[str, Any]]:
    """The rows [start, stop), of a pack that is read only where they are."""
    result: list[dict[str, Any]] = []
    with _open_rows(path) as file:
        first = 0
        for group in range(file.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            if last > start and first < stop:
                table = file.read_row_group(group, use_threads=False)
                _require(table.num_rows == last - first)
                result += table.slice(max(start - first, 0), min(stop, last) - max(start, first)).to_pylist()
            first = last
        _require(first == file.metadata.num_rows)
    return result


def statistics(path: Path) -> dict[str, Any]:
    """What the stage that wrote the pack measured."""
    with _open(path) as file:
        value: dict[str, Any] = json.loads(file.metadata.metadata[_STATISTICS])
        return value


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        # Without Arrow's own threads, here and below: they doubled the CPU time of reading a picture.
        with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
            held = file.metadata.metadata or {}
            checksum = _footer_checksum(file.schema_arrow, file.metadata.num_rows, held.get(_STATISTICS, b""))
            _require(held.get(_CHECKSUM) == checksum)
            yield file
    except MemoryError:
        raise  # Arrow's is an ArrowException too, and says nothing of the file
    except (OSError, ValueError, pa.ArrowException) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else error  # Arrow's own text names the file twice more
        raise (DamagedPackError if number in _OF_DAMAGE else ServiceUnavailableError)(
            f"{path} cannot be read: {reason}. Every worker needs the same FEATURES_DATA_DIR; "
            f"if the file is damaged or gone, clear {_task_to_clear(path)}"
        ) from None


@contextmanager
def _open_rows(path: Path) -> Iterator[pq.ParquetFile]:
    """A pack whose rows are as we know them; its statistics tell of the work, whichever release did it."""
    with _open(path) as file:
        _require(
            file.schema_arrow.equals(_SCHEMAS.get(path.stem, file.schema_arrow)), "another release wrote it"
        )
        yield file


def _require(holds: bool, otherwise: str = "it is not what was written") -> None:
    if not holds:
        raise pa.ArrowInvalid(otherwise)


def _footer_checksum(schema: pa.Schema, rows: int, statistics: bytes) -> bytes:
    columns = [(column.name, str(column.type)) for column in schema]
    return b"%08x" % zlib.crc32(repr((columns, rows, statistics)).encode())


def _task_to_clear(path: Path) -> str:
    if task := _TASKS.get(path.stem):
        return f"`{task}` of {path.parent.name} with everything downstream."
    return "the run's `plan` task: it does again what is not current."
