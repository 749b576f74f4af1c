"""A time that was written as text → microseconds since 1970, one cell at a time.

    read_text("2024-01-01T10:00:00+01:00")     ISO 8601: also weeks (2024-W01-1), days of the year (2024-001), basic
    read_text("Mon, 01 Jan 2024 10:00:00 GMT") RFC 2822, and English names of months in any usual order
    read_text("31/12/2024 11:59 PM")           both readings, where day and month could be either way round

Nothing is ever read by the clock: `now`, `today`, "3 days ago" and a time without a date are no time.
"""

import re
from datetime import date, timedelta
from typing import NamedTuple

_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS = {name: i for i, name in enumerate(_NAMES, 1)}
_WEEKDAY = re.compile(r"^(?:mon|tues?|wed(?:nes)?|thu(?:rs?)?|fri|sat(?:ur)?|sun)(?:day)?\.?,?\s+", re.I | re.A)
_MONTH = (
    r"(?P<name>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_CLOCK = r"(?P<hour>\d{1,2})(?::?(?P<minute>\d\d)(?::?(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,12}))?)?)?"
_ZONE = r"(?P<zone>Z|UTC|GMT|UT|(?:UTC|GMT)?[+-]\d\d(?::?\d\d)?)(?:\s*\[[\w/+\-]+\])?(?:\s*\([^()]*\))?"
_TAIL = rf"(?:(?:\s*T\s*|\s+|\s*,\s*|:|_){_CLOCK}\s*(?P<half>[ap]\.?m\.?)?\s*(?:{_ZONE})?)?"
_DATES = (
    r"(?P<year>\d{4})(?P<sign>[-/.])(?P<month>\d{1,2})(?P=sign)(?P<day>\d{1,2})",
    r"(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)(?=[T\s])",
    r"(?P<year>\d{4})-?W(?P<week>\d\d)(?:-?(?P<weekday>[1-7]))?",
    r"(?P<year>\d{4})-(?P<day_of_year>\d{3})",
    r"(?P<year>\d{4})-(?P<month>\d\d)",
    r"(?P<one>\d{1,2})(?P<sign>[-/.])(?P<two>\d{1,2})(?P=sign)(?P<year>\d{4})",
    rf"(?P<day>\d{{1,2}})(?:st|nd|rd|th)?[\s\-/]+{_MONTH},?[\s\-/]+(?P<year>\d{{4}})",
    rf"{_MONTH}\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?,?\s+(?P<year>\d{{4}})",
)
_FORMS = tuple(re.compile(rf"{dated}{_TAIL}", re.I | re.A) for dated in _DATES)
_CTIME = re.compile(
    rf"{_MONTH}\s+(?P<day>\d{{1,2}})\s+{_CLOCK}\s*(?P<half>)(?:{_ZONE}\s+)?(?P<year>\d{{4}})", re.I | re.A
)
_YEAR_FIRST, _DAY_FIRST, _NAME_FIRST = _FORMS[:5], _FORMS[5:7], (*_FORMS[6:], _CTIME)
_SHORT_YEAR = re.compile(r"\d{1,2}[-/.]\d{1,2}[-/.]\d\d(?!\d)")
_RELATIVE = re.compile(r"now|today|yesterday|tomorrow|.*\bago", re.I)

SECOND, DAY = 1_000_000, 86_400_000_000  # microseconds
_EPOCH = date(1970, 1, 1).toordinal()


class Moment(NamedTuple):
    """A time as it is written, in microseconds since 1970.

    micros: in UTC, or, where `is_local`, on the clock of a zone that is not named; None where only the other reading is
    a time. other: the reading with the month first, where `micros` is the one with the day first and both could be
    meant; None where it is no time. is_either: there are two readings. is_dotted: 31.12.2024, where the day is first
    unless the column says otherwise. is_coarse: a month or a week alone, read as its first day.
    """

    micros: int | None
    other: int | None
    is_local: bool
    is_either: bool = False
    is_dotted: bool = False
    is_coarse: bool = False


