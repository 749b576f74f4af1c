"""What is wrong with tables from outside, said before anything of them lands.

    problems = check(items, events, users, now=…, known=known_items(landing))     whole tables
    look = EventsLook(known, now); look.add(block) …; look.problems()              events in blocks

A fatal problem means that nothing is landed; the others go to a quarantine at landing (timestamps in the future) or in
the stages `events` (unknown items) and `catalog` (items that nothing describes).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from features.batches import ITEMS_FILE, list_batches
from features.expectations.items import described
from plumline.schema import DESCRIBING, EVENTS, ITEMS, TIMESTAMP, USERS, Contract

CLOCK_SKEW = timedelta(minutes=5)
"""How far a sender's clock may run ahead of ours before its events count as from the future."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with the tables, all rows of one kind together.

    file: "items", "events" or "users". row: the first bad row, counted from 1 without a header; None: the whole table.
    value: what stands there. count: rows of this kind. fatal: nothing may be landed. place: file and line of the row,
    "" where that is not known.
    """

    file: str
    row: int | None
    column: str
    value: str
    advice: str
    count: int = 1
    fatal: bool = True
    place: str = ""

    def __str__(self) -> str:
        where = f"{self.file}: row {self.row}: " if self.row is not None else f"{self.file}: "
        where = f"{self.place}: " if self.place else where
        many = f" ({self.count} such rows)" if self.count > 1 else ""
        return f"{where}{self.column}{' ' + self.value if self.value else ''}{many}; {self.advice}"


def check(
    items: pa.Table | None,
    events: pa.Table | None,
    users: pa.Table | None,
    *,
    now: datetime,
    known: Collection[str] = (),
) -> list[Problem]:
    """Everything wrong with tables in their contracts' columns, fatal problems first.

    known: ids of items landed earlier. Rows that are equal in every column are no problem: landing folds them.
    """
    problems: list[Problem] = []
    for table, contract in ((items, ITEMS), (users, USERS)):
        if table is not None:
            problems += _check_required(table, contract)
            problems += check_unique(table, contract)
    if items is not None:
        problems += _check_described(items)
    if events is not None:
        ids = pa.array(sorted(filter(None, known)), pa.string())
        ids = ids if items is None else pa.concat_arrays([ids, *items.column("item_id").chunks])
        look = EventsLook(ids, now, with_items=items is not None)
        look.add(events)
        problems += look.problems()
    return sorted(problems, key=lambda problem: not problem.fatal)


class EventsLook:
    """What is wrong with events that come in blocks; a bad row is counted from the first block's beginning."""

    def __init__(self, known: pa.Array, now: datetime, *, with_items: bool) -> None:
        """known: ids of all items. with_items: items came with the events, so that some of them must be meant."""
        self.num_rows = self.num_unknown = self.num_late = 0
        self._known, self._now, self._with_items = known, now, with_items
        self._found: dict[str, Problem] = {}
        self._first_time: Any = None
        self._num_ids = 0

    @property
    def has_ids(self) -> bool:
        """Whether any event brought an id of its own."""
        return self._num_ids > 0

    def add(self, block: pa.Table, place: Callable[[int], str] | None = None) -> pa.Array:
        """Look at a block in EVENTS' columns; says which of its rows lie in the future. Shape (num_rows,), bool.

        place: where a row of the block (from 0) comes from.
        """
        items, times = block.column("item_id"), block.column("timestamp")
        if self._first_time is None and block.num_rows:
            self._first_time = times[0].as_py()
        for name in ("user_id", "item_id", "timestamp"):
            self._note(_empty(block, EVENTS, name), place)
        missing = block.column("event_id").null_count
        self._num_ids += block.num_rows - missing
        if missing:
            self._note(_empty(block, EVENTS, "event_id"), place)
        unknown = pc.and_(pc.is_valid(items), pc.invert(pc.is_in(items, value_set=self._known)))
        advice = "no items file has it: these events are put aside and judged again when the item lands"
        self._note(_problem(unknown, "events", "unknown item_id", items, advice, fatal=False), place)
        late = pc.fill_null(pc.greater(times, pa.scalar(self._now + CLOCK_SKEW, TIMESTAMP)), False)
        advice = f"it lies after now ({self._now:%Y-%m-%d %H:%M} UTC) and is put aside until then"
        self._note(_problem(late, "events", "timestamp in the future:", times, advice, fatal=False), place)
        self.num_unknown += pc.sum(unknown).as_py() or 0
        self.num_late += pc.sum(late).as_py() or 0
        self.num_rows += block.num_rows
        return late.combine_chunks() if isinstance(late, pa.ChunkedArray) else late

    def problems(self) -> list[Problem]:
        """What was found in all blocks."""
        if not self.num_rows:
            return [_no_row("events")]
        found = dict(self._found)
        if not self.has_ids:  # a source without event ids gets derived ones
            found.pop("event_id is empty", None)
        if self.num_late == self.num_rows:
            advice = f"all lie after now ({self._now:%Y-%m-%d %H:%M} UTC); check the unit"
            found["timestamp in the future:"] = Problem(
                "events", 1, "timestamp", f"{self._first_time}", advice, self.num_rows
            )
        if self.num_unknown == self.num_rows:
            first = found["unknown item_id"]
            advice = "all name items that no items file has; map the right column with --map item_id=COLUMN"
            found["unknown item_id"] = replace(first, fatal=self._with_items, advice=f"{advice}, or land the items too")
        return list(found.values())

    def _note(self, problems: Sequence[Problem], place: Callable[[int], str] | None) -> None:
        for problem in problems:
            first = self._found.get(problem.column)
            if first is not None:
                self._found[problem.column] = replace(first, count=first.count + problem.count)
                continue
            assert problem.row is not None
            row, where = self.num_rows + problem.row, place(problem.row - 1) if place is not None else ""
            self._found[problem.column] = replace(problem, row=row, place=where)


