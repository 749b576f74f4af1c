"""Counts, recency and exclusion of the popularity baseline."""

from collections.abc import Callable

import pyarrow as pa

from models.baselines.popularity import Popularity


def test_counts_ties_and_exclusion(make_histories: Callable[..., pa.Table]) -> None:
    histories = make_histories([["c", "b", "b"], ["a", "gone"], ["d", "d"]])
    ranker = Popularity.fit(histories, ["d", "c", "b", "a", "never"])
    assert ranker.rank([[], []], 4, [frozenset(), {"b", "x"}]) == [["b", "d", "a", "c"], ["d", "a", "c", "never"]]
    assert ranker.rank([[]], 9, [{"a"}]) == [["b", "d", "c", "never"]]


def test_recent_events_count_more(make_histories: Callable[..., pa.Table]) -> None:
    histories = make_histories([["old", "old", "old", "x", "x", "new"]])  # days 0, 1, 2, 3, 4, 5
    assert Popularity.fit(histories, ["new", "old"]).rank([[]], 1, [[]]) == [["old"]]
    ranker = Popularity.fit(histories, ["new", "old"], half_life_days=1.0)
    assert ranker.weights.tolist() == [2.0**-0, 2.0**-5 + 2.0**-4 + 2.0**-3]  # aged against the newest listed event
    assert ranker.rank([[]], 2, [[]]) == [["new", "old"]]
