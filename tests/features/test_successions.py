"""The count of successions on a table of steps, by hand."""

import ibis
import pyarrow as pa
import pytest

from features.successions import UNIT, count_successions

STEPS = pa.table(
    {
        "user_id": ["u", "v", "u", "u", "u", "v"],
        "item_id": ["b", "a", "a", "a", "c", "b"],
        "micros": [1, 1, 3, 2, 4, 2],
        "event_id": ["e1", "f1", "e3", "e2", "e4", "f2"],
        "weight": [UNIT, UNIT, UNIT // 2, UNIT // 4, UNIT, UNIT],
    }
)  # u: b a a c, v: a b


def counted(**options: object) -> list[tuple]:
    found = count_successions(ibis.memtable(STEPS), order_by=("micros", "event_id"), **options)
    return sorted(tuple(row.values()) for row in found.to_pyarrow().to_pylist())


def test_pairs_within_the_window_are_counted() -> None:
    assert counted(window=1) == [("a", "b", 1), ("a", "c", 1), ("b", "a", 1)]
    assert counted(window=3) == [("a", "b", 1), ("a", "c", 2), ("b", "a", 2), ("b", "c", 1)]
    assert counted(window=3, both_ways=True) == [("a", "b", 3), ("a", "c", 2), ("b", "c", 1)]


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_a_pair_weighs_what_its_later_step_does(decay: float) -> None:
    found = counted(window=2, decay=decay, weights=("weight",))
    assert found == [
        ("a", "b", UNIT),
        ("a", "c", UNIT + int(decay * UNIT)),
        ("b", "a", UNIT // 4 + int(decay * UNIT) // 2),
    ]
