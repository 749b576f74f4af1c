"""A training-free teacher: what an item-kNN over sequences and texts would recommend, as further targets to learn.

The items that soon follow those of a history, and the items whose texts are like theirs, make a ranking without any
training. On amazon2014_beauty it is ahead of every model trained here; on the sample it neither helped nor cost
(docs/experiments.md). Targets drawn from it beside the items that users did take pass that knowledge
on (distillation, Hinton et al. 2015, with samples instead of soft labels, so that every target stays a SID).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from models.memory.products import highest_products, place_in_row
from models.memory.successions import successions
from models.memory.texts import alike, word_vectors
from plumline.stage import Params

_CHUNK = 4096  # events whose candidates are looked for together


class TeacherParams(Params):
    """How the teacher ranks."""

    text_weight: float = Field(default=3.0, ge=0.0)
    """Weight of the cosine of two items' texts against one observed succession."""
    text_neighbours: int = Field(default=100, ge=1)
    """Items of the most similar texts that count for an item."""
    window: int = Field(default=3, ge=1)
    """Steps within which one item follows another."""
    decay: float = Field(default=0.8, gt=0.0, le=1.0)
    """Weight lost a step, between the items of a pair and back through a history."""
    last: int = Field(default=20, ge=1)
    """Newest items of a history that count."""
    candidates: int = Field(default=30, ge=1)
    """Items that can be drawn for a history."""
    sharpness: float = Field(default=1.0, gt=0.0)
    """Power of an item's score that its chance is proportional to; above 1 the first ones are drawn more often."""
    repeat_weight: float = Field(default=0.0, ge=0.0)
    """Weight of an item of the history for itself, against one succession; 0: what the user has is never drawn."""


@dataclass(frozen=True)
class Teacher:
    """similar: (N, N) scipy CSR float32, how much the row's item speaks for the column's. params: as fitted."""

    similar: Any
    params: TeacherParams

    @staticmethod
    def fit(rows: np.ndarray, user_starts: np.ndarray, texts: Sequence[str], params: TeacherParams) -> "Teacher":
        """Count successions and compare texts.

        rows: (E,) item numbers 0 … N-1 of all events, user after user, oldest first. user_starts: (U + 1,).
        texts: N texts, "" where there is none.
        """
        from scipy.sparse import identity, vstack

        users = np.repeat(np.arange(len(user_starts) - 1), np.diff(user_starts))
        (counted,) = successions(rows, users, len(texts), window=params.window, decay=params.decay)
        similar = counted.astype(np.float32)
        if params.text_weight and texts:
            # Pairs of words tell the variants of a product apart, which are what should be alike here: with them its
            # Recall@10 on amazon2014_beauty is .0929 instead of .0963 (seen items masked).
            vectors, everything = word_vectors(texts, pairs=False), np.arange(len(texts))
            found = vstack(list(alike(vectors, everything, params.text_neighbours)), format="csr")
            similar = similar + np.float32(params.text_weight) * found
        if params.repeat_weight:
            similar = similar + params.repeat_weight * identity(len(texts), dtype=np.float32, format="csr")
        return Teacher(similar.tocsr(), params)

    def candidates(
        self, rows: np.ndarray, user_starts: np.ndarray, places: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What would be recommended after the events at `places`, given the history up to and with each of them.

        Items of the same user, earlier and later ones, are left out: those the model learns from the user. With a
        `repeat_weight` they are not.
        Returns (n, K) item numbers, best first, and their chances, (n, K) float32, rows summing to 1, or to 0 where the
        teacher knows nothing; behind the last item that it knows stand -1 with chance 0.
        """
        number, num_items = len(user_starts) - 1, self.similar.shape[0]
        users = np.repeat(np.arange(number), np.diff(user_starts))
        own = np.unique(users * num_items + rows)  # (user, item) as one number
        num_own = np.bincount(own // max(num_items, 1), minlength=number)
        num_kept = min(self.params.candidates, num_items)
        found = np.full((len(places), num_kept), -1, dtype=np.int64)
        chances = np.zeros((len(places), num_kept), dtype=np.float32)
        for start in range(0, len(places), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            whose = users[places[chunk]]
            spare = 0 if self.params.repeat_weight else int(num_own[whose].max())
            recent = self._recent(rows, user_starts, users, places[chunk])
            best = highest_products(recent, self.similar, num_kept + spare)
            query, item, weight = np.repeat(np.arange(len(whose)), np.diff(best.indptr)), best.indices, best.data
            if not self.params.repeat_weight:
                other = ~_among(whose[query] * num_items + item, own)
                query, item, weight = query[other], item[other], weight[other]
            place = place_in_row(query, len(whose))
            query, item, weight, place = (values[place < num_kept] for values in (query, item, weight, place))
            found[chunk][query, place] = item
            chances[chunk][query, place] = weight**self.params.sharpness
        chances /= np.maximum(chances.sum(axis=1, keepdims=True), 1e-9)
        return found, chances

    def _recent(self, rows: np.ndarray, user_starts: np.ndarray, users: np.ndarray, places: np.ndarray) -> Any:
        """(n, N) CSR: decay^i at the i-th last item of each history."""
        from scipy.sparse import csr_matrix

        back = np.arange(self.params.last)
        event = places[:, None] - back
        inside = event >= user_starts[:-1][users[places]][:, None]
        query = np.broadcast_to(np.arange(len(places))[:, None], event.shape)[inside]
        weight = np.broadcast_to(np.float32(self.params.decay) ** back, event.shape)[inside].astype(np.float32)
        return csr_matrix((weight, (query, rows[event[inside]])), shape=(len(places), self.similar.shape[0]))


def draw(candidates: np.ndarray, chances: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Items drawn with replacement, (n, num) int64; -1 where all chances are 0. candidates, chances: (n, K)."""
    reached = np.cumsum(chances.astype(np.float64), axis=1)
    total = reached[:, -1:]
    at = rng.random((len(candidates), num)) * total
    place = np.minimum((at[:, :, None] >= reached[:, None, :]).sum(axis=2), candidates.shape[1] - 1)
    return np.where(total > 0, np.take_along_axis(candidates, place, axis=1), -1)


def _among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(n,) bool: which values are known. known: (m,) ascending, at least one."""
    return known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values
