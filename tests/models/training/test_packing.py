"""Packing loses nothing, wastes little, and what each token may see follows from one rule."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.corpus.examples import Examples, ExamplesBuilder
from models.training.packing import Cursor, Rows, pack, shuffle
from models.training.target_loss import visibility
from plumline.errors import InputError


def sequences(lengths: Sequence[int]) -> Examples:
    builder = ExamplesBuilder()
    for length in lengths:
        builder.add_sequence(np.arange(1, length + 1, dtype=np.int32), "behaviour")
    return builder.build()


LENGTHS = np.random.default_rng(0).integers(2, 31, 100).tolist()


def all_rows(examples: Examples, row_tokens: int = 48, seed: int = 1) -> Rows:
    return Rows(examples, np.arange(examples.num_examples), row_tokens, seed, pad=0)


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=300))
def test_packing_holds_every_example_once(lengths: list[int]) -> None:
    rows = pack(np.array(lengths), np.arange(len(lengths)), 50)
    assert sorted(example for row in rows for example in row) == list(range(len(lengths)))
    assert all(sum(lengths[example] for example in row) <= 50 for row in rows)


def test_packing_wastes_little() -> None:
    lengths = np.random.default_rng(0).integers(5, 200, 5000)
    rows = pack(lengths, np.arange(5000), 512)
    assert lengths.sum() / (len(rows) * 512) > 0.97


def test_shuffle_is_seeded_and_prefers_weight() -> None:
    weight = np.where(np.arange(2000) < 1000, 4.0, 1.0)
    order = shuffle(weight, 7)
    assert sorted(order) == list(range(2000))
    assert order.tolist() == shuffle(weight, 7).tolist() != shuffle(weight, 8).tolist()
    heavy = (order[:500] < 1000).mean()
    assert 0.72 < heavy < 0.9  # 0.8 expected at the very first place


@given(st.lists(st.integers(1, 7), min_size=1, max_size=12))
@settings(deadline=None)
def test_cursor_is_the_place_in_the_data(takes: list[int]) -> None:
    """However the rows are taken, they are the same rows; a cursor alone is enough to go on."""
    straight, _ = all_rows(sequences(LENGTHS[:30])).take(Cursor(), sum(takes))
    taken, cursor = [], Cursor()
    for count in takes:
        more, cursor = all_rows(sequences(LENGTHS[:30])).take(cursor, count)  # a fresh reader every time
        taken += more
    assert taken == straight


def test_every_epoch_has_its_own_order() -> None:
    rows = all_rows(sequences(LENGTHS))
    first, cursor = rows.take(Cursor(), 1)
    while cursor.epoch == 0:
        more, cursor = rows.take(cursor, 1)
        first += more
    assert sorted(e for row in first for e in row) == list(range(100))
    second, _ = rows.take(cursor, len(first))
    assert second != first


def test_batch_is_as_wide_as_it_must_be() -> None:
    examples = sequences([n for n in LENGTHS if n <= 20][:20])
    rows = all_rows(examples)
    members = [[0, 1], [2]]
    batch = rows.batch(members)
    filled = [examples.lengths[m].sum() - len(m) for m in members]  # the last target of a sequence takes no place
    assert max(filled) <= batch.tokens.shape[1] < max(filled) + 8
    assert batch.num_tokens == sum(filled)
    assert batch.example_ids.tolist() == [0, 1, 2]
    assert len(batch.target) == examples.loss[: examples.offsets[3]].sum()


def test_mask_positions_and_targets_of_a_tree(tree: tuple[Examples, list[list[int]]]) -> None:
    examples, paths = tree
    batch = all_rows(examples).batch([[1, 0]])
    mask = (visibility(torch.from_numpy(batch.span))[0, 0] == 0).numpy()  # what the loop makes of the spans
    found = []
    for source, target in zip(batch.source, batch.target, strict=True):
        seen = np.flatnonzero(mask[source])
        assert batch.positions[0, seen].tolist() == list(range(len(seen)))
        found.append([*batch.tokens[0, seen].tolist(), int(target)])
    assert sorted(found) == sorted(paths)
    assert set(batch.tokens.ravel().tolist()) & {7, 9, 11} == set()  # leaves are targets, nobody reads them
    assert batch.num_seen == mask[: batch.num_tokens].sum()
    assert (batch.positions[0] == mask.sum(axis=1) - 1).all()
    assert np.diagonal(mask).all()  # padding too, else its softmax is not a number


@pytest.mark.parametrize("members", [[0], [1], [0, 1], [1, 0]])
def test_a_target_that_nothing_comes_before_is_no_target(members: list[int]) -> None:
    """A root has no token that could predict it; the token that happens to stand before it is another example's."""
    builder = ExamplesBuilder()
    whole, end = np.arange(3, 0, -1, dtype=np.int32), np.ones(3, dtype=np.int8)
    builder.add_tree(np.array([1, 2, 3], dtype=np.int32), whole, end, "recent", 1.0)
    builder.add_tree(np.array([4, 5, 6], dtype=np.int32), whole, end, "recent", 1.0)
    batch = all_rows(builder.build()).batch([members])
    read = [batch.tokens[0, at] for at in batch.source]
    pairs = {0: [(1, 2), (2, 3)], 1: [(4, 5), (5, 6)]}
    expected = [pair for member in members for pair in pairs[member]]
    assert list(zip(read, batch.target, strict=True)) == expected


def test_too_long_or_no_examples_are_refused() -> None:
    examples = sequences(LENGTHS[:30])
    with pytest.raises(InputError, match="row_tokens 8"):
        all_rows(examples, row_tokens=8)
    with pytest.raises(InputError, match="replay_share"):
        Rows(examples, np.array([], dtype=int), 48, 1, pad=0)


# --- fast path against slow path ---
