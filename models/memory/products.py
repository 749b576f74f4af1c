"""Sparse products of which only the highest cells of each row are kept while they are made: the one top-k of the house.

A product of counts or of words has nearly all of its Q x N cells; sparse_dot_topn keeps one row of sums at a time. One
thread sums a row in the order of its entries, so that threads change no byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from plumline.settings import get_settings
from plumline.stage import num_cores


def highest_products(left: Any, right: Any, num_kept: int) -> Any:
    """The highest cells of left @ right, none of a zero sum. left: (Q, R) CSR, right: (R, N) CSR, of one dtype.

    Returns (Q, N) CSR, best first within a row, at most num_kept each. Which of the cells that are equal to a row's
    last one are kept is the library's choice, always the same.
    """
    from sparse_dot_topn import sp_matmul_topn

    threads = get_settings().threads or num_cores()
    return sp_matmul_topn(left, right, top_n=max(1, min(num_kept, right.shape[1])), sort=True, n_threads=threads)


def place_in_row(rows: np.ndarray, num_rows: int) -> np.ndarray:
    """(E,) int64: how many entries of its row stand before each entry. rows: (E,) ascending row numbers."""
    starts = np.searchsorted(rows, np.arange(num_rows))
    return np.arange(len(rows)) - starts[rows]
