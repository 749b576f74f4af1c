"""Whatever is asked: only items that exist, may be served, and do not repeat come back."""

from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.online import OnlineUser
from models.retrieval.beam import Choice
from models.retrieval.retriever import Hit, Request
from plumline.errors import InputError, MixedReleaseError
from serving.recommender import MAX_K, Recommendation, Recommender

ITEMS = [f"item{number:03d}" for number in range(60)]
LIVE, RETIRED = ITEMS[:-3], ITEMS[-3:]


@pytest.fixture(scope="session")
def recommender(real: Any) -> Recommender:
    return Recommender.load(real.folder(0), device="cpu")


class OneUser:
    """An online store of one answer, of a day."""

    def __init__(self, user: OnlineUser, day: date = date.max) -> None:
        self.user, self.day = user, day

    def read(self, user_id: str, timeout_s: float = 0.05, not_before: date = date.min) -> OnlineUser:
        return self.user if self.day >= not_before else OnlineUser(degraded=True, reason="stale")


class Liar:
    """A retriever that proposes what it should not."""

    def __init__(self, honest: Any, hits: list[Hit]) -> None:
        self.codes_of, self.vocabulary, self._hits = honest.codes_of, honest.vocabulary, hits
        self.widths: list[int] = []

    def retrieve(
        self, requests: list[Request], k: int, width: int, choice: Any = None, allowed: Any = None
    ) -> list[list[Hit]]:
        self.widths.append(width)
        return [self._hits for _ in requests]

    def without(self, item_ids: frozenset[str]) -> "Liar":
        return self

    def allowed(self, request: Request) -> None:
        return None

    def count(self, allowed: None) -> int:
        return 7

    def explain(self, request: Request) -> str:
        return "no"


def ids(answer: Recommendation) -> list[str]:
    return [item.item_id for item in answer.items]


items = st.one_of(st.sampled_from(ITEMS), st.text(max_size=5))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=st.lists(items, max_size=30),
    context=st.one_of(st.none(), items),
    k=st.integers(1, MAX_K),
    dead=st.frozensets(st.sampled_from(LIVE), max_size=50),
    exclude_seen=st.booleans(),
)
def test_every_answer_is_fit_to_serve(
    recommender: Recommender,
    history: list[str],
    context: str | None,
    k: int,
    dead: frozenset[str],
    exclude_seen: bool,
) -> None:
    asked = recommender.with_tombstones(dead)
    answer = asked.recommend(history=history, context_item=context, k=k, exclude_seen=exclude_seen)
    found = ids(answer)
    allowed = set(LIVE) - dead - (set(history) if exclude_seen else set())
    assert len(found) == len(set(found))
    assert set(found) <= allowed
    assert len(found) == min(k, len(allowed))  # nothing that may be served is kept back
    assert answer.num_invalid == 0
    assert [item.score for item in answer.items] == sorted((item.score for item in answer.items), reverse=True)
    codes_of = recommender.retriever.codes_of
    space = recommender.retriever.vocabulary.space
    assert all(space.parse(item.sid) == codes_of[item.item_id] for item in answer.items)
    known = [item for item in history if item in set(ITEMS)]
    assert (answer.history_length, answer.num_unknown_history) == (len(known), len(history) - len(known))
    assert answer.reason == ("cold" if not known else "short" if len(found) < k else "")
    assert not answer.degraded


def test_equal_requests_get_equal_answers(recommender: Recommender, real: Any) -> None:
    again = Recommender.load(real.folder(0), device="cpu")
    asked = {"history": ["item001", "item007"], "profile": {"country": "France"}, "k": 7}
    assert recommender.recommend(**asked) == again.recommend(**asked)


def test_history_profile_context_and_time_all_count(recommender: Recommender) -> None:
    def scores(**asked: Any) -> list[float]:
        return [item.score for item in recommender.recommend(**asked, retrieval_only=True).items]

    plain = scores(history=["item001", "item007"])
    assert scores(history=["item007", "item001"]) != plain
    assert scores(history=["item001", "item007"], profile={"country": "France"}) != plain
    assert scores(history=["item001", "item007"], context_item="item003") != plain
    assert scores(history=[("item001", 0), ("item007", 900 * 3_600_000)]) != plain
    assert scores(history=["item001", "item007"], at_ms=0) != plain


