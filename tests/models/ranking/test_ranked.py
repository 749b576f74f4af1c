"""Requests → lists on the tiny world: what is found under which rule, what is chosen of it, what time it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models.memory.memory import Memory
from models.ranking.candidates import SOURCES, CandidateParams
from models.ranking.features import features
from models.ranking.frozen_ranker import Ranker
from models.ranking.lambdarank import fuse
from models.ranking.ranked import Found, RankedRetriever, _both, _choose
from models.ranking.shelf import DAY_MS
from models.ranking.why import Teller
from models.retrieval.beam import Choice
from models.retrieval.bits import Bits
from models.retrieval.retriever import Ask, Hit, Request
from models.retrieval.rules import parse
from models.retrieval.trie import Allowed

PARAMS = CandidateParams(width=12, fresh_width=5)
HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def ranked(world: Any) -> RankedRetriever:
    """With fused places."""
    names = ("vocabulary", "sids", "index", "catalog")
    parts = {name: getattr(world, name) for name in names} | {"weights": world.sft / "weights"}
    return RankedRetriever.load(parts, world.memory, Ranker(PARAMS), device="cpu")


@pytest.fixture(scope="module")
def learned(ranked: RankedRetriever, rank: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """With trees."""
    folder = rank(tmp_path_factory.mktemp("ranker") / "out", leave_one_out_queries=0)
    return replace(ranked, ranker=replace(Ranker.load(folder), candidates=PARAMS))


def request(ranked: RankedRetriever, *items: str, **about: Any) -> Request:
    """A user who took these items on the days before the memory's end, and asks at noon of the next."""
    end = ranked.memory.end_ms
    history = [(item, end - (len(items) - place) * DAY_MS) for place, item in enumerate(items)]
    return Request(history=history, **{"now_ms": end + DAY_MS // 2, **about})


def one(ranked: RankedRetriever, asked: Request, **about: Any) -> Found:
    [[found]] = ranked.find([[asked]], **about)
    return found


def names(ranked: RankedRetriever, found: Found) -> list[str]:
    return [ranked.shelf.item_id(number) for number in found.candidates.items.tolist()]


def named_by(ranked: RankedRetriever, found: Found, source: str) -> list[str]:
    """Items of a source, best first."""
    places = found.candidates.places[:, SOURCES.index(source)]
    return [names(ranked, found)[row] for row in np.argsort(places)[: int((~np.isnan(places)).sum())].tolist()]


def test_every_variant_is_under_its_own_rule(ranked: RankedRetriever, world: Any) -> None:
    plain = [request(ranked, "item01", "item05", "item03"), request(ranked, "item10")]
    rules = ["fresh(7d)", "~seen"]
    limited = [replace(asked, rule=parse(rule)) for asked, rule in zip(plain, rules, strict=True)]
    masked = [replace(asked, exclude=frozenset(item for item, _ in asked.history)) for asked in plain]
    found = ranked.find([plain, limited, masked])
    new = {f"item{number:02d}" for number in range(6)} - set(world.retired)  # seven days before that noon
    allowed = [
        [set(world.live)] * 2,
        [new, set(world.live) - {"item10"}],
        [set(world.live) - {item for item, _ in asked.history} for asked in plain],
    ]
    for variant, may in zip(found, allowed, strict=True):
        for some, items in zip(variant, may, strict=True):
            assert set(names(ranked, some)) <= items
            assert len(set(names(ranked, some))) == len(some.candidates)
    assert set(names(ranked, found[1][0])) == new
    assert [one.unseen_only for variant in found for one in variant] == [False, False, False, True, True, True]
    for variant, asked in zip(found, (plain, limited, masked), strict=True):
        for some, alone in zip(variant, asked, strict=True):
            [[hits]] = ranked.retriever.retrieve_each([alone], [Ask([ranked.retriever.allowed(alone)], 12)], 60)
            assert [hit.item_id for hit in some.beams] == [hit.item_id for hit in hits]


def test_beams_are_a_source_to_three_digits_and_those_of_new_items_another(ranked: RankedRetriever, world: Any) -> None:
    found = one(ranked, request(ranked, "item08", "item09"))
    scores = {hit.item_id: round(hit.score, 3) for hit in found.beams}
    assert set(named_by(ranked, found, "beam")) == set(scores)
    column = found.candidates.scores[:, SOURCES.index("beam")]
    told = dict(zip(names(ranked, found), column.tolist(), strict=True))
    assert {item: told[item] for item in scores} == pytest.approx(scores)
    fresh = named_by(ranked, found, "fresh_beam")
    new = {f"item{number:02d}" for number in range(6)} - set(world.retired)  # seven days before that noon
    assert fresh
    assert set(fresh) <= new
    [alone] = ranked.retriever.retrieve([replace(request(ranked, "item08", "item09"), rule=parse("fresh(7d)"))], 60, 5)
    assert set(fresh) == {hit.item_id for hit in alone}


def test_equal_scores_stand_in_the_order_of_their_codes(ranked: RankedRetriever) -> None:
    hits = [Hit("item08", -1.2344, (3, 0, 0)), Hit("item09", -1.2341, (1, 0, 0)), Hit("item10", -1.3, (0, 0, 0))]
    for order in (hits, hits[::-1]):
        numbers, scores = ranked._named(order)
        assert [ranked.shelf.item_id(number) for number in numbers.tolist()] == ["item09", "item08", "item10"]
        assert scores.tolist() == [-1.234, -1.234, -1.3]


def test_no_beams_among_new_items_where_there_are_none(ranked: RankedRetriever) -> None:
    late = request(ranked, "item01", now_ms=ranked.memory.end_ms + 10 * DAY_MS)
    assert named_by(ranked, one(ranked, late), "fresh_beam") == []
    without = replace(ranked, ranker=Ranker(PARAMS.model_copy(update={"fresh_width": 0})))
    assert named_by(ranked, one(without, request(ranked, "item01")), "fresh_beam") == []
    assert named_by(ranked, one(without, request(ranked, "item01")), "beam")


@pytest.mark.parametrize(
    ("now", "at", "last", "wanted"),
    [
        (0.5, None, -3, 0.5),
        (0.5, 9.0, -3, 0.5),  # now is what counts, not when the user came
        (None, 0.75, -3, 0.75),
        (None, None, -3, 1.0),  # a day after the memory's end
        (None, None, 0.5, 1.5),  # or after the last event
        (14.0, None, -3, 14.0),
        (14.1, None, -3, 0.5),  # beyond the horizon: the day after the end
        (9000.0, None, 8999.0, 0.5),
        (None, None, 400.0, 0.5),
        (-30.0, None, -3, 0.0),  # before the end no label was made
        (0.5 + 59 / 1440, None, -3, 0.5),  # in whole hours
        (None, None, None, 1.0),
    ],
)
def test_what_time_it_is(
    ranked: RankedRetriever, now: float | None, at: float | None, last: float | None, wanted: float
) -> None:
    """All in days after the memory's end."""

    def moment(days: float) -> int:
        return ranked.memory.end_ms + round(days * DAY_MS)

    asked = Request(
        history=[] if last is None else [("item01", 5), ("item02", moment(last))],
        at_ms=None if at is None else moment(at),
        now_ms=None if now is None else moment(now),
    )
    visit = one(ranked, asked).visit
    assert visit.now == moment(wanted)
    assert visit.now % HOUR_MS == 0
    assert visit.times.max(initial=0) <= visit.now
    if now is not None:
        assert ranked.rank_time(moment(now)) == visit.now


def test_the_same_within_the_hour(learned: RankedRetriever) -> None:
    end = learned.memory.end_ms
    lists = [
        learned.rank(one(learned, request(learned, "item01", "item02", now_ms=end + minutes * 60_000)), 10)
        for minutes in (61, 119, 121 + 3 * 1440)
    ]
    assert lists[0] == lists[1] != lists[2]


def test_a_list_is_the_best_by_the_ranker(learned: RankedRetriever, ranked: RankedRetriever) -> None:
    for retriever in (ranked, learned):
        found = one(retriever, request(retriever, "item01", "item02", "item01"))
        table = features(retriever.shelf, found.visit, found.candidates, found.unseen_only)
        scores = retriever.ranker.scores(found.candidates, table)
        hits = retriever.rank(found, 100)
        assert len(hits) == len(found.candidates)
        assert [hit.score for hit in hits] == sorted(scores.tolist(), reverse=True)
        assert {hit.item_id: hit.score for hit in hits} == dict(
            zip(names(retriever, found), scores.tolist(), strict=True)
        )
        assert all(hit.codes == retriever.retriever.codes_of[hit.item_id] for hit in hits)
        assert all(hit.why == () for hit in hits)
        assert retriever.rank(found, 4) == hits[:4]
    assert fuse(found.candidates).tolist() != scores.tolist()


def test_somebody_tells_why(learned: RankedRetriever) -> None:
    found = one(learned, request(learned, "item01", "item02", "item01"))
    hits = learned.rank(found, 8, teller=Teller({}, {}, "played"))
    assert [(hit.item_id, hit.score, hit.codes) for hit in hits] == [
        (hit.item_id, hit.score, hit.codes) for hit in learned.rank(found, 8)
    ]
    for hit in hits:
        assert sum(reason.share for reason in hit.why) == pytest.approx(1)
        assert {item for reason in hit.why for item in reason.items} <= {"item01", "item02", hit.item_id}
    own = [reason.words for hit in hits for reason in hit.why if reason.part == "own" and hit.item_id == "item01"]
    assert own in ([], ["played 2 times, last 2 days ago"])


SCORES = np.array([0.5, 2.0, 2.0, 1.0, -1.0])
SIDS = [(0, 0), (0, 1), (1, 0), (0, 2), (1, 0)]


@pytest.mark.parametrize(
    ("k", "choice", "wanted"),
    [
        (3, None, [1, 2, 3]),  # of equal ones the first
        (9, Choice(), [1, 2, 3, 0, 4]),
        (9, Choice(cap=1), [1, 2, 4]),  # the last one has the SID of the second
        (2, Choice(cap=1), [1, 2]),
        (9, Choice(cap=2), [1, 2, 3, 4]),
        (9, Choice(cap=1, cap_level=2), [1, 2, 3, 0, 4]),
        (0, None, []),
    ],
)
def test_the_best_under_a_cap_of_sids_a_branch(k: int, choice: Choice | None, wanted: list[int]) -> None:
    assert _choose(SCORES, SIDS, k, choice).tolist() == wanted


def test_a_sample_is_the_seed_s_and_the_temperature_s() -> None:
    def draw(temperature: float, seed: int, k: int = 2) -> list[int]:
        return _choose(SCORES, SIDS, k, Choice(temperature=temperature, seed=seed)).tolist()

    assert draw(1.0, 3) == draw(1.0, 3)
    assert sorted(draw(1.0, 3, k=5)) == list(range(5))  # without replacement
    assert {tuple(draw(0.001, seed, k=5)) for seed in range(50)} == {(1, 2, 3, 0, 4), (2, 1, 3, 0, 4)}
    firsts = np.bincount([draw(2.0, seed, 1)[0] for seed in range(4000)], minlength=5) / 4000
    expected = np.exp(SCORES / 2) / np.exp(SCORES / 2).sum()
    np.testing.assert_allclose(firsts, expected, atol=0.03)
    capped = _choose(SCORES, SIDS, 5, Choice(cap=1, temperature=1.0, seed=4)).tolist()
    assert len({SIDS[row][0] for row in capped}) == 2


def test_a_sample_of_a_request(learned: RankedRetriever) -> None:
    asked = request(learned, "item01", "item02")

    def items(seed: int) -> list[str]:
        choice = Choice(temperature=2.0, seed=seed)
        return [hit.item_id for hit in learned.rank(one(learned, asked, choice=choice, size=10), 10, choice)]

    assert items(1) == items(1) != items(2)
    assert len(set(items(1))) == 10


def test_new_items_and_items_that_go_make_another(ranked: RankedRetriever, world: Any) -> None:
    end, codes = ranked.memory.end_ms, np.array([(3, 2, 2), (0, 0, 0)])
    day = pa.array([end // DAY_MS] * 2, pa.int32()).cast(pa.date32())
    items = pa.table({"item_id": ["brand new", "item08"], "first_seen_day": day, "published_ms": [end, end]})
    newer = ranked.with_retriever(ranked.retriever.with_items(items, codes))
    found = one(newer, request(newer, "item01", "brand new"))
    assert {"brand new", "item08"} <= set(named_by(newer, found, "fresh_beam"))
    assert {"brand new", "item08"} <= set(named_by(newer, found, "fresh_popular"))
    assert "brand new" in named_by(newer, found, "own")
    [hit] = [hit for hit in newer.rank(found, 100) if hit.item_id == "item08"]
    assert hit.codes == (0, 0, 0)
    left = newer.with_retriever(newer.retriever.without(["item01", "brand new"]))
    again = one(left, request(left, "item01", "brand new", "item02"))
    assert not {"item01", "brand new"} & set(names(left, again))
    assert named_by(left, again, "next")  # what is gone still tells something about the user
    before = one(ranked, request(ranked, "item01", "brand new"))
    assert "brand new" not in names(ranked, before)
    assert "item08" not in named_by(ranked, before, "fresh_beam")


def test_what_goes_leaves_the_shelf_as_it_is(ranked: RankedRetriever) -> None:
    left = ranked.with_retriever(ranked.retriever.without(["item01"]))
    assert left.shelf is ranked.shelf
    compacted = replace(left.retriever, epoch=left.retriever.epoch.compacted())
    rebuilt = left.with_retriever(compacted)
    assert rebuilt.shelf is not ranked.shelf
    asked = request(ranked, "item01", "item02", "item05")
    assert names(rebuilt, one(rebuilt, asked)) == names(left, one(left, asked))


def test_a_memory_of_other_items_is_no_obstacle(ranked: RankedRetriever, make_memory: Any) -> None:
    """Items that only the index knows are candidates by their beams."""
    few: Memory = make_memory(["item01", "nobody"])
    other = RankedRetriever.of(ranked.retriever, few, Ranker(PARAMS))
    found = one(other, request(other, "item01", "item02"))
    assert set(named_by(other, found, "beam")) <= set(ranked.retriever.live_items)
    assert "nobody" not in names(other, found)
    assert named_by(other, found, "own") == ["item02", "item01"]


def test_both_is_what_two_answers_allow() -> None:
    some, other = Bits.of(np.array([True, True, False])), Bits.of(np.array([True, False, True]))
    assert _both(None, None) is None
    alone = Allowed(some)
    assert _both(alone, None) is _both(None, alone) is alone
    cases = [
        (Allowed(some, None), Allowed(other, None), [0], None),
        (Allowed(None, some), Allowed(other, other), [0, 2], [0]),
        (Allowed(some, other), Allowed(None, None), [0, 1], [0, 2]),
    ]
    for one_answer, another, base, delta in cases:
        for found in (_both(one_answer, another), _both(another, one_answer)):
            assert found is not None
            for bits, wanted in ((found.base, base), (found.delta, delta)):
                assert (None if bits is None else np.flatnonzero(bits.mask()).tolist()) == wanted
