"""What is measured: pure functions of arrays. No files, no model, no clock.

Q queries, k the cut-off. A query may have several relevant items; every measure is per query, so that a mean, a slice
or a bootstrap can be taken by whoever asks. `docs/contracts.md` says what a query is.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_KEPT_DRAWS = 4_000_000  # users times samples: 32 MB


@dataclass(frozen=True)
class Estimate:
    """A mean and the standard error of that mean."""

    mean: float
    standard_error: float


def hit_matrix(ranked: Sequence[Sequence[str]], relevant: Sequence[Collection[str]], k: int) -> np.ndarray:
    """Whether place j of query i holds a relevant item. Returns (Q, k) bool; a list shorter than k misses the rest.

    ranked: Q lists, best first, without repeats. relevant: Q collections.
    """
    hits = np.zeros((len(ranked), k), dtype=bool)
    for query, (items, wanted) in enumerate(zip(ranked, relevant, strict=True)):
        wanted = set(wanted)
        for place, item in enumerate(items[:k]):
            hits[query, place] = item in wanted
    return hits


def recall(hits: np.ndarray, num_relevant: np.ndarray) -> np.ndarray:
    """recall@k = hits among the k / min(k, relevant items): 1 is always within reach. (Q, k), (Q,) → (Q,) float64.

    num_relevant: at least 1 a query. With one relevant item this is hit rate@k.
    """
    _check_relevant(num_relevant)
    return hits.sum(axis=1) / np.minimum(num_relevant, hits.shape[1])


def ndcg(hits: np.ndarray, num_relevant: np.ndarray) -> np.ndarray:
    """ndcg@k with binary gain (Järvelin & Kekäläinen 2002, eq. 2, log base 2). (Q, k), (Q,) → (Q,) float64.

    A hit at place j (from 1) gains 1 / log2(j + 1); the ideal has its min(k, relevant items) hits first.
    """
    _check_relevant(num_relevant)
    discounts = 1.0 / np.log2(np.arange(2, hits.shape[1] + 2))
    ideal = np.cumsum(discounts)[np.minimum(num_relevant, hits.shape[1]) - 1]
    return hits @ discounts / ideal


def bootstrap_mean(values: np.ndarray, users: np.ndarray, *, seed: int, num_samples: int = 1000) -> Estimate:
    """Mean over queries, and its standard error by a bootstrap over users (Efron & Tibshirani 1993, ch. 6).

    A user's queries resemble each other, so users are drawn with replacement and bring all their queries along.
    values: (Q,) floats, Q ≥ 1. users: (Q,) the user of each query, any labels. Equal seed, equal result.
    The standard error is 0 with a single user: nothing can be said then.
    """
    if len(values) == 0:
        raise ValueError("a mean over no queries; leave the measure out where there is none")
    _, user = np.unique(np.asarray(users), return_inverse=True)
    sums, counts = np.bincount(user, weights=values), np.bincount(user).astype(np.float64)
    num_users = len(sums)
    samples = _samples(seed, num_users, num_samples)
    means = np.array([drawn @ sums / (drawn @ counts) for drawn in samples])
    return Estimate(float(np.mean(values)), float(means.std(ddof=1)) if num_users > 1 else 0.0)


def _samples(seed: int, num_users: int, num_samples: int) -> Iterable[np.ndarray]:
    """How often each user is drawn, (num_users,), sample after sample. Small ones are kept: each measure asks again."""
    if num_users * num_samples <= _KEPT_DRAWS:
        return _kept_samples(seed, num_users, num_samples)
    return _drawn(seed, num_users, num_samples)


@lru_cache(maxsize=12)
def _kept_samples(seed: int, num_users: int, num_samples: int) -> np.ndarray:
    return np.stack([drawn.astype(np.float64) for drawn in _drawn(seed, num_users, num_samples)])


def _drawn(seed: int, num_users: int, num_samples: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(seed)
    for _ in range(num_samples):
        yield np.bincount(generator.integers(0, num_users, num_users), minlength=num_users)


def impressions(lists: Sequence[Sequence[str]]) -> np.ndarray:
    """How often each item was shown, most often first. Returns (items shown at least once,) int64."""
    shown = [item for items in lists for item in items]
    if not shown:
        return np.zeros(0, dtype=np.int64)
    return np.sort(np.unique(np.asarray(shown), return_counts=True)[1])[::-1]


def coverage(counts: np.ndarray, num_items: int) -> float:
    """Share of the catalogue that was shown at least once. counts: `impressions`; num_items: live items, ≥ 1."""
    return float((counts > 0).sum() / num_items)


def effective_vocabulary(counts: np.ndarray, share: float = 0.95) -> int:
    """The fewest items that make up `share` of all impressions (PLUM, section 5: 95%). 0 without impressions."""
    if counts.sum() == 0:
        return 0
    reached = np.cumsum(np.sort(counts)[::-1])
    # Rounded, because share * total may come out a hair above a whole number, which would ask for an item too many.
    return int(np.searchsorted(reached, round(share * reached[-1], 6)) + 1)


def _check_relevant(num_relevant: np.ndarray) -> None:
    if np.any(num_relevant < 1):
        raise ValueError("a query without relevant items has neither recall nor ndcg; drop it before")
