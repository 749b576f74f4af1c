import numpy as np
import pyarrow as pa
import pytest

from features.intake.findings import Finding, Places, Tally, order, refuse, show
from features.intake.staged import RowsOf
from features.intake.words import Words
from plumline.errors import InputError


def places(num_rows: int = 3) -> Places:
    rows = RowsOf(pa.table({"price": ["x"] * num_rows}), ["a.csv"])
    return Places(rows, next(iter(rows.blocks())))


def test_each_kind_is_one_line() -> None:
    assert str(Finding("events", "timestamp", "is read as days")) == "events: timestamp is read as days"
    counted = Finding("items", "price", "is no number", 1200, "a\nb", "a.csv: line 3", "counted")
    assert str(counted) == "items: price is no number: 1,200 rows, first a.csv: line 3: 'a\\nb'"
    problem = Finding("items", "price", "is no number", 1, "x", "a.csv: line 3", "problem", "mend it")
    assert str(problem) == "a.csv: line 3: price 'x' is no number; mend it"
    many = Finding("items", "price", "is empty", 2, None, "a.csv: line 3", "problem")
    assert str(many) == "a.csv: line 3: price is empty (2 such rows)"
    assert str(Finding("items", "", "there is no row", kind="problem", advice="give one")) == (
        "items: there is no row; give one"
    )
    assert str(Finding("items", "id", "is odd", 1, None, "a.csv: line 3", "counted")).endswith(
        "1 row, first a.csv: line 3"
    )


def test_a_tally_counts_over_blocks_and_remembers_the_first_place() -> None:
    tally, values = Tally("items"), pa.array(["p", "q", None])
    tally.add("price", "is odd", pa.array([False, True, None]), values, places())
    tally.add("price", "is odd", np.array([True, True, False]), values, places())
    tally.add("price", "is even", np.array([False, False, False]), values, places())
    (found,) = tally.findings
    assert (found.count, found.example, found.where) == (3, "q", "a.csv: line 2")


def test_a_tally_that_is_rewound_forgets_the_second_pass() -> None:
    tally = Tally("items")
    tally.note("price", "is read")
    tally.keep()
    for _ in range(2):
        tally.rewind()
        tally.nulled("price", Words(["NULL"]), pa.array(["NULL", "", "5"]), places())
        assert [found.count for found in tally.findings] == [1, 0]


def test_problems_come_first_and_the_most_frequent_is_raised() -> None:
    note, few = Finding("items", "a", "noted"), Finding("items", "b", "few", 1, kind="problem")
    many, lost = Finding("items", "c", "many", 5, kind="problem"), Finding("items", "d", "lost", 9, kind="counted")
    assert order([note, lost, few, many]) == (many, few, lost, note)
    refuse([note, lost])
    with pytest.raises(InputError, match=r"^items: c many: 5 rows \(and 1 other problem\)$"):
        refuse([note, few, many])
    with pytest.raises(InputError, match="^items: b few: 1 row$"):
        refuse([few])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (pa.scalar("x"), "x"),
        (b"\xff", "�"),
        ("x" * 90, "x" * 79 + "…"),
        (pa.scalar(2**62, pa.timestamp("s")), str(2**62)),
    ],
)
def test_values_are_shown_short(value: object, shown: str | None) -> None:
    assert show(value) == shown
