"""What the ranker knows of every item, as arrays over one numbering: the memory's items, then those of the delta.

Not a stage. A Shelf belongs to one epoch of the index and is never changed: new items and items that go make another.

Shapes: N items of the memory, E items that only the delta of the index has, M = N + E.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from models.memory.memory import Memory
    from models.retrieval.live_index import Epoch
    from models.retrieval.segment import Segment
    from models.retrieval.trie import Allowed

DAY_MS = 86_400_000
LEVELS = 2
"""First codes of a SID that a candidate is compared with the history by."""

Mask = Callable[[np.ndarray], np.ndarray]
"""Numbers of items, (n,) int64 → which of them may come back, (n,) bool."""


@dataclass(frozen=True, eq=False)
class Shelf:
    """extras: ids of the items N … M-1. base, delta: (M,) int64 position of each item in the segments, -1 for none.

    prefixes: (2, M) int64, number of the first code and of the first two, -1 without a SID. published_ms: (M,) int64,
    -1 unknown. count, recent, week, month, price: (M,) as in the memory, of extras 0 and NaN.
    """

    memory: Memory
    extras: list[str]
    base: np.ndarray
    delta: np.ndarray
    prefixes: np.ndarray
    published_ms: np.ndarray
    count: np.ndarray
    recent: np.ndarray
    week: np.ndarray
    month: np.ndarray
    price: np.ndarray

    @staticmethod
    def of(memory: Memory, epoch: Epoch, prefixes: np.ndarray, base: np.ndarray, codes_of: Mapping) -> Shelf:
        """prefixes: `prefixes_of` the memory's items. base: `positions_in` the epoch's base. codes_of: item → SID."""
        delta = np.full(len(base), -1, dtype=np.int64)
        extras: list[str] = []
        published = memory.published_ms
        if epoch.delta is not None:
            numbers = [memory.number_of.get(item, -1) for item in epoch.delta.item_ids]
            known = np.asarray(numbers, dtype=np.int64)
            places = np.arange(len(known))
            delta[known[known >= 0]] = places[known >= 0]
            extras = [item for item, number in zip(epoch.delta.item_ids, numbers, strict=True) if number < 0]
            delta = np.concatenate([delta, places[known < 0]])
            prefixes = prefixes.copy()
            changed = [item for item, number in zip(epoch.delta.item_ids, numbers, strict=True) if number >= 0]
            prefixes[:, known[known >= 0]] = prefixes_of(changed, codes_of)
            prefixes = np.concatenate([prefixes, prefixes_of(extras, codes_of)], axis=1)
            ages = epoch.delta.items.column("published_ms").fill_null(-1).to_numpy()
            published = np.concatenate([published, ages[places[known < 0]]])
        more = len(extras)

        def longer(values: np.ndarray, fill: float) -> np.ndarray:
            return np.concatenate([values, np.full(more, fill, dtype=values.dtype)]) if more else values

        return Shelf(
            memory=memory,
            extras=extras,
            base=longer(base, -1),
            delta=delta,
            prefixes=prefixes,
            published_ms=published,
            count=longer(memory.count, 0),
            recent=longer(memory.recent, 0),
            week=longer(memory.week, 0),
            month=longer(memory.month, 0),
            price=longer(memory.price, np.nan),
        )

    def __len__(self) -> int:
        return len(self.base)

    @cached_property
    def _extra_numbers(self) -> dict[str, int]:
        return {item: len(self.memory.item_ids) + place for place, item in enumerate(self.extras)}

    def number_of(self, item_id: str) -> int:
        """Number of an item, -1 if neither memory nor delta has it."""
        number = self.memory.number_of.get(item_id, -1)
        return number if number >= 0 or not self.extras else self._extra_numbers.get(item_id, -1)

    def item_id(self, number: int) -> str:
        """The id of a number."""
        num_known = len(self.memory.item_ids)
        return self.memory.item_ids[number] if number < num_known else self.extras[number - num_known]

    def mask(self, allowed: Allowed | None) -> Mask:
        """What an answer of `Retriever.allowed` lets come back."""

        def allows(numbers: np.ndarray) -> np.ndarray:
            base, delta = self.base[numbers], self.delta[numbers]
            in_base, in_delta = base >= 0, delta >= 0
            if allowed is not None and allowed.base is not None:
                in_base &= allowed.base.has(base)
            if allowed is not None and allowed.delta is not None:
                in_delta &= allowed.delta.has(delta)
            result: np.ndarray = in_base | in_delta
            return result

        return allows

    @cached_property
    def by_popularity(self) -> np.ndarray:
        """Numbers of the items that the index has, the most popular first (recent events), ties by number."""
        there = np.flatnonzero((self.base >= 0) | (self.delta >= 0))
        return there[np.lexsort((there, -self.recent[there]))]

    @cached_property
    def newest(self) -> np.ndarray:
        """Those of them whose day is known, by popularity: only as many as `fresh` can ever ask for."""
        published = self.published_ms[self.by_popularity]
        newest = int(published.max(initial=-1))
        return self.by_popularity[published >= max(0, newest - 60 * DAY_MS)]


def prefixes_of(item_ids: Sequence[str], codes_of: Mapping) -> np.ndarray:
    """(2, n) int64: one number for the first code of each item's SID, one for its first two; -1 without a SID."""
    found = np.full((LEVELS, len(item_ids)), -1, dtype=np.int64)
    for place, item in enumerate(item_ids):
        codes = codes_of.get(item)
        if codes is not None:
            found[0, place] = codes[0]
            found[1, place] = (codes[0] << 32) | codes[1] if len(codes) > 1 else codes[0]
    return found


def positions_in(segment: Segment, memory: Memory) -> np.ndarray:
    """(N,) int64: where each of the memory's items stands in a segment, -1 where it does not."""
    import pyarrow.compute as pc

    found = pc.index_in(pa.array(memory.item_ids, pa.string()), segment.items.column("item_id").combine_chunks())
    return found.fill_null(-1).to_numpy().astype(np.int64)
