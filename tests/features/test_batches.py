"""Events are cut where a UTC day ends, and nothing is cut from nothing."""

from datetime import UTC, date, datetime

import pyarrow as pa

from features.batches import cut_days
from plumline.schema import TIMESTAMP


def cut(times: list[datetime]) -> list[tuple[date, int]]:
    return [(day, part.num_rows) for day, part in cut_days(pa.table({"timestamp": pa.array(times, TIMESTAMP)}))]


def test_days_end_at_midnight_utc() -> None:
    times = [datetime(2024, 1, 1, 0, tzinfo=UTC), datetime(2024, 1, 1, 23, 59, 59, 999_999, tzinfo=UTC)]
    times += [datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 9, tzinfo=UTC)]
    assert cut(times) == [(date(2024, 1, 1), 2), (date(2024, 1, 2), 1), (date(2024, 1, 9), 1)]


def test_no_events_have_no_days() -> None:
    assert cut([]) == []