def test_the_model_is_told_when_a_user_with_times_in_the_history_comes(recommender: Recommender) -> None:
    def prompt(**asked: Any) -> tuple[str, ...]:
        return recommender.recommend(**asked, show_prompt=True).prompt

    assert recommender.ranked is not None
    end = recommender.ranked.memory.end_ms
    words, hour = recommender.retriever.vocabulary, 3_600_000
    history = [("item001", end - 90 * hour), ("item007", end - 30 * hour)]

    def gap(hours: float) -> str:
        return words.spell([words.gap_token(hours)])[0]

    plain = prompt(history=history)
    place = len(plain) - 1 - plain[::-1].index(gap(24))  # nobody said when: a day
    for later, hours in ((0, 30), (12 * hour, 42), (13 * hour - 1, 42), (13 * 24 * hour, 342)):
        assert prompt(history=history, now_ms=end + later) == (*plain[:place], gap(hours), *plain[place + 1 :])
    late = prompt(history=history, now_ms=end + 3000 * 24 * hour)  # beyond the horizon of the ranker: half a day
    assert late == prompt(history=history, now_ms=end + 12 * hour)
    ids = [item for item, _ in history]
    assert prompt(history=ids, now_ms=end) == prompt(history=ids)
    assert prompt(now_ms=end) == prompt()
    assert recommender.recommend(history=history, now_ms=end).prompt == ()


def test_titles_are_those_of_the_catalogue(recommender: Recommender) -> None:
    titles = {item.item_id: item.title for item in recommender.recommend(k=57).items}
    assert titles["item000"] is None
    assert titles["item005"] == "thing number 5 <a_1><b_1><c_1>"


def test_a_hundred_items_may_be_asked_for(recommender: Recommender) -> None:
    assert len(recommender.recommend(k=100).items) == len(LIVE)


@pytest.mark.parametrize("k", [0, -1, 101])
def test_k_out_of_range(recommender: Recommender, k: int) -> None:
    with pytest.raises(InputError, match=f"k = {k}: ask for 1 to 100"):
        recommender.recommend(k=k)


def test_times_for_all_items_or_for_none(recommender: Recommender) -> None:
    with pytest.raises(InputError, match="1 of 2 items have a timestamp"):
        recommender.recommend(history=["item001", ("item002", 5)])


def test_timed_histories_are_put_in_order(recommender: Recommender) -> None:
    forward = recommender.recommend(history=[("item001", 1_000), ("item002", 90_000_000)])
    assert recommender.recommend(history=[("item002", 90_000_000), ("item001", 1_000)]) == forward


def test_whatever_a_model_proposes_is_checked(recommender: Recommender) -> None:
    codes = recommender.retriever.codes_of
    wrong = tuple(reversed(codes["item004"])) if codes["item004"] != codes["item004"][::-1] else (7, 3, 3)
    hits = [
        Hit("item001", -1.0, codes["item001"]),
        Hit("item001", -1.1, codes["item001"]),  # twice
        Hit("item002", -1.2, codes["item002"]),  # deleted
        Hit("item004", -1.3, wrong),  # under a SID that is not its own
        Hit(RETIRED[0], -1.4, codes[RETIRED[0]]),
        Hit("nothing", -1.5, (0, 0, 0)),
        Hit("item006", -1.6, codes["item006"]),
    ]
    liar: Any = Liar(recommender.retriever, hits)
    asked = replace(recommender, retriever=liar, tombstones=frozenset({"item002"}))
    answer = asked.recommend(history=["item009"], k=7, retrieval_only=True)
    assert ids(answer) == ["item001", "item006"]
    assert (answer.num_invalid, answer.reason) == (5, "short")


