"""Landed batches: what `plumline init` and `plumline land` leave in data/landing, one immutable artifact a delivery.

    data/landing/<batch id>/items.parquet               ITEMS, sorted by item_id (if items were delivered)
                            users.parquet               USERS, sorted by user_id (if users were delivered)
                            events/day=YYYY-MM-DD.parquet   EVENTS of one UTC day, sorted by timestamp, event_id
                            quarantine.parquet          EVENTS + `reason`: rows refused at the door (if any)

The batch id is a hash of the content, so a delivery that comes twice is there once. `order` counts the deliveries:
where two speak about one item, the later one is believed. features/landing.py writes these folders.
"""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plumline.artifact import MANIFEST, Manifest, read_manifest, sha256_file
from plumline.errors import CorruptArtifactError, InputError
from plumline.schema import TIMESTAMP
from plumline.tables import read_parquet

ITEMS_FILE = "items.parquet"
USERS_FILE = "users.parquet"
QUARANTINE_FILE = "quarantine.parquet"
FUTURE = "timestamp in the future"
"""Reason of the rows in a batch's quarantine."""
_SHORTEST_ID = 4


@dataclass(frozen=True)
class Batch:
    """One finished delivery. `order`: 0 for the first that was landed."""

    folder: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def order(self) -> int:
        return int(self.manifest.arguments["order"])

    @property
    def source(self) -> str:
        """What was delivered, for people: names of files."""
        return str(self.manifest.arguments.get("source", ""))

    @property
    def landed_at(self) -> datetime:
        """When it landed: noted since 0.3, before that the time of its manifest."""
        noted = self.manifest.arguments.get("landed_at")
        if noted is not None:
            return datetime.fromisoformat(noted)
        return datetime.fromtimestamp((self.folder / MANIFEST).stat().st_mtime, UTC).replace(microsecond=0)

    @property
    def of_init(self) -> bool:
        """Whether plumline init landed it: noted since 0.3, before that the first one counts as such."""
        return bool(self.manifest.arguments.get("by", "init" if self.order == 0 else "land") == "init")

    def __str__(self) -> str:
        source = f", {self.source}" if self.source else ""
        return f"delivery {self.order} ({self.id}{source}, landed {self.landed_at:%Y-%m-%d %H:%M} UTC)"

    def rows(self) -> dict[str, int]:
        """Noun (items, users, events) → rows that landed."""
        noted = self.manifest.arguments.get("rows")
        if noted is not None:
            return dict(noted)
        found = {
            "items": self.num_rows(ITEMS_FILE) if self.holds(ITEMS_FILE) else 0,
            "users": self.num_rows(USERS_FILE) if self.holds(USERS_FILE) else 0,
            "events": sum(map(self.num_rows, self.day_files().values())),
        }
        return {noun: number for noun, number in found.items() if number}

    def num_rows(self, name: str) -> int:
        """Rows of one table, as its footer says."""
        return int(pq.read_metadata(self.folder / name).num_rows)

    def schema(self, name: str) -> pa.Schema:
        """Columns of one table, as its footer says."""
        return pq.read_schema(self.folder / name)

    def day_files(self) -> dict[date, str]:
        """UTC day → name of its partition inside the batch, oldest first."""
        return day_files(self.manifest)

    def holds(self, name: str) -> bool:
        """Whether the batch has a file of this name."""
        return name in self.manifest.files

    def sha256(self, name: str) -> str:
        """What the manifest says about one file."""
        return str(self.manifest.files[name]["sha256"])

    def read(self, name: str) -> pa.Table:
        """One table of the batch, its bytes compared with the manifest first."""
        return read_verified(self.folder, self.manifest, name)


def list_batches(landing: Path) -> list[Batch]:
    """Every landed batch in the order of delivery; none if the folder is not there."""
    return sorted(
        (Batch(folder, manifest) for folder, manifest in list_artifacts(landing)), key=lambda b: (b.order, b.id)
    )


def find_batch(landing: Path, name: str) -> Batch:
    """The batch of an id, of the beginning of one (four characters or more), or of a number of order.

    Raises InputError naming those there are.
    """
    batches = list_batches(landing)
    found = [batch for batch in batches if batch.id == name] or [batch for batch in batches if str(batch.order) == name]
    if not found and len(name) >= _SHORTEST_ID:
        found = [batch for batch in batches if batch.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    there = ", ".join(f"{batch.id} ({batch.source})" if batch.source else batch.id for batch in found or batches)
    said = "is the beginning of several" if found else "is no delivery"
    raise InputError(f"{name} {said}; there are: {there or 'none'} (plumline deliveries)")


@contextmanager
def landing_lock(landing: Path) -> Iterator[None]:
    """One writer of the landing zone at a time; the lock ends with its process."""
    landing.mkdir(parents=True, exist_ok=True)
    with (landing / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def list_artifacts(parent: Path) -> list[tuple[Path, Manifest]]:
    """Finished artifacts right below a folder, by name; what is being written (hidden) is not there yet."""
    if not parent.is_dir():
        return []
    folders = sorted(p for p in parent.iterdir() if not p.name.startswith(".") and (p / MANIFEST).is_file())
    return [(folder, read_manifest(folder)) for folder in folders]


def day_file(day: date) -> str:
    """Name of a day's partition: events/day=2011-10-31.parquet."""
    return f"events/day={day.isoformat()}.parquet"


def day_files(manifest: Manifest) -> dict[date, str]:
    """UTC day → name of its partition, oldest first."""
    names = sorted(name for name in manifest.files if name.startswith("events/day="))
    return {date.fromisoformat(name.removeprefix("events/day=").removesuffix(".parquet")): name for name in names}


def cut_days(events: pa.Table) -> Iterator[tuple[date, pa.Table]]:
    """Events sorted by timestamp, cut at the UTC days: (day, rows), oldest first."""
    days = utc_day(events.column("timestamp")).cast(pa.int32()).to_numpy()
    if not len(days):
        return
    starts = np.flatnonzero(np.diff(days, prepend=days[:1] - 1))
    for start, end in zip(starts, [*starts[1:], len(days)], strict=True):
        yield date(1970, 1, 1) + timedelta(days=int(days[start])), events.slice(start, end - start)


def utc_day(timestamps: pa.ChunkedArray) -> pa.ChunkedArray:
    """UTC microseconds → date32 of the UTC day."""
    assert timestamps.type == TIMESTAMP
    return timestamps.cast(pa.timestamp("us")).cast(pa.date32(), safe=False)


def read_verified(folder: Path, manifest: Manifest, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One parquet file of an artifact after its sha256 was compared; the other files are not touched."""
    path = folder / name
    if not path.is_file() or sha256_file(path) != manifest.files[name]["sha256"]:
        raise CorruptArtifactError(
            f"{path}: differs from its manifest; restore {folder} from a backup or land it again"
        )
    return read_parquet(path, columns)
