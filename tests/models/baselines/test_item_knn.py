"""The sparse kNN against the same sums in plain loops."""

from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from models.baselines.item_knn import ItemKnn
from models.semantic_ids.sids import digit_of


def slow_scores(lists: list[list[str]], query: list[str], window: int, decay: float, last: int) -> dict[str, float]:
    follows: dict[tuple[str, str], float] = defaultdict(float)
    for items in lists:
        for i, after in enumerate(items):
            for step in range(1, window + 1):
                if i - step >= 0 and items[i - step] != after:
                    follows[items[i - step], after] += decay ** (step - 1)
    scores: dict[str, float] = defaultdict(float)
    for place, item in enumerate(reversed(query[-last:])):
        for (before, after), weight in follows.items():
            if before == item:
                scores[after] += decay**place * weight
    return scores


@pytest.mark.parametrize("seed", range(5))
def test_equals_plain_loops(seed: int, make_histories: Callable[..., pa.Table]) -> None:
    generator = np.random.default_rng(seed)
    items = [f"i{number:02d}" for number in range(12)]
    lists = [generator.choice(items, generator.integers(0, 9)).tolist() for _ in range(15)]
    listed, popularity = items[:9], Counter(item for one in lists for item in one)
    ranker = ItemKnn.fit(make_histories(lists), listed, window=3, decay=0.8, last=4)
    queries = [generator.choice([*items, "unknown"], generator.integers(0, 8)).tolist() for _ in range(6)]
    exclude = [set(query[:2]) for query in queries]
    ranked = ranker.rank(queries, 5, exclude)
    for query, gone, found in zip(queries, exclude, ranked, strict=True):
        scores = slow_scores(lists, [item for item in query if item in popularity], 3, 0.8, 4)
        allowed = [item for item in listed if item not in gone]
        best = sorted(allowed, key=lambda item: (-round(scores[item], 9), -popularity[item], digit_of(item, 2**62)))[:5]
        assert [round(scores[item], 9) for item in found] == [round(scores[item], 9) for item in best]
        assert not gone & set(found)
        assert len(set(found)) == 5


def test_without_a_history_the_popular_come(make_histories: Callable[..., pa.Table]) -> None:
    ranker = ItemKnn.fit(make_histories([["a", "b", "b"], ["b"], ["c", "c"]]), ["a", "b", "c"])
    assert ranker.rank([[], ["unknown"]], 3, [set(), {"b"}]) == [["b", "c", "a"], ["c", "a"]]


def test_a_retired_item_still_leads_to_its_successors(make_histories: Callable[..., pa.Table]) -> None:
    histories = make_histories([["retired", "a"], ["b", "b", "b"]])
    ranker = ItemKnn.fit(histories, ["a", "b"])
    assert ranker.rank([["retired"]], 2, [set()]) == [["a", "b"]]


def test_recent_pairs_count_more(make_histories: Callable[..., pa.Table]) -> None:
    histories = make_histories([["q", "old", "z", "z", "z", "q", "new"], ["q", "old"]])
    assert ItemKnn.fit(histories, ["new", "old"]).rank([["q"]], 1, [set()]) == [["old"]]
    assert ItemKnn.fit(histories, ["new", "old"], half_life_days=1.0).rank([["q"]], 1, [set()]) == [["new"]]


def test_both_ways_the_order_of_two_items_is_not_known(make_histories: Callable[..., pa.Table]) -> None:
    histories = make_histories([["a", "q"], ["a", "q"], ["q", "b"]])
    assert ItemKnn.fit(histories, ["a", "b"]).rank([["q"]], 1, [set()]) == [["b"]]
    ranker = ItemKnn.fit(histories, ["a", "b"], both_ways=True)
    assert ranker.scores([["q"]]).toarray().tolist() == [[2.0, 1.0]]


def test_cosine_divides_by_the_events_of_both(make_histories: Callable[..., pa.Table]) -> None:
    histories = make_histories([["q", "a"], ["a"], ["a"], ["a"], ["q", "b"]])
    ranker = ItemKnn.fit(histories, ["a", "b", "q"], cosine=True)
    assert ranker.scores([["q"], []]).toarray() == pytest.approx(np.array([[8**-0.5, 2**-0.5, 0], [0, 0, 0]]))
