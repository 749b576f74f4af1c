"""A prefix is named by what clearly most of its items have."""

import numpy as np

from models.corpus.prefix_names import name_prefixes

CODES = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [1, 0, 0], [1, 0, 1], [2, 0, 0], [2, 0, 1], [2, 0, 2]])


def test_the_clear_majority_of_three_or_more() -> None:
    names = {0: ("a",), 1: ("a",), 2: ("a", "b"), 3: ("b",), 4: ("a",), 5: ("a",), 6: ("b",), 7: ("b",), 8: ("c",)}
    found = name_prefixes(CODES, names)
    # 1: only two items. (2, 0): b of two thirds.
    assert found == {(0,): "a", (0, 0): "a", (2,): "b", (2, 0): "b"}


def test_three_of_five_are_clear_and_say_nothing_if_all_items_have_it() -> None:
    codes = np.array([[place // 5, place % 5] for place in range(10)])
    names = {row: ("a",) if row < 3 else ("b" if row < 5 else "c",) for row in range(10)}
    assert name_prefixes(codes, names) == {(0,): "a", (1,): "c"}
    names[5] = ("a", "c")  # 4 of 10 say something
    assert name_prefixes(codes, names)[(0,)] == "a"
    names |= dict.fromkeys((6, 7), ("a", "c"))  # 6 of 10 do not
    assert (0,) not in name_prefixes(codes, names)


def test_what_all_items_have_says_nothing() -> None:
    names = {row: ("x", "a" if row < 4 else "b") for row in range(9)}
    assert set(name_prefixes(CODES, names).values()) == {"a", "b"}


def test_items_that_are_left_out_do_not_count() -> None:
    names = {0: ("a",), 1: ("a",), 6: ("b",), 7: ("b",), 8: ("b",), 4: ("c",), 5: ("d",), 3: ("e",)}
    assert name_prefixes(CODES, names) == {(0,): "a", (2,): "b", (2, 0): "b"}


def test_halves_are_no_majority() -> None:
    assert name_prefixes(CODES, {0: ("a",), 1: ("a",), 2: ("b",), 3: ("b",)}) == {(0, 0): "a"}
