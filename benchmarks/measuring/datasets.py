"""A data set of a benchmark, as the pipeline would see it on some day: items known, co-occurring pairs, traffic.

A folder with items and events (parquet), in columns that `plumline init` would take without --map: the same reader is
asked, so that for instance brand_or_channel is channel and categories are topics.
"""

from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.batches import utc_day
from features.intake.tables import read_table, rename
from plumline.schema import EVENTS, ITEMS, PAIRS, conform


@dataclass(frozen=True)
class DataSet:
    """Items (ITEMS, sorted by item_id) and steps: a row a user, item and instant, by user and time, cancelled ones out.

    Columns of steps: user_id, item_id, day. Ties in time are ordered by item_id, not by event_id as the pipeline does,
    which the files here do not have.
    """

    name: str
    items: pa.Table
    steps: Any

    @property
    def last_day(self) -> date:
        """The last day of an event."""
        return self.steps.day.max()

    @cached_property
    def _first_seen(self) -> dict[str, date]:
        return dict(self.steps.groupby("item_id").day.min())

    def known(self, as_of: date) -> pa.Table:
        """Items that were published or seen by the end of as_of, or have no day of publication; sorted by item_id."""
        seen = [
            self._first_seen.get(item_id, date.max) <= as_of for item_id in self.items.column("item_id").to_pylist()
        ]
        published = pc.less_equal(utc_day(self.items.column("published_at")), pa.scalar(as_of))
        return self.items.filter(pc.or_(pc.fill_null(published, True), pa.array(seen)))

    def pairs(self, as_of: date, window: int = 5, min_count: int = 2) -> pa.Table:
        """Items within `window` steps of one user, by the end of as_of (PAIRS, as the stage histories counts)."""
        steps = self.steps[self.steps.day <= as_of]
        items = steps.item_id.astype("category")
        ends = np.flatnonzero(steps.user_id.to_numpy()[1:] != steps.user_id.to_numpy()[:-1]) + 1
        histories = np.split(items.cat.codes.to_numpy().astype(np.int64), ends)
        return count_pairs(items.cat.categories.to_list(), histories, window=window, min_count=min_count)

    def traffic(self, as_of: date, max_events: int = 200) -> dict[str, float]:
        """item_id → how often it stands among the newest `max_events` steps of a user, by the end of as_of."""
        steps = self.steps[self.steps.day <= as_of].groupby("user_id").tail(max_events)
        return {item_id: float(count) for item_id, count in steps.item_id.value_counts().items()}


def count_pairs(item_ids: list[str], histories: list[np.ndarray], *, window: int, min_count: int) -> pa.Table:
    """PAIRS: items within `window` steps of one history, at least `min_count` times. histories: rows of item_ids."""
    users = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    items = np.concatenate([np.zeros(0, np.int64), *histories])
    keys = [np.zeros(0, np.int64)]
    for distance in range(1, window + 1):
        together = (users[distance:] == users[:-distance]) & (items[distance:] != items[:-distance])
        a, b = items[:-distance][together], items[distance:][together]
        keys.append(np.minimum(a, b) * len(item_ids) + np.maximum(a, b))
    key, counts = np.unique(np.concatenate(keys), return_counts=True)
    key, counts = key[counts >= min_count], counts[counts >= min_count]
    names = np.array(item_ids, object)
    low, high = names[key // len(names)], names[key % len(names)]
    first = low <= high  # item_a < item_b as strings, whatever the order of the rows
    return conform(
        pa.table({"item_a": np.where(first, low, high), "item_b": np.where(first, high, low), "count": counts}), PAIRS
    )


def read_dataset(folder: Path) -> DataSet:
    """Read <folder>/items.parquet and <folder>/events.parquet. Raises InputError for what the pipeline would refuse."""
    items = rename(read_table(folder / "items.parquet"), ITEMS, {}).table.sort_by("item_id").combine_chunks()
    events = rename(read_table(folder / "events.parquet"), EVENTS, {}).table
    events = events.filter(pc.fill_null(pc.greater(events.column("quantity"), 0), True))
    events = events.filter(pc.is_in(events.column("item_id"), value_set=items.column("item_id").combine_chunks()))
    frame = events.select(["user_id", "item_id", "timestamp"]).to_pandas()
    frame = frame.drop_duplicates().sort_values(["user_id", "timestamp", "item_id"], ignore_index=True)
    frame["day"] = frame.pop("timestamp").dt.date
    return DataSet(folder.name, items, frame)
