import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.intake.lists import flatten, is_bracketed, parse_list
from features.intake.options import DEFAULT_NULLS
from features.intake.words import Words
from plumline.schema import ITEMS

Typed = Callable[..., Any]

N = int(os.environ.get("N", "0"))  # more examples than usual


def topics(typed: Typed, cells: Any, **options: Any) -> Any:
    return typed(ITEMS, {"item_id": [f"i{n}" for n in range(len(cells))], "topics": cells}, **options)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('["a", null, 7, 1.50, true]', ["a", None, "7", "1.50", True]),
        ("['a', 'b']", ["a", "b"]),
        ("['it\\'s', \"b\"]", ["it's", "b"]),
        ("['Action' 'Comedy']", ["Action", "Comedy"]),
        ("['Action'\n 'Comedy']", ["Action", "Comedy"]),
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ("array(['a'], dtype='<U4')", ["a"]),
        ("[1 2 3]", ["1", "2", "3"]),
        ("[0.1 -2e3]", ["0.1", "-2e3"]),
        ('{"a","b"}', ["a", "b"]),
        ("{a,b c}", ["a", "b c"]),
        ("{'a', 'b'}", ["a", "b"]),
        ("[Action, Children's]", ["Action", "Children's"]),
        ("[]", []),
        ("{}", []),
        ("[None, 'a']", [None, "a"]),
        ("[{'id': 16}]", [{"id": 16}]),
        ('[["a", "b"], ["a"]]', [["a", "b"], ["a"]]),
        ("[NaN]", [None]),
        ('["a"', None),
        ("[1, 'b'", None),
        ("a|b", None),
        ('{"a": 1}', None),
        ("['a', 'b\"]", None),
        ("x]", None),
        ("", None),
        ("[" * 100_000 + "]", None),
    ],
)
def test_lists_that_went_through_text(text: str, parts: list[Any] | None) -> None:
    assert parse_list(text) == parts


def test_what_opens_like_a_list() -> None:
    assert [text for text in ("[a", "{a", "array([1])", "(a)", "a[", "") if is_bracketed(text)] == [
        "[a",
        "{a",
        "array([1])",
    ]


def test_flatten_unfolds_and_leaves_nothing_out_but_nothing() -> None:
    words = Words(DEFAULT_NULLS)
    assert flatten(
        ["a ", ["b", ("a", {"c"})], None, "NULL", " ", 7, True, float("nan"), "(no genres listed)"], words
    ) == [
        "a",
        "b",
        "c",
        "7",
        "true",
    ]
    assert flatten([["a"], [{"x": 1}]], words) is None


@pytest.mark.parametrize(
    ("cells", "read"),
    [
        (["a|b, c", "d"], [["a", "b, c"], ["d"]]),
        (["a;b", "c, d"], [["a", "b"], ["c, d"]]),
        (["a, b", "b"], [["a", "b"], ["b"]]),
        (["Home, Garden & Tools", "Tools"], [["Home, Garden & Tools"], ["Tools"]]),
        (['["Home, Garden"]', "Toys, Games"], [["Home, Garden"], ["Toys, Games"]]),
        ([f"a{n}, b{n}" for n in range(6)], [[f"a{n}, b{n}"] for n in range(6)]),
        ([f"a{n}, b" for n in range(6)], [[f"a{n}", "b"] for n in range(6)]),
        (["Tom &amp; Jerry", "x"], [["Tom &amp; Jerry"], ["x"]]),
        (["(no genres listed)", "None", "a||b", None], [None, None, ["a", "b"], None]),
        ([["a ", None, " ", "a"], []], [["a"], None]),
        ([[1, 2], None], [["1", "2"], None]),
        ([[["a"], ["b", "a"]], None], [["a", "b"], None]),
        ([7, 8], [["7"], ["8"]]),
        (pa.array([["a"], None], pa.large_list(pa.string())), [["a"], None]),
    ],
)
def test_topics(typed: Typed, cells: Any, read: list[list[str] | None]) -> None:
    assert topics(typed, cells)["topics"] == read


def test_what_splits_a_column_is_said(typed: Typed) -> None:
    assert topics(typed, ["a|b"]).said == ["items: topics is split at '|' (column topics)"]
    assert topics(typed, ["Home, Garden & Tools"]).said == [
        "items: topics is not split at commas (column topics); JSON lists leave no doubt"
    ]
    assert topics(typed, ["a"]).said == []


def test_objects_and_broken_lists_are_left_empty_and_counted(typed: Typed) -> None:
    cells = ["[{'id': 16, 'name': 'Animation'}]", '["a"', '{"a": 1}', '["b"]', "NULL"]
    found = topics(typed, cells)
    assert found["topics"] == [None, None, None, ["b"], None]
    assert found.said == [
        "items: topics holds objects instead of texts and is left empty: 2 rows, first log.csv: line 2: "
        "\"[{'id': 16, 'name': 'Animation'}]\"; read a field of them with --map topics=topics.name",
        "items: topics opens like a list but is none and is left empty: 1 row, first log.csv: line 3: '[\"a\"'",
        "items: topics means nothing is known and is left empty: 1 row, first log.csv: line 6: 'NULL'",
    ]
    structs = topics(typed, [[{"name": "a"}], None])
    assert structs["topics"] == [None, None]
    assert "holds objects" in structs.said[0]
    assert topics(typed, pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())))["topics"] == [None]


def test_topics_of_several_columns_say_where_they_are_from(typed: Typed) -> None:
    columns = {"item_id": ["1", "2"], "tags": [["tag:7", None], None], "music": ["12|13", None]}
    found = typed(ITEMS, columns, map={"topics": "tags+music"})
    assert found["topics"] == [["tags:tag:7", "music:12", "music:13"], None]


@settings(max_examples=max(60, N), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.text(min_size=1)), min_size=1),
    st.sampled_from([json.dumps, repr, lambda row: str(np.array(row, dtype=object))]),
)
def test_any_list_survives_its_way_through_text(typed: Typed, rows: list[list[str]], write: Callable[..., str]) -> None:
    words = Words(DEFAULT_NULLS)
    found = topics(typed, [write(row) for row in rows])["topics"]
    if write is not json.dumps:  # line breaks and backslashes of NumPy's text are not always the string's own
        found = [f for f, row in zip(found, rows, strict=True) if all(text.isprintable() for text in row)]
        rows = [row for row in rows if all(text.isprintable() for text in row)]
    assert found == [flatten(row, words) or None for row in rows]


@settings(max_examples=max(100, N), deadline=None)
@given(st.text("[]{}\"', ab1|\\\n", max_size=12))
def test_no_text_is_too_odd(text: str) -> None:
    parts = parse_list(text)
    assert parts is None or text[0] in "[{a"
