"""Local times → UTC, with what a change of the clocks makes of them.

    zone = find_zone("Europe/Berlin")
    shifted = to_utc(micros, zone)     shifted.micros, shifted.is_skipped, shifted.is_doubled

A time in the hour that the clocks skip is read as if they had not been put forward yet (02:30 is what they show as
03:30); one in the hour that comes twice is taken for the first.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from difflib import get_close_matches
from zoneinfo import ZoneInfo, available_timezones

import numpy as np

from plumline.errors import InputError

_QUARTER = 900_000_000  # microseconds; zones change their clocks at quarters of an hour of local time
_START = datetime(1970, 1, 1)


@dataclass(frozen=True)
class Shifted:
    """(n,) int64 microseconds in UTC, and which local times there are not, or twice."""

    micros: np.ndarray
    is_skipped: np.ndarray
    is_doubled: np.ndarray


def find_zone(name: str) -> tzinfo:
    """The zone of a name like Europe/Berlin or +02:00. InputError for one that is not known."""
    offset = re.fullmatch(r"(?:UTC|GMT)?([+-])(\d\d):?(\d\d)?", name)
    if offset and int(offset[2]) < 24 and int(offset[3] or 0) < 60:
        minutes = int(offset[2]) * 60 + int(offset[3] or 0)
        return timezone(timedelta(minutes=-minutes if offset[1] == "-" else minutes))
    if name.upper() in ("UTC", "GMT", "Z"):
        return UTC
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        near = get_close_matches(name, available_timezones(), 3, 0.5)
        near += [zone for zone in sorted(available_timezones()) if zone.lower().endswith("/" + name.lower())]
        meant = f"; did you mean {' or '.join(dict.fromkeys(near[::-1][:3]))}?" if near else ""
        raise InputError(
            f"--time-zone {name!r} is not known; give one like UTC, Europe/Berlin or +02:00{meant}"
        ) from None


def to_utc(micros: np.ndarray, zone: tzinfo) -> Shifted:
    """Local times, (n,) int64 microseconds since 1970 on the clock of the zone, as UTC.

    Times whose year is not in 1…9999 must not be among them.
    """
    nowhere = np.zeros(len(micros), dtype=bool)
    if zone is UTC or not len(micros):
        return Shifted(micros, nowhere, nowhere)
    quarters, inverse = np.unique(micros // _QUARTER, return_inverse=True)
    offsets = np.array([_offsets(int(quarter), zone) for quarter in quarters], dtype=np.int64)
    first, second = offsets[inverse, 0], offsets[inverse, 1]
    return Shifted(micros - first, first < second, first > second)


def _offsets(quarter: int, zone: tzinfo) -> tuple[int, int]:
    """Offsets of a local time in microseconds: before and after a change of the clocks, if it falls in one."""
    local = _START + timedelta(microseconds=quarter * _QUARTER)
    both = (local.replace(tzinfo=zone, fold=fold).utcoffset() or timedelta() for fold in (0, 1))
    before, after = (round(offset / timedelta(microseconds=1)) for offset in both)
    return before, after
