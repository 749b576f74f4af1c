"""A column of times as it is written, a block at a time: which cells are moments, which are numbers, which are neither.

    speller = Speller(words, time_format)
    spelled = speller.spell(values)     values: any Arrow type; text is read cell by cell where it is odd

What a cell alone cannot say (the unit of a number, day or month first) is decided in column.py.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.intake.times.epoch import FIRST, NEWEST
from features.intake.times.text import DAY, Moment, read_text
from features.intake.words import Words, as_text, is_numeric, is_textual, unwrap
from plumline.errors import InputError
from plumline.schema import TIMESTAMP

NOTHING, BAD, MOMENT, NUMBER = range(4)
"""What a cell is: empty, no time, a time, a number that a unit makes a time."""

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|[+-]?inf(inity)?", re.I | re.A)
_UNITS = {"s": (1_000_000, 1), "ms": (1000, 1), "us": (1, 1), "ns": (1, 1000)}
_START = datetime(1970, 1, 1)
_DAY_AND_CLOCK = r"^(?P<day>.*?)(?:\s*[Tt]\s*|\s+|\s*,\s*|:)(?P<clock>[0-9]{1,2}:[0-9]{2}.*)$"
_YEAR_LAST = r"^(?P<day>[A-Za-z][^0-9]*[0-9]{1,2})\s+(?P<clock>[0-9]{1,2}:[0-9]{2}.*?)\s+(?P<year>[0-9]{4})$"
_FLAGS = ("is_local", "is_either", "has_day_first", "has_month_first", "is_dotted", "is_coarse")
_Packed = tuple[int, int, int, int]
_MOST_KNOWN = 200_000  # days, and clocks, that are remembered


@dataclass
class Spelled:
    """Cells of a block, (n,) each.

    kind: NOTHING, BAD, MOMENT or NUMBER. numbers: int64 or float64, where kind is NUMBER. The others are Moment's,
    where kind is MOMENT: micros and other int64 (0 where `has_day_first`, `has_month_first` say that there is none).
    """

    kind: np.ndarray
    micros: np.ndarray
    other: np.ndarray
    numbers: np.ndarray
    is_local: np.ndarray
    is_either: np.ndarray
    has_day_first: np.ndarray
    has_month_first: np.ndarray
    is_dotted: np.ndarray
    is_coarse: np.ndarray

    @classmethod
    def empty(cls, size: int) -> "Spelled":
        """All cells NOTHING."""
        whole = (np.zeros(size, dtype=np.int64) for _ in range(3))
        truths = (np.zeros(size, dtype=bool) for _ in range(6))
        return cls(np.zeros(size, dtype=np.uint8), *whole, *truths)

    def where(self, mask: np.ndarray, other: "Spelled") -> "Spelled":
        """These cells where the mask holds, those of the other elsewhere."""
        both = ((getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__)
        return Spelled(*(np.where(mask, mine, theirs) for mine, theirs in both))

    def take(self, codes: np.ndarray) -> "Spelled":
        """Cells of some numbers, in that order."""
        return Spelled(*(getattr(self, name)[codes] for name in self.__dataclass_fields__))


class Speller:
    """Reads the blocks of one column; what it has read once it need not read again."""

    def __init__(self, words: Words, time_format: str | None) -> None:
        """time_format: how text and whole numbers are written, as strptime knows it."""
        self._words, self._format = words, time_format
        self._days: dict[str, _Packed] = {}
        self._clocks: dict[str, _Packed] = {}

    def spell(self, values: pa.Array) -> Spelled:
        """The cells of one block."""
        kind = values.type
        if pa.types.is_timestamp(kind):
            times, per = _UNITS[kind.unit]
            return _moments(values.cast(pa.int64()), times, per, is_local=kind.tz is None)
        if pa.types.is_date(kind):
            days = values.cast(pa.int32() if pa.types.is_date32(kind) else pa.int64()).cast(pa.int64())
            return _moments(days, DAY if pa.types.is_date32(kind) else 1000, 1, is_local=True)
        if is_numeric(kind) and not (self._format and pa.types.is_integer(kind)):
            return _numbers(values)
        text = self._words.clean(as_text(values))
        if self._format is not None:
            return _formatted(text, self._format)
        if not is_textual(kind):
            return _each(text, lambda text: _pack(None))
        text = self._words.clean(unwrap(text))
        return _iso(text) or _plain_numbers(text) or self._parts(text)

    def _parts(self, text: pa.Array) -> Spelled:
        """Day and clock apart, of which there are few different ones; other cells as a whole."""
        days, clocks = _split(text)
        spelled = _each(days, lambda day: _remember(self._days, day, day))
        clock = _each(clocks, lambda clock: _remember(self._clocks, clock, f"{_START:%Y-%m-%d} {clock}"))
        spelled.micros = spelled.micros + clock.micros
        spelled.other = np.where(spelled.has_month_first, spelled.other + clock.micros, 0)
        either = np.where(spelled.is_either & ~spelled.has_day_first, spelled.other, spelled.micros)
        is_both = (spelled.kind == MOMENT) & (clock.kind == MOMENT) & ~spelled.is_coarse
        is_both &= (either >= FIRST) & (either < NEWEST)
        spelled.is_local = clock.is_local
        rest = _each(
            pc.if_else(pa.array(is_both), pa.scalar(None, pa.string()), text),
            lambda cell: _pack(read_text(cell)),
            can_be_number=True,
        )
        return spelled.where(is_both, rest)


def _remember(known: dict[str, _Packed], key: str, text: str) -> _Packed:
    found = known.get(key)
    if found is None:
        if len(known) > _MOST_KNOWN:
            known.clear()
        found = known[key] = _pack(read_text(text))
    return found


def _split(text: pa.Array) -> tuple[pa.Array, pa.Array]:
    """The day and the clock of each cell, null where it is not of these two."""
    if pc.any(pc.match_substring_regex(text.slice(0, 1), _YEAR_LAST)).as_py():
        parts = pc.extract_regex(text, _YEAR_LAST)
        day = pc.binary_join_element_wise(parts.field("day"), parts.field("year"), " ")
    else:
        parts = pc.extract_regex(text, _DAY_AND_CLOCK)
        day = parts.field("day")
    nowhere = pc.or_(pc.is_null(parts), pc.is_null(text))
    nothing = pa.scalar(None, pa.string())
    return pc.if_else(nowhere, nothing, day), pc.if_else(nowhere, nothing, parts.field("clock"))


def check_format(time_format: str) -> None:
    """Raise InputError for a --time-format that strptime does not know or that has no day in it."""
    moment = datetime(2001, 2, 3, tzinfo=UTC)  # with a zone, for %z
    try:
        read = datetime.strptime(moment.strftime(time_format), time_format)
    except (ValueError, re.error) as error:
        why = str(error).split("\n")[0]
        raise InputError(f"--time-format {time_format!r}: {why}; one like '%d/%m/%Y %H:%M' is wanted") from None
    if read.replace(tzinfo=UTC) != moment:
        raise InputError(f"--time-format {time_format!r} does not say year, month and day; one like '%d/%m/%Y' does")


def _moments(raw: pa.Array, times: int, per: int, *, is_local: bool) -> Spelled:
    """Typed times: raw int64 units since 1970."""
    spelled = Spelled.empty(len(raw))
    present = raw.is_valid().to_numpy(zero_copy_only=False)
    numbers = pc.fill_null(raw, 0).to_numpy(zero_copy_only=False)
    is_time = (numbers >= FIRST * per // times) & (numbers < NEWEST * per // times)
    spelled.micros = np.where(is_time, numbers, 0) * times // per
    spelled.kind = np.where(present, np.where(is_time, MOMENT, BAD), NOTHING).astype(np.uint8)
    spelled.is_local = np.full(len(raw), is_local)
    return spelled


def _numbers(values: pa.Array) -> Spelled:
    spelled = Spelled.empty(len(values))
    if not pa.types.is_integer(values.type):
        values = values.cast(pa.float64(), safe=False)
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)
    else:
        try:
            values = values.cast(pa.int64())
        except pa.ArrowInvalid:  # above 2**63
            values = values.cast(pa.float64(), safe=False)
    spelled.numbers = pc.fill_null(values, 0).to_numpy(zero_copy_only=False)
    spelled.kind = np.where(values.is_valid().to_numpy(zero_copy_only=False), NUMBER, NOTHING).astype(np.uint8)
    return spelled


def _iso(text: pa.Array) -> Spelled | None:
    """A block all of whose texts Arrow reads: ISO 8601, all with or all without a zone."""
    if pc.any(pc.ends_with(text, "UTC")).as_py() or pc.any(pc.ends_with(text, "GMT")).as_py():
        text = pc.replace_substring_regex(text, r"\s+(UTC|GMT)$", "Z")
    for unit in ("us", "ns"):  # ns: more than six digits of a second, as databases write them
        for kind in (pa.timestamp(unit), pa.timestamp(unit, "UTC")):
            times = _cast(text, kind)
            if times is not None:
                return _moments(times.cast(pa.int64()), *_UNITS[unit], is_local=kind.tz is None)
    return None


def _plain_numbers(text: pa.Array) -> Spelled | None:
    if pc.any(pc.match_substring_regex(text, "[xX]")).as_py():  # Arrow knows hexadecimal
        return None
    for kind in (pa.int64(), pa.float64()):
        numbers = _cast(text, kind)
        if numbers is not None:
            return _numbers(numbers)
    return None


def _cast(text: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """Text in another type, None if one of the cells has not that type."""
    present = text.drop_null()
    try:
        if len(present):  # a cast says of every cell why it fails: microseconds each
            present.take(pa.array([0, len(present) // 2, len(present) - 1])).cast(kind)
        return text.cast(kind)
    except pa.ArrowInvalid:
        return None


def _each(text: pa.Array, read: Callable[[str], _Packed], *, can_be_number: bool = False) -> Spelled:
    """A block, every different text read once."""
    coded = text.dictionary_encode()
    texts = coded.dictionary.to_pylist()
    numbers: list[int | float] = [0] * (len(texts) + 1)
    packed: list[_Packed] = []
    for i, cell in enumerate(texts):
        if can_be_number and _NUMBER.fullmatch(cell):
            numbers[i] = int(cell) if cell.isdecimal() and len(cell) < 19 else float(cell)
            packed.append((NUMBER, 0, 0, 0))
        else:
            packed.append(read(cell))
    kind, micros, other, flags = np.array([*packed, (NOTHING, 0, 0, 0)], dtype=np.int64).T  # the last one is for null
    is_whole = all(isinstance(number, int) for number in numbers)
    truths = ((flags >> bit & 1).astype(bool) for bit in range(len(_FLAGS)))
    spelled = Spelled(kind, micros, other, np.array(numbers, dtype=np.int64 if is_whole else np.float64), *truths)
    return spelled.take(pc.fill_null(coded.indices, len(texts)).to_numpy(zero_copy_only=False))


def _pack(moment: Moment | None) -> _Packed:
    """kind, micros, other, and the truths of a Moment as bits in the order of _FLAGS."""
    if moment is None:
        return (BAD, 0, 0, 0)
    micros, other, is_local, is_either, is_dotted, is_coarse = moment
    if any(one is not None and not FIRST <= one < NEWEST for one in (micros, other)):
        return (BAD, 0, 0, 0)
    truths = (is_local, is_either, micros is not None, other is not None, is_dotted, is_coarse)
    return (MOMENT, micros or 0, other or 0, sum(truth << bit for bit, truth in enumerate(truths)))


def _formatted(text: pa.Array, time_format: str) -> Spelled:
    """A block of text that is written in one format of strptime."""
    names_zone = re.search(r"(?<!%)(%%)*%[zZ]", time_format) is not None
    if names_zone or not len(text):
        return _each(text, lambda cell: _pack(_strptime(cell, time_format)))
    import pandas as pd  # the same format many times as fast, for the years 1678 to 2261

    found = pd.to_datetime(text.to_pandas(), format=time_format, errors="coerce")
    spelled = _moments(pa.array(found.dt.as_unit("us")).cast(pa.int64()), 1, 1, is_local=True)
    is_found = spelled.kind == MOMENT
    rest = pc.if_else(pa.array(is_found), pa.scalar(None, pa.string()), text)
    return spelled.where(is_found, _each(rest, lambda cell: _pack(_strptime(cell, time_format))))


def _strptime(text: str, time_format: str) -> Moment | None:
    try:
        found = datetime.strptime(text, time_format)
    except ValueError:
        return None
    offset = found.utcoffset()
    micros = (found.replace(tzinfo=None) - _START) // timedelta(microseconds=1)
    return Moment(micros - (offset or timedelta()) // timedelta(microseconds=1), None, offset is None)


def to_column(micros: np.ndarray, is_time: np.ndarray) -> pa.Array:
    """(n,) int64 microseconds in UTC as the contract's type, null where there is no time."""
    return pa.array(micros, pa.int64(), mask=~is_time).cast(TIMESTAMP)
