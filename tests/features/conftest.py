"""A landing zone, traffic and lake in a folder, with stage `events` to be run on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from features import events
from features.batches import Batch, find_batch, landing_lock
from features.events import EventsParams
from features.intake.tables import rename
from features.lake import EventSnapshot
from features.landing import land
from features.withdrawal import plan_withdrawal, withdraw
from plumline.schema import EVENTS, ITEMS, TRAFFIC, Contract, conform
from plumline.tables import read_parquet, write_parquet

START = date(2024, 1, 1)
NOW = datetime(2024, 1, 20, tzinfo=UTC)


@dataclass
class Zone:
    """What stage `events` reads and writes. Days are numbers from 0, 2024-01-01; users, items and ids any text."""

    folder: Path

    @property
    def landing(self) -> Path:
        return self.folder / "landing"

    @property
    def lake(self) -> Path:
        return self.folder / "events"

    def items(self, *ids: str, title: str = "a thing") -> Batch:
        """Deliver items."""
        table = rename(pa.table({"item_id": list(ids), "title": [title] * len(ids)}), ITEMS, {}).table
        return find_batch(self.landing, land(table, None, None, landing=self.landing, source="items.csv", now=NOW).name)

    def events(self, *rows: tuple[str, str, float], now: datetime = NOW, ids: Sequence[str] | None = None) -> Batch:
        """Deliver events: user, item, day."""
        users, items, days = (list(column) for column in zip(*rows, strict=True))
        times = [datetime(2024, 1, 1, 10, tzinfo=UTC) + timedelta(days=one) for one in days]
        columns = {"user_id": users, "item_id": items, "timestamp": times, **({"event_id": list(ids)} if ids else {})}
        table = rename(pa.table(columns), EVENTS, {}).table
        return find_batch(self.landing, land(None, table, None, landing=self.landing, source="e.csv", now=now).name)

    def react(self, name: str, *rows: tuple[str | None, str | None, float], action: str | None = "click") -> Path:
        """Write a file of reactions: user, item, day."""
        table = {
            "request_id": [f"r{n}" for n in range(len(rows))],
            "timestamp": [datetime(2024, 1, 1, 3, tzinfo=UTC) + timedelta(days=row[2]) for row in rows],
            "user_id": [row[0] for row in rows],
            "release_id": ["release"] * len(rows),
            "action": pa.array([action] * len(rows), pa.string()),
            "item_ids": [[] if row[1] is None else [row[1]] for row in rows],
        }
        path = self.folder / "traffic" / f"day={START + timedelta(days=rows[0][2])}" / f"{name}.parquet"
        write_parquet(path, conform(pa.table(table), Contract(TRAFFIC.name, TRAFFIC.schema, ())))
        return path

    def judge(self, through: int = 12, **params: object) -> EventSnapshot:
        """Run the stage up to a day."""
        out = self.folder / "artifact"
        out.mkdir(exist_ok=True)
        (self.folder / "traffic").mkdir(exist_ok=True)
        chosen = EventsParams.model_validate({"horizon_days": 0, **params})
        as_of = START + timedelta(days=through)
        folders = {"landing": self.landing, "traffic": self.folder / "traffic", "lake": str(self.lake)}
        events.run(chosen, **folders, as_of=as_of, out=out)
        return EventSnapshot.load(out)

    def known(self, through: int = 12, **params: object) -> list[tuple[str, str, int]]:
        """User, item and day of every event that a run up to a day may see, sorted."""
        snapshot = self.judge(through, **params)
        table = snapshot.read(through=snapshot.through)
        rows = table.select(["user_id", "item_id", "timestamp"]).to_pylist()
        return sorted((row["user_id"], row["item_id"], (row["timestamp"].date() - START).days) for row in rows)

    def aside(self) -> list[tuple[str, str]]:
        """Item and reason of every row that the last run shows as put aside, sorted."""
        rows = read_parquet(self.folder / "artifact" / "quarantine.parquet").to_pylist()
        return sorted((row["item_id"] or "", row["reason"]) for row in rows)

    def withdraw(self, *batches: Batch) -> None:
        """Take deliveries back."""
        with landing_lock(self.landing):
            plan = plan_withdrawal(batches, landing=self.landing, lake=self.lake)
            withdraw(plan, landing=self.landing, lake=self.lake, now=NOW)


@pytest.fixture
def zone(tmp_path: Path, quick_validation: object) -> Zone:
    """An empty one."""
    del quick_validation
    return Zone(tmp_path)


@pytest.fixture
def new_zone(tmp_path_factory: pytest.TempPathFactory, quick_validation: object) -> Callable[[], Zone]:
    """Makes empty ones."""
    del quick_validation
    return lambda: Zone(tmp_path_factory.mktemp("zone"))