def test_fifty_beams_or_as_many_as_items_are_asked_for(recommender: Recommender) -> None:
    liar: Any = Liar(recommender.retriever, [])
    asked = replace(recommender, retriever=liar)
    for k in (1, 49, 51, 100):
        asked.recommend(history=["item009"], k=k, retrieval_only=True)
    assert liar.widths == [50, 50, 51, 100]


@pytest.mark.parametrize(("days", "reason"), [(2, ""), (3, "stale")])
def test_features_may_be_two_days_older_than_the_release(recommender: Recommender, days: int, reason: str) -> None:
    user = OnlineUser((("item001", 1_000),), {}, found=True)
    features: Any = OneUser(user, recommender.release.as_of - timedelta(days=days))
    answer = recommender.recommend(user_id="u1", features=features)
    assert (answer.reason, answer.degraded) == (reason, bool(reason))


def test_online_features_stand_in_for_a_history(recommender: Recommender) -> None:
    user = OnlineUser((("item001", 1_000), ("item002", 90_000_000)), {"country": "France"}, found=True)
    features: Any = OneUser(user)
    online = recommender.recommend(user_id="u1", features=features)
    assert online == recommender.recommend(history=user.history, profile=user.profile)
    given_ids = recommender.recommend(user_id="u1", history=["item005"], features=features)
    assert given_ids == recommender.recommend(history=["item005"], profile=user.profile)
    of_nobody = recommender.recommend(user_id="u1", history=["item005"], profile={}, features=features)
    assert of_nobody == recommender.recommend(history=["item005"]) != given_ids
    assert recommender.recommend(user_id="u1", history=[], features=features).reason == "cold"


def test_missing_features_are_said(recommender: Recommender) -> None:
    answer = recommender.recommend(user_id="u1")
    assert (answer.degraded, answer.reason, len(answer.items)) == (True, "unavailable", 10)
    slow: Any = OneUser(OnlineUser(degraded=True, reason="timeout"))
    answer = recommender.recommend(user_id="u1", features=slow)
    assert (answer.degraded, answer.reason, len(answer.items)) == (True, "timeout", 10)
    unknown: Any = OneUser(OnlineUser())
    answer = recommender.recommend(user_id="nobody", features=unknown)
    assert (answer.degraded, answer.reason) == (False, "cold")
    assert not recommender.recommend(history=["item001"]).degraded


def test_a_mixed_release_is_not_loaded(real: Any, tmp_path: Path) -> None:
    import shutil

    mixed = tmp_path / "mixed"
    shutil.copytree(real.folder(0), mixed)
    shutil.rmtree(mixed / "sids")
    shutil.copytree(real.folder(1) / "sids", mixed / "sids")
    with pytest.raises(MixedReleaseError, match="sids"):
        Recommender.load(mixed, device="cpu")


