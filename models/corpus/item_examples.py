"""Examples of fine-tuning with one place an item, as flat arrays: what `corpus` writes and the training loop reads.

The other form of `examples.py`, for vocabularies with `item_places` (models/language/places.py). An example is a plain
sequence of places, each a bag of tokens, and targets that are asked for at some of them. `sft_item_examples.py` writes
them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from models.corpus.examples import ExampleArrays

NO_QUESTION = -1


@dataclass(frozen=True)
class ItemExamples(ExampleArrays):
    """N examples of P places and n targets together.

    tokens: (K,) int32 ids, place after place. sizes: (P,) int32, tokens of each place. offsets: (N + 1,) int64, first
    place of each example. source: (n,) int32, place of its example that a target is asked at. question: (n,) int32,
    token id, NO_QUESTION for none. codes: (n, L) int32. target_offsets: (N + 1,) int64, first target of each example.
    kind: (N,) int8, weight: (N,) float32, as in `Examples`.
    """

    tokens: np.ndarray
    sizes: np.ndarray
    offsets: np.ndarray
    source: np.ndarray
    question: np.ndarray
    codes: np.ndarray
    target_offsets: np.ndarray
    kind: np.ndarray
    weight: np.ndarray

    def fits(self) -> bool:
        """Whether the arrays fit to one another."""
        return bool(
            self.sizes.sum() == len(self.tokens)
            and len(self.question) == len(self.codes) == len(self.source) == self.target_offsets[-1]
            and len(self.target_offsets) - 1 == self.num_examples
            and self.offsets[-1] == len(self.sizes)
        )

    def describe(self) -> dict[str, Any]:
        """As `Examples.describe`; a place counts as a token."""
        return self._describe(self.codes.size)
