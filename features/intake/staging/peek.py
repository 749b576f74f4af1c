"""The first rows of a file and how it would be read, for `plumline inspect` and for guessing a layout.

seen = peek("log.csv.gz", options)      reads the head of the file only
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from features.intake.staging.reading import Reading, ReadingOptions, columns_of, read_guessing
from features.intake.staging.sources import find
from plumline.errors import InputError


@dataclass(frozen=True)
class Peek:
    """What one file is. `rows` has its columns and LINE; what does not apply to its kind is None."""

    name: str
    kind: str
    """csv, json or parquet."""
    compression: str
    """gzip, zstd, bzip2, zip; empty for a plain file."""
    encoding: str | None
    separator: str | None
    has_header: bool | None
    columns: tuple[str, ...]
    rows: pa.Table
    notes: tuple[str, ...]
    num_files: int
    """How many files the path gives; this is the first one."""


def peek(path: str, options: ReadingOptions, rows: int = 5, stdin: BinaryIO | None = None) -> Peek:
    """Look at the first file of a path, folder, glob or archive. Raises InputError for what cannot be read at all."""
    with tempfile.TemporaryDirectory() as scratch:
        notes: list[str] = []
        sources = find([path], into=Path(scratch), stdin=stdin, notes=notes)
        return read_guessing(
            sources[0], options, into=Path(scratch), use=lambda reading: _seen(reading, rows, notes, len(sources))
        )


def _seen(reading: Reading, rows: int, notes: list[str], num_files: int) -> Peek:
    first = _first(reading.blocks(), rows)
    dialect = reading.dialect
    if first is None and dialect is None:
        raise InputError(f"{reading.source.name}: no row; give a file with at least one row")
    if first is None:
        assert dialect is not None
        first = pa.table({name: pa.nulls(0, pa.string()) for name in dialect.columns})
    said = [f"{name}: {what}" for name, what in (*reading.notes, *dict.fromkeys(reading.said))]
    return Peek(
        name=reading.source.name,
        kind=reading.kind,
        compression=reading.packing,
        encoding=reading.encoding.name if reading.encoding else None,
        separator=dialect.writing.separator if dialect else None,
        has_header=dialect.has_header if dialect else None,
        columns=tuple(columns_of(first)),
        rows=first,
        notes=(*notes, *said),
        num_files=num_files,
    )


def _first(blocks: Iterator[pa.Table], rows: int) -> pa.Table | None:
    """The first rows, and no more of the file than they take."""
    for table in blocks:
        return table.slice(0, rows)
    return None
