"""What is served, asked at random while items come, move and go: every answer against plain Python over plain rows."""

import contextlib
import copy
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.retrieval.beam import Choice
from plumline.errors import InputError
from plumline.tables import read_parquet
from serving.recommender import Recommendation, RecommendedItem, Recommender

DAY_MS = 86_400_000
END_MS = int(datetime(2011, 11, 1, tzinfo=UTC).timestamp() * 1000)  # of the releases' as_of
MOMENTS = tuple(END_MS + days * DAY_MS for days in (-285, -280, 0, 1, 12, 40))  # the first while the catalogue is new
NEW = [f"new{number:03d}" for number in range(160)]
STRANGE = ["nobody", "", "item999", "<a_1>", "ITEM001"]
HAPPENED = ("refused", "short", "capped short", "cold", "beams only", "drawn")
"""What must have come to pass, or the dice were of no use."""

Row = Mapping[str, Any]
ARule = Callable[..., tuple[str, Callable[[str, Row], bool]]]


@dataclass(frozen=True)
class World:
    """A release as it answers now, and what is true of it. live: rows of the items that its index holds; known: items
    that have a SID (retired ones too, and those that were deleted); dead: its tombstones."""

    recommender: Recommender
    live: Mapping[str, Row]
    known: frozenset[str]
    dead: frozenset[str] = frozenset()

    @staticmethod
    def of(recommender: Recommender) -> "World":
        """As it was sealed: rows of its catalogue and of its SID table."""
        rows = read_parquet(recommender.release.path("catalog") / "items.parquet").to_pylist()
        sids = read_parquet(recommender.release.path("sids") / "sids.parquet")
        codes = dict(zip(sids.column("item_id").to_pylist(), map(tuple, sids.column("codes").to_pylist()), strict=True))
        live = {
            row["item_id"]: {
                "title": row["title"],
                "codes": codes[row["item_id"]],
                "channel": row["channel"],
                "price": row["price"],
                "published_ms": (row["first_seen_day"] - date(1970, 1, 1)).days * DAY_MS,
            }
            for row in rows
            if not row["retired"]
        }
        return World(recommender, live, frozenset(row["item_id"] for row in rows))

    def with_items(self, rows: Mapping[str, Row]) -> "World":
        """New items, or known ones as they are now."""
        columns = {name: [row[name] for row in rows.values()] for name in ("title", "channel", "price", "published_ms")}
        days = pa.array([row["published_ms"] // DAY_MS for row in rows.values()], pa.int32()).cast(pa.date32())
        types = {"title": pa.string(), "channel": pa.string(), "price": pa.float64(), "published_ms": pa.int64()}
        table = {name: pa.array(values, types[name]) for name, values in columns.items()}
        items = pa.table({"item_id": list(rows), "first_seen_day": days, **table})
        codes = np.array([row["codes"] for row in rows.values()], dtype=np.int64)
        return World(
            self.recommender.with_items(items, codes), {**self.live, **rows}, self.known | rows.keys(), self.dead
        )

    def with_dead(self, dead: frozenset[str]) -> "World":
        """Other tombstones."""
        return replace(self, recommender=self.recommender.with_tombstones(dead), dead=dead)


@dataclass(frozen=True)
class Asked:
    """The arguments of a request, and what its rule holds of (None: no rule)."""

    about: dict[str, Any]
    holds: Callable[[str, Row], bool] | None

    def may(self, world: World) -> dict[str, Row]:
        """What may come back, item → row."""
        seen = set(self.items) & world.known if self.about["exclude_seen"] else set()
        return {
            item: row
            for item, row in world.live.items()
            if item not in world.dead and item not in seen and (self.holds is None or self.holds(item, row))
        }

    @property
    def items(self) -> list[str]:
        """Ids of the history, known or not."""
        return [one if isinstance(one, str) else one[0] for one in self.about["history"]]


@dataclass
class Tally:
    """What came of a fuzz. counts: by name; examples: what was asked and answered where something was wrong."""

    counts: Counter[str] = field(default_factory=lambda: Counter(invalid=0, disallowed=0, repeated=0))
    examples: list[Any] = field(default_factory=list)

    def check(self) -> None:
        """Raise AssertionError if anything was wrong, with the first example, or something never came to pass."""
        assert not self.examples, f"{dict(self.counts)}; first: {self.examples[0]}"
        assert all(self.counts[name] for name in HAPPENED), dict(self.counts)


class Noted(Exception):  # noqa: N818
    """A request that will be searched later."""


class Batched:
    """What makes the ranked lists of a recommender, searched for many requests at once, which is thrice as fast: the
    first `find` of each only notes it, `search` does what was noted, the second `find` has it."""

    def __init__(self, lists: Any) -> None:
        self.rank = lists.rank
        self._lists, self._noted, self._found = lists, [], None

    def find(self, variants: Any, *, size: int, choice: Choice | None, allowed: Any, to_tell: bool) -> Any:
        assert to_tell
        if self._found is None:
            self._noted.append((variants[0][0], allowed[0][0]))
            raise Noted
        request, found = next(self._found)
        assert [[request]] == variants
        return [[found]]

    def search(self, size: int, choice: Choice | None) -> None:
        requests, allowed = [one for one, _ in self._noted], [one for _, one in self._noted]
        about = {"size": size, "choice": choice, "allowed": [allowed], "to_tell": True}
        found = self._lists.find([requests], **about)[0] if requests else []
        self._found = iter(zip(requests, found, strict=True))


def recommend_each(recommender: Recommender, about: list[dict[str, Any]]) -> list[Recommendation | InputError]:
    """What `Recommender.recommend` answers to each of several requests for as many items of one choice."""
    asked = recommender
    answers: list[Recommendation | InputError] = []
    if len(about) > 1:
        asked = copy.copy(recommender)
        batched = vars(asked)["_lists"] = Batched(recommender._lists)
        for one in about:
            with contextlib.suppress(InputError, Noted):
                asked.recommend(**one)
        batched.search(about[0]["k"], about[0]["choice"])
    for one in about:
        try:
            answers.append(asked.recommend(**one))
        except InputError as error:
            answers.append(error)
    return answers


def ask(dice: random.Random, world: World, a_rule: ARule, which: dict[str, Any]) -> Asked:
    """A random request of a random user. which: how many items, and which of the possible ones."""
    pool = [*world.known, *STRANGE]
    if dice.random() < 0.3:  # somebody with few favourites
        pool = dice.sample(pool, 3)
    history: list[Any] = dice.choices(pool, k=dice.choice([0, 1, 3, dice.randint(0, 30), 120]))
    kind = dice.choice(["ids", "no times", "times", "one time", "later"])
    if kind == "no times":
        history = [(item, None) for item in history]
    elif kind != "ids":
        first, last = {"times": (-60, 0), "one time": (-1, -1), "later": (-5, 20)}[kind]
        history = [(item, END_MS + dice.randint(first * DAY_MS, last * DAY_MS)) for item in history]
    at_ms, now_ms = (dice.choice([None, dice.choice(MOMENTS) + dice.randrange(late)]) for late in (60_000, DAY_MS))
    moment = now_ms if now_ms is not None else at_ms
    rule, holds = None, None
    if dice.random() < 0.4:
        seen = {one if isinstance(one, str) else one[0] for one in history} & world.known
        rule, holds = a_rule(dice, seen, moment or 0)
        if "fresh" in rule and moment is None:
            rule, holds = None, None  # nothing has an age where nobody says when
    about = {
        "history": history,
        "profile": dice.choice([None, {"country": "France"}, {"country": "Atlantis"}, {"shoes": "43"}]),
        "context_item": dice.choice([None, None, dice.choice(pool)]),
        "at_ms": at_ms,
        "now_ms": now_ms,
        "exclude_seen": dice.random() < 0.3,
        "rule": rule,
    }
    return Asked(about | which, holds)


def which_items(dice: random.Random, ranked: bool) -> dict[str, Any]:
    """How many items, and which of the possible ones. ranked: whether in the order of a ranker."""
    cap, temperature = dice.choice([None, None, 1, 2, 5, 15]), dice.choice([None, 0.001, 0.5, 1.0, 100.0])
    choice = Choice(
        cap=cap,
        cap_level=1 if cap is None else dice.randint(1, 3),
        temperature=temperature,
        seed=0 if temperature is None else dice.randrange(1000),
    )
    return {
        "k": dice.choice([100, 100, 100, dice.randint(1, 100)]),
        "choice": dice.choice([None, choice]),
        "retrieval_only": not ranked,
    }


def change(dice: random.Random, world: World, start: World) -> World:
    """What may happen to a release while it answers. start: the release as it was sealed."""
    what = dice.choice(["items", "items", "items", "tombstones", "tombstones", "no tombstones", "again"])
    if what == "items":
        fresh = dice.sample(NEW, dice.choice([1, 10, 60]))
        moved = dice.sample(sorted(world.live), dice.choice([0, 1, 10]))
        rows = {}
        for name in dict.fromkeys([*fresh, *moved]):
            rows[name] = {
                "title": dice.choice([None, f"{name}, as of change {dice.randrange(1000)}"]),
                "codes": tuple(dice.randrange(size) for size in (8, 4, 4)),
                "channel": dice.choice(["a", "b", "c", None]),
                "price": dice.choice([None, *map(float, range(10))]),
                "published_ms": END_MS + dice.randint(-30, 10) * DAY_MS + dice.choice([0, dice.randrange(DAY_MS)]),
            }
        return world.with_items(rows)
    if what == "again":
        return start if dice.random() < 0.2 else world
    share = 0.0 if what == "no tombstones" else dice.choice([0.01, 0.05, 0.1, 0.2, 0.3, 0.6, 1.0])
    names = sorted(world.live)
    gone = dice.sample(names, round(share * len(names)))
    return world.with_dead(frozenset([*gone, "nobody"] if gone else ()))


def fuzz(worlds: list[World], a_rule: ARule, wanted: int, seed: int, batch: int) -> Tally:
    """Recommend from all of these, and from what becomes of them, until so many items have come out.

    batch: requests that are searched together. After every change two others come alone.
    """
    dice, tally, starts = random.Random(seed), Tally(), list(worlds)
    worlds = list(worlds)
    before: tuple[World, Asked, Recommendation] | None = None
    while tally.counts["items"] < wanted:
        number = dice.randrange(len(worlds))
        world = worlds[number] = change(dice, worlds[number], starts[number])
        if before is not None:  # whoever still holds what answered before the change sees nothing of it
            older, asked, answer = before
            if older.recommender.recommend(**asked.about) != answer:
                _blame(tally, older, asked, answer, ["changed"])
        for count in (1, 1, batch):
            which = which_items(dice, ranked=count > 1 or dice.random() < 0.7)
            group = [ask(dice, world, a_rule, which) for _ in range(count)]
            answers = recommend_each(world.recommender, [one.about for one in group])
            for asked, answer in zip(group, answers, strict=True):
                _judge(tally, world, asked, answer)
            if count == 1 and isinstance(answers[0], Recommendation):
                before = world, group[0], answers[0]
    return tally


def _judge(tally: Tally, world: World, asked: Asked, answer: Recommendation | InputError) -> None:
    may = asked.may(world)
    tally.counts["requests"] += 1
    if isinstance(answer, Recommendation):
        _blame(tally, world, asked, answer, faults(world, asked, may, answer, tally.counts))
        return
    tally.counts["refused"] += 1
    if may or asked.holds is None or "rule allows no item: " not in str(answer):
        _blame(tally, world, asked, answer, ["unsaid"])


def _blame(tally: Tally, world: World, asked: Asked, answer: Any, found: list[str]) -> None:
    tally.counts.update(found)
    if found and len(tally.examples) < 5:
        tally.examples.append((found, asked.about, sorted(world.dead), answer))


def faults(
    world: World, asked: Asked, may: Mapping[str, Row], answer: Recommendation, counts: Counter[str]
) -> list[str]:
    """What is wrong with an answer, a word for each thing. may: what may come back; counts: added to."""
    found: list[str] = []
    k, choice, items = asked.about["k"], asked.about["choice"] or Choice(), answer.items
    space = world.recommender.retriever.vocabulary.space
    # 1. Each item.
    for one in items:
        row = world.live.get(one.item_id)
        if row is None or space.parse(one.sid) != row["codes"] or one.title != row["title"]:
            found.append("invalid")
        if one.item_id not in may:
            found.append("disallowed")
    found += ["repeated"] * (len(items) - len({one.item_id for one in items}))
    found += ["invalid"] * answer.num_invalid
    # 2. The order: a sample of this temperature never turns what lies further apart around (chance below e^-50).
    if choice.temperature is None or answer.ranked:
        scores, slack = [one.score for one in items], 50 * (choice.temperature or 0.0)
        least = accumulate(scores, min)
        found += ["misordered"] * any(score > low + slack for score, low in zip(scores, least, strict=True))
        counts["drawn"] += scores != sorted(scores, reverse=True)
    # 3. How many there are, and what is said of it.
    if choice.cap is None:
        possible = min(k, len(may))
        found += ["kept back"] * (len(items) != possible)
    else:
        possible = min(k, room(choice, [row["codes"] for row in may.values()]))
        found += ["kept back"] * (not possible <= len(items) <= min(k, len(may)))
        shown = branches(choice, [space.parse(one.sid) for one in items])
        found += ["capped"] * any(len(sids) > choice.cap for sids in shown.values())
        counts["capped short"] += len(items) < min(k, len(may))
    known = [item for item in asked.items if item in world.known]
    told = (answer.num_allowed, answer.history_length, answer.num_unknown_history)
    found += ["miscounted"] * (told != (len(may), len(known), len(asked.items) - len(known)))
    found += ["unsaid"] * (not is_said(asked, answer, known))
    # 4. Why.
    context = {asked.about["context_item"]} & world.known
    reasons = [is_reasoned(world, one, set(known), context) if answer.ranked else not one.why for one in items]
    found += ["unreasoned"] * reasons.count(False)
    found += ["unreasoned"] * (answer.ranked == asked.about["retrieval_only"])
    counts["items"] += len(items)
    counts["short"] += len(items) < k
    counts["cold"] += answer.reason == "cold"
    counts["beams only"] += not answer.ranked
    return found


def branches(choice: Choice, sids: list[tuple[int, ...]]) -> dict[tuple[int, ...], set[tuple[int, ...]]]:
    """SIDs by the first codes that the choice caps."""
    found = defaultdict(set)
    for sid in sids:
        found[sid[: choice.cap_level]].add(sid)
    return found


def room(choice: Choice, sids: list[tuple[int, ...]]) -> int:
    """How many of these SIDs a cap lets come out together."""
    assert choice.cap is not None
    return sum(min(choice.cap, len(inside)) for inside in branches(choice, sids).values())


def is_said(asked: Asked, answer: Recommendation, known: list[str]) -> bool:
    """Whether reason and detail say that fewer items came than were asked for, and why; and nothing where all came."""
    k, choice, count = asked.about["k"], asked.about["choice"], len(answer.items)
    if answer.degraded or answer.reason != ("cold" if not known else "short" if count < k else ""):
        return False
    if count == k:
        return answer.detail == ""
    start = f"{count} of {k} items: "
    if count < min(k, answer.num_allowed):
        if choice is None or choice.cap is None:
            return False
        cap = f"at most {choice.cap} SIDs of one branch (level {choice.cap_level})"
        return answer.detail == f"{start}{answer.num_allowed:,} are allowed, but {cap}"
    limited = asked.about["rule"] is not None or (asked.about["exclude_seen"] and known)
    rest = answer.detail.removeprefix(start)
    said = f"no rule; the index holds {count:,} items" if not limited else rest
    return answer.detail == start + said and (not limited or f" leaves {count:,}" in rest.rsplit(", then ", 1)[-1])


def is_reasoned(world: World, one: RecommendedItem, known: set[str], context: set[str]) -> bool:
    """Whether an item's reasons have words and shares that sum to 1, name items of the history or itself, and tell no
    title of what was deleted."""
    carriers = {item for reason in one.why for item in reason.items}
    deleted = {world.live[item]["title"] for item in carriers & world.dead & world.live.keys()} - {None}
    return (
        abs(sum(reason.share for reason in one.why) - 1) <= 1e-6
        and all(0 < reason.share <= 1 and reason.words for reason in one.why)
        and len({reason.part for reason in one.why}) == len(one.why)
        and carriers <= known | context | {one.item_id}
        and all(reason.items == (one.item_id,) for reason in one.why if reason.part == "own")
        and (one.item_id in known or "own" not in {reason.part for reason in one.why})
        and not any(title in reason.words for title in deleted for reason in one.why)
    )


@pytest.fixture(scope="module")
def worlds(real: Any) -> list[World]:
    """A release whose ranker has learned and one that fuses ranks, as they were sealed."""
    return [World.of(Recommender.load(real.folder(number), device="cpu")) for number in (0, 1)]


def test_ten_thousand_served_items_are_all_valid_allowed_and_different(worlds: list[World], a_rule: ARule) -> None:
    fuzz(worlds, a_rule, 10_000, seed=1, batch=8).check()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_very_many_served_items_are_all_valid_allowed_and_different(worlds: list[World], a_rule: ARule) -> None:
    """50,000. N in the environment asks for another number of items, at least some thousand:

    N=1000000 python -m pytest -m slow -s tests/serving/test_recommender_fuzz.py
    """
    torch.set_num_threads(1)
    tally = fuzz(worlds, a_rule, int(os.environ.get("N", "50000")), seed=2, batch=30)
    print(dict(tally.counts))
    tally.check()
