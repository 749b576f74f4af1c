"""Examples of fine-tuning with one place an item, as flat arrays: what `corpus` writes and the training loop reads.

The other form of `examples.py`, for vocabularies with `item_places` (models/language/places.py). An example is a plain
sequence of places, each a bag of tokens, and targets that are asked for at some of them. `sft_item_examples.py` writes
them.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from models.corpus.examples import describe, rows_of_kinds
from plumline.errors import CorruptArtifactError
from plumline.tables import load_arrays, save_arrays

NO_QUESTION = -1


@dataclass(frozen=True)
class ItemExamples:
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

    @property
    def num_examples(self) -> int:
        """N."""
        return len(self.kind)

    @property
    def lengths(self) -> np.ndarray:
        """Places of each example, (N,) int64."""
        return np.diff(self.offsets)

    def of_kinds(self, *kinds: str) -> np.ndarray:
        """Rows of the examples of these kinds, (n,) int64."""
        return rows_of_kinds(self.kind, kinds)

    def describe(self) -> dict[str, Any]:
        """As `Examples.describe`; a place counts as a token."""
        return describe(self.kind, self.lengths, self.codes.size)

    def save(self, path: Path) -> None:
        """Write as npz."""
        save_arrays(path, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "ItemExamples":
        """Read an npz of `save`. Raises CorruptArtifactError if the arrays do not fit together."""
        arrays = load_arrays(path)
        if arrays.keys() != {f.name for f in fields(cls)}:
            raise CorruptArtifactError(f"{path}: holds {sorted(arrays)}; run `python -m models.corpus.corpus` again")
        found = cls(**arrays)
        targets, examples = len(found.source), found.num_examples
        if not (
            found.sizes.sum() == len(found.tokens)
            and len(found.question) == len(found.codes) == targets == found.target_offsets[-1]
            and len(found.weight) == examples == len(found.offsets) - 1 == len(found.target_offsets) - 1
            and found.offsets[-1] == len(found.sizes)
        ):
            raise CorruptArtifactError(
                f"{path}: arrays of different lengths; run `python -m models.corpus.corpus` again"
            )
        return found
