"""No baseline holds a score of every query and item, let alone of all pairs of items."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from models.baselines.item_knn import ItemKnn
from models.baselines.knn_sum import KnnSum
from models.baselines.own import Own
from models.baselines.popularity import Popularity
from models.baselines.star import Star
from models.baselines.text_knn import TextKnn

NUM_ITEMS, NUM_QUERIES = 30_000, 200


@pytest.fixture(scope="module")
def catalogue() -> tuple[list[str], list[list[str]], pa.Table]:
    """Item ids, histories, and titles that all share a word, so that everything is like everything."""
    rng = np.random.default_rng(1)
    ids = [f"i{number:05d}" for number in range(NUM_ITEMS)]
    titles = [f"all w{a} w{b}" for a, b in rng.integers(0, 3_000, (NUM_ITEMS, 2)).tolist()]
    lists = [[ids[n] for n in row] for row in (rng.random((NUM_QUERIES, 20)) ** 2 * NUM_ITEMS).astype(int).tolist()]
    return ids, lists, pa.table({"item_id": ids, "title": titles})


def test_no_baseline_allocates_queries_times_items(
    catalogue: tuple[list[str], list[list[str]], pa.Table], make_histories: Callable[..., pa.Table]
) -> None:
    ids, lists, items = catalogue
    histories = make_histories(lists)
    vectors = np.random.default_rng(2).standard_normal((NUM_ITEMS, 16)).astype(np.float32)
    knn, text = ItemKnn.fit(histories, ids), TextKnn.fit(histories, ids, items)
    rankers = {
        "popularity": Popularity.fit(histories, ids),
        "own": Own.fit(histories, ids),
        "item_knn": knn,
        "text_knn": text,
        "knn_sum": KnnSum(knn, text),
    }
    peaks = {}
    for name, ranker in rankers.items():
        peaks[name] = peak_of(lambda ranker=ranker: ranker.rank(lists, 10, [set(one) for one in lists]))
    peaks["star"] = peak_of(lambda: Star.fit(histories, ids, ids, vectors).rank(lists, 10, [set(one) for one in lists]))
    dense = NUM_QUERIES * NUM_ITEMS * 8
    assert max(peaks.values()) < 0.7 * dense, {name: f"{peak / 2**20:.0f} MiB" for name, peak in peaks.items()}


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that were allocated at once while it worked."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
