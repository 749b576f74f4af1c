"""Popularity: everybody gets the items with the most events, recent events counting more if wished.

The floor under every recommender; a model that does not beat it has learnt nothing about users.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from models.baselines.ranking import rank_items
from models.memory.events import read_events, weigh


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
        from scipy.sparse import csr_matrix

        def nothing(chunk: slice) -> Any:
            return csr_matrix((len(histories[chunk]), len(self.weights)))

        return rank_items(nothing, self.weights, self.item_ids, k, exclude)
