"""The first rows of a file, and how it is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.intake.staged import LINE
from features.intake.staging.peek import peek
from features.intake.staging.streams import Stream
from plumline.errors import InputError


def test_cells(write: Callable[..., Path], options: Callable[..., Any]) -> None:
    path = write("t.csv.gz", "a;b\n" + "1;é\n" * 20)
    seen = peek(str(path), options(), rows=2)
    assert (seen.name, seen.kind, seen.compression, seen.encoding) == (str(path), "csv", "gzip", "utf-8")
    assert (seen.separator, seen.has_header, seen.columns, seen.num_files) == (";", True, ("a", "b"), 1)
    assert seen.rows.to_pylist() == [{"a": "1", "b": "é", LINE: 2}, {"a": "1", "b": "é", LINE: 3}]
    assert seen.notes == (f"{path}: the separator is ';' (guessed; --separator says otherwise)",)
    empty = peek(str(write("t.csv", "a,b\n")), options())
    assert (empty.columns, empty.rows.num_rows) == (("a", "b"), 0)


def test_json_and_parquet(write: Callable[..., Path], options: Callable[..., Any], tmp_path: Path) -> None:
    seen = peek(str(write("t.json", '{"data": [{"a": 1}, {"a": 2}]}')), options(), rows=1)
    assert (seen.kind, seen.separator, seen.has_header) == ("json", None, None)
    assert seen.rows.to_pylist() == [{"a": "1", LINE: 1}]
    assert "its list 'data'" in seen.notes[0]
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "p.parquet")
    seen = peek(str(tmp_path / "p.parquet"), options(), rows=1)
    assert (seen.kind, seen.encoding, seen.rows.schema.field("a").type) == ("parquet", None, pa.int64())
    with pytest.raises(InputError, match="no row"):
        peek(str(write("t.json", "[]")), options())


def test_the_first_file_of_a_folder(write: Callable[..., Path], options: Callable[..., Any], tmp_path: Path) -> None:
    write("log/day=1/a.csv", "a\nx\n")
    write("log/day=2/a.csv", "a\ny\n")
    seen = peek(f"{tmp_path}/log", options())
    assert (seen.num_files, seen.columns) == (2, ("a", "day"))
    assert seen.rows.to_pylist() == [{"a": "x", LINE: 2, "day": "1"}]


def test_only_the_head_is_read(
    write: Callable[..., Path], options: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("t.csv", "a,b\n" + "1,x\n" * 2_000_000)
    sizes: list[int] = []
    exactly = Stream._exactly
    monkeypatch.setattr(Stream, "_exactly", lambda self, size: sizes.append(size) or exactly(self, size))
    assert peek(str(path), options()).rows.num_rows == 5
    assert sum(sizes) < 4 << 20
