"""STAR against its equation in plain loops."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from models.baselines.star import Star

ITEMS = [f"i{number}" for number in range(8)]


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_equation(seed: int, make_histories: Callable[..., pa.Table]) -> None:
    generator = np.random.default_rng(seed)
    lists = [generator.choice([*ITEMS, "gone"], generator.integers(0, 7)).tolist() for _ in range(12)]
    lists[0] = ["gone", "gone", *lists[0]]
    vectors = generator.standard_normal((9, 4))
    order = generator.permutation(9)
    known = [*ITEMS, "gone"]
    ranker = Star.fit(
        make_histories(lists), ITEMS, [known[i] for i in order], vectors[order], semantic_weight=0.3, decay=0.7, last=2
    )
    users = {item: {user for user, items in enumerate(lists) if item in items} for item in known}

    def score(query: list[str], item: str) -> float:
        total = 0.0
        for t, before in enumerate(query[::-1][:2]):
            if before == item:
                continue
            x, y = vectors[known.index(item)], vectors[known.index(before)]
            semantic = max(0.0, x @ y / np.linalg.norm(x) / np.linalg.norm(y))
            sizes = len(users[item]) * len(users[before])
            together = len(users[item] & users[before]) / sizes**0.5 if sizes else 0.0
            total += 0.7**t * (0.3 * semantic + 0.7 * together)
        return total

    queries = [["i0", "i3", "gone"], ["i5"], [], ["i2", "unknown", "i2"]]
    wanted = [[score([i for i in query if i != "unknown"], item) for item in ITEMS] for query in queries]
    np.testing.assert_allclose(ranker.scores(queries, 8).toarray(), wanted, atol=1e-6)
    best = sorted(ITEMS[1:], key=lambda item: -wanted[1][ITEMS.index(item)])[:3]
    assert ranker.rank(queries[1:2], 3, [{"i0"}]) == [best]


def test_an_item_without_a_vector_is_like_none(make_histories: Callable[..., pa.Table]) -> None:
    histories = make_histories([["a", "b"], ["c"]])
    ranker = Star.fit(histories, ["a", "b", "c"], ["a", "c"], np.array([[1.0, 0.0], [2.0, 0.0]]))
    np.testing.assert_allclose(ranker.scores([["a"], ["b"]], 3).toarray(), [[0.0, 0.5, 0.5], [0.5, 0.0, 0.0]])
