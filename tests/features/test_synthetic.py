import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.batches import utc_day
from features.synthetic import World, make_world
from plumline.schema import EVENTS, ITEMS, USERS, conform


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(3, 400, 200, 20)


def rows_of(ids: pa.ChunkedArray) -> np.ndarray:
    return np.array([int(name[1:]) for name in ids.to_pylist()])


def days_of(world: World) -> np.ndarray:
    days = utc_day(world.events.column("timestamp")).cast(pa.int32()).to_numpy()
    return days - 19723  # 2024-01-01


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.integers(1, 30), st.integers(2, 60), st.integers(1, 12))
def test_any_size_fits_the_contracts(seed: int, num_users: int, num_items: int, num_days: int) -> None:
    world = make_world(seed, num_users, num_items, num_days, events_per_user=5)
    assert conform(world.items, ITEMS).equals(world.items)
    assert conform(world.users, USERS).equals(world.users)
    assert conform(world.events, EVENTS).equals(world.events)
    assert world.items.num_rows == num_items
    assert world.users.num_rows == num_users
    assert len(world.truth.chained) == world.events.num_rows
    again = make_world(seed, num_users, num_items, num_days, events_per_user=5)
    assert again.events.equals(world.events)
    assert again.items.equals(world.items)


def test_nothing_is_seen_before_its_birth_or_after_its_death(world: World) -> None:
    items, days = rows_of(world.events.column("item_id")), days_of(world)
    assert (world.truth.birth[items] <= days).all()
    assert (days < world.truth.death[items]).all()
    assert pc.is_valid(world.items.column("retired_at")).to_pylist() == (world.truth.death < 100).tolist()
    assert (world.truth.birth > 0).any()
    assert (world.truth.death < 20).any()


def test_chains_stay_in_a_topic_and_are_followed(world: World) -> None:
    truth = world.truth
    assert (truth.topic[truth.successor] == truth.topic).all()
    assert sorted(truth.successor) == list(range(200))
    users, items = rows_of(world.events.column("user_id")), rows_of(world.events.column("item_id"))
    order = np.lexsort((np.arange(len(users)), users))
    same_user = np.diff(users[order]) == 0
    before, after = items[order][:-1][same_user], items[order][1:][same_user]
    followed = truth.successor[before] == after
    assert followed[truth.chained[order][1:][same_user]].all()
    assert 0.35 < followed.mean() < 0.65
    popular = np.bincount(items).argmax()
    assert followed.mean() > 3 * (after == popular).mean()  # a model of sequences beats popularity


def test_taste_drifts(world: World) -> None:
    users, items, days = (
        rows_of(world.events.column("user_id")),
        rows_of(world.events.column("item_id")),
        days_of(world),
    )
    moved = world.truth.taste[users, 0] != world.truth.taste[users, 1]
    new_taste = world.truth.topic[items] == world.truth.taste[users, 1]
    assert new_taste[moved & (days >= 15)].mean() > 2 * new_taste[moved & (days < 5)].mean()


def test_another_seed_is_another_world(world: World) -> None:
    assert not make_world(4, 400, 200, 20).events.equals(world.events)
