import os
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plumline.schema import EVENTS, ITEMS

Typed = Callable[..., Any]

N = int(os.environ.get("N", "0"))  # more examples than usual


def prices(typed: Typed, cells: Any, **options: Any) -> Any:
    return typed(ITEMS, {"item_id": [f"i{n}" for n in range(len(cells))], "price": cells}, **options)


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("12", 12.0),
        (" -1 ", -1.0),
        ("+1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("$1,299.00", 1299.0),
        ("1,299", 1299.0),
        ("1.299", 1.299),
        ("1,299,000", 1299000.0),
        ("1.299,00", 1299.0),
        ("1.299.000", 1299000.0),
        ("12,5", 12.5),
        ("1234567,89", 1234567.89),
        ("0,125", 0.125),
        ("12 €", 12.0),
        ("€12.50", 12.5),
        ("-$5", -5.0),
        ("$-5", -5.0),
        ("USD 12.99", 12.99),
        ("1 299,50 kr", 1299.5),
        ("1'299.00 CHF", 1299.0),
        ("1\u00a0299", 1299.0),
        ("true", 1.0),
        ("False", 0.0),
    ],
)
def test_a_number_however_it_is_dressed(typed: Typed, cell: str, number: float) -> None:
    found = prices(typed, [cell])
    assert found["price"] == [number]
    assert not [finding for finding in found.reading.findings if finding.kind == "counted"]


NONE = ("call us", "Free", "$5 - $10", "50%", "1,2,3", "12,34,567", "--5", "+-5", "$", "1.2.3.4", "2024-01-01", "01:30")


@pytest.mark.parametrize("cell", [*NONE, "1 2"])
def test_what_is_no_number_is_left_empty_and_counted(typed: Typed, cell: str) -> None:
    found = prices(typed, ["12", cell, "7", cell])
    assert found["price"] == [12.0, None, 7.0, None]
    assert found.said == [f"items: price is no number and is left empty: 2 rows, first log.csv: line 3: {cell!r}"]


def test_the_column_says_whether_a_point_or_a_comma_is_before_the_fraction(typed: Typed) -> None:
    assert prices(typed, ["1.299", "12,50", "1,299"])["price"] == [1299.0, 12.5, 1.299]
    assert prices(typed, ["1,299", "12.50", "1.299"])["price"] == [1299.0, 12.5, 1.299]
    both = prices(typed, ["1,299", "12.50", "12,50", "1.299", "7"])
    assert both["price"] == [None, 12.5, 12.5, None, 7.0]
    assert "price is no number and is left empty: 2 rows, first log.csv: line 2: '1,299'" in both.said[0]
    assert prices(typed, ["1.299", "1,99"]).said == [
        "items: price is read with a comma before the fraction, as in 1.299,00"
    ]


def test_null_words_and_what_is_not_finite(typed: Typed) -> None:
    found = prices(typed, ["NULL", "inf", "1e999", "", "3"])
    assert found["price"] == [None, None, None, None, 3.0]
    assert [finding.count for finding in found.reading.findings] == [2, 1]
    assert prices(typed, ["x", "inf", "3"])["price"] == [None, None, 3.0]
    typed_cells = prices(typed, pa.array([1.5, float("inf"), float("nan"), None]))
    assert typed_cells["price"] == [1.5, None, None, None]
    assert typed_cells.said == ["items: price is not finite and is left empty: 1 row, first log.csv: line 3: 'inf'"]


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (pa.array([1, None]), [1.0, None]),
        (pa.array([2**63], pa.uint64()), [2.0**63]),
        (pa.array([True, False]), [1.0, 0.0]),
        (pa.array([Decimal("1.50")]), [1.5]),
        (pa.array([1.5], pa.float32()), [1.5]),
        (pa.nulls(2), [None, None]),
        (pa.array([date(2024, 1, 1)]), [None]),
        (pa.array([["1"], None]), [1.0, None]),
    ],
)
def test_numbers_of_parquet(typed: Typed, cells: pa.Array, numbers: list[float | None]) -> None:
    assert prices(typed, cells)["price"] == numbers


def test_milliseconds_become_seconds(typed: Typed) -> None:
    columns = {"user_id": ["u"], "item_id": ["i"], "timestamp": ["2024-01-01"], "watch_time_ms": ["1500"]}
    found = typed(EVENTS, columns)
    assert found["watch_time_s"] == [1.5]
    assert "events: watch_time_s = watch_time_ms / 1000" in found.said
    assert typed(EVENTS, columns | {"watch_time_s": ["7"]})["watch_time_s"] == [7.0]


@settings(max_examples=max(80, N), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.decimals(-(10**9), 10**9, places=2), min_size=1),
    st.sampled_from(["plain", "point", "comma"]),
    st.sampled_from(["{}", "${}", "{} €", "EUR {}"]),
)
def test_prices_come_back_as_they_were(typed: Typed, numbers: list[Decimal], style: str, dress: str) -> None:
    cells = [f"{number:.2f}" if style == "plain" else f"{number:,.2f}" for number in numbers]
    if style == "comma":
        cells = [cell.translate(str.maketrans(",.", ".,")) for cell in cells]
    assert prices(typed, [dress.format(cell) for cell in cells])["price"] == [float(number) for number in numbers]


@settings(max_examples=max(60, N), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_any_float_comes_back(typed: Typed, numbers: list[float]) -> None:
    assert prices(typed, [repr(number) for number in numbers])["price"] == numbers
