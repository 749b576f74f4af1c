"""Own items by hand."""

from collections.abc import Callable

import pyarrow as pa

from models.baselines.own import Own
from models.baselines.popularity import Popularity


def test_often_and_lately_taken_items_come_first(make_histories: Callable[..., pa.Table]) -> None:
    ranker = Own.fit(make_histories([["p", "p", "p"], ["b", "c"], ["c"]]), ["a", "b", "c", "p"], decay=0.9)
    # a twice: .9^3 + .9^2 = 1.539; b and c: 1 and .9
    assert ranker.rank([["a", "a", "c", "b"]], 4, [set()]) == [["a", "b", "c", "p"]]
    assert ranker.rank([["a", "gone", "b"]], 3, [set()]) == [["b", "a", "p"]]
    assert Own.fit(make_histories([["p"]]), ["a", "b"], decay=0.5).rank([["a", "a", "b"]], 2, [set()]) == [["b", "a"]]
    assert Own.fit(make_histories([["b"]]), ["a", "b"], last=1).rank([["a", "a", "b"]], 2, [set()]) == [["b", "a"]]


def test_without_own_items_it_is_popularity(make_histories: Callable[..., pa.Table]) -> None:
    histories = make_histories([["z", "a", "b", "b"], ["c", "c", "z", "z"], ["a"]])
    items = ["a", "b", "c", "z"]
    own, popular = (kind.fit(histories, items, half_life_days=1.0) for kind in (Own, Popularity))
    queries = [["a", "b"], [], ["unknown"]]
    exclude = [set(query) for query in queries]
    assert own.rank(queries, 4, exclude) == popular.rank(queries, 4, exclude)
    assert own.rank([["c", "b"]], 2, [{"b"}])[0][0] == "c"
