"""Times that are numbers since 1970: in seconds, milliseconds, microseconds or nanoseconds.

    kind = EPOCHS[1]                  epoch milliseconds: 631152000000 (1990) up to 9214646400000 (2262)
    kind.to_micros(numbers)           int64 or float64 → int64 microseconds in UTC, and which are times at all

Every kind of number (here and in calendar.py) has a range of its own for the years 1990 to 2261 (dates of a calendar:
from 1900 on), and no two of them overlap: the kind of a column is that in whose range most of its values lie.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from features.intake.times.text import SECOND

OLDEST = 631_152_000 * SECOND  # 1990: nothing older is believed of a number
NEWEST = 9_214_646_400 * SECOND  # 2262, from which on nanoseconds since 1970 do not fit into 64 bits
FIRST = -62_135_596_800 * SECOND  # year 1


class Micros(NamedTuple):
    """(n,) int64 microseconds since 1970 and which of them are times of the years 1 to 2261."""

    micros: np.ndarray
    is_time: np.ndarray


@dataclass(frozen=True)
class NumberKind:
    """A way to write a time as a number.

    name: for messages. low, high: the range of the years that are believed, high not included. is_local: on the clock
    of a zone that is not named. is_coarse: a year alone. to_micros: (n,) int64 or float64 → Micros.
    """

    name: str
    low: float
    high: float
    is_local: bool
    to_micros: Callable[[np.ndarray], Micros]
    is_coarse: bool = False


def _epoch(times: int, per: int) -> Callable[[np.ndarray], Micros]:
    def to_micros(numbers: np.ndarray) -> Micros:
        low, high = FIRST * per / times, NEWEST * per / times
        is_time = (numbers >= low) & (numbers < high)
        inside = np.where(is_time, numbers, 0)
        if inside.dtype.kind == "f":
            return Micros(np.round(inside * (times / per)).astype(np.int64), is_time)
        return Micros(inside.astype(np.int64) * times // per, is_time)

    return to_micros


def _kind(name: str, times: int, per: int) -> NumberKind:
    return NumberKind(name, OLDEST * per / times, NEWEST * per / times, False, _epoch(times, per))


EPOCHS = (
    _kind("epoch seconds", SECOND, 1),
    _kind("epoch milliseconds", 1000, 1),
    _kind("epoch microseconds", 1, 1),
    _kind("epoch nanoseconds", 1, 1000),
)
