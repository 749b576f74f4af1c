"""Popularity: everybody gets the items with the most events, recent events counting more if wished.

The floor under every recommender; a model that does not beat it has learnt nothing about users.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from models.baselines.ranking import Events, rank_items, read_events

DAY_MS = 86_400_000


@dataclass(frozen=True)
class Popularity:
    """item_ids: N items that may be recommended. weights: (N,) float64, their weighted numbers of events."""

    item_ids: list[str]
    weights: np.ndarray

    @staticmethod
    def fit(histories: pa.Table, item_ids: Sequence[str], *, half_life_days: float | None = None) -> Popularity:
        """Count events. half_life_days: an event that is so much older than the newest counts half; None: all equal."""
        items = sorted(item_ids)
        return Popularity(items, weigh(read_events(histories, items), len(items), half_life_days))

    def rank(self, histories: Sequence[Sequence[str]], k: int, exclude: Sequence[Collection[str]]) -> list[list[str]]:
        """The k most popular items that are not excluded. Histories are not looked at."""
        return rank_items(
            lambda chunk: np.broadcast_to(self.weights, (len(histories[chunk]), len(self.weights))),
            self.weights,
            self.item_ids,
            k,
            exclude,
        )


def weigh(events: Events, num_items: int, half_life_days: float | None) -> np.ndarray:
    """(num_items,) float64: events of each item, each counting 2^(-age / half life)."""
    if half_life_days is None or len(events.items) == 0:
        return np.bincount(events.items, minlength=num_items).astype(np.float64)
    age_days = (events.timestamps.max() - events.timestamps) / DAY_MS
    return np.bincount(events.items, weights=0.5 ** (age_days / half_life_days), minlength=num_items)
