"""What a look over a whole column of times found, counted over its blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from features.intake.findings import Places, show
from features.intake.times.calendar import KINDS, kind_of
from features.intake.times.epoch import OLDEST
from features.intake.times.spelled import MOMENT, NUMBER, Spelled


@dataclass
class Count:
    """How many cells of one sort there are, the first of them, and the smallest and the largest value."""

    num: int = 0
    example: str | None = None
    where: str | None = None
    order: int = 0
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, mask: np.ndarray, numbers: np.ndarray, values: pa.Array, places: Places, start: int) -> None:
        """Count the cells of a block. start: rows of the blocks before."""
        num = int(np.count_nonzero(mask))
        if not num:
            return
        if not self.num:
            row = int(mask.argmax())
            self.example, self.where, self.order = show(values[row]), places.at(row), start + row
        self.num += num
        chosen = numbers if num == len(numbers) else numbers[mask]
        self.low, self.high = min(self.low, chosen.min()), max(self.high, chosen.max())


@dataclass
class Seen:
    """Cells by sort.

    exact: moments with one reading; old: those of them before 1990; coarse: a month alone. by_day, by_month: only the
    reading with the day (the month) first is a time; both: two readings that differ; dotted: those of them like
    01.02.2024; same: two readings that are one. numbers: kind of number (place in KINDS, -1 for none) → its cells.
    """

    exact: Count = field(default_factory=Count)
    old: Count = field(default_factory=Count)
    coarse: Count = field(default_factory=Count)
    by_day: Count = field(default_factory=Count)
    by_month: Count = field(default_factory=Count)
    both: Count = field(default_factory=Count)
    dotted: Count = field(default_factory=Count)
    same: Count = field(default_factory=Count)
    local: Count = field(default_factory=Count)
    numbers: dict[int, Count] = field(default_factory=dict)
    num_rows: int = 0

    def add(self, spelled: Spelled, values: pa.Array, places: Places) -> None:
        """Count one block."""
        is_moment, is_number = spelled.kind == MOMENT, spelled.kind == NUMBER
        micros, start = spelled.micros, self.num_rows
        self.num_rows += len(values)

        def count(into: Count, mask: np.ndarray, numbers: np.ndarray = micros) -> None:
            into.add(mask, numbers, values, places, start)

        if is_moment.any():
            exact = is_moment & ~spelled.is_either & ~spelled.is_coarse
            count(self.exact, exact)
            count(self.old, exact & (micros < OLDEST))
            count(self.coarse, is_moment & spelled.is_coarse)
            count(self.local, is_moment & spelled.is_local)
        if spelled.is_either.any():
            day, month = spelled.has_day_first, spelled.has_month_first
            differ = spelled.micros != spelled.other
            count(self.by_day, day & ~month)
            count(self.by_month, month & ~day, spelled.other)
            count(self.both, day & month & differ)
            count(self.dotted, day & month & differ & spelled.is_dotted)
            count(self.same, day & month & ~differ)
        if is_number.any():
            kinds = kind_of(spelled.numbers)
            for place in np.unique(kinds[is_number]):
                mask = is_number & (kinds == place)
                if place >= 0 and KINDS[place].is_local:  # 20240231 is no day
                    false = mask & ~KINDS[place].to_micros(spelled.numbers).is_time
                    mask &= ~false
                    count(self.numbers.setdefault(-1, Count()), false, spelled.numbers)
                count(self.numbers.setdefault(int(place), Count()), mask, spelled.numbers)

    @property
    def num_moments(self) -> int:
        """Cells that are dates as text or as a type."""
        either = self.by_day.num + self.by_month.num + self.both.num + self.same.num
        return self.exact.num + self.coarse.num + either

    @property
    def num_numbers(self) -> int:
        """Cells that are numbers."""
        return sum(count.num for count in self.numbers.values())
