"""Parquet → blocks of rows, a batch of a row group at a time, with the types of the file.

Arrow's reader of one file, not its scanner of many: a thread of that may outlive a process that ends at once (Arrow
issue 39862).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.intake.staged import LINE, refuse_ours
from features.intake.staging.arrow_types import plain, plain_type
from plumline.errors import InputError

ROWS = 1 << 16
_BLOCK_BYTES = 1 << 25
_BUFFER = 1 << 20  # bytes of a column that are read ahead
_BROKEN = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, KeyError, TypeError)


def read_blocks(name: str, path: Path) -> Iterator[pa.Table]:
    """Columns of the file and LINE, which counts its rows from 1. Raises InputError for what cannot be read."""
    row = 1
    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
            names = file.schema_arrow.names
            doubled = next((column for column in names if names.count(column) > 1), None)
            if doubled is not None:
                raise InputError(f"{name}: column {doubled!r} is there twice; rename one of them")
            if not file.metadata.num_rows:
                empty = {field.name: pa.nulls(0, plain_type(field.type)) for field in file.schema_arrow}
                yield pa.table({**empty, LINE: pa.nulls(0, pa.int64())})
            refuse_ours(name, names)
            for batch in file.iter_batches(_rows_a_block(file.metadata), use_threads=False):
                columns = {
                    column: _checked(name, row, column, plain(pa.chunked_array([values])))
                    for column, values in zip(names, batch.columns, strict=True)
                }
                lines = pa.array(np.arange(row, row + batch.num_rows))
                row += batch.num_rows
                yield pa.table({**columns, LINE: lines})
    except InputError:
        raise
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        after = f" after row {row - 1}" if row > 1 else ""
        raise InputError(f"{name}: no readable parquet{after} ({reason}); write or fetch the file again") from None


def _rows_a_block(metadata: pq.FileMetaData) -> int:
    """As many rows as make a block, by the largest row group."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    widest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1)
    return int(np.clip(_BLOCK_BYTES / max(widest, 1), 256, ROWS))


def _checked(name: str, row: int, column: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same values. Raises InputError for text that is not UTF-8, which parquet readers let pass."""
    try:
        values.validate(full=True)
        return values
    except pa.ArrowInvalid as error:
        broken = next((number for number in range(len(values)) if not _is_valid(values.slice(number, 1))), 0)
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{name}: row {row + broken}: column {column!r} cannot be read ({reason})") from None


def _is_valid(values: pa.ChunkedArray) -> bool:
    try:
        values.validate(full=True)
        return True
    except pa.ArrowInvalid:
        return False
