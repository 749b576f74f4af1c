"""Names of codes that survive a retraining, and what moved all the same: churn.

A retrained quantiser calls its codes as it likes, so without alignment every item seems to move. Two latent spaces
cannot be compared, but the items that stand in both can: of each level, in order, the new codes get the old names that
keep most items where they were (Hungarian method; Kuhn 1955). A code's name matters below a prefix only if the prefix
itself survived, so level l counts the items whose first l-1 codes are still theirs.

Shapes: N items, L levels.
"""

from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from models.semantic_ids.table import SidTable


def align(old: SidTable, item_ids: list[str], codes: np.ndarray, codebooks: tuple[int, ...]) -> list[np.ndarray]:
    """New names of the codes of a retrained quantiser. codes: (N, L) of item_ids. Returns L permutations (K,) int64.

    Levels that the old table lacks keep their names; without any common item all do.
    """
    known, rows = common_rows(old, item_ids)
    kept = np.ones(len(known), bool)
    names = []
    for level, size in enumerate(codebooks):
        if level >= old.prefixes.shape[1]:
            names.append(np.arange(size))
            continue
        before, after = old.prefixes[known, level][kept], codes[rows, level][kept]
        # Names that the new codebook is too small for are nobody's; names that the old one lacked are free.
        together_KK = sparse.csr_array(
            (np.ones(len(before)), (after, before)), shape=(size, max(size, old.space.sizes[level]))
        ).toarray()[:, :size]
        new = np.empty(size, np.int64)
        rows_K, columns_K = linear_sum_assignment(together_KK, maximize=True)
        new[rows_K] = columns_K
        names.append(new)
        kept[kept] = new[after] == before
    return names


def common_rows(old: SidTable, item_ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `old` and places in `item_ids` of the items that stand in both, each (n,) int64."""
    place = {item_id: row for row, item_id in enumerate(item_ids)}
    pairs = [(row, place[item_id]) for row, item_id in enumerate(old.item_ids) if item_id in place]
    both = np.array(pairs, np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def churn(old: SidTable, item_ids: list[str], codes: np.ndarray, traffic: dict[str, float]) -> list[dict[str, Any]]:
    """What moved, a mapping a level: share of the common items whose first l codes are no longer what they were.

    codes: (N, L) without tie-break. traffic: item → weight, e.g. its events. Keys: `level`, `items` (each item counts
    one) and `traffic` (each by its weight; None where no common item has any). No common item: an empty list.
    """
    known, rows = common_rows(old, item_ids)
    if not len(known):
        return []
    weights = np.array([traffic.get(item_ids[row], 0.0) for row in rows])
    moved = np.zeros(len(known), bool)
    levels = []
    for level in range(min(old.prefixes.shape[1], codes.shape[1])):
        moved |= old.prefixes[known, level] != codes[rows, level]
        weighted = float(weights @ moved / weights.sum()) if weights.sum() > 0 else None
        levels.append({"level": level + 1, "items": float(moved.mean()), "traffic": weighted})
    return levels


def undo(names: list[np.ndarray], codes: np.ndarray) -> np.ndarray:
    """Codes as they were called before `align` renamed them. codes: (N, L). Returns (N, L) int64."""
    return np.stack([np.argsort(new)[codes[:, level]] for level, new in enumerate(names)], axis=1)
