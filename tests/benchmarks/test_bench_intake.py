"""What staging is measured on: the same rows in every format, read by all alike."""

from pathlib import Path

import pytest

from benchmarks.bench_intake import FORMATS, make_events, read_arrow, read_duckdb, read_ours, write_file


@pytest.mark.parametrize("name", FORMATS)
def test_all_read_the_same_rows(tmp_path: Path, name: str) -> None:
    write_file(tmp_path, name, 300)
    path = tmp_path / FORMATS[name]
    figures = [read(path) for read in (read_ours, read_arrow, read_duckdb)]
    assert [found["num_rows"] for found in figures] == [300] * 3
    assert all(found["core_s"] > 0 for found in figures)


def test_events_are_the_same_each_time() -> None:
    first, again = (list(make_events(1000)) for _ in range(2))
    assert first == again
    assert sum(table.num_rows for table in first) == 1000
