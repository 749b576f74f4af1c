"""Events of one delivery by UTC day, sorted on disk where memory does not hold them.

    parts = DayParts(scratch)
    for block in blocks: parts.add(block)
    for day, rows in parts: …          each day once, its rows in the order in which they came

Days share a bucket file (day number modulo `_BUCKETS`), so the files that are open do not grow with the years of a log,
and what is read back at a time is a 256th of it, or the largest day. A delivery of up to `rows_in_memory` rows touches
no file.
"""

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.batches import cut_days, utc_day
from plumline.schema import EVENTS
from plumline.tables import read_parquet

_BUCKETS = 256
_ROWS_IN_MEMORY = 4_000_000  # some 600 MB of events with every column filled


class DayParts:
    """See the module's docstring. folder: empty or not there yet; everything in it is this object's."""

    def __init__(self, folder: Path, *, rows_in_memory: int | None = None) -> None:
        self.num_rows = 0
        self._folder = folder
        self._most = _ROWS_IN_MEMORY if rows_in_memory is None else rows_in_memory
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._writers: dict[int, pq.ParquetWriter] = {}

    def __enter__(self) -> "DayParts":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def add(self, events: pa.Table) -> None:
        """Take rows of EVENTS; every timestamp is there."""
        if not events.num_rows:
            return
        self._waiting.append(events)
        self._num_waiting += events.num_rows
        self.num_rows += events.num_rows
        if self._num_waiting > self._most:
            self._spill()

    def __iter__(self) -> Iterator[tuple[date, pa.Table]]:
        """(day, its rows), days of a bucket oldest first. Nothing may be added afterwards."""
        if not self._writers:
            if self._waiting:
                yield from cut_days(_by_day(pa.concat_tables(self._waiting)))
            return
        self._spill()
        buckets = sorted(self._writers)
        self._close()
        for bucket in buckets:
            path = self._path(bucket)
            yield from cut_days(_by_day(read_parquet(path)))
            path.unlink()

    def _spill(self) -> None:
        if not self._num_waiting:
            return
        table = pa.concat_tables(self._waiting)
        self._waiting, self._num_waiting = [], 0
        buckets = utc_day(table.column("timestamp")).cast(pa.int32()).to_numpy() % _BUCKETS
        order = np.argsort(buckets, kind="stable")
        starts = np.flatnonzero(np.diff(buckets[order], prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            self._writer(int(buckets[order[start]])).write_table(table.take(pa.array(order[start:end])))

    def _writer(self, bucket: int) -> pq.ParquetWriter:
        if bucket not in self._writers:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writers[bucket] = pq.ParquetWriter(
                self._path(bucket), EVENTS.schema, compression="zstd", write_page_checksum=True
            )
        return self._writers[bucket]

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket:03d}.parquet"

    def _close(self) -> None:
        for writer in self._writers.values():
            if writer.is_open:
                writer.close()


def _by_day(events: pa.Table) -> pa.Table:
    """Rows by day, in each as they came: what `cut_days` wants."""
    days = utc_day(events.column("timestamp")).cast(pa.int32()).to_numpy()
    if (np.diff(days) >= 0).all():
        return events
    return events.take(pa.array(np.argsort(days, kind="stable")))
