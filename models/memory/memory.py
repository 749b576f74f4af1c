"""Stage `memory`: what counting knows: what follows what, what goes together, what reads alike, what is in demand.

    reads   catalog (items.parquet), histories (histories.parquet, stats.json)
    writes  items.parquet, memory.json, and for each table <table>_starts.npy, <table>_items.npy, <table>_weights.npy
    run     python -m models.memory.memory --params recipes/cpu_tiny.yaml --catalog artifacts/catalog \\
                --histories artifacts/histories --out artifacts/memory

Items are numbered in the order of their ids: all of the catalogue, retired ones too, and those that only histories
know. Every item has a row in every table; its neighbours are live items:

    next        what users took soon after it: successions one way, each aged by its half-life
    together    what users took soon before or after it, divided by the root of both items' events; not aged
    text        what reads like it: cosine of TF-IDF
    next_fresh, text_fresh    the same, with only those items that were published lately

Ages end with the last second of as_of, not with the newest event, so that a day without events makes all a day older.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from features.catalog import Catalog, published_ms
from features.histories import read_histories
from models.memory.events import DAY_MS, Events, read_events, recency, weigh
from models.memory.neighbours import Neighbours, row_blocks
from models.memory.successions import divide_by_roots, successions
from models.memory.texts import BUDGET, alike, texts_of, word_vectors
from plumline.artifact import read_json, write_json
from plumline.errors import CorruptArtifactError
from plumline.stage import Params, main
from plumline.tables import column, read_parquet, write_parquet

TABLES = ("next", "together", "text", "next_fresh", "text_fresh")
_ITEMS, _ABOUT = "items.parquet", "memory.json"


class MemoryParams(Params):
    """What is counted, and how much of it is kept."""

    neighbours: int = Field(default=100, ge=1)
    """Neighbours kept of an item in each table."""
    fresh_neighbours: int = Field(default=50, ge=1)
    """The same in the tables of lately published items."""
    fresh_days: float = Field(default=7.0, gt=0)
    """Days before the end of as_of within which an item was published lately."""
    window: int = Field(default=3, ge=1)
    """Steps within which one item follows another."""
    decay: float = Field(default=0.8, gt=0, le=1)
    """Weight lost a step between the two items of a pair."""
    succession_half_life_days: float = Field(default=30.0, gt=0)
    """Age at which a succession counts half in `next`."""
    popularity_half_life_days: float = Field(default=14.0, gt=0)
    """Age at which an event counts half for an item's recent demand."""
    text_budget: int = Field(default=BUDGET, ge=0)
    """Multiplications that comparing all texts may take; beyond, the commonest terms are left out of the comparison."""


@dataclass(frozen=True, eq=False)
class Memory:
    """What the stage wrote, mapped into memory. N items in the order of their ids.

    item_ids: N ids. live: (N,) bool, in the catalogue and not retired. count: (N,) float64 events; recent: (N,)
    float64, aged by `popularity_half_life_days`; week, month: (N,) float64, of the last 7 and 28 days up to as_of.
    published_ms: (N,) int64 epoch milliseconds of the publication, else of the day first seen, -1 unknown. price: (N,)
    float32, NaN unknown. tables: by the names of TABLES. as_of: the last day that was counted. params: of the stage.
    """

    item_ids: list[str]
    live: np.ndarray
    count: np.ndarray
    recent: np.ndarray
    week: np.ndarray
    month: np.ndarray
    published_ms: np.ndarray
    price: np.ndarray
    tables: dict[str, Neighbours]
    as_of: date
    params: MemoryParams

    @cached_property
    def number_of(self) -> dict[str, int]:
        """item_id → number."""
        return {item: number for number, item in enumerate(self.item_ids)}

    @property
    def end_ms(self) -> int:
        """End of as_of, epoch milliseconds: when ages start."""
        return end_of(self.as_of)

    @staticmethod
    def load(folder: Path) -> Memory:
        """Open artifacts/memory. Raises MissingArtifactError, CorruptArtifactError."""
        items, about = read_parquet(folder / _ITEMS), read_json(folder / _ABOUT)
        tables = {name: Neighbours.load(folder, name) for name in TABLES}
        if any(table.num_rows != items.num_rows for table in tables.values()):
            raise CorruptArtifactError(
                f"{folder}: tables of different memories lie together; run the memory stage again"
            )
        names = ("live", "count", "recent", "week", "month", "published_ms", "price")
        return Memory(
            item_ids=items.column("item_id").to_pylist(),
            **{name: items.column(name).to_numpy() for name in names},
            tables=tables,
            as_of=date.fromisoformat(about["as_of"]),
            params=MemoryParams.model_validate(about["params"]),
        )


