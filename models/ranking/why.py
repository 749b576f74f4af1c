"""Why an item stands where it stands: the share of each part in its score, and the history items that carried it.

Not a stage. Shares are exact tree contributions (TreeSHAP, Lundberg et al. 2020; LightGBM's `pred_contrib`) summed by
source. What speaks against an item, and what is the same for all candidates, has no share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from models.ranking.candidates import SOURCES, TABLES, Candidates, Counted, Visit
from models.ranking.features import FEATURES, group_of
from models.ranking.shelf import DAY_MS

if TYPE_CHECKING:
    from models.ranking.shelf import Shelf

PARTS = {
    "own": "own",
    "next": "next",
    "together": "together",
    "text": "text",
    "popular": "popular",
    "fresh_next": "next",
    "fresh_text": "text",
    "fresh_popular": "new",
    "beam": "model",
    "fresh_beam": "model",
}
"""Source → the part that people are told of."""
_DEMAND = {"popular": ("popular now", "in the catalogue"), "new": ("new and already popular", "new")}
"""What is said of an item that somebody took, and of one that nobody did."""
_GOES_WITH = {"next": "often follows", "together": "often together with", "text": "like"}
_CARRIED = tuple(_GOES_WITH)
_CARRIED_BY = np.array([_CARRIED.index(PARTS[source]) for source in TABLES])
"""Of each table the place of its part among those that items of the history carry."""
_PARTS = tuple(dict.fromkeys(PARTS.values()))
_PLACE = {part: place for place, part in enumerate(_PARTS)}
_OF_GROUP = {
    **PARTS,
    "item": "popular",
    "sid": "model",
    "model": "model",
}  # what is said of the user is the same for all candidates
_PART_OF_FEATURE = np.array([[_OF_GROUP.get(group_of(name)) == part for part in _PARTS] for name in FEATURES], float)
"""(F, parts)."""
_SOURCE_BITS = 1 << np.arange(len(SOURCES))
_CARRIERS = 2
"""Items of the history that are told, at most, of one part."""
_LEAST = 0.05
"""A smaller share is not told; the shares that are told are scaled to sum to 1."""


@dataclass(frozen=True)
class Reason:
    """One part. share: of the item's score, 0 … 1. items: ids of history items that carried it, the first the most.
    words: what a person reads."""

    part: str
    share: float
    items: tuple[str, ...]
    words: str


@dataclass(frozen=True)
class Teller:
    """Tells reasons in words. titles: item_id → title or None. prefix_words: "c" and "c d" (first codes) → what the
    items of that prefix have in common. verb: what users did, in the past tense ("bought")."""

    titles: Mapping[str, str | None]
    prefix_words: Mapping[str, str]
    verb: str = "taken"

    def reasons(
        self,
        shelf: Shelf,
        visit: Visit,
        counted: Counted,
        numbers: np.ndarray,
        shares: Sequence[Mapping[str, float]],
        codes: Sequence[Sequence[int]],
    ) -> list[tuple[Reason, ...]]:
        """Of each of some items, the largest share first. numbers: (n,) of items; shares, codes (SIDs): n of them."""
        carried = _carried(counted, numbers)
        told = []
        for place, (number, parts, sid) in enumerate(zip(numbers.tolist(), shares, codes, strict=True)):
            reasons = []
            for part, share in sorted(parts.items(), key=lambda pair: (-pair[1], pair[0])):
                if part == "own":
                    items: tuple[str, ...] = (shelf.item_id(number),)
                elif part in carried:
                    items = tuple(map(shelf.item_id, carried[part][place]))
                else:
                    items = ()
                reasons.append(Reason(part, share, items, self._words(shelf, visit, part, number, items, sid)))
            told.append(tuple(reasons))
        return told

    def _words(
        self, shelf: Shelf, visit: Visit, part: str, number: int, items: tuple[str, ...], codes: Sequence[int]
    ) -> str:
        if part == "own":
            own = visit.own
            at = int(np.searchsorted(own.items, number))
            number_of_times = int(own.counts[at])
            count = "once" if number_of_times == 1 else f"{number_of_times} times"
            if not visit.timed:
                return f"{count} in the history"
            days = visit.now // DAY_MS - int(own.last[at]) // DAY_MS  # of the calendar, UTC
            ago = "today" if days == 0 else "yesterday" if days == 1 else f"{days} days ago"
            return f"{self.verb} {count}, last {ago}" if number_of_times > 1 else f"{self.verb} {count}, {ago}"
        if part == "model":
            named = (self.prefix_words.get(" ".join(map(str, codes[:level]))) for level in (2, 1))
            words = next((words for words in named if words), "")
            return f"model: {words}" if words else "model"
        if part not in _GOES_WITH:
            demanded, other = _DEMAND[part]
            return demanded if shelf.recent[number] > 0 else other
        return f"{_GOES_WITH[part]} {self.titles.get(items[0]) or items[0]}"


def _carried(counted: Counted, numbers: np.ndarray) -> dict[str, list[list[int]]]:
    """Part → for each of the items the two recent ones that gave it the most, of equal ones the older first."""
    table, row, which, values = counted.entries.of_items(numbers)
    shape = (len(_CARRIED), len(numbers), len(counted.items))
    cell = (_CARRIED_BY[table] * shape[1] + which) * shape[2] + row
    weights = np.bincount(cell, weights=values, minlength=math.prod(shape)).reshape(shape) * counted.weights
    order = np.argsort(-weights, kind="stable").tolist()
    counts = (weights > 0).sum(axis=-1).tolist()
    names = counted.items.tolist()
    return {
        part: [
            _first_two(names[place] for place in places[:count])
            for places, count in zip(order[number], counts[number], strict=True)
        ]
        for number, part in enumerate(_CARRIED)
    }


def _first_two(numbers: Iterable[int]) -> list[int]:
    """The first two that differ."""
    found: list[int] = []
    for number in numbers:
        if number not in found:
            found.append(number)
            if len(found) == _CARRIERS:
                break
    return found


def shares(contributions: np.ndarray, candidates: Candidates, rows: np.ndarray) -> list[dict[str, float]]:
    """Part → share for each of `rows`; they sum to 1. contributions: (len(rows), F), of each feature.

    Only parts whose sources name the item can have a share; if none of them speaks for it, they share alike.
    """
    worth = (np.maximum(contributions, 0.0) @ _PART_OF_FEATURE).tolist()
    naming = _naming(candidates.places[rows])
    return [_scaled({part: one[_PLACE[part]] for part in parts}) for one, parts in zip(worth, naming, strict=True)]


def fusion_shares(candidates: Candidates, rows: np.ndarray) -> list[dict[str, float]]:
    """The same where ranks were fused: each source gives 1 / (60 + place)."""
    found = []
    for number, parts in zip(rows, _naming(candidates.places[rows]), strict=True):
        worth = dict.fromkeys(parts, 0.0)
        for source, place in zip(SOURCES, candidates.places[number], strict=True):
            if not np.isnan(place):
                worth[PARTS[source]] += 1 / (61.0 + float(place))
        found.append(_scaled(worth))
    return found


def _naming(places: np.ndarray) -> list[tuple[str, ...]]:
    """Of each row the parts with a source that names the item. places: (n, S)."""
    return [_parts_of(named) for named in (~np.isnan(places) @ _SOURCE_BITS).tolist()]


@cache
def _parts_of(named: int) -> tuple[str, ...]:
    """named: the sources as bits."""
    return tuple(dict.fromkeys(PARTS[source] for place, source in enumerate(SOURCES) if named >> place & 1))


def _scaled(worth: dict[str, float]) -> dict[str, float]:
    total = sum(worth.values())
    if total <= 0:
        return {part: 1 / len(worth) for part in worth}
    kept = {part: value for part, value in worth.items() if value >= _LEAST * total}
    total = sum(kept.values())
    return {part: value / total for part, value in kept.items()}
