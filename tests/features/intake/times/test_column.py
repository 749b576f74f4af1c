import os
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.intake.facts import Facts, Known
from plumline.schema import EVENTS, ITEMS

Typed = Callable[..., Any]

N = int(os.environ.get("N", "0"))  # more examples than usual


def times(typed: Typed, cells: Any, facts: Facts | None = None, **options: Any) -> Any:
    columns = {"user_id": ["u"] * len(cells), "item_id": ["i"] * len(cells), "timestamp": cells}
    return typed(EVENTS, columns, facts, **options)


def published(typed: Typed, cells: Any, **options: Any) -> Any:
    return typed(ITEMS, {"item_id": [f"i{n}" for n in range(len(cells))], "published_at": cells}, **options)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


NOON = utc("2024-01-31 12:00")


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["2024-01-31 12:00:00"], None),
        (["2024-01-31T12:00:00Z", "2024-01-31T13:00:00+01:00", "2024-01-31 12:00:00 UTC"], None),
        (["2024-W05-3T12:00", "20240131T120000"], None),
        (["1706702400"], "epoch seconds, from 2024-01-31 12:00:00 to 2024-01-31 12:00:00"),
        (["1706702400000"], "epoch milliseconds"),
        (["1706702400000000"], "epoch microseconds"),
        (["1706702400000000000"], "epoch nanoseconds"),
        (["1706702400.0", "1706702400"], "epoch seconds"),
        (["202401311200"], "YYYYMMDDHHMM,"),
        (["20240131120000"], "YYYYMMDDHHMMSS"),
        (["45322.5"], "days of a spreadsheet"),
        (["31/01/2024 12:00"], "is read with the day first, as 31/01/2024 12:00 says"),
        (["1/31/2024 12:00:00 PM"], "is read with the month first, as 1/31/2024 12:00:00 PM says"),
        (["31.01.2024 12:00"], "is read with the day first"),
        (["Wed, 31 Jan 2024 12:00:00 +0000"], None),
        (pa.array([1706702400]), "epoch seconds"),
        (pa.array([1706702400.0]), "epoch seconds"),
        (pa.array([datetime(2024, 1, 31, 12)], pa.timestamp("ms")), None),
        (pa.array([datetime(2024, 1, 31, 12)], pa.timestamp("ns", "America/New_York")), None),
    ],
)
def test_every_way_to_write_a_time(typed: Typed, cells: Any, said: str | None) -> None:
    found = times(typed, cells)
    assert found["timestamp"] == [NOON] * len(cells)
    assert found.said == [] if said is None else said in found.said[0]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (
            ["1704103200", "1704276000000", "1704189600"],
            "line 3: timestamp '1704276000000' is in epoch milliseconds",
        ),
        (
            ["1704276000000", "1704103200"],
            "line 3: timestamp '1704103200' is in epoch seconds, where most",
        ),
        (["0", "1704189600"], "line 2: timestamp '0' is 1970-01-01 in epoch seconds, far from the others; mend"),
        (["-1", "1704189600"], "line 2: timestamp '-1' is 1969-12-31 23:59:59 in epoch seconds"),
        (
            ["1704189600", "100000000000000000000"],
            "line 3: timestamp '100000000000000000000' is no time in epoch seconds",
        ),
        (["1704189600", "inf"], "line 3: timestamp 'inf' is no time in epoch seconds, as most are"),
        (pa.array([1704189600.0, 1e300]), "line 3: timestamp '1e+300' is no time in epoch seconds"),
        (pa.array([1704189600.0, float("nan")]), "line 3: timestamp is empty, and every row needs one"),
        (["1704189600", "nan"], "line 3: timestamp 'nan' means nothing is known, and every row needs one"),
        (["20240101", "20240231", "20240102"], "line 3: timestamp '20240231' is no time in YYYYMMDD"),
        (["2024", "2023"], "line 2: timestamp '2024' is a year alone, and an event needs its day (2 such rows)"),
        (["1", "2", "300"], "line 2: timestamp '1' fits no way to write a time as a number"),
        (
            ["1704103200", "2024-01-01", "1704103201"],
            "line 3: timestamp '2024-01-01' is no number, where the",
        ),
        (
            ["2024-01-01", "1704103200", "2024-01-02"],
            "line 3: timestamp '1704103200' is a number, where the",
        ),
        (["2024-01-01", "2024-01", "2024-01-02"], "line 3: timestamp '2024-01' is a month alone"),
        (
            ["2024-01-01", "1970-01-01", "2024-01-02"],
            "line 3: timestamp '1970-01-01' is long before the others",
        ),
        (["0001-01-01", "0001-01-01"], "line 2: timestamp '0001-01-01' is before there was any log (2 such rows)"),
        (["1970-01-20 17:28:23"], "line 2: timestamp '1970-01-20 17:28:23' is in January 1970: a number was read in"),
        (["2024-01-01", "now"], "line 3: timestamp 'now' is no time of its own: only the clock of the reader knows it"),
        (["2024-01-01", "9999-12-31"], "line 3: timestamp '9999-12-31' is no time"),
        (["2024-01-01", None], "line 3: timestamp is empty"),
        (
            ["01/02/2024", "03/04/2024"],
            "line 2: timestamp '01/02/2024' can have the day or the month first, and no row "
            "of the column tells which (2 such rows); say how they are written with --time-format '%d/%m/%Y'",
        ),
        (
            ["31/01/2024", "01/31/2024", "30/01/2024"],
            "line 3: timestamp '01/31/2024' has the month first, where",
        ),
        (
            ["01/02/24"],
            "line 2: timestamp '01/02/24' has a year of two digits; write YYYY-MM-DD HH:MM",
        ),
        (
            pa.array([2**62], pa.timestamp("s")),
            "line 2: timestamp '4611686018427387904' is no time of the years 1 to 2261",
        ),
        (pa.array([True]), "line 2: timestamp 'True' is no time of the years 1 to 2261"),
    ],
)
def test_what_does_not_fit_is_a_problem_with_its_line(typed: Typed, cells: Any, said: str) -> None:
    (problem,) = times(typed, cells).problems
    assert problem.startswith(f"log.csv: {said}")


