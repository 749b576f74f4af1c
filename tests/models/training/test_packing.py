"""Packing loses nothing, wastes little, and what each token may see follows from one rule."""

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from models.corpus.examples import Examples, ExamplesBuilder
from models.training.packing import Cursor, LoopParams, Rows, checkpoint_of, pack, shuffle
from models.training.target_loss import visibility
from plumline.errors import InputError
from plumline.stage import hash_seed


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


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """Tokens, spans and targets of a tree of up to 12 tokens; roots and leaves may be targets or not."""
    length = draw(st.integers(1, 12))
    ends, open_ends = [], [length]
    for place in range(length):
        while open_ends[-1] <= place:
            open_ends.pop()
        ends.append(draw(st.integers(place + 1, open_ends[-1])))
        open_ends.append(ends[-1])
    tokens = draw(st.lists(st.integers(1, 99), min_size=length, max_size=length))
    loss = draw(st.lists(st.integers(0, 1), min_size=length, max_size=length))
    return tokens, [end - place for place, end in enumerate(ends)], loss


@settings(max_examples=200)
@given(st.lists(trees(), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_batches_are_those_of_walking_every_tree(
    made: list[tuple[list[int], list[int], list[int]]], random: Random
) -> None:
    builder = ExamplesBuilder()
    for tokens, span, loss in made:
        arrays = np.array(tokens, np.int32), np.array(span, np.int32), np.array(loss, np.int8)
        builder.add_tree(*arrays, "recent", 1.0)
    members = list(range(len(made)))
    random.shuffle(members)
    cut = random.randint(0, len(members) - 1)
    rows = [part for part in (members[:cut], members[cut:]) if part]
    batch = Rows(builder.build(), np.arange(len(made)), 99, 1, pad=77).batch(rows)
    read, targets, num_seen = [], [], 0
    for row in rows:
        shown: list[tuple[int, int, int]] = []  # token, how many see it, how many it sees before itself
        for member in row:
            tokens, span, loss = made[member]
            leaves = [size == 1 and bool(target) for size, target in zip(span, loss, strict=True)]
            place_of: dict[int, int] = {}
            for place, token in enumerate(tokens):
                above = [other for other in range(place) if place < other + span[other]]
                if loss[place] and above:
                    targets.append((len(read), place_of[above[-1]], token))
                if not leaves[place]:
                    seen_by = sum(not leaf for leaf in leaves[place : place + span[place]])
                    place_of[place] = len(shown)
                    shown.append((token, seen_by, len(above)))
                    num_seen += len(above) + 1
        read.append(shown)
    width = batch.tokens.shape[1]
    assert width == -(-max(map(len, read)) // 8) * 8
    for number, shown in enumerate(read):
        padded = [*shown, *[(77, 1, 0)] * (width - len(shown))]
        arrays = batch.tokens[number], batch.span[number], batch.positions[number]
        assert list(zip(*(array.tolist() for array in arrays), strict=True)) == padded
    found = zip((batch.source // width).tolist(), (batch.source % width).tolist(), batch.target.tolist(), strict=True)
    assert list(found) == targets
    assert (batch.num_tokens, batch.num_seen) == (sum(map(len, read)), num_seen)
    assert batch.example_ids.tolist() == members
    assert {array.dtype for array in (batch.tokens, batch.span, batch.positions, batch.source, batch.target)} == {
        np.dtype(np.int64)
    }


def test_rows_are_the_best_fit_among_sixty_four_open_ones() -> None:
    lengths = np.array([7, 6, 3, 4, 10, 2])
    assert pack(lengths, np.arange(6), 10) == [[0, 2], [1, 3], [4], [5]]
    assert pack(np.array([5, 6, 4, 5]), np.arange(4), 10) == [[1, 2], [0, 3]]  # 4 stands with 6, not with 5
    wide = np.array([6] * 64 + [7, 3, 4])
    rows = pack(wide, np.arange(67), 10)
    assert rows[0] == [0]  # the sixty-fifth row closed the first one: it is no fuller than the others, but older
    assert rows[1:3] == [[64, 65], [1, 66]]
    assert sorted(rows[3:]) == [[n] for n in range(2, 64)]


def test_the_order_of_an_epoch_follows_from_the_seed_and_the_epoch() -> None:
    examples = sequences([6] * 12)

    def order(seed: int, epoch: int) -> list[list[int]]:
        return all_rows(examples, row_tokens=8, seed=seed).take(Cursor(epoch), 12)[0]

    assert order(1, 0) == [[int(place)] for place in shuffle(np.ones(12), hash_seed(1, "epoch", 0))]
    assert len({str(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_targets_alone_take_no_room_in_a_row() -> None:
    examples = sequences([9])  # eight tokens are read, the ninth is predicted
    assert all_rows(examples, row_tokens=8).take(Cursor(), 1)[0] == [[0]]
    with pytest.raises(InputError, match="row_tokens 7 is less than the longest example, 8"):
        all_rows(examples, row_tokens=7)


def test_a_last_token_that_is_no_target_takes_its_room() -> None:
    builder = ExamplesBuilder()
    builder.add_tree(np.arange(9, dtype=np.int32), np.arange(9, 0, -1), np.zeros(9, dtype=np.int8), "recent", 1.0)
    with pytest.raises(InputError, match="row_tokens 8 is less than the longest example, 9"):
        all_rows(builder.build(), row_tokens=8)


def test_only_the_chosen_examples_take_part() -> None:
    rows = Rows(sequences([30, 5, 4]), np.array([1, 2]), 8, 1, pad=0)  # the first would be too long
    taken, cursor = rows.take(Cursor(), 1)
    assert sorted(taken[0]) == [1, 2]
    assert cursor == Cursor(1, 0)


# --- what a recipe may set ---


def test_what_is_trained_with_if_a_recipe_is_silent() -> None:
    assert LoopParams().model_dump() == {
        "row_tokens": 512,
        "rows": 1,
        "accumulation": 4,
        "learning_rate": 2e-3,
        "embedding_rate": 1.0,
        "warmup_steps": 20,
        "cooldown_share": 0.0,
        "weight_decay": 0.01,
        "betas": (0.9, 0.95),
        "clip_norm": 1.0,
        "dropout": 0.0,
        "average_decay": 0.0,
        "gradient_checkpointing": False,
        "compile": False,
        "fsdp": False,
        "precision": "no",
        "checkpoint_every": 100,
        "orbit_distance": None,
        "log_every": 20,
    }


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("row_tokens", (8,), (7,)),
        ("rows", (1,), (0,)),
        ("accumulation", (1,), (0,)),
        ("learning_rate", (1e-9,), (0.0,)),
        ("embedding_rate", (1e-9,), (0.0,)),
        ("warmup_steps", (0,), (-1,)),
        ("cooldown_share", (0.0, 1.0), (-0.1, 1.1)),
        ("weight_decay", (0.0,), (-0.1,)),
        ("clip_norm", (1e-9,), (0.0,)),
        ("dropout", (0.0, 0.99), (-0.1, 1.0)),
        ("average_decay", (0.0, 0.99), (-0.1, 1.0)),
        ("precision", ("no", "bf16"), ("fp16",)),
        ("checkpoint_every", (0,), (-1,)),
        ("orbit_distance", (None, 1e-9), (0.0,)),
        ("log_every", (1,), (0,)),
    ],
)
def test_bounds(name: str, allowed: tuple, refused: tuple) -> None:
    for value in allowed:
        assert getattr(LoopParams.model_validate({name: value}), name) == value
    for value in refused:
        with pytest.raises(ValidationError, match=name):
            LoopParams.model_validate({name: value})


def test_where_a_killed_training_is_looked_for() -> None:
    assert checkpoint_of("cpt").as_posix() == "artifacts/progress/cpt.checkpoint"
