"""Times that are numbers of a calendar: 20240101, 202401011230, 20240101123000, 2024, and a spreadsheet's 45292.5.

kind_of(numbers)                  which of KINDS each number would be, -1 for none
KINDS[i].to_micros(numbers)       int64 microseconds on a local clock, and which are times at all
"""

from collections.abc import Callable

import numpy as np

from features.intake.times.epoch import EPOCHS, FIRST, NEWEST, Micros, NumberKind
from features.intake.times.text import DAY

_SERIAL_1970 = 25_569  # spreadsheets count days from 1899-12-30
_MILLI = 1000  # microseconds; a fraction of a day is written with about as many digits
_PARTS = {8: (), 12: (100, 100), 14: (100, 100, 100), 17: (100, 100, 100, 1000)}  # after YYYYMMDD: HH, MM, SS, mmm
_SIZES = (3_600_000_000, 60_000_000, 1_000_000, 1000)  # of these, in microseconds
_LIMITS = (24, 60, 60, 1000)


def _digits(num_digits: int) -> Callable[[np.ndarray], Micros]:
    def to_micros(numbers: np.ndarray) -> Micros:
        limit = 10**num_digits
        is_time = (numbers >= limit // 10_000) & (numbers < limit) & (numbers == np.floor(numbers))
        rest = np.where(is_time, numbers, 0).astype(np.int64)
        clock = np.zeros(len(rest), dtype=np.int64)
        for base, size, most in reversed(list(zip(_PARTS[num_digits], _SIZES, _LIMITS, strict=False))):
            rest, part = np.divmod(rest, base)
            is_time &= part < most
            clock += part * size
        days, is_day = _days(rest)
        micros = days * DAY + clock
        is_time &= is_day & (micros < NEWEST)
        return Micros(np.where(is_time, micros, 0), is_time)

    return to_micros


def _days(dates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """YYYYMMDD → days since 1970, and which are days of the calendar."""
    years, months, days = dates // 10_000, dates // 100 % 100, dates % 100
    is_day = (years >= 1) & (months >= 1) & (months <= 12) & (days >= 1)
    since = np.where(is_day, (years - 1970) * 12 + months - 1, 0).astype("datetime64[M]")
    found = since.astype("datetime64[D]") + np.where(is_day, days - 1, 0).astype("timedelta64[D]")
    is_day &= found.astype("datetime64[M]") == since  # 31 February is in March
    return found.astype(np.int64), is_day


def _serial(numbers: np.ndarray) -> Micros:
    is_time = (numbers >= FIRST / DAY + _SERIAL_1970) & (numbers < NEWEST / DAY + _SERIAL_1970)
    since = np.where(is_time, numbers, _SERIAL_1970) - _SERIAL_1970
    return Micros(np.round(since * (DAY / _MILLI)).astype(np.int64) * _MILLI, is_time)


def _year(numbers: np.ndarray) -> Micros:
    is_time = (numbers >= 1) & (numbers < 2262) & (numbers == np.floor(numbers))
    years = np.where(is_time, numbers, 1970).astype(np.int64) - 1970
    return Micros(years.astype("datetime64[Y]").astype("datetime64[D]").astype(np.int64) * DAY, is_time)


YEAR = NumberKind("years", 1000, 2262, True, _year, is_coarse=True)
KINDS: tuple[NumberKind, ...] = tuple(
    sorted(
        (
            *EPOCHS,
            NumberKind("YYYYMMDD", 19_000_101, 22_620_101, True, _digits(8)),
            NumberKind("YYYYMMDDHHMM", 190_001_010_000, 226_201_010_000, True, _digits(12)),
            NumberKind("YYYYMMDDHHMMSS", 19_000_101_000_000, 22_620_101_000_000, True, _digits(14)),
            NumberKind("YYYYMMDDHHMMSSmmm", 19_000_101_000_000_000, 22_620_101_000_000_000, True, _digits(17)),
            NumberKind("days of a spreadsheet", 32_874, 132_213, True, _serial),
            YEAR,
        ),
        key=lambda kind: kind.low,
    )
)
"""Every kind of number, by its range; the ranges do not overlap."""

DATES = tuple(kind for kind in KINDS if kind.name in ("YYYYMMDD", "YYYYMMDDHHMMSS"))
"""Numbers that are ISO 8601 too, and may stand among dates that are text."""

_BOUNDS = np.array([bound for kind in KINDS for bound in (kind.low, kind.high)])


def kind_of(numbers: np.ndarray) -> np.ndarray:
    """Which of KINDS each number would be, -1 for none; (n,) int64 or float64 → (n,) int64."""
    place = np.searchsorted(_BOUNDS, numbers, side="right")
    return np.where(place % 2 == 1, place // 2, -1)
