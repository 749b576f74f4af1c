"""What could be shown to who asks: the best items of every source, under the request's rule, with score and place.

Not a stage. Sources are the beams of the model, what the memory counted, and the user's own items; those named
`fresh_…` are asked once more among the items published within `fresh_days`, since a new item hardly ever comes first
among all (STATIC's cold start, and its freshness constraint). An item that no source names is no candidate.

Shapes: n candidates, S sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from models.memory.neighbours import Entries
from models.ranking.shelf import DAY_MS, Mask
from plumline.stage import Params

if TYPE_CHECKING:
    from models.ranking.shelf import Shelf

TABLES = {
    "next": "next",
    "together": "together",
    "text": "text",
    "fresh_next": "next_fresh",
    "fresh_text": "text_fresh",
}
"""Sources that are tables of the memory → their names there."""
COUNTED = ("own", *TABLES, "popular", "fresh_popular")
"""Sources that were counted: the memory's, and the user's own items."""
SOURCES = (*COUNTED, "beam", "fresh_beam")


class CandidateParams(Params):
    """How many candidates, and how a history counts. Sealed with the ranker: serving asks as the labels were asked."""

    size: int = Field(default=60, ge=1)
    """Items of each source."""
    width: int = Field(default=50, ge=1)
    """Beams."""
    fresh_width: int = Field(default=20, ge=0)
    """Beams among fresh items; 0: none."""
    fresh_days: float = Field(default=7.0, gt=0)
    """Days since its publication within which an item is fresh."""
    last: int = Field(default=50, ge=1)
    """Newest items of a history that the counted sources go on from."""
    decay: float = Field(default=0.8, gt=0, le=1)
    """Weight lost a step back through a history."""
    own_half_life_days: float = Field(default=60.0, gt=0)
    """Age at which a user's own event counts half."""
    horizon_days: float = Field(default=14.0, gt=0)
    """Days after the memory's last one up to which time goes on. Who asks later is ranked as if it were the day after
    that last one: no label has shown such ages."""


@dataclass(frozen=True)
class Own:
    """A user's own items, each once. items: (m,) int64 numbers, ascending. place: (H,) int64, where among them the item
    of each event is. counts, first, last: (m,) int64, events of each item, and the times of the first and the last."""

    items: np.ndarray
    place: np.ndarray
    counts: np.ndarray
    first: np.ndarray
    last: np.ndarray


@dataclass(frozen=True)
class Visit:
    """Who asks. items, times: (H,) int64, numbers of the history's known items and epoch milliseconds, oldest first,
    none later than now; a history without times (all 0) counts as yesterday's. now: epoch milliseconds. context: number
    of the item that is looked at, -1 for none. timed: whether the history has times."""

    items: np.ndarray
    times: np.ndarray
    now: int
    context: int = -1
    timed: bool = True

    @staticmethod
    def of(shelf: Shelf, history: Sequence[tuple[str, int]], now: int, context: str | None = None) -> Visit:
        """From item ids; unknown ones are left out, and what lies later than now counts as now."""
        known = [(number, at) for item, at in history if (number := shelf.number_of(item)) >= 0]
        pairs = np.asarray(known, dtype=np.int64).reshape(-1, 2)
        timed = not len(pairs) or bool(pairs[-1, 1] > 0)
        if not timed:
            pairs[:, 1] = now - DAY_MS
        looked_at = -1 if context is None else shelf.number_of(context)
        return Visit(pairs[:, 0], np.minimum(pairs[:, 1], now), now, looked_at, timed)

    @cached_property
    def own(self) -> Own:
        """The items of the history."""
        order = np.lexsort((self.times, self.items))
        items = self.items[order]
        begins = _begins(items)
        starts = np.flatnonzero(begins)
        ends = np.append(starts, len(items))[1:]
        place = np.empty(len(items), dtype=np.int64)
        place[order] = np.cumsum(begins) - 1
        times = self.times[order]
        return Own(items[starts], place, ends - starts, times[starts], times[ends - 1])

    def recent(self, params: CandidateParams) -> tuple[np.ndarray, np.ndarray]:
        """The newest items, oldest first, the one looked at last of all, and their weights: decay^i, i steps back."""
        items = self.items
        if self.context >= 0:
            items = np.append(items, self.context)
        items = items[-params.last :]
        return items, _decays(params.decay, params.last)[params.last - len(items) :]


@dataclass(frozen=True)
class Candidates:
    """items: (n,) int64 numbers, ascending. scores, places: (n, S) float32, NaN where a source does not name the item;
    places count from 0. model: (n,) float32, log-probability of each one's SID, NaN without one; None: the model says
    it of its own beams alone (one position an item is what makes it cheap to ask for all)."""

    items: np.ndarray
    scores: np.ndarray
    places: np.ndarray
    model: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.items)

    def counted(self) -> np.ndarray:
        """Rows that a counted source names, (≤ n,) int64."""
        return np.flatnonzero(~np.isnan(self.places[:, : len(COUNTED)]).all(axis=1))


