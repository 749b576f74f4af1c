"""Memories and indexes of a few items, made by hand."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models.memory.memory import TABLES, Memory, MemoryParams
from models.memory.neighbours import Neighbours
from models.ranking.shelf import DAY_MS
from models.retrieval.segment import Segment

AS_OF = date(2024, 1, 10)
END_MS = 19_733 * DAY_MS  # the end of AS_OF
SIZES = (4, 4, 4)
MakeMemory = Callable[..., Memory]
MakeSegment = Callable[..., Segment]


def neighbours(rows: Mapping[int, Sequence[tuple[int, float]]], number: int) -> Neighbours:
    """Row → its (item, weight), best first."""
    lists = [rows.get(row, []) for row in range(number)]
    return Neighbours(
        np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.int64),
        np.array([item for one in lists for item, _ in one], dtype=np.int32),
        np.array([weight for one in lists for _, weight in one], dtype=np.float32),
    )


@pytest.fixture(scope="session")
def make_memory() -> MakeMemory:
    """(ids, tables, columns) → a Memory of AS_OF. tables: name → row → its neighbours. Columns that are not given: all
    counts 0, unknown days and prices."""

    def make(ids: Sequence[str], tables: Mapping[str, Mapping[int, Any]] | None = None, **columns: Any) -> Memory:
        number = len(ids)
        zeros = np.zeros(number)
        about = {"live": np.ones(number, bool), "count": zeros, "recent": zeros, "week": zeros, "month": zeros}
        about |= {"published_ms": np.full(number, -1), "price": np.full(number, np.nan, np.float32)}
        about |= {name: np.asarray(values, about[name].dtype) for name, values in columns.items()}
        made = {name: neighbours((tables or {}).get(name, {}), number) for name in TABLES}
        return Memory(item_ids=list(ids), tables=made, as_of=AS_OF, params=MemoryParams(), **about)

    return make


@pytest.fixture(scope="session")
def make_segment() -> MakeSegment:
    """(items) → a Segment. items: id → {codes, published_ms (None: unknown), price}."""

    def make(items: Mapping[str, Mapping[str, Any]]) -> Segment:
        days = [None if row.get("published_ms") is None else row["published_ms"] // DAY_MS for row in items.values()]
        table = pa.table(
            {
                "item_id": pa.array(list(items), pa.string()),
                "first_seen_day": pa.array(days, pa.int32()).cast(pa.date32()),
                "published_ms": pa.array([row.get("published_ms") for row in items.values()], pa.int64()),
                "price": pa.array([row.get("price") for row in items.values()], pa.float64()),
            }
        )
        codes = np.array([row["codes"] for row in items.values()], dtype=np.int64)
        return Segment.build(table, codes, SIZES)

    return make


@pytest.fixture(scope="session")
def end_ms() -> int:
    """The end of the memories' last day."""
    return END_MS
