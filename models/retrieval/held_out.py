"""Held-out requests: what users did on the days after as_of, as queries that a list can be compared with.

Not a stage: what the stages `ranker` and `scores` and the benchmarks ask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from models.retrieval.retriever import Request
from plumline.stage import hash_seed

K = 10
"""Cut-off of every measure; the names in scores.json hold it."""

MASKED, PLAIN = PROTOCOLS = ("seen_masked", "not_masked")


@dataclass(frozen=True)
class Query:
    """A user-day that is held out. history: (item_id, epoch ms) before it, oldest first.

    rewards: what the relevant items were worth, where that is known.
    Or one event of the day (leave-one-out): then the history goes up to that event.
    """

    user_id: str
    day: date
    history: list[tuple[str, int]]
    relevant: frozenset[str]
    rewards: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def seen(self) -> frozenset[str]:
        """Items of the history."""
        return frozenset(item for item, _ in self.history)

    def request(self, profile: dict[str, str | None]) -> Request:
        """The request of a user who comes at noon of the day (when is not known; that it is that day, is).

        Where the history goes on after noon, the user comes with its last event.
        """
        noon = datetime(self.day.year, self.day.month, self.day.day, 12, tzinfo=UTC)
        at_ms = max([int(noon.timestamp() * 1000), *(time for _, time in self.history[-1:])])
        return Request(history=self.history, profile=profile, at_ms=at_ms)


def read_sample(histories: Path, max_queries: int, seed: int, *, last_events: bool = False) -> list[Query]:
    """The held-out queries that have something relevant, at most max_queries, in the order of the file.

    last_events: one a user, for the last event that is held out, instead of one a user-day.
    """
    from features.histories import read_last_events, read_queries

    table = read_last_events(histories) if last_events else read_queries(histories)
    return draw(to_queries(table), max_queries, hash_seed(seed, "queries"))


def to_queries(table: pa.Table) -> list[Query]:
    """Rows of QUERIES that have something relevant."""
    return [
        Query(
            row["user_id"],
            row["day"],
            list(zip(row["item_ids"], row["timestamps"], strict=True)),
            relevant,
            dict(zip(row["relevant"], row.get("rewards") or (), strict=False)),
        )
        for row in table.to_pylist()
        if (relevant := frozenset(row["relevant"]))
    ]


def draw(queries: list[Query], size: int, seed: int) -> list[Query]:
    """At most `size` of the queries, in their order."""
    if len(queries) <= size:
        return queries
    chosen = np.random.default_rng(seed).choice(len(queries), size, replace=False)
    return [queries[number] for number in np.sort(chosen)]