def read_text(text: str) -> Moment | None:
    """The time that a text says, None if it says none. text: without spaces around it."""
    text = _WEEKDAY.sub("", text)
    for form in _YEAR_FIRST if text[:4].isdecimal() else _DAY_FIRST if text[:1].isdecimal() else _NAME_FIRST:
        found = form.fullmatch(text)
        if found is not None:
            return _moment(found.groupdict())
    return None


def why_none(text: str) -> str:
    """Why a text is no time, as a clause."""
    if _RELATIVE.fullmatch(text):
        return "is no time of its own: only the clock of the reader knows it"
    if _SHORT_YEAR.match(text):
        return "has a year of two digits"
    named = re.fullmatch(r"(.*\d)\s+(?![AP]M$)[A-Z]{2,5}", text)
    if named and read_text(named[1]) is not None:
        return "names a time zone that is not unique"
    if re.fullmatch(r"\d{1,2}:\d\d(:\d\d)?(\.\d+)?(\s*[AaPp][Mm])?", text):
        return "is a time of day without a date"
    return "is no time"


def _moment(part: dict[str, str | None]) -> Moment | None:
    clock = _clock(part)
    if clock is None:
        return None
    is_local = part["zone"] is None
    if part.get("one"):
        day_first = _days(part, int(part["two"] or 0), int(part["one"] or 0))
        month_first = _days(part, int(part["one"] or 0), int(part["two"] or 0))
        if day_first is None and month_first is None:
            return None
        first = None if day_first is None else day_first * DAY + clock
        other = None if month_first is None else month_first * DAY + clock
        return Moment(first, other, is_local, is_either=True, is_dotted=part["sign"] == ".")
    days = _day_of(part)
    if days is None:
        return None
    is_coarse = not (part.get("day") or part.get("weekday") or part.get("day_of_year"))
    if is_coarse and part["hour"]:
        return None
    return Moment(days * DAY + clock, None, is_local, is_coarse=is_coarse)


def _clock(part: dict[str, str | None]) -> int | None:
    """Microseconds since midnight UTC (or local, without a zone)."""
    hour, minute, second = (int(part[name] or 0) for name in ("hour", "minute", "second"))
    if part["half"]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if part["half"][0] in "pP" else 0)
    fraction = int(((part["fraction"] or "") + "000000")[:6])
    if hour > 24 or minute > 59 or second > 60 or (hour == 24 and (minute or second or fraction)):
        return None
    micros = ((hour * 60 + minute) * 60 + second) * SECOND + fraction
    offset = _offset(part["zone"] or "")
    return None if offset is None else micros - offset


def _offset(zone: str) -> int | None:
    digits = zone.lstrip("UTCGMutcgmzZ").replace(":", "")
    if not digits:
        return 0
    hours, minutes = int(digits[1:3]), int(digits[3:] or 0)
    if hours > 23 or minutes > 59:
        return None
    return (hours * 60 + minutes) * 60 * SECOND * (-1 if digits[0] == "-" else 1)


def _day_of(part: dict[str, str | None]) -> int | None:
    """Days since 1970; a month alone is its first day, a week its Monday."""
    year = int(part["year"] or 0)
    try:
        if part.get("week"):
            return date.fromisocalendar(year, int(part["week"] or 0), int(part["weekday"] or 1)).toordinal() - _EPOCH
        if part.get("day_of_year"):
            day = date(year, 1, 1) + timedelta(days=int(part["day_of_year"] or 0) - 1)
            return day.toordinal() - _EPOCH if day.year == year else None
    except (ValueError, OverflowError):
        return None
    name = part.get("name")
    month = _MONTHS[name[:3].lower()] if name else int(part["month"] or 0)
    return _days(part, month, int(part.get("day") or 1))


def _days(part: dict[str, str | None], month: int, day: int) -> int | None:
    try:
        return date(int(part["year"] or 0), month, day).toordinal() - _EPOCH
    except ValueError:
        return None
