"""Days out of blocks, in memory and through files: the same rows in the same order, and the hashes of one big table."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.batches import cut_days
from features.day_parts import DayHashes, DayParts, content_hash
from plumline.schema import EVENTS, Contract, conform

FIRST = datetime(2001, 1, 1, 23, 30, tzinfo=UTC)


def block(hours: list[int], first_id: int) -> pa.Table:
    ids = [f"e{first_id + n}" for n in range(len(hours))]
    times = [FIRST + timedelta(hours=hour) for hour in hours]
    return conform(pa.table({"event_id": ids, "timestamp": times}), Contract(EVENTS.name, EVENTS.schema, ()))


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.integers(-20_000, 20_000), max_size=7), max_size=9), st.sampled_from([0, 500, 2_000, 100_000])
)
def test_every_row_comes_back_on_its_day(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[list[int]], most: int
) -> None:
    wanted: dict[date, list[str]] = {}
    first_id = 0
    with DayParts(tmp_path_factory.mktemp("parts"), run_bytes=most) as parts:
        for hours in blocks:
            for number, hour in enumerate(hours):
                wanted.setdefault((FIRST + timedelta(hours=hour)).date(), []).append(f"e{first_id + number}")
            parts.add(block(hours, first_id))
            first_id += len(hours)
        assert parts.oldest() == min(wanted, default=None)
        found = [(day, rows.column("event_id").to_pylist()) for day, rows in parts.newest_first()]
    assert parts.num_rows == first_id
    assert [day for day, _ in found] == sorted(wanted, reverse=True)
    assert dict(found) == wanted


def test_what_fits_touches_no_file_and_what_does_not_is_on_disk(tmp_path: Path) -> None:
    with DayParts(tmp_path / "a") as parts:
        parts.add(block([0, 24, 48, 0], 0))
        assert not (tmp_path / "a").exists()
    with DayParts(tmp_path / "b", run_bytes=0) as parts:
        parts.add(block([0, 24], 0))
        parts.add(block([0], 2))
        assert len(list((tmp_path / "b").iterdir())) == 2
        assert [rows.num_rows for _, rows in parts.newest_first()] == [1, 2]


def make_events(seed: int, num_rows: int, num_days: int, share_empty: float) -> pa.Table:
    """Sorted events whose columns are full, empty, or in between, as one piece."""
    dice = np.random.default_rng(seed)

    def sparse(values: list) -> list:
        return [
            None if empty < share_empty else value for value, empty in zip(values, dice.random(num_rows), strict=True)
        ]

    seconds = np.sort(dice.integers(0, 86_400 * num_days, num_rows))
    numbers = [f"{number}" * int(times) for number, times in dice.integers(1, 9, (num_rows, 2))]
    table = {
        "event_id": [f"e{n}" for n in range(num_rows)],
        "user_id": [f"u{number}" for number in numbers],
        "item_id": numbers,
        "timestamp": [FIRST + timedelta(seconds=int(second)) for second in seconds],
        "surface": pa.array(sparse(["wéb"] * num_rows), pa.string()),
        "session_id": pa.array(sparse(numbers), pa.string()),
        "rating": pa.array(sparse(list(dice.random(num_rows))), pa.float64()),
    }
    return conform(pa.table(table), EVENTS).combine_chunks().filter(pa.repeat(True, num_rows))


@settings(max_examples=25)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 30, 511, 512, 513, 600, 900, 1500]),
    st.sampled_from([1, 2, 3, 20]),
    st.sampled_from([0.0, 0.02, 0.5, 0.98, 0.999, 1.0]),
)
def test_a_day_is_called_as_the_slice_of_one_table_was(
    seed: int, num_rows: int, num_days: int, share_empty: float
) -> None:
    whole = make_events(seed, num_rows, num_days, share_empty)
    wanted = {day: content_hash(rows) for day, rows in cut_days(whole)}
    hashes = DayHashes()
    days = list(cut_days(whole))
    alone = {day: pa.concat_tables([rows.slice(0, 1), rows]).combine_chunks().slice(1) for day, rows in days}
    found = {day: hashes.add(alone[day], oldest=day == days[0][0]) for day, _ in reversed(days)}
    assert found == wanted


def test_what_lies_behind_a_day_tells_in_its_hash() -> None:
    """Else there would be nothing to reproduce, and `DayHashes` could go."""
    whole = make_events(1, 30, 3, 0.0)
    (_, first), *_ = cut_days(whole)
    copy = pa.Table.from_batches([pc.take(batch, pa.array(range(len(batch)))) for batch in first.to_batches()])
    assert copy.equals(first)
    assert content_hash(copy) != content_hash(first)
