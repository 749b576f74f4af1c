"""What `plumline init` and `plumline land` do: check tables from outside and land them as one batch.

    items = rename(read_table(path), ITEMS, mapping)    features/intake/tables.py, offered here too
    problems = check(items.table, events.table, users.table, now=…)
    batch = land(items.table, events.table, users.table, landing=Path("data/landing"), source="…", now=…)

A fatal problem means nothing is landed; the others go to a quarantine here (timestamps in the future) or in the stages
`events` (unknown items) and `catalog` (items that nothing describes).

Event ids. A source without `event_id` gets one by hashing all contract columns of the row. Rows that agree in all of
them are one event: such a file delivered twice, or overlapping the next, must count once, and nothing in the rows
could tell a second purchase of the same thing in the same second from a second delivery. They are folded here and
counted in the batch's manifest (`folded`). A source with ids of its own keeps every row; stage `events` lets the first
of an id in.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from features.batches import ITEMS_FILE, QUARANTINE_FILE, USERS_FILE, cut_days, day_file, list_batches
from features.expectations.items import described
from features.intake.tables import Renamed, read_table, rename, split_mapping
from plumline import artifact
from plumline.errors import InputError
from plumline.schema import DESCRIBING, EVENTS, ITEMS, TIMESTAMP, USERS, Contract, conform
from plumline.stage import code_version, git_sha
from plumline.tables import write_parquet

__all__ = ["Problem", "Renamed", "check", "known_items", "land", "read_table", "rename", "split_mapping"]

CLOCK_SKEW = timedelta(minutes=5)
"""How far a sender's clock may run ahead of ours before its events count as from the future."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with the tables, all rows of one kind together.

    file: "items", "events" or "users". row: the first bad row, counted from 1 without a header; None: the whole table.
    value: what stands there. count: rows of this kind. fatal: nothing may be landed.
    """

    file: str
    row: int | None
    column: str
    value: str
    advice: str
    count: int = 1
    fatal: bool = True

    def __str__(self) -> str:
        where = f"{self.file}: row {self.row}: " if self.row is not None else f"{self.file}: "
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
    """Everything wrong with renamed tables (`rename`), fatal problems first. known: ids of items landed earlier."""
    problems: list[Problem] = []
    for table, contract in ((items, ITEMS), (events, EVENTS), (users, USERS)):
        if table is not None:
            problems += _check_required(table, contract)
    if items is not None:
        problems += _check_items(items)
    if users is not None:
        problems += _check_unique(users, "users", "user_id")
    if events is not None:
        ids = set(known) | set(items.column("item_id").to_pylist() if items is not None else [])
        problems += _check_events(events, ids, now)
    return sorted(problems, key=lambda problem: not problem.fatal)


def known_items(landing: Path) -> set[str]:
    """Ids of all items that were ever landed."""
    batches = [batch for batch in list_batches(landing) if batch.holds(ITEMS_FILE)]
    return {item for batch in batches for item in batch.read(ITEMS_FILE).column("item_id").to_pylist()}


def land(
    items: pa.Table | None,
    events: pa.Table | None,
    users: pa.Table | None,
    *,
    landing: Path,
    source: str,
    now: datetime,
) -> Path:
    """Land renamed tables as one batch artifact and return its folder; what is there already is left as it is.

    Events later than `now` + 5 minutes go into the batch's quarantine. All or nothing: any fatal problem is an
    InputError and nothing is written. source: a note for people (file names), kept in the manifest.
    """
    if items is None and events is None and users is None:
        raise InputError("nothing to land; give at least one of items, events, users")
    fatal = [problem for problem in check(items, events, users, now=now) if problem.fatal]
    if fatal:
        raise InputError(str(fatal[0]))
    tables: dict[str, pa.Table] = {}
    folded = 0
    if items is not None:
        tables[ITEMS_FILE] = _sorted(conform(items, ITEMS), "item_id")
    if users is not None:
        tables[USERS_FILE] = _sorted(conform(users, USERS), "user_id")
    if events is not None:
        good, late, folded = _prepare_events(events, now)
        tables |= {day_file(day): part for day, part in cut_days(good)}
        if late.num_rows:
            tables[QUARANTINE_FILE] = late.append_column(
                "reason", pa.array(["timestamp in the future"] * late.num_rows)
            )
    identity = artifact.sha256_json({name: _content_hash(table) for name, table in tables.items()})
    out = landing / identity[:16]
    if (out / artifact.MANIFEST).is_file():
        return out
    arguments = {"order": len(list_batches(landing)), "source": source, "folded": folded}
    about = {"key": identity, "arguments": arguments, "code": code_version(__name__), "git_sha": git_sha()}
    with artifact.writing(out, stage="landing", **about) as scratch:
        for name, table in tqdm(tables.items(), desc="land", unit="file", disable=len(tables) < 50):
            write_parquet(scratch / name, table)
    return out


# --- problems ---


def _problem(bad: Any, file: str, column: str, values: Any, advice: str, *, fatal: bool) -> list[Problem]:
    """One problem for the rows where `bad` holds, or none."""
    count = pc.sum(bad).as_py() or 0
    if not count:
        return []
    row = pc.index(bad, True).as_py()
    value = "" if values is None else repr(values[row].as_py())
    return [Problem(file, row + 1, column, value, advice, count, fatal)]


def _check_required(table: pa.Table, contract: Contract) -> list[Problem]:
    if not table.num_rows:
        return [Problem(contract.name, None, "no row", "", "give a file with at least one row", 0)]
    problems = []
    for name in contract.required:
        has_none = name == "event_id" and table.column(name).null_count == table.num_rows
        if not has_none:  # a source without event ids gets derived ones
            missing = pc.is_null(table.column(name))
            advice = f"every row needs one: mend the file or map another column with --map {name}=COLUMN"
            problems += _problem(missing, contract.name, f"{name} is empty", None, advice, fatal=True)
    return problems


def _check_unique(table: pa.Table, noun: str, name: str) -> list[Problem]:
    import pandas as pd

    ids = table.column(name)
    doubled = pa.array(pd.Series(ids.to_pandas()).duplicated().to_numpy() & ids.is_valid().to_numpy())
    return _problem(doubled, noun, f"{name} is there twice:", ids, "keep one row an id", fatal=True)


def _check_items(items: pa.Table) -> list[Problem]:
    problems = _check_unique(items, "items", "item_id")
    is_described = described(items)
    wanted = f"{', '.join(DESCRIBING)} or emb_*"
    if items.num_rows and not pc.any(is_described).as_py():
        advice = "map one with --map title=COLUMN (or topics=COLUMN+COLUMN)"
        return [
            *problems,
            Problem("items", None, f"no column describes an item ({wanted})", "", advice, items.num_rows),
        ]
    advice = f"it has none of {wanted} and will be quarantined"
    return problems + _problem(
        pc.invert(is_described), "items", "nothing describes", items.column("item_id"), advice, fatal=False
    )


def _check_events(events: pa.Table, known: Collection[str], now: datetime) -> list[Problem]:
    items, times = events.column("item_id"), events.column("timestamp")
    problems = []
    unknown = pc.and_(
        pc.is_valid(items), pc.invert(pc.is_in(items, value_set=pa.array(sorted(filter(None, known)), pa.string())))
    )
    advice = "no items file has it: the event will be quarantined; land the item and then the event again"
    problems += _problem(unknown, "events", "unknown item_id", items, advice, fatal=False)
    late = pc.fill_null(pc.greater(times, _latest(now)), False)
    if events.num_rows and pc.sum(late).as_py() == events.num_rows:
        problems.append(
            Problem(
                "events",
                1,
                "timestamp",
                f"{times[0].as_py()}",
                f"all lie after now ({now:%Y-%m-%d %H:%M} UTC); check the unit",
                events.num_rows,
            )
        )
        return problems
    advice = f"it lies after now ({now:%Y-%m-%d %H:%M} UTC) and will be quarantined"
    return problems + _problem(late, "events", "timestamp in the future:", times, advice, fatal=False)


# --- tables of the batch ---


def _latest(now: datetime) -> pa.Scalar:
    return pa.scalar(now + CLOCK_SKEW, TIMESTAMP)


def _prepare_events(events: pa.Table, now: datetime) -> tuple[pa.Table, pa.Table, int]:
    """Events that may land and those from the future, both sorted, and how many equal rows were folded."""
    folded = 0
    if events.column("event_id").null_count == events.num_rows:
        events = events.set_column(events.column_names.index("event_id"), "event_id", _derive_ids(events))
        first = ~events.column("event_id").to_pandas().duplicated().to_numpy()
        folded = int((~first).sum())
        events = events.filter(pa.array(first))
    events = _sorted(conform(events, EVENTS), "timestamp", "event_id")
    late = pc.greater(events.column("timestamp"), _latest(now))
    return events.filter(pc.invert(late)), events.filter(late), folded


def _derive_ids(events: pa.Table) -> pa.Array:
    """ "e" + 96 bits of a hash over every contract column but the id itself, for one row after another."""
    columns = []
    for field in EVENTS.schema:
        if field.name == "event_id":
            continue
        values = events.column(field.name)
        text = (values.cast(pa.int64()) if field.type == TIMESTAMP else values).cast(pa.string())
        columns.append(pc.fill_null(text, "\x00"))  # null and "" are not the same
    rows = pc.binary_join_element_wise(*columns, "\x1f").to_pylist()
    return pa.array(["e" + hashlib.blake2b(row.encode(), digest_size=12).hexdigest() for row in rows], pa.string())


def _sorted(table: pa.Table, *names: str) -> pa.Table:
    return table.take(pc.sort_indices(table, [(name, "ascending") for name in names])).combine_chunks()


def _content_hash(table: pa.Table) -> str:
    """Hash over names, types and values of a table, however its memory is cut."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
        writer.write_table(table.replace_schema_metadata(None).combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()
