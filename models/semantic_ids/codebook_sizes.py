"""How large codebooks and tie-break are where the recipe says `auto`: pure functions of what was counted.

What counts is not how many items there are but how many contents. Items whose vectors are equal get equal codes from
any quantiser, and no codebook tells them apart; the tie-break does.

The numbers were read off `benchmarks/sid_codebooks.py` (docs/training.md has its rows). How many contents share a code
of the first level decides more than anything else: with at most 20 of them .7 to .95 of those that could be alone on a
SID are. Twice the first codebook gains about three times what twice the second does. A third level gains most of all
and costs the language model a token an item, so it comes where a first codebook would need more codes than minutes of
training can fill.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from models.semantic_ids.vectors import VectorFile

_SIZES: tuple[tuple[float, tuple[int, ...]], ...] = (
    (320, (64, 64)),
    (2_560, (128, 256)),
    (5_120, (256, 256)),
    (10_240, (512, 512)),
    (20_480, (1024, 512)),
    (40_960, (2048, 1024)),
    (1_000_000, (1024, 512, 256)),
    (float("inf"), (2048, 1024, 512)),
)
"""Most contents, and the codes of each level for them."""
TIE_BREAK = (16, 1024)
"""Fewest and most digits."""
_OVER = 0.001


def codebook_sizes(num_contents: int) -> tuple[int, ...]:
    """Codes of each level for a catalogue of so many different contents."""
    return next(sizes for most, sizes in _SIZES if num_contents <= most)


def tie_break_size(prefixes_NL: np.ndarray) -> int:
    """Digits that tell the items of each prefix apart: a power of two, and one item in a thousand may find none free.

    prefixes_NL: the codes of N items, without a tie-break.
    """
    fewest, most = TIE_BREAK
    if not len(prefixes_NL):
        return fewest
    counts = np.unique(prefixes_NL, axis=0, return_counts=True)[1]
    digits = fewest
    while digits < most and np.maximum(counts - digits, 0).sum() > _OVER * len(prefixes_NL):
        digits *= 2
    return digits


@dataclass(frozen=True)
class Contents:
    """What a quantiser can tell apart of N items. first: (N,) bool, the first item of each content.

    num_alone: items whose content no other item has: no table can have more items alone on a SID.
    """

    first: np.ndarray
    num_alone: int

    @property
    def number(self) -> int:
        """Different contents."""
        return int(self.first.sum())

    @property
    def uniqueness(self) -> float:
        """Share of the items whose content no other item has; 0 of nothing."""
        return self.num_alone / max(len(self.first), 1)

    @classmethod
    def of(cls, file: VectorFile, modalities: tuple[str, ...] | None = None) -> "Contents":
        """Read the vectors once. modalities: those that the quantiser sees, None: all."""
        digests = []
        for block in file.blocks():
            names = sorted(modalities or block.modalities)
            seen = block.select(names).modalities
            values = np.concatenate([seen[name] for name in names], axis=1) + np.float32(0)  # -0 is 0
            digests += [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in values]
        _, rows, counts = np.unique(np.frombuffer(b"".join(digests), np.uint64), return_index=True, return_counts=True)
        first = np.zeros(len(digests), bool)
        first[rows] = True
        return cls(first, int((counts == 1).sum()))
