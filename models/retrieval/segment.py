"""An index with its items: what stands at each position of the trie, and what a rule may ask of it.

Not a stage; the stage `index` saves one. `models/retrieval/live_index.py` puts two of them together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.retrieval.bits import Bits
from models.retrieval.csr import ITEMS_FILE, Index, is_old_format
from models.retrieval.tags import Tags, tag_columns
from plumline.errors import CorruptArtifactError
from plumline.tables import read_parquet, write_parquet

if TYPE_CHECKING:
    import torch

    from models.retrieval.trie import Trie


@dataclass(frozen=True, eq=False)
class Segment:
    """Immutable. index: its `item_rows` are 0 … N-1. items: N rows, one a position.

    Columns of items: item_id; first_seen_day (date32, null: unknown); published_ms (int64 epoch milliseconds, null:
    unknown); and those that carry tags. Behind one leaf the newest item stands first, ties by item_id.
    """

    index: Index
    items: pa.Table
    _tries: dict[str, Trie] = field(default_factory=dict)

    @staticmethod
    def build(items: pa.Table, codes: np.ndarray, sizes: tuple[int, ...]) -> Segment:
        """Index items in any order. codes: (N, L), of each row of items. Raises as `Index.build` does."""
        index = Index.build(codes, sizes, newest_first(items))
        return Segment(
            replace(index, item_rows=np.arange(len(items), dtype=index.item_rows.dtype)),
            items.take(pa.array(index.item_rows)).combine_chunks(),
        )

    @staticmethod
    def load(folder: Path) -> Segment:
        """Map a saved index and read its items. Raises MissingArtifactError, CorruptArtifactError."""
        index, items = Index.load(folder), read_parquet(folder / ITEMS_FILE)
        if len(items) != index.num_items:
            raise CorruptArtifactError(
                f"{folder}: {len(items)} items beside an index of {index.num_items}; run the index stage again"
            )
        if is_old_format(folder):  # items stood in the order of the code table, and had no tags
            items = items.take(pa.array(index.item_rows))
            items = items.append_column("first_seen_day", pa.nulls(len(items), pa.date32()))
            items = items.append_column("published_ms", pa.nulls(len(items), pa.int64()))
            index = replace(index, item_rows=np.arange(len(items), dtype=index.item_rows.dtype))
        return Segment(index, items)

    def save(self, folder: Path) -> None:
        """Write the index and its items."""
        self.index.save(folder)
        write_parquet(folder / ITEMS_FILE, self.items)

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def item_ids(self) -> list[str]:
        """Item at each position."""
        ids: list[str] = self.items.column("item_id").to_pylist()
        return ids

    @cached_property
    def position_of(self) -> dict[str, int]:
        """item_id → position."""
        return {item: position for position, item in enumerate(self.item_ids)}

    @cached_property
    def days(self) -> np.ndarray:
        """(N,) int32: days since 1970 at which each item was first seen, 0 where nobody knows."""
        days = pc.fill_null(self.items.column("first_seen_day").cast(pa.int32()), 0)
        return np.asarray(days.to_numpy())

    @cached_property
    def tags(self) -> Tags:
        """What rules may ask."""
        return Tags.of(self.items)

    def positions(self, item_ids: Iterable[str]) -> Bits:
        """Where these items stand; unknown ones are left out."""
        known = [self.position_of[item] for item in item_ids if item in self.position_of]
        return Bits.at(np.asarray(known, dtype=np.int64), len(self))

    def trie(self, device: torch.device | str) -> Trie:
        """The trie on a device, brought there once."""
        from models.retrieval.trie import Trie

        if str(device) not in self._tries:
            self._tries[str(device)] = Trie.of(self.index, device)
        return self._tries[str(device)]


def newest_first(items: pa.Table) -> np.ndarray:
    """(N,) int64: rank of each row, the newest `first_seen_day` first, unknown days last, ties by item_id."""
    days = pc.fill_null(items.column("first_seen_day").cast(pa.int32()), 0)
    table = pa.table({"age": pc.negate(days), "item_id": items.column("item_id")})
    order = pc.sort_indices(table, sort_keys=[("age", "ascending"), ("item_id", "ascending")]).to_numpy()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank


def index_items(catalog_items: pa.Table) -> pa.Table:
    """The columns of a Segment from rows of a catalogue. Published means published_at, else the day first seen."""
    from features.catalog import published_ms

    columns = {
        "item_id": catalog_items.column("item_id"),
        "first_seen_day": catalog_items.column("first_seen_day"),
        "published_ms": published_ms(catalog_items),
    }
    columns |= {name: catalog_items.column(name) for name in tag_columns(catalog_items.schema)}
    return pa.table(columns)
