from collections.abc import Callable
from datetime import date
from typing import Any

import pyarrow as pa
import pytest

from features.intake.facts import Facts, Known
from plumline.schema import ITEMS

Typed = Callable[..., Any]
HOME = "delivery 12ab (a.csv)"


def tags(typed: Typed, cells: Any, home: str | None = None, **options: Any) -> Any:
    columns = {"item_id": [f"i{n}" for n in range(len(cells))], "title": ["t"] * len(cells), "tag_x": cells}
    return typed(ITEMS, columns, Facts(tags={"tag_x": Known(home, HOME)}) if home else None, **options)


@pytest.mark.parametrize(
    ("cells", "kind", "read"),
    [
        ([" DE ", "", "NULL"], pa.string(), ["DE", None, None]),
        (["12", "7"], pa.string(), ["12", "7"]),
        (["true", "false"], pa.string(), ["true", "false"]),
        (['["S", "M"]', "['L']", None], pa.list_(pa.string()), [["S", "M"], ["L"], None]),
        (['["S", "M"]', "L"], pa.string(), ["S M", "L"]),
        (pa.array([True, None]), pa.bool_(), [True, None]),
        (pa.array([3, None]), pa.float64(), [3.0, None]),
        (pa.array([0.5, float("inf")]), pa.float64(), [0.5, None]),
        (pa.array([["a", None], []], pa.large_list(pa.string())), pa.list_(pa.string()), [["a"], []]),
        (pa.array([[1.0], None]), pa.list_(pa.string()), [["1.0"], None]),
        (pa.array([[], None], pa.list_(pa.null())), pa.list_(pa.string()), [[], None]),
        (pa.array([date(2024, 1, 1)]), pa.string(), ["2024-01-01"]),
    ],
)
def test_tags_keep_their_kind(typed: Typed, cells: Any, kind: pa.DataType, read: list[Any]) -> None:
    found = tags(typed, cells)
    assert found["tag_x"] == read
    assert found.table.schema.field("tag_x").type == kind


@pytest.mark.parametrize("file", ["a.jsonl", "x.zip/a.ndjson", "a.json.gz"])
def test_numbers_and_booleans_of_json_are_some(typed: Typed, file: str) -> None:
    assert tags(typed, ["12", None, "1.5e1"], file=file)["tag_x"] == [12.0, None, 15.0]
    assert tags(typed, ["true", "false"], file=file)["tag_x"] == [True, False]
    assert tags(typed, ["012", "7"], file=file)["tag_x"] == ["012", "7"]
    assert tags(typed, ["true", "7"], file=file)["tag_x"] == ["true", "7"]


@pytest.mark.parametrize(
    ("home", "cells", "read"),
    [
        ("text", ["12", "7"], ["12", "7"]),
        ("numbers", ["12", None], [12.0, None]),
        ("booleans", ["True", "false"], [True, False]),
        ("lists of text", ["['a']", None], [["a"], None]),
        ("text", pa.nulls(2), [None, None]),
        ("numbers", pa.nulls(1), [None]),
    ],
)
def test_the_home_has_a_type(typed: Typed, home: str, cells: Any, read: list[Any]) -> None:
    assert tags(typed, cells, home, file="a.jsonl")["tag_x"] == read
    assert tags(typed, cells, home).reading.seen.tags["tag_x"].value == home


@pytest.mark.parametrize(
    ("home", "cells", "said"),
    [
        (
            "numbers",
            ["12", "XL", "S"],
            "log.csv: line 3: tag_x 'XL' is not one of the numbers that tag_x has in "
            f"{HOME} (2 such rows); deliver numbers, or give",
        ),
        ("text", pa.array([None, 12]), f"log.csv: line 3: tag_x '12' is not one of the text that tag_x has in {HOME};"),
        ("lists of text", ["a"], "log.csv: line 2: tag_x 'a' is not one of the lists of text"),
        ("booleans", pa.array([1.0]), "log.csv: line 2: tag_x '1.0' is not one of the booleans"),
    ],
)
def test_another_type_than_the_home_s_is_a_problem(typed: Typed, home: str, cells: Any, said: str) -> None:
    (problem,) = tags(typed, cells, home).problems
    assert problem.startswith(said)


def test_a_tag_without_a_value_is_left_out(typed: Typed) -> None:
    for cells in (pa.nulls(2), ["", "NULL"]):
        found = tags(typed, cells)
        assert "tag_x" not in found.table.column_names
        assert found.said == ["items: tag_x is left out, no row has a value"]


def test_what_no_tag_can_be_is_left_empty(typed: Typed) -> None:
    found = tags(typed, [{"a": 1}, None])
    assert "tag_x" not in found.table.column_names
    assert "which is no tag (text, lists of text, numbers, booleans), and is left empty: 1 row" in found.said[0]
    assert tags(typed, [{"a": 1}], "text")["tag_x"] == [None]
