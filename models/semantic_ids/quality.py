"""What the SIDs of a catalogue are worth: pure functions of codes and of what is known of the items.

A SID is worth something if items that share its first codes belong together. Two witnesses say whether they do: users
who take items together (`co_occurrence`) and the catalogue's own categories (`neighbour_purity`). Both stand beside
what chance would give, because few large prefixes agree with anything.

Shapes: N items, L levels, P pairs. No Python loop runs over items or pairs.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_MAX_TOPIC_DEPTH = 8


@dataclass(frozen=True)
class Against:
    """A share at one level, and the share that chance would give.

    level: codes compared, from 1. share, by_chance: None where there is nothing to take a share of. num: pairs or items
    that it is a mean over.
    """

    level: int
    share: float | None
    by_chance: float | None
    num: int

    @property
    def lift(self) -> float | None:
        """How many times chance; None where chance gives nothing."""
        return None if self.share is None or not self.by_chance else self.share / self.by_chance


@dataclass(frozen=True)
class Bucket:
    """Items that share `codes`: their rows, in order."""

    codes: tuple[int, ...]
    rows: np.ndarray


def prefix_ids(codes: np.ndarray) -> list[np.ndarray]:
    """For every level l, which rows share their first l codes: L arrays (N,) int64, numbered from 0 in code order.

    codes: (N, L) integers, not negative.
    """
    found, ids = [], np.zeros(len(codes), np.int64)
    for level in range(codes.shape[1]):
        column = codes[:, level].astype(np.int64)
        ids = np.unique(ids * (column.max(initial=0) + 1) + column, return_inverse=True)[1].reshape(-1)
        found.append(ids)
    return found


def co_occurrence(codes: np.ndarray, left: np.ndarray, right: np.ndarray, weights: np.ndarray) -> list[Against]:
    """For every level l, the share of co-occurring pairs, by weight, whose first l codes are equal.

    left, right: (P,) rows of codes, never equal to one another. weights: (P,), how often. By chance: two ends drawn
    anew, each as often as it stands in the pairs, given that they are two items: Σ over prefixes of
    (Σ d)² - Σ d², over the same of all items, d the weight of an item. Without pairs an empty list.
    """
    total = float(weights.sum())
    if not total > 0:
        return []
    degrees = np.bincount(left, weights, len(codes)) + np.bincount(right, weights, len(codes))
    possible = degrees.sum() ** 2 - np.square(degrees).sum()
    levels = []
    for level, ids in enumerate(prefix_ids(codes), start=1):
        share = float(weights[ids[left] == ids[right]].sum()) / total
        # prefix by prefix, so that a prefix of one item gives nothing, not a rounding error
        meetings = np.square(np.bincount(ids, degrees)) - np.bincount(ids, np.square(degrees))
        levels.append(Against(level, share, float(np.maximum(meetings, 0).sum() / possible), len(weights)))
    return levels


def neighbour_purity(codes: np.ndarray, labels: np.ndarray) -> list[Against]:
    """For every level l, how many of the items that share its first l codes have an item's own label.

    labels: (N,) integers; items below 0 have none and are left out. A mean over items that have such neighbours. By
    chance: for the same items, how many of all other items have the label.
    """
    known = labels >= 0
    codes, labels = codes[known], np.unique(labels[known], return_inverse=True)[1].reshape(-1)
    num_of_label = np.bincount(labels)
    alike = (num_of_label[labels] - 1) / max(len(labels) - 1, 1)
    levels = []
    for level, ids in enumerate(prefix_ids(codes), start=1):
        neighbours = np.bincount(ids)[ids] - 1
        _, group, sizes = np.unique(ids * len(num_of_label) + labels, return_inverse=True, return_counts=True)
        same = sizes[group.reshape(-1)] - 1
        shared = neighbours > 0
        if not shared.any():
            levels.append(Against(level, None, None, 0))
            continue
        share = float((same[shared] / neighbours[shared]).mean())
        levels.append(Against(level, share, float(alike[shared].mean()), int(shared.sum())))
    return levels


def usage_curves(codes: np.ndarray, sizes: tuple[int, ...]) -> list[list[int]]:
    """For every level, items of each of its codes, the most used first, unused ones as 0."""
    return [np.sort(np.bincount(codes[:, level], minlength=size))[::-1].tolist() for level, size in enumerate(sizes)]


def bucket_histogram(codes: np.ndarray) -> dict[int, int]:
    """Size of a bucket → how many buckets of equal rows have it, small ones first. codes: (N, L)."""
    if not len(codes) or not codes.shape[1]:
        return {}
    sizes, counts = np.unique(np.bincount(prefix_ids(codes)[-1]), return_counts=True)
    return dict(zip(sizes.tolist(), counts.tolist(), strict=True))


def largest_buckets(codes: np.ndarray, limit: int) -> list[Bucket]:
    """The largest sets of at least two equal rows, at most `limit`; ties in code order. codes: (N, L)."""
    if not len(codes) or not codes.shape[1]:
        return []
    ids = prefix_ids(codes)[-1]
    order, sizes = np.argsort(ids, kind="stable"), np.bincount(ids)
    starts = np.cumsum(sizes) - sizes
    chosen = np.argsort(-sizes, kind="stable")[:limit]
    members = [order[starts[i] : starts[i] + sizes[i]] for i in chosen if sizes[i] > 1]
    return [Bucket(tuple(codes[rows[0]].tolist()), rows) for rows in members]


def category_labels(items: pa.Table) -> dict[str, np.ndarray]:
    """Kind of category → (N,) int64 label of every item, -1 without one; kinds that no item has are left out.

    items: rows of ITEMS, columns may be absent. `channel`, and `topic`: the first topic by which items differ (of paths
    that all begin with Beauty, the second).
    """
    found = {}
    if "channel" in items.column_names:
        channel = items.column("channel").combine_chunks()
        found["channel"] = _labels(channel, np.arange(len(channel)), items.num_rows)
    if "topics" in items.column_names:
        found["topic"] = _first_topics(items.column("topics").combine_chunks())
    return {kind: labels for kind, labels in found.items() if (labels >= 0).any()}


def _first_topics(topics: pa.ListArray) -> np.ndarray:
    first = None
    for depth in range(_MAX_TOPIC_DEPTH):
        there = pc.list_slice(topics, depth, depth + 1)
        labels = _labels(pc.list_flatten(there), pc.list_parent_indices(there).to_numpy(), len(topics))
        first = labels if first is None else first
        if labels.max(initial=-1) > 0:
            return labels
    assert first is not None
    return first


def _labels(values: pa.Array, rows: np.ndarray, num_items: int) -> np.ndarray:
    """Values of some rows as numbers, nothing and "" as -1. Returns (num_items,) int64."""
    named = pc.if_else(pc.equal(values, ""), pa.scalar(None, values.type), values)
    labels = np.full(num_items, -1, np.int64)
    labels[rows] = pc.fill_null(named.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False)
    return labels
