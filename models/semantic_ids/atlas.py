"""The atlas of SIDs: the first two levels of the prefix tree, with the words and items that say what each prefix means.

A word names a prefix if many of its items have it and few others do. Its weight is its part of the divergence between
the prefix and the catalogue, p log(p / q): p the share of the prefix's items that have it (smoothed by one item of the
catalogue's mixture), q the share of all items. A word of one item alone names no prefix of several.

Shapes: N items, T occurrences of a term in an item, V terms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from models.semantic_ids.quality import prefix_ids
from models.semantic_ids.text_encoders import terms_of

NUM_WORDS = 6
NUM_EXAMPLES = 3
_BLOCK = 50_000
_CANDIDATES = 4 * NUM_WORDS


@dataclass(frozen=True)
class Terms:
    """Which terms every item has. vocabulary: V terms. rows: (T,) item of each occurrence, rising. terms: (T,) term."""

    num_items: int
    vocabulary: pa.Array
    rows: np.ndarray
    terms: np.ndarray

    @cached_property
    def shares(self) -> np.ndarray:
        """(V,) share of all items that have a term."""
        return np.bincount(self.terms, minlength=len(self.vocabulary)) / max(self.num_items, 1)


@dataclass(frozen=True)
class Prefix:
    """Items of one prefix. examples: rows of a few items, spread over the prefix.

    words: what names it, best first; of a child, what its parent's words do not say already. children: the largest
    prefixes one code longer. num_children: how many there are.
    """

    codes: tuple[int, ...]
    num_items: int
    words: tuple[str, ...]
    examples: tuple[int, ...]
    children: tuple["Prefix", ...] = ()
    num_children: int = 0


@dataclass(frozen=True)
class Atlas:
    """The largest first-level prefixes, the largest first. num_prefixes: how many there are."""

    prefixes: tuple[Prefix, ...]
    num_prefixes: int


def read_terms(items: pa.Table) -> Terms:
    """Terms of the titles, channels and topics of items. items: rows of ITEMS, columns may be absent."""
    of_value = lru_cache(maxsize=100_000)(
        lambda text: tuple(terms_of(text))
    )  # channels and topics come again and again
    chunks, counts = [], []
    for start in range(0, items.num_rows, _BLOCK):
        block = items.slice(start, _BLOCK)
        titles, channels, topics = (_values(block, name) for name in ("title", "channel", "topics"))
        flat: list[str] = []
        for title, channel, tags in zip(titles, channels, topics, strict=True):
            texts = [of_value(text) for text in (channel, *(tags or ())) if text]
            found = dict.fromkeys(chain(terms_of(title or ""), *texts))
            flat += found
            counts.append(len(found))
        chunks.append(pa.array(flat, pa.string()).dictionary_encode())
    empty = pa.array([], pa.string()).dictionary_encode()
    encoded = pa.chunked_array([*chunks, empty]).unify_dictionaries().combine_chunks()
    rows = np.repeat(np.arange(items.num_rows), np.array(counts, np.int64))
    return Terms(items.num_rows, encoded.dictionary, rows, encoded.indices.to_numpy().astype(np.int64))


def draw_atlas(
    codes: np.ndarray, terms: Terms, *, max_prefixes: int | None = None, max_children: int | None = None
) -> Atlas:
    """The first two levels of codes, the largest prefixes of each (None: all). codes: (N, L), tie-break digit left out.

    Of equally large prefixes the one of lower codes comes first.
    """
    ids = prefix_ids(codes[:, :2])
    if not len(codes) or not ids:
        return Atlas((), 0)
    order = np.lexsort(codes.T[::-1])
    first = _Level.of(ids[0], order)
    chosen = np.argsort(-first.sizes, kind="stable")[:max_prefixes]
    words = [_without_echoes(ranked) for ranked in _ranked_terms(ids[0], chosen, first.sizes, terms)]
    children: dict[int, list[Prefix]] = {}
    num_children = np.zeros(len(first.sizes), np.int64)
    if len(ids) == 2:
        second = _Level.of(ids[1], order)
        parents = ids[0][order[second.starts]]
        num_children = np.bincount(parents, minlength=len(first.sizes))
        within = _within_largest(parents, chosen, second.sizes, max_children)
        words_above = dict(zip(chosen.tolist(), words, strict=True))
        for child, ranked in zip(within, _ranked_terms(ids[1], within, second.sizes, terms), strict=True):
            parent = int(parents[child])
            named = _without_echoes(ranked, words_above[parent])
            children.setdefault(parent, []).append(_prefix(codes[:, :2], order, second, child, named))
    return Atlas(
        tuple(
            _prefix(codes[:, :1], order, first, i, named, tuple(children.get(int(i), ())), int(num_children[i]))
            for i, named in zip(chosen, words, strict=True)
        ),
        len(first.sizes),
    )


@dataclass(frozen=True)
class _Level:
    """Prefixes of one length: how many items each has, and where they begin in code order."""

    sizes: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, order: np.ndarray) -> "_Level":
        sizes = np.bincount(ids)
        assert (np.diff(ids[order]) >= 0).all()
        return cls(sizes, np.cumsum(sizes) - sizes)


def _within_largest(parents: np.ndarray, chosen: np.ndarray, sizes: np.ndarray, limit: int | None) -> np.ndarray:
    """Children of chosen parents, the `limit` largest of each; parents in any order, largest child first."""
    order = np.lexsort((np.arange(len(sizes)), -sizes, parents))
    place = np.arange(len(order)) - np.searchsorted(parents[order], parents[order])
    wanted = np.isin(parents[order], chosen) & ((place < limit) if limit is not None else True)
    return order[wanted]


def _prefix(
    codes: np.ndarray,
    order: np.ndarray,
    level: _Level,
    number: int,
    words: tuple[str, ...],
    children: tuple[Prefix, ...] = (),
    num_children: int = 0,
) -> Prefix:
    start, size = int(level.starts[number]), int(level.sizes[number])
    places = [start + (size - 1) * n // max(min(size, NUM_EXAMPLES) - 1, 1) for n in range(min(size, NUM_EXAMPLES))]
    rows = tuple(order[places].tolist())
    return Prefix(tuple(codes[rows[0]].tolist()), size, words, rows, children, num_children)


def _ranked_terms(ids: np.ndarray, chosen: np.ndarray, sizes: np.ndarray, terms: Terms) -> list[list[str]]:
    """The best terms of each chosen prefix. ids: (N,) prefix of every item. sizes: items of every prefix."""
    number = np.full(len(sizes), -1, np.int64)
    number[chosen] = np.arange(len(chosen))
    group, num_terms = number[ids][terms.rows], max(len(terms.vocabulary), 1)
    inside = group >= 0
    keys, counts = np.unique(group[inside] * num_terms + terms.terms[inside], return_counts=True)
    group, term = np.divmod(keys, num_terms)
    size, q = sizes[chosen][group], terms.shares[term]
    p = (counts + q) / (size + 1)
    scores = p * np.log(p / q)
    kept = (scores > 0) & (counts >= np.minimum(size, 2))
    group, term, scores = group[kept], term[kept], scores[kept]
    order = np.lexsort((term, -scores, group))
    group, term = group[order], term[order]
    place = np.arange(len(group)) - np.searchsorted(group, group)
    group, term = group[place < _CANDIDATES], term[place < _CANDIDATES]
    texts = terms.vocabulary.take(pa.array(term)).to_pylist()
    ends = np.searchsorted(group, np.arange(len(chosen) + 1))
    return [texts[a:b] for a, b in pairwise(ends.tolist())]


def _without_echoes(ranked: Sequence[str], above: Sequence[str] = ()) -> tuple[str, ...]:
    """The first NUM_WORDS terms that say something new: "nail polish" speaks for "nail" and for "polish".

    above: terms that were said before.
    """
    said: list[str] = []
    for term in ranked:
        if not any(map(_is_a_word, term.split())) or any(_says(other, term) for other in chain(said, above)):
            continue
        longer = [place for place, other in enumerate(said) if _says(term, other)]
        if longer:
            said[longer[0]] = term
            for place in reversed(longer[1:]):
                del said[place]
        elif len(said) < NUM_WORDS:
            said.append(term)
    return tuple(said)


def _is_a_word(text: str) -> bool:
    """Whether a term says anything without a number or a single letter beside it; a single Han character does."""
    return not text.isdigit() and not (len(text) == 1 and text.isascii())


def _says(longer: str, shorter: str) -> bool:
    """Whether the words of one term hold another; n-grams of scripts without spaces hold their parts."""
    unspaced = " " not in longer and not shorter.isascii() and shorter in longer
    return unspaced or f" {shorter} " in f" {longer} "


def _values(items: pa.Table, name: str) -> list[Any]:
    return items.column(name).to_pylist() if name in items.column_names else [None] * items.num_rows
