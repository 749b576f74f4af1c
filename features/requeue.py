"""Rows that were put aside are judged again when what spoke against them may be gone.

    item_id unknown            when an items file has landed that names it
    timestamp in the future    when events of that day, or of a later one, have landed
    traffic file unreadable    when a file of that name can be read
    anything                   on `plumline requeue`, which leaves a mark in the landing zone

    data/landing/requeue.json  {"number": how often that was asked, "until": the time until when events are past}

Stage `events` does it. A row counts once: it goes into the lake, or into the quarantine of the batch that judged it
again, and `released.parquet` of that batch says that it waits in the earlier one no more.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from features.batches import FUTURE, utc_day
from features.expectations.events import UNKNOWN_ITEM
from features.lake import LakeBatch
from features.partitions import NO_ACTION, TORN
from plumline import artifact
from plumline.errors import CorruptArtifactError
from plumline.schema import TIMESTAMP

JUDGED_BY = ("item_id", "timestamp", "day", "source", "reason")
"""Columns by which it is seen whether a row is to be judged again."""
_MARK_FILE = "requeue.json"


@dataclass(frozen=True)
class Mark:
    """The last `plumline requeue`. number: 0 for never. until: events up to then are no more in the future."""

    number: int = 0
    until: datetime | None = None


def read_mark(landing: Path) -> Mark:
    """The mark of a landing zone."""
    path = landing / _MARK_FILE
    if not path.exists():
        return Mark()
    raw = artifact.read_json(path)
    try:
        return Mark(int(raw["number"]), datetime.fromisoformat(raw["until"]))
    except (KeyError, TypeError, ValueError):
        raise CorruptArtifactError(f"{path}: not a mark; delete it and run plumline requeue again") from None


def write_mark(landing: Path, now: datetime) -> Mark:
    """Ask for everything that is put aside to be judged again by the next run."""
    mark = Mark(read_mark(landing).number + 1, now.replace(microsecond=0))
    assert mark.until is not None
    value = {"number": mark.number, "until": mark.until.isoformat()}
    artifact.replace_file(landing / _MARK_FILE, json.dumps(value) + "\n")
    return mark


def due(
    waiting: pa.Table, *, known_items: pa.Array, through: date, last_day: date, mark: Mark, batches: Sequence[LakeBatch]
) -> pa.Array:
    """Which rows are to be judged again. Shape (num_rows,), bool.

    waiting: JUDGED_BY of rows that are put aside, and `batch`. through: the last day that is judged. last_day: the
    newest day with events.
    """
    reasons = waiting.column("reason")
    unknown = pc.and_(pc.equal(reasons, UNKNOWN_ITEM), pc.is_in(waiting.column("item_id"), value_set=known_items))
    passed = pc.and_(pc.equal(reasons, FUTURE), _is_past(waiting, last_day, mark))
    asked = [batch.id for batch in batches if batch.manifest.arguments.get("requeue", 0) < mark.number]
    others = pc.invert(pc.is_in(reasons, value_set=pa.array([FUTURE, TORN, NO_ACTION])))
    wanted = pc.and_(others, pc.is_in(waiting.column("batch"), value_set=pa.array(asked, pa.string())))
    judged = pc.fill_null(pc.less_equal(_days(waiting), pa.scalar(through, pa.date32())), False)
    return pc.and_(judged, pc.or_(pc.or_(unknown, passed), wanted))


def of_no_batch(rows: pa.Table) -> pa.Table:
    """QUARANTINE_SCHEMA and PLACE_SCHEMA of rows that lie in no lake batch yet."""
    return rows.append_column("batch", pa.repeat("", rows.num_rows)).append_column(
        "row", pa.array(range(rows.num_rows), pa.int64())
    )


def read_anew(waiting: pa.Table, names: Collection[str]) -> pa.Array:
    """Which rows stand for a file that could not be read and is judged anew now. names: sources. Shape (num_rows,)."""
    torn = pc.equal(waiting.column("reason"), TORN)
    return pc.and_(torn, pc.is_in(waiting.column("source"), value_set=pa.array(sorted(names), pa.string())))


def on_their_days(rows: pa.Table) -> pa.Table:
    """Rows without a reason, those that lay in the future with the UTC day of their own."""
    rows = rows.set_column(rows.column_names.index("day"), "day", _days(rows))
    return rows.set_column(rows.column_names.index("reason"), "reason", pa.nulls(rows.num_rows, pa.string()))


def _days(rows: pa.Table) -> pa.ChunkedArray:
    return pc.if_else(pc.equal(rows.column("reason"), FUTURE), utc_day(rows.column("timestamp")), rows.column("day"))


def _is_past(rows: pa.Table, last_day: date, mark: Mark) -> pa.ChunkedArray:
    times = rows.column("timestamp")
    past = pc.less_equal(utc_day(times), pa.scalar(last_day, pa.date32()))
    if mark.until is not None:
        past = pc.or_(past, pc.less_equal(times, pa.scalar(mark.until, TIMESTAMP)))
    return pc.fill_null(past, False)
