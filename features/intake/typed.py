"""Rows of files, whatever is in their cells → blocks with the contract's columns and types.

    reading = look(rows, EVENTS, options, facts, now=…)    one pass: what a cell alone cannot say is decided
    reading.findings                                         what was decided, and the problems
    for block in reading.blocks(): …                         a second pass: EVENTS + FILE, LINE; lost cells are counted
    reading.facts                                            facts, and what these rows add: for what is read next

Memory is that of one block. A required id or time that cannot be read is a problem: nothing of such rows can be read.
An optional cell that cannot be read is left empty and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

import pyarrow as pa

from features.intake.columns import choose_columns
from features.intake.facts import Facts, Known, gather_facts
from features.intake.findings import Finding, Places, Tally, refuse
from features.intake.ids import ID_COLUMNS, IdColumn
from features.intake.lists import TopicsColumn
from features.intake.numbers import NumberColumn
from features.intake.staged import FILE, LINE, Rows
from features.intake.tags import TagColumn
from features.intake.times.column import Asked, TimeColumn
from features.intake.times.spelled import check_format
from features.intake.times.zones import find_zone
from features.intake.vectors import VectorColumn
from features.intake.words import Words, whole
from plumline.schema import EVENTS, ITEMS, TIMESTAMP, Contract, conform

__all__ = ["Facts", "Finding", "Reading", "TypeOptions", "gather_facts", "look"]


class TypeOptions(Protocol):
    """What is asked about types (features/intake/options.py has it with everything else)."""

    @property
    def map(self) -> Mapping[str, str]:
        """Contract column → source column, "" to leave one out."""

    @property
    def time_format(self) -> str | None:
        """How times are written, as strptime knows it; None: looked up."""

    @property
    def time_zone(self) -> str:
        """Zone of times that name none."""

    @property
    def null_words(self) -> tuple[str, ...]:
        """Cells that mean that nothing is known."""


class TextColumn:
    """A column of text: nothing is decided about it."""

    def __init__(self, name: str, words: Words, tally: Tally) -> None:
        self.name, self._words, self._tally = name, words, tally

    def look(self, values: pa.Array, places: Places) -> None:
        """Nothing to see."""

    def decide(self) -> None:
        """Nothing to decide."""

    def read(self, values: pa.Array, places: Places) -> pa.Array:
        """Text of a block."""
        self._tally.nulled(self.name, self._words, values, places)
        return self._words.read(values)


Column = IdColumn | NumberColumn | TagColumn | TextColumn | TimeColumn | TopicsColumn | VectorColumn


@dataclass(frozen=True)
class _Bound:
    """A contract column, where it comes from, and how it is read."""

    name: str
    sources: tuple[str, ...]
    column: Column

    def look(self, block: pa.Table, places: Places) -> None:
        values = [whole(block.column(source)) for source in self.sources]
        if isinstance(self.column, TopicsColumn):
            self.column.look(values, places)
        else:
            self.column.look(values[0], places)

    def read(self, block: pa.Table, places: Places) -> pa.Array | None:
        values = [whole(block.column(source)) for source in self.sources]
        if isinstance(self.column, TopicsColumn):
            return self.column.read(values, places)
        return self.column.read(values[0], places)


class Reading:
    """Rows as the contract has them. `look` makes one; num_rows: of all blocks."""

    def __init__(
        self, rows: Rows, contract: Contract, bound: Sequence[_Bound], facts: Facts, tally: Tally, num_rows: int
    ) -> None:
        self._rows, self._contract, self._bound, self._home, self._tally = rows, contract, bound, facts, tally
        self.num_rows = num_rows

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Problems first, then what was lost, then what was decided; complete after blocks() was read to its end."""
        return self._tally.findings

    def blocks(self) -> Iterator[pa.Table]:
        """Tables of the contract (its optional columns as nulls where there is none) with FILE and LINE at the end.

        May be read more than once. Raises InputError if there is a problem.
        """
        self._tally.rewind()
        refuse(self.findings)
        lenient = Contract(self._contract.name, self._contract.schema, (), self._contract.prefix_columns)
        for block in self._rows.blocks():
            places = Places(self._rows, block)
            columns = {bound.name: bound.read(block, places) for bound in self._bound}
            read = {name: column for name, column in columns.items() if column is not None}
            table = conform(pa.table(read), lenient)
            for name in (FILE, LINE):
                table = table.append_column(name, block.column(name))
            yield table

    @property
    def seen(self) -> Facts:
        """What these rows say about how things are written."""
        noun = self._contract.name
        source = f"the {noun} of this delivery"
        ids = {b.name: replace(b.column.forms, source=source) for b in self._bound if isinstance(b.column, IdColumn)}
        ids.pop("event_id", None)
        tags = {b.name: b.column.type for b in self._bound if isinstance(b.column, TagColumn)}
        lengths = {b.name: b.column.length for b in self._bound if isinstance(b.column, VectorColumn)}
        times = {f"{noun}.{b.name}": b.column.reading for b in self._bound if isinstance(b.column, TimeColumn)}

        def known(found: Mapping[str, object]) -> dict[str, Known]:
            return {name: Known(str(value), source) for name, value in found.items() if value}

        return Facts(ids=ids, tags=known(tags), lengths=known(lengths), times=known(times))

    @property
    def facts(self) -> Facts:
        """What the home decided before, and what these rows add: the facts for what is read next."""
        return self._home + self.seen

    @property
    def span(self) -> tuple[int, int] | None:
        """First and last `timestamp` in microseconds since 1970, None if there is none."""
        column = next((b.column for b in self._bound if b.name == "timestamp"), None)
        return column.span if isinstance(column, TimeColumn) else None


