"""A column of times → UTC microseconds: what its cells mean is decided once, over all of them.

    column = TimeColumn("timestamp", words, asked, home, tally, is_required=True)
    column.look(values, places)     every block once: dates or numbers, in which unit, day or month first
    column.decide()                 the reading of the column, and what does not fit it
    column.read(values, places)     every block again, as timestamp[us, UTC]

A required time that cannot be read is a problem, any other is left empty and counted. Numbers are of one kind a column:
that of most of its values (times/calendar.py, KINDS); one of another kind, or from before 1990, is questioned.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo

import numpy as np
import pyarrow as pa

from features.intake.facts import Known
from features.intake.findings import Finding, Places, Tally, where_advice
from features.intake.times.calendar import DATES, KINDS, kind_of
from features.intake.times.epoch import FIRST, NumberKind
from features.intake.times.seen import Count, Seen
from features.intake.times.spelled import BAD, MOMENT, NOTHING, NUMBER, Spelled, Speller, to_column
from features.intake.times.text import DAY, why_none
from features.intake.times.zones import to_utc
from features.intake.words import Words, as_text, is_textual

CLOCK_SKEW = timedelta(minutes=5)
"""How far a sender's clock may run ahead of ours before its events count as from the future."""

_FAR = timedelta(days=20 * 365)  # between two deliveries of one home: then one of them is in another unit
_ANCIENT = (date(1900, 1, 1) - date(1970, 1, 1)).days * DAY
_JANUARY = 31 * DAY
_START = datetime(1970, 1, 1, tzinfo=UTC)
_NEXT = "mend the file, or leave such rows out with --where"
_FORMAT = "say how they are written with --time-format '%d/%m/%Y' or '%m/%d/%Y'"


@dataclass(frozen=True)
class Asked:
    """What is asked about times. zone: of those that name none, zone_name: as given. time_format: as of strptime."""

    zone: tzinfo
    now: datetime
    time_format: str | None = None
    zone_name: str = "UTC"


