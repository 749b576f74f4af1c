"""Each measure against its definition written out, and against numbers worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation import metrics


def test_worked_example() -> None:
    """Three queries, k = 3: hits at 1 and 3 of 4 relevant; a hit at 2 of 1 relevant; none."""
    hits = metrics.hit_matrix([["a", "x", "b"], ["x", "c"], ["x", "y", "z"]], [{"a", "b", "d", "e"}, ["c"], {"q"}], 3)
    assert hits.tolist() == [[True, False, True], [False, True, False], [False, False, False]]
    num_relevant = np.array([4, 1, 1])
    np.testing.assert_allclose(metrics.recall(hits, num_relevant), [2 / 3, 1.0, 0.0])
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    np.testing.assert_allclose(metrics.ndcg(hits, num_relevant), [1.5 / ideal, 1 / math.log2(3), 0.0])


@given(st.lists(st.lists(st.integers(0, 9), unique=True, max_size=8), min_size=1, max_size=6), st.data())
def test_recall_and_ndcg_equal_their_definitions(ranked: list[list[int]], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 8))
    wanted = data.draw(st.lists(st.sets(st.integers(0, 9), min_size=1), min_size=len(ranked), max_size=len(ranked)))
    names = [[str(item) for item in items] for items in ranked]
    relevant = [{str(item) for item in items} for items in wanted]
    hits, counts = metrics.hit_matrix(names, relevant, k), np.array([len(items) for items in relevant])
    for row, (items, good) in enumerate(zip(names, relevant, strict=True)):
        found = [place for place, item in enumerate(items[:k]) if item in good]
        best = min(k, len(good))
        recall, ndcg = metrics.recall(hits, counts)[row], metrics.ndcg(hits, counts)[row]
        assert recall == pytest.approx(len(found) / best)
        gain = sum(1 / math.log2(place + 2) for place in found)
        assert ndcg == pytest.approx(gain / sum(1 / math.log2(place + 2) for place in range(best)))
        assert 0 <= ndcg <= 1 + 1e-12
    perfect = metrics.hit_matrix([sorted(good) for good in relevant], relevant, k)
    np.testing.assert_allclose(metrics.recall(perfect, counts), 1.0)
    np.testing.assert_allclose(metrics.ndcg(perfect, counts), 1.0)


def test_no_relevant_item_is_a_mistake_of_the_caller() -> None:
    hits = np.zeros((1, 3), dtype=bool)
    for measure in (metrics.recall, metrics.ndcg):
        with pytest.raises(ValueError, match="without relevant"):
            measure(hits, np.array([0]))
    with pytest.raises(ValueError, match="no queries"):
        metrics.bootstrap_mean(np.zeros(0), np.zeros(0), seed=0)


def test_bootstrap_agrees_with_theory_and_clusters_by_user() -> None:
    generator = np.random.default_rng(0)
    values = generator.random(2000)
    single = metrics.bootstrap_mean(values, np.arange(2000), seed=1)
    assert single.mean == pytest.approx(values.mean())
    assert single.standard_error == pytest.approx(values.std() / math.sqrt(2000), rel=0.1)
    # Every user's ten queries are equal: ten times the queries, no more knowledge.
    repeated = metrics.bootstrap_mean(np.repeat(values, 10), np.repeat(np.arange(2000), 10), seed=1)
    assert repeated.standard_error == pytest.approx(single.standard_error, rel=1e-9)
    # One user with many queries: the mean is over queries.
    uneven = metrics.bootstrap_mean(np.array([1.0, 1.0, 1.0, 0.0]), np.array(["u", "u", "u", "v"]), seed=1)
    assert uneven.mean == 0.75
    assert metrics.bootstrap_mean(values, np.arange(2000), seed=1) == single
    assert metrics.bootstrap_mean(values, np.arange(2000), seed=2) != single
    assert metrics.bootstrap_mean(values, np.zeros(2000), seed=2).standard_error == 0.0


def test_impressions_coverage_effective_vocabulary() -> None:
    lists = [["a", "b"], ["a", "c"], ["a"]]
    counts = metrics.impressions(lists)
    assert counts.tolist() == [3, 1, 1]
    assert metrics.coverage(counts, 6) == 0.5
    assert metrics.effective_vocabulary(counts) == 3
    assert metrics.effective_vocabulary(np.array([95, 3, 2])) == 1  # exactly 95% is enough
    assert metrics.effective_vocabulary(np.array([94, 1, 3, 2])) == 2
    assert metrics.effective_vocabulary(np.full(100, 7)) == 95
    assert metrics.effective_vocabulary(metrics.impressions([])) == 0


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30))
def test_effective_vocabulary_is_the_smallest_that_suffices(raw: list[int]) -> None:
    size = metrics.effective_vocabulary(np.array(raw))
    best = sorted(raw, reverse=True)
    assert 100 * sum(best[:size]) >= 95 * sum(raw)
    assert 100 * sum(best[: size - 1]) < 95 * sum(raw)


def test_lists_and_what_is_relevant_belong_together() -> None:
    with pytest.raises(ValueError, match="shorter"):
        metrics.hit_matrix([["a"], ["b"]], [{"a"}], 1)
    assert metrics.hit_matrix([], [], 3).shape == (0, 3)
    assert metrics.hit_matrix([["a", "b"]], [{"b"}], 1).dtype == bool
    assert metrics.impressions([[]]).shape == (0,)
    assert metrics.impressions([[]]).dtype == metrics.impressions([["a"]]).dtype == np.int64
    assert metrics.coverage(np.array([2, 0, 1]), 4) == 0.5


def test_a_standard_error_is_that_of_the_samples_drawn() -> None:
    values, users = np.array([0.0, 1.0, 1.0, 0.5]), np.array(["a", "b", "b", "c"])
    found = metrics.bootstrap_mean(values, users, seed=3, num_samples=4)
    generator, means = np.random.default_rng(3), []
    for _ in range(4):
        drawn = [values[users == "abc"[user]] for user in generator.integers(0, 3, 3)]
        means.append(np.concatenate(drawn).mean())
    assert found.standard_error == pytest.approx(np.std(means, ddof=1))
    assert metrics.bootstrap_mean(values, users, seed=3) == metrics.bootstrap_mean(
        values, users, seed=3, num_samples=1000
    )
