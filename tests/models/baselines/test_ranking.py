"""The exact top-k that all baselines share, against sorting."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from models.baselines.ranking import encode, rank_items, recent_items
from models.memory.events import read_events
from models.semantic_ids.sids import digit_of


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
            key=lambda item: (-row[items.index(item)], -tie_break[items.index(item)], digit_of(item, 2**62)),
        )[:k]
        for row, gone in zip(scores, exclude, strict=True)
    ]
    assert rank_items(lambda chunk: scores[chunk], tie_break, items, k, exclude) == expected
    assert rank_items(lambda chunk: csr_matrix(scores[chunk]), tie_break, items, k, exclude) == expected


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


def test_ids_say_nothing_in_a_tie() -> None:
    items = [f"i{number:03d}" for number in range(200)]
    [found] = rank_items(lambda chunk: np.zeros((1, 200)), np.zeros(200), items, 200, [set()])
    assert sorted(found) == items
    assert abs(np.corrcoef([items.index(item) for item in found], np.arange(200))[0, 1]) < 0.2


def test_recent_items_weigh_by_place() -> None:
    weights = recent_items([["a", "x", "b", "a"], [], ["b"]], ["a", "b"], last=2, decay=0.5).toarray()
    assert weights.tolist() == [[1.0, 0.5], [0.0, 0.0], [0.0, 1.0]]
