"""Conditions: what they hold for, and that text which is none is refused in one line."""

import operator
import random
from decimal import Decimal

import pyarrow as pa
import pytest

from features.intake.shapes.conditions import parse_condition
from plumline.errors import InputError

TABLE = pa.table(
    {
        "a": ["1", "2.5", "x", None, "NULL", "true"],
        "e": ["view", "add to cart", "buy", "", "view", "VIEW"],
        "n": [1, 2, 3, None, 5, 6],
        "f": [0.5, float("nan"), 2.0, None, 1e300, -1.0],
        "b": [True, False, None, True, False, True],
        "Customer ID": ["9007199254740993", "9007199254740992", "01", "1", "-1", "1e3"],
        "d": pa.array([0, 1, 86_400, None, 2, 3], pa.timestamp("s")),
        "k": pa.array([Decimal("1.10"), Decimal("2.00"), None, None, None, None], pa.decimal128(5, 2)),
    }
)
T, F = True, False


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("a == 1", [T, F, F, F, F, T]),
        ("a = 1", [T, F, F, F, F, T]),
        ("a != 1", [F, T, T, T, T, F]),
        ("a <> 1", [F, T, T, T, T, F]),
        ("a > 2", [F, T, F, F, F, F]),
        ("a == ''", [F, F, F, T, T, F]),
        ('a != ""', [T, T, T, F, F, T]),
        ("a == true", [T, F, F, F, F, T]),
        ("a == '1'", [T, F, F, F, F, F]),
        ("e in (view, 'add to cart')", [T, T, F, F, T, F]),
        ("e not in [view]", [F, T, T, T, F, T]),
        ("e > buy", [T, F, F, F, T, F]),
        ("not (e == view) and n >= 2", [F, T, T, F, F, T]),
        ("n < 2 or n > 5 & e == VIEW", [T, F, F, F, F, T]),
        ("n in (1, 3.0)", [T, F, T, F, F, F]),
        ("f <= 2", [T, F, T, F, F, T]),
        ("b == 1", [T, F, F, T, F, T]),
        ("b != true", [F, T, T, F, T, F]),
        ("'Customer ID' == '9007199254740993'", [T, F, F, F, F, F]),
        ('"Customer ID" == 1', [F, F, T, T, F, F]),
        ("d >= 1970-01-02", [F, F, T, F, F, F]),
        ("d == '1970-01-01 00:00:01'", [F, T, F, F, F, F]),
        ("k == 1.1", [T, F, F, F, F, F]),
    ],
)
def test_rows_that_fulfil_a_condition(text, holds):
    assert parse_condition(text).holds(TABLE, nulls=["NULL"]).to_pylist() == holds


def test_whole_numbers_of_18_digits_are_compared_exactly():
    table = pa.table({"id": ["900719925474099301", "900719925474099302", None]})
    assert parse_condition("id == 900719925474099301").holds(table).to_pylist() == [T, F, F]


def test_names_are_found_where_they_are_asked_for():
    condition = parse_condition("user == 1 and (`two words` > 2 or not user in (3))")
    assert condition.names == ("user", "two words")
    table = pa.table({"u": ["1", "3"], "w": ["3", "1"]})
    assert condition.holds(table, {"user": "u", "two words": "w"}.__getitem__).to_pylist() == [T, F]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("a", "ends where"),
        ("a ==", "a value is wanted"),
        ("a == 1 b", "'b'"),
        ("(a == 1", "not closed"),
        ("a == 1)", "')'"),
        ("a in 3", "brackets"),
        ("a in (3", "not closed"),
        ("a not 3", "after not"),
        ("== 3", "a column is wanted"),
        ("a == 1 and", "ends where a column"),
        ("a == (1)", "a value is wanted"),
        ("two words == 1", "backticks"),
        ("__import__('os')", "'('"),
        ("a == 'x", "cannot be read"),
        ("(" * 5000 + "a == 1", "more than 100"),
    ],
)
def test_text_that_is_no_condition_is_one_line(text, words):
    with pytest.raises(InputError) as caught:
        parse_condition(text, "--value")
    assert str(caught.value).startswith("--value")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_cannot_be_compared():
    with pytest.raises(InputError, match="explode"):
        parse_condition("a == x").holds(pa.table({"a": [["x"]]}))


def test_random_text_is_read_or_refused():
    dice = random.Random(0)
    words = [
        "a",
        "n",
        "==",
        "in",
        "(",
        ")",
        "not",
        "and",
        "or",
        "3",
        "'x",
        "`",
        ",",
        "<",
        "!",
        "&",
        "\\",
        "é",
        "''",
        "==",
    ]
    read = 0
    for _ in range(3000):
        text = " ".join(dice.choices(words, k=dice.randint(3, 5)))
        try:
            condition = parse_condition(text)
        except InputError:
            continue
        read += 1
        assert set(condition.names) - {"a", "n"} or len(condition.holds(TABLE)) == 6
    assert read > 10


def test_random_conditions_against_plain_python():
    """Rows of numbers as text and of words, against Python's own comparisons."""
    dice = random.Random(3)
    compare = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt}
    numbers = [dice.choice(["1", "2.0", "03", "-4", None, "x"]) for _ in range(40)]
    words = [dice.choice(["a", "B", "b c", None]) for _ in range(40)]
    table = pa.table({"n": numbers, "w": words})

    def as_number(cell):
        return None if cell in (None, "x") else float(cell)

    def draw(depth):
        kind = dice.choice(["n", "w", "in"] + (["not", "and", "or"] * 2 if depth else []))
        if kind == "n":
            op, limit = dice.choice(list(compare)), dice.randint(-5, 4)
            cells = [as_number(cell) for cell in numbers]
            return f"n {op} {limit}", [op == "!=" if cell is None else compare[op](cell, limit) for cell in cells]
        if kind == "w":
            op, word = dice.choice(list(compare)), dice.choice(["a", "B", "b c"])
            return f"w {op} '{word}'", [op == "!=" if cell is None else compare[op](cell, word) for cell in words]
        if kind == "in":
            return "w in (a, 'b c')", [cell in ("a", "b c") for cell in words]
        first, holds = draw(depth - 1)
        if kind == "not":
            return f"not ({first})", [not one for one in holds]
        second, also = draw(depth - 1)
        join = all if kind == "and" else any
        return f"({first}) {kind} ({second})", [join(pair) for pair in zip(holds, also, strict=True)]

    for _ in range(200):
        text, wanted = draw(3)
        assert parse_condition(text).holds(table).to_pylist() == wanted, text