def test_rules_are_kept_and_counted(recommender: Recommender) -> None:
    everything = recommender.recommend(k=5)
    assert (everything.num_allowed, everything.detail) == (len(LIVE), "")
    wanted = ids(recommender.recommend(history=["item001", "item007"], k=3))
    seen = recommender.recommend(history=wanted, k=57, rule="seen")
    assert sorted(ids(seen)) == sorted(wanted)
    assert (seen.num_allowed, seen.reason) == (3, "short")
    assert seen.detail == f"3 of 57 items: seen leaves 3 of {len(LIVE)} items"
    unseen = recommender.recommend(history=wanted, k=57, rule="~seen")
    assert set(ids(unseen)) == set(LIVE) - set(wanted)
    assert ids(unseen) == ids(recommender.recommend(history=wanted, k=57, exclude_seen=True))
    dead = recommender.with_tombstones(frozenset(LIVE[:50])).recommend(k=57)
    assert (dead.num_allowed, set(ids(dead))) == (len(LIVE) - 50, set(LIVE[50:]))


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("seen & ~seen", r"rule allows no item: seen leaves 1 of 57 items, then ~seen leaves 0 \(alone 56\)"),
        ("price <", "expected a number"),
        ('colour("red")', "colour"),
        ("fresh(7d)", "now_ms"),
    ],
)
def test_rules_that_allow_nothing_or_say_nothing_are_refused(recommender: Recommender, rule: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        recommender.recommend(history=["item001"], rule=rule)


def test_caps_and_samples(recommender: Recommender) -> None:
    capped = recommender.recommend(history=["item001"], k=57, choice=Choice(cap=1))
    space = recommender.retriever.vocabulary.space
    branches = [space.parse(item.sid)[0] for item in capped.items]
    assert max(len({i.sid for i in capped.items if space.parse(i.sid)[0] == branch}) for branch in branches) == 1
    drawn = [
        ids(recommender.recommend(history=["item001"], k=5, choice=Choice(temperature=1.0, seed=seed)))
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(set(items)) == 5 for items in drawn)


def test_new_items_are_served_without_another_release(recommender: Recommender) -> None:
    codes = np.array([recommender.retriever.codes_of["item001"]])
    day = pa.array([40_000], pa.int32()).cast(pa.date32())
    new = pa.table({"item_id": ["brand new"], "title": ["Fresh!"], "first_seen_day": day, "published_ms": [10**13]})
    once = recommender.with_items(new, codes)
    twice = once.with_items(new.set_column(0, "item_id", pa.array(["newer"])), codes)
    for asked, count in ((recommender, 57), (once, 58), (twice, 59)):
        answer = asked.recommend(history=["item001"], k=100)
        assert (len(answer.items), answer.num_allowed, answer.num_invalid) == (count, count, 0)
    assert {"brand new", "newer"} <= set(ids(answer))
    assert {item.title for item in answer.items if item.item_id == "newer"} == {"Fresh!"}
    assert twice.recommend(history=["newer"], k=1).history_length == 1
    fresh = twice.recommend(history=["item001"], k=100, rule="fresh(7d)", now_ms=10**13)
    assert sorted(ids(fresh)) == ["brand new", "newer"]
    assert "brand new" not in ids(twice.with_tombstones(frozenset({"brand new"})).recommend(k=100))


def test_a_cap_that_makes_a_list_short_is_the_reason_given(recommender: Recommender) -> None:
    answer = recommender.recommend(history=["item001"], k=57, choice=Choice(cap=1))
    assert answer.reason == "short"
    assert answer.detail.endswith("items: 57 are allowed, but at most 1 SIDs of one branch (level 1)")
    answer = recommender.recommend(history=["item001"], k=100, choice=Choice(cap=1))  # more than there are
    assert answer.detail.endswith("items: 57 are allowed, but at most 1 SIDs of one branch (level 1)")
    answer = recommender.recommend(history=["item001"], k=100, choice=Choice(cap=57))  # a cap that leaves all of them
    assert answer.detail == "57 of 100 items: no rule; the index holds 57 items"


def test_the_title_of_a_deleted_item_is_in_no_reason(recommender: Recommender) -> None:
    def words(asked: Recommender) -> str:
        items = asked.recommend(history=["item005"], k=56).items
        return " ".join(reason.words for item in items for reason in item.why if "item005" in reason.items)

    assert "thing number 5 <" in words(recommender)
    deleted = words(recommender.with_tombstones(frozenset({"item005"})))
    assert "item005" in deleted
    assert "thing number 5 <" not in deleted


def test_precision_is_a_setting_of_who_serves(real: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = Recommender.load(real.folder(0), device="cpu")
    monkeypatch.setenv("PLUMLINE_PRECISION", "bfloat16")
    coarse = Recommender.load(real.folder(0), device="cpu")
    assert {p.dtype for p in exact.retriever.model.parameters()} == {torch.float32}
    assert {p.dtype for p in coarse.retriever.model.parameters()} == {torch.bfloat16}
    ours, theirs = (r.recommend(history=["item001", "item007"], k=57).items for r in (exact, coarse))
    scores = {item.item_id: item.score for item in theirs}
    assert scores.keys() == {item.item_id for item in ours}
    assert max(abs(item.score - scores[item.item_id]) for item in ours) < 0.1
    assert Recommender.load(real.folder(0), device="cpu", precision="float32").retriever.model.dtype == torch.float32
