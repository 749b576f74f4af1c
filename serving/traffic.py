"""Answers and reactions as rows: reactions are an event source, answers are what monitoring reads.

    data/traffic/day=YYYY-MM-DD/<worker>-<n>.parquet     plumline.schema.TRAFFIC
    data/traffic/.scratch/                               being written

Rows wait in memory until there are enough of them or the oldest is old enough, then become one file by one rename; a
file is never touched again. A worker that is killed loses what waited (at most `flush_seconds` of it), one that is
stopped loses nothing. The stage `events` reads reactions with the next day whose events have landed. A full disk loses
the oldest rows beyond `_MAX_WAITING` and says so; answering goes on.
"""

import json
import secrets
import threading
from collections import deque
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from plumline import artifact
from plumline.errors import ArtifactError, InputError
from plumline.schema import TRAFFIC, conform
from plumline.stage import say
from plumline.tables import read_parquet, write_parquet

if TYPE_CHECKING:
    from serving.recommender import RecommendedItem

SERVED = "served"
_MAX_WAITING = 100_000


@dataclass(frozen=True)
class TrafficRow:
    """One answer (`action` "served"; parallel lists) or one reaction ("click", "play" …; one item).

    timestamp_ms: epoch milliseconds UTC, given by the caller. scores: of an answer its items'. num_invalid: items
    the model proposed that were not fit to serve. watch_ratio, watch_time_s, rating: of a reaction, where it has one.
    The rest as in plumline.schema.TRAFFIC.
    """

    request_id: str
    timestamp_ms: int
    user_id: str | None
    release_id: str
    action: str
    item_ids: tuple[str, ...]
    sids: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    why: tuple[str, ...] = ()
    history_length: int | None = None
    num_invalid: int = 0
    degraded: bool = False
    latency_ms: float | None = None
    watch_ratio: float | None = None
    watch_time_s: float | None = None
    rating: float | None = None


class TrafficWriter:
    """Appends rows for one worker; safe to call from several threads."""

    def __init__(self, folder: Path, worker: str, *, flush_rows: int = 256, flush_seconds: float = 5.0) -> None:
        """folder: data/traffic. worker: any short name, made unique per process start by a random tail."""
        self._folder = folder
        self._worker = f"{worker}-{secrets.token_hex(4)}"
        self._flush_rows = flush_rows
        self._flush_seconds = flush_seconds
        self._waiting: deque[TrafficRow] = deque(maxlen=_MAX_WAITING)
        self._oldest_at = 0.0
        self._num_files = 0
        self._rows_lock = threading.Lock()
        self._file_lock = threading.Lock()

    def append(self, row: TrafficRow, at: float) -> None:
        """Take one row. at: seconds on any clock that `flush_if_due` is asked with as well."""
        with self._rows_lock:
            if not self._waiting:
                self._oldest_at = at
            self._waiting.append(row)

    def is_due(self, at: float) -> bool:
        """Whether enough rows wait, or one waits long enough."""
        with self._rows_lock:
            num_waiting, oldest_at = len(self._waiting), self._oldest_at
        return num_waiting >= self._flush_rows or (num_waiting > 0 and at - oldest_at >= self._flush_seconds)

    def flush(self) -> int:
        """Write everything that waits, one file a day; returns the number of rows. On OSError they go on waiting."""
        with self._file_lock:
            with self._rows_lock:
                rows = list(self._waiting)
                self._waiting.clear()
            days = _by_day(rows)
            try:
                for day in sorted(days):
                    self._write(day, days[day])
                    days[day] = []
            except OSError as error:
                unwritten = [row for of_day in days.values() for row in of_day]
                say(f"traffic: {len(unwritten)} rows wait, {self._folder} cannot be written ({error}); free some space")
                with self._rows_lock:
                    newest = [*unwritten, *self._waiting][-_MAX_WAITING:]
                    self._waiting.clear()
                    self._waiting.extend(newest)
                return len(rows) - len(unwritten)
            return len(rows)

    def _write(self, day: date, rows: list[TrafficRow]) -> None:
        name = f"{self._worker}-{self._num_files:06d}.parquet"
        goal = self._folder / f"day={day.isoformat()}" / name
        scratch = self._folder / artifact.SCRATCH / name
        try:
            write_parquet(scratch, rows_to_table(rows))
            artifact.fsync_path(scratch)
            goal.parent.mkdir(parents=True, exist_ok=True)
            scratch.rename(goal)
            artifact.fsync_path(goal.parent)
        finally:
            scratch.unlink(missing_ok=True)
        self._num_files += 1


def why_json(item: "RecommendedItem") -> str:
    """An item's reasons as the column `why` has them."""
    parts = [[reason.part, round(reason.share, 4), list(reason.items)] for reason in item.why]
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))


def _by_day(rows: list[TrafficRow]) -> dict[date, list[TrafficRow]]:
    days: dict[date, list[TrafficRow]] = {}
    for row in rows:
        days.setdefault(_to_datetime(row.timestamp_ms).date(), []).append(row)
    return days


def _to_datetime(timestamp_ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=timestamp_ms)


def rows_to_table(rows: list[TrafficRow]) -> pa.Table:
    """Rows in the columns and types of TRAFFIC."""
    dictionaries = [asdict(row) for row in rows]
    columns = {name: [row.get(name) for row in dictionaries] for name in TRAFFIC.schema.names if name != "timestamp"}
    columns["timestamp"] = [_to_datetime(row.timestamp_ms) for row in rows]
    arrays = {field.name: pa.array(columns[field.name], field.type) for field in TRAFFIC.schema}
    return conform(pa.table(arrays), TRAFFIC)


def read_traffic(folder: Path, first: date, last: date) -> pa.Table:
    """The rows of the days `first` … `last` (both included), ordered by time and request. Empty if there are none.

    A file that cannot be read is left out, and said: what one worker wrote is no reason to see nothing of the others.
    """
    tables = [TRAFFIC.schema.empty_table()]
    day = first
    while day <= last:
        read = (_read_file(path) for path in sorted((folder / f"day={day.isoformat()}").glob("*.parquet")))
        tables += [table for table in read if table is not None]
        day += timedelta(days=1)
    keys = [("timestamp", "ascending"), ("request_id", "ascending"), ("action", "ascending")]
    return pa.concat_tables(tables).sort_by(keys)


def _read_file(path: Path) -> pa.Table | None:
    try:
        return conform(read_parquet(path), TRAFFIC)
    except (ArtifactError, InputError) as error:  # its footer has no checksum: a flipped bit is another column's name
        say(f"traffic: {path.parent.name}/{path.name} is left out, it cannot be read ({error})")
        return None
