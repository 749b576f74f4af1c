"""Reasons: shares that sum to 1, history items that carried them, words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.ranking.candidates import SOURCES, CandidateParams, Candidates, Counted, Visit
from models.ranking.features import FEATURES
from models.ranking.shelf import DAY_MS, Shelf
from models.ranking.why import PARTS, Reason, Teller, fusion_shares, shares

PARAMS = CandidateParams(last=4, decay=0.5)
TITLES = {"a": "Amphora", "b": "Bowl", "c": None}
WORDS = {"1": "clay", "1 2": "red clay", "2": "tin"}
PARTS_TOLD = {"own", "next", "together", "text", "popular", "new", "model"}


def named(rows: list[dict[str, int]]) -> Candidates:
    """A candidate a row: the sources that name it, with its place."""
    places = np.full((len(rows), len(SOURCES)), np.nan, dtype=np.float32)
    for row, sources in enumerate(rows):
        for source, place in sources.items():
            places[row, SOURCES.index(source)] = place
    return Candidates(np.arange(len(rows)), np.zeros_like(places), places)


def contributions(*rows: dict[str, float]) -> np.ndarray:
    table = np.zeros((len(rows), len(FEATURES)))
    for row, amounts in enumerate(rows):
        for name, amount in amounts.items():
            table[row, FEATURES.index(name)] = amount
    return table


def test_contributions_are_summed_by_the_parts_that_name_the_item() -> None:
    candidates = named([{"own": 0, "next": 3, "fresh_next": 1}, {"beam": 0}, {"popular": 7, "text": 2}])
    added = contributions(
        {"own_count": 3.0, "own_days": -1.0, "next_score": 0.5, "fresh_next_place": 0.5, "beam_score": 9.0},
        {"sid_first": 0.25, "beam_place": 0.75, "user_events": 5.0},
        {"item_count": 1.0, "popular_place": 1.0, "text_score": 2.0},
    )
    found = shares(added[[2, 0, 1]], candidates, np.array([2, 0, 1]))
    assert found[0] == pytest.approx({"popular": 0.5, "text": 0.5})
    assert found[1] == pytest.approx({"own": 0.75, "next": 0.25})  # what speaks against, and who does not name it: none
    assert found[2] == {"model": 1.0}  # what is said of the user is the same for all


def test_little_is_not_told_and_nothing_is_shared_alike() -> None:
    candidates = named([{"own": 0, "text": 3, "popular": 1}, {"own": 0, "next": 0}])
    added = contributions({"own_count": 96.0, "text_score": 4.0, "popular_score": 0.0}, {"own_count": -1.0})
    found = shares(added, candidates, np.arange(2))
    assert found[0] == {"own": 1.0}
    assert found[1] == {"own": 0.5, "next": 0.5}


def test_fused_places_are_worth_what_they_gave() -> None:
    candidates = named([{"own": 0, "next": 1, "fresh_next": 2, "beam": 3}])
    [found] = fusion_shares(candidates, np.array([0]))
    total = 1 / 61 + 1 / 62 + 1 / 63 + 1 / 64
    assert found == pytest.approx({"own": 1 / 61 / total, "next": (1 / 62 + 1 / 63) / total, "model": 1 / 64 / total})


@given(
    st.lists(st.dictionaries(st.sampled_from(SOURCES), st.integers(0, 59), min_size=1), min_size=1, max_size=4),
    st.integers(0, 1000),
)
def test_shares_sum_to_one_whatever_speaks(rows: list[dict[str, int]], seed: int) -> None:
    candidates, every = named(rows), np.arange(len(rows))
    added = np.random.default_rng(seed).normal(size=(len(rows), len(FEATURES)))
    for found in (shares(added, candidates, every), fusion_shares(candidates, every)):
        for one, sources in zip(found, rows, strict=True):
            assert sum(one.values()) == pytest.approx(1)
            assert one.keys() <= {PARTS[source] for source in sources}
            assert min(one.values()) >= 0.05 or len(set(one.values())) == 1


@pytest.fixture
def shelf(make_memory: Any, make_segment: Any, end_ms: int) -> Shelf:
    tables = {
        "next": {0: [(3, 1.0)], 1: [(3, 1.0), (4, 9.0)], 2: [(3, 0.5)]},
        "next_fresh": {2: [(3, 2.0)]},
        "together": {1: [(4, 0.5)]},
        "text": {2: [(4, 0.3)], 0: [(4, 0.3)]},
    }
    memory = make_memory(list("abcde"), tables, recent=[1, 1, 1, 1, 0])
    rows = {item: {"codes": (1, 2, place % 4), "published_ms": end_ms} for place, item in enumerate("abcde")}
    return Shelf.of(memory, make_segment(rows), {})


def tell(
    shelf: Shelf, item: str, parts: dict[str, float], *history: tuple[str, float], context: str | None = None
) -> tuple[Reason, ...]:
    """history: item and days before the request, which is made at noon."""
    now = shelf.memory.end_ms + DAY_MS // 2
    visit = Visit.of(shelf, [(one, now - int(days * DAY_MS) if days else 0) for one, days in history], now, context)
    number = shelf.number_of(item)
    [told] = Teller(TITLES, WORDS, "bought").reasons(
        shelf, visit, Counted.of(shelf, visit, PARAMS), np.array([number]), [parts], [(1, 2, 3)]
    )
    return told


def test_the_largest_share_is_told_first(shelf: Shelf) -> None:
    told = tell(shelf, "d", {"popular": 0.25, "own": 0.5, "model": 0.25}, ("d", 1))
    assert [(one.part, one.share) for one in told] == [("own", 0.5), ("model", 0.25), ("popular", 0.25)]
    assert [one.items for one in told] == [("d",), (), ()]


def test_own_use_in_days_of_the_calendar(shelf: Shelf) -> None:
    def words(*days: float) -> str:
        return tell(shelf, "d", {"own": 1.0}, *(("d", one) for one in days))[0].words

    assert words(0.25) == "bought once, today"
    assert words(0.75) == "bought once, yesterday"  # noon less 18 hours
    assert words(9) == "bought once, 9 days ago"
    assert words(9, 3, 0.1) == "bought 3 times, last today"
    assert words(0) == "once in the history"
    assert words(0, 0) == "2 times in the history"
    assert words(2, -3) == "bought 2 times, last today"  # what lies later counts as now


def test_carriers_are_those_of_the_history_that_gave_the_most(shelf: Shelf) -> None:
    [told] = tell(shelf, "d", {"next": 1.0}, ("a", 9), ("b", 8), ("c", 7))
    assert told.items == ("c", "b")  # 2.5 just before; 1 a step back, which is more than 1 two steps back
    assert told.words == "often follows c"  # without a title, the id
    [told] = tell(shelf, "d", {"next": 1.0}, ("b", 9), ("a", 8))
    assert (told.items, told.words) == (("a", "b"), "often follows Amphora")
    [told] = tell(shelf, "e", {"next": 1.0}, ("a", 9), ("b", 8))
    assert (told.items, told.words) == (("b",), "often follows Bowl")
    [told] = tell(shelf, "d", {"next": 1.0}, ("a", 9), *[("e", 5.0)] * 3, ("c", 2))
    assert told.items == ("c",)  # a is no more among the newest
    [told] = tell(shelf, "d", {"next": 1.0}, ("c", 9), ("c", 8), ("b", 1))
    assert told.items == ("c", "b")  # each once


def test_other_counted_parts_and_the_item_looked_at(shelf: Shelf) -> None:
    together, text = tell(shelf, "e", {"together": 0.6, "text": 0.4}, ("a", 9), ("b", 8), ("c", 3))
    assert (together.items, together.words) == (("b",), "often together with Bowl")
    assert (text.items, text.words) == (("c", "a"), "like c")
    [told] = tell(shelf, "d", {"next": 1.0}, context="a")
    assert (told.items, told.words) == (("a",), "often follows Amphora")


def test_words_of_demand_and_of_the_model(shelf: Shelf) -> None:
    assert tell(shelf, "d", {"popular": 1.0})[0].words == "popular now"
    assert tell(shelf, "d", {"new": 1.0})[0].words == "new and already popular"
    assert tell(shelf, "e", {"popular": 1.0})[0].words == "in the catalogue"  # which nobody took
    assert tell(shelf, "e", {"new": 1.0})[0].words == "new"
    assert tell(shelf, "d", {"model": 1.0})[0].words == "model: red clay"


@pytest.mark.parametrize(
    ("codes", "words"),
    [((1, 2, 3), "model: red clay"), ((1, 3, 3), "model: clay"), ((2,), "model: tin"), ((3, 2, 1), "model")],
)
def test_the_model_s_words_are_those_of_the_longest_prefix_that_has_some(
    shelf: Shelf, codes: tuple[int, ...], words: str
) -> None:
    visit = Visit.of(shelf, [], shelf.memory.end_ms)
    [[told]] = Teller(TITLES, WORDS).reasons(
        shelf, visit, Counted.of(shelf, visit, PARAMS), np.array([3]), [{"model": 1.0}], [codes]
    )
    assert told == Reason("model", 1.0, (), words)


def test_many_items_are_told_what_each_is_alone(shelf: Shelf) -> None:
    now = shelf.memory.end_ms
    visit = Visit.of(shelf, [("a", 5), ("b", now - DAY_MS), ("c", now - 5)], now)
    parts: list[dict[str, float]] = [{"next": 0.5, "text": 0.5}, {"next": 1.0}, {"own": 1.0}]
    counted = Counted.of(shelf, visit, PARAMS)
    teller, codes = Teller(TITLES, WORDS), [(1, 2, 0), (2, 2, 2), (0, 0, 0)]
    numbers = np.array([4, 3, 1])
    together = teller.reasons(shelf, visit, counted, numbers, parts, codes)
    for place in range(3):
        some = slice(place, place + 1)
        assert teller.reasons(shelf, visit, counted, numbers[some], parts[some], codes[some]) == together[some]
    assert teller.reasons(shelf, visit, counted, numbers[:0], [], []) == []


def test_every_source_speaks_for_a_part_that_can_be_told() -> None:
    assert PARTS.keys() == set(SOURCES)
    assert set(PARTS.values()) == PARTS_TOLD
