"""Histories as flat arrays."""

import numpy as np
import pyarrow as pa
import pytest

from models.memory.events import DAY_MS, read_events, recency, weigh

HISTORIES = pa.table(
    {
        "item_ids": pa.array([["b", "zz", "a"], [], ["a"]], pa.list_(pa.string())),
        "timestamps": pa.array([[0, 5, DAY_MS], [], [3 * DAY_MS]], pa.list_(pa.int64())),
    }
)


def test_events_lie_user_after_user_and_unknown_items_are_left_out() -> None:
    events = read_events(HISTORIES, ["a", "b"])
    assert (events.items.tolist(), events.users.tolist()) == ([1, 0, 0], [0, 0, 2])
    assert events.timestamps.tolist() == [0, DAY_MS, 3 * DAY_MS]
    assert read_events(HISTORIES, ["a", "b", "zz"]).items.tolist() == [1, 2, 0, 0]
    assert {array.dtype for array in vars(events).values()} == {np.dtype(np.int64)}


def test_ages_run_from_the_newest_event_or_from_the_time_given() -> None:
    events = read_events(HISTORIES, ["a", "b"])
    assert weigh(events, 2, None).tolist() == [2.0, 1.0]
    assert weigh(events, 3, 1.0).tolist() == pytest.approx([1 + 2**-2, 2**-3, 0])
    assert weigh(events, 2, 1.0, 4 * DAY_MS).tolist() == pytest.approx([2**-1 + 2**-3, 2**-4])
    assert recency(events, 2.0, 4 * DAY_MS).tolist() == pytest.approx([2**-2, 2**-1.5, 2**-0.5])
