"""`--explode clicks+carts+orders`: columns that are each a kind of event become rows with an action.

    session  clicks  carts       item_id  action           user  video  is_like  is_follow       user  video  action
    7        [1,2]   [1]     →   1        clicks           u     1      1        1           →   u     1      is_like
                                 2        clicks           u     2      0        0               u     1      is_follow
                                 1        carts

Where rows say which item they are about, a column holds whether it happened (1, true, a count); where they do not, it
holds the items to which it happened.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from features.intake.shapes.cells import read_cell, write_cell
from features.intake.shapes.parts import Parts, lay_down
from features.intake.staged import FILE, LINE, Rows
from plumline.errors import InputError

ITEM, ACTION = "item_id", "action"
_NOTHING = {"0", "0.0", "false", "no", "f", "n"}


def spread(
    rows: Rows, columns: Sequence[str], *, has_item: bool, noun: str, into: Path, null_words: Sequence[str] = ()
) -> Parts:
    """One row an event. has_item: whether a column says which item it is (then the columns are yes or no).

    Raises InputError for a column that is not there, and where nothing happened in any row.
    """
    flag = f"--explode {'+'.join(columns)}"
    for column in columns:
        if column not in rows.columns:
            raise InputError(f"{flag}: {noun} have no column {column!r}; there are {', '.join(rows.columns)}")
    made = lay_down(rows, _tables(rows, columns, has_item, frozenset(null_words), flag), into)
    if not made.num_rows:
        raise InputError(f"{flag}: nothing stands in these columns in any row; look at plumline inspect")
    return made


def _tables(rows: Rows, columns: Sequence[str], has_item: bool, nulls: frozenset[str], flag: str) -> Iterator[pa.Table]:
    for block in rows.blocks():
        parents: list[int] = []
        items: list[str | None] = []
        actions: list[str] = []
        cells = [block.column(column).to_pylist() for column in columns]
        for row in range(block.num_rows):
            for column, values in zip(columns, cells, strict=True):
                try:
                    found = _happened(values[row], has_item, nulls)
                except ValueError as error:
                    place = rows.place(block.column(FILE)[row].as_py(), block.column(LINE)[row].as_py())
                    raise InputError(f"{place}: {column} {str(values[row])[:60]!r} {error}; {flag}") from None
                parents += [row] * len(found)
                items += found
                actions += [column] * len(found)
        own = [name for name in (ACTION, *([] if has_item else [ITEM])) if name in block.column_names]
        table = block.drop_columns([*columns, *own]).take(pa.array(parents, pa.int64()))
        if not has_item:
            table = table.append_column(ITEM, pa.array(items, pa.string()))
        yield table.append_column(ACTION, pa.array(actions, pa.string()))


def _happened(cell: object, has_item: bool, nulls: frozenset[str]) -> list[str | None]:
    """The items of a cell, or one None where it says that it happened to the row's item."""
    if cell is None or (isinstance(cell, str) and cell.strip() in nulls):
        return []
    if has_item:
        text = (write_cell(cell) or "").strip().lower()
        return [] if text in _NOTHING else [None]
    value = read_cell(cell)
    if isinstance(value, str):
        separator = next((mark for mark in ("|", ";", ",") if mark in value), None)
        value = [part.strip() for part in value.split(separator)]
    parts: Sequence[object] = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(part, (dict, list, tuple)) for part in parts):
        raise ValueError("holds objects, not ids")
    texts = [write_cell(part) for part in parts]
    return [text for text in texts if text]
