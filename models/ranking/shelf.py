"""What the ranker knows of every item, as arrays over one numbering: the memory's items, then others of the index.

Not a stage. A Shelf belongs to a base and a delta of the index and is never changed: new items make another. What is
gone stays on it; a mask says what may come back.

Shapes: N items of the memory, E items that only the index has, M = N + E.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from models.memory.memory import Memory
    from models.retrieval.segment import Segment
    from models.retrieval.trie import Allowed

DAY_MS = 86_400_000
LEVELS = 2
"""First codes of a SID that a candidate is compared with the history by."""

_KEPT_FRESH = 8  # moments whose fresh items are kept

Mask = Callable[[np.ndarray], np.ndarray]
"""Numbers of items, (n,) int64 → which of them may come back, (n,) bool."""


@dataclass(frozen=True, eq=False)
class Shelf:
    """extras: ids of the items N … M-1. base, delta: (M,) int64 position of each item in the segments, -1 for none.

    codes: (M, L) int32, SID of each item, -1 without one. prefixes: (2, M) int64, number of the first code and of the
    first two, -1 without a SID. published_ms: (M,) int64, -1 unknown. count, recent, week, month, price: (M,) as in the
    memory, of extras 0 and NaN. order: (M,) int64, all numbers, those of the most recent events first, ties by number.
    """

    memory: Memory
    extras: list[str]
    base: np.ndarray
    delta: np.ndarray
    codes: np.ndarray
    prefixes: np.ndarray
    published_ms: np.ndarray
    count: np.ndarray
    recent: np.ndarray
    week: np.ndarray
    month: np.ndarray
    price: np.ndarray
    order: np.ndarray
    _fresh: dict[int, np.ndarray] = field(default_factory=dict)

    @staticmethod
    def of(memory: Memory, base: Segment, codes_of: Mapping[str, tuple[int, ...]]) -> Shelf:
        """What the memory and an index without a delta hold. codes_of: item → SID."""
        number = len(memory.item_ids)
        known = pc.index_in(base.items.column("item_id").combine_chunks(), pa.array(memory.item_ids, pa.string()))
        numbers = known.fill_null(-1).to_numpy().astype(np.int64)
        there, more = numbers >= 0, np.flatnonzero(numbers < 0)
        positions = np.full(number, -1, dtype=np.int64)
        positions[numbers[there]] = np.flatnonzero(there)
        shelf = Shelf.counted(memory, positions, codes_of)
        return shelf._longer([base.item_ids[place] for place in more.tolist()], codes_of, base=more, of=base)

    @staticmethod
    def counted(memory: Memory, base: np.ndarray, codes_of: Mapping[str, tuple[int, ...]]) -> Shelf:
        """The items of a memory alone. base: (N,) int64 their positions in an index, -1 for none."""
        number = len(memory.item_ids)
        codes = codes_array(memory.item_ids, codes_of)
        return Shelf(
            memory=memory,
            extras=[],
            base=base,
            delta=np.full(number, -1, dtype=np.int64),
            codes=codes,
            prefixes=prefixes_of(codes),
            published_ms=memory.published_ms,
            count=memory.count,
            recent=memory.recent,
            week=memory.week,
            month=memory.month,
            price=memory.price,
            order=np.lexsort((np.arange(number), -memory.recent)),
        )

    def with_delta(self, delta: Segment | None, codes_of: Mapping[str, tuple[int, ...]]) -> Shelf:
        """With the items of an index's delta, beside or instead of their namesakes. Of a shelf without a delta."""
        if delta is None:
            return self
        numbers = np.array([self.number_of(item) for item in delta.item_ids], dtype=np.int64)
        known, more = np.flatnonzero(numbers >= 0), np.flatnonzero(numbers < 0)
        positions, published = self.delta.copy(), self.published_ms.copy()
        positions[numbers[known]] = known
        changed_codes = codes_array([delta.item_ids[place] for place in known.tolist()], codes_of)
        codes = _as_wide(self.codes, changed_codes.shape[1])
        codes[numbers[known]] = changed_codes
        prefixes = self.prefixes.copy()
        prefixes[:, numbers[known]] = prefixes_of(codes[numbers[known]])
        newer = _published(delta)[known]
        published[numbers[known]] = np.where(newer >= 0, newer, published[numbers[known]])
        changed = replace(self, delta=positions, codes=codes, prefixes=prefixes, published_ms=published, _fresh={})
        return changed._longer([delta.item_ids[place] for place in more.tolist()], codes_of, delta=more, of=delta)

    def _longer(
        self,
        ids: list[str],
        codes_of: Mapping[str, tuple[int, ...]],
        *,
        of: Segment,
        base: np.ndarray | None = None,
        delta: np.ndarray | None = None,
    ) -> Shelf:
        """With further items, of which nothing was counted, at these positions of a segment's base or delta."""
        if not ids:
            return self
        nowhere, nothing = np.full(len(ids), -1, dtype=np.int64), np.zeros(len(ids))
        places = base if base is not None else delta
        codes = codes_array(ids, codes_of)

        def uncounted(values: np.ndarray) -> np.ndarray:
            return np.concatenate([values, nothing])

        return replace(
            self,
            extras=[*self.extras, *ids],
            base=np.concatenate([self.base, nowhere if base is None else base]),
            delta=np.concatenate([self.delta, nowhere if delta is None else delta]),
            codes=np.concatenate([_as_wide(self.codes, codes.shape[1]), codes]),
            prefixes=np.concatenate([self.prefixes, prefixes_of(codes)], axis=1),
            published_ms=np.concatenate([self.published_ms, _published(of)[places]]),
            count=uncounted(self.count),
            recent=uncounted(self.recent),
            week=uncounted(self.week),
            month=uncounted(self.month),
            price=np.concatenate([self.price, np.full(len(ids), np.nan, dtype=self.price.dtype)]),
            order=np.concatenate([self.order, np.arange(len(self), len(self) + len(ids))]),
            _fresh={},
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
        if allowed is None:
            return self._there.__getitem__

        def allows(numbers: np.ndarray) -> np.ndarray:
            base = self.base[numbers]
            may = base >= 0 if allowed.base is None else allowed.base.has(base)
            if self._has_delta:
                delta = self.delta[numbers]
                may |= delta >= 0 if allowed.delta is None else allowed.delta.has(delta)
            return may

        return allows

    @cached_property
    def _there(self) -> np.ndarray:
        """(M,) bool: items that the index has."""
        return (self.base >= 0) | (self.delta >= 0)

    @cached_property
    def _has_delta(self) -> bool:
        return bool((self.delta >= 0).any())

    @cached_property
    def by_popularity(self) -> np.ndarray:
        """Numbers of the items that the index has, the most popular first (recent events), ties by number."""
        return self.order[self._there[self.order]]

    def fresh(self, since_ms: int) -> np.ndarray:
        """Those of them that were published since, in the same order. Kept: requests of one hour ask for the same."""
        found = self._fresh.get(since_ms)
        if found is None:
            if len(self._fresh) >= _KEPT_FRESH:
                self._fresh.clear()
            found = self.by_popularity[self.published_ms[self.by_popularity] >= since_ms]
            self._fresh[since_ms] = found
        return found


def codes_array(item_ids: Sequence[str], codes_of: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """(n, L) int32: SID of each item, -1 without one."""
    maps = codes_of.maps if isinstance(codes_of, ChainMap) else [codes_of]  # of a ChainMap, `iter` lists every item
    levels = next((len(codes) for one in maps for codes in one.values()), LEVELS)
    nothing = (-1,) * levels
    return np.array([codes_of.get(item, nothing) for item in item_ids], dtype=np.int32).reshape(-1, levels)


def _as_wide(codes: np.ndarray, levels: int) -> np.ndarray:
    """A copy; of another width where no item has a SID yet."""
    return codes.copy() if codes.shape[1] == levels else np.full((len(codes), levels), -1, dtype=np.int32)


def prefixes_of(codes: np.ndarray) -> np.ndarray:
    """(2, n) int64: one number for the first code of each SID, one for its first two; -1 without a SID. codes: as of
    `codes_array`."""
    first, second = codes[:, 0].astype(np.int64), codes[:, min(1, codes.shape[1] - 1)].astype(np.int64)
    both = first if codes.shape[1] == 1 else np.where(first < 0, -1, (first << 32) | np.maximum(second, 0))
    return np.stack([first, both])


def _published(segment: Segment) -> np.ndarray:
    """(n,) int64 epoch milliseconds of each position, -1 unknown."""
    published: np.ndarray = pc.fill_null(segment.items.column("published_ms"), -1).to_numpy()
    return published