def test_all_in_the_future_is_a_problem_and_one_is_not(typed: Typed) -> None:
    assert times(typed, ["2024-01-01", "2030-01-01"])["timestamp"][1] == utc("2030-01-01")
    (problem,) = times(typed, ["2030-01-01", "2031-01-01 10:00:00"]).problems
    assert problem == (
        "events: timestamp lies after now (2026-12-01 00:00 UTC) in every row, from 2030-01-01 on: 2 rows; "
        "check the unit, or say how it is written with --time-format"
    )


def test_old_times_are_believed_where_all_are_old(typed: Typed) -> None:
    assert times(typed, ["1985-01-01", "1986-01-01"])["timestamp"] == [utc("1985-01-01"), utc("1986-01-01")]


# --- --time-format and --time-zone ---


def test_a_format_is_taken_as_told(typed: Typed) -> None:
    found = times(typed, ["01/02/24", "03/04/24"], time_format="%d/%m/%y")
    assert found["timestamp"] == [utc("2024-02-01"), utc("2024-04-03")]
    assert found.said == ["events: timestamp is read as %d/%m/%y"]
    (problem,) = times(typed, ["01/02/24", "2024-01-01"], time_format="%d/%m/%y").problems
    assert problem.startswith("log.csv: line 3: timestamp '2024-01-01' is not written as %d/%m/%y; ")
    typed_times = times(typed, pa.array([datetime(2024, 1, 31, 12)]), time_format="%d/%m/%y")
    assert typed_times["timestamp"] == [NOON]
    assert typed_times.said == ["events: timestamp is no text: --time-format has no say"]


def test_local_times_and_what_the_clocks_make_of_them(typed: Typed) -> None:
    cells = ["2024-01-31 13:00", "2024-03-31 02:30", "2024-10-27 02:30", "2024-01-31T12:00Z"]
    found = times(typed, cells, time_zone="Europe/Berlin")
    assert found["timestamp"] == [NOON, utc("2024-03-31 01:30"), utc("2024-10-27 00:30"), NOON]
    assert found.said == [
        "events: timestamp is skipped by a change of the clocks and read as the time after it: 1 row, "
        "first log.csv: line 3: '2024-03-31 02:30'",
        "events: timestamp comes twice at a change of the clocks and is read as the first: 1 row, "
        "first log.csv: line 4: '2024-10-27 02:30'",
        "events: timestamp without a zone is read as Europe/Berlin",
    ]
    assert times(typed, ["1706702400"], time_zone="Europe/Berlin")["timestamp"] == [NOON]
    assert times(typed, ["202401311300"], time_zone="+01:00")["timestamp"] == [NOON]
    assert times(typed, pa.array([datetime(2024, 1, 31, 13)]), time_zone="+01:00")["timestamp"] == [NOON]


