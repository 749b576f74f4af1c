from collections.abc import Callable
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pytest

from features.expectations import events, items
from features.expectations.validation import Verdict, validate
from plumline.schema import EVENTS, ITEMS, TIMESTAMP, conform

DAY = date(2024, 1, 2)
NO_BOUNDS = {"rows_low": None, "rows_high": None}


def make_events(num_rows: int) -> dict[str, list]:
    return {
        "event_id": [f"e{n}" for n in range(num_rows)],
        "user_id": [f"u{n % 7}" for n in range(num_rows)],
        "item_id": [f"i{n % 5}" for n in range(num_rows)],
        "timestamp": [datetime(2024, 1, 2, n % 24, tzinfo=UTC) for n in range(num_rows)],
        "watch_ratio": [0.5] * num_rows,
        "watch_time_s": [1.0] * num_rows,
        "price": [0.0] * num_rows,
        "quantity": [-1.0] * num_rows,
    }


def judge(columns: dict[str, list], landed: tuple[str, ...] = (), **bounds: int | None) -> Verdict:
    return validate(make_frame(columns, landed), "events", {**NO_BOUNDS, **bounds})


def make_frame(columns: dict[str, list], landed: tuple[str, ...]) -> pa.Table:
    table = conform(pa.table(columns), EVENTS.__class__("events", EVENTS.schema, ()))
    table = table.append_column("day", pa.repeat(pa.scalar(DAY, pa.date32()), table.num_rows))
    known = pa.array([f"i{n}" for n in range(5)])
    return events.frame(table, known_items=known, landed_ids=pa.array(landed, pa.string()))


def test_a_good_day_passes_whole() -> None:
    verdict = judge(make_events(50))
    assert all(check.success for check in verdict.checks)
    assert verdict.bad_rows == {}
    assert (verdict.reasons(50, "critical", "warning", "info") == "").all()


SEEDED = {
    "user_id missing": ("user_id", None),
    "user_id empty or longer than 512 characters": ("user_id", "x" * 513),
    "item_id missing": ("item_id", None),
    "event_id missing": ("event_id", None),
    "event_id empty or longer than 512 characters": ("event_id", ""),
    "timestamp missing": ("timestamp", None),
    events.UNKNOWN_ITEM: ("item_id", "nobody"),
    events.OTHER_DAY: ("timestamp", datetime(2024, 1, 3, tzinfo=UTC)),
    events.REPEATED: ("event_id", "landed before"),
    "quantity is 0": ("quantity", 0.0),
    "watch_ratio below 0": ("watch_ratio", -0.1),
    "watch_time_s below 0": ("watch_time_s", -1.0),
    "price below 0": ("price", -0.01),
}


def test_ids_may_have_512_characters() -> None:
    columns = make_events(2)
    columns["user_id"][0] = columns["event_id"][1] = "x" * 512
    assert judge(columns).bad_rows == {}
    columns["user_id"][0] += "x"
    columns["event_id"][1] += "x"
    bad = {reason: rows.tolist() for reason, rows in judge(columns).bad_rows.items()}
    beyond = "empty or longer than 512 characters"
    assert bad == {f"user_id {beyond}": [0], f"event_id {beyond}": [1]}
    table = conform(pa.table({"item_id": ["x" * 512, "y" * 513, ""], "title": ["a", "b", "c"]}), ITEMS)
    reasons = validate(items.frame(table), "items", {}).reasons(3, "critical", "warning").tolist()
    assert reasons == ["", *["item_id empty or longer than 512 characters"] * 2]


def test_every_seeded_violation_is_found_at_its_row_and_nothing_else() -> None:
    columns = make_events(60)
    for row, (column, value) in enumerate(SEEDED.values()):
        columns[column][2 * row] = value
    verdict = judge(columns, landed=("landed before",))
    reasons = verdict.reasons(60, "critical", "warning")
    assert dict(zip(np.flatnonzero(reasons != ""), reasons[reasons != ""], strict=True)) == {
        2 * row: reason for row, reason in enumerate(SEEDED)
    }
    assert set(verdict.bad_rows) == set(SEEDED)
    assert {check.reason for check in verdict.checks if not check.success} == set(SEEDED)
    counted = verdict.reasons(60, "critical")  # a repeated delivery is nobody's fault
    assert set(np.flatnonzero(counted == "")) - set(np.flatnonzero(reasons == "")) == {16}


def test_what_tests_judge_quickly_by_is_the_suite(quick_validation: Callable[..., Verdict]) -> None:
    columns = make_events(60)
    for row, (column, value) in enumerate(SEEDED.values()):
        columns[column][2 * row] = value
        columns[column][2 * row + 28] = value
    framed = make_frame(columns, ("landed before",))
    slow, fast = validate(framed, "events", NO_BOUNDS), quick_validation(framed, "events", NO_BOUNDS)
    known = [reason for reason in slow.bad_rows if "longer than" not in reason and "watch" not in reason]
    assert {reason: slow.bad_rows[reason].tolist() for reason in known} == {
        reason: rows.tolist() for reason, rows in fast.bad_rows.items()
    }
    assert {c.reason: c.severity for c in fast.checks}.items() <= {c.reason: c.severity for c in slow.checks}.items()


def test_of_equal_ids_the_first_usable_one_lands() -> None:
    columns = make_events(6)
    columns["event_id"] = ["a", "b", "a", "b", "b", "c"]
    columns["item_id"][1] = "nobody"
    assert judge(columns).bad_rows[events.REPEATED].tolist() == [2, 4]


def test_row_counts_are_compared_with_the_bounds() -> None:
    far = [check for check in judge(make_events(9), rows_low=10, rows_high=20).checks if not check.success]
    assert [(check.severity, check.observed) for check in far] == [("warning", 9.0)]
    assert all(check.success for check in judge(make_events(9), rows_low=9, rows_high=9).checks)


def test_a_check_that_breaks_is_no_verdict_on_the_data() -> None:
    with pytest.raises(RuntimeError, match="broke"):
        table = events.frame(
            pa.table({"event_id": ["e"], "item_id": ["i"], "timestamp": pa.array([0], TIMESTAMP), "quantity": [1.0]})
            .append_column("day", pa.array([date(1970, 1, 1)]))
            .append_column("user_id", pa.array(["u"]))
            .append_column("watch_ratio", pa.array([0.1]))
            .append_column("watch_time_s", pa.array([0.1]))
            .append_column("price", pa.array(["cheap"])),
            known_items=pa.array(["i"]),
            landed_ids=pa.array([], pa.string()),
        )
        validate(table, "events", NO_BOUNDS)


def test_items_need_something_that_describes_them() -> None:
    table = conform(
        pa.table(
            {
                "item_id": ["a", "b", "c", "d", "e", "f"],
                "title": ["x", None, None, None, None, "y"],
                "channel": [None, "shop", None, None, None, None],
                "topics": [None, None, ["t"], [], None, None],
                "emb_image": pa.array([None, None, None, None, [1.0], None], pa.list_(pa.float32(), 1)),
                "price": [None, None, None, None, None, -1.0],
            }
        ),
        ITEMS,
    )
    assert items.described(table).to_pylist() == [True, True, True, False, True, True]
    verdict = validate(items.frame(table), "items", {})
    assert verdict.reasons(6, "critical", "warning").tolist() == ["", "", "", items.UNDESCRIBED, "", ""]
    assert verdict.bad_rows["price below 0"].tolist() == [5]  # noted, kept
