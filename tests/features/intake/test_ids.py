import os
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.intake.facts import Facts
from features.intake.findings import Places, Tally
from features.intake.ids import IdColumn, IdForms, forms_of
from features.intake.options import DEFAULT_NULLS
from features.intake.staged import RowsOf
from features.intake.words import Words
from plumline.schema import EVENTS, ITEMS, USERS

Typed = Callable[..., Any]

N = int(os.environ.get("N", "0"))  # more examples than usual


def events(users: list[Any] | pa.Array) -> dict[str, Any]:
    return {"user_id": users, "item_id": ["i"] * len(users), "timestamp": ["2024-01-01"] * len(users)}


@pytest.mark.parametrize(
    ("ids", "read"),
    [
        (["007", "7", "1e5", "0x1F", "-1", "2024-01-01 10:00:00"], None),
        (["13085.0", "13086.0", "0.0"], ["13085", "13086", "0"]),
        (["13085", "13086.0", "-2.00"], ["13085", "13086", "-2"]),
        (["13085.0", "guest"], None),
        (["1.10", "2.0", "3"], None),
        (["2.0", "3", "4", "guest"], ["2", "3", "4", "guest"]),
        (["2.0", "3", "guest", "ghost", "host"], None),
        ([' {"$oid": "50"} ', "x"], ["50", "x"]),
        (["{6fa459ea}", "[x", "[1"], None),
        (pa.array([7, 2**62]), ["7", str(2**62)]),
        (pa.array([7.0, -2.0, 2.0**52]), ["7", "-2", str(2**52)]),
        (pa.array([Decimal("7.00"), Decimal("8.00")]), ["7", "8"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([b"abc", b"\xff"]), ["abc", "ff"]),
    ],
)
def test_ids_are_text(typed: Typed, ids: Any, read: list[str] | None) -> None:
    assert typed(EVENTS, events(ids))["user_id"] == (ids if read is None else read)


def test_what_was_read_as_an_integer_and_what_was_not_is_said(typed: Typed) -> None:
    assert typed(EVENTS, events(["1", "13085.0", "7.0"])).said == [
        "events: user_id written like 13085.0 is read as 13085: 2 rows, first log.csv: line 3"
    ]
    assert typed(EVENTS, events(["guest", "13085.0"])).said == [
        "events: user_id is written like a float among ids that are none, and stays as it is: 1 row, "
        "first log.csv: line 3: '13085.0'"
    ]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (
            ["a", "NULL", "nan", None, " "],
            "line 3: user_id 'NULL' means nothing is known, and every row needs one (2 such",
        ),
        ([None, "a", "NULL"], "log.csv: line 2: user_id is empty, and every row needs one; leave such"),
        (pa.array([1.0, None, float("nan")]), "line 3: user_id is empty, and every row needs one (2 such rows); leave"),
        (pa.array([1.0, 1.5]), "line 3: user_id '1.5' is no whole number, which is no id; map another"),
        (pa.array([1.0, float("inf")]), "line 3: user_id 'inf' is no whole number"),
        (pa.array([1.0, 2.0**53]), "line 3: user_id '9007199254740992.0' is a float above 2**53"),
        (pa.array([Decimal("1.5")]), "line 2: user_id '1.5' is no whole number"),
        (["a", '{"x": 1}', "[1, 2]"], "line 3: user_id '{\"x\": 1}' is nested, which is no id (2 such rows); name one"),
        (pa.array([{"x": 1}]), "line 2: user_id '{\"x\": 1}' is nested, which is no id; name one of its fields"),
        (["1", "1.23457E+12"], "line 3: user_id '1.23457E+12' is a number that a spreadsheet rounded"),
    ],
)
def test_what_cannot_be_an_id_is_a_problem(typed: Typed, ids: Any, said: str) -> None:
    (problem, *_) = typed(EVENTS, events(ids)).problems
    assert said in problem


def test_the_most_frequent_problem_is_said_first(typed: Typed) -> None:
    assert "user_id is empty" in typed(EVENTS, events([None, None, "NULL", '{"a": 1}'])).problems[0]


def test_spaces_do_not_count_and_two_spellings_of_one_item_are_refused(typed: Typed) -> None:
    found = typed(EVENTS, events([" u1", "u1", "u2"]))
    assert found["user_id"] == ["u1", "u1", "u2"]
    assert "has spaces around it, which do not count: 1 row" in found.said[0]
    for ids in (["1", "2", " 1"], ["1 ", "2", " 1"]):
        (problem,) = typed(ITEMS, {"item_id": ids, "title": ["a", "b", "c"]}).problems
        assert "the spaces around an id do not count; keep one row an id" in problem
    assert typed(ITEMS, {"item_id": [" 1", "2"], "title": ["a", "b"]})["item_id"] == ["1", "2"]


