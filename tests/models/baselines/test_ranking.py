"""The exact top-k that all baselines share, against sorting."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from models.baselines.ranking import encode, rank_items, read_events


@given(st.integers(1, 12), st.integers(1, 14), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_top_k_equals_sorting(num_items: int, k: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 4, (5, num_items)).astype(float)  # many equal ones
    tie_break = generator.integers(0, 3, num_items)
    items = [f"i{number:02d}" for number in range(num_items)]
    exclude = [set(generator.choice([*items, "unknown"], 3)) for _ in range(5)]
    expected = [
        sorted(
            (item for item in items if item not in gone),
            key=lambda item: (-row[items.index(item)], -tie_break[items.index(item)], item),
        )[:k]
        for row, gone in zip(scores, exclude, strict=True)
    ]
    assert rank_items(lambda chunk: scores[chunk], tie_break, items, k, exclude) == expected


def test_more_queries_than_one_chunk() -> None:
    scores = np.random.default_rng(0).random((600, 3))
    ranked = rank_items(lambda chunk: scores[chunk], np.zeros(3), ["a", "b", "c"], 1, [set()] * 600)
    assert ranked == [["abc"[row.argmax()]] for row in scores]


def test_events_are_flat_and_known() -> None:
    histories = pa.table(
        {
            "user_id": ["u", "v", "w"],
            "item_ids": pa.array([["b", "x", "a"], [], ["a"]], pa.list_(pa.string())),
            "timestamps": pa.array([[1, 2, 3], [], [4]], pa.list_(pa.int64())),
        }
    )
    events = read_events(histories, ["a", "b"])
    assert events.items.tolist() == [1, 0, 0]
    assert events.users.tolist() == [0, 0, 2]
    assert events.timestamps.tolist() == [1, 3, 4]
    assert encode([["b", "x", "a"], []], ["a", "b"], 1) == [[0], []]