class TimeColumn:
    """One column of times. source: its name in the file. home: how the home read it before.

    days: first and last UTC day that landed, days_source: by whom.
    """

    def __init__(
        self,
        name: str,
        source: str,
        words: Words,
        asked: Asked,
        home: Known | None,
        tally: Tally,
        *,
        is_required: bool,
        days: tuple[date, date] | None = None,
        days_source: str = "",
    ) -> None:
        self.name, self._source, self._words, self._asked = name, source, words, asked
        self._home, self._tally = home, tally
        self._is_required, self._days, self._days_source = is_required, days, days_source
        self._speller = Speller(words, asked.time_format)
        self._seen = Seen()
        self._kind: NumberKind | None = None
        self._is_month_first = self._is_either_way = self._has_text = False
        self.reading = ""

    # --- 1. every block once ---

    def look(self, values: pa.Array, places: Places) -> None:
        """See one block. Adds problems to the tally."""
        spelled = self._speller.spell(values)
        self._has_text = self._has_text or is_textual(values.type) or pa.types.is_integer(values.type)
        self._seen.add(spelled, values, places)
        if not self._is_required:
            return
        empty = spelled.kind == NOTHING
        if empty.any():
            said = self._words.nulled(values)
            leave_out = where_advice(self._tally.noun, self._source)
            advice = f"leave such rows out with {leave_out}, or map another column with --map {self.name}=COLUMN"
            for what, mask, shown in (("means nothing is known", said, values), ("is empty", empty & ~said, None)):
                self._tally.add(self.name, f"{what}, and every row needs one", mask, shown, places, "problem", advice)
        advice = f"write YYYY-MM-DD HH:MM:SS or epoch seconds, or say how it is written with --time-format; {_NEXT}"
        self._tell_bad(spelled.kind == BAD, values, places, "problem", advice)

    def _tell_bad(self, bad: np.ndarray, values: pa.Array, places: Places, kind: str, advice: str) -> None:
        rows = np.flatnonzero(bad)
        if not len(rows):
            return
        text = as_text(values)
        whys = np.array([self._why(values, text, int(row)) for row in rows], dtype=object)
        for why in dict.fromkeys(whys):
            mask = np.zeros(len(values), dtype=bool)
            mask[rows[whys == why]] = True
            if kind == "problem":
                self._tally.add(self.name, why, mask, values, places, "problem", advice)
            else:
                self._tally.add(self.name, f"{why} and is left empty", mask, values, places)

    def _why(self, values: pa.Array, text: pa.Array, row: int) -> str:
        if self._asked.time_format is not None:
            return f"is not written as {self._asked.time_format}"
        return why_none(text[row].as_py().strip()) if is_textual(values.type) else "is no time of the years 1 to 2261"

    # --- 2. decide ---

    def decide(self) -> None:
        """How the column is read. Adds a note, and problems with cells that do not fit."""
        seen = self._seen
        if not seen.num_moments and not seen.num_numbers:
            return
        if self._asked.time_format:
            is_used = f"is read as {self._asked.time_format}"
            self._tally.note(self.name, is_used if self._has_text else "is no text: --time-format has no say")
        if seen.num_numbers > seen.num_moments:
            self._decide_number()
        else:
            self._decide_text()
        if self._is_required and self._kind is None and seen.num_numbers > seen.num_moments:
            return
        if self._is_required:
            self._compare_with_others()
        is_local = seen.local.num if self._kind is None else self._kind.is_local
        if is_local and self._asked.zone is not UTC:
            self._tally.note(self.name, f"without a zone is read as {self._asked.zone_name}")

    def _decide_number(self) -> None:
        counts = self._seen.numbers
        known = [place for place in counts if place >= 0 and counts[place].num]
        if not known:
            self._problem(
                "fits no way to write a time as a number (since 1970 in s, ms, µs or ns; YYYYMMDD)", counts[-1]
            )
            return
        place = max(known, key=lambda place: (counts[place].num, -counts[place].order))
        self._kind = KINDS[place]
        count = counts[place]
        if self._kind.is_coarse and self._is_required:
            self._problem("is a year alone, and an event needs its day", count)
            return
        self.reading = self._kind.name
        micros = self._kind.to_micros(np.array([count.low, count.high])).micros
        self._tally.note(self.name, f"is read as {self.reading}, from {_say(micros[0])} to {_say(micros[1])}")
        if not self._is_required:
            return
        inside = f">= {self._kind.low:.0f} and < {self._kind.high:.0f}"
        advice = f"mend the file, or leave such rows out with {where_advice(self._tally.noun, self._source, inside)}"
        for other in counts:
            if other != place and counts[other].num:
                self._problem(self._why_outside(other, counts[other]), counts[other], advice=advice)
        if self._seen.num_moments:
            first = min(self._moment_counts(), key=lambda c: c.order)
            self._problem(f"is no number, where the others are {self._kind.name}", first, self._seen.num_moments)

    def _why_outside(self, place: int, count: Count) -> str:
        assert self._kind is not None
        if place >= 0:
            return f"is in {KINDS[place].name}, where most are {self._kind.name}"
        found = self._kind.to_micros(np.array([float(count.example or "nan")]))
        if not found.is_time[0]:
            return f"is no time in {self._kind.name}, as most are"
        return f"is {_say(found.micros[0])} in {self._kind.name}, far from the others"

    def _moment_counts(self) -> list[Count]:
        seen = self._seen
        counts = (seen.exact, seen.coarse, seen.by_day, seen.by_month, seen.both, seen.same)
        return [count for count in counts if count.num]

    def _decide_text(self) -> None:
        seen = self._seen
        self.reading = self._asked.time_format or "dates"
        if seen.by_day.num or seen.by_month.num or seen.both.num:
            self._decide_order()
        if not self._is_required:
            return
        if seen.coarse.num:
            self._problem("is a month alone, and an event needs its day", seen.coarse)
        if 0 < seen.old.num < seen.exact.num - seen.old.num:
            self._problem("is long before the others, of which most are of 1990 and later", seen.old)
        elif seen.exact.low < _ANCIENT:
            self._problem("is before there was any log", seen.old)
        elif 0 <= seen.exact.low <= seen.exact.high < _JANUARY:
            advice = "give the number itself, or the unit to whoever wrote the file"
            self._problem("is in January 1970: a number was read in a wrong unit", seen.exact, advice=advice)
        allowed = {KINDS.index(kind) for kind in DATES}
        for place, count in seen.numbers.items():
            if place not in allowed and count.num:
                self._problem("is a number, where the others are dates", count)

    def _decide_order(self) -> None:
        seen = self._seen
        order = self._home.value if self._home and self._home.value in ("day first", "month first") else ""
        because = f", as in {self._home.source}" if order and self._home else ""
        if seen.by_day.num or seen.by_month.num:
            self._is_month_first = seen.by_month.num > seen.by_day.num
            decisive = seen.by_month if self._is_month_first else seen.by_day
            because = f", as {decisive.example} says"
            contrary = seen.by_day if self._is_month_first else seen.by_month
            if contrary.num and self._is_required:
                ways = ("month", "day") if self._is_month_first else ("day", "month")
                self._problem(f"has the {ways[1]} first, where most have the {ways[0]} first", contrary)
        elif order:
            self._is_month_first = order == "month first"
        elif seen.dotted.num < seen.both.num:
            self._is_either_way = True
            if self._is_required:
                self._problem(
                    "can have the day or the month first, and no row of the column tells which",
                    seen.both,
                    advice=_FORMAT,
                )
            return
        self.reading = "month first" if self._is_month_first else "day first"
        self._tally.note(self.name, f"is read with the {self.reading}{because}")

    def _compare_with_others(self) -> None:
        """With the clock, and with what landed before."""
        if self.span is None:
            return
        first, last = (_START + timedelta(microseconds=int(micros)) for micros in self.span)
        if first > self._asked.now + CLOCK_SKEW:
            what = f"lies after now ({self._asked.now:%Y-%m-%d %H:%M} UTC) in every row, from {_say(self.span[0])} on"
            advice = "check the unit, or say how it is written with --time-format"
            self._tally.put(
                Finding(self._tally.noun, self.name, what, self._seen.num_rows, None, None, "problem", advice)
            )
        if self._days and (first.date() > self._days[1] + _FAR or last.date() < self._days[0] - _FAR):
            there = f"{self._days[0]} to {self._days[1]} in what landed before ({self._days_source})"
            what = f"goes from {first:%Y-%m-%d} to {last:%Y-%m-%d}, and from {there}"
            advice = "one was read in a wrong unit: take that delivery back with plumline unland, or mend the file"
            self._tally.put(
                Finding(self._tally.noun, self.name, what, self._seen.num_rows, None, None, "problem", advice)
            )

    @property
    def span(self) -> tuple[int, int] | None:
        """The first and the last time of the column as it is read, in microseconds (a zone's offset aside)."""
        seen = self._seen
        if self._kind is not None:
            count = seen.numbers[KINDS.index(self._kind)]
            low, high = self._kind.to_micros(np.array([count.low, count.high])).micros
            return int(low), int(high)
        ordered = seen.by_month if self._is_month_first else seen.by_day
        counts = [count for count in (seen.exact, seen.coarse, seen.same, ordered) if count.num]
        return (int(min(c.low for c in counts)), int(max(c.high for c in counts))) if counts else None

    def _problem(self, what: str, count: Count, num: int | None = None, advice: str = _NEXT) -> None:
        found = Finding(
            self._tally.noun, self.name, what, num or count.num, count.example, count.where, "problem", advice
        )
        if self._is_required:
            self._tally.put(found)

    # --- 3. every block again ---

    def read(self, values: pa.Array, places: Places) -> pa.Array:
        """Times of a block."""
        spelled = self._speller.spell(values)
        micros, is_time, is_local = self._micros(spelled)
        if not self._is_required:
            self._tell_lost(spelled, is_time, values, places)
        rows = np.flatnonzero(is_time & is_local)
        if len(rows) and self._asked.zone is not UTC:
            shifted = to_utc(micros[rows], self._asked.zone)
            micros = micros.copy()
            micros[rows] = shifted.micros
            for what, mask in (
                ("is skipped by a change of the clocks and read as the time after it", shifted.is_skipped),
                ("comes twice at a change of the clocks and is read as the first", shifted.is_doubled),
            ):
                there = np.zeros(len(values), dtype=bool)
                there[rows[mask]] = True
                self._tally.add(self.name, what, there, values, places)
        return to_column(micros, is_time)

    def _micros(self, spelled: Spelled) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Microseconds, which cells are times, and which of them are on a local clock."""
        if self._kind is not None:
            found = self._kind.to_micros(spelled.numbers)
            is_time = (spelled.kind == NUMBER) & found.is_time
            if not self._is_required:
                kinds = kind_of(spelled.numbers)
                is_time &= (kinds == KINDS.index(self._kind)) | ((kinds == -1) & (spelled.numbers != 0))
            return found.micros, is_time, np.full(len(is_time), self._kind.is_local)
        is_time, micros = spelled.kind == MOMENT, spelled.micros
        if spelled.is_either.any():
            has = spelled.has_month_first if self._is_month_first else spelled.has_day_first
            if self._is_either_way:
                has = has & (spelled.micros == spelled.other)
            is_time = is_time & (~spelled.is_either | has)
            micros = np.where(spelled.is_either, spelled.other if self._is_month_first else micros, micros)
        is_local = spelled.is_local
        for kind in DATES if (spelled.kind == NUMBER).any() else ():
            is_kind = (spelled.kind == NUMBER) & (kind_of(spelled.numbers) == KINDS.index(kind))
            found = kind.to_micros(spelled.numbers)
            is_kind &= found.is_time
            micros, is_time, is_local = np.where(is_kind, found.micros, micros), is_time | is_kind, is_local | is_kind
        if not self._is_required:
            is_time = is_time & (micros >= FIRST + 2 * DAY)  # 0001-01-01 stands for "never" in some databases
        return micros, is_time, is_local

    def _tell_lost(self, spelled: Spelled, is_time: np.ndarray, values: pa.Array, places: Places) -> None:
        self._tally.nulled(self.name, self._words, values, places)
        self._tell_bad(spelled.kind == BAD, values, places, "counted", "")
        lost = (spelled.kind >= MOMENT) & ~is_time
        as_others = f"does not fit the others ({self.reading})" if self.reading else "fits no way to write a time"
        either = lost & spelled.is_either if self._is_either_way else np.zeros(len(values), dtype=bool)
        what = "can have the day or the month first and is left empty"
        self._tally.add(self.name, what, either, values, places, advice=_FORMAT)
        self._tally.add(self.name, f"{as_others} and is left empty", lost & ~either, values, places)


def _say(micros: float) -> str:
    moment = _START + timedelta(microseconds=int(micros))
    return f"{moment:%Y-%m-%d}" if not int(micros) % DAY else f"{moment:%Y-%m-%d %H:%M:%S}"
