"""The event lake: immutable batches of validated days, and the snapshot of it that one run may see.

    data/events/<batch id>/events/day=YYYY-MM-DD.parquet   EVENTS, sorted by timestamp, event_id
                           rows.json                       day → rows
                           verdict.json, quarantine.parquet   what was checked, what was put aside
                           released.parquet                rows of earlier batches' quarantines that were judged again

features/events.py writes it. A day may lie in several batches (late deliveries); readers merge them. A row that is put
aside waits in the quarantine of the last batch that judged it; the earlier ones still have it, and do not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from features.batches import QUARANTINE_FILE, day_file, day_files, list_artifacts, read_verified
from plumline import artifact
from plumline.artifact import Manifest
from plumline.errors import CorruptArtifactError, InputError
from plumline.schema import EVENTS

ROWS_FILE = "rows.json"
VERDICT_FILE = "verdict.json"
RELEASED_FILE = "released.parquet"

QUARANTINE_SCHEMA = pa.schema([*EVENTS.schema, ("day", pa.date32()), ("source", pa.string()), ("reason", pa.string())])
"""A row that was put aside. day: of the partition it came in. source: `<delivery>/<file>` or `traffic/<day>/<file>`."""
PLACE_SCHEMA = pa.schema({"batch": pa.string(), "row": pa.int64()})
"""Where a row lies that was put aside: lake batch, and row of its quarantine.parquet from 0."""


@dataclass(frozen=True)
class LakeBatch:
    """One finished batch of the lake. arguments of its manifest: sources (partition → sha256) and their days."""

    folder: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        return self.folder.name

    def rows(self) -> dict[date, int]:
        """UTC day → rows that landed."""
        return {date.fromisoformat(day): n for day, n in artifact.read_json(self.folder / ROWS_FILE).items()}

    def verdict(self) -> list[dict[str, Any]]:
        """Every check that was made of the batch's sources."""
        return list(artifact.read_json(self.folder / VERDICT_FILE))

    def read(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """One table of the batch, its bytes compared with the manifest first."""
        return read_verified(self.folder, self.manifest, name, columns)

    def released(self) -> pa.Table:
        """PLACE_SCHEMA: the rows of other batches' quarantines that this one has judged again."""
        held = RELEASED_FILE in self.manifest.files
        return self.read(RELEASED_FILE) if held else PLACE_SCHEMA.empty_table()

    def event_ids(self) -> pa.Array:
        """Ids of all its events."""
        names = day_files(self.manifest).values()
        columns = [self.read(name, ["event_id"]).column("event_id").combine_chunks() for name in names]
        return pa.concat_arrays([pa.array([], pa.string()), *columns])


def list_lake(lake: Path) -> list[LakeBatch]:
    """Every finished batch, by id; none if the folder is not there."""
    return [LakeBatch(folder, manifest) for folder, manifest in list_artifacts(lake)]


def read_waiting(batches: Sequence[LakeBatch], columns: Sequence[str] | None = None) -> pa.Table:
    """QUARANTINE_SCHEMA (or some of its columns) and PLACE_SCHEMA: rows that are put aside and were not judged again.

    batches: of the whole lake, or nobody knows what was judged again.
    """
    names = QUARANTINE_SCHEMA.names if columns is None else list(columns)
    fields = [*(QUARANTINE_SCHEMA.field(name) for name in names), *PLACE_SCHEMA]
    gone: dict[str, list[int]] = {}
    for batch in batches:
        for place in batch.released().to_pylist():
            gone.setdefault(place["batch"], []).append(place["row"])
    tables = [pa.schema(fields).empty_table()]
    for batch in batches:
        rows = batch.read(QUARANTINE_FILE, names)
        rows = rows.append_column("batch", pa.repeat(batch.id, rows.num_rows))
        rows = rows.append_column("row", pa.array(range(rows.num_rows), pa.int64()))
        if batch.id in gone:
            stays = pc.invert(pc.is_in(rows.column("row"), value_set=pa.array(gone[batch.id], pa.int64())))
            rows = rows.filter(stays)
        tables.append(rows)
    return pa.concat_tables(tables)


@dataclass(frozen=True)
class EventSnapshot:
    """The events a run may see: lake batches named by digest, and their days up to `through` (included).

    days: every day with at least one event, oldest first.
    """

    as_of: date
    through: date
    days: tuple[date, ...]
    batches: tuple[LakeBatch, ...]

    @classmethod
    def load(cls, folder: Path) -> "EventSnapshot":
        """Open artifacts/events; the lake's path in it is relative to the working folder.

        Raises MissingArtifactError or CorruptArtifactError if a batch is gone or not the one that was judged.
        """
        raw = artifact.read_json(folder / "snapshot.json")
        batches: list[LakeBatch] = []
        days: set[date] = set()
        for entry in raw["batches"]:
            path = Path(raw["lake"]) / entry["id"]
            batch = LakeBatch(path, artifact.read_manifest(path))
            if batch.manifest.digest != entry["digest"]:
                raise CorruptArtifactError(f"{path}: not the batch of {folder}; delete {folder} and run events again")
            batches.append(batch)
            days |= {date.fromisoformat(day) for day in entry["days"]}
        through = date.fromisoformat(raw["through"])
        return cls(date.fromisoformat(raw["as_of"]), through, tuple(sorted(days)), tuple(batches))

    def read(self, *, through: date, after: date | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Events of the days in (after, through], ordered by timestamp, event_id; only those files are opened."""
        if through > self.through:
            raise InputError(f"events are known up to {self.through}, not {through}; raise events.horizon_days")
        names = list(columns) if columns is not None else EVENTS.schema.names
        wanted = list(dict.fromkeys([*names, "timestamp", "event_id"]))
        tables = [pa.schema([EVENTS.schema.field(name) for name in wanted]).empty_table()]
        for day in self.days:
            if day > through or (after is not None and day <= after):
                continue
            name = day_file(day)
            parts = [batch.read(name, wanted) for batch in self.batches if name in batch.manifest.files]
            table = pa.concat_tables(parts)
            order = [("timestamp", "ascending"), ("event_id", "ascending")]
            tables.append(table.sort_by(order) if len(parts) > 1 else table)
        return pa.concat_tables(tables).select(names).combine_chunks()