def known_items(landing: Path, without: Collection[str] = ()) -> set[str]:
    """Ids of all items that were ever landed. without: ids of deliveries that do not count."""
    batches = [batch for batch in list_batches(landing) if batch.holds(ITEMS_FILE) and batch.id not in without]
    return {item for batch in batches for item in batch.read(ITEMS_FILE).column("item_id").to_pylist()}


# --- tables that are there as a whole ---


def _problem(bad: Any, file: str, column: str, values: Any, advice: str, *, fatal: bool) -> list[Problem]:
    """One problem for the rows where `bad` holds, or none."""
    count = pc.sum(bad).as_py() or 0
    if not count:
        return []
    row = pc.index(bad, True).as_py()
    value = "" if values is None else _shown(values[row].as_py())
    return [Problem(file, row + 1, column, value, advice, count, fatal)]


def _shown(value: Any) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S}" if isinstance(value, datetime) else repr(value)


def _no_row(noun: str) -> Problem:
    return Problem(noun, None, "no row", "", "give a file with at least one row", 0)


def _empty(table: pa.Table, contract: Contract, name: str) -> list[Problem]:
    advice = f"every row needs one: mend the file or map another column with --map {name}=COLUMN"
    return _problem(pc.is_null(table.column(name)), contract.name, f"{name} is empty", None, advice, fatal=True)


def _check_required(table: pa.Table, contract: Contract) -> list[Problem]:
    if not table.num_rows:
        return [_no_row(contract.name)]
    return [problem for name in contract.required for problem in _empty(table, contract, name)]


def check_unique(table: pa.Table, contract: Contract) -> list[Problem]:
    """Ids that are there twice, with rows that are not equal."""
    name = contract.required[0]
    ids = table.column(name)
    doubled = pc.and_(repeats(table, name), pc.invert(equal_rows(table, name)))
    advice = "its rows differ: keep one row an id"
    return _problem(doubled, contract.name, f"{name} is there twice:", ids, advice, fatal=True)


def repeats(table: pa.Table, name: str) -> pa.Array:
    """Which rows have an id that an earlier row has. Shape (num_rows,), bool."""
    import pandas as pd

    ids = table.column(name)
    return pa.array(pd.Series(ids.to_pandas()).duplicated().to_numpy() & ids.is_valid().to_numpy())


def equal_rows(table: pa.Table, name: str) -> pa.Array:
    """Which rows repeat the first row of their id in every column. Shape (num_rows,), bool."""
    again = repeats(table, name)
    if not pc.any(again).as_py():
        return again
    ids = table.filter(again).column(name)
    places = pc.indices_nonzero(pc.is_in(table.column(name), value_set=ids.unique()))
    first: dict[str, dict[str, Any]] = {}
    equal = [False] * table.num_rows
    for place, row in zip(places.to_pylist(), table.take(places).to_pylist(), strict=True):
        known = first.setdefault(row[name], row)
        equal[place] = known is not row and known == row
    return pa.array(equal)


def _check_described(items: pa.Table) -> list[Problem]:
    is_described = described(items)
    wanted = f"{', '.join(DESCRIBING)} or emb_*"
    if items.num_rows and not pc.any(is_described).as_py():
        advice = "map one with --map title=COLUMN (or topics=COLUMN+COLUMN)"
        return [Problem("items", None, f"no column describes an item ({wanted})", "", advice, items.num_rows)]
    advice = f"it has none of {wanted} and will be quarantined"
    return _problem(pc.invert(is_described), "items", "nothing describes", items.column("item_id"), advice, fatal=False)
