"""The two protocols of asking held-out queries, and how lists become figures.

Not a stage: what `models/evaluation/scores.py`, its slices and the benchmarks share.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.evaluation import metrics
from models.retrieval.held_out import PLAIN, K, Query

Ranker = Callable[[Sequence[Sequence[str]], int, Sequence[Collection[str]]], list[list[str]]]
"""(histories, k, exclude) → lists of item ids, best first."""


Row = tuple[Query, list[str], frozenset[str]]
"""A query, the list it got, what is relevant."""


@dataclass(frozen=True)
class Task:
    """The queries of one protocol: what is asked, what may not come back, what counts as a hit. Q of each."""

    queries: list[Query]
    exclude: list[frozenset[str]]
    relevant: list[frozenset[str]]

    @staticmethod
    def of(queries: Sequence[Query], protocol: str) -> Task:
        """Apply a protocol."""
        if protocol == PLAIN:
            return Task(list(queries), [frozenset()] * len(queries), [query.relevant for query in queries])
        kept = [query for query in queries if query.relevant - query.seen]
        return Task(kept, [query.seen for query in kept], [query.relevant - query.seen for query in kept])

    def rows(self, ranked: Sequence[list[str]]) -> list[Row]:
        """Each query with its list and what is relevant."""
        return list(zip(self.queries, ranked, self.relevant, strict=True))

    def rank(self, ranker: Ranker) -> list[list[str]]:
        """Ask a baseline."""
        return ranker([[item for item, _ in query.history] for query in self.queries], K, self.exclude)


@dataclass(frozen=True)
class Ruler:
    """How a list of rankings becomes figures: one seed for all, so that all methods meet the same resampled users."""

    seed: int
    num_samples: int

    def measure(
        self, queries: Sequence[Query], ranked: Sequence[Sequence[str]], relevant: Sequence[Collection[str]]
    ) -> dict[str, Any]:
        """recall@10 and ndcg@10 with standard errors; without any query only `num_queries`: 0."""
        figures: dict[str, Any] = {"num_queries": len(queries)}
        if not queries:
            return figures
        return figures | self._estimate(queries, _each(ranked, relevant))

    def compare(
        self,
        queries: Sequence[Query],
        ranked: Sequence[Sequence[str]],
        other: Sequence[Sequence[str]],
        relevant: Sequence[Collection[str]],
    ) -> dict[str, float]:
        """The same of one method less another on the same queries: errors are of the difference, paired by user."""
        if not queries:
            return {}
        ours, theirs = _each(ranked, relevant), _each(other, relevant)
        return self._estimate(queries, {name: ours[name] - theirs[name] for name in ours})

    def _estimate(self, queries: Sequence[Query], values: dict[str, np.ndarray]) -> dict[str, float]:
        users = np.asarray([query.user_id for query in queries])
        figures: dict[str, float] = {}
        for name, each in values.items():
            estimate = metrics.bootstrap_mean(each, users, seed=self.seed, num_samples=self.num_samples)
            figures |= {f"{name}@{K}": estimate.mean, f"{name}@{K}_se": estimate.standard_error}
        return figures

    def measure_rows(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The same of rows."""
        queries, ranked, relevant = zip(*rows, strict=True) if rows else ((), (), ())
        return self.measure(queries, ranked, relevant)


def _each(ranked: Sequence[Sequence[str]], relevant: Sequence[Collection[str]]) -> dict[str, np.ndarray]:
    """recall and ndcg of each query."""
    hits = metrics.hit_matrix(ranked, relevant, K)
    num_relevant = np.asarray([len(items) for items in relevant])
    return {"recall": metrics.recall(hits, num_relevant), "ndcg": metrics.ndcg(hits, num_relevant)}
