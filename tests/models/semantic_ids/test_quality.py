"""Every measure against a hand-made figure and, on random tables, against the loop that says what it means."""

from itertools import permutations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.semantic_ids.quality import (
    bucket_histogram,
    category_labels,
    co_occurrence,
    largest_buckets,
    neighbour_purity,
    prefix_ids,
    usage_curves,
)

CODES = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 0, 0]], np.int32)
NONE = np.zeros((0, 3), np.int32)
tables = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=2, max_size=12).map(
    lambda rows: np.array(rows, np.int32)
)


def test_prefix_ids_number_prefixes_in_code_order():
    assert [ids.tolist() for ids in prefix_ids(CODES)] == [[0, 0, 1, 1], [0, 1, 2, 2], [0, 1, 2, 2]]
    assert [ids.tolist() for ids in prefix_ids(np.array([[5, 0], [2, 9], [5, 0], [2, 1]]))] == [
        [1, 0, 1, 0],
        [2, 1, 2, 0],
    ]


def test_co_occurrence_by_hand():
    """Pairs 0–1 three times, 0–2 once: degrees 4, 3, 1, 0; 8² - (16 + 9 + 1) = 38 ways to draw two ends."""
    first, second, third = co_occurrence(CODES, np.array([0, 0]), np.array([1, 2]), np.array([3, 1]))
    assert (first.level, first.share, first.num) == (1, 0.75, 2)
    assert first.by_chance == pytest.approx((7**2 - 4**2 - 3**2) / 38)
    assert first.lift == pytest.approx(0.75 / (24 / 38))
    assert (second.share, second.by_chance, second.lift) == (0.0, 0.0, None)
    assert third.level == 3


def test_co_occurrence_without_pairs_is_empty():
    nothing = np.zeros(0, np.int64)
    assert co_occurrence(CODES, nothing, nothing, nothing) == []
    assert co_occurrence(NONE, nothing, nothing, nothing) == []
    assert co_occurrence(CODES, np.array([0]), np.array([1]), np.array([0])) == []


@given(tables, st.data())
def test_co_occurrence_is_what_the_loop_says(codes, data):
    ends = st.tuples(*[st.integers(0, len(codes) - 1)] * 2, st.integers(1, 5)).filter(lambda p: p[0] != p[1])
    pairs = data.draw(st.lists(ends, min_size=1, max_size=10))
    left, right, weights = (np.array(column) for column in zip(*pairs, strict=True))
    degrees = np.zeros(len(codes))
    for a, b, weight in pairs:
        degrees[a] += weight
        degrees[b] += weight
    for found in co_occurrence(codes, left, right, weights):
        same = [
            [(codes[a, : found.level] == codes[b, : found.level]).all() for b in range(len(codes))]
            for a in range(len(codes))
        ]
        together = sum(w for a, b, w in pairs if same[a][b])
        drawn = [(degrees[a] * degrees[b], same[a][b]) for a in range(len(codes)) for b in range(len(codes)) if a != b]
        assert found.share == pytest.approx(together / weights.sum())
        assert found.by_chance == pytest.approx(sum(d for d, s in drawn if s) / sum(d for d, _ in drawn))


def test_purity_by_hand():
    """Prefix 0 holds a, a, b; prefix 1 holds b alone; prefix 2 an item without a label beside an a."""
    codes = np.array([[0], [0], [0], [1], [2], [2]])
    (found,) = neighbour_purity(codes, np.array([7, 7, 3, 3, -1, 7]))
    assert found.num == 3
    assert found.share == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert found.by_chance == pytest.approx((2 / 4 + 2 / 4 + 1 / 4) / 3)  # of the 4 others 2 are a, 1 is b


