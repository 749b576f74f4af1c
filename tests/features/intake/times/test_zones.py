import os
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.intake.times.zones import find_zone, to_utc
from plumline.errors import InputError

START = datetime(1970, 1, 1)
ZONES = ("Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "+05:45")

N = int(os.environ.get("N", "0"))  # more examples than usual


def micros(*texts: str) -> np.ndarray:
    return np.array([(datetime.fromisoformat(text) - START) // timedelta(microseconds=1) for text in texts])


def test_zones_by_name() -> None:
    assert [find_zone(name) for name in ("UTC", "utc", "Z", "GMT")] == [UTC] * 4
    assert find_zone("Europe/Berlin") == ZoneInfo("Europe/Berlin")
    assert find_zone("-03:30") == find_zone("UTC-0330") == timezone(-timedelta(hours=3, minutes=30))
    for name, meant in (("Berlin", "Europe/Berlin"), ("Europe/Berln", "Europe/Berlin"), ("../x", "Europe/Berlin")):
        with pytest.raises(InputError, match=rf"^--time-zone '{name}' is not known; give one like .*{meant}"):
            find_zone(name)


def test_hours_that_are_skipped_and_that_come_twice() -> None:
    times = micros("2024-03-31 01:59", "2024-03-31 02:30", "2024-03-31 03:00", "2024-10-27 02:30", "2024-10-27 03:00")
    found = to_utc(times, ZoneInfo("Europe/Berlin"))
    assert found.is_skipped.tolist() == [False, True, False, False, False]
    assert found.is_doubled.tolist() == [False, False, False, True, False]
    utc = micros("2024-03-31 00:59", "2024-03-31 01:30", "2024-03-31 01:00", "2024-10-27 00:30", "2024-10-27 02:00")
    assert found.micros.tolist() == utc.tolist()
    assert to_utc(times, UTC).micros is times
    assert to_utc(times[:0], ZoneInfo("Europe/Berlin")).micros.tolist() == []


@settings(max_examples=max(100, N), deadline=None)
@given(st.lists(st.datetimes(datetime(1930, 1, 1), datetime(2260, 1, 1)), min_size=1), st.sampled_from(ZONES))
def test_they_agree_with_python_s_own(moments: list[datetime], name: str) -> None:
    zone = find_zone(name)
    found = to_utc(micros(*map(str, moments)), zone)
    for moment, got in zip(moments, found.micros, strict=True):
        utc = moment.replace(tzinfo=zone).astimezone(UTC)  # == over zones is never true in a doubled hour
        assert START.replace(tzinfo=UTC) + timedelta(microseconds=int(got)) == utc
