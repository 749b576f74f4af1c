"""Rows of files from outside as they lie there, a block at a time: what staging leaves and reshape and typed read.

    Rows      files, columns, notes, and blocks() as often as wanted
    Staged    what staging/stage.py leaves: each file read again where it lies, or from a copy in a scratch folder
    RowsOf    tables in memory, for whoever has them

Every block has all columns (what a file has not is null) and two more, FILE and LINE. Cells of CSV and JSON are text,
never inferred; those of parquet have the types of the file, without dictionaries and extensions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from features.intake.staging.arrow_types import as_type, common_type
from plumline.errors import InputError

FILE, LINE = "__file", "__line"
"""int32 index into `files`; int64 line of that file from 1, where the record begins (of parquet: its row, from 1)."""


def refuse_ours(name: str, columns: Iterable[str]) -> None:
    """Raises InputError for a file with a column that is called FILE or LINE."""
    ours = next((column for column in columns if column in (FILE, LINE)), None)
    if ours is not None:
        raise InputError(f"{name}: a column is called {ours!r}, which is ours; rename it")


class Rows:
    """Rows of one noun: what all sources of rows have in common."""

    files: tuple[str, ...]
    """How messages call each file: the path as it was given, `a.zip/b.csv` inside of archives."""
    unit: tuple[str, ...]
    """"line" or "row", one a file: what LINE counts."""
    columns: tuple[str, ...]
    """Source columns in order of first appearance, without FILE and LINE."""
    notes: tuple[str, ...]
    """What was guessed, one line each."""

    def blocks(self) -> Iterator[pa.Table]:
        """All rows, about 64k or 32 MB at a time, in the order of the files; can be called again."""
        raise NotImplementedError

    def place(self, file: int, line: int) -> str:
        """`FILE: line 7`, as every message begins that is about one row."""
        return f"{self.files[file]}: {self.unit[file]} {line}"


@dataclass(frozen=True)
class Staged(Rows):
    """Files that were read once from end to end; blocks() reads them again. Raises InputError if one has changed."""

    files: tuple[str, ...]
    unit: tuple[str, ...]
    columns: tuple[str, ...]
    notes: tuple[str, ...]
    schema: pa.Schema
    """The columns with the type that all files have in common; text where they have none."""
    parts: tuple[Callable[[], Iterator[pa.Table]], ...]
    """One a file: its own columns and LINE."""

    def blocks(self) -> Iterator[pa.Table]:
        for number, part in enumerate(self.parts):
            for table in part():
                yield _completed(table, self.schema, number)


class RowsOf(Rows):
    """Tables in memory as Rows; FILE (0) and LINE (counted from 1) are added where a table has none."""

    def __init__(
        self,
        tables: pa.Table | Sequence[pa.Table],
        files: Sequence[str] = ("rows",),
        unit: str | Sequence[str] = "line",
        notes: Sequence[str] = (),
    ) -> None:
        given = [tables] if isinstance(tables, pa.Table) else list(tables)
        self.files, self.notes = tuple(files), tuple(notes)
        self.unit = (unit,) * len(self.files) if isinstance(unit, str) else tuple(unit)
        fields: dict[str, list[pa.DataType]] = {}
        for table in given:
            for field in table.schema:
                fields.setdefault(field.name, []).append(field.type)
        self._schema = pa.schema(
            [(name, common_type(kinds)) for name, kinds in fields.items() if name not in (FILE, LINE)]
        )
        self.columns = tuple(self._schema.names)
        self._tables, counted = [], 0
        for table in given:
            lines = np.arange(counted + 1, counted + table.num_rows + 1)
            table = table if LINE in table.column_names else table.append_column(LINE, pa.array(lines))
            counted += table.num_rows
            files_of = table.column(FILE) if FILE in table.column_names else 0
            self._tables.append(_completed(table, self._schema, files_of))

    def blocks(self) -> Iterator[pa.Table]:
        yield from self._tables


def _completed(table: pa.Table, schema: pa.Schema, files: int | pa.ChunkedArray) -> pa.Table:
    columns = {
        field.name: as_type(table.column(field.name), field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    }
    columns[FILE] = pa.array(np.full(table.num_rows, files, np.int32)) if isinstance(files, int) else files
    columns[LINE] = table.column(LINE)
    return pa.table(columns, schema=pa.schema([*schema, (FILE, pa.int32()), (LINE, pa.int64())]))
