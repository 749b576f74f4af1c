"""SidTable: the reader of a `sids` artifact, and what can be said of a table of codes.

Apart from models/semantic_ids/sids.py so that whoever reads the table does not depend on the code that fills it.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from plumline import artifact, tables
from plumline.errors import CorruptArtifactError
from plumline.sid import SidSpace


@dataclass(frozen=True)
class SidTable:
    """The SIDs of N items. space: shape of a SID, L levels. tie_break: whether the last level is the tie-break digit.

    item_ids: sorted. codes: (N, L) int32, tie-break digit included.
    """

    space: SidSpace
    tie_break: bool
    item_ids: list[str]
    codes: np.ndarray

    @cached_property
    def codes_of(self) -> dict[str, tuple[int, ...]]:
        """item_id → its L codes."""
        return dict(zip(self.item_ids, map(tuple, self.codes.tolist()), strict=True))

    @property
    def prefixes(self) -> np.ndarray:
        """Codes without the tie-break digit, (N, L or L-1) int32."""
        return self.codes[:, :-1] if self.tie_break else self.codes

    def save(self, folder: Path) -> None:
        """Write sids.parquet and space.json."""
        codes = pa.array(self.codes.tolist(), pa.list_(pa.int32()))
        tables.write_parquet(
            folder / "sids.parquet", pa.table({"item_id": pa.array(self.item_ids, pa.string()), "codes": codes})
        )
        artifact.write_json(folder / "space.json", {"sizes": list(self.space.sizes), "tie_break": self.tie_break})

    @classmethod
    def load(cls, folder: Path) -> "SidTable":
        """Read a sids artifact. Raises MissingArtifactError, or CorruptArtifactError if a code is out of the space."""
        about = artifact.read_json(folder / "space.json")
        space = SidSpace(tuple(about["sizes"]))
        table = tables.read_parquet(folder / "sids.parquet")
        codes = np.array(tables.column(table, "codes"), np.int32).reshape(-1, space.num_levels)
        if not space.contains(codes).all():
            raise CorruptArtifactError(f"{folder / 'sids.parquet'}: codes outside {space.sizes}; run the stage again")
        return cls(space, about["tie_break"], tables.column(table, "item_id"), codes)


def describe_levels(codes: np.ndarray, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """How evenly each level's codes are used. codes: (N, L) integers. sizes: codes of each level.

    One mapping a level: `size`; `used` codes that some item has; `usage` = used / size; `perplexity` = exp of the
    entropy of the code distribution (1 … size); `gini` of the counts over all codes (0: even, → 1: all on one).
    """
    levels = []
    for level, size in enumerate(sizes):
        counts = np.sort(np.bincount(codes[:, level], minlength=size)).astype(np.float64)
        total = max(counts.sum(), 1.0)
        shares = counts[counts > 0] / total
        gini = float((2 * np.arange(1, size + 1) - size - 1) @ counts / (size * total))
        used = int((counts > 0).sum())
        levels.append(
            {
                "size": size,
                "used": used,
                "usage": used / size,
                "perplexity": float(np.exp(-(shares * np.log(shares)).sum())),
                "gini": gini,
            }
        )
    return levels


def bucket_sizes(codes: np.ndarray) -> np.ndarray:
    """For every row of codes (N, L), how many rows are equal to it, itself included. Returns (N,) int64."""
    if not len(codes):
        return np.zeros(0, np.int64)
    _, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return counts[inverse.reshape(-1)]
