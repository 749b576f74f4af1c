"""What every baseline does the same way: item numbers for item ids, and an exact top-k with exclusions.

The interface of a baseline is two calls:

    Baseline.fit(histories, item_ids, …) → a frozen baseline      histories: pa.Table of plumline.schema.HISTORIES
    baseline.rank(histories, k, exclude) → Q lists of ≤ k item ids, best first
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_CHUNK = 256


@dataclass(frozen=True)
class Events:
    """All events of the histories, flat, user after user, oldest first within one.

    items: (E,) int64, number in `item_ids`. users: (E,) int64, row of the history. timestamps: (E,) int64 epoch ms.
    Events of items that are not in `item_ids` are left out.
    """

    items: np.ndarray
    users: np.ndarray
    timestamps: np.ndarray


def read_events(histories: pa.Table, item_ids: Sequence[str]) -> Events:
    """Flatten a table of histories."""
    lists = histories.column("item_ids").combine_chunks()
    users = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    items = pc.index_in(pc.list_flatten(lists), pa.array(item_ids, pa.string()))
    known = pc.is_valid(items).to_numpy(zero_copy_only=False)
    numbers = pc.fill_null(items, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    timestamps = pc.list_flatten(histories.column("timestamps").combine_chunks()).to_numpy(zero_copy_only=False)
    return Events(numbers[known], users[known].astype(np.int64), timestamps[known])


def encode(histories: Sequence[Sequence[str]], item_ids: Sequence[str], last: int) -> list[list[int]]:
    """Item numbers of the `last` known items of each history, oldest first."""
    numbers = {item: number for number, item in enumerate(item_ids)}
    return [[numbers[item] for item in history if item in numbers][-last:] for history in histories]


def chunks(num_queries: int) -> Iterator[slice]:
    """Slices of queries that are scored together, so that (queries, items) arrays stay small."""
    for start in range(0, num_queries, _CHUNK):
        yield slice(start, start + _CHUNK)


def rank_items(
    score: Callable[[slice], np.ndarray],
    tie_break: np.ndarray,
    item_ids: Sequence[str],
    k: int,
    exclude: Sequence[Collection[str]],
) -> list[list[str]]:
    """The k best items of each query that are not excluded.

    score: queries start … stop → (queries, N) scores, higher is better. tie_break: (N,) what orders items of equal
    score, higher first; after that the order of item_ids. exclude: one collection a query.
    """
    # Columns in the order of the tie-break, so that "first column wins" settles ties.
    columns = np.lexsort((np.arange(len(item_ids)), -tie_break))
    place = {item_ids[number]: column for column, number in enumerate(columns)}
    ranked: list[list[str]] = []
    for chunk in chunks(len(exclude)):
        scores = score(chunk)[:, columns].astype(np.float64)
        for row, items in enumerate(exclude[chunk]):
            scores[row, [place[item] for item in items if item in place]] = -np.inf
        ranked += [[item_ids[columns[c]] for c in best_columns(row, k)] for row in scores]
    return ranked


def best_columns(scores: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k highest scores above -inf, best first, equal scores in column order. (N,) → (≤ k,) int64."""
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        kept = np.flatnonzero(scores >= threshold)
    else:
        kept = np.arange(len(scores))
    kept = kept[scores[kept] > -np.inf]
    return kept[np.argsort(-scores[kept], kind="stable")][:k]
