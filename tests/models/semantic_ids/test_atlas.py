"""The atlas counts every item once, names prefixes by what is theirs, and says what it leaves out."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.semantic_ids.atlas import NUM_EXAMPLES, NUM_WORDS, Atlas, draw_atlas, read_terms

TITLES = ["red nail polish", "blue nail polish", "green nail polish", "hair dryer", "hair brush", "the red scarf"]
CODES = np.array([[4, 0], [4, 1], [4, 1], [2, 0], [2, 1], [9, 0]], np.int32)


def titled(*titles, **columns):
    return read_terms(pa.table({"title": pa.array(titles, pa.string()), **columns}))


def test_sizes_words_and_examples():
    atlas = draw_atlas(CODES, titled(*TITLES))
    assert atlas.num_prefixes == 3
    nails, hair, scarf = atlas.prefixes
    assert (nails.codes, nails.num_items, nails.examples) == ((4,), 3, (0, 1, 2))
    assert nails.words == ("nail polish",)  # "nail" and "polish" are said; "red" is one item's
    assert hair.words == ("hair",)
    assert scarf.words == ("the red", "red scarf")
    assert [(child.codes, child.num_items) for child in nails.children] == [((4, 1), 2), ((4, 0), 1)]
    assert nails.num_children == 2


def test_a_child_does_not_repeat_its_parent():
    atlas = draw_atlas(CODES, titled(*TITLES))
    both, single = atlas.prefixes[0].children
    assert both.words == ()  # "nail polish" is all that its two items have in common
    assert single.words == ("red nail",)


def test_a_word_of_everybody_names_nobody():
    terms = titled("same blue", "same blue", "same red", "same red")
    atlas = draw_atlas(np.array([[0], [0], [1], [1]]), terms)
    assert [prefix.words for prefix in atlas.prefixes] == [("same blue",), ("same red",)]
    all_alike = draw_atlas(np.array([[0], [0], [1], [1]]), titled("same", "same", "same", "same"))
    assert [prefix.words for prefix in all_alike.prefixes] == [(), ()]


def test_channels_and_topics_name_too_and_numbers_do_not():
    terms = titled(
        "1",
        "2",
        "1",
        channel=["acme", "acme", None],
        topics=pa.array([["hair care"], ["hair care"], None], pa.list_(pa.string())),
    )
    first, second = draw_atlas(np.array([[0], [0], [1]]), terms).prefixes
    assert set(first.words) == {"acme", "hair care"}
    assert second.words == ()


def test_scripts_without_spaces_name_by_their_longest_part():
    first, _ = draw_atlas(np.array([[0], [0], [1]]), titled("口红笔", "口红笔", "洗发水")).prefixes
    assert first.words == ("口红笔",)


def test_bounds_leave_out_the_smallest_and_say_so():
    codes = np.array([[0, c] for c in (0, 0, 1, 2)] + [[1, 0], [1, 0]] + [[2, 0]])
    atlas = draw_atlas(codes, titled(*["x"] * 7), max_prefixes=2, max_children=1)
    assert atlas.num_prefixes == 3
    assert [(prefix.codes, prefix.num_items) for prefix in atlas.prefixes] == [((0,), 4), ((1,), 2)]
    assert [child.codes for child in atlas.prefixes[0].children] == [(0, 0)]
    assert atlas.prefixes[0].num_children == 3
    assert atlas.prefixes[1].num_children == 1


def test_examples_are_spread_over_the_prefix():
    codes = np.array([[0, c] for c in range(9)])
    (prefix,) = draw_atlas(codes, titled(*["x"] * 9)).prefixes
    assert prefix.examples == (0, 4, 8)


def test_nothing_and_one_item_and_one_level():
    assert draw_atlas(np.zeros((0, 2), np.int32), titled()) == Atlas((), 0)
    (one,) = draw_atlas(np.array([[3, 1]]), titled("a lamp")).prefixes
    assert (one.num_items, one.examples, one.children[0].codes) == (1, (0,), (3, 1))
    (flat,) = draw_atlas(np.array([[3]]), titled(None)).prefixes
    assert (flat.words, flat.children, flat.num_children) == ((), (), 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_every_item_is_counted_once(rows):
    codes = np.array(rows)
    atlas = draw_atlas(codes, titled(*[f"w{a} v{b} u{c}" for a, b, c in rows]))
    assert sum(prefix.num_items for prefix in atlas.prefixes) == len(rows)
    for prefix in atlas.prefixes:
        assert sum(child.num_items for child in prefix.children) == prefix.num_items
        assert len(prefix.children) == prefix.num_children
        assert len(prefix.words) <= NUM_WORDS
        for one in (prefix, *prefix.children):
            assert len(one.examples) == min(one.num_items, NUM_EXAMPLES) == len(set(one.examples))
            assert all(tuple(codes[row, : len(one.codes)]) == one.codes for row in one.examples)


@pytest.mark.parametrize("block", [1, 2, 7])
def test_terms_do_not_depend_on_the_block(monkeypatch, block):
    expected = draw_atlas(CODES, titled(*TITLES))
    monkeypatch.setattr("models.semantic_ids.atlas._BLOCK", block)
    assert draw_atlas(CODES, titled(*TITLES)) == expected
