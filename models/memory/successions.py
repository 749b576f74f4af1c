"""Successions of arrays of events: how often one item comes soon after another, as sparse matrices.

The count itself is `features/successions.py`, run on DuckDB within `PLUMLINE_COUNTING_MEMORY`; what does not fit goes
through a temporary folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from features.successions import UNIT, count_successions
from plumline.settings import get_settings
from plumline.stage import num_cores


def successions(
    items: np.ndarray,
    users: np.ndarray,
    num_items: int,
    *,
    window: int,
    decay: float,
    weights: Sequence[np.ndarray | None] = (None,),
) -> list[Any]:
    """(N, N) scipy CSR float64, one for each of `weights`: how often the column's item came soon after the row's.

    items, users: (E,) integers, user after user, oldest first. Items that lie d ≤ window steps apart in one user's
    events count decay^(d-1), times the weight of the later event: (E,) in 0 … 1, None for 1. An item does not succeed
    itself. The sums are exact to 2^-30 and the same on every machine.
    """
    import ibis
    from scipy.sparse import csr_matrix

    names = [f"weight_{place}" for place in range(len(weights))]
    columns = {
        "user_id": users.astype(np.int32, copy=False),
        "place": np.arange(len(items), dtype=np.int32),
        "item_id": items.astype(np.int32, copy=False),
    }
    for name, weight in zip(names, weights, strict=True):
        if weight is not None:
            columns[name] = np.rint(weight * UNIT).astype(np.int64)
    with TemporaryDirectory() as spill:
        connection = ibis.duckdb.connect(
            memory_limit=get_settings().counting_memory,
            threads=get_settings().threads or num_cores(),
            temp_directory=spill,
            preserve_insertion_order=False,
        )
        try:
            steps = ibis.memtable(pa.table(columns))
            steps = steps.mutate(**{name: ibis.literal(UNIT, type="int64") for name in names if name not in columns})
            counted = count_successions(steps, order_by=("place",), window=window, decay=decay, weights=names)
            batches = connection.to_pyarrow_batches(counted.select("item_a", "item_b", *names))
            parts: list[list[np.ndarray]] = [[] for _ in range(2 + len(names))]
            for batch in batches:
                for part, column in zip(parts, batch.columns, strict=True):
                    part.append(column.to_numpy(zero_copy_only=False))
        finally:
            connection.disconnect()
    before, after = _joined(parts, 0, np.int32), _joined(parts, 1, np.int32)
    counts = []
    for place in range(len(names)):
        amount = _joined(parts, 2 + place, np.int64)
        counted_ones = csr_matrix((amount / UNIT, (before, after)), shape=(num_items, num_items))
        counted_ones.sort_indices()  # rows came in any order
        counts.append(counted_ones)
    return counts


def divide_by_roots(follows: Any, counts: np.ndarray, first_row: int = 0) -> Any:
    """(n, N) CSR of counts → cosines: each over the root of both items' own counts, in place.

    counts: (N,) float64; one of zero divides by one. first_row: the item of the first row.
    """
    scale = 1 / np.sqrt(np.where(counts > 0, counts, 1.0))
    rows = scale[first_row : first_row + follows.shape[0]]
    follows.data *= np.repeat(rows, np.diff(follows.indptr)) * scale[follows.indices]
    return follows


def _joined(parts: list[list[np.ndarray]], place: int, kind: type) -> np.ndarray:
    """One column of all batches, which are let go."""
    whole = np.concatenate([np.zeros(0, kind), *parts[place]])
    parts[place].clear()
    return whole