@given(tables, st.data())
def test_purity_is_what_the_loop_says(codes, data):
    labels = np.array(data.draw(st.lists(st.integers(-1, 2), min_size=len(codes), max_size=len(codes))))
    known = np.flatnonzero(labels >= 0)
    for found in neighbour_purity(codes, labels):
        shares, chances = [], []
        for a in known:
            others = [b for b in known if b != a]
            near = [b for b in others if (codes[a, : found.level] == codes[b, : found.level]).all()]
            if near:
                shares.append(np.mean(labels[near] == labels[a]))
                chances.append(np.mean(labels[others] == labels[a]))
        assert found.num == len(shares)
        if shares:
            assert found.share == pytest.approx(np.mean(shares))
            assert found.by_chance == pytest.approx(np.mean(chances))
        else:
            assert (found.share, found.by_chance, found.lift) == (None, None, None)


def test_chance_is_the_mean_over_all_ways_to_hand_out_the_labels():
    codes = np.array([[0], [0], [0], [1], [1]])
    dealt = [neighbour_purity(codes, np.array(labels))[0] for labels in permutations([0, 0, 0, 1, 2])]
    assert np.mean([found.share for found in dealt]) == pytest.approx(dealt[0].by_chance)


@pytest.mark.parametrize("num_items", [0, 1])
def test_hardly_any_items_give_defined_answers(num_items):
    codes = CODES[:num_items]
    purity = neighbour_purity(codes, np.zeros(num_items, np.int64))
    assert [(found.share, found.num) for found in purity] == [(None, 0)] * 3
    assert bucket_histogram(codes) == ({1: 1} if num_items else {})
    assert largest_buckets(codes, 5) == []
    assert [sum(counts) for counts in usage_curves(codes, (2, 2, 2))] == [num_items] * 3


def test_usage_curves_fall_and_count_idle_codes():
    assert usage_curves(CODES, (4, 2, 3)) == [[2, 2, 0, 0], [3, 1], [3, 1, 0]]


def test_buckets():
    codes = np.array([[3, 1], [0, 0], [3, 1], [2, 2], [0, 0], [1, 1], [3, 1]])
    assert bucket_histogram(codes) == {1: 2, 2: 1, 3: 1}
    found = largest_buckets(codes, 5)
    assert [(bucket.codes, bucket.rows.tolist()) for bucket in found] == [((3, 1), [0, 2, 6]), ((0, 0), [1, 4])]
    assert len(largest_buckets(codes, 1)) == 1
    tied = largest_buckets(np.array([[1], [0], [1], [0]]), 5)
    assert [bucket.codes for bucket in tied] == [(0,), (1,)]


def test_no_code_at_all_is_no_bucket():
    assert largest_buckets(np.zeros((4, 0), np.int32), 5) == []
    assert bucket_histogram(np.zeros((4, 0), np.int32)) == {}


def test_category_labels():
    items = pa.table(
        {
            "channel": ["x", None, "", "y", "x"],
            "topics": pa.array([["Beauty", "Hair"], ["Beauty"], None, ["Beauty", "Skin"], []], pa.list_(pa.string())),
        }
    )
    found = category_labels(items)
    assert found["channel"].tolist() == [0, -1, -1, 1, 0]
    assert found["topic"].tolist() == [0, -1, -1, 1, -1]  # Beauty tells nothing apart, so the second topic is taken


def test_the_first_topic_is_taken_where_items_differ_in_it():
    topics = pa.array([["a", "z"], ["b"], ["a"]], pa.list_(pa.string()))
    assert category_labels(pa.table({"topics": topics}))["topic"].tolist() == [0, 1, 0]
    same = pa.array([["a"], ["a"]], pa.list_(pa.string()))
    assert category_labels(pa.table({"topics": same}))["topic"].tolist() == [0, 0]


def test_no_categories():
    assert category_labels(pa.table({"item_id": ["a"]})) == {}
    nulls = {"channel": pa.nulls(2, pa.string()), "topics": pa.nulls(2, pa.list_(pa.string()))}
    assert category_labels(pa.table(nulls)) == {}
    assert category_labels(pa.table(nulls).slice(0, 0)) == {}
