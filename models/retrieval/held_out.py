"""Held-out requests: what users did on the days after as_of, as queries that a list can be compared with.

Not a stage: what the stages `ranker`, `rivals` and `scores` and the benchmarks ask, and the form in which lists that
answer them are kept (`lists.parquet`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.retrieval.retriever import Request
from plumline.schema import NUMBERS
from plumline.stage import hash_seed
from plumline.tables import read_parquet, write_parquet

K = 10
"""Cut-off of every measure; the names in scores.json hold it."""

MASKED, PLAIN = PROTOCOLS = ("seen_masked", "not_masked")
NEXT_DAY, LEAVE_ONE_OUT = TASKS = ("next_day", "leave_one_out")

Lists = dict[tuple[str, str, str], dict[tuple[str, date], list[str]]]
"""(task, protocol, method) → (user_id, day) → item ids, best first."""
_LISTS = pa.schema(
    {
        "task": pa.string(),
        "protocol": pa.string(),
        "method": pa.string(),
        "user_id": pa.string(),
        "day": pa.date32(),
        "item_ids": pa.list_(pa.string()),
    }
)


@dataclass(frozen=True)
class Query:
    """A user-day that is held out. history: (item_id, epoch ms) before it, oldest first.

    rewards: what the relevant items were worth, where that is known. numbers: numeric column of events → (n,) float32
    of the history, NaN where not known; columns of which nothing is known are left out.
    Or one event of the day (leave-one-out): then the history goes up to that event.
    """

    user_id: str
    day: date
    history: list[tuple[str, int]]
    relevant: frozenset[str]
    rewards: Mapping[str, float] = field(default_factory=dict, compare=False)
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False)

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
        numbers = {name: values.tolist() for name, values in self.numbers.items()}
        return Request(history=self.history, profile=profile, at_ms=at_ms, numbers=numbers)


def read_sample(histories: Path, max_queries: int, seed: int, *, last_events: bool = False) -> list[Query]:
    """The held-out queries that have something relevant, at most max_queries, in the order of the file.

    last_events: one a user, for the last event that is held out, instead of one a user-day.
    """
    from features.histories import read_last_events, read_queries

    table = read_last_events(histories) if last_events else read_queries(histories)
    return draw(to_queries(table), max_queries, hash_seed(seed, "queries"))


def to_queries(table: pa.Table) -> list[Query]:
    """Rows of QUERIES that have something relevant."""
    from features.histories import flat_numbers

    lengths = pc.list_value_length(table.column("item_ids")).to_numpy().astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    known = [name for name in NUMBERS if name in table.column_names]  # older queries have none
    flat = {name: flat_numbers(table, name, lengths) for name in known}
    told = {name: values for name, values in flat.items() if not np.isnan(values).all()}
    return [
        Query(
            row["user_id"],
            row["day"],
            list(zip(row["item_ids"], row["timestamps"], strict=True)),
            relevant,
            dict(zip(row["relevant"], row.get("rewards") or (), strict=False)),
            {name: values[start:stop] for name, values in told.items()},
        )
        for row, start, stop in zip(table.drop_columns(known).to_pylist(), starts[:-1], starts[1:], strict=True)
        if (relevant := frozenset(row["relevant"]))
    ]


def draw(queries: list[Query], size: int, seed: int) -> list[Query]:
    """At most `size` of the queries, in their order. A larger sample holds the smaller ones."""
    if len(queries) <= size:
        return queries
    chosen = np.random.default_rng(seed).permutation(len(queries))[:size]
    return [queries[number] for number in np.sort(chosen)]


def list_row(task: str, protocol: str, method: str, query: Query, item_ids: list[str]) -> dict[str, Any]:
    """A row of lists.parquet."""
    values = (task, protocol, method, query.user_id, query.day, item_ids)
    return dict(zip(_LISTS.names, values, strict=True))


def write_lists(folder: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write lists.parquet of an artifact."""
    write_parquet(folder / "lists.parquet", pa.Table.from_pylist(list(rows), schema=_LISTS))


def read_lists(folder: Path) -> Lists:
    """The lists of an artifact `ranker` or `rivals`."""
    found: Lists = {}
    for row in read_parquet(folder / "lists.parquet").to_pylist():
        key = (row["task"], row["protocol"], row["method"])
        found.setdefault(key, {})[row["user_id"], row["day"]] = row["item_ids"]
    return found
