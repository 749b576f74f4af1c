"""`--keep first` and `--keep last`: one row an item or user, where a file has several (a log that tells of its items).

What is kept is held in memory: as many rows as there are ids.
"""

import pyarrow as pa

from features.intake.shapes.parts import BLOCK_ROWS, fit
from features.intake.staged import FILE, LINE, Rows, RowsOf

_MOST = 200_000
"""Rows that are held before doubles among them are thrown away again."""


def keep_one(rows: Rows, id_column: str, which: str, columns: tuple[str, ...]) -> RowsOf:
    """The first or last row of each id, in the order in which the ids came; the id `null` is one too.

    columns: those to keep besides FILE and LINE; the others are not needed any more.
    """
    kinds: dict[str, pa.DataType] = {}
    held: list[pa.Table] = []
    count, limit = 0, _MOST
    for block in rows.blocks():
        taken = _one_each(block.select([*columns, FILE, LINE]), id_column, which)
        kinds = kinds or {field.name: field.type for field in taken.schema}
        held.append(fit(taken, pa.schema(kinds)))
        count += taken.num_rows
        if count > limit:
            held = [_one_each(pa.concat_tables(held), id_column, which)]
            count, limit = held[0].num_rows, max(_MOST, 2 * held[0].num_rows)
    table = _one_each(pa.concat_tables(held), id_column, which) if held else pa.table({})
    blocks = [table.slice(at, BLOCK_ROWS) for at in range(0, table.num_rows, BLOCK_ROWS)] or [table]
    return RowsOf(blocks, rows.files, rows.unit, rows.notes)


def _one_each(table: pa.Table, id_column: str, which: str) -> pa.Table:
    """Rows of distinct ids, in the order of each id's first row."""
    import pandas as pd

    ids = pd.Series(table.column(id_column).cast(pa.string()).to_pandas())
    places, _ = pd.factorize(ids, use_na_sentinel=False)
    rows = pd.Series(range(len(places)))
    grouped = rows.groupby(places, sort=True)  # factorize numbers ids by their first row
    return table.take(pa.array((grouped.first() if which == "first" else grouped.last()).to_numpy()))
