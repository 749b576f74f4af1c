"""Rows that a step has made, laid down in parquet parts of a scratch folder, a part a block."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import pyarrow as pa
import pyarrow.parquet as pq

from features.intake.staged import FILE, LINE, Rows

BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class Parts(Rows):
    """Rows in parquet parts. files, unit, notes: of the rows they were made from."""

    files: tuple[str, ...]
    unit: tuple[str, ...]
    columns: tuple[str, ...]
    notes: tuple[str, ...]
    paths: tuple[Path, ...]
    schema: pa.Schema
    num_rows: int

    def blocks(self) -> Iterator[pa.Table]:
        for path in self.paths:
            with pq.ParquetFile(path) as file:
                yield fit(file.read(), self.schema)


def lay_down(rows: Rows, tables: Iterable[pa.Table], into: Path, notes: Sequence[str] = ()) -> Parts:
    """Write tables as parts. Columns may differ between them: they are the union, in order of first appearance.

    A column that is text in one part and something else in another is text. into: begins the new folder's name.
    """
    into.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(prefix=f"{into.name}-", dir=into.parent))
    paths: list[Path] = []
    kinds: dict[str, pa.DataType] = {}
    num_rows = 0
    for table in tables:
        for at in range(0, table.num_rows, BLOCK_ROWS):
            paths.append(folder / f"{len(paths):06d}.parquet")
            pq.write_table(table.slice(at, BLOCK_ROWS), paths[-1], compression="zstd", compression_level=1)
        num_rows += table.num_rows
        for field in table.schema:
            known = kinds.get(field.name, field.type)
            same = known == field.type or pa.types.is_null(field.type)
            kinds[field.name] = known if same else field.type if pa.types.is_null(known) else pa.string()
    columns = tuple(name for name in kinds if name not in (FILE, LINE))
    schema = pa.schema({name: kinds[name] for name in (*columns, FILE, LINE) if name in kinds})
    return Parts(rows.files, rows.unit, columns, (*rows.notes, *notes), tuple(paths), schema, num_rows)


def fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with exactly these columns: missing ones null, others as the type that the schema has for them."""
    return pa.table(
        {
            field.name: table.column(field.name).cast(field.type)
            if field.name in table.column_names
            else pa.nulls(table.num_rows, field.type)
            for field in schema
        }
    )
