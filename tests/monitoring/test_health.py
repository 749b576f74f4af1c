"""Every kind of bad answer is counted, good ones are not, and what was not measured is not there."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.health import Health, ServedItems, judge_traffic, of_days, read_served_items, staleness_hours
from plumline.errors import InputError
from plumline.schema import TRAFFIC
from serving.traffic import rows_to_table

DAY = date(2011, 11, 1)
NOW = datetime(2011, 11, 2, 6, tzinfo=UTC)


@pytest.fixture(scope="module")
def served_items(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> ServedItems:
    return read_served_items(example.make_release(tmp_path_factory.mktemp("r") / "r", DAY - timedelta(days=1)))


def _judge(example: ModuleType, served_items: ServedItems, rows: list[dict[str, Any]]) -> Health:
    answers = []
    for number, changes in enumerate(rows):
        row = {"items": ["item-01", "item-02"], "release_id": served_items.release_id, **changes}
        answers.append(example.answer(DAY, number, row.pop("items"), row.pop("release_id"), **row))
    return judge_traffic(rows_to_table(answers), served_items, now=NOW)


def test_good_answers_are_clean(example: ModuleType, served_items: ServedItems) -> None:
    health = _judge(example, served_items, [{}, {"items": ["item-00"]}])
    assert (health.num_requests, health.num_items) == (2, 3)
    assert health.gauges["invalid_served"] == 0
    assert health.gauges["valid_served_percent"] == 100
    assert health.gauges["repeated_served"] == health.gauges["retired_served"] == 0
    assert health.latency_p50_ms == pytest.approx(10.5)
    assert health.latency_p99_ms == pytest.approx(10.99)


@pytest.mark.parametrize(
    ("changes", "num_invalid"),
    [
        ({"items": ["item-01"], "sids": ("<a_2><b_0>",)}, 1),  # another item's SID
        ({"items": ["item-01"], "sids": ("<a_99><b_0>",)}, 1),  # no SID at all
        ({"items": ["item-01", "item-02"], "sids": ("<a_1><b_0>",)}, 2),  # not one a item
        ({"items": ["item-01", "gone"]}, 1),  # unknown item under a known SID
        ({"items": ["item-01", "gone"], "sids": ()}, 1),  # a fallback says no SIDs
        ({"items": ["item-01"], "sids": (), "degraded": True}, 0),
        ({"items": [], "sids": ()}, 0),
        ({"items": ["item-01"], "sids": ("x",), "release_id": "another"}, 0),  # cannot be looked up here
    ],
)
def test_invalid_sids(
    example: ModuleType, served_items: ServedItems, changes: dict[str, Any], num_invalid: int
) -> None:
    assert _judge(example, served_items, [{}, changes, {}]).num_invalid == num_invalid


def test_repeated_retired_empty_degraded_and_unfit(example: ModuleType, served_items: ServedItems) -> None:
    rows = [
        {"items": ["item-01", "item-02", "item-01"]},
        {"items": [example.RETIRED, "item-03"], "num_invalid": 4},
        {"items": [], "degraded": True},
        {"items": [example.RETIRED], "release_id": "another"},
    ]
    health = _judge(example, served_items, rows)
    assert (health.num_repeated, health.num_retired, health.num_unfit) == (1, 2, 4)
    assert (health.empty_percent, health.degraded_percent) == (25, 25)
    assert health.num_other_releases == 1


def test_tombstones_count_as_retired(example: ModuleType, tmp_path: Path) -> None:
    release = example.make_release(tmp_path / "r", DAY - timedelta(days=1))
    served_items = read_served_items(release, ["item-01"])
    assert served_items.retired == {example.RETIRED, "item-01"}
    assert _judge(example, served_items, [{}]).num_retired == 1


def test_reactions_are_not_requests(example: ModuleType, served_items: ServedItems) -> None:
    health = _judge(example, served_items, [{}, {"action": "click", "items": ["item-01"], "latency_ms": 9e9}])
    assert (health.num_requests, health.num_reactions) == (1, 1)
    assert health.latency_p99_ms == 10


def test_a_day_without_answers_has_gaps_not_zeros(example: ModuleType, served_items: ServedItems) -> None:
    health = judge_traffic(TRAFFIC.schema.empty_table(), served_items, now=NOW)
    assert health.gauges == {"requests": 0.0, "staleness_hours": 30.0}
    others = _judge(example, served_items, [{"release_id": "another"}])
    assert "invalid_served" not in others.gauges  # not looked up is not the same as none
    assert others.gauges["retired_served"] == 0


def test_staleness_counts_from_the_end_of_the_last_day() -> None:
    assert staleness_hours(date(2011, 10, 31), datetime(2011, 11, 1, tzinfo=UTC)) == 0
    assert staleness_hours(date(2011, 10, 31), NOW) == 30
    with pytest.raises(InputError, match="no time zone"):
        staleness_hours(DAY, datetime(2011, 11, 2))


def test_days_are_utc_days(example: ModuleType) -> None:
    times = [datetime(2011, 11, 1, 0, tzinfo=UTC), datetime(2011, 11, 1, 23, 59, 59, tzinfo=UTC)]
    times += [datetime(2011, 11, 2, tzinfo=UTC), datetime(2011, 10, 31, 23, 59, tzinfo=UTC)]
    table = pa.table({"timestamp": pa.array(times, TRAFFIC.schema.field("timestamp").type)})
    assert of_days(table, DAY, DAY).num_rows == 2
    assert of_days(table, DAY - timedelta(days=1), DAY + timedelta(days=1)).num_rows == 4


@given(lists=st.lists(st.lists(st.integers(0, 19), max_size=6), max_size=8))
def test_counts_agree_with_counting_by_hand(example: ModuleType, served_items: ServedItems, lists: Any) -> None:
    rows = [{"items": [example.ITEM_IDS[i] for i in items]} for items in lists]
    health = _judge(example, served_items, rows)
    assert health.num_invalid == 0
    assert health.num_items == sum(map(len, lists))
    assert health.num_repeated == sum(len(items) - len(set(items)) for items in lists)
    assert health.num_retired == sum(items.count(19) for items in lists)
