"""All events of the histories as flat arrays of item numbers: what the memory and the baselines count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DAY_MS = 86_400_000


@dataclass(frozen=True)
class Events:
    """All events of the histories, flat, user after user, oldest first within one.

    items: (E,) int64, number in `item_ids`. users: (E,) int64, row of the history. timestamps: (E,) int64 epoch ms.
    Events of items that are not in `item_ids` are left out.
    """

    items: np.ndarray
    users: np.ndarray
    timestamps: np.ndarray


def read_events(histories: pa.Table, item_ids: Sequence[str] | pa.Array) -> Events:
    """Flatten a table of histories. item_ids: an item's number is its place."""
    lists = histories.column("item_ids").combine_chunks()
    users = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    items = pc.index_in(pc.list_flatten(lists), pa.array(item_ids, pa.string()))
    timestamps = pc.list_flatten(histories.column("timestamps").combine_chunks()).to_numpy(zero_copy_only=False)
    users = users.astype(np.int64, copy=False)
    if not items.null_count:
        return Events(items.to_numpy(zero_copy_only=False).astype(np.int64), users, timestamps)
    known = pc.is_valid(items).to_numpy(zero_copy_only=False)
    return Events(items.drop_null().to_numpy(zero_copy_only=False).astype(np.int64), users[known], timestamps[known])


def weigh(events: Events, num_items: int, half_life_days: float | None, end_ms: int | None = None) -> np.ndarray:
    """(num_items,) float64: events of each item, each counting 2^(-age / half life); None: all count one.

    end_ms: when an event has no age yet, epoch ms; None: the time of the newest event.
    """
    if half_life_days is None or len(events.items) == 0:
        return np.bincount(events.items, minlength=num_items).astype(np.float64)
    return np.bincount(events.items, weights=recency(events, half_life_days, end_ms), minlength=num_items)


def recency(events: Events, half_life_days: float, end_ms: int | None = None) -> np.ndarray:
    """(E,) float64 in (0, 1]: 2^(-age / half life) of every event; end_ms as in `weigh`."""
    end = events.timestamps.max(initial=0) if end_ms is None else end_ms
    return 0.5 ** ((end - events.timestamps) / DAY_MS / half_life_days)
