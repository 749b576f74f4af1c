"""Why an item stands where it stands: the share of each part in its score, and the history items that carried it.

Not a stage. Shares are exact tree contributions (TreeSHAP, Lundberg et al. 2020; LightGBM's `pred_contrib`) summed by
source. What speaks against an item, and what is the same for all candidates, has no share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.ranking.candidates import SOURCES, CandidateParams, Candidates, Visit
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
_TABLES = {"next": ("next", "next_fresh"), "together": ("together",), "text": ("text", "text_fresh")}
_OF_GROUP = {**PARTS, "item": "popular", "sid": "model"}
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
        number: int,
        shares: Mapping[str, float],
        codes: Sequence[int],
        params: CandidateParams,
    ) -> tuple[Reason, ...]:
        """Of one item, the largest share first."""
        told = []
        for part, share in sorted(shares.items(), key=lambda pair: (-pair[1], pair[0])):
            carriers = self._carriers(shelf, visit, part, number, params)
            told.append(Reason(part, share, carriers, self._words(shelf, visit, part, number, carriers, codes)))
        return tuple(told)

    def _carriers(self, shelf: Shelf, visit: Visit, part: str, number: int, params: CandidateParams) -> tuple[str, ...]:
        if part == "own":
            return (shelf.item_id(number),)
        recent, decay = visit.recent(params)
        weight = np.zeros(len(recent))
        inside = recent < len(shelf.memory.item_ids)
        for table in _TABLES.get(part, ()):
            if table in shelf.memory.tables and number < len(shelf.memory.item_ids):
                weight[inside] += shelf.memory.tables[table].weight(recent[inside], number)
        weight *= decay
        order = np.argsort(-weight, kind="stable")
        found = dict.fromkeys(shelf.item_id(int(recent[place])) for place in order if weight[place] > 0)
        return tuple(found)[:2]

    def _words(
        self, shelf: Shelf, visit: Visit, part: str, number: int, carriers: tuple[str, ...], codes: Sequence[int]
    ) -> str:
        if part == "own":
            times = visit.times[visit.items == number]
            count = "once" if len(times) == 1 else f"{len(times)} times"
            if not visit.timed:
                return f"{count} in the history"
            days = max(0, visit.now // DAY_MS - int(times.max()) // DAY_MS)  # of the calendar, UTC
            ago = "today" if days == 0 else "yesterday" if days == 1 else f"{days} days ago"
            return f"{self.verb} {count}, last {ago}" if len(times) > 1 else f"{self.verb} {count}, {ago}"
        if part == "model":
            named = (self.prefix_words.get(" ".join(map(str, codes[:level]))) for level in (2, 1))
            words = next((words for words in named if words), "")
            return f"model: {words}" if words else "model"
        if part == "new":
            return "new and already popular"
        if not carriers:
            return {"popular": "popular now", "text": "words like the history's"}.get(part, "goes with the history")
        title = self.titles.get(carriers[0]) or carriers[0]
        return {"next": "often follows", "together": "often together with", "text": "like"}[part] + f" {title}"


def shares(
    contributions: np.ndarray, columns: Sequence[int], candidates: Candidates, rows: np.ndarray
) -> list[dict[str, float]]:
    """Part → share for each of `rows`; they sum to 1. contributions: (len(rows), len(columns) + 1), the last the bias.

    Only parts whose sources name the item can have a share; if none of them speaks for it, they share alike.
    """
    groups = [_OF_GROUP.get(group_of(FEATURES[column])) for column in columns]
    return [
        _scaled(
            {
                part: float(sum(max(value, 0.0) for value, group in zip(row, groups, strict=False) if group == part))
                for part in _naming(candidates.places[number])
            }
        )
        for row, number in zip(contributions, rows, strict=True)
    ]


def fusion_shares(candidates: Candidates, rows: np.ndarray) -> list[dict[str, float]]:
    """The same where ranks were fused: each source gives 1 / (60 + place)."""
    found = []
    for number in rows:
        worth = dict.fromkeys(_naming(candidates.places[number]), 0.0)
        for source, place in zip(SOURCES, candidates.places[number], strict=True):
            if not np.isnan(place):
                worth[PARTS[source]] += 1 / (61.0 + float(place))
        found.append(_scaled(worth))
    return found


def _naming(places: np.ndarray) -> list[str]:
    """Parts with a source that names the item."""
    return list(
        dict.fromkeys(PARTS[source] for source, place in zip(SOURCES, places, strict=True) if not np.isnan(place))
    )


def _scaled(worth: dict[str, float]) -> dict[str, float]:
    total = sum(worth.values())
    if total <= 0:
        return {part: 1 / len(worth) for part in worth}
    kept = {part: value for part, value in worth.items() if value >= _LEAST * total}
    total = sum(kept.values())
    return {part: value / total for part, value in kept.items()}
