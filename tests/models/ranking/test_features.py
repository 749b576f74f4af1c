"""Each feature of one visit, worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.ranking.candidates import SOURCES, Candidates, Visit
from models.ranking.features import FEATURES, features, group_of
from models.ranking.shelf import DAY_MS, Shelf

NAN = pytest.approx(float("nan"), nan_ok=True)
CODES = {"a": (1, 2, 0), "b": (1, 2, 3), "c": (1, 0, 0), "d": (2, 2, 0)}  # e has no SID


@pytest.fixture
def shelf(make_memory: Any, make_segment: Any, end_ms: int) -> Shelf:
    memory = make_memory(
        list("abcde"),
        count=[10, 20, 30, 0, 1],
        recent=[1, 2, 3, 0, 0.5],
        week=[3, 0, 7, 0, 0],
        month=[12, 4, 8, 0, 0],
        published_ms=[end_ms - 10 * DAY_MS, end_ms + DAY_MS, -1, end_ms - DAY_MS, 0],
        price=[9.0, 3.0, np.nan, -2.0, 0.0],
    )
    rows = {item: {"codes": codes, "published_ms": end_ms} for item, codes in CODES.items()}
    return Shelf.of(memory, make_segment(rows), CODES)


def asked(shelf: Shelf, history: list[tuple[str, float]], after: float = 0.5) -> Visit:
    """history: item and days before the request, which is made so many days after the memory's end."""
    now = shelf.memory.end_ms + int(after * DAY_MS)
    return Visit.of(shelf, [(item, now - int(days * DAY_MS)) for item, days in history], now)


def candidates(shelf: Shelf, items: str, named: dict[str, dict[str, tuple[float, int]]] | None = None) -> Candidates:
    """named: source → item → score and place."""
    numbers = np.array([shelf.number_of(item) for item in items], dtype=np.int64)
    scores = np.full((len(items), len(SOURCES)), np.nan, dtype=np.float32)
    places = scores.copy()
    for source, rows in (named or {}).items():
        for item, (score, place) in rows.items():
            at = items.index(item), SOURCES.index(source)
            scores[at], places[at] = score, place
    return Candidates(numbers, scores, places)


def column(table: np.ndarray, name: str) -> list[float]:
    return [pytest.approx(value, nan_ok=True) for value in table[:, FEATURES.index(name)].tolist()]


def test_sources_tell_score_share_and_place(shelf: Shelf) -> None:
    named = {"own": {"a": (0.5, 1), "b": (2.0, 0)}, "beam": {"b": (-4.0, 1), "c": (-1.0, 0)}, "next": {"a": (0.0, 0)}}
    table = features(shelf, asked(shelf, []), candidates(shelf, "abc", named), False)
    assert table.dtype == np.float32
    assert column(table, "own_score") == [0.5, 2.0, NAN]
    assert column(table, "own_share") == [0.25, 1.0, NAN]
    assert column(table, "own_place") == [1, 0, NAN]
    assert column(table, "beam_score") == [NAN, -4.0, -1.0]
    assert column(table, "beam_share") == [NAN, -1.0, -0.25]  # of the largest amount
    assert column(table, "next_share") == [0.0, NAN, NAN]  # a source whose scores are all 0
    assert column(table, "text_score") == column(table, "text_share") == column(table, "text_place") == [NAN] * 3


def test_what_the_user_did_with_an_item(shelf: Shelf) -> None:
    visit = asked(shelf, [("a", 9), ("b", 7), ("a", 5), ("a", 1)])
    table = features(shelf, visit, candidates(shelf, "abc"), False)
    assert column(table, "own_count") == [3, 1, 0]
    assert column(table, "own_days") == [1, 7, NAN]
    assert column(table, "own_part") == [0.75, 0.25, NAN]
    assert column(table, "own_rhythm") == [1 / 4, NAN, NAN]  # a day since the last, every four days
    at_once = features(shelf, asked(shelf, [("a", 2), ("a", 2)]), candidates(shelf, "a"), False)
    assert column(at_once, "own_rhythm") == [2 / 0.5]  # a gap is at least half a day
    nobody = features(shelf, asked(shelf, []), candidates(shelf, "ab"), False)
    assert column(nobody, "own_count") == [0, 0]
    assert column(nobody, "own_days") == column(nobody, "own_part") == column(nobody, "own_rhythm") == [NAN] * 2


def test_what_everybody_did_with_it(shelf: Shelf) -> None:
    table = features(shelf, asked(shelf, []), candidates(shelf, "abcde"), False)
    assert column(table, "item_count") == [10, 20, 30, 0, 1]
    assert column(table, "item_recent") == [1, 2, 3, 0, 0.5]
    assert column(table, "item_trend") == [4 / 4, 1 / 2, 8 / 3, 1, 1]
    days = shelf.memory.end_ms / DAY_MS + 0.5  # since the day 0, on which e was published
    assert column(table, "item_age_days") == [10.5, 0, NAN, 1.5, days]  # b's day is still to come: no age below 0
    assert column(table, "item_daily") == [1, 20, NAN, 0, pytest.approx(1 / (days - 0.5))]


