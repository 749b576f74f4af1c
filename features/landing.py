"""What `plumline init` and `plumline land` do: check tables from outside and land them as one batch.

    items = rename(read_table(path), ITEMS, mapping)    features/intake/tables.py, offered here too
    with scratch_folder(landing) as scratch:
        arrival = arrive(items, events, users, scratch=scratch, now=…)      checked, cut into days, not landed
        batch = publish(arrival, landing=landing, source="…", now=…)        one rename; the same delivery is there once
    batch = land(items, events, users, landing=…, source="…", now=…)        both

events: a table, or blocks of one that memory does not hold (features/day_parts.py). A fatal problem (features/door.py)
means nothing is landed; the others go to a quarantine here (timestamps in the future) or in the stages `events`
(unknown items) and `catalog` (items that nothing describes).

Event ids. A source without `event_id` gets one by hashing all contract columns of the row. Rows that agree in all of
them are one event: such a file delivered twice, or overlapping the next, must count once, and nothing in the rows
could tell a second purchase of the same thing in the same second from a second delivery. They are folded here and
counted in the batch's manifest (`folded`). A source with ids of its own keeps every row; stage `events` lets the first
of an id in. Rows of items or users that agree in all columns are folded too.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from features.batches import (
    FUTURE,
    ITEMS_FILE,
    QUARANTINE_FILE,
    USERS_FILE,
    Batch,
    day_file,
    find_batch,
    landing_lock,
    list_batches,
)
from features.day_parts import DayHashes, DayParts, content_hash
from features.door import EventsLook, Problem, check, equal_rows, known_items
from features.intake.tables import Renamed, read_table, rename, split_mapping
from plumline import artifact
from plumline.errors import InputError
from plumline.schema import EVENTS, ITEMS, TIMESTAMP, USERS, Contract, conform
from plumline.stage import code_version, git_sha
from plumline.tables import write_parquet

__all__ = [
    "Arrival",
    "Problem",
    "Renamed",
    "arrive",
    "check",
    "known_items",
    "land",
    "publish",
    "read_table",
    "rename",
    "scratch_folder",
    "split_mapping",
]

_ID_ROWS = 1 << 16

PlacedBlock = tuple[pa.Table, Callable[[int], str]]
"""A block of events, and what says of a row (from 0) where it comes from."""


@dataclass(frozen=True)
class Arrival:
    """A delivery that was looked at and lies in a scratch folder.

    files: name → hash of its content. rows: noun → rows that land. days: UTC day → events. folded: noun → rows that
    repeat another in every column. num_late: events put aside because they lie in the future. num_unknown: rows that
    name an item which nobody landed (equal ones not folded). problems: fatal ones first; with one of these the folder
    is not complete.
    """

    folder: Path
    files: dict[str, str] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    days: dict[date, int] = field(default_factory=dict)
    folded: dict[str, int] = field(default_factory=dict)
    num_late: int = 0
    num_unknown: int = 0
    problems: tuple[Problem, ...] = ()

    @property
    def key(self) -> str:
        """Hash of the content."""
        return artifact.sha256_json(self.files)

    @property
    def id(self) -> str:
        """Name of the batch."""
        return self.key[:16]

    def day_files(self) -> dict[date, str]:
        """UTC day → name of its file, oldest first."""
        return {day: day_file(day) for day in self.days}

    @property
    def fatal(self) -> list[Problem]:
        """Problems that forbid to land it."""
        return [problem for problem in self.problems if problem.fatal]


def land(
    items: pa.Table | None,
    events: pa.Table | Iterable[pa.Table] | None,
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
    with scratch_folder(landing) as scratch:
        arrival = arrive(items, events, users, scratch=scratch, now=now, known=known_items(landing))
        if arrival.fatal:
            raise InputError(str(arrival.fatal[0]))
        return publish(arrival, landing=landing, source=source, now=now).folder


def arrive(
    items: pa.Table | None,
    events: pa.Table | Iterable[pa.Table | PlacedBlock] | None,
    users: pa.Table | None,
    *,
    scratch: Path,
    now: datetime,
    known: Collection[str] = (),
) -> Arrival:
    """Look at renamed tables and write what a batch will hold into `scratch`. A day of events is in memory at a time.

    events: a table, or blocks, with or without their places. known: ids of items landed earlier. Raises InputError if
    there is nothing to land; problems are in the Arrival.
    """
    if items is None and events is None and users is None:
        raise InputError("nothing to land; give at least one of items, events, users")
    ids = pa.array(sorted(filter(None, known)), pa.string())
    ids = ids if items is None else pa.concat_arrays([ids, *items.column("item_id").chunks])
    look = EventsLook(ids, now, with_items=items is not None)
    made = _Made(scratch)
    with DayParts(scratch / "runs") as parts:
        problems = check(items, None, users, now=now)
        late = [EVENTS.schema.empty_table()]
        blocks = [events] if isinstance(events, pa.Table) else events or ()
        for one in tqdm(
            blocks, desc="read", unit="block", disable=None, leave=False
        ):  # none: no bar where nobody looks
            block, place = one if isinstance(one, tuple) else (one, None)
            rows = conform(block, _LENIENT)
            is_late = look.add(block, place)
            if pc.any(is_late).as_py():
                late.append(rows.filter(is_late))
            parts.add(rows.filter(pc.and_(pc.invert(is_late), pc.is_valid(rows.column("timestamp")))))
        problems += look.problems() if events is not None else []
        if not any(problem.fatal for problem in problems):
            for table, contract, name in ((items, ITEMS, ITEMS_FILE), (users, USERS, USERS_FILE)):
                if table is not None:
                    made.write_described(table, contract, name)
            if events is not None:
                made.write_events(parts, pa.concat_tables(late), has_ids=look.has_ids)
    shutil.rmtree(scratch / "runs", ignore_errors=True)
    return Arrival(
        scratch,
        made.files,
        made.rows,
        made.days,
        made.folded,
        made.num_late,
        look.num_unknown,
        tuple(sorted(problems, key=lambda problem: not problem.fatal)),
    )


def publish(
    arrival: Arrival,
    *,
    landing: Path,
    source: str,
    now: datetime,
    by: str = "land",
    about: Mapping[str, Any] | None = None,
) -> Batch:
    """Land what has arrived; the batch that is there already, if its content is.

    now: when it landed, for people. by: command that landed it. about: further arguments of its manifest.
    """
    out = landing / arrival.id
    with landing_lock(landing):
        if not (out / artifact.MANIFEST).is_file():
            order = max((batch.order + 1 for batch in list_batches(landing)), default=0)
            seal(arrival, out, order=order, source=source, now=now, by=by, about=about)
    return find_batch(landing, arrival.id)


def seal(
    arrival: Arrival,
    out: Path,
    *,
    order: int,
    source: str,
    now: datetime,
    by: str,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Move what has arrived into a finished artifact at `out`."""
    arguments: dict[str, Any] = {
        "order": order,
        "source": source,
        "folded": arrival.folded.get("events", 0),
        "by": by,
        "landed_at": now.isoformat(timespec="seconds"),
        "rows": arrival.rows,
    }
    arguments |= about or {}
    code = code_version(__name__)
    with artifact.writing(
        out, stage="landing", key=arrival.key, arguments=arguments, code=code, git_sha=git_sha()
    ) as sealed:
        for name in arrival.files:
            (sealed / name).parent.mkdir(parents=True, exist_ok=True)
            (arrival.folder / name).rename(sealed / name)


