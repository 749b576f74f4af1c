"""What is trained on: who counts as whose neighbour, which negatives are fair, and what a sample keeps together."""

import numpy as np
import pyarrow as pa

from models.semantic_ids.quantizer_training import fair_negatives, neighbours_of, sample_rows


def _pairs(rows: list[tuple[str, str, int]]) -> pa.Table:
    return pa.table(dict(zip(("item_a", "item_b", "count"), map(list, zip(*rows, strict=True)), strict=True)))


def test_neighbours_are_symmetric_known_and_few() -> None:
    pairs = _pairs([("a", "b", 5), ("a", "c", 9), ("a", "d", 9), ("b", "c", 1), ("c", "zzz", 50), ("d", "d", 7)])
    graph = neighbours_of(pairs, ["a", "b", "c", "d"], 1).toarray()
    totals = {"a": 23, "b": 6, "c": 10, "d": 9}  # of known items with others
    similar = {pair: n / np.sqrt(totals[pair[0]] * totals[pair[1]]) for pair, n in (("ab", 5), ("ac", 9), ("ad", 9))}
    # First of a is d (as often as c, which more items are with), of b is a, of c is a, of d is a.
    expected = np.zeros((4, 4))
    for pair, row in (("ab", 1), ("ac", 2), ("ad", 3)):
        expected[0, row] = expected[row, 0] = similar[pair]
    assert np.allclose(graph, expected)
    assert similar["ad"] > similar["ac"] > similar["ab"]
    assert np.count_nonzero(neighbours_of(pairs, ["a", "b", "c", "d"], 3).toarray()) == 8


def test_fair_negatives_are_other_items_that_never_met() -> None:
    graph = neighbours_of(_pairs([("a", "b", 5)]), ["a", "b", "c"], 4)
    fair = fair_negatives(graph, np.array([0, 1, 2, 0]))
    assert fair.astype(int).tolist() == [[0, 0, 1, 0], [0, 0, 1, 0], [1, 1, 0, 1], [0, 0, 1, 0]]


def test_a_sample_keeps_pairs_together_and_is_the_same_again() -> None:
    num_items = 1000
    ids = [f"i{row:04d}" for row in range(num_items)]
    graph = neighbours_of(_pairs([(ids[i], ids[i + 500], 2) for i in range(500)]), ids, 4)
    rows = sample_rows(graph, 400, seed=3)
    assert len(rows) == 400
    assert np.array_equal(rows, np.unique(rows))
    assert np.array_equal(rows, sample_rows(graph, 400, seed=3))
    both = np.isin((rows + 500) % 1000, rows).mean()
    assert both > 0.85  # at random it would be 0.4
    assert np.array_equal(sample_rows(graph, 1000, seed=3), np.arange(1000))
