"""Days out of blocks, in memory and through files: the same rows, each once, in the order in which they came."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.day_parts import DayParts
from plumline.schema import EVENTS, Contract, conform

LENIENT = Contract(EVENTS.name, EVENTS.schema, ())
FIRST = datetime(2001, 1, 1, 23, 30, tzinfo=UTC)


def block(hours: list[int], first_id: int) -> pa.Table:
    return conform(
        pa.table(
            {
                "event_id": [f"e{first_id + n}" for n in range(len(hours))],
                "timestamp": [FIRST + timedelta(hours=hour) for hour in hours],
            }
        ),
        LENIENT,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-20_000, 20_000), max_size=7), max_size=9),
    st.sampled_from([0, 5, 20, 1000]),
)
def test_every_row_comes_back_on_its_day(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[list[int]], most: int
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    wanted: dict[date, list[str]] = {}
    first_id = 0
    with DayParts(folder, rows_in_memory=most) as parts:
        for hours in blocks:
            for number, hour in enumerate(hours):
                wanted.setdefault((FIRST + timedelta(hours=hour)).date(), []).append(f"e{first_id + number}")
            parts.add(block(hours, first_id))
            first_id += len(hours)
        found = [(day, rows.column("event_id").to_pylist()) for day, rows in parts]
    assert parts.num_rows == first_id
    assert len(found) == len(wanted)
    assert dict(found) == wanted
    assert list(folder.iterdir()) == []


def test_what_fits_touches_no_file_and_what_does_not_is_on_disk(tmp_path: Path) -> None:
    with DayParts(tmp_path / "a", rows_in_memory=4) as parts:
        parts.add(block([0, 24, 48, 0], 0))
        assert not (tmp_path / "a").exists()
        parts.add(block([0], 4))
        assert len(list((tmp_path / "a").iterdir())) == 3
    with pytest.raises(ZeroDivisionError), DayParts(tmp_path / "b", rows_in_memory=0) as parts:
        parts.add(block([0], 0))
        raise ZeroDivisionError
    (written,) = (tmp_path / "b").iterdir()
    assert pq.ParquetFile(written).metadata.num_rows == 1  # closed, and so readable
