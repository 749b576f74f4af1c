"""Rows block by block: fields of objects as columns, constants, rows that are taken, events that show interest.

Nothing is written: each pass over the rows does it again, and counts it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from features.intake.options import SHOWN, Options, find_column, find_sources, flags_of
from features.intake.shapes.cells import field_of, names_of, read_cell, write_cell
from features.intake.shapes.conditions import Condition, parse_condition
from features.intake.staged import FILE, LINE, Rows
from plumline.errors import InputError


@dataclass
class Sifted(Rows):
    """rows with the fields, constants and conditions of `options`; action: the column that holds what was done.

    left_out: condition → rows that did not fulfil it and are not there, in the last pass. without: condition of
    interest → events that did not fulfil it. broken: field → cells with no object in them. first: where the first
    of each lies, "FILE: line N".
    """

    rows: Rows
    options: Options
    action: str = ""
    left_out: dict[str, int] = field(default_factory=dict)
    without: dict[str, int] = field(default_factory=dict)
    broken: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    num_rows: int = 0

    def __post_init__(self) -> None:
        self._where = [parse_condition(text) for text in self.options.where]
        self._value = [parse_condition(text, "--value") for text in self.options.value]
        self._fields = list(dict.fromkeys(self._dotted()))
        self.files, self.unit, self.notes = self.rows.files, self.rows.unit, self.rows.notes
        self._flags = [s for s in self.options.map.values() if s.startswith("?") and find_sources(s, self.rows.columns)]
        self._flags = [spec for spec in self._flags if spec not in self.rows.columns]
        more = [*self._fields, *self._flags, *self.options.constant]
        self._known = tuple(dict.fromkeys([*self.rows.columns, *more]))
        self.columns = tuple(dict.fromkeys([*self._known, *(["action"] if self._value else [])]))
        for condition in (*self._where, *self._value):
            self._check(condition)

    def blocks(self) -> Iterator[pa.Table]:
        self.left_out, self.without = dict.fromkeys(self.options.where, 0), dict.fromkeys(self.options.value, 0)
        self.broken, self.first, self.num_rows = dict.fromkeys(self._fields, 0), {}, 0
        for block in self.rows.blocks():
            for path in self._fields:
                block = block.append_column(path, self._field(block, path))
            for spec in self._flags:
                block = block.append_column(spec, _names_of_yes(block, flags_of(spec)))
            for name, text in self.options.constant.items():
                block = _put(block, name, pa.array([text] * block.num_rows, pa.string()))
            for condition in self._where:
                holds = self._holds(block, condition)
                self._count(self.left_out, condition.text, block, holds)
                block = block.filter(holds)
            if self._value:
                block = self._interest(block)
            self.num_rows += block.num_rows
            if block.num_rows:
                yield block.select([*self.columns, FILE, LINE])

    # --- fields ---

    def _dotted(self) -> Iterator[str]:
        """What maps and conditions name as `a.b` where there is a column `a` and none of that name."""
        specs = [part for spec in self.options.map.values() for choice in spec.split("|") for part in choice.split("+")]
        for name in (*specs, *(name for c in (*self._where, *self._value) for name in c.names)):
            if "." in name and name not in self.rows.columns and name.split(".")[0] in self.rows.columns:
                yield name

    def _field(self, block: pa.Table, path: str) -> pa.Array:
        head, _, rest = path.partition(".")
        found: list[str | None] = []
        is_object: list[bool] = []
        for cell in block.column(head).to_pylist():
            text = names_of(cell, rest) if isinstance(cell, str) else None
            if text is not None:
                found.append(text)
                is_object.append(True)
                continue
            try:
                value = read_cell(cell)
            except ValueError:
                value = str(cell)
            is_object.append(not isinstance(value, str) or value.strip() in self.options.null_words)
            found.append(write_cell(field_of(value, rest)))
        self._count(self.broken, path, block, pa.array(is_object, pa.bool_()))
        return pa.array(found, pa.string())

    # --- conditions ---

    def _find(self, name: str) -> str:
        column = find_column(name, self._known, self.options.map)
        assert column is not None
        return column

    def _check(self, condition: Condition) -> None:
        for name in condition.names:
            if find_column(name, self._known, self.options.map) is None:
                flag = "--value" if condition in self._value else "--where"
                raise InputError(f"{flag} {condition.text}: no column {name!r}; there are {', '.join(self._known)}")

    def _holds(self, block: pa.Table, condition: Condition) -> pa.ChunkedArray:
        return condition.holds(block, self._find, self.options.null_words)

    def _interest(self, block: pa.Table) -> pa.Table:
        shows = pa.chunked_array([pa.array([True] * block.num_rows, pa.bool_())])
        for condition in self._value:
            holds = self._holds(block, condition)
            self._count(self.without, condition.text, block, holds)
            shows = pc.and_(shows, holds)
        did = block.column(self.action) if self.action else pa.nulls(block.num_rows, pa.string())
        return _put(block, "action", pc.if_else(shows, did.cast(pa.string()), SHOWN))

    def _count(self, counts: dict[str, int], name: str, block: pa.Table, holds: Sequence[bool]) -> None:
        """Add the rows for which it does not hold, and remember where the first one lies."""
        failing = pc.index(holds, False).as_py()
        if failing < 0:
            return
        counts[name] = counts.get(name, 0) + len(holds) - pc.sum(holds).as_py()
        place = self.place(block.column(FILE)[failing].as_py(), block.column(LINE)[failing].as_py())
        self.first.setdefault(name, place)


def _names_of_yes(block: pa.Table, names: Sequence[str]) -> pa.Array:
    """For each row the names of the columns that say yes, as a JSON list; null where none does."""
    yes = {name: parse_condition(f"`{name}` == true").holds(block).to_pylist() for name in names}
    lists = [[name for name in names if yes[name][row]] for row in range(block.num_rows)]
    return pa.array([write_cell(found) if found else None for found in lists], pa.string())


def _put(block: pa.Table, name: str, values: pa.Array) -> pa.Table:
    at = block.schema.get_field_index(name)
    return block.append_column(name, values) if at < 0 else block.set_column(at, name, values)