@cache
def _decays(decay: float, number: int) -> np.ndarray:
    """(number,) powers of the decay, the last of them 1. Asked for twice a request, and never changed."""
    found = decay ** np.arange(number - 1, -1, -1.0)
    found.setflags(write=False)
    return found


Named = tuple[np.ndarray, np.ndarray]
"""Numbers of items and their scores, best first."""


@dataclass(frozen=True, eq=False)
class Counted:
    """What was counted beside the newest items of a history, which candidates and reasons are made of. items: (R,)
    int64, those that the memory has, oldest first. weights: (R,). entries: of the tables of TABLES."""

    items: np.ndarray
    weights: np.ndarray
    entries: Entries

    @staticmethod
    def of(shelf: Shelf, visit: Visit, params: CandidateParams) -> Counted:
        """Look it up."""
        recent, weights = visit.recent(params)
        inside = recent < len(shelf.memory.item_ids)  # of items of the delta nothing was counted
        items = recent[inside]
        entries = Entries.of([shelf.memory.tables[table] for table in TABLES.values()], items)
        return Counted(items, weights[inside], entries)


def gather(
    shelf: Shelf,
    visit: Visit,
    counted: Counted,
    allows: Mask,
    beams: Mapping[str, Named],
    params: CandidateParams,
    size: int = 0,
) -> Candidates:
    """The best allowed items of every source. beams: those of "beam" and "fresh_beam". size: of each source, at least
    params.size."""
    size = max(size, params.size)
    since = visit.now - int(params.fresh_days * DAY_MS)

    def allows_fresh(numbers: np.ndarray) -> np.ndarray:
        fresh: np.ndarray = allows(numbers) & (shelf.published_ms[numbers] >= since)
        return fresh

    found = dict(beams)
    found["own"] = best(*own_scores(visit, params.own_half_life_days), allows, size)
    for source, (items, sums) in zip(TABLES, counted.entries.sums(counted.weights), strict=True):
        found[source] = best(items, sums, allows_fresh if source.startswith("fresh_") else allows, size)
    found["popular"] = _first(shelf.by_popularity, shelf.recent, allows, size)
    found["fresh_popular"] = _first(shelf.fresh(since), shelf.recent, allows, size)
    return _merged([found[source] for source in SOURCES])


def _merged(named: Sequence[Named]) -> Candidates:
    """Every item that a source names, once, with what each source says of it. named: by the sources."""
    numbers = np.concatenate([numbers for numbers, _ in named])
    sizes = np.array([len(numbers) for numbers, _ in named])
    order = np.argsort(numbers)
    ascending = numbers[order]
    begins = _begins(ascending)
    cell = np.empty(len(numbers), dtype=np.int64)
    cell[order] = (np.cumsum(begins) - 1) * len(SOURCES)
    cell += np.repeat(np.arange(len(SOURCES)), sizes)
    items = ascending[begins]
    scores = np.full((len(items), len(SOURCES)), np.nan, dtype=np.float32)
    places = scores.copy()
    scores.reshape(-1)[cell] = np.concatenate([values for _, values in named])
    places.reshape(-1)[cell] = np.arange(len(numbers)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return Candidates(items, scores, places)


def _begins(ascending: np.ndarray) -> np.ndarray:
    """(n,) bool: the first of each run of equal numbers."""
    begins = np.ones(len(ascending), dtype=bool)
    np.not_equal(ascending[1:], ascending[:-1], out=begins[1:])
    return begins


def own_scores(visit: Visit, half_life_days: float) -> Named:
    """The items of a history, ascending, and their recency-weighted counts, Σ 2^(-age / half life)."""
    own, ages = visit.own, (visit.now - visit.times) / DAY_MS
    return own.items, np.bincount(own.place, weights=0.5 ** (ages / half_life_days), minlength=len(own.items))


def best(items: np.ndarray, scores: np.ndarray, allows: Mask, size: int) -> Named:
    """The `size` allowed items of the highest scores, ties by number."""
    # Of thousands of neighbours those that can hardly be among the best are neither asked nor sorted.
    near = _highest(scores, 2 * size)
    kept = near[allows(items[near])]
    if len(kept) < size and len(near) < len(items):
        kept = np.flatnonzero(allows(items))
        kept = kept[_highest(scores[kept], size)]
    kept = kept[np.lexsort((items[kept], -scores[kept]))[:size]]
    return items[kept], scores[kept]


def _highest(scores: np.ndarray, size: int) -> np.ndarray:
    """Places of the `size` highest scores, and of those equal to the last of them, ascending."""
    if len(scores) <= size:
        return np.arange(len(scores))
    least = len(scores) - size
    return np.flatnonzero(scores >= np.partition(scores, least)[least])


def _first(order: np.ndarray, scores: np.ndarray, allows: Mask, size: int) -> Named:
    """The first `size` allowed items of an order, looked at in blocks that double: N items are not sorted a request."""
    found = [np.zeros(0, dtype=np.int64)]
    start, block, missing = 0, 4 * size, size
    while missing > 0 and start < len(order):
        numbers = order[start : start + block]
        found.append(numbers[allows(numbers)][:missing])
        start, block, missing = start + block, 2 * block, missing - len(found[-1])
    items = np.concatenate(found)
    return items, scores[items]
