"""Sequential item-kNN: what did people take within a few steps after (or around) the items that this user took last?

Counts instead of training (a sequential variant of item-to-item filtering, Linden et al. 2003; close to the "sequential
rules" of Ludewig & Jannach 2018): seconds for a million events, and hard to beat on small catalogues.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from models.baselines.ranking import known_items, rank_items, recent_items
from models.memory.events import read_events, recency, weigh
from models.memory.successions import divide_by_roots, successions


@dataclass(frozen=True)
class ItemKnn:
    """known_ids: M items of the histories (retired ones too: they still say something about a user).

    item_ids: the N of them, and others, that may be recommended. follows: (M, N) scipy CSR, how often the column's item
    came soon after the row's. weights: (N,) float64 popularity, orders items of equal score. decay, last: see `fit`.
    """

    known_ids: list[str]
    item_ids: list[str]
    follows: Any
    weights: np.ndarray
    decay: float
    last: int

    @staticmethod
    def fit(
        histories: pa.Table,
        item_ids: Sequence[str],
        *,
        window: int = 3,
        decay: float = 0.8,
        last: int = 50,
        half_life_days: float | None = None,
        both_ways: bool = False,
        cosine: bool = False,
    ) -> ItemKnn:
        """Count successors.

        window: an item is a successor of the `window` items before it in a user's history; d steps before counts
        decay^(d-1). last, decay: a query's score sums over the last items of its history, the i-th last by decay^(i-1).
        half_life_days: pairs and popularity of so much older events count half; None: all equal.
        both_ways: predecessors count as successors do, which is wanted where the order within a day is that of a file
        and not of events. cosine: counts are divided by the root of both items' (equally aged) numbers of events.
        """
        known = known_items(histories, item_ids)
        items = known[: len(item_ids)]  # the first N numbers are the items to recommend
        events = read_events(histories, known)
        aged = None if half_life_days is None else recency(events, half_life_days)
        (follows,) = successions(events.items, events.users, len(known), window=window, decay=decay, weights=(aged,))
        weights = weigh(events, len(known), half_life_days)
        if both_ways:
            follows = follows + follows.T.tocsr()
        if cosine:
            follows = divide_by_roots(follows, weights)
        return ItemKnn(known, items, follows[:, : len(items)], weights[: len(items)], decay, last)

    def recent(self, histories: Sequence[Sequence[str]]) -> Any:
        """(Q, M) CSR: what each took last, decayed."""
        return recent_items(histories, self.known_ids, self.last, self.decay)

    def scores(self, histories: Sequence[Sequence[str]]) -> Any:
        """(Q, N) CSR of scores ≥ 0."""
        return self.recent(histories) @ self.follows

    def rank(self, histories: Sequence[Sequence[str]], k: int, exclude: Sequence[Collection[str]]) -> list[list[str]]:
        """The k items with the highest score that are not excluded; ties (nothing known: all 0) by popularity."""
        return rank_items(lambda chunk: self.scores(histories[chunk]), self.weights, self.item_ids, k, exclude)
