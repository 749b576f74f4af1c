"""Item examples → batches: rows of places, the tokens of each place side by side. NumPy only.

The order, and which examples share a row, are those of `packing.py`: they follow from (seed, epoch, row).
"""

from dataclasses import dataclass

import numpy as np

from models.corpus.item_examples import NO_QUESTION, ItemExamples
from models.language.facts import ranges
from models.training.packing import Turns

_MULTIPLE = 8  # widths of batches, for the sake of vector units


@dataclass(frozen=True)
class ItemBatch:
    """B rows of T places of at most W tokens, and their n targets.

    tokens: (B, T, W) int64, padded. span, positions: (B, T) int64, as in `Batch`, a place as a token. source: (n,)
    int64, flat place that a target is asked at. question: (n,) int64, token id or padding. codes: (n, L) int64.
    num_tokens: places without padding. num_seen: pairs of a place and one that it sees. example_ids: which these are.
    """

    tokens: np.ndarray
    span: np.ndarray
    positions: np.ndarray
    source: np.ndarray
    question: np.ndarray
    codes: np.ndarray
    num_tokens: int
    num_seen: int
    example_ids: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What `ItemLoss` takes."""
        return self.tokens, self.span, self.positions, self.source, self.question, self.codes

    @property
    def num_places(self) -> int:
        """Padding included."""
        return self.span.size

    @property
    def num_targets(self) -> int:
        """Codes to be predicted."""
        return self.codes.size


class ItemRows(Turns):
    """Rows of packed item examples. pad: token id that counts nothing."""

    def __init__(self, examples: ItemExamples, chosen: np.ndarray, row_tokens: int, seed: int, pad: int) -> None:
        super().__init__(examples.lengths, examples.weight, chosen, row_tokens, seed)
        self.examples, self.pad = examples, pad
        self._starts = np.concatenate([[0], np.cumsum(examples.sizes)])  # first token of each place

    def batch(self, rows: list[list[int]]) -> ItemBatch:
        """The arrays of some rows, as wide as the fullest of them needs."""
        examples, starts = self.examples, self._starts
        ids = np.array([member for members in rows for member in members])
        lengths, begins = examples.lengths[ids], examples.offsets[ids]
        row = np.repeat(np.arange(len(rows)), [len(members) for members in rows])
        # Where each example begins in its row.
        ends = np.cumsum(lengths)
        filled = np.array([examples.lengths[members].sum() for members in rows])
        column = ends - lengths - np.repeat(np.cumsum(filled) - filled, [len(members) for members in rows])
        width = -(-int(filled.max()) // _MULTIPLE) * _MULTIPLE
        place = ranges(begins, lengths)
        goal = np.repeat(row * width + column - begins, lengths) + place  # flat place in the batch
        positions = np.zeros(len(rows) * width, dtype=np.int64)
        span = np.ones(len(rows) * width, dtype=np.int64)
        positions[goal] = place - np.repeat(begins, lengths)
        span[goal] = np.repeat(begins + lengths, lengths) - place
        sizes = examples.sizes[place]
        tokens = np.full((len(rows) * width, int(sizes.max())), self.pad, dtype=np.int64)
        taken = ranges(starts[place], sizes)
        tokens[np.repeat(goal, sizes), taken - np.repeat(starts[place], sizes)] = examples.tokens[taken]
        counts = np.diff(examples.target_offsets)[ids]
        target = ranges(examples.target_offsets[ids], counts)
        question = examples.question[target].astype(np.int64)
        shape = (len(rows), width)
        return ItemBatch(
            tokens=tokens.reshape(*shape, -1),
            span=span.reshape(shape),
            positions=positions.reshape(shape),
            source=np.repeat(row * width + column, counts) + examples.source[target],
            question=np.where(question == NO_QUESTION, self.pad, question),
            codes=examples.codes[target].astype(np.int64),
            num_tokens=int(filled.sum()),
            num_seen=int((lengths * (lengths + 1) // 2).sum()),
            example_ids=ids,
        )
