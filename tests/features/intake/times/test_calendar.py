import os
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.intake.times.calendar import DATES, KINDS, YEAR, kind_of
from features.intake.times.epoch import NumberKind

BY_NAME = {kind.name: kind for kind in KINDS}
FORMATS = {"YYYYMMDD": "%Y%m%d", "YYYYMMDDHHMM": "%Y%m%d%H%M", "YYYYMMDDHHMMSS": "%Y%m%d%H%M%S"}

N = int(os.environ.get("N", "0"))  # more examples than usual


def test_no_two_kinds_overlap() -> None:
    bounds = [bound for kind in KINDS for bound in (kind.low, kind.high)]
    assert bounds == sorted(bounds)
    assert len(set(bounds)) == len(bounds)
    assert [kind.name for kind in DATES] == ["YYYYMMDD", "YYYYMMDDHHMMSS"]


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (2024, "years"),
        (45292.5, "days of a spreadsheet"),
        (20240101, "YYYYMMDD"),
        (1704103200, "epoch seconds"),
        (202401011230, "YYYYMMDDHHMM"),
        (1704103200000, "epoch milliseconds"),
        (20240101123000, "YYYYMMDDHHMMSS"),
        (1704103200000000, "epoch microseconds"),
        (20240101123000123, "YYYYMMDDHHMMSSmmm"),
        (1704103200000000000, "epoch nanoseconds"),
    ],
)
def test_each_kind_has_a_range_of_its_own(number: float, name: str) -> None:
    assert KINDS[kind_of(np.array([number]))[0]].name == name


@pytest.mark.parametrize("number", [0, -5, 1, 999, 500_000_000, 1e300, np.inf, -np.inf, np.nan])
def test_what_is_of_no_kind(number: float) -> None:
    assert kind_of(np.array([number], dtype=float)).tolist() == [-1]


@settings(max_examples=max(80, N), deadline=None)
@given(st.datetimes(datetime(1900, 1, 1), datetime(2261, 12, 31)), st.sampled_from(list(FORMATS)))
def test_digits_read_back(moment: datetime, name: str) -> None:
    written = moment.strftime(FORMATS[name])
    expected = datetime.strptime(written, FORMATS[name]) - datetime(1970, 1, 1)
    for number in (np.array([int(written)]), np.array([float(written)])):
        found = BY_NAME[name].to_micros(number)
        assert found.is_time.all()
        assert found.micros[0] == expected // timedelta(microseconds=1)
    assert BY_NAME[name].is_local


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("YYYYMMDD", [20240231, 20241301, 20240100, 20240001, 101, 20240101.5, 22620101]),
        ("YYYYMMDDHHMM", [202401012400, 202401011260]),
        ("YYYYMMDDHHMMSS", [20240101126059, 20240101120060]),
        ("years", [0, 2262, 2024.5]),
        ("days of a spreadsheet", [200_000, -800_000, 1e300]),
    ],
)
def test_what_the_calendar_has_not(name: str, numbers: list[float]) -> None:
    found = BY_NAME[name].to_micros(np.array(numbers))
    assert not found.is_time.any()


def test_milliseconds_years_and_spreadsheets() -> None:
    def read(kind: NumberKind, number: float) -> str:
        return str(kind.to_micros(np.array([number])).micros.astype("datetime64[us]")[0])

    assert read(BY_NAME["YYYYMMDDHHMMSSmmm"], 20240101123000123) == "2024-01-01T12:30:00.123000"
    assert read(YEAR, 1999) == "1999-01-01T00:00:00.000000"
    assert read(BY_NAME["days of a spreadsheet"], 45292) == "2024-01-01T00:00:00.000000"
    assert read(BY_NAME["days of a spreadsheet"], 45292.4236111111) == "2024-01-01T10:10:00.000000"
    assert YEAR.is_coarse
