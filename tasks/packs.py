"""Packs: the Parquet files between the stages. Rows stream through them, so memory stays flat.

A pack carries the stage's statistics in its own metadata: one file, whole or absent, holds both.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    ]
)
"""The catalogue rows to do."""

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

FEATURES = pa.schema(
    [
        ("sha256", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("feature", pa.list_(pa.float32(), 2048)),
    ]
)
"""One row a distinct picture: either its feature, or a status and its reason."""

OUTCOMES = pa.schema(
    [("item_id", pa.string()), ("img_url", pa.string()), ("status", pa.string()), ("reason", pa.string())]
)
"""One row an item: the status it ended in; the reason is null where the status says it all."""

_STATISTICS = "statistics"
_ROWS_IN_GROUP = 500
_BYTES_IN_GROUP = 32_000_000


class Writer:
    """Takes rows one by one and writes them as row groups bounded in rows and bytes."""

    def __init__(self, schema: pa.Schema, file: pq.ParquetWriter) -> None:
        self._schema = schema
        self._file = file
        self._rows: list[Mapping[str, Any]] = []
        self._bytes = 0
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
            self._rows, self._bytes = [], 0


@contextmanager
def writing(path: Path, schema: pa.Schema) -> Iterator[Writer]:
    """A Writer whose pack appears at `path`, whole, when the block ends well.

    A pack that another attempt has finished by then stays: later stages may have read it.
    """
    with (
        files.appearing_whole(path, keep_first=True) as temporary,
        pq.ParquetWriter(temporary, schema, compression="none") as file,
    ):
        writer = Writer(schema, file)
        yield writer
        writer.flush()
        file.add_key_value_metadata({_STATISTICS: json.dumps(writer.statistics)})


def rows(path: Path, columns: list[str] | None = None, at_once: int = 500) -> Iterator[dict[str, Any]]:
    """The rows of a pack in order, read a batch at a time.

    Raises:
        ServiceUnavailableError: the pack is not there or cannot be read.
    """
    for batch in batches(path, columns, at_once):
        yield from batch.to_pylist()


def batches(path: Path, columns: list[str] | None = None, at_once: int = 500) -> Iterator[pa.RecordBatch]:
    """As `rows`, but as Arrow batches of at most `at_once` rows."""
    with _open(path) as file:
        yield from file.iter_batches(batch_size=at_once, columns=columns)


def slice_of(path: Path, start: int, stop: int) -> list[dict[str, Any]]:
    """The rows [start, stop), of a pack that is read only where they are."""
    result: list[dict[str, Any]] = []
    with _open(path) as file:
        first = 0
        for group in range(file.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            if last > start and first < stop:
                table = file.read_row_group(group)
                result += table.slice(max(start - first, 0), min(stop, last) - max(start, first)).to_pylist()
            first = last
    return result


def statistics(path: Path) -> dict[str, Any]:
    """What the stage that wrote the pack measured."""
    with _open(path) as file:
        value: dict[str, Any] = json.loads(file.metadata.metadata[_STATISTICS.encode()])
        return value


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (OSError, pa.ArrowInvalid) as error:
        raise ServiceUnavailableError(
            f"{path} cannot be read: {error}. Every worker needs the same FEATURES_DATA_DIR; "
            "if the file is damaged, clear the run's `plan` task: it does again what is not current."
        ) from None
