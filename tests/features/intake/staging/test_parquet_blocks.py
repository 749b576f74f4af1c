"""Parquet of any type is read with its values; what is broken is one line."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.intake.staged import LINE, Staged
from features.intake.staging import parquet_blocks

N = int(os.environ.get("N", "40"))
TYPES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.string(), st.text(max_size=5)),
    (pa.large_string(), st.text(max_size=5)),
    (pa.string_view(), st.text(max_size=20)),
    (pa.binary(), st.binary(max_size=5)),
    (pa.large_binary(), st.binary(max_size=5)),
    (pa.binary_view(), st.binary(max_size=20)),
    (pa.binary(16), st.binary(min_size=16, max_size=16)),
    (pa.binary(4), st.binary(min_size=4, max_size=4)),
    (pa.uuid(), st.binary(min_size=16, max_size=16)),
    (pa.bool_(), st.booleans()),
    (pa.int8(), st.integers(-128, 127)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.float16(), st.floats(width=16, allow_nan=False)),
    (pa.float32(), st.floats(width=32, allow_nan=False)),
    (pa.float64(), st.floats(allow_nan=False)),
    (pa.decimal128(10, 2), st.decimals(-1000, 1000, places=2)),
    (pa.decimal256(40, 3), st.decimals(-1000, 1000, places=3)),
    (pa.date32(), st.dates()),
    (pa.date64(), st.dates()),
    (pa.time32("ms"), st.times().map(lambda t: t.replace(microsecond=0))),
    (pa.time64("us"), st.times()),
    (pa.timestamp("s"), st.datetimes().map(lambda t: t.replace(microsecond=0))),
    (pa.timestamp("ms", "UTC"), st.datetimes().map(lambda t: t.replace(microsecond=0))),
    (pa.timestamp("us", "Europe/Berlin"), st.datetimes()),
    (pa.duration("ms"), st.timedeltas().map(lambda t: t - t % timedelta(milliseconds=1))),
    (pa.null(), st.none()),
    (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["a", "b"])),
    (pa.dictionary(pa.int8(), pa.int64()), st.sampled_from([1, 2])),
    (pa.list_(pa.string()), st.lists(st.text(max_size=3), max_size=3)),
    (pa.large_list(pa.float32()), st.lists(st.floats(width=32, allow_nan=False), max_size=3)),
    (pa.list_(pa.float32(), 2), st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=2)),
    (pa.list_view(pa.int32()), st.lists(st.integers(0, 9), max_size=3)),
    (pa.list_(pa.list_(pa.int32())), st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=2)),
    (pa.list_(pa.dictionary(pa.int32(), pa.string())), st.lists(st.sampled_from(["a", "b"]), max_size=2)),
    (
        pa.struct([("a", pa.int64()), ("b", pa.large_string())]),
        st.fixed_dictionaries({"a": st.just(1), "b": st.text()}),
    ),
    (pa.list_(pa.struct([("name", pa.string())])), st.lists(st.fixed_dictionaries({"name": st.text(max_size=3)}))),
    (pa.map_(pa.string(), pa.int64()), st.lists(st.tuples(st.text(max_size=3), st.integers(0, 9)), max_size=2)),
    (pa.list_(pa.binary(16)), st.lists(st.binary(min_size=16, max_size=16), max_size=2)),
    (pa.json_(), st.just("{}")),
]


@pytest.mark.parametrize(("kind", "values"), [pytest.param(*pair, id=str(pair[0])) for pair in TYPES])
@given(data=st.data())
@settings(max_examples=max(N // 20, 2), deadline=None, suppress_health_check=list(HealthCheck))
def test_any_type(tmp_path: Path, staged: Callable[..., Staged], kind: pa.DataType, values: Any, data: Any) -> None:
    extension = isinstance(kind, pa.BaseExtensionType)
    cells = data.draw(st.lists(st.none() | values, min_size=1, max_size=6))
    storage = pa.array(cells, kind.storage_type if extension else kind)
    column = pa.ExtensionArray.from_storage(kind, storage) if extension else storage
    path = tmp_path / data.draw(st.sampled_from(["t.parquet", "t.csv", "noname"]))
    packing = data.draw(st.sampled_from(["snappy", "zstd", "gzip", "none"]))
    pq.write_table(pa.table({"x": column}), path, compression=packing)
    block = pa.concat_tables(staged(path).blocks())
    are_bytes = kind in (pa.binary(), pa.large_binary(), pa.binary_view())
    assert block.column("x").to_pylist() == (storage.to_pylist() if are_bytes else shown(storage.to_pylist()))
    assert block.column(LINE).to_pylist() == list(range(1, len(cells) + 1))
    assert not isinstance(block.schema.field("x").type, (pa.BaseExtensionType, pa.DictionaryType))


def shown(value: Any) -> Any:
    """16 bytes are a UUID."""
    if isinstance(value, bytes) and len(value) == 16:
        return str(UUID(bytes=value))
    return [shown(part) for part in value] if isinstance(value, list) else value


def test_types_are_kept(tmp_path: Path, staged: Callable[..., Staged]) -> None:
    kinds = [pa.int8(), pa.float64(), pa.timestamp("ms", "Asia/Tokyo"), pa.date32(), pa.list_(pa.float32(), 2)]
    table = pa.table({str(kind): pa.nulls(2, kind) for kind in kinds})
    pq.write_table(table, tmp_path / "t.parquet")
    (block,) = staged(tmp_path / "t.parquet").blocks()
    assert block.schema.types[: len(kinds)] == kinds
    assert staged(tmp_path / "t.parquet").unit == ("row",)


def test_rows_are_counted_over_batches_and_groups(
    tmp_path: Path, staged: Callable[..., Staged], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_blocks, "ROWS", 256)
    pq.write_table(pa.table({"x": range(1000)}), tmp_path / "t.parquet", row_group_size=400)
    blocks = list(staged(tmp_path / "t.parquet").blocks())
    assert max(block.num_rows for block in blocks) <= 256
    whole = pa.concat_tables(blocks)
    assert whole.column("x").to_pylist() == list(range(1000))
    assert whole.column(LINE).to_pylist() == list(range(1, 1001))


def test_wide_rows_make_small_blocks(
    tmp_path: Path, staged: Callable[..., Staged], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_blocks, "_BLOCK_BYTES", 1 << 20)
    vectors = pa.FixedSizeListArray.from_arrays(pa.nulls(3000 * 1000, pa.float32()).fill_null(0.5), 1000)
    pq.write_table(pa.table({"emb_x": vectors}), tmp_path / "t.parquet", use_dictionary=False)
    sizes = [block.nbytes for block in staged(tmp_path / "t.parquet").blocks()]
    assert 1 << 19 < max(sizes) < 1 << 21


def test_packed_parquet(
    tmp_path: Path, read: Callable[..., Any], write: Callable[..., Path], refusal: Callable[..., str]
) -> None:
    pq.write_table(pa.table({"x": ["a"]}), tmp_path / "t.parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    for name in ("t.parquet.gz", "t.parquet.zip", "x.zst"):
        assert read(write(name, data)) == [{"x": "a", LINE: 1}]
    assert "no readable parquet" in refusal(write("half.parquet", data[:-20]))
    assert "no readable parquet" in refusal(write("only.parquet", b"PAR1"))


def test_text_that_is_no_text(tmp_path: Path, refusal: Callable[..., str]) -> None:
    bad = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff"))
    pq.write_table(pa.table({"title": bad}), tmp_path / "t.parquet")
    assert refusal(tmp_path / "t.parquet").startswith("row 2: column 'title' cannot be read")


def test_columns_and_rows_that_are_missing(tmp_path: Path, refusal: Callable[..., str]) -> None:
    pq.write_table(pa.table({"x": pa.nulls(0, pa.string())}), tmp_path / "t.parquet")
    assert refusal(tmp_path / "t.parquet") == "columns ['x'] but no row; give a file with at least one row"
    pq.write_table(pa.table([["a"], ["b"]], names=["x", "x"]), tmp_path / "t.parquet")
    assert refusal(tmp_path / "t.parquet") == "column 'x' is there twice; rename one of them"
