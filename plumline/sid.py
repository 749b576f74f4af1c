"""SidSpace: the one place that knows how a Semantic ID is spelt.

code tuple (12, 5, 0) ↔ text "<a_12><b_5><c_0>" ↔ token ids base + offset(level) + code. One letter a level, so that a
token says by itself which level it belongs to, and the ids of one level are one slice of the vocabulary.
"""

import re
import string
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from plumline.errors import InputError

_TOKEN = re.compile(r"<([a-z])_(\d+)>")


@dataclass(frozen=True)
class SidSpace:
    """Shape of a SID: the number of codes of each level, first level first.

    The tie-break digit, where a recipe has one, is simply the last level.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.sizes) <= 26 or min(self.sizes) < 1:
            raise InputError(f"SID levels {self.sizes}: need 1 to 26 levels of at least one code each")

    @property
    def num_levels(self) -> int:
        """L, the tokens of one SID."""
        return len(self.sizes)

    @property
    def num_tokens(self) -> int:
        """Tokens of all levels together."""
        return sum(self.sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First token of each level, relative to the first SID token of the vocabulary. Length L."""
        return tuple(accumulate((0, *self.sizes[:-1])))

    def token(self, level: int, code: int) -> str:
        """Text of one token: token(0, 12) is "<a_12>"."""
        return f"<{string.ascii_lowercase[level]}_{code}>"

    def tokens(self) -> list[str]:
        """Texts of all tokens in the order of their ids."""
        return [self.token(level, code) for level, size in enumerate(self.sizes) for code in range(size)]

    def format(self, codes: tuple[int, ...] | list[int]) -> str:
        """Text of a SID."""
        return "".join(self.token(level, code) for level, code in enumerate(codes))

    def parse(self, text: str) -> tuple[int, ...]:
        """Codes of a SID's text. Raises InputError if it is not a SID of this space."""
        codes = tuple(int(code) for _, code in _TOKEN.findall(text))
        inside = len(codes) == self.num_levels and all(c < size for c, size in zip(codes, self.sizes, strict=True))
        if not inside or self.format(codes) != text:
            example = self.format([0] * self.num_levels)
            raise InputError(f"{text!r} is no SID of levels {self.sizes}; one looks like {example}")
        return codes

    def token_ids(self, codes: np.ndarray, base: int = 0) -> np.ndarray:
        """Token ids of codes. codes: (..., L) integers; base: id of the first SID token. Returns (..., L) int64."""
        return np.asarray(codes, dtype=np.int64) + np.asarray(self.offsets, dtype=np.int64) + base

    def codes(self, token_ids: np.ndarray, base: int = 0) -> np.ndarray:
        """Inverse of `token_ids`. Returns (..., L) int64; values outside the space are the caller's to check."""
        return np.asarray(token_ids, dtype=np.int64) - np.asarray(self.offsets, dtype=np.int64) - base

    def contains(self, codes: np.ndarray) -> np.ndarray:
        """Which code tuples lie in the space. codes: (..., L). Returns (...) bool."""
        codes = np.asarray(codes)
        return np.asarray(((codes >= 0) & (codes < np.asarray(self.sizes))).all(axis=-1))
