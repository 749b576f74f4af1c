"""Held-out queries: read, drawn by the seed, asked at noon."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pytest

from models.retrieval.held_out import Query, draw, read_sample, to_queries
from plumline.schema import NUMBERS, QUERIES, conform

DAY = date(2020, 2, 3)
HOUR_MS = 3_600_000
NOON = int(datetime(2020, 2, 3, 12, tzinfo=UTC).timestamp() * 1000)


def query(*times: int) -> Query:
    return Query("u", DAY, [(f"i{place}", time) for place, time in enumerate(times)], frozenset({"i0", "x"}))


@pytest.mark.parametrize(
    ("times", "at_ms"),
    [((), NOON), ((5,), NOON), ((5, NOON - HOUR_MS), NOON), ((5, NOON + HOUR_MS), NOON + HOUR_MS)],
)
def test_a_user_comes_at_noon_or_with_the_last_event(times: tuple[int, ...], at_ms: int) -> None:
    asked = query(*times)
    request = asked.request({"country": "France"})
    assert (request.history, request.profile, request.at_ms) == (asked.history, {"country": "France"}, at_ms)
    assert (request.exclude, request.rule, request.now_ms) == (frozenset(), None, None)
    assert asked.seen == {item for item, _ in asked.history}


def test_rows_with_nothing_relevant_are_no_queries() -> None:
    rows = {
        "user_id": ["u", "v", "w"],
        "day": [DAY] * 3,
        "item_ids": [["a", "b"], [], ["c"]],
        "timestamps": [[1, 2], [], [3]],
        "relevant": [["b", "c"], ["a"], []],
        "rewards": [[2.0, 0.5], [1.0], []],
    }
    first, second = to_queries(conform(pa.table(rows), QUERIES))
    assert first == Query("u", DAY, [("a", 1), ("b", 2)], frozenset({"b", "c"}))
    assert first.rewards == {"b": 2.0, "c": 0.5}
    assert (second.user_id, second.history, second.rewards) == ("v", [], {"a": 1.0})
    older = conform(pa.table({name: column for name, column in rows.items() if name != "rewards"}), QUERIES)
    assert [one.rewards for one in to_queries(older)] == [{}, {}]  # of before rewards were kept


def test_numbers_of_the_history_come_along() -> None:
    rows = {
        "user_id": ["u", "n", "v"],
        "day": [DAY] * 3,
        "item_ids": [["a", "b"], ["c"], ["d"]],
        "timestamps": [[1, 2], [3], [4]],
        "relevant": [["b"], [], ["a"]],
        "price": [[0.1, None], [7.0], None],
        "rating": pa.array([[None, None], [None], [None]], pa.list_(pa.float32())),
    }
    table = conform(pa.table(rows), QUERIES)
    first, second = to_queries(table)
    assert first.numbers.keys() == second.numbers.keys() == {"price"}  # of what nobody knows nothing is kept
    [price, unknown] = first.request({}).numbers["price"]
    assert price == pytest.approx(0.1)
    assert unknown != unknown  # NaN
    assert len(second.request({}).numbers["price"]) == 1
    older = table.select([name for name in table.column_names if name not in NUMBERS])
    assert [one.numbers for one in to_queries(older)] == [{}, {}]
    assert to_queries(older) == [first, second]
    assert to_queries(QUERIES.schema.empty_table()) == []


def test_a_sample_keeps_the_order_and_is_the_seed_s() -> None:
    queries = [query(*range(number)) for number in range(50)]
    assert draw(queries, 50, seed=1) is queries
    drawn = [draw(queries, 10, seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    places = [queries.index(one) for one in drawn[0]]
    assert places == sorted(set(places))
    assert len(places) == 10


def test_the_world_s_queries_are_read(world: Any) -> None:
    everyone = read_sample(world.histories, 1000, seed=3)
    assert len(everyone) > 10
    some = read_sample(world.histories, 4, seed=3)
    assert [one for one in everyone if one in some] == some
    last = read_sample(world.histories, 1000, seed=3, last_events=True)
    assert len({one.user_id for one in last}) == len(last)
    assert all(len(one.relevant) == 1 for one in last)
