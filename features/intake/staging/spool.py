"""Blocks on disk in a scratch folder, for files that cannot be read twice at once: packed ones and JSON.

Arrow's own stream format, packed with lz4: read back ten times as fast as parquet. Where the columns change, a new
stream begins in the same file.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from plumline.errors import PlumlineError


def new_file(folder: Path) -> Path:
    """An empty file of a name of its own in a scratch folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder)
    os.close(handle)
    return Path(name)


class Spool:
    """A file that blocks are appended to."""

    def __init__(self, folder: Path) -> None:
        self.path = new_file(folder)
        self._file = pa.OSFile(str(self.path), "wb")
        self._writer: pa.RecordBatchStreamWriter | None = None
        self._schema: pa.Schema | None = None

    def write(self, table: pa.Table) -> None:
        """Append a block of any columns. Raises PlumlineError if the disk is full."""
        try:
            if table.schema != self._schema:
                self._end()
                options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
                self._writer = pa.ipc.new_stream(self._file, table.schema, options=options)
                self._schema = table.schema
            assert self._writer is not None
            self._writer.write_table(table)
        except OSError as error:
            raise PlumlineError(f"{self.path.parent}: cannot be written ({error}); make room on that disk") from None

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def close(self) -> None:
        self._end()
        self._file.close()


def read_spool(path: Path) -> Iterator[pa.Table]:
    """The blocks in the order in which they were written."""
    with pa.OSFile(str(path), "rb") as file:
        size = file.size()
        while file.tell() < size:
            reader = pa.ipc.open_stream(file)
            for batch in reader:
                yield pa.Table.from_batches([batch])