# --- times that may be missing ---


@pytest.mark.parametrize(
    ("cells", "read", "said"),
    [
        (["2024", "1999"], ["2024-01-01", "1999-01-01"], "is read as years"),
        (["2024-02", "2024-01-31"], ["2024-02-01", "2024-01-31"], None),
        (
            ["soon", "2024-01-31"],
            [None, "2024-01-31"],
            "is no time and is left empty: 1 row, first log.csv: line 2",
        ),
        (["NULL", "2024-01-31"], [None, "2024-01-31"], "published_at means nothing is known and is left empty: 1 row"),
        (
            ["0", "1704103200", "-86400"],
            [None, "2024-01-01 10:00", "1969-12-31"],
            "does not fit the others (epoch",
        ),
        (
            ["20240101", "1704103200", "20240102"],
            ["2024-01-01", None, "2024-01-02"],
            "does not fit the others (YYYY",
        ),
        (
            ["0001-01-01", "1950-01-01"],
            [None, "1950-01-01"],
            "does not fit the others (dates)",
        ),
        (
            ["01/02/2024", "01/01/2024"],
            [None, "2024-01-01"],
            "can have the day or the month first and is left",
        ),
        (["01/02/2024", "31/01/2024"], ["2024-02-01", "2024-01-31"], "is read with the day first"),
        (["5", "6"], [None, None], "fits no way to write a time and is left empty: 2 rows"),
        (
            pa.array([2**62, 0], pa.timestamp("s")),
            [None, "1970-01-01"],
            "is no time of the years",
        ),
        (pa.nulls(2), [None, None], None),
    ],
)
def test_a_time_that_may_be_missing_is_left_empty(typed: Typed, cells: Any, read: list[Any], said: str | None) -> None:
    found = published(typed, cells)
    assert found["published_at"] == [None if text is None else utc(text) for text in read]
    assert not found.said if said is None else any(said in line for line in found.said), found.said


# --- what the home has ---


def test_the_home_says_which_way_round(typed: Typed) -> None:
    home = Facts(times={"events.timestamp": Known("month first", "delivery 12ab (a.csv)")})
    found = times(typed, ["01/02/2024"], home)
    assert found["timestamp"] == [utc("2024-01-02")]
    assert found.said == ["events: timestamp is read with the month first, as in delivery 12ab (a.csv)"]
    assert times(typed, ["31/01/2024", "01/02/2024"], home)["timestamp"] == [utc("2024-01-31"), utc("2024-02-01")]
    assert times(typed, ["31/01/2024"]).reading.seen.times["events.timestamp"].value == "day first"


def test_two_deliveries_decades_apart_are_in_two_units(typed: Typed) -> None:
    home = Facts(days=(date(1970, 1, 1), date(1970, 1, 9)), days_source="delivery 12ab (a.csv)")
    (problem,) = times(typed, ["2024-01-01"], home).problems
    assert problem.startswith(
        "events: timestamp goes from 2024-01-01 to 2024-01-01, and from 1970-01-01 to 1970-01-09 in what landed before "
        "(delivery 12ab (a.csv)): 1 row; one was read in a wrong unit: take that delivery back with plumline unland"
    )
    assert times(typed, ["1985-01-01"], home)["timestamp"] == [utc("1985-01-01")]


@settings(max_examples=max(60, N), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.datetimes(datetime(1990, 1, 1), datetime(2026, 11, 1)), min_size=1, max_size=8),
    st.sampled_from([10**0, 10**3, 10**6, 10**9]),
    st.sampled_from([str, int, float]),
)
def test_epochs_of_any_unit_and_type_land_as_they_were(
    typed: Typed, moments: list[datetime], unit: int, kind: type
) -> None:
    micros = [(moment - datetime(1970, 1, 1)) // timedelta(microseconds=1) for moment in moments]
    numbers = [one * unit // 10**6 for one in micros]
    found = times(typed, [kind(number) for number in numbers])["timestamp"]
    for number, got in zip(numbers, found, strict=True):
        error = got - (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=number * 10**6 // unit))
        assert abs(error) <= timedelta(microseconds=1 if kind is float else 0)
