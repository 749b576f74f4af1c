from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.intake.facts import Facts, Known
from plumline.schema import ITEMS

Typed = Callable[..., Any]


def vectors(typed: Typed, cells: Any, facts: Facts | None = None) -> Any:
    columns = {"item_id": [f"i{n}" for n in range(len(cells))], "title": ["t"] * len(cells), "emb_x": cells}
    return typed(ITEMS, columns, facts)


@pytest.mark.parametrize(
    "cells",
    [
        [[1.0, 2.0], None, [3.0, 4.0]],
        ["[1.0, 2.0]", None, "[3,4]"],
        ["[1. 2.]", "NULL", str(np.array([3.0, 4.0]))],
        ["array([1., 2.], dtype=float32)", "", "[3, 4]"],
        pa.array([[1, 2], None, [3, 4]], pa.large_list(pa.int64())),
        pa.array([[1, 2], None, [3, 4]], pa.list_(pa.float64(), 2)),
        pa.array([[1, 2], None, [3, 4]], pa.list_(pa.float16())),
    ],
)
def test_vectors_become_lists_of_float32_of_one_length(typed: Typed, cells: Any) -> None:
    found = vectors(typed, cells)
    assert found["emb_x"] == [[1.0, 2.0], None, [3.0, 4.0]]
    assert found.table.schema.field("emb_x").type == pa.list_(pa.float32(), 2)
    assert found.reading.seen.lengths["emb_x"].value == "2"


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([[], []], "log.csv: line 2: emb_x '[]' is a list without numbers (2 such rows); mend the file, or leave the"),
        ([[1.0, 2.0], [1.0], [3.0, 4.0]], "log.csv: line 3: emb_x has 1 numbers, most 2; all vectors"),
        ([[1.0], [float("nan")]], "log.csv: line 3: emb_x '[nan]' holds a number that is missing or not finite"),
        ([[1.0], [1e39]], "log.csv: line 3: emb_x '[1e+39]' holds a number that is missing"),
        ([[1.0, 2.0], [1.0, None]], "log.csv: line 3: emb_x '[1.0, None]' holds a number that is missing"),
        (["[1]", "x"], "log.csv: line 3: emb_x 'x' is no list of numbers"),
        (["[1]", '["a"]'], "log.csv: line 3: emb_x '[\"a\"]' is no list of numbers"),
        (["[1]", "7"], "log.csv: line 3: emb_x '7' is no list of numbers"),
        ([1.5, None], "log.csv: line 2: emb_x '1.5' is no list of numbers; mend"),
        ([["a"], None], "log.csv: line 2: emb_x \"['a']\" is no list of numbers; mend"),
    ],
)
def test_what_is_no_vector_is_a_problem_at_the_door(typed: Typed, cells: Any, said: str) -> None:
    assert vectors(typed, cells).problems[0].startswith(said)


def test_a_column_without_vectors_is_left_out(typed: Typed) -> None:
    found = vectors(typed, pa.nulls(2))
    assert "emb_x" not in found.table.column_names
    assert found.said == ["items: emb_x is left out, no row has a vector"]


def test_the_home_has_a_length(typed: Typed) -> None:
    home = Facts(lengths={"emb_x": Known("3", "delivery 12ab (a.parquet)")})
    (problem,) = vectors(typed, [[1.0, 2.0], [1.0, 2.0, 3.0]], home).problems
    assert problem.startswith("log.csv: line 2: emb_x has 2 numbers, in delivery 12ab (a.parquet) 3;")
    assert vectors(typed, [[1.0, 2.0, 3.0]], home)["emb_x"] == [[1.0, 2.0, 3.0]]
