"""STAR's retrieval stage (Lee et al. 2024, "STAR: A Simple Training-free Approach for Recommendations using Large
Language Models", section 3.1): cosines of text embeddings and of co-occurrence in users, summed over the last items.

    score(x) = 1/n Σ_j r_j λ^(t_j) [a R_S(x, j) + (1 - a) R_C(x, j)]      j: the last l items; the last has t = 0

R_S is the cosine of the embeddings, below zero set to zero; R_C = |U_x ∩ U_j| / sqrt(|U_x| |U_j|), U the users who took
an item; both are 0 for an item with itself. a = 0.5, λ = 0.7, l = 3 as in the paper; ratings r_j are taken as 1. The
paper's embeddings are a large model's, its figures are of masked seen items, and its second stage (an LLM that compares
pairs) is not here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from models.baselines.ranking import known_items, rank_items, recent_items
from models.memory.events import read_events, weigh

_BLOCK = 2048  # items whose embeddings are compared together


@dataclass(frozen=True)
class Star:
    """known_ids: M items, item_ids: the first N of them, which may be recommended.

    vectors: (M, D) float32, rows of length one or zero. taken: (M, U) scipy CSR, 1 where a user took an item. weights:
    (N,) float64 popularity, orders items of equal score. semantic_weight, decay, last: a, λ, l.
    """

    known_ids: list[str]
    item_ids: list[str]
    vectors: np.ndarray
    taken: Any
    weights: np.ndarray
    semantic_weight: float
    decay: float
    last: int

    @staticmethod
    def fit(
        histories: pa.Table,
        item_ids: Sequence[str],
        vector_ids: Sequence[str],
        vectors: np.ndarray,
        *,
        semantic_weight: float = 0.5,
        decay: float = 0.7,
        last: int = 3,
    ) -> Star:
        """Note who took what. vectors: (V, D) embeddings of the items of vector_ids; an item that they lack is like
        none."""
        from scipy.sparse import csr_matrix

        known = known_items(histories, item_ids)
        row = {item: number for number, item in enumerate(vector_ids)}
        has = np.array([item in row for item in known])
        placed = np.zeros((len(known), vectors.shape[1]), np.float32)
        placed[has] = vectors[[row[item] for item in known if item in row]]
        norms = np.linalg.norm(placed, axis=1, keepdims=True)
        np.divide(placed, norms, out=placed, where=norms > 0)
        events = read_events(histories, known)
        taken = csr_matrix(
            (np.ones(len(events.items)), (events.items, events.users)), shape=(len(known), histories.num_rows)
        )
        taken.data[:] = 1.0  # of one user, however often (equal places were summed)
        live = known[: len(item_ids)]
        weights = weigh(events, len(known), None)[: len(live)]
        return Star(known, live, placed, taken, weights, semantic_weight, decay, last)

    def scores(self, histories: Sequence[Sequence[str]], num_kept: int) -> Any:
        """(Q, N) CSR of the `num_kept` highest scores above zero in each block of items, and of all equal to the last.

        1/n is left out: it is the same for all items of a query.
        """
        from scipy.sparse import hstack

        recent = recent_items(histories, self.known_ids, self.last, self.decay)
        asked = np.unique(recent.indices)
        recent, together = recent[:, asked], self._together(asked).tocsc()
        blocks = []
        for start in range(0, len(self.item_ids), _BLOCK):
            stop = min(start + _BLOCK, len(self.item_ids))
            alike = np.maximum(self.vectors[asked] @ self.vectors[start:stop].T, 0)
            itself = np.flatnonzero((asked >= start) & (asked < stop))
            alike[itself, asked[itself] - start] = 0
            counted = (recent @ together[:, start:stop]).toarray()
            blocks.append(
                _highest(self.semantic_weight * (recent @ alike) + (1 - self.semantic_weight) * counted, num_kept)
            )
        return hstack(blocks, format="csr")

    def _together(self, asked: np.ndarray) -> Any:
        """(A, N) CSR: R_C of some items with all that may be recommended."""
        together = self.taken[asked] @ self._takers
        rows = np.repeat(np.arange(len(asked)), np.diff(together.indptr))
        scale = 1 / np.sqrt(np.maximum(np.diff(self.taken.indptr), 1))
        together.data *= scale[asked][rows] * scale[together.indices] * (together.indices != asked[rows])
        return together

    @cached_property
    def _takers(self) -> Any:
        """(U, N) CSR."""
        return self.taken[: len(self.item_ids)].T.tocsr()

    def rank(self, histories: Sequence[Sequence[str]], k: int, exclude: Sequence[Collection[str]]) -> list[list[str]]:
        """The k items with the highest score that are not excluded; ties by popularity."""

        def score(chunk: slice) -> Any:
            return self.scores(histories[chunk], k + max(len(items) for items in exclude[chunk]))

        return rank_items(score, self.weights, self.item_ids, k, exclude)


def _highest(scores: np.ndarray, num_kept: int) -> Any:
    """(Q, B) CSR of the highest cells of each row above zero, and of all equal to the last. scores: (Q, B)."""
    from scipy.sparse import csr_matrix

    least = np.zeros((len(scores), 1))
    if num_kept < scores.shape[1]:
        least = np.partition(scores, -num_kept, axis=1)[:, -num_kept, None]
    return csr_matrix(np.where((scores >= least) & (scores > 0), scores, 0))


def text_vectors(items: pa.Table, encoder: str = "tfidf_svd") -> np.ndarray:
    """(N, D) float32 text embeddings of ITEMS rows; of their tags (channel, topics) where no item has a title.

    encoder: see `models.semantic_ids.embeddings.EmbeddingsParams.text_encoders`. Raises InputError if nothing describes
    the items.
    """
    from models.semantic_ids.embeddings import EmbeddingsParams, Encoders

    described = items.select([name for name in items.column_names if not name.startswith("emb_")])
    encoders = Encoders.fit(described, EmbeddingsParams(text_encoders=(encoder,)))
    name = next(iter(encoders.fitted))
    return np.concatenate([block.modalities[name] for block in encoders.embed_blocks(described)])
