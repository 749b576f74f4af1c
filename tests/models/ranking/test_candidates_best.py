"""The best of a source: the same as by sorting all of them, ties by number."""

import numpy as np

from models.ranking.candidates import best


def test_as_if_all_were_sorted() -> None:
    rng = np.random.default_rng(5)
    for number, size, kept in ((0, 3, 5), (2, 3, 5), (3, 3, 5), (40, 3, 5), (500, 60, 5), (500, 60, 1), (500, 60, 0)):
        items = rng.permutation(10 * number)[:number]
        scores = rng.integers(0, 8, number).astype(float)  # many equal ones
        gone = {item for item in items.tolist() if item % 6 >= kept}  # a few, most, or all of them
        found, values = best(items, scores, lambda asked: np.array([item not in gone for item in asked], bool), size)  # noqa: B023
        wanted = sorted((-score, item) for item, score in zip(items, scores, strict=True) if item not in gone)[:size]
        assert list(zip(-values, found, strict=True)) == wanted
