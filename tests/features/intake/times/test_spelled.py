import os
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.intake.options import DEFAULT_NULLS
from features.intake.times.epoch import NEWEST
from features.intake.times.spelled import BAD, MOMENT, NOTHING, NUMBER, Spelled, Speller, check_format, to_column
from features.intake.times.text import read_text
from features.intake.words import Words
from plumline.errors import InputError
from plumline.schema import TIMESTAMP

START = datetime(1970, 1, 1)
WORDS = Words(DEFAULT_NULLS)

N = int(os.environ.get("N", "0"))  # more examples than usual


def spell(values: pa.Array | Sequence[Any], time_format: str | None = None) -> Spelled:
    return Speller(WORDS, time_format).spell(values if isinstance(values, pa.Array) else pa.array(values))


def micros(text: str) -> int:
    return (datetime.fromisoformat(text) - START) // timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("values", "is_local"),
    [
        (["2024-01-02 03:04:05", None], True),
        (["2024-01-02T03:04:05Z", " NULL "], False),
        (["2024-01-02 03:04:05 UTC", None], False),
        (["2024-01-02 03:04:05.000000000", None], True),
        (["2024-01-02T04:04:05.0000000+01:00", None], False),
        (['{"$date": "2024-01-02T03:04:05Z"}', None], False),
        (["Tue, 02 Jan 2024 03:04:05 GMT", ""], False),
        (["Jan 2 2024 03:04:05", ""], True),
        (["Tue Jan  2 03:04:05 2024", ""], True),
        (["Tue Jan 02 05:04:05 +0200 2024", ""], False),
        (["2024-01-02 03:04:05 AM", ""], True),
        (pa.array([datetime(2024, 1, 2, 3, 4, 5), None], pa.timestamp("s")), True),
        (pa.array([datetime(2024, 1, 2, 3, 4, 5), None], pa.timestamp("ns", "Europe/Berlin")), False),
    ],
)
def test_a_moment_in_every_spelling(values: Any, is_local: bool) -> None:
    found = spell(values)
    assert found.kind.tolist() == [MOMENT, NOTHING]
    assert found.micros[0] == micros("2024-01-02 03:04:05")
    assert bool(found.is_local[0]) == is_local
    assert not found.is_either[0]


def test_days_of_parquet() -> None:
    for kind in (pa.date32(), pa.date64()):
        found = spell(pa.array([date(2024, 1, 2), None], kind))
        assert found.micros.tolist() == [micros("2024-01-02"), 0]
        assert found.is_local.all()


@pytest.mark.parametrize(
    ("values", "numbers", "dtype"),
    [
        (["1704103200", None], [1704103200, 0], np.int64),
        (["1704103200.5", "inf"], [1704103200.5, np.inf], np.float64),
        (["100000000000000000000", "1"], [1e20, 1.0], np.float64),
        (['{"$date": {"$numberLong": "1704103200000"}}', None], [1704103200000, 0], np.int64),
        (pa.array([1, None], pa.int8()), [1, 0], np.int64),
        (pa.array([2**63], pa.uint64()), [2.0**63], np.float64),
        (pa.array([1.5, float("nan")]), [1.5, 0], np.float64),
        (pa.array([Decimal("1.5")]), [1.5], np.float64),
    ],
)
def test_numbers_wait_for_their_unit(values: Any, numbers: list[float], dtype: type) -> None:
    found = spell(values)
    assert found.numbers.tolist() == numbers
    assert found.numbers.dtype == dtype
    present = values if isinstance(values, pa.Array) else pa.array(values)
    assert ((found.kind == NUMBER) == pa.compute.is_valid(present).to_numpy(False)).sum() >= len(numbers) - 1


def test_a_mixed_column_is_read_cell_by_cell() -> None:
    cells = [
        "2024-01-02",
        "2024-01-02T00:00:00Z",
        "1704153600",
        "20240102",
        "12/31/2024",
        "0x1F",
        "now",
        None,
        "2024-01",
    ]
    found = spell(cells)
    assert found.kind.tolist() == [MOMENT, MOMENT, NUMBER, NUMBER, MOMENT, BAD, BAD, NOTHING, MOMENT]
    assert found.is_local.tolist()[:2] == [True, False]
    assert (found.is_either[4], found.has_day_first[4], found.has_month_first[4]) == (True, False, True)
    assert found.is_coarse[8]


@pytest.mark.parametrize(
    "values",
    [
        ["2262-01-01", "9999-12-31", "0000-01-01"],
        pa.array([NEWEST // 10**6, 2**62, -(2**62)], pa.timestamp("s")),
        pa.array([2**31 - 1, -(2**31), 200_000], pa.date32()),
        [True, False, True],
        pa.array([1, 2, 3], pa.time32("s")),
        [{"a": 1}, {"a": 2}, {"a": 3}],
        ["23:00 2024-01-01", "2024-01 10:00", "31/31/2024 10:00"],
    ],
)
def test_what_is_no_time_in_range(values: Any) -> None:
    assert spell(values).kind.tolist() == [BAD] * 3


def test_a_format_that_was_told() -> None:
    found = spell(["02.01.24 03h", "2.1.24 03h", "x", None, "2024-01-02"], "%d.%m.%y %Hh")
    assert found.kind.tolist() == [MOMENT, MOMENT, BAD, NOTHING, BAD]
    assert found.micros[:2].tolist() == [micros("2024-01-02 03:00")] * 2
    assert found.is_local[0]
    zoned = spell(["02/01/2024 03:00 +0100", "02/01/2024 03:00 Z"], "%d/%m/%Y %H:%M %z")
    assert zoned.micros.tolist() == [micros("2024-01-02 02:00"), micros("2024-01-02 03:00")]
    assert not zoned.is_local.any()
    assert spell(pa.array([2024010203]), "%Y%m%d%H").micros[0] == micros("2024-01-02 03:00")
    assert spell(["0999-01-02"], "%Y-%m-%d").micros[0] == micros("0999-01-02")


def test_a_format_that_cannot_be() -> None:
    for time_format in ("%d/%m/%Y", "%Y%m%d", "%Y-%m-%dT%H:%M:%S%z", "%y %j", "%c"):
        check_format(time_format)
    for time_format, said in (
        ("%Y-%m", "does not say year, month and day"),
        ("%Q", "bad directive"),
        ("x", "does not"),
    ):
        with pytest.raises(InputError, match=said) as error:
            check_format(time_format)
        assert "\n" not in str(error.value)


def test_micros_become_the_contract_s_type() -> None:
    column = to_column(np.array([0, 5]), np.array([True, False]))
    assert column.type == TIMESTAMP
    assert column.null_count == 1


SPELLINGS = ("%Y-%m-%d %H:%M:%S.%f", "%d %b %Y %H:%M +0130", "%a %b %d %H:%M:%S +0130 %Y", "%d/%m/%Y %I:%M %p")


@settings(max_examples=max(40, N), deadline=None)
@given(
    st.lists(st.datetimes(datetime(1000, 1, 1), datetime(2261, 1, 1)), min_size=1, max_size=5),
    st.sampled_from(SPELLINGS),
)
def test_blocks_say_what_single_cells_say(moments: list[datetime], spelling: str) -> None:
    texts = [moment.strftime(spelling) for moment in moments]
    found = spell(texts)
    for i, text in enumerate(texts):
        alone = read_text(text)
        assert alone is not None
        assert found.kind[i] == MOMENT
        assert (alone.micros or 0, alone.other or 0) == (found.micros[i], found.other[i])
        assert (alone.is_local, alone.is_either) == (found.is_local[i], found.is_either[i])