def run(params: MemoryParams, *, catalog: Path, histories: Path, out: Path) -> None:
    """Count the histories and compare the catalogue's texts. Equal inputs give equal bytes, however many threads."""
    known = Catalog.load(catalog).items
    as_of = date.fromisoformat(read_json(histories / "stats.json")["as_of"])
    end_ms = end_of(as_of)
    lists = read_histories(histories, ["item_ids", "timestamps"])
    item_ids = _item_ids(known, lists)
    events = read_events(lists, item_ids)
    num_events = len(events.items)
    del lists
    items = _describe(item_ids, known, events, end_ms, params)
    write_parquet(out / _ITEMS, items)
    live, published = items.column("live").to_numpy(), items.column("published_ms").to_numpy()
    fresh = live & (published >= end_ms - params.fresh_days * DAY_MS)

    aged, plain = _count(events, len(item_ids), params, end_ms)
    del events
    for name, targets, k in (("next", live, params.neighbours), ("next_fresh", fresh, params.fresh_neighbours)):
        Neighbours.best_of((aged[rows] for rows in row_blocks(aged.indptr)), k, targets).save(out, name)
    del aged
    Neighbours.best_of(_cosines(plain, items.column("count").to_numpy()), params.neighbours, live).save(out, "together")
    del plain

    texts = dict(zip(column(known, "item_id"), texts_of(known), strict=True))
    vectors = word_vectors([texts.get(item, "") for item in item_ids])
    del texts
    for name, targets, k in (("text", live, params.neighbours), ("text_fresh", fresh, params.fresh_neighbours)):
        found = alike(vectors, np.flatnonzero(targets), k, params.text_budget)
        Neighbours.best_of(found, k).save(out, name)
    write_json(
        out / _ABOUT,
        {
            "as_of": as_of.isoformat(),
            "params": params.model_dump(mode="json"),
            "num_items": len(item_ids),
            "num_live": int(live.sum()),
            "num_fresh": int(fresh.sum()),
            "num_events": num_events,
        },
    )


def end_of(day: date) -> int:
    """The end of a UTC day, epoch milliseconds."""
    return int(datetime.combine(day + timedelta(days=1), time(), UTC).timestamp() * 1000)


def _item_ids(known: pa.Table, lists: pa.Table) -> list[str]:
    """All items of the catalogue and of the histories, sorted."""
    seen = pc.unique(pc.list_flatten(lists.column("item_ids").combine_chunks()))
    return sorted({*column(known, "item_id"), *seen.to_pylist()})


def _describe(item_ids: list[str], known: pa.Table, events: Events, end_ms: int, params: MemoryParams) -> pa.Table:
    """items.parquet: what is known of each item, in the order of item_ids."""
    number = len(item_ids)
    row = pc.index_in(pa.array(item_ids, pa.string()), known.column("item_id").combine_chunks())  # null: not in there
    age_ms = end_ms - events.timestamps
    demand = {name: age_ms <= days * DAY_MS for name, days in (("week", 7), ("month", 28))}
    return pa.table(
        {
            "item_id": pa.array(item_ids, pa.string()),
            "live": pc.fill_null(pc.invert(known.column("retired").take(row)), False),
            "count": weigh(events, number, None),
            "recent": weigh(events, number, params.popularity_half_life_days, end_ms),
            **{name: np.bincount(events.items[in_time], minlength=number) * 1.0 for name, in_time in demand.items()},
            "published_ms": pc.fill_null(published_ms(known).take(row), -1),
            "price": pc.fill_null(known.column("price").take(row).cast(pa.float32()), np.float32("nan")),
        }
    )


def _count(events: Events, number: int, params: MemoryParams, end_ms: int) -> list[Any]:
    """Successions aged and not aged, (N, N) CSR each."""
    aged = recency(events, params.succession_half_life_days, end_ms)
    items, users = events.items, events.users
    return successions(items, users, number, window=params.window, decay=params.decay, weights=(aged, None))


def _cosines(follows: Any, counts: np.ndarray) -> Iterator[Any]:
    """Blocks of rows of the successions both ways over the root of both items' numbers of events, (n, N) CSR."""
    precedes = follows.T.tocsr()
    for rows in row_blocks(follows.indptr + precedes.indptr):
        yield divide_by_roots(follows[rows] + precedes[rows], counts, rows.start)


if __name__ == "__main__":
    main(run, section="memory")