def test_prices_beside_what_the_user_pays(shelf: Shelf) -> None:
    table = features(shelf, asked(shelf, [("b", 1), ("c", 1), ("b", 1)]), candidates(shelf, "abcde"), False)
    assert column(table, "item_price") == [9, 3, NAN, 0, 0]  # less than nothing costs nothing
    assert column(table, "item_price_ratio") == [math.log(10 / 4), 0, NAN, -math.log(4), -math.log(4)]
    unknown = features(shelf, asked(shelf, [("c", 1)]), candidates(shelf, "ab"), False)
    assert column(unknown, "item_price_ratio") == [NAN, NAN]


def test_first_codes_shared_with_the_history(shelf: Shelf) -> None:
    visit = asked(shelf, [("a", 4), ("b", 3), ("c", 2), ("e", 1)])
    table = features(shelf, visit, candidates(shelf, "abcde"), False)
    assert column(table, "sid_first") == [3 / 4, 3 / 4, 3 / 4, 0, 0]
    assert column(table, "sid_prefix") == [2 / 4, 2 / 4, 1 / 4, 0, 0]  # nothing is like an item without a SID
    long = asked(shelf, [("d", 500.0)] * 50 + [("c", 3.0)] * 100)
    assert column(features(shelf, long, candidates(shelf, "cd"), False), "sid_first") == [1, 0]  # the newest hundred
    assert column(features(shelf, asked(shelf, []), candidates(shelf, "a"), False), "sid_first") == [NAN]


def test_what_the_model_says_of_every_candidate(shelf: Shelf) -> None:
    some = candidates(shelf, "abcde", {"beam": {"b": (-1.5, 0)}})
    said = np.array([-4.0, -1.5, np.nan, -4.0, -2.25], dtype=np.float32)
    table = features(shelf, asked(shelf, [("a", 1)]), replace(some, model=said), False)
    assert column(table, "model_score") == [-4.0, -1.5, NAN, -4.0, -2.25]
    assert column(table, "model_behind") == [-2.5, 0, NAN, -2.5, -0.75]
    assert column(table, "model_place") == [
        2,
        0,
        NAN,
        3,
        1,
    ]  # of equal ones the first; none without a SID
    assert {group_of(name) for name in ("model_score", "model_behind", "model_place")} == {"model"}
    unknown = features(shelf, asked(shelf, []), replace(some, model=np.full(5, np.nan, np.float32)), False)
    silent = features(shelf, asked(shelf, []), some, False)
    for name in ("model_score", "model_behind", "model_place"):
        assert column(unknown, name) == column(silent, name) == [NAN] * 5
    others = [place for place, name in enumerate(FEATURES) if group_of(name) != "model"]
    np.testing.assert_array_equal(unknown[:, others], silent[:, others])


def test_what_is_said_of_the_user_is_the_same_for_all_candidates(shelf: Shelf) -> None:
    visit = asked(shelf, [("a", 9), ("b", 7), ("a", 2.5)])
    table = features(shelf, visit, candidates(shelf, "ab"), True)
    assert column(table, "user_events") == [3, 3]
    assert column(table, "user_repeats") == [1 / 3, 1 / 3]
    assert column(table, "user_days") == [2.5, 2.5]
    assert column(table, "user_unseen") == [1, 1]
    nobody = features(shelf, asked(shelf, []), candidates(shelf, "a"), False)
    assert column(nobody, "user_events") == [0]
    assert column(nobody, "user_unseen") == [0]
    assert column(nobody, "user_repeats") == column(nobody, "user_days") == [NAN]


def test_times_later_than_now_are_now(shelf: Shelf) -> None:
    table = features(shelf, asked(shelf, [("a", 2), ("b", -30)]), candidates(shelf, "ab"), False)
    assert column(table, "own_days") == [2, 0]
    assert column(table, "user_days") == [0, 0]


def test_no_candidate_no_row(shelf: Shelf) -> None:
    for said in (None, np.zeros(0, np.float32)):
        none = replace(candidates(shelf, ""), model=said)
        assert features(shelf, asked(shelf, [("a", 1)]), none, False).shape == (0, len(FEATURES))


def test_every_feature_speaks_for_somebody() -> None:
    assert len(set(FEATURES)) == len(FEATURES)
    assert {group_of(name) for name in FEATURES} == {*SOURCES, "item", "sid", "model", "user"}
    assert group_of("fresh_next_score") == "fresh_next"
    assert group_of("fresh_beam_place") == "fresh_beam"
    assert group_of("own_rhythm") == "own"
