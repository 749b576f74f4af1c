import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumline.errors import InputError
from plumline.sid import SidSpace

spaces = st.lists(st.integers(1, 300), min_size=1, max_size=5).map(lambda sizes: SidSpace(tuple(sizes)))


@given(spaces, st.data())
def test_text_and_ids_come_back(space, data):
    codes = tuple(data.draw(st.integers(0, size - 1)) for size in space.sizes)
    assert space.parse(space.format(codes)) == codes
    ids = space.token_ids(np.array(codes), base=1000)
    assert tuple(space.codes(ids, base=1000)) == codes
    assert "".join(space.tokens()[i - 1000] for i in ids) == space.format(codes)


@given(spaces)
def test_tokens_are_distinct_and_levels_are_slices(space):
    tokens = space.tokens()
    assert len(set(tokens)) == len(tokens) == space.num_tokens
    for level, (offset, size) in enumerate(zip(space.offsets, space.sizes, strict=True)):
        assert tokens[offset : offset + size] == [space.token(level, code) for code in range(size)]


@pytest.mark.parametrize(
    "text", ["", "<a_0>", "<b_0><a_0>", "<a_9><b_0>", "<a_0><b_0><c_0>", "x<a_0><b_0>", "<a_01><b_0>"]
)
def test_what_is_no_sid_is_refused(text):
    with pytest.raises(InputError, match="is no SID"):
        SidSpace((4, 2)).parse(text)


def test_contains_knows_the_edges():
    space = SidSpace((4, 2))
    assert space.contains(np.array([[0, 0], [3, 1], [4, 0], [0, 2], [-1, 0]])).tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]
