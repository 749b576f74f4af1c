"""Packed sets against Python's own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.retrieval.bits import Bits
from plumline.errors import InputError


@st.composite
def two_sets(draw: st.DrawFn) -> tuple[int, set[int], set[int]]:
    size = draw(st.integers(1, 70))
    members = st.sets(st.integers(0, size - 1))
    return size, draw(members), draw(members)


def bits(members: set[int], size: int) -> Bits:
    return Bits.at(np.array(sorted(members), dtype=np.int64), size)


@given(two_sets())
def test_sets_behave_as_sets(example: tuple[int, set[int], set[int]]) -> None:
    size, a, b = example
    one, other = bits(a, size), bits(b, size)
    expected = {
        "and": (one & other, a & b),
        "or": (one | other, a | b),
        "not": (~one, set(range(size)) - a),
        "full": (Bits.full(size), set(range(size))),
        "empty": (Bits.empty(size), set()),
        "mask": (Bits.of(one.mask()), a),
    }
    for name, (found, members) in expected.items():
        assert np.flatnonzero(found.mask()).tolist() == sorted(members), name
        assert len(found) == len(members), name
        assert found.ranks.tolist() == [*(sum(m < n for m in members) for n in range(0, size, 8)), len(members)], name
        assert found.before.tolist() == [sum(m < n for m in members) for n in range(size + 1)], name
        assert [position in found for position in range(size)] == [n in members for n in range(size)], name


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"allowed are 0 … 8"):
        Bits.at(np.array([3, 9]), 9)
    with pytest.raises(InputError, match="8 and 9"):
        Bits.full(8) & Bits.full(9)
    assert len(Bits.at(np.array([1, 1, 1]), 9)) == 1


@given(two_sets(), st.lists(st.integers(-3, 69), max_size=20))
def test_many_are_asked_at_once(example: tuple[int, set[int], set[int]], positions: list[int]) -> None:
    size, members, _ = example
    asked = np.array([position for position in positions if position < size], dtype=np.int64)
    found = bits(members, size).has(asked)
    assert found.dtype == bool
    assert found.tolist() == [position in members for position in asked.tolist()]  # below zero is no member
