"""`--explode`: each element of a list in a row becomes a row, with the row's other columns beside it.

    events       a list of objects    {"session": 7, "events": [{"aid": 1, "ts": 2}, …]} → session, aid, ts
    basket       a list of ids        {"user": "u", "basket": ["a", "b"]}                → user, basket
    impressions  ids with a mark      N55689-1 N35729-0                                  → impressions, action
    shown,clicked  two lists of ids   what was shown, and which of it was clicked        → shown, action

An id with a mark (-1 clicked, -0 not), an id of the second list, or an object with a field of `CLICKS` gives a column
`action`: "click", or "impression", which shows no interest. Lists are JSON, Python's, parquet's, or ids with something
between them.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.intake.options import SHOWN
from features.intake.shapes.cells import read_cell, write_cell
from features.intake.shapes.conditions import as_text, parse_condition
from features.intake.shapes.parts import Parts, lay_down
from features.intake.staged import FILE, LINE, Rows
from features.intake.staging.json_rows import JsonRows
from plumline.errors import InputError

CLICKED = "click"
CLICKS = ("clicked", "click", "is_click", "is_clicked")
"""Fields of an object that say whether it was clicked, where nothing else is the action."""
_ACTIONS = {"action", "behavior", "event", "event_type", "type"}
_MARK = re.compile(r"(.+)-([01])")
_OBJECTS = msgspec.json.Decoder(list[msgspec.Raw])
_TOKENS = 1000
"""Ids after which it is decided whether they carry marks."""


@dataclass(frozen=True)
class Exploded:
    """rows: the new rows. scalars: elements are ids in the column itself, not objects. empty: rows that had none."""

    rows: Parts
    scalars: bool
    empty: int


def explode(rows: Rows, columns: tuple[str, ...], *, noun: str, into: Path, null_words: Sequence[str] = ()) -> Exploded:
    """null_words: cells that hold nothing, as a whole.

    Raises InputError where a cell is no list, with its line, and where no row has an element.
    """
    for column in columns:
        if column not in rows.columns:
            raise InputError(f"--explode {column}: {noun} have no such column; there are {', '.join(rows.columns)}")
    state = _State(rows, columns, frozenset(null_words))
    made = lay_down(rows, state.tables(), into)
    if not made.num_rows:
        raise InputError(f"--explode {columns[0]}: no row of {noun} has an element in it; look at plumline inspect")
    return Exploded(_with_clicks(made, tuple(state.inner), into), state.scalars, state.empty)


class _State:
    """What is known of the list so far: whether it holds objects, and whether its ids carry marks."""

    def __init__(self, rows: Rows, columns: tuple[str, ...], null_words: frozenset[str]) -> None:
        self.rows, self.column, self.null_words = rows, columns[0], null_words
        self.clicked = columns[1] if len(columns) > 1 else None
        self.marked: bool | None = False if self.clicked else None
        self.scalars, self.empty = True, 0
        self.inner: dict[str, None] = {}
        self._json = JsonRows(self.column, [])

    def tables(self) -> Iterator[pa.Table]:
        for block in self.rows.blocks():
            kind = block.schema.field(self.column).type
            typed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
            if typed and self.clicked is None and not pa.types.is_string(kind.value_type):
                yield self._typed(block)
            else:
                yield self._read(block)

    def _typed(self, block: pa.Table) -> pa.Table:
        """A list column of parquet: its elements keep their types."""
        lists = block.column(self.column).combine_chunks()
        parents, values = pc.list_parent_indices(lists), pc.list_flatten(lists)
        there = values.is_valid()
        parents, values = parents.filter(there), values.filter(there)
        self.empty += block.num_rows - pc.count_distinct(parents).as_py()
        if not pa.types.is_struct(values.type):
            return self._beside(block, parents, {self.column: values})
        self.scalars = False
        names = [field.name for field in values.type]
        return self._beside(block, parents, dict(zip(names, values.flatten(), strict=True)))

    def _read(self, block: pa.Table) -> pa.Table:
        for fast in (self._objects, self._tokens):
            table = fast(block)
            if table is not None:
                return table
        cells = block.column(self.column).to_pylist()
        clicked = block.column(self.clicked).to_pylist() if self.clicked else None
        parents: list[int] = []
        elements: list[Any] = []
        for row, cell in enumerate(cells):
            found = self._elements(cell, block, row)
            self.empty += not found
            parents += [row] * len(found)
            elements += found
        index = pa.array(parents, pa.int64())
        objects = sum(isinstance(element, dict) for element in elements)
        if objects and (objects < len(elements) or self.marked is not None):
            other = next((row for row, e in zip(parents, elements, strict=True) if not isinstance(e, dict)), parents[0])
            raise self._bad(block, other, f"{str(cells[other])[:60]!r} is another kind of list than in other rows")
        if objects:
            self.scalars = False
            names = dict.fromkeys(chain.from_iterable(elements))
            return self._beside(block, index, {n: _texts([e.get(n) for e in elements]) for n in names})
        return self._beside(block, index, self._marks(elements, parents, clicked, block))

    def _objects(self, block: pa.Table) -> pa.Table | None:
        """JSON lists of objects, read as staging reads lines of JSON; None where a cell is anything else."""
        column = block.column(self.column)
        if not pa.types.is_string(column.type) or self.clicked or self.marked is not None:
            return None
        parents: list[int] = []
        elements: list[bytes] = []
        for row, cell in enumerate(column.to_pylist()):
            if cell is None or cell.strip() in self.null_words:
                continue
            try:
                found = _OBJECTS.decode(cell if "\n" not in cell else msgspec.json.format(cell, indent=-1))
            except msgspec.DecodeError:
                return None
            parents += [row] * len(found)
            elements += map(bytes, found)
        if not elements or not all(element[:1] == b"{" for element in elements):
            return None
        try:
            table = self._json.table(b"\n".join([*elements, b""]), np.array(parents))
        except InputError:  # said better by the slow way, which knows the line
            return None
        self.scalars = False
        self.empty += block.num_rows - len(set(parents))
        inner = {name: table.column(name) for name in table.column_names if name != LINE}
        return self._beside(block, pa.array(parents, pa.int64()), inner)

    def _tokens(self, block: pa.Table) -> pa.Table | None:
        """Ids with spaces between them; None where a cell is anything else."""
        column = block.column(self.column)
        if not pa.types.is_string(column.type) or self.clicked:
            return None
        text = as_text(column, pa.array(sorted(self.null_words), pa.string())).combine_chunks()
        if pc.any(pc.match_substring_regex(text, r"^[\[{(]|[|;,]")).as_py():
            return None
        lists = pc.if_else(pc.equal(text, ""), pa.scalar([], pa.list_(pa.string())), pc.utf8_split_whitespace(text))
        parents, ids = pc.list_parent_indices(lists), pc.list_flatten(lists)
        self.empty += block.num_rows - pc.count_distinct(parents).as_py()
        marks = pc.match_substring_regex(ids, r".-[01]$")
        if self.marked is None and len(ids):
            self.marked = bool(pc.all(marks.slice(0, _TOKENS)).as_py())
        if not self.marked:
            return self._beside(block, parents, {self.column: ids})
        did = pc.if_else(pc.and_(marks, pc.ends_with(ids, "1")), CLICKED, SHOWN)
        ids = pc.if_else(marks, pc.utf8_slice_codeunits(ids, 0, -2), ids)
        return self._beside(block, parents, {self.column: ids, "action": did})

    def _elements(self, cell: Any, block: pa.Table, row: int) -> list[Any]:
        if cell is None or (isinstance(cell, str) and cell.strip() in self.null_words):
            return []
        try:
            value = read_cell(cell)
        except ValueError as error:
            raise self._bad(block, row, f"{str(cell)[:60]!r} is no list ({error})") from None
        if isinstance(value, str):
            separator = next((mark for mark in ("|", ";", ",") if mark in value), None)
            value = [part.strip() for part in value.split(separator)]
            return [part for part in value if part]
        if isinstance(value, dict):
            return [value]
        if not isinstance(value, (list, tuple)):
            raise self._bad(block, row, f"{value!r} is no list")
        return [element for element in value if element is not None]

    def _marks(
        self, elements: list[Any], parents: list[int], clicked: list[Any] | None, block: pa.Table
    ) -> dict[str, pa.Array]:
        """Columns of ids: the id, and the action where marks or a list of clicks say it."""
        texts = [write_cell(element) for element in elements]
        if clicked is not None:
            clicks = [{write_cell(e) for e in self._elements(cell, block, row)} for row, cell in enumerate(clicked)]
            did = [CLICKED if text in clicks[row] else SHOWN for text, row in zip(texts, parents, strict=True)]
            return {self.column: _texts(texts), "action": pa.array(did, pa.string())}
        if self.marked is None and texts:
            self.marked = all(_MARK.fullmatch(text or "") for text in texts[:_TOKENS])
        if not self.marked:
            return {self.column: _texts(texts)}
        found = [_MARK.fullmatch(text or "") for text in texts]
        ids = [match[1] if match else text for match, text in zip(found, texts, strict=True)]
        did = [CLICKED if match and match[2] == "1" else SHOWN for match in found]
        return {self.column: _texts(ids), "action": pa.array(did, pa.string())}

    def _beside(self, block: pa.Table, parents: pa.Array, inner: dict[str, Any]) -> pa.Table:
        """The outer rows of elements, with the elements' columns in the place of the list."""
        outer = block.drop_columns([name for name in (self.column, self.clicked) if name in block.column_names])
        table = outer.take(parents)
        self.inner |= dict.fromkeys(inner)
        for name, values in inner.items():
            taken = name in table.column_names and name != "action"
            name = f"{self.column}.{name}" if taken or name in (FILE, LINE) else name
            if name in table.column_names:
                table = table.drop_columns([name])
            table = table.append_column(name, values)
        return table

    def _bad(self, block: pa.Table, row: int, words: str) -> InputError:
        place = self.rows.place(block.column(FILE)[row].as_py(), block.column(LINE)[row].as_py())
        return InputError(f"{place}: {self.column} {words}; --explode takes lists, as JSON or with spaces between ids")


def _texts(values: list[Any]) -> pa.Array:
    return pa.array([write_cell(value) for value in values], pa.string())


def _with_clicks(made: Parts, inner: tuple[str, ...], into: Path) -> Parts:
    """With a column `action` where objects say by a field of their own whether they were clicked."""
    field = next((name for name in CLICKS if name in inner and name in made.columns), None)
    if field is None or _ACTIONS & set(made.columns):
        return made
    condition = parse_condition(f"`{field}` == true")

    def tables() -> Iterator[pa.Table]:
        for block in made.blocks():
            action = pc.if_else(condition.holds(block), CLICKED, SHOWN)
            yield block.append_column("action", action)

    return lay_down(made, tables(), into.with_name(f"{into.name}-clicks"), (f"action is read from {field}",))
