"""A training-free teacher: what an item-kNN over sequences and texts would recommend, as further targets to learn.

The items that soon follow those of a history, and the items whose texts are like theirs, make a ranking without any
training. On amazon2014_beauty it is ahead of every model trained here; on the sample it neither helped nor cost
(docs/experiments.md). Targets drawn from it beside the items that users did take pass that knowledge
on (distillation, Hinton et al. 2015, with samples instead of soft labels, so that every target stays a SID).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from models.memory.successions import successions
from plumline.stage import Params

_CELLS = 30_000_000  # of a dense block of scores: 120 MB


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
        from scipy.sparse import identity

        users = np.repeat(np.arange(len(user_starts) - 1), np.diff(user_starts))
        (counted,) = successions(rows, users, len(texts), window=params.window, decay=params.decay)
        similar = counted.astype(np.float32)
        if params.text_weight:
            similar = similar + params.text_weight * _alike(texts, params.text_neighbours)
        if params.repeat_weight:
            similar = similar + params.repeat_weight * identity(len(texts), dtype=np.float32, format="csr")
        return Teacher(similar.tocsr(), params)

    def candidates(
        self, rows: np.ndarray, user_starts: np.ndarray, places: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What would be recommended after the events at `places`, given the history up to and with each of them.

        Items of the same user, earlier and later ones, are left out: those the model learns from the user. With a
        `repeat_weight` they are not.
        Returns (n, K) item numbers, and their chances, (n, K) float32, rows summing to 1, or to 0 where the teacher
        knows nothing.
        """
        from scipy.sparse import csr_matrix

        number = len(user_starts) - 1
        users = np.repeat(np.arange(number), np.diff(user_starts))
        own = csr_matrix((np.ones(len(rows), np.float32), (users, rows)), shape=(number, self.similar.shape[0]))
        num_kept = min(self.params.candidates, self.similar.shape[0])
        found = np.zeros((len(places), num_kept), dtype=np.int64)
        chances = np.zeros((len(places), num_kept), dtype=np.float32)
        for chunk in _chunks(len(places), self.similar.shape[0]):
            score = (self._recent(rows, user_starts, users, places[chunk]) @ self.similar).toarray()
            if not self.params.repeat_weight:
                mine = own[users[places[chunk]]].tocoo()
                score[mine.row, mine.col] = 0.0
            best = np.argpartition(-score, num_kept - 1, axis=1)[:, :num_kept]
            weight = np.take_along_axis(score, best, axis=1) ** self.params.sharpness
            found[chunk] = best
            chances[chunk] = weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-9)
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


def _chunks(num_rows: int, num_columns: int) -> Iterator[slice]:
    height = max(1, _CELLS // max(1, num_columns))
    for start in range(0, num_rows, height):
        yield slice(start, start + height)


def _alike(texts: Sequence[str], num_neighbours: int) -> Any:
    """(N, N) CSR of the cosine of TF-IDF vectors, the most similar ones of each row, without the item itself."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer, number = TfidfVectorizer(sublinear_tf=True), len(texts)
    words_of = vectorizer.build_analyzer()
    if not any(words_of(text) for text in texts):
        return csr_matrix((number, number), dtype=np.float32)
    vectors = vectorizer.fit_transform(texts).astype(np.float32)
    kept = min(num_neighbours, number)
    rows, columns, values = [], [], []
    for chunk in _chunks(number, number):
        cosine = (vectors[chunk] @ vectors.T).toarray()
        here = np.arange(len(cosine))
        cosine[here, here + chunk.start] = 0.0
        best = np.argpartition(-cosine, kept - 1, axis=1)[:, :kept]
        rows.append(np.repeat(here + chunk.start, kept))
        columns.append(best.ravel())
        values.append(np.take_along_axis(cosine, best, axis=1).ravel())
    matrix = csr_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(number, number)
    )
    matrix.eliminate_zeros()
    return matrix
