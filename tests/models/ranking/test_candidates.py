"""Sources by hand on seven items: who names what, with which score, at which place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.ranking.candidates import COUNTED, SOURCES, CandidateParams, Candidates, Counted, Visit, gather, own_scores
from models.ranking.shelf import DAY_MS, Shelf

IDS = list("abcdefg")
PARAMS = CandidateParams(size=3, last=3, decay=0.5, own_half_life_days=10, fresh_days=7)
TABLES = {
    "next": {0: [(1, 2.0), (2, 1.0)], 1: [(2, 4.0), (3, 4.0)], 4: [(0, 1.0)]},
    "together": {0: [(3, 0.5)]},
    "text": {1: [(5, 0.25)]},
    "next_fresh": {1: [(5, 1.0), (3, 4.0)]},
    "text_fresh": {0: [(5, 0.125)]},
}


@pytest.fixture
def shelf(make_memory: Any, make_segment: Any, end_ms: int) -> Shelf:
    """Items a … f are in the index and g is not; f was published five days ago, the others long before."""
    published = [end_ms - 90 * DAY_MS] * 5 + [end_ms - 5 * DAY_MS] * 2
    memory = make_memory(IDS, TABLES, recent=[5, 4, 3, 2, 1, 0.5, 9], published_ms=published)
    rows = {item: {"codes": (0, 0, place % 4), "published_ms": end_ms} for place, item in enumerate("abcdef")}
    return Shelf.of(memory, make_segment(rows), {})


def everything(shelf: Shelf) -> Any:
    return shelf.mask(None)


def visit(shelf: Shelf, *items: str, days: float = 1.0, context: str | None = None) -> Visit:
    now = shelf.memory.end_ms
    return Visit.of(shelf, [(item, now - int(days * DAY_MS)) for item in items], now, context)


def told(shelf: Shelf, candidates: Candidates, source: str, what: str = "scores") -> dict[str, float]:
    """Item → its score or place in a source that names it."""
    column = getattr(candidates, what)[:, SOURCES.index(source)]
    return {
        shelf.item_id(number): pytest.approx(value)
        for number, value in zip(candidates.items.tolist(), column.tolist(), strict=True)
        if not np.isnan(value)
    }


def found(shelf: Shelf, asked: Visit, mask: Any = None, beams: Any = None, size: int = 0) -> Candidates:
    none = (np.zeros(0, np.int64), np.zeros(0))
    named = {"beam": none, "fresh_beam": none} | (beams or {})
    counted = Counted.of(shelf, asked, PARAMS)
    return gather(shelf, asked, counted, mask or everything(shelf), named, PARAMS, size)


def test_a_visit_knows_items_of_the_shelf_alone(shelf: Shelf, end_ms: int) -> None:
    history = [("a", 5), ("nobody", 6), ("g", end_ms + 99), ("b", end_ms + 100)]
    asked = Visit.of(shelf, history, end_ms, "c")
    assert (asked.items.tolist(), asked.times.tolist()) == ([0, 6, 1], [5, end_ms, end_ms])  # later is now
    assert (asked.context, asked.timed, asked.now) == (2, True, end_ms)
    assert Visit.of(shelf, history, end_ms, "nobody").context == -1
    untimed = Visit.of(shelf, [("a", 0), ("b", 0)], end_ms)
    assert (untimed.times.tolist(), untimed.timed) == ([end_ms - DAY_MS] * 2, False)
    empty = Visit.of(shelf, [("nobody", 0)], end_ms)
    assert (len(empty.items), empty.timed, empty.context) == (0, True, -1)


def test_the_newest_items_weigh_most_and_the_one_looked_at_is_newest(shelf: Shelf) -> None:
    items, weights = visit(shelf, *"abcd").recent(PARAMS)
    assert (items.tolist(), weights.tolist()) == ([1, 2, 3], [0.25, 0.5, 1.0])
    items, weights = visit(shelf, *"abcd", context="f").recent(PARAMS)
    assert items.tolist() == [2, 3, 5]
    items, weights = visit(shelf, context="f").recent(PARAMS)
    assert (items.tolist(), weights.tolist()) == ([5], [1.0])
    assert [len(part) for part in visit(shelf).recent(PARAMS)] == [0, 0]


def test_own_items_by_recency(shelf: Shelf, end_ms: int) -> None:
    history = [("b", end_ms - 20 * DAY_MS), ("a", end_ms - 10 * DAY_MS), ("b", end_ms)]
    items, scores = own_scores(Visit.of(shelf, history, end_ms), PARAMS.own_half_life_days)
    assert items.tolist() == [0, 1]
    assert scores == pytest.approx([0.5, 1.25])


def test_every_source_by_hand(shelf: Shelf) -> None:
    beams = {"beam": (np.array([4, 0]), np.array([-1.0, -2.5])), "fresh_beam": (np.array([5]), np.array([-9.0]))}
    candidates = found(shelf, visit(shelf, "a", "b"), beams=beams)
    assert [shelf.item_id(number) for number in candidates.items.tolist()] == list("abcdef")
    half = 0.5 ** (1 / 10)
    wanted: dict[str, tuple[dict[str, float], str]] = {
        "own": ({"a": half, "b": half}, "ab"),
        "next": ({"b": 1.0, "c": 0.5 + 4.0, "d": 4.0}, "cdb"),  # a, one step back, counts half
        "together": ({"d": 0.25}, "d"),
        "text": ({"f": 0.25}, "f"),
        "fresh_next": ({"f": 1.0}, "f"),  # d was published too long ago, whatever the table holds
        "fresh_text": ({"f": 0.0625}, "f"),
        "popular": ({"a": 5, "b": 4, "c": 3}, "abc"),  # g would be first, and is not in the index
        "fresh_popular": ({"f": 0.5}, "f"),
        "beam": ({"e": -1.0, "a": -2.5}, "ea"),
        "fresh_beam": ({"f": -9.0}, "f"),
    }
    assert wanted.keys() == set(SOURCES)
    for source, (scores, order) in wanted.items():
        assert told(shelf, candidates, source) == scores, source
        assert told(shelf, candidates, source, "places") == {item: place for place, item in enumerate(order)}, source
    assert candidates.scores.dtype == candidates.places.dtype == np.float32


def test_a_rule_holds_for_every_source_and_leaves_room_for_others(shelf: Shelf) -> None:
    gone = np.array([0, 2, 5])
    candidates = found(shelf, visit(shelf, "a", "b"), lambda numbers: ~np.isin(numbers, gone) & (numbers != 6))
    assert [shelf.item_id(number) for number in candidates.items.tolist()] == list("bde")
    assert told(shelf, candidates, "popular", "places") == {"b": 0, "d": 1, "e": 2}  # the next best come up
    assert told(shelf, candidates, "next", "places") == {"d": 0, "b": 1}
    assert told(shelf, candidates, "own") == {"b": pytest.approx(0.5**0.1)}
    assert len(found(shelf, visit(shelf, "a"), lambda numbers: np.zeros(len(numbers), bool))) == 0


@pytest.mark.parametrize(("size", "popular"), [(0, 3), (2, 3), (5, 5), (100, 6)])
def test_who_asks_for_more_gets_more_of_each_source(shelf: Shelf, size: int, popular: int) -> None:
    assert len(told(shelf, found(shelf, visit(shelf), size=size), "popular")) == popular


def test_without_a_history_there_is_what_is_popular(shelf: Shelf) -> None:
    candidates = found(shelf, visit(shelf))
    named = {source for source in SOURCES if told(shelf, candidates, source)}
    assert named == {"popular", "fresh_popular"}
    looked_at = found(shelf, visit(shelf, context="a"))
    assert told(shelf, looked_at, "next") == {"b": 2.0, "c": 1.0}
    assert told(shelf, looked_at, "own") == {}  # looked at is not taken


def test_an_item_of_the_delta_alone_has_no_neighbours(shelf: Shelf, make_segment: Any, end_ms: int) -> None:
    delta = make_segment({"new": {"codes": (3, 3, 3), "published_ms": end_ms}})
    longer = shelf.with_delta(delta, {"new": (3, 3, 3)})
    candidates = found(longer, visit(longer, "a", "new"))
    assert told(longer, candidates, "next") == {"b": 1.0, "c": 0.5}
    assert told(longer, candidates, "own").keys() == {"a", "new"}
    assert told(longer, candidates, "fresh_popular", "places") == {"f": 0, "new": 1}


def test_counted_rows_are_those_that_more_than_beams_name(shelf: Shelf) -> None:
    beams = {"beam": (np.array([4]), np.array([-1.0]))}
    candidates = found(shelf, visit(shelf, "a", "b"), beams=beams)
    counted = {shelf.item_id(number) for number in candidates.items[candidates.counted()].tolist()}
    assert counted == set("abcdf")
    assert set(SOURCES) - set(COUNTED) == {"beam", "fresh_beam"}
