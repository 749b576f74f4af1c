"""Sequential item-kNN: what did people take within a few steps after the items that this user took last?

Counts instead of training (a sequential variant of item-to-item filtering, Linden et al. 2003; close to the "sequential
rules" of Ludewig & Jannach 2018): seconds for a million events, and hard to beat on small catalogues.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from models.baselines.popularity import DAY_MS, weigh
from models.baselines.ranking import encode, rank_items, read_events


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
    ) -> ItemKnn:
        """Count successors.

        window: an item is a successor of the `window` items before it in a user's history; d steps before counts
        decay^(d-1). last, decay: a query's score sums over the last items of its history, the i-th last by decay^(i-1).
        half_life_days: pairs and popularity of so much older events count half; None: all equal.
        """
        from scipy.sparse import csr_matrix

        items = sorted(item_ids)
        seen = histories.column("item_ids").combine_chunks().flatten().unique().to_pylist()
        known = items + sorted(set(seen) - set(items))  # so the first N numbers are the items to recommend
        events = read_events(histories, known)
        age_days = (events.timestamps.max(initial=0) - events.timestamps) / DAY_MS
        recency = np.ones(len(age_days)) if half_life_days is None else 0.5 ** (age_days / half_life_days)
        follows = csr_matrix((len(known), len(items)))
        for step in range(1, window + 1):
            same_user = events.users[:-step] == events.users[step:]
            before, after = events.items[:-step][same_user], events.items[step:][same_user]
            weight = decay ** (step - 1) * recency[step:][same_user]
            listed = (after < len(items)) & (before != after)
            follows = follows + csr_matrix(
                (weight[listed], (before[listed], after[listed])), shape=(len(known), len(items))
            )
        weights = weigh(events, len(known), half_life_days)[: len(items)]
        return ItemKnn(known, items, follows, weights, decay, last)

    def rank(self, histories: Sequence[Sequence[str]], k: int, exclude: Sequence[Collection[str]]) -> list[list[str]]:
        """The k items with the highest score that are not excluded; ties (nothing known: all 0) by popularity."""
        from scipy.sparse import csr_matrix

        queries = encode(histories, self.known_ids, self.last)
        lengths = np.asarray([len(query) for query in queries], dtype=np.int64)
        places = np.concatenate([np.arange(n)[::-1] for n in lengths]) if len(lengths) else np.zeros(0)
        numbers = np.asarray([number for query in queries for number in query], dtype=np.int64)
        rows = np.repeat(np.arange(len(queries)), lengths)
        recent = csr_matrix((self.decay**places, (rows, numbers)), shape=(len(queries), len(self.known_ids)))
        return rank_items(
            lambda chunk: (recent[chunk] @ self.follows).toarray(), self.weights, self.item_ids, k, exclude
        )
