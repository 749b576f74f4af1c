"""Packed batches of places are their examples, and nothing else."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from models.corpus.item_examples import NO_QUESTION, ItemExamples
from models.training.item_batches import ItemBatch, ItemRows
from models.training.packing import Cursor
from plumline.errors import InputError

PAD = 0


def make_examples(num_examples: int = 20, seed: int = 0, longest: int = 9, vocabulary: int = 40) -> ItemExamples:
    """Random places of one to five tokens, up to two targets of three levels a place, most with a question."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest + 1, num_examples)
    sizes = rng.integers(1, 6, lengths.sum())
    counts = [rng.integers(0, 3, length) for length in lengths]
    for some in counts:
        some[-1] = 1
    source = np.concatenate([np.repeat(np.arange(len(some)), some) for some in counts])
    question = rng.integers(1, vocabulary, len(source))
    question[::4] = NO_QUESTION
    return ItemExamples(
        tokens=rng.integers(1, vocabulary, sizes.sum()).astype(np.int32),
        sizes=sizes.astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        source=source.astype(np.int32),
        question=question.astype(np.int32),
        codes=rng.integers(0, (4, 3, 3), (len(source), 3)).astype(np.int32),
        target_offsets=np.concatenate([[0], np.cumsum([some.sum() for some in counts])]),
        kind=np.full(num_examples, 2, dtype=np.int8),
        weight=np.ones(num_examples, dtype=np.float32),
    )


def rows_of(examples: ItemExamples, row_tokens: int = 24, **told: Any) -> ItemRows:
    about = {"chosen": np.arange(examples.num_examples), "seed": 1, "pad": PAD, **told}
    return ItemRows(examples, row_tokens=row_tokens, **about)


def check_batch(examples: ItemExamples, rows: list[list[int]], batch: ItemBatch) -> None:
    """Go through a batch place by place, target by target."""
    num_rows, width = batch.span.shape
    assert batch.tokens.shape[:2] == batch.positions.shape == (len(rows), width)
    starts = np.concatenate([[0], np.cumsum(examples.sizes)])
    used = np.zeros((num_rows, width), dtype=bool)
    targets = iter(zip(batch.source.tolist(), batch.question.tolist(), batch.codes.tolist(), strict=True))
    seen = 0
    for row, members in enumerate(rows):
        at = 0
        for member in members:
            begin, end = examples.offsets[member : member + 2].tolist()
            for place in range(begin, end):
                expected = examples.tokens[starts[place] : starts[place + 1]].tolist()
                found = batch.tokens[row, at + place - begin].tolist()
                assert found == expected + [PAD] * (len(found) - len(expected))
                assert batch.positions[row, at + place - begin] == place - begin
                assert batch.span[row, at + place - begin] == end - place
                used[row, at + place - begin] = True
                seen += place - begin + 1
            for target in range(*examples.target_offsets[member : member + 2].tolist()):
                source, question, codes = next(targets)
                assert source == row * width + at + examples.source[target]
                asked = examples.question[target]
                assert question == (PAD if asked == NO_QUESTION else asked)
                assert codes == examples.codes[target].tolist()
            at += end - begin
    assert next(targets, None) is None
    assert (batch.tokens[~used] == PAD).all()
    assert (batch.span[~used] == 1).all()
    assert (batch.positions[~used] == 0).all()
    assert batch.num_tokens == used.sum()
    assert batch.num_seen == seen
    assert batch.num_places == used.size
    assert batch.num_targets == batch.codes.size
    assert batch.example_ids.tolist() == [member for members in rows for member in members]
    assert width % 8 == 0


@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_batch_is_its_examples(num_rows: int) -> None:
    examples = make_examples()
    packer, cursor, met = rows_of(examples), Cursor(), []
    while cursor.epoch == 0:
        rows, cursor = packer.take(cursor, num_rows)
        check_batch(examples, rows, packer.batch(rows))
        assert all(examples.lengths[members].sum() <= 24 for members in rows)
        met += [member for members in rows for member in members]
    assert sorted(met[: examples.num_examples]) == list(range(examples.num_examples))
    assert len(met) > examples.num_examples / 2


@pytest.mark.parametrize("rows", [[[3]], [[3, 0], [5]], [[7], [2, 9, 4]], [[1, 1]]])
def test_any_rows_will_do(rows: list[list[int]]) -> None:
    examples = make_examples()
    check_batch(examples, rows, rows_of(examples, 64).batch(rows))


def test_places_are_as_wide_as_the_widest_needs() -> None:
    examples = make_examples()
    starts = examples.offsets
    widest = [int(examples.sizes[a:b].max()) for a, b in pairwise(starts)]
    narrow = int(np.argmin(widest))
    assert widest[narrow] < 5
    assert rows_of(examples).batch([[narrow]]).tokens.shape[-1] == widest[narrow]


def test_equal_seeds_take_equal_turns() -> None:
    examples = make_examples()
    one, same, other = (rows_of(examples, seed=seed).take(Cursor(), 4)[0] for seed in (1, 1, 2))
    assert one == same != other


def test_what_cannot_be_packed_is_refused() -> None:
    examples = make_examples()
    with pytest.raises(InputError, match=r"row_tokens 8 is less than the longest example, 9"):
        rows_of(examples, 8)
    with pytest.raises(InputError, match="no example to train on"):
        rows_of(examples, chosen=np.arange(0))


def test_the_world_s_windows_fit_too(places_world: Any) -> None:
    examples = ItemExamples.load(places_world.corpus / "sft.npz")
    packer = rows_of(examples, 64, pad=PAD)
    rows, _ = packer.take(Cursor(), 3)
    check_batch(examples, rows, packer.batch(rows))
