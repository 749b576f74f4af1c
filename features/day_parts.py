"""Events of one delivery by UTC day, sorted on disk where memory does not hold them.

    with DayParts(scratch) as parts:
        for block in blocks: parts.add(block)
        for day, rows in parts.newest_first(): …     each day once, its rows in the order in which they came

An external sort: what fills memory is sorted by day and put away as one run, a record batch a day; a day is then what
all runs have of it. So memory holds a run, later the largest day, however long the log is and however its rows lie. A
delivery that fits into one run touches no file.

`DayHashes` says what identifies a day's partition, and needs the days newest first.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.batches import utc_day

_RUN_BYTES = 1 << 27
_PADDING = 64
"""Bytes to which Arrow rounds the end of what it writes of a buffer."""
_BEHIND_ROWS = 600
"""Rows behind a day that its hash may need: those of a bitmap's 64 bytes, eight rows a byte, and some."""


class DayParts:
    """See the module's docstring. folder: need not be there; the runs in it are this object's."""

    def __init__(self, folder: Path, *, run_bytes: int | None = None) -> None:
        """run_bytes: memory of a run, of which sorting takes twice as much."""
        self.num_rows = 0
        self._folder = folder
        self._most = _RUN_BYTES if run_bytes is None else run_bytes
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._runs: list[_Run] = []

    def __enter__(self) -> "DayParts":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for run in self._runs:
            run.file.close()

    def add(self, events: pa.Table) -> None:
        """Take rows, all of the same columns; every timestamp is there."""
        if not events.num_rows:
            return
        self._waiting.append(events)
        self._num_waiting += events.nbytes
        self.num_rows += events.num_rows
        if self._num_waiting > self._most:
            self._runs.append(_write_run(self._folder / f"{len(self._runs):04d}.arrow", _cut(self._waiting)))
            self._waiting, self._num_waiting = [], 0

    def oldest(self) -> date | None:
        """The first day of all; None if there is no row."""
        first = [min(run.places) for run in self._runs]
        first += [pc.min(utc_day(table.column("timestamp"))).as_py() for table in self._waiting]
        return min(first, default=None)

    def newest_first(self) -> Iterator[tuple[date, pa.Table]]:
        """(day, its rows). Nothing may be added afterwards."""
        last = _cut(self._waiting)
        self._waiting = []
        for day in sorted(last.keys() | {day for run in self._runs for day in run.places}, reverse=True):
            parts = [run.read(day) for run in self._runs if day in run.places]
            yield day, pa.concat_tables([*parts, last[day]] if day in last else parts)


@dataclass(frozen=True)
class _Run:
    """One run on the disk. places: day → number of its record batch."""

    file: pa.MemoryMappedFile
    reader: pa.RecordBatchFileReader
    places: dict[date, int]

    def read(self, day: date) -> pa.Table:
        return pa.Table.from_batches([self.reader.get_batch(self.places[day])])


def _write_run(path: Path, days: dict[date, pa.Table]) -> _Run:
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = next(iter(days.values())).schema
    with pa.ipc.new_file(path, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for rows in days.values():
            writer.write_table(rows.combine_chunks())
    file = pa.memory_map(str(path))
    return _Run(file, pa.ipc.open_file(file), {day: place for place, day in enumerate(days)})


def _cut(tables: Sequence[pa.Table]) -> dict[date, pa.Table]:
    """Day → its rows in the order in which they came, oldest first."""
    if not tables:
        return {}
    table = pa.concat_tables(tables)
    days = utc_day(table.column("timestamp")).cast(pa.int32()).to_numpy()
    order = np.argsort(days, kind="stable")
    table, days = table.take(pa.array(order)).combine_chunks(), days[order]
    starts = np.flatnonzero(np.diff(days, prepend=days[0] - 1))
    return {
        date(1970, 1, 1) + timedelta(days=int(days[start])): table.slice(start, end - start)
        for start, end in zip(starts, [*starts[1:], len(days)], strict=True)
    }


# --- what identifies a partition ---


class DayHashes:
    """Hashes of the days of one delivery, to be asked for newest first: they are what its batch is called by.

    A delivery was once sorted as one table and each day hashed as a slice of it, and Arrow writes with a slice up to 64
    bytes of what follows it in each of its buffers. What has landed so must be known again when it comes again, so a
    day is hashed with as much of the days behind it.
    """

    def __init__(self) -> None:
        self._behind: pa.Table | None = None

    def add(self, rows: pa.Table, *, oldest: bool) -> str:
        """The hash of a day's sorted rows. oldest: no day lies before it, and its slice begins where the table does."""
        before = [] if oldest else [rows.slice(0, 1)]
        behind = [] if self._behind is None else [self._behind]
        table = pa.concat_tables([*before, rows, *behind])
        # a single piece gets the buffers that a sorted and filtered table had
        table = table.combine_chunks() if before or behind else table.filter(pa.repeat(True, table.num_rows))
        self._behind = _beginning(table.slice(len(before)))
        return content_hash(table.slice(len(before), rows.num_rows))


def content_hash(table: pa.Table) -> str:
    """Hash over names, types and values of a table, however its memory is cut; of a slice see `DayHashes`."""
    sink = _Hash()
    with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), table.schema.remove_metadata()) as writer:
        writer.write_table(table.replace_schema_metadata(None).combine_chunks())
    return sink.sha256.hexdigest()


class _Hash(io.RawIOBase):
    """A file that is hashed and not kept."""

    def __init__(self) -> None:
        super().__init__()
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return len(data)


def _beginning(table: pa.Table) -> pa.Table:
    """A table whose buffers begin as those of the given one: its first rows, and texts until there are 64 bytes."""
    if table.num_rows <= _BEHIND_ROWS:
        return table
    first = table.take(pa.array(np.arange(_BEHIND_ROWS)))
    columns = [
        _lengthen(few.combine_chunks(), whole.combine_chunks()) if pa.types.is_string(few.type) else few
        for few, whole in zip(first.columns, table.columns, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=table.schema)


def _lengthen(few: pa.StringArray, whole: pa.StringArray) -> pa.StringArray:
    """The first rows of a column, and as text of the last one what follows, if they have less than 64 bytes."""
    offsets = np.frombuffer(few.buffers()[1], np.int32).copy()
    if offsets[-1] >= _PADDING:
        return few
    places = np.frombuffer(whole.buffers()[1], np.int32)[whole.offset : whole.offset + len(whole) + 1]
    text = whole.buffers()[2][int(places[0]) : int(min(places[0] + _PADDING, places[-1]))]
    offsets[-1] = text.size
    return pa.StringArray.from_buffers(len(few), pa.py_buffer(offsets), text, few.buffers()[0])
