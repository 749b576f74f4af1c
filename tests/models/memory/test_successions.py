"""Sparse matrices of successions against plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.memory.successions import successions


@given(
    lists=st.lists(st.lists(st.integers(0, 5), max_size=7), max_size=6),
    window=st.integers(1, 4),
    decay=st.sampled_from([1.0, 0.8, 0.5]),
)
@settings(max_examples=25, deadline=None)
def test_equals_plain_loops(lists: list[list[int]], window: int, decay: float) -> None:
    items = np.array([item for one in lists for item in one], np.int64)
    users = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
    weights = np.random.default_rng(3).random(len(items))
    wanted, counted = np.zeros((6, 6)), np.zeros((6, 6))
    for later in range(len(items)):
        for step in range(1, window + 1):
            earlier = later - step
            if earlier >= 0 and users[earlier] == users[later] and items[earlier] != items[later]:
                wanted[items[earlier], items[later]] += decay ** (step - 1) * weights[later]
                counted[items[earlier], items[later]] += decay ** (step - 1)
    aged, plain = successions(items, users, 6, window=window, decay=decay, weights=(weights, None))
    np.testing.assert_allclose(aged.toarray(), wanted, atol=1e-7)
    np.testing.assert_allclose(plain.toarray(), counted, atol=1e-6)


def test_sums_do_not_depend_on_order_threads_or_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Floats would: a hundred thousand of them, summed by who is first."""
    rng = np.random.default_rng(7)
    items, users = rng.integers(0, 40, 100_000), np.sort(rng.integers(0, 3_000, 100_000))
    weights = 0.5 ** rng.integers(0, 25, 100_000).astype(float) * rng.random(100_000)
    found = []
    for threads, memory in ((1, "2GB"), (2, "2GB"), (2, "100MB")):
        monkeypatch.setenv("PLUMLINE_THREADS", str(threads))
        monkeypatch.setenv("PLUMLINE_COUNTING_MEMORY", memory)
        (counted,) = successions(items, users, 40, window=3, decay=0.8, weights=(weights,))
        found.append([part.tobytes() for part in (counted.data, counted.indices, counted.indptr)])
    assert found[0] == found[1] == found[2]


def test_an_event_of_many_half_lives_ago_still_counts() -> None:
    items, users = np.array([0, 1]), np.array([0, 0])
    (counted,) = successions(items, users, 2, window=1, decay=0.8, weights=(np.array([1.0, 2.0**-29]),))
    assert counted[0, 1] == 2.0**-29
