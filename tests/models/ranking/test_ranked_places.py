"""What a model that reads one place an item says of every candidate, whoever named it; the other form says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models.ranking.candidates import SOURCES, CandidateParams
from models.ranking.features import FEATURES, features
from models.ranking.frozen_ranker import Ranker
from models.ranking.ranked import Found, RankedRetriever
from models.ranking.shelf import DAY_MS
from models.retrieval.beam_check import plain_score
from models.retrieval.retriever import Ask, Request
from models.retrieval.rules import parse

PARAMS = CandidateParams(width=3, fresh_width=2)
"""So few beams that most candidates are somebody else's."""
SAID = ("model_score", "model_behind", "model_place")


def load(world: Any) -> RankedRetriever:
    names = ("vocabulary", "sids", "index", "catalog")
    parts = {name: getattr(world, name) for name in names} | {"weights": world.sft / "weights"}
    return RankedRetriever.load(parts, world.memory, Ranker(PARAMS), device="cpu")


@pytest.fixture(scope="module")
def ranked(places_world: Any) -> RankedRetriever:
    return load(places_world)


def requests(ranked: RankedRetriever) -> list[Request]:
    """Of many lengths, more than a batch has: nobody, profiles, gaps, the item that is looked at."""
    end, generator = ranked.memory.end_ms, np.random.default_rng(7)
    lists = [generator.integers(0, 24, number % 9) for number in range(20)]
    return [
        Request(
            history=[(f"item{item:02d}", end - (len(items) - place) * DAY_MS) for place, item in enumerate(items)],
            profile={"country": "Peru"} if number % 4 == 1 else {},
            context_item="item09" if number % 5 == 2 else None,
            at_ms=end + number * DAY_MS // 3 if number % 2 else None,
            now_ms=end + DAY_MS // 2,
        )
        for number, items in enumerate(lists)
    ]


def expected(ranked: RankedRetriever, request: Request, found: Found) -> list[float]:
    """Of each candidate, by a plain forward pass."""
    retriever, places = ranked.retriever, ranked.retriever.prompt(request).places
    assert places is not None
    ids = [ranked.shelf.item_id(number) for number in found.candidates.items.tolist()]
    sids = retriever.vocabulary.sid_token_ids(np.array([retriever.codes_of[item] for item in ids])).tolist()
    return [plain_score(retriever.model, places, sid, "cpu") for sid in sids]


def told(ranked: RankedRetriever, found: Found, name: str) -> np.ndarray:
    column: np.ndarray = features(ranked.shelf, found.visit, found.candidates, found.unseen_only)[
        :, FEATURES.index(name)
    ]
    return column


def assert_said(ranked: RankedRetriever, asked: Sequence[Request], found: Sequence[Found]) -> None:
    for request, one in zip(asked, found, strict=True):
        said = one.candidates.model
        assert said is not None
        assert said.dtype == np.float32
        np.testing.assert_allclose(said, expected(ranked, request, one), atol=6e-4)
        np.testing.assert_array_equal(said, np.round(said, 3))
        of_beams = one.candidates.scores[:, SOURCES.index("beam")]
        named = ~np.isnan(of_beams)
        # two kernels may round one score to either side
        np.testing.assert_allclose(said[named], of_beams[named], atol=1.1e-3)


def test_every_candidate_has_its_plain_score(ranked: RankedRetriever) -> None:
    asked = requests(ranked)
    [found] = ranked.find([asked])
    assert_said(ranked, asked, found)
    assert all(len(one.candidates) == 21 > len(one.beams) for one in found)
    assert len({tuple(one.candidates.model.tolist()) for one in found if one.candidates.model is not None}) > 15
    for one in found:
        score, behind, place = (told(ranked, one, name) for name in SAID)
        np.testing.assert_array_equal(score, one.candidates.model)
        np.testing.assert_allclose(behind, score - score.max(), atol=1e-5)
        assert score[np.argsort(place)].tolist() == sorted(score.tolist(), reverse=True)
        assert sorted(place.tolist()) == [*range(21)]


def test_every_variant_of_a_request_is_told_of_its_own_candidates(ranked: RankedRetriever) -> None:
    """Also where one of them allows nothing, so that another's search ran the prompt, or where all allow nothing."""
    plain = requests(ranked)[5:8]
    everything = frozenset(ranked.retriever.live_items)
    fresh = [replace(request, rule=parse("fresh(7d)")) for request in plain]
    closed = [
        replace(request, exclude=everything if place else frozenset({"item00"})) for place, request in enumerate(plain)
    ]
    found = ranked.find([closed, fresh, plain])
    for asked, some in zip((fresh, plain), found[1:], strict=True):
        assert_said(ranked, asked, some)
    assert_said(ranked, closed[:1], found[0][:1])
    assert [len(one.candidates) for one in found[0]] == [20, 0, 0]
    assert [len(one.candidates) for one in found[1]] == [5] * 3
    [alone] = ranked.find([closed])
    assert alone[1].candidates.model is None
    for one in (found[0][1], alone[1]):
        assert told(ranked, one, "model_score").shape == (0,)


def test_new_items_are_told_of_by_their_new_sids(ranked: RankedRetriever) -> None:
    end, codes = ranked.memory.end_ms, np.array([(3, 2, 2), (0, 0, 0)])
    day = pa.array([end // DAY_MS] * 2, pa.int32()).cast(pa.date32())
    items = pa.table({"item_id": ["brand new", "item08"], "first_seen_day": day, "published_ms": [end, end]})
    newer = ranked.with_retriever(ranked.retriever.with_items(items, codes))
    asked = [replace(one, history=[*one.history, ("brand new", end)]) for one in requests(ranked)[:4]]
    [found] = newer.find([asked])
    assert_said(newer, asked, found)
    assert {newer.shelf.number_of("brand new"), newer.shelf.number_of("item08")} <= set(
        found[0].candidates.items.tolist()
    )


def test_of_an_item_without_a_sid_nothing_is_said(ranked: RankedRetriever, make_memory: Any) -> None:
    other = RankedRetriever.of(ranked.retriever, make_memory(["nobody", "item01", "no one"]), Ranker(PARAMS))
    request = requests(ranked)[6]
    _, [state] = ranked.retriever.retrieve_with_states([request], [Ask([None], 3)], 3)
    assert state is not None
    [[found]] = ranked.find([[request]])
    [score] = np.array(expected(ranked, request, found))[found.candidates.items == ranked.shelf.number_of("item01")]
    assert other._asked_of_all(state, np.array([0, 1, 2, 1])).tolist() == [
        pytest.approx(value, abs=6e-4, nan_ok=True) for value in (np.nan, score, np.nan, score)
    ]
    assert np.isnan(other._asked_of_all(state, np.array([0, 2]))).all()


def test_a_model_that_spells_sids_says_nothing_of_others_beams(world: Any) -> None:
    spelling = load(world)
    [found] = spelling.find([requests(spelling)[:6]])
    for one in found:
        assert one.candidates.model is None
        assert len(one.candidates) == 21
        for name in SAID:
            assert np.isnan(told(spelling, one, name)).all()
        assert not np.isnan(told(spelling, one, "beam_score")).all()
