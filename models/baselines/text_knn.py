"""Text kNN: the items whose words are most like those of the items that this user took last. Learns nothing from users.

TF-IDF over title, channel (brand), topics (categories) and description, cosine (Salton & Buckley 1988). A user is the
decayed sum of the items' vectors. A seen item is most like itself, so this one gains most where seen items are masked.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from models.baselines.ranking import best_products, known_items, rank_items, recent_items
from models.memory.events import read_events, weigh
from models.memory.texts import has_words, texts_of, word_vectors
from plumline.errors import InputError
from plumline.schema import DESCRIBING
from plumline.tables import column


@dataclass(frozen=True)
class TextKnn:
    """known_ids: M items with or without text, item_ids: the first N of them, which may be recommended.

    vectors: (M, F) scipy CSR of unit rows, empty where an item has no text. weights: (N,) float64 popularity, orders
    items of equal score. decay, last: see `fit`.
    """

    known_ids: list[str]
    item_ids: list[str]
    vectors: Any
    weights: np.ndarray
    decay: float
    last: int

    @staticmethod
    def fit(
        histories: pa.Table, item_ids: Sequence[str], items: pa.Table, *, decay: float = 0.8, last: int = 50
    ) -> TextKnn:
        """Weigh words. items: ITEMS with the text, in any order; an item that it lacks has none.

        last, decay: a query's score sums over the last items of its history, the i-th last by decay^(i-1). Raises
        InputError if no item has a word.
        """
        known = known_items(histories, item_ids)
        if not has_words(items, known):
            raise InputError(f"text kNN: none of {len(known)} items has a word in {DESCRIBING}; leave it out")
        texts = dict(zip(column(items, "item_id"), texts_of(items), strict=True))
        vectors = word_vectors([texts.get(item, "") for item in known])
        live = known[: len(item_ids)]
        return TextKnn(known, live, vectors, weigh(read_events(histories, live), len(live), None), decay, last)

    def users(self, histories: Sequence[Sequence[str]]) -> Any:
        """(Q, F) CSR of decayed sums of the vectors of what each took; times `words` it is decayed sums of cosines."""
        return recent_items(histories, self.known_ids, self.last, self.decay) @ self.vectors

    @cached_property
    def words(self) -> Any:
        """(F, N) CSR: the vectors of the items that may be recommended, as columns."""
        return self.vectors[: len(self.item_ids)].T.tocsr()

    def rank(self, histories: Sequence[Sequence[str]], k: int, exclude: Sequence[Collection[str]]) -> list[list[str]]:
        """The k items with the highest score that are not excluded; ties (no word known: all 0) by popularity."""
        return rank_items(
            lambda chunk: best_products(self.users(histories[chunk]), self.words, k, exclude[chunk]),
            self.weights,
            self.item_ids,
            k,
            exclude,
        )
