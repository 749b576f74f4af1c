"""What describes an item as words, and the items whose words are most like its own: TF-IDF, cosine, top-k by blocks.

The cosines of all pairs are one sparse product (`models/memory/products.py`). A term that n rows and m targets have
costs n · m multiplications of it, so a word of half the catalogue costs more than all rare ones together and says
least: where the product is beyond a budget, the commonest terms are left out of it (not out of the lengths of the rows,
so that a cosine is never more than the exact one).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from models.memory.products import highest_products, place_in_row
from models.semantic_ids.text_encoders import terms_of
from plumline.schema import DESCRIBING
from plumline.tables import column

BUDGET = 20_000_000_000
"""Multiplications that comparing all texts of a catalogue may take: minutes of two cores."""
_KEPT = 8_000_000  # entries of a block of results


def texts_of(items: pa.Table) -> list[str]:
    """What describes each item, as one text; empty where nothing does."""
    columns = [column(items, name) if name in items.column_names else [None] * items.num_rows for name in DESCRIBING]
    return [
        ". ".join(part if isinstance(part, str) else ", ".join(filter(None, part)) for part in parts if part)
        for parts in zip(*columns, strict=True)
    ]


def has_words(items: pa.Table, item_ids: Collection[str]) -> bool:
    """Whether any of the items has a word to go by."""
    wanted = set(item_ids)
    return any(
        item in wanted and terms_of(text) for item, text in zip(column(items, "item_id"), texts_of(items), strict=True)
    )


def word_vectors(texts: Sequence[str], *, pairs: bool = True) -> Any:
    """(N, F) scipy CSR float64 of TF-IDF rows of length one (sublinear counts, Salton & Buckley 1988).

    pairs: whether two neighbouring words are a term beside each of them. A text without a word has an empty row; if
    none has one, F is 0.
    """
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

    # No stop words: a shop's words are in many languages, and TF-IDF knows which are common.
    vectorizer = TfidfVectorizer(analyzer=terms_of if pairs else _words_of, sublinear_tf=True)
    try:
        return vectorizer.fit_transform(texts).tocsr()
    except ValueError as error:
        if "empty vocabulary" not in str(error):
            raise
        return csr_matrix((len(texts), 0))


def _words_of(text: str) -> list[str]:
    return [term for term in terms_of(text) if " " not in term]


def alike(vectors: Any, targets: np.ndarray, k: int, budget: int = BUDGET) -> Iterator[Any]:
    """The k targets with the highest cosine for every row, without the row itself, in consecutive blocks of rows.

    vectors: (N, F) CSR with rows of length one or zero. targets: (T,) rows, ascending. budget: multiplications allowed
    in all. Yields (n, N) CSR float32, best first within a row; of equal cosines at the end of a row any
    may be kept, always the same ones.
    """
    from scipy.sparse import csr_matrix

    number = vectors.shape[0]
    rows = vectors.astype(np.float32)
    others = rows[targets].T.tocsr()
    kept = _telling(np.bincount(rows.indices, minlength=rows.shape[1]), np.diff(others.indptr), budget)
    rows, others = rows[:, kept], others[kept]
    height = max(1, _KEPT // (k + 1))
    for start in range(0, number, height):
        stop = min(start + height, number)
        best = highest_products(rows[start:stop], others, k + 1)
        row = np.repeat(np.arange(stop - start), np.diff(best.indptr))
        item = targets[best.indices]
        other = item != row + start
        row, item, weight = row[other], item[other], best.data[other]
        within = place_in_row(row, stop - start) < k
        counts = np.bincount(row[within], minlength=stop - start)
        yield csr_matrix(
            (weight[within], item[within], np.concatenate([[0], np.cumsum(counts)])), shape=(stop - start, number)
        )


def _telling(in_rows: np.ndarray, in_targets: np.ndarray, budget: int) -> np.ndarray:
    """Numbers of the terms, ascending, that tell two items alike; the cheapest ones, where the budget ends."""
    cost = in_rows.astype(np.int64) * in_targets
    order = np.argsort(cost, kind="stable")
    order = order[np.cumsum(cost[order]) <= budget]
    return np.sort(order[(in_rows[order] > 1) & (in_targets[order] > 0)])
