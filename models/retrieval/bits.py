"""Sets of positions as packed bits with ranks: how many of them lie before a position, in constant time.

Not a stage. A rule allows a set of items; a node of the trie covers a range of item positions; whether any of them is
allowed is the difference of two ranks. So a rule is never pushed up the trie level by level: combining two sets costs
an eighth of a byte an item, ranks one cumulative sum over the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from plumline.errors import InputError


@dataclass(frozen=True, eq=False)
class Bits:
    """A set of the positions 0 … size-1; never changed after it is made.

    packed: (ceil(size / 8),) uint8, the lowest bit of a byte first; bits behind the last position are 0.
    """

    packed: np.ndarray
    size: int

    @staticmethod
    def of(mask: np.ndarray) -> Bits:
        """The positions where mask, (size,) bool, is True."""
        return Bits(np.packbits(mask, bitorder="little"), len(mask))

    @staticmethod
    def at(positions: np.ndarray, size: int) -> Bits:
        """The given positions, in any order, repeats allowed. Raises InputError if one lies outside."""
        positions = np.asarray(positions, dtype=np.int64)
        if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < size:
            raise InputError(f"positions {positions.min()} … {positions.max()}: allowed are 0 … {size - 1}")
        packed = np.zeros((size + 7) // 8, dtype=np.uint8)
        np.bitwise_or.at(packed, positions >> 3, np.uint8(1) << (positions & 7).astype(np.uint8))
        return Bits(packed, size)

    @staticmethod
    def full(size: int) -> Bits:
        """Every position."""
        packed = np.full((size + 7) // 8, 255, dtype=np.uint8)
        if size % 8:
            packed[-1] = (1 << size % 8) - 1
        return Bits(packed, size)

    @staticmethod
    def empty(size: int) -> Bits:
        """No position."""
        return Bits(np.zeros((size + 7) // 8, dtype=np.uint8), size)

    def __and__(self, other: Bits) -> Bits:
        return self._with(other, np.bitwise_and)

    def __or__(self, other: Bits) -> Bits:
        return self._with(other, np.bitwise_or)

    def __invert__(self) -> Bits:
        return Bits(self.packed ^ Bits.full(self.size).packed, self.size)

    @cached_property
    def ranks(self) -> np.ndarray:
        """(len(packed) + 1,) int32: members before the first bit of each byte; the last entry counts all of them."""
        ranks = np.zeros(len(self.packed) + 1, dtype=np.int32)
        np.cumsum(np.bitwise_count(self.packed), dtype=np.int32, out=ranks[1:])
        return ranks

    @cached_property
    def before(self) -> np.ndarray:
        """(size + 1,) int32: members before each position; four bytes a position, for small sets."""
        before = np.zeros(self.size + 1, dtype=np.int32)
        np.cumsum(self.mask(), dtype=np.int32, out=before[1:])
        return before

    def __len__(self) -> int:
        return int(self.ranks[-1])

    def __contains__(self, position: int) -> bool:
        return bool(self.packed[position >> 3] >> (position & 7) & 1)

    def has(self, positions: np.ndarray) -> np.ndarray:
        """Which of these positions, (n,) int64, are members; (n,) bool. A position below zero is none."""
        found = self.packed[np.maximum(positions, 0) >> 3] >> (positions & 7).astype(np.uint8) & 1
        return (found > 0) & (positions >= 0)

    def mask(self) -> np.ndarray:
        """(size,) bool."""
        return np.unpackbits(self.packed, count=self.size, bitorder="little").astype(bool)

    def _with(self, other: Bits, combine: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Bits:
        if self.size != other.size:
            raise InputError(f"sets over {self.size} and {other.size} positions: both must be of one index")
        return Bits(combine(self.packed, other.packed), self.size)
