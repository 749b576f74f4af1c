"""What is wrong with a delivery, one line a kind, with its place, over blocks as over whole tables."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from features.door import EventsLook, check, equal_rows
from plumline.schema import EVENTS, ITEMS, Contract, conform

NOW = datetime(2024, 1, 10, 12, tzinfo=UTC)
KNOWN = pa.array(["a", "b"])


def block(*rows: tuple[str | None, str | None, float | None], ids: list[str | None] | None = None) -> pa.Table:
    """Events: user, item, days before now."""
    users, items, days = (list(column) for column in zip(*rows, strict=True))
    times = [None if day is None else NOW - timedelta(days=day) for day in days]
    columns = {"user_id": users, "item_id": items, "timestamp": pa.array(times, pa.timestamp("us", "UTC"))}
    columns |= {"event_id": ids} if ids else {}
    return conform(pa.table(columns), Contract(EVENTS.name, EVENTS.schema, ()))


def look_at(*blocks: pa.Table, with_items: bool = True, places: bool = False) -> tuple[EventsLook, list[str]]:
    look = EventsLook(KNOWN, NOW, with_items=with_items)
    for number, one in enumerate(blocks):
        look.add(one, (lambda row, number=number: f"f{number}.csv: line {row + 2}") if places else None)
    return look, [f"{problem}|{problem.fatal}" for problem in look.problems()]


def test_kinds_are_counted_over_blocks_and_the_first_one_is_named() -> None:
    good = ("u", "a", 1.0)
    blocks = (block(good, ("u", "x", 1)), block(("u", "y", -1), ("u", "a", -2), good))
    look, told = look_at(*blocks)
    assert [line.partition(";")[0] for line in told] == [
        "events: row 2: unknown item_id 'x' (2 such rows)",
        "events: row 3: timestamp in the future: 2024-01-11 12:00:00 (2 such rows)",
    ]
    assert (look.num_rows, look.num_unknown, look.num_late, look.has_ids) == (5, 2, 2, False)
    _, told = look_at(*blocks, places=True)
    assert [line.partition(";")[0] for line in told] == [
        "f0.csv: line 3: unknown item_id 'x' (2 such rows)",
        "f1.csv: line 2: timestamp in the future: 2024-01-11 12:00:00 (2 such rows)",
    ]


def test_what_is_late_is_said_a_row() -> None:
    look = EventsLook(KNOWN, NOW, with_items=True)
    soon = 4 / 60 / 24  # a sender's clock may be five minutes ahead
    assert look.add(block(("u", "a", -soon), ("u", "a", -2 * soon), ("u", "a", None))).to_pylist() == [
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("with_items", [True, False])
def test_nothing_but_unknown_items_is_refused_where_items_came_with_them(with_items: bool) -> None:
    """The cases e_unk (with its items) and n1_event (alone: they may land tomorrow)."""
    _, told = look_at(block(("u", "77", 1), ("u", "78", 2)), with_items=with_items)
    (line,) = told
    assert line.startswith("events: row 1: unknown item_id '77' (2 such rows); all name items that no items file has")
    assert line.endswith(f"|{with_items}")


def test_ids_of_their_own_are_all_there_or_none_is() -> None:
    assert look_at(block(("u", "a", 1), ("u", "b", 1)))[1] == []
    assert look_at(block(("u", "a", 1)), block(("u", "b", 1), ids=["x"]))[1][0].startswith("events: row 1: event_id is")
    look, told = look_at(block(("u", "a", 1), ids=["x"]), block(("u", "b", 1), ids=["x"]))
    assert (look.has_ids, told) == (True, [])


def test_what_must_be_there() -> None:
    _, told = look_at(block((None, "a", 1), ("u", None, 1), ("u", "a", None)))
    assert [line.partition(";")[0] for line in told] == [
        "events: row 1: user_id is empty",
        "events: row 2: item_id is empty",
        "events: row 3: timestamp is empty",
    ]
    assert all(line.endswith("|True") for line in told)
    assert look_at()[1][0].startswith("events: no row;")


def test_equal_rows_are_told_from_different_ones() -> None:
    table = {"item_id": ["a", "b", "a", "a", None, None], "title": ["x", "y", "x", "z", "p", "p"]}
    items = conform(pa.table(table), Contract(ITEMS.name, ITEMS.schema, ()))
    assert equal_rows(items, "item_id").to_pylist() == [False, False, True, False, False, False]
    assert not pa.compute.any(equal_rows(items.slice(0, 2), "item_id")).as_py()
    assert [str(one).partition(";")[0] for one in check(items.slice(0, 4), None, None, now=NOW)] == [
        "items: row 4: item_id is there twice: 'a'"
    ]
    assert check(items.slice(0, 3), None, None, now=NOW) == []
