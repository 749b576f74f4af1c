"""What the ranker is told of a candidate: one row of numbers, by name. NaN means that nobody can say.

Not a stage. Nothing later than the moment of the request is read: counts are the memory's, which end with its as_of,
and the history is the request's. The hour of the request is not among them: a held-out day says none.

Shapes: n candidates, S sources, F features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from models.ranking.candidates import SOURCES, Candidates, Visit
from models.ranking.shelf import DAY_MS, LEVELS

if TYPE_CHECKING:
    from models.ranking.shelf import Shelf

_KINDS = ("score", "share", "place")
_USER_ITEM = ("own_count", "own_days", "own_part", "own_rhythm")
_LAST = ("next_last", "together_last")
_ITEM = ("item_count", "item_daily", "item_recent", "item_trend", "item_age_days", "item_price", "item_price_ratio")
_SID = ("sid_first", "sid_prefix")
_MODEL = ("model_score", "model_behind", "model_place")
_USER = ("user_events", "user_repeats", "user_days", "user_unseen")
FEATURES = (
    *(f"{source}_{kind}" for source in SOURCES for kind in _KINDS),
    *_USER_ITEM,
    *_LAST,
    *_ITEM,
    *_SID,
    *_MODEL,
    *_USER,
)
"""share: of the best score of the source. own_rhythm: days since the last event of the item, in gaps between its
events. next_last, together_last: part of the weights of the newest item's neighbours. item_daily: events a day since
its publication. item_trend: the last week against the last four. item_price_ratio: logarithm, against what the user
pays. sid_first, sid_prefix: share of the newest 100 items of the history with the same first code, the same first two.
model_score: the model's log-probability of a candidate's SID, whoever named it; model_behind: less the best one's;
model_place: its place by it. user_unseen: whether items of the history are not allowed."""
MODEL = ("beam", "fresh_beam", "sid", "model")
"""Groups of features that come from the model and its SIDs."""
_GROUPS = sorted((*SOURCES, "item", "sid", "model", "user"), key=len, reverse=True)
_SID_LAST = 100


def group_of(feature: str) -> str:
    """The source that a feature speaks for; "item", "sid", "model" or "user" for the others."""
    return next(group for group in _GROUPS if feature.startswith(f"{group}_"))


def features(shelf: Shelf, visit: Visit, candidates: Candidates, unseen_only: bool) -> np.ndarray:
    """(n, F) float32 in the order of FEATURES. unseen_only: whether items of the history are not allowed."""
    items, size = candidates.items, len(candidates)
    found = np.full((len(FEATURES), size), np.nan, dtype=np.float32)  # a row a feature: whole rows are written and read
    at = len(SOURCES) * len(_KINDS)
    scores = found[0:at:3]
    scores[:] = candidates.scores.T
    np.divide(scores, _largest(scores), out=found[1:at:3])
    found[2:at:3] = candidates.places.T
    found[at : at + 4] = _use_of(visit, items)
    at += len(_USER_ITEM)
    newest = visit.context if visit.context >= 0 else int(visit.items[-1]) if len(visit.items) else -1
    if 0 <= newest < len(shelf.memory.item_ids):
        for place, table in enumerate(("next", "together")):
            found[at + place] = _share_of_row(shelf.memory.tables[table].row(newest), items)
    at += len(_LAST)
    published, price, count = shelf.published_ms[items], np.maximum(shelf.price[items], 0), shelf.count[items]
    found[at] = count
    age = np.where(published < 0, np.nan, np.maximum(visit.now - published, 0) / DAY_MS)
    # Counts end with the memory, and so do the days in which they came together.
    found[at + 1] = count / np.maximum(age - (visit.now - shelf.memory.end_ms) / DAY_MS, 1.0)
    found[at + 2] = shelf.recent[items]
    found[at + 3] = (shelf.week[items] + 1) / (shelf.month[items] / 4 + 1)
    found[at + 4] = age
    found[at + 5] = price
    paid = np.maximum(shelf.price[visit.items], 0)
    paid = paid[np.isfinite(paid)]
    if len(paid):
        found[at + 6] = np.log1p(price) - np.log1p(paid).mean()
    at += len(_ITEM)
    last = visit.items[-_SID_LAST:]
    for level in range(LEVELS):
        found[at + level] = _share_of(shelf.prefixes[level, last], shelf.prefixes[level, items])
    at += len(_SID)
    if candidates.model is not None and size:
        found[at] = candidates.model
        found[at + 1] = candidates.model - np.fmax.reduce(candidates.model, initial=-np.inf)
        order = np.argsort(-candidates.model, kind="stable")  # NaN last
        found[at + 2, order] = np.where(np.isnan(candidates.model[order]), np.nan, np.arange(size))
    at += len(_MODEL)
    found[at] = len(visit.items)
    if len(visit.items):
        found[at + 1] = 1 - len(visit.own.items) / len(visit.items)
        found[at + 2] = (visit.now - visit.times[-1]) / DAY_MS
    found[at + 3] = unseen_only
    return found.T


def _largest(scores: np.ndarray) -> np.ndarray:
    """(S, 1) the largest absolute score of each source, 1 where there is none. scores: (S, n) float32, NaN for none."""
    largest = np.fmax.reduce(np.abs(scores), axis=1, initial=0.0, keepdims=True)
    return np.where(largest > 0, largest, np.float32(1))


def _share_of_row(row: tuple[np.ndarray, np.ndarray], items: np.ndarray) -> np.ndarray:
    """(n,) each item's part of the weights of a row of a table, 0 where it is not among the row's neighbours."""
    neighbours, weights = row
    shares = np.zeros(len(items))
    if len(items):
        at = np.minimum(np.searchsorted(items, neighbours), len(items) - 1)
        there = items[at] == neighbours
        shares[at[there]] = weights[there] / weights.sum()
    return shares


def _use_of(visit: Visit, items: np.ndarray) -> np.ndarray:
    """(4, n) float32: a user's events of each item, days since the last, their part of all, and the rhythm."""
    found = np.full((len(_USER_ITEM), len(items)), np.nan, dtype=np.float32)
    found[0] = 0
    own = visit.own
    if not len(own.items):
        return found
    at = np.minimum(np.searchsorted(own.items, items), len(own.items) - 1)
    known = np.flatnonzero(own.items[at] == items)
    at = at[known]
    counts, first, last = own.counts[at], own.first[at], own.last[at]
    days = (visit.now - last) / DAY_MS
    gap = (last - first) / DAY_MS / np.maximum(counts - 1, 1)
    rhythm = np.where(counts > 1, days / np.maximum(gap, 0.5), np.nan)
    for row, values in zip(found, (counts, days, counts / len(visit.items), rhythm), strict=True):
        row[known] = values
    return found


def _share_of(history: np.ndarray, prefixes: np.ndarray) -> np.ndarray:
    """(n,) share of the history's prefixes that equal each one; NaN without a history, 0 for -1 (no SID)."""
    if not len(history):
        return np.full(len(prefixes), np.nan)
    history = np.sort(history)
    counts = np.searchsorted(history, prefixes, side="right") - np.searchsorted(history, prefixes)
    return np.where(prefixes >= 0, counts / len(history), 0.0)