def test_event_ids_are_all_there_or_none(typed: Typed) -> None:
    assert typed(EVENTS, events(["a", "b"]) | {"event_id": [None, ""]})["event_id"] == [None, None]
    (problem,) = typed(EVENTS, events(["a", "b"]) | {"event_id": ["e1", None]}).problems
    assert problem.startswith("log.csv: line 3: event_id is empty")


def test_an_optional_id_that_is_none_is_left_empty_and_counted(typed: Typed) -> None:
    found = typed(EVENTS, events(["a", "b", "c"]) | {"session_id": pa.array([1.0, 1.5, None])})
    assert found["session_id"] == ["1", None, None]
    (said,) = found.said
    assert said.startswith("events: session_id is no whole number, which is no id: 1 row, first log.csv: line 3: '1.5'")
    found = typed(EVENTS, events(["a", "b"]) | {"session_id": ["NULL", "7"]})
    assert found["session_id"] == [None, "7"]
    assert "session_id means nothing is known and is left empty: 1 row" in found.said[0]


# --- what the home has ---


def test_a_home_of_integers_takes_13085_point_0_as_one(typed: Typed) -> None:
    first = typed(EVENTS, events(["13085.0", "13086.0"]))
    home = first.reading.facts
    assert home.ids["user_id"].are_integers
    second = typed(EVENTS, events(["13085.0", "guest"]), home)
    assert second["user_id"] == ["13085", "guest"]
    assert "is read as 13085, as in the events of this delivery: 1 row" in second.said[0]
    assert typed(EVENTS, events(["13085.0"]), second.reading.facts)["user_id"] == ["13085"]


def test_items_decide_for_their_events(typed: Typed) -> None:
    versions = typed(ITEMS, {"item_id": ["1.10", "2.0"], "title": ["a", "b"]}).reading.facts
    found = typed(EVENTS, events(["u"]) | {"item_id": ["2.0"]}, versions)
    assert found["item_id"] == ["2.0"]
    numbers = typed(ITEMS, {"item_id": ["1", "2"], "title": ["a", "b"]}).reading.facts
    assert typed(EVENTS, events(["u"]) | {"item_id": ["2.0"]}, numbers)["item_id"] == ["2"]


def test_a_home_that_has_floats_as_ids_refuses_integers(typed: Typed) -> None:
    home = Facts(ids={"user_id": IdForms(whole=5, source="delivery 12ab (old.csv)")})
    (problem,) = typed(EVENTS, events(["13085", "7"]), home).problems
    assert problem.startswith(
        "events: user_id is written like 13085, and like 13085.0 in delivery 12ab (old.csv); take"
    )
    assert typed(EVENTS, events(["13085.0"]), home)["user_id"] == ["13085.0"]


def test_forms_are_counted() -> None:
    assert forms_of(pa.array(["1", "-2", "007", "1.0", "1.10", "x", None])) == IdForms(2, 1, 1, 2)
    assert forms_of(pa.array([], pa.string())) == IdForms()
    assert IdForms(1, source="a") + IdForms(1, 2, 3, 4, "b") == IdForms(2, 2, 3, 4, "a")


@settings(max_examples=max(60, N), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(min_size=1), min_size=1, unique=True))
def test_any_id_survives_or_is_refused(typed: Typed, ids: list[str]) -> None:
    trimmed = pc.utf8_trim_whitespace(pa.array(ids, pa.string())).to_pylist()
    odd = [text for text in trimmed if text in ("", *DEFAULT_NULLS) or text[0] in "[{" or re.search(r"\.0|\+", text)]
    found = typed(USERS, {"user_id": ids})
    assert found.table is not None or odd or len(set(trimmed)) < len(ids)
    if found.table is not None and not odd:
        assert found["user_id"] == trimmed


@settings(max_examples=max(40, N), deadline=None)
@given(st.lists(st.integers(-(2**52), 2**52), min_size=1))
def test_integers_that_went_through_a_float_come_back(numbers: list[int]) -> None:
    tally, words = Tally("events"), Words(DEFAULT_NULLS)
    for values in (pa.array([f"{n}.0" for n in numbers]), pa.array(numbers, pa.float64())):
        column = IdColumn("user_id", "user_id", words, None, tally, is_required=True)
        rows = RowsOf(pa.table({"user_id": values}))
        block = Places(rows, next(iter(rows.blocks())))
        column.look(values, block)
        column.decide()
        assert column.read(values, block).to_pylist() == [str(n) for n in numbers]