@contextmanager
def scratch_folder(landing: Path) -> Iterator[Path]:
    """A folder beside the batches for a delivery that arrives. It is gone afterwards, and in a home where nothing had
    landed, and has not now, so is every folder that was made for it; that of a killed process goes with the next
    delivery."""
    folder = landing / artifact.SCRATCH / f"delivery-{os.getpid()}-{secrets.token_hex(4)}"
    made = [] if landing.exists() else [path for path in folder.parents if not path.exists()]
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # not empty: it landed
            for path in made:
                path.rmdir()


# --- tables of the batch ---


_LENIENT = Contract(EVENTS.name, EVENTS.schema, ())  # what is missing is for the door to say


class _Made:
    """The files of a batch as they are written, and what is counted on the way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, str] = {}
        self.rows: dict[str, int] = {}
        self.days: dict[date, int] = {}
        self.folded: dict[str, int] = {}
        self.num_late = 0

    def write(self, name: str, table: pa.Table, content: str = "") -> None:
        write_parquet(self.folder / name, table)
        self.files[name] = content or content_hash(table)

    def write_described(self, table: pa.Table, contract: Contract, name: str) -> None:
        key = contract.required[0]
        again = equal_rows(table, key)
        self.folded[contract.name] = pc.sum(again).as_py() or 0
        table = table.filter(pc.invert(again)) if self.folded[contract.name] else table
        self.rows[contract.name] = table.num_rows
        self.write(name, _sorted(conform(table, contract), key))

    def write_events(self, parts: DayParts, late: pa.Table, *, has_ids: bool) -> None:
        hashes = DayHashes()
        oldest = parts.oldest()
        self.folded["events"] = 0
        for day, rows in tqdm(parts.newest_first(), desc="land", unit="day", disable=None, leave=False):
            rows = self._prepare(rows, has_ids=has_ids)
            self.write(day_file(day), rows, hashes.add(rows, oldest=day == oldest))
            self.days[day] = rows.num_rows
        self.days = dict(sorted(self.days.items()))
        self.rows["events"] = sum(self.days.values())
        if late.num_rows:
            late = self._prepare(late, has_ids=has_ids)
            self.num_late = late.num_rows
            self.write(QUARANTINE_FILE, late.append_column("reason", pa.array([FUTURE] * late.num_rows)))

    def _prepare(self, events: pa.Table, *, has_ids: bool) -> pa.Table:
        """Events with their ids, equal ones folded, in order. Equal ones have one time, so they lie in one day."""
        if not has_ids:
            events = events.set_column(events.column_names.index("event_id"), "event_id", _derive_ids(events))
            first = ~events.column("event_id").to_pandas().duplicated().to_numpy()
            self.folded["events"] += int((~first).sum())
            events = events.filter(pa.array(first))
        return _sorted(conform(events, EVENTS), "timestamp", "event_id")


def _derive_ids(events: pa.Table) -> pa.ChunkedArray:
    """ "e" + 96 bits of a hash over every contract column but the id itself, for one row after another."""
    columns = []
    for name in EVENTS.schema.names:
        if name != "event_id":
            values = events.column(name)
            text = (values.cast(pa.int64()) if values.type == TIMESTAMP else values).cast(pa.string())
            columns.append(pc.fill_null(text, "\x00"))  # null and "" are not the same
    rows = pc.binary_join_element_wise(*columns, "\x1f")
    ids = [
        pa.array(
            ["e" + hashlib.blake2b(row.encode(), digest_size=12).hexdigest() for row in part.to_pylist()], pa.string()
        )
        for part in (rows.slice(start, _ID_ROWS) for start in range(0, len(rows), _ID_ROWS))
    ]
    return pa.chunked_array(ids, pa.string())


def _sorted(table: pa.Table, *names: str) -> pa.Table:
    return table.take(pc.sort_indices(table, [(name, "ascending") for name in names])).combine_chunks()
