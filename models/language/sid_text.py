"""What the titles say about a SID token: the words of the items whose SID holds it.

Not a stage: `vocabulary` writes it, `row_init` starts embeddings from it. S SID tokens, T text tokens.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from features.catalog import Catalog
from models.semantic_ids.table import SidTable
from plumline.errors import MissingArtifactError
from plumline.tables import load_arrays, save_arrays

if TYPE_CHECKING:
    from models.language.words import Vocabulary

FILE = "sid_text.npz"

_TITLE_TOKENS = 32
_TOKENS_OF_A_CODE = 64
_CHUNK = 20_000


def write_sid_text(words: "Vocabulary", table: SidTable, catalog: Catalog) -> None:
    """Write, into the vocabulary's folder, the text tokens that stand out in the titles of each SID token's items.

    Of a token of a title counts its inverse document frequency, ln(N / items with it); of each SID token the 64
    heaviest are kept, their weights summing to 1. A tie-break digit means nothing and has none.
    """
    from scipy.sparse import csr_matrix

    has = _tokens_of_items(words, table, catalog)
    frequency = np.maximum(has.sum(axis=0).A1, 1.0)
    weighted = has.multiply(np.log(max(has.shape[0], 1) / frequency)[None]).tocsr()
    codes = table.prefixes
    offsets = np.asarray(words.space.offsets)[: codes.shape[1]]
    flat, rows = (codes + offsets).ravel(), np.repeat(np.arange(len(codes)), codes.shape[1])
    member = csr_matrix((np.ones(len(flat)), (flat, rows)), shape=(words.space.num_tokens, len(codes)))
    summed = (member @ weighted).tocsr()
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for code in range(summed.shape[0]):
        at = slice(summed.indptr[code], summed.indptr[code + 1])
        tokens, weights = summed.indices[at], summed.data[at]
        best = np.lexsort((tokens, -weights))[:_TOKENS_OF_A_CODE]
        best = best[weights[best] > 0]
        if len(best):
            kept.append((np.full(len(best), code), tokens[best], weights[best] / weights[best].sum()))
    codes_of, tokens_of, weights_of = map(np.concatenate, zip(*kept, strict=True)) if kept else np.zeros((3, 0))
    save_arrays(
        words.folder / FILE,
        code=codes_of.astype(np.int32),
        token=tokens_of.astype(np.int32),
        weight=weights_of.astype(np.float32),
    )


def read_sid_text(words: "Vocabulary") -> Any:
    """(S, T) scipy CSR float64: each SID token's weights of text tokens, a row summing to 1, or to 0 without titles.

    Raises MissingArtifactError for a vocabulary of before there was such a file.
    """
    from scipy.sparse import csr_matrix

    path = words.folder / FILE
    if not path.is_file():
        raise MissingArtifactError(f"{path}: no such file; run `python -m models.language.vocabulary` again")
    found = load_arrays(path)
    shape = (words.space.num_tokens, words.reserved_base)
    return csr_matrix((found["weight"].astype(np.float64), (found["code"], found["token"])), shape=shape)


def _tokens_of_items(words: "Vocabulary", table: SidTable, catalog: Catalog) -> Any:
    """(N, T) CSR of ones: which text tokens an item's title has; none where it has no title."""
    from scipy.sparse import csr_matrix

    titles = dict(zip(catalog.item_ids, catalog.items.column("title").to_pylist(), strict=True))
    rows: list[np.ndarray] = []
    columns: list[np.ndarray] = []
    for start in range(0, len(table.item_ids), _CHUNK):
        named = [(titles.get(item) or "").strip() for item in table.item_ids[start : start + _CHUNK]]
        texts = [title and f" {title}" for title in named]  # the first word as words are within a text
        for place, found in enumerate(words.encode_untrusted_batch(texts, _TITLE_TOKENS, keep_edges=True)):
            tokens = np.unique(np.asarray(found, np.int64))
            rows.append(np.full(len(tokens), start + place))
            columns.append(tokens)
    shape = (len(table.item_ids), words.reserved_base)
    if not rows:
        return csr_matrix(shape)
    row, column = np.concatenate(rows), np.concatenate(columns)
    return csr_matrix((np.ones(len(row)), (row, column)), shape=shape)
