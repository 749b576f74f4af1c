"""What every baseline does the same way: item numbers for item ids, and an exact top-k with exclusions.

The interface of a baseline is two calls:

    Baseline.fit(histories, item_ids, …) → a frozen baseline      histories: pa.Table of plumline.schema.HISTORIES
    baseline.rank(histories, k, exclude) → Q lists of ≤ k item ids, best first

Items of equal score and equal tie-break come in the order of a hash of their ids: ids may say when an item came or what
is sold with it (events of one day often lie in the order of their ids), and a baseline must not profit from that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from models.memory.products import highest_products
from models.semantic_ids.sids import digit_of

_CHUNK = 256
_CELLS = 30_000_000  # scores of a chunk, were every item to have one: large catalogues get fewer queries a time
_SPARE = 100  # scores kept beyond what the list and the exclusions need, so that the tie-break sees all equal ones


def encode(histories: Sequence[Sequence[str]], item_ids: Sequence[str], last: int) -> list[list[int]]:
    """Item numbers of the `last` known items of each history, oldest first."""
    numbers = {item: number for number, item in enumerate(item_ids)}
    return [[numbers[item] for item in history if item in numbers][-last:] for history in histories]


def chunks(num_queries: int, num_items: int) -> Iterator[slice]:
    """Slices of queries that are scored together, so that (queries, items) arrays stay small."""
    height = max(1, min(_CHUNK, _CELLS // max(1, num_items)))
    for start in range(0, num_queries, height):
        yield slice(start, min(start + height, num_queries))


def known_items(histories: pa.Table, item_ids: Sequence[str]) -> list[str]:
    """The items to recommend, sorted, then every other one of the histories: those still say something about a user."""
    items = sorted(item_ids)
    seen = histories.column("item_ids").combine_chunks().flatten().unique().to_pylist()
    return items + sorted(set(seen) - set(items))


def recent_items(histories: Sequence[Sequence[str]], known_ids: Sequence[str], last: int, decay: float) -> Any:
    """(Q, M) CSR over known_ids: the i-th last of the `last` known items of a history weighs decay^(i-1)."""
    from scipy.sparse import csr_matrix

    queries = encode(histories, known_ids, last)
    lengths = np.asarray([len(query) for query in queries], dtype=np.int64)
    places = np.concatenate([np.zeros(0), *(np.arange(n)[::-1] for n in lengths)])
    numbers = np.asarray([number for query in queries for number in query], dtype=np.int64)
    rows = np.repeat(np.arange(len(queries)), lengths)
    return csr_matrix((decay**places, (rows, numbers)), shape=(len(queries), len(known_ids)))


def rank_items(
    score: Callable[[slice], Any],
    tie_break: np.ndarray,
    item_ids: Sequence[str],
    k: int,
    exclude: Sequence[Collection[str]],
) -> list[list[str]]:
    """The k best items of each query that are not excluded.

    score: queries start … stop → (queries, N) scores, higher is better; an array, or CSR with no score below zero.
    tie_break: (N,) what orders items of equal score, higher first; after that a hash of the id.
    exclude: one collection a query.
    """
    from scipy.sparse import issparse

    # Columns in the order of the tie-break, so that "first column wins" settles ties.
    columns = np.lexsort((np.array([digit_of(item, 2**62) for item in item_ids], dtype=np.int64), -tie_break))
    places = np.argsort(columns)
    place = {item: int(column) for item, column in zip(item_ids, places, strict=True)}
    ranked: list[list[str]] = []
    for chunk in chunks(len(exclude), len(item_ids)):
        scores = score(chunk)
        rows = _sparse_rows(scores.tocsr(), places) if issparse(scores) else scores[:, columns].astype(np.float64)
        for row, items in zip(rows, exclude[chunk], strict=True):
            gone = [place[item] for item in items if item in place]
            if isinstance(row, np.ndarray):
                row[gone] = -np.inf
                best = best_columns(row, k)
            else:
                numbers, values = row
                best = _best_of_sparse(numbers, values, gone, k, len(columns))
            ranked.append([item_ids[columns[column]] for column in best])
    return ranked


def best_products(left: Any, right: Any, k: int, exclude: Sequence[Collection[str]]) -> Any:
    """(Q, N) CSR of the highest cells of a sparse product, for `rank_items`: never all of its cells, which are many.

    left: (Q, R) CSR, right: (R, N) CSR, neither with a value below zero. As many cells of a row are kept as the k best
    can need whatever is excluded, and some more; more items than those that are equal at the end of a row would be
    told apart by chance.
    """
    return highest_products(left, right, k + max((len(items) for items in exclude), default=0) + _SPARE)


def _sparse_rows(scores: Any, places: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Columns (in the order of the tie-break) and scores of each row of a CSR."""
    for start, stop in zip(scores.indptr[:-1], scores.indptr[1:], strict=True):
        yield places[scores.indices[start:stop]], scores.data[start:stop]


def _best_of_sparse(columns: np.ndarray, values: np.ndarray, gone: list[int], k: int, num_items: int) -> np.ndarray:
    # Of the items without a score only the first by tie-break can come in: k of them, and as many as are excluded.
    candidates = np.union1d(columns, np.arange(min(num_items, k + len(gone))))
    scores = np.zeros(len(candidates))
    scores[np.searchsorted(candidates, columns)] = values
    scores[np.isin(candidates, gone)] = -np.inf
    return candidates[best_columns(scores, k)]


def best_columns(scores: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k highest scores above -inf, best first, equal scores in column order. (N,) → (≤ k,) int64."""
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        kept = np.flatnonzero(scores >= threshold)
    else:
        kept = np.arange(len(scores))
    kept = kept[scores[kept] > -np.inf]
    return kept[np.argsort(-scores[kept], kind="stable")][:k]
