"""Catalogues and histories of a few items, written as the stages before would have."""

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from plumline.artifact import write_json
from plumline.schema import HISTORIES, ITEMS, TIMESTAMP, conform
from plumline.tables import write_parquet

AS_OF = date(2024, 1, 31)
DAY_MS = 86_400_000
END_MS = int(datetime(2024, 2, 1, tzinfo=UTC).timestamp() * 1000)
WriteInputs = Callable[..., Path]


@pytest.fixture
def write_inputs() -> WriteInputs:
    """(folder, items, lists) → folder with catalog/ and histories/ of AS_OF.

    items: item_id → {title, price, days (published so many days before the end of as_of; None: unknown), retired}.
    lists: one a user, of (item_id, days before the end of as_of), oldest first.
    """

    def write(folder: Path, items: dict[str, dict], lists: Sequence[Sequence[tuple[str, float]]]) -> Path:
        end = datetime(2024, 2, 1, tzinfo=UTC)
        days = [about.get("days") for about in items.values()]
        columns = {
            "item_id": list(items),
            "title": pa.array([about.get("title") for about in items.values()], pa.string()),
            "price": pa.array([about.get("price") for about in items.values()], pa.float64()),
            "published_at": pa.array([None if d is None else end - timedelta(days=d) for d in days], TIMESTAMP),
        }
        table = conform(pa.table(columns), ITEMS).append_column("first_seen_day", pa.nulls(len(items), pa.date32()))
        table = table.append_column("retired", pa.array([about.get("retired", False) for about in items.values()]))
        write_parquet(folder / "catalog" / "items.parquet", table.sort_by("item_id"))
        write_parquet(folder / "catalog" / "users.parquet", pa.table({"user_id": pa.array([], pa.string())}))
        histories = {
            "user_id": [f"u{number:03d}" for number in range(len(lists))],
            "item_ids": pa.array([[item for item, _ in one] for one in lists], pa.list_(pa.string())),
            "timestamps": pa.array([[int(END_MS - d * DAY_MS) for _, d in one] for one in lists], pa.list_(pa.int64())),
            "rewards": pa.array([[1.0] * len(one) for one in lists], pa.list_(pa.float32())),
        }
        write_parquet(folder / "histories" / "histories.parquet", conform(pa.table(histories), HISTORIES))
        write_json(folder / "histories" / "stats.json", {"as_of": AS_OF.isoformat()})
        return folder

    return write
