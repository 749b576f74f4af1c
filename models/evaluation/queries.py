"""Held-out queries of a histories artifact, the two protocols of asking them, and how answers become figures.

Not a stage: what `models/evaluation/scores.py`, its slices and the benchmarks share.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.evaluation import metrics
from plumline.stage import hash_seed

if TYPE_CHECKING:
    from models.retrieval.retriever import Request

K = 10
"""Cut-off of every measure; the names in scores.json hold it."""

MASKED, PLAIN = PROTOCOLS = ("seen_masked", "not_masked")
Ranker = Callable[[Sequence[Sequence[str]], int, Sequence[Collection[str]]], list[list[str]]]
"""(histories, k, exclude) → lists of item ids, best first."""


@dataclass(frozen=True)
class Query:
    """A user-day that is held out. history: (item_id, epoch ms) before it, oldest first.

    Or one event of the day (leave-one-out): then the history goes up to that event.
    """

    user_id: str
    day: date
    history: list[tuple[str, int]]
    relevant: frozenset[str]

    @property
    def seen(self) -> frozenset[str]:
        """Items of the history."""
        return frozenset(item for item, _ in self.history)

    def request(self, profile: dict[str, str | None]) -> Request:
        """The request of a user who comes at noon of the day (when is not known; that it is that day, is).

        Where the history goes on after noon, the user comes with its last event.
        """
        from models.retrieval.retriever import Request

        noon = datetime(self.day.year, self.day.month, self.day.day, 12, tzinfo=UTC)
        at_ms = max([int(noon.timestamp() * 1000), *(time for _, time in self.history[-1:])])
        return Request(history=self.history, profile=profile, at_ms=at_ms)


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
        hits = metrics.hit_matrix(ranked, relevant, K)
        num_relevant = np.asarray([len(items) for items in relevant])
        users = np.asarray([query.user_id for query in queries])
        for name, measure in (("recall", metrics.recall), ("ndcg", metrics.ndcg)):
            values = measure(hits, num_relevant)
            estimate = metrics.bootstrap_mean(values, users, seed=self.seed, num_samples=self.num_samples)
            figures |= {f"{name}@{K}": estimate.mean, f"{name}@{K}_se": estimate.standard_error}
        return figures

    def measure_rows(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The same of rows."""
        queries, ranked, relevant = zip(*rows, strict=True) if rows else ((), (), ())
        return self.measure(queries, ranked, relevant)


def read_sample(histories: Path, max_queries: int, seed: int, *, last_events: bool = False) -> list[Query]:
    """The held-out queries that have something relevant, at most max_queries, in the order of the file.

    last_events: one a user, for the last event that is held out, instead of one a user-day.
    """
    from features.histories import read_last_events, read_queries

    table = read_last_events(histories) if last_events else read_queries(histories)
    queries = [
        Query(row["user_id"], row["day"], list(zip(row["item_ids"], row["timestamps"], strict=True)), relevant)
        for row in table.to_pylist()
        if (relevant := frozenset(row["relevant"]))
    ]
    return draw(queries, max_queries, hash_seed(seed, "queries"))


def draw(queries: list[Query], size: int, seed: int) -> list[Query]:
    """At most `size` of the queries, in their order."""
    if len(queries) <= size:
        return queries
    chosen = np.random.default_rng(seed).choice(len(queries), size, replace=False)
    return [queries[number] for number in np.sort(chosen)]
