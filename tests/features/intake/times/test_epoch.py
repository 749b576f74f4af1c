import os
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.intake.times.calendar import KINDS, kind_of
from features.intake.times.epoch import EPOCHS, FIRST, NEWEST, OLDEST

UNITS = dict(zip(("s", "ms", "us", "ns"), EPOCHS, strict=True))
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}

N = int(os.environ.get("N", "0"))  # more examples than usual


@settings(max_examples=max(80, N), deadline=None)
@given(st.datetimes(datetime(1990, 1, 1), datetime(2261, 12, 31)), st.sampled_from(list(UNITS)))
def test_a_number_of_1990_to_2261_is_of_one_unit_and_reads_back(moment: datetime, unit: str) -> None:
    micros = (moment - datetime(1970, 1, 1)) // timedelta(microseconds=1)
    number = np.array([micros * PER_SECOND[unit] // 10**6])
    assert KINDS[kind_of(number)[0]] is UNITS[unit]
    found = UNITS[unit].to_micros(number)
    assert found.is_time.all()
    resolution = max(1, 10**6 // PER_SECOND[unit])
    assert found.micros[0] == micros // resolution * resolution
    assert abs(int(UNITS[unit].to_micros(number.astype(float)).micros[0]) - int(found.micros[0])) <= 1


@pytest.mark.parametrize("unit", list(UNITS))
def test_years_below_1_and_above_2261_are_no_times(unit: str) -> None:
    kind, per = UNITS[unit], PER_SECOND[unit]
    edges = np.array([NEWEST, NEWEST - 10**6, OLDEST, OLDEST - 10**6], dtype=object) * per // 10**6
    assert kind.to_micros(edges.astype(np.int64)).is_time.tolist() == [False, True, True, True]
    floats = np.array([np.inf, -np.inf, 1e300, FIRST * per / 10**6 - 1e5 * per])
    assert not kind.to_micros(floats).is_time.any()
    assert kind.to_micros(floats).micros.tolist() == [0, 0, 0, 0]


def test_fractions_count() -> None:
    assert UNITS["s"].to_micros(np.array([1.5, -1.5])).micros.tolist() == [1_500_000, -1_500_000]
    assert UNITS["ns"].to_micros(np.array([1500])).micros.tolist() == [1]
