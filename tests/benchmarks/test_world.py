"""The oracle of the world: what it expects, and that nothing it lists is beyond what may be listed."""

from datetime import date, timedelta

import numpy as np
import pytest

from benchmarks.measuring.served import AGES, pooled, table
from benchmarks.world import MOST_EVENTS, START, Oracle, Shape
from models.evaluation import metrics
from models.retrieval.held_out import PROTOCOLS, Query

SHAPE = Shape(users=120, items=60, days=10, events_per_user=12.0)


def queries(world, day: date) -> list[Query]:
    """A query a user: before the day, and what was taken on it."""
    events = world.events.select(["user_id", "item_id", "timestamp"]).to_pylist()
    found = []
    for user in sorted({event["user_id"] for event in events}):
        mine = [(e["item_id"], e["timestamp"].date()) for e in events if e["user_id"] == user]
        relevant = frozenset(item for item, at in mine if at == day)
        if relevant:
            found.append(Query(user, day, [(item, 0) for item, at in mine if at < day], relevant))
    return found


def test_oracle_expects_what_happens() -> None:
    world, day = SHAPE.make(5), START + timedelta(days=8)
    oracle = Oracle(world.truth, SHAPE, np.ones(SHAPE.items, dtype=bool))
    asked = queries(world, day)
    expected = oracle.expected(asked)
    assert (expected >= 0).all()
    shelf = (world.truth.birth <= 8) & (world.truth.death > 8)
    assert expected[:, ~shelf].sum() == 0
    # Events a day, of those who came: the sum is their number, at most MOST_EVENTS, at least one.
    assert (expected.sum(axis=1) >= 1 - 1e-9).all()
    assert (expected.sum(axis=1) < MOST_EVENTS).all()
    taken = np.zeros_like(expected)
    for row, query in enumerate(asked):
        taken[row, [int(item[1:]) for item in query.relevant]] = 1
    told = (expected * taken).sum() / taken.sum()
    assert told > 3 * expected[:, shelf].mean()  # what was taken was expected far more than the rest


def test_oracle_beats_chance_and_obeys() -> None:
    world, day = SHAPE.make(6), START + timedelta(days=8)
    allowed = np.ones(SHAPE.items, dtype=bool)
    allowed[::7] = False
    asked = queries(world, day)
    gone = [query.seen for query in asked]
    lists = Oracle(world.truth, SHAPE, allowed).lists(asked, gone)
    names = [f"i{number:02d}" for number in range(SHAPE.items)]
    assert all(not set(items) & seen for items, seen in zip(lists, gone, strict=True))
    assert not {item for items in lists for item in items} & {names[row] for row in np.flatnonzero(~allowed)}
    free = Oracle(world.truth, SHAPE, np.ones(SHAPE.items, dtype=bool)).lists(asked, [frozenset()] * len(asked))
    hits = metrics.hit_matrix(free, [query.relevant for query in asked], 10)
    random = np.random.default_rng(0)
    chance = metrics.hit_matrix(
        [random.permutation(names)[:10].tolist() for _ in asked], [query.relevant for query in asked], 10
    )
    assert hits.sum() > 2 * chance.sum()


def test_the_chain_comes_first_for_who_follows_it() -> None:
    shape = Shape(users=120, items=60, days=10, events_per_user=12.0, new_items=0.0, chain=0.999)
    world, day = shape.make(7), START + timedelta(days=8)
    oracle = Oracle(world.truth, shape, np.ones(shape.items, dtype=bool))
    asked = [query for query in queries(world, day) if query.history]
    lists = oracle.lists(asked, [frozenset()] * len(asked))
    for query, items in zip(asked, lists, strict=True):
        successor = world.truth.successor[int(query.history[-1][0][1:])]
        if world.truth.death[successor] > 8:
            assert items[0] == f"i{successor:02d}"


def test_seeds_are_pooled() -> None:
    figures = [{"recall@10": 0.2, "recall@10_se": 0.03}, {"recall@10": 0.4, "recall@10_se": 0.04}, {"num_queries": 0}]
    assert pooled(figures, "recall@10") == (pytest.approx(0.3), pytest.approx(0.025))
    assert pooled(figures, "recall@10", same_users=True) == (pytest.approx(0.3), pytest.approx(0.035))
    assert pooled(figures[2:], "recall@10") is None
    one = {"recall@10": 0.2, "recall@10_se": 0.03, "ndcg@10": 0.1, "ndcg@10_se": 0.01, "num_queries": 7}
    each = dict.fromkeys(PROTOCOLS, one)
    row = {
        "methods": {"served": each, "own": each},
        "served_minus": {"own": each},
        "model_gain": each,
        "ages": {age: {"served": each, "own": {key: {"num_queries": 0} for key in PROTOCOLS}} for age in AGES},
        "num_targets": {age: dict.fromkeys(PROTOCOLS, 3) for age in AGES},
        "candidates": dict.fromkeys(PROTOCOLS, 0.5),
    }
    lines = list(table([row, row]))
    assert any("14 user-days, 2 seed(s)" in line for line in lines)
    assert sum("6 older" in line for line in lines) == len(PROTOCOLS)
    own = next(line for line in lines if line.startswith("own"))
    assert own.split()[1:4] == ["0.2000", "±", "0.0212"]
    assert own.count(" - ") == len(AGES)