def look(rows: Rows, contract: Contract, options: TypeOptions, facts: Facts, *, now: datetime) -> Reading:
    """Read all rows once and decide how each column is to be read. Problems are in the reading's findings.

    facts: what landed before decided (`gather_facts`), or, for the events of a delivery, `facts` of its items' reading.
    now: aware; what lies after it is from the future. Raises InputError for a column, zone or format that is not known.
    """
    tally = Tally(contract.name)
    if options.time_format is not None:
        check_format(options.time_format)
    asked = Asked(find_zone(options.time_zone), now, options.time_format, options.time_zone)
    chosen = choose_columns(rows.columns, contract, options.map)
    words = Words(options.null_words)
    bound = [
        _Bound(name, sources, _column(name, sources, contract, words, asked, facts, tally))
        for name, sources in chosen.sources.items()
    ]
    num_rows = 0
    for block in rows.blocks():
        num_rows += block.num_rows
        places = Places(rows, block)
        for one in bound:
            one.look(block, places)
    keys = [one for one in bound if isinstance(one.column, IdColumn) and one.column.needs_another_look]
    for block in rows.blocks() if keys else ():
        for one in keys:
            assert isinstance(one.column, IdColumn)
            one.column.look_again(whole(block.column(one.sources[0])), Places(rows, block))
    for one in bound:
        one.column.decide()
    for finding in chosen.findings:
        tally.put(finding)
    if not num_rows:
        advice = "give a file with at least one row"
        tally.put(Finding(contract.name, "", "there is no row", kind="problem", advice=advice))
    tally.keep()
    return Reading(rows, contract, bound, facts, tally, num_rows)


def _column(
    name: str,
    sources: tuple[str, ...],
    contract: Contract,
    words: Words,
    asked: Asked,
    facts: Facts,
    tally: Tally,
) -> Column:
    if name not in contract.schema.names:
        if contract is ITEMS and name.startswith("emb_"):
            return VectorColumn(name, words, facts.lengths.get(name), tally)
        if contract is ITEMS and name.startswith("tag_"):
            return TagColumn(name, words, facts.tags.get(name), tally)
        return TextColumn(name, words, tally)
    kind = contract.schema.field(name).type
    is_required = name in contract.required
    if name in ID_COLUMNS:
        is_key = contract is not EVENTS and is_required
        needed = None if name == "event_id" else is_required
        return IdColumn(name, sources[0], words, facts.ids.get(name), tally, is_required=needed, is_key=is_key)
    if kind == TIMESTAMP:
        home, days = facts.times.get(f"{contract.name}.{name}"), facts.days if is_required else None
        return TimeColumn(
            name,
            sources[0],
            words,
            asked,
            home,
            tally,
            is_required=is_required,
            days=days,
            days_source=facts.days_source,
        )
    if pa.types.is_list(kind):
        return TopicsColumn(name, sources, words, tally)
    if pa.types.is_floating(kind):
        return NumberColumn(name, sources[0], words, tally)
    return TextColumn(name, words, tally)
