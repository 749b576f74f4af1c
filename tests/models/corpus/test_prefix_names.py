"""A prefix is named by what clearly most of its items have."""

import numpy as np

from models.corpus.prefix_names import name_prefixes

CODES = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [1, 0, 0], [1, 0, 1], [2, 0, 0], [2, 0, 1], [2, 0, 2]])


def test_the_clear_majority_of_three_or_more() -> None:
    names = {0: ("a",), 1: ("a",), 2: ("a", "b"), 3: ("b",), 4: ("a",), 5: ("a",), 6: ("b",), 7: ("b",), 8: ("c",)}
    found = name_prefixes(CODES, names)
    # 1: only two items. (2, 0): b of two thirds.
    assert found == {(0,): "a", (0, 0): "a", (2,): "b", (2, 0): "b"}


def test_what_all_items_have_says_nothing() -> None:
    names = {row: ("x", "a" if row < 4 else "b") for row in range(9)}
    assert set(name_prefixes(CODES, names).values()) == {"a", "b"}


def test_items_that_are_left_out_do_not_count() -> None:
    names = {0: ("a",), 1: ("a",), 6: ("b",), 7: ("b",), 8: ("b",), 4: ("c",), 5: ("d",), 3: ("e",)}
    assert name_prefixes(CODES, names) == {(0,): "a", (2,): "b", (2, 0): "b"}


def test_halves_are_no_majority() -> None:
    assert name_prefixes(CODES, {0: ("a",), 1: ("a",), 2: ("b",), 3: ("b",)}) == {(0, 0): "a"}
