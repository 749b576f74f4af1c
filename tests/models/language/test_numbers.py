"""Quantile buckets: equal mass, never empty, the same every time."""

import datetime
import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.catalog import Catalog
from models.language.numbers import Numbers, item_numbers, last_day, learn_edges, quantile_edges
from plumline.schema import HISTORIES, ITEMS, conform

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("values", "num_buckets", "edges"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], 4, (3, 5, 7)),
        ([8, 1, NAN, 7, 2, INF, 3, 6, -INF, 4, 5], 4, (3, 5, 7)),
        ([1, 2, 3], 8, (2, 3)),
        ([5, 5, 5, 1], 8, (5,)),
        ([5, 5, 5], 8, ()),
        ([], 8, ()),
        ([NAN], 8, ()),
        ([0] * 95 + [1, 2, 3, 4, 5], 3, (1, 4)),  # the frequent value alone, the others in equal parts
        ([1, 2, 3, 4, 5] + [9] * 95, 3, (9,)),
        ([1, 2] + [9] * 97, 2, (9,)),
    ],
)
def test_edges_by_hand(values: list[float], num_buckets: int, edges: tuple[float, ...]) -> None:
    assert quantile_edges(np.array(values, dtype=np.float64), num_buckets) == edges


FLOATS = st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32) | st.sampled_from([0.0, 1.0, 2.0]))


@settings(deadline=None)
@given(FLOATS, st.integers(2, 9), st.randoms(use_true_random=False))
def test_buckets_are_few_ordered_and_never_empty(values: list[float], num_buckets: int, rng: object) -> None:
    edges = quantile_edges(np.array(values), num_buckets)
    assert len(edges) < num_buckets
    assert all(a < b for a, b in itertools.pairwise(edges))
    shuffled = list(values)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert quantile_edges(np.array(shuffled), num_buckets) == edges
    finite = np.array([v for v in values if np.isfinite(v)])
    assert bool(edges) == (len(set(finite.tolist())) > 1)
    if edges:
        assert set(Numbers(7, edges).tokens(finite)) == set(range(7, 8 + len(edges)))


def test_continuous_values_fall_into_equal_parts() -> None:
    values = np.random.default_rng(1).lognormal(size=8000)
    found = np.bincount(Numbers(0, quantile_edges(values, 8)).tokens(values))
    assert found.tolist() == [1000] * 8


def test_a_double_meets_the_edge_that_was_learned_of_it() -> None:
    """Histories hold float32: 0.7 is a little more there than as a double, and still the same value."""
    (edge,) = quantile_edges(np.array([0.7, 0.1]), 8)
    assert edge != 0.7
    assert Numbers(0, (edge,)).tokens(np.array([0.7])).tolist() == [1]


def make_catalog(**columns: object) -> Catalog:
    items = conform(pa.table({"item_id": ["a", "b", "c"], **columns}), ITEMS)
    first = pa.array([datetime.date(2020, 1, 1), datetime.date(2020, 3, 1), None], pa.date32())
    return Catalog(items.append_column("first_seen_day", first), pa.table({"user_id": []}))


def test_numbers_of_items_as_they_are_on_a_day() -> None:
    catalog = make_catalog(price=[2.0, None, 4.0], duration_s=[60.0, 90.0, None])
    numbers = item_numbers(catalog, datetime.date(2020, 1, 31))
    expected = {"item_price": [2, NAN, 4], "item_age_days": [30, 0, NAN], "duration_s": [60, 90, NAN]}
    assert numbers.keys() == expected.keys()
    for name, values in numbers.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, np.float32(expected[name]))
    bare = Catalog(conform(pa.table({"item_id": ["a"]}), ITEMS), pa.table({"user_id": []}))
    assert all(np.isnan(values).all() for values in item_numbers(bare, datetime.date(2020, 1, 31)).values())


def test_only_numbers_that_tell_something_are_learned() -> None:
    day = (datetime.date(2020, 3, 31) - datetime.date(1970, 1, 1)).days
    histories = conform(
        pa.table(
            {
                "user_id": ["u"],
                "item_ids": [["a", "b"]],
                "timestamps": [[0, day * 86_400_000 + 5]],
                "rewards": [[1.0, 1.0]],
                "rating": [[4.0, None]],
                "watch_ratio": [[0.25, 0.5]],
            }
        ),
        HISTORIES,
    )
    assert last_day(histories) == datetime.date(2020, 3, 31)
    catalog = make_catalog(duration_s=[60.0, 60.0, 60.0])
    assert learn_edges(histories, catalog, 8) == {"watch_ratio": (0.5,), "item_age_days": (90.0,)}
    assert learn_edges(histories, catalog, 1) == {}
    assert last_day(HISTORIES.schema.empty_table()) == datetime.date(1970, 1, 1)
