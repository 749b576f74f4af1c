"""What there is to judge: files of landed events and of reactions to what was served, as rows with their source.

    data/landing/<delivery>/events/day=….parquet     LANDED
    data/landing/<delivery>/quarantine.parquet       REFUSED: put aside at the door, since it lies in the future
    data/traffic/day=YYYY-MM-DD/*.parquet            TRAFFIC: reactions, one bad client's too
    rows of earlier quarantines                      AGAIN: what spoke against them may be gone (features/requeue.py)

Reactions come from outside without a person who would mend them: a file that cannot be read and a reaction that says
nothing are put aside with a reason and stop nobody.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from features.batches import QUARANTINE_FILE, list_batches, read_verified
from features.lake import QUARANTINE_SCHEMA
from plumline import artifact
from plumline.artifact import Manifest
from plumline.errors import ArtifactError, InputError
from plumline.schema import EVENTS, TRAFFIC, Contract, conform
from plumline.tables import read_parquet

LANDED, REFUSED, TRAFFIC_FILE, AGAIN = "landed", "refused", "traffic", "again"

TORN = "traffic file that cannot be read"
NO_ACTION = "action missing, or no word of small letters"
_ACTION = "^[a-z_]{1,32}$"
"""As POST /feedback takes it."""

_LENIENT_EVENTS = Contract(EVENTS.name, EVENTS.schema, ())  # missing ids are for the expectations to find
_LENIENT_TRAFFIC = Contract(TRAFFIC.name, TRAFFIC.schema, ())


@dataclass(frozen=True)
class Partition:
    """A file of events that is judged as a whole. day: UTC day it was delivered as; name: unique and stable."""

    name: str
    day: date
    sha256: str
    path: Path
    manifest: Manifest | None
    kind: str

    def read(self) -> pa.Table:
        """Rows as QUARANTINE_SCHEMA; `reason` is null but for rows that were put aside already."""
        if self.kind == TRAFFIC_FILE:
            rows = _reactions(self.path)
        else:
            assert self.manifest is not None
            folder = self.path.parent if self.kind == REFUSED else self.path.parent.parent
            rows = read_verified(folder, self.manifest, self.path.relative_to(folder).as_posix())
        known = "reason" in rows.column_names
        reasons = rows.column("reason") if known else pa.nulls(rows.num_rows, pa.string())
        return (
            conform(rows, _LENIENT_EVENTS)
            .append_column("day", pa.repeat(pa.scalar(self.day, pa.date32()), rows.num_rows))
            .append_column("source", pa.repeat(self.name, rows.num_rows))
            .append_column("reason", reasons)
        )


@dataclass(frozen=True)
class KeptRows(Partition):
    """Rows (QUARANTINE_SCHEMA) that are in memory already, of one day."""

    rows: pa.Table

    def read(self) -> pa.Table:
        """The rows."""
        return self.rows


def keep_rows(rows: pa.Table, partition: Partition) -> Partition:
    """The same partition with these rows instead of what is in its file."""
    kept = rows.select(QUARANTINE_SCHEMA.names)
    return KeptRows(
        partition.name, partition.day, partition.sha256, partition.path, partition.manifest, partition.kind, kept
    )


def again_by_day(rows: pa.Table) -> list[Partition]:
    """Rows that were put aside and are judged again: a partition a day."""
    rows = rows.select(QUARANTINE_SCHEMA.names)
    days = sorted(pc.unique(rows.column("day")).to_pylist())
    parts = [(day, rows.filter(pc.equal(rows.column("day"), pa.scalar(day, pa.date32())))) for day in days]
    return [KeptRows(f"{AGAIN}/{day}", day, "", Path(), None, AGAIN, part) for day, part in parts]


def list_partitions(landing: Path, traffic: Path) -> Iterator[Partition]:
    """Every landed partition in the order of delivery, then the traffic by day."""
    for batch in list_batches(landing):
        days = batch.day_files()
        for day, name in days.items():
            yield Partition(f"{batch.id}/{name}", day, batch.sha256(name), batch.folder / name, batch.manifest, LANDED)
        if batch.holds(QUARANTINE_FILE) and days:
            path = batch.folder / QUARANTINE_FILE
            name = f"{batch.id}/{QUARANTINE_FILE}"
            yield Partition(name, min(days), batch.sha256(QUARANTINE_FILE), path, batch.manifest, REFUSED)
    for path in sorted(traffic.glob("day=*/*.parquet")):
        if not path.name.startswith("."):
            name = f"traffic/{path.parent.name}/{path.name}"
            day = date.fromisoformat(path.parent.name.removeprefix("day="))
            yield Partition(name, day, artifact.sha256_file(path), path, None, TRAFFIC_FILE)


def _reactions(path: Path) -> pa.Table:
    """Reactions of known users as EVENTS and `reason`; answers ("served") and anonymous reactions are no events.

    A file that cannot be read is one row that says so.
    """
    try:
        traffic = conform(read_parquet(path), _LENIENT_TRAFFIC)
    except (ArtifactError, InputError):
        return pa.table({"reason": pa.array([TORN], pa.string())})
    actions = traffic.column("action")
    is_reaction = pc.fill_null(pc.not_equal(actions, "served"), True)
    has_item = pc.fill_null(pc.greater(pc.list_value_length(traffic.column("item_ids")), 0), False)
    rows = traffic.filter(pc.and_(pc.and_(is_reaction, pc.is_valid(traffic.column("user_id"))), has_item))
    items = [ids[0] for ids in rows.column("item_ids").to_pylist()]
    times = rows.column("timestamp").cast(pa.int64()).to_pylist()
    requests, actions = rows.column("request_id").to_pylist(), rows.column("action")
    parts = zip(requests, actions.to_pylist(), items, times, strict=True)
    ids = ["t" + artifact.sha256_json(list(part))[:24] for part in parts]
    is_word = pc.fill_null(pc.match_substring_regex(actions, _ACTION), False)
    return pa.table(
        {
            "event_id": pa.array(ids, pa.string()),
            "user_id": rows.column("user_id"),
            "item_id": pa.array(items, pa.string()),
            "timestamp": rows.column("timestamp"),
            "action": actions,
            "watch_ratio": pa.array(_watch_ratios(rows), pa.float64()),
            "watch_time_s": rows.column("watch_time_s"),
            "rating": rows.column("rating"),
            "surface": pa.repeat("plumline", rows.num_rows),
            "session_id": rows.column("request_id"),
            "reason": pc.if_else(is_word, pa.scalar(None, pa.string()), NO_ACTION),
        }
    )


def _watch_ratios(reactions: pa.Table) -> list[float | None]:
    """Until 0.2 a reaction's watch ratio stood where an answer has its scores."""
    told, scores = reactions.column("watch_ratio").to_pylist(), reactions.column("scores").to_pylist()
    return [one if one is not None or not old else old[0] for one, old in zip(told, scores, strict=True)]
