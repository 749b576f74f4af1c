import os
from datetime import datetime
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.intake.options import DEFAULT_NULLS
from features.intake.words import Words, as_text, is_listed, is_numeric, is_textual, unwrap, whole

WORDS = Words(DEFAULT_NULLS)

N = int(os.environ.get("N", "0"))  # more examples than usual


def test_spaces_and_null_words_mean_nothing() -> None:
    cells = [" x ", "", "  ", "NULL", "nan", "None", "\\N", "\u00a0N/A", "null and void", None]
    assert WORDS.clean(pa.array(cells)).to_pylist() == ["x", *[None] * 7, "null and void", None]
    assert Words([]).clean(pa.array(["NULL", " "])).to_pylist() == ["NULL", None]
    assert "" in Words([])
    assert "NULL" not in Words([])


def test_nulled_counts_words_and_not_empty_cells() -> None:
    assert WORDS.nulled(pa.array([" NULL", "", " ", None, "x"])).tolist() == [True, False, False, False, False]
    assert WORDS.nulled(pa.array([1, None])).tolist() == [False, False]


def test_any_type_is_text() -> None:
    columns = {
        "lists": (pa.array([["a", None, "b"], [], None], pa.large_list(pa.string())), ["a b", "", None]),
        "objects": (
            pa.array([{"b": 1, "a": datetime(2020, 1, 1)}, None]),
            ['{"a": "2020-01-01 00:00:00", "b": 1}', None],
        ),
        "times": (pa.array([datetime(2020, 1, 2, 3), None]), ["2020-01-02", None]),
        "bytes": (pa.array([b"abc", UUID(int=5).bytes, b"\xff", None]), ["abc", str(UUID(int=5)), "ff", None]),
        "truths": (pa.array([True, None]), ["true", None]),
        "numbers": (pa.array([1, 2]), ["1", "2"]),
        "floats": (pa.array([1.5, None]), ["1.5", None]),
        "spans": (pa.array([1, None], pa.duration("s")), ["1", None]),
        "wide": (pa.array(["a"], pa.large_string()), ["a"]),
    }
    for name, (values, text) in columns.items():
        found = as_text(values)
        assert found.type == pa.string(), name
        assert found.to_pylist() == text, name


def test_lists_and_wrapped_ids_in_text() -> None:
    cells = [
        '["two", null, "parts"]',
        '["broken',
        "[1, 2]",
        '{"$oid": "50"}',
        '{"$date": {"$numberLong": "7"}}',
        '{"$x": 1}',
    ]
    read = ["two parts", '["broken', "[1, 2]", "50", "7", "1"]
    assert WORDS.read(pa.array(cells)).to_pylist() == read
    assert unwrap(pa.array(['{"$oid": {"a": 1}}', '{"$oid"', None])).to_pylist() == [
        '{"$oid": {"a": 1}}',
        '{"$oid"',
        None,
    ]


@settings(max_examples=max(60, N), deadline=None)
@given(st.lists(st.text()))
def test_any_other_text_survives(cells: list[str]) -> None:
    trimmed = pc.utf8_trim_whitespace(pa.array(cells, pa.string())).to_pylist()
    kept = [cell for cell in trimmed if cell not in ("", *DEFAULT_NULLS) and not cell.startswith(('["', '{"$'))]
    assert WORDS.read(pa.array(kept, pa.string())).to_pylist() == kept


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        (pa.string(), (True, False, False)),
        (pa.large_string(), (True, False, False)),
        (pa.list_(pa.int8()), (False, True, False)),
        (pa.list_(pa.int8(), 2), (False, True, False)),
        (pa.decimal128(3, 1), (False, False, True)),
        (pa.float32(), (False, False, True)),
        (pa.bool_(), (False, False, False)),
    ],
)
def test_kinds_of_types(kind: pa.DataType, answers: tuple[bool, bool, bool]) -> None:
    assert (is_textual(kind), is_listed(kind), is_numeric(kind)) == answers


def test_a_column_is_one_array() -> None:
    assert whole(pa.chunked_array([["a"], ["b"]])).to_pylist() == ["a", "b"]
    assert whole(pa.array([1])).to_pylist() == [1]
