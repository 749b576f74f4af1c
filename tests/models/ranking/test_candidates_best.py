"""The best of a source: the same as by sorting all of them, ties by number."""

import numpy as np

from models.ranking.candidates import best


def test_as_if_all_were_sorted() -> None:
    rng = np.random.default_rng(5)
    for number, size in ((0, 3), (2, 3), (3, 3), (40, 3), (500, 60)):
        items = rng.permutation(10 * number)[:number]
        scores = rng.integers(0, 8, number).astype(float)  # many equal ones
        gone = set(items[::5].tolist())
        found, values = best(items, scores, lambda asked: np.array([item not in gone for item in asked], bool), size)  # noqa: B023
        wanted = sorted((-score, item) for item, score in zip(items, scores, strict=True) if item not in gone)[:size]
        assert list(zip(-values, found, strict=True)) == wanted
