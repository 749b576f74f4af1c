"""What files of several types have in common, and any type as text."""

import datetime as dt

import pyarrow as pa
import pytest

from features.intake.staging.arrow_types import as_text, as_type, common_type


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([pa.int32(), pa.int64()], pa.int64()),
        ([pa.float32(), pa.float64()], pa.float64()),
        ([pa.null(), pa.date32(), pa.null()], pa.date32()),
        ([pa.null()], pa.null()),
        ([pa.string(), pa.int64()], pa.string()),
        ([pa.int64(), pa.float64()], pa.string()),  # 2**53 + 1 is no float
        ([pa.int64(), pa.uint64()], pa.string()),
        ([pa.string(), pa.binary()], pa.string()),
        ([pa.timestamp("us"), pa.timestamp("us", "UTC")], pa.string()),
        ([pa.timestamp("ms"), pa.timestamp("s")], pa.string()),
        ([pa.list_(pa.float32()), pa.list_(pa.float64())], pa.list_(pa.float64())),
        ([pa.list_(pa.float32(), 3), pa.list_(pa.float32())], pa.list_(pa.float32())),
        ([pa.list_(pa.string()), pa.list_(pa.null())], pa.list_(pa.string())),
        ([pa.list_(pa.string()), pa.list_(pa.int64())], pa.string()),
    ],
)
def test_the_common_type_changes_no_value(kinds: list[pa.DataType], expected: pa.DataType) -> None:
    assert common_type(kinds) == common_type(kinds[::-1]) == expected


@pytest.mark.parametrize(
    ("values", "kind", "texts"),
    [
        ([13085.0, 1.5, None], pa.float64(), ["13085.0", "1.5", None]),
        ([0.1], pa.float32(), ["0.1"]),
        ([True, False], pa.bool_(), ["true", "false"]),
        ([b"ab", b"\xff"], pa.binary(), ["ab", "ff"]),
        ([["a", None], []], pa.list_(pa.string()), ['["a",null]', "[]"]),
        ([{"a": 1.5}], pa.struct([("a", pa.float64())]), ['{"a":1.5}']),
        ([dt.date(2024, 1, 2)], pa.date32(), ["2024-01-02"]),
        ([dt.datetime(2024, 1, 2, 3)], pa.timestamp("s"), ["2024-01-02 03:00:00"]),
        ([dt.datetime(2024, 1, 2, 3)], pa.timestamp("ms", "UTC"), ["2024-01-02 03:00:00.000Z"]),
        ([2**63 - 1], pa.int64(), ["9223372036854775807"]),
    ],
)
def test_any_type_as_text(values: list[object], kind: pa.DataType, texts: list[str]) -> None:
    assert as_text(pa.chunked_array([pa.array(values, kind)])).to_pylist() == texts


def test_values_in_the_common_type() -> None:
    vectors = pa.chunked_array([pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))])
    assert as_type(vectors, pa.list_(pa.float64())).to_pylist() == [[1.0, 2.0], None]
    assert as_type(pa.chunked_array([pa.nulls(2)]), pa.string()).to_pylist() == [None, None]
