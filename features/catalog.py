"""One row an item and one row a user: what was published or seen by as_of, in the words of the newest delivery.

    reads   data/landing (every delivery of items and users), artifacts/events (when an item was first seen)
    writes  items.parquet (ITEMS, emb_*, `first_seen_day` date32, `retired` bool; sorted by item_id),
            users.parquet (user_id and profile columns as text; sorted), verdict.json, quarantine.parquet
    run     python -m features.catalog --params recipes/cpu_tiny.yaml --landing data/landing \\
                --events artifacts/events --as-of 2011-10-31 --out artifacts/catalog

The newest delivery of an item is believed as a whole, also where it came after as_of: a delivery has no day. An item is
in the catalogue if it was published or first seen by as_of, or if it has no publication day at all. Retired items stay
as tombstones (`retired`). Items that the suite refuses (nothing describes them) are left out and stand in the
quarantine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.batches import ITEMS_FILE, QUARANTINE_FILE, USERS_FILE, Batch, list_batches, utc_day
from features.expectations import items as expectations
from features.expectations.validation import validate
from features.lake import EventSnapshot
from plumline.artifact import write_json
from plumline.errors import InputError, RefusedError
from plumline.schema import ITEMS, TIMESTAMP, USERS, conform
from plumline.stage import Params, main
from plumline.tables import read_parquet, write_parquet


class CatalogParams(Params):
    """Nothing to choose: what an item must be is said by its suite (features/expectations/items.py)."""


def run(params: CatalogParams, *, landing: Path, events: Path, as_of: date, out: Path) -> None:
    """Write the catalogue of as_of. Raises RefusedError if no item is left."""
    del params
    versions = _newest(landing, ITEMS_FILE, "item_id")
    if versions is None:
        raise RefusedError(f"{landing}: no items were landed; land some with plumline init or plumline land")
    verdict = validate(expectations.frame(versions), "items", {})
    reasons = verdict.reasons(versions.num_rows, "critical", "warning")
    items = conform(versions.filter(pa.array(reasons == "")), ITEMS)
    refused = versions.append_column("reason", pa.array(reasons, pa.string())).filter(pa.array(reasons != ""))
    known = _as_known(items, EventSnapshot.load(events), as_of)
    if not known.num_rows:
        raise RefusedError(
            f"catalog: none of {versions.num_rows} landed items was known by {as_of} "
            f"({refused.num_rows} quarantined); choose a later as_of"
        )
    write_parquet(out / "items.parquet", known)
    users = _newest(landing, USERS_FILE, "user_id")
    write_parquet(out / "users.parquet", users if users is not None else conform(pa.table({"user_id": []}), USERS))
    write_json(out / "verdict.json", [check.describe() for check in verdict.checks])
    write_parquet(out / QUARANTINE_FILE, refused)


def _newest(landing: Path, name: str, key: str) -> pa.Table | None:
    """The newest version of every row of one file over all deliveries, sorted by key; None if there is none."""
    batches = [batch for batch in reversed(list_batches(landing)) if batch.holds(name)]
    tables = [batch.read(name) for batch in batches]
    if not tables:
        return None
    kinds: dict[str, tuple[pa.DataType, Batch]] = {}
    for batch, field in (
        (batch, field) for batch, table in zip(batches, tables, strict=True) for field in table.schema
    ):
        kind, later = kinds.setdefault(field.name, (field.type, batch))
        if kind != field.type:  # arrow would quietly make ragged lists of them
            raise InputError(
                f"{name}: {field.name} is {field.type} in {batch} and {kind} in {later}; put a mended file in the "
                f"place of one of them: plumline land --replace {later.id}, or take it back: plumline unland {later.id}"
            )
    table = pa.concat_tables(tables, promote_options="default")
    newest = table.filter(pa.array(~table.column(key).to_pandas().duplicated().to_numpy()))
    contract = ITEMS if name == ITEMS_FILE else USERS
    return conform(newest.sort_by(key).combine_chunks(), contract)


def _as_known(items: pa.Table, snapshot: EventSnapshot, as_of: date) -> pa.Table:
    """Items known by the end of as_of, with `first_seen_day` (null: no date at all) and `retired`."""
    end = pa.scalar(datetime.combine(as_of + timedelta(days=1), time(), UTC), TIMESTAMP)
    first_event = _first_events(snapshot, min(as_of, snapshot.through), items.column("item_id"))
    published = items.column("published_at")
    by_then = pc.fill_null(pc.less(published, end), True)  # no publication day: there from the start
    micros = pc.min_element_wise(published.cast(pa.int64()), first_event.cast(pa.int64()))
    first_seen = utc_day(micros.cast(TIMESTAMP))
    retired = pc.fill_null(pc.less(items.column("retired_at"), end), False)
    items = items.append_column("first_seen_day", first_seen).append_column("retired", retired)
    return items.filter(pc.or_(by_then, pc.is_valid(first_event))).combine_chunks()


def _first_events(snapshot: EventSnapshot, through: date, item_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Time of each item's first event by a day, null for none."""
    seen = snapshot.read(through=through, columns=["item_id", "timestamp"])
    first = seen.group_by("item_id").aggregate([("timestamp", "min")])
    rows = pc.index_in(item_ids, value_set=first.column("item_id").combine_chunks())
    return first.column("timestamp_min").take(rows)


def published_ms(items: pa.Table) -> pa.ChunkedArray:
    """When each item of a catalogue was published, else the day it was first seen: int64 epoch ms, null for unknown."""
    published = items.column("published_at").cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
    seen = pc.multiply(items.column("first_seen_day").cast(pa.int32()).cast(pa.int64()), 86_400_000)
    return pc.coalesce(published, seen)


@dataclass(frozen=True)
class Catalog:
    """The catalogue of one day. items, users: the tables of the artifact, sorted by id."""

    items: pa.Table
    users: pa.Table

    @classmethod
    def load(cls, folder: Path) -> "Catalog":
        """Open artifacts/catalog."""
        return cls(read_parquet(folder / "items.parquet"), read_parquet(folder / "users.parquet"))

    @cached_property
    def position(self) -> dict[str, int]:
        """item_id → row of `items`, retired ones too."""
        return {item: row for row, item in enumerate(self.item_ids)}

    @cached_property
    def item_ids(self) -> Sequence[str]:
        """Every item id in row order."""
        ids: list[str] = self.items.column("item_id").to_pylist()
        return ids

    def live(self) -> np.ndarray:
        """Which rows may be recommended. Shape (num_items,), bool."""
        return ~self.items.column("retired").to_numpy()

    def live_ids(self) -> list[str]:
        """Ids of the items that may be recommended (not retired by as_of), sorted."""
        ids: list[str] = pc.filter(self.items.column("item_id"), pa.array(self.live())).to_pylist()
        return ids


if __name__ == "__main__":
    main(run, section="catalog")
