from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import day_parts
from features.batches import find_batch, list_batches
from features.landing import arrive, check, known_items, land, rename, scratch_folder
from plumline.artifact import verify
from plumline.errors import CorruptArtifactError, InputError
from plumline.schema import EVENTS, ITEMS, USERS

NOW = datetime(2024, 1, 10, 12, tzinfo=UTC)


def make_items(*ids: str, **columns: list) -> pa.Table:
    return rename(pa.table({"item_id": list(ids), "title": [f"title {i}" for i in ids], **columns}), ITEMS, {}).table


def make_events(*rows: tuple[str, str, str], **columns: list) -> pa.Table:
    users, items, times = (list(column) for column in zip(*rows, strict=True))
    table = pa.table({"user_id": users, "item_id": items, "timestamp": times, **columns})
    return rename(table, EVENTS, {}).table


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_batch_holds_what_was_delivered_by_day(tmp_path: Path) -> None:
    events = make_events(("u", "b", "2024-01-03 23:59:59"), ("v", "a", "2024-01-01"), ("u", "a", "2024-01-03"))
    users = rename(pa.table({"user_id": ["v", "u"], "age": [1, 2]}), USERS, {}).table
    folder = land(make_items("b", "a"), events, users, landing=tmp_path, source="test", now=NOW)
    verify(folder)
    names = {"manifest.json", "items.parquet", "users.parquet"}
    assert set(files(folder)) == names | {"events/day=2024-01-01.parquet", "events/day=2024-01-03.parquet"}
    (batch,) = list_batches(tmp_path)
    assert list(batch.day_files()) == [date(2024, 1, 1), date(2024, 1, 3)]
    assert batch.read("items.parquet").column("item_id").to_pylist() == ["a", "b"]
    day = batch.read("events/day=2024-01-03.parquet")
    assert day.schema.equals(EVENTS.schema)
    assert day.column("item_id").to_pylist() == ["a", "b"]
    assert known_items(tmp_path) == {"a", "b"}


def test_the_same_delivery_twice_is_there_once(tmp_path: Path) -> None:
    items, events = make_items("a"), make_events(("u", "a", "2024-01-01"))
    first = land(items, events, None, landing=tmp_path, source="monday", now=NOW)
    before = files(tmp_path)
    assert land(items, events, None, landing=tmp_path, source="tuesday", now=NOW) == first
    assert files(tmp_path) == before
    land(make_items("b"), None, None, landing=tmp_path, source="items alone", now=NOW)
    assert [batch.order for batch in list_batches(tmp_path)] == [0, 1]


def a_delivery() -> tuple[pa.Table, pa.Table, pa.Table]:
    """Items, events and users with what a table may have: holes, equal rows, texts with a mark."""
    rows: list[tuple] = [
        (f"u{n % 7}", f"i{n % 5}", f"2024-01-{1 + n * n % 12:02d} {n % 24:02d}:30", [None, "web", "app"][n % 3], n % 2)
        for n in range(90)
    ]
    rows += rows[:20]
    users, items, times, surfaces, odd = (list(column) for column in zip(*rows, strict=True))
    ratings = [2.5 if one else None for one in odd]
    log = {"user_id": users, "item_id": items, "timestamp": times, "surface": surfaces, "rating": ratings}
    catalogue = pa.table({"item_id": ["i1", "i0"], "title": ["One", None], "topics": ["a|b", "c"]})
    people = pa.table({"user_id": ["u1", "u0"], "age": [31, 30]})
    return (
        rename(catalogue, ITEMS, {}).table,
        rename(pa.table(log), EVENTS, {}).table,
        rename(people, USERS, {}).table,
    )


def test_a_batch_keeps_the_name_that_0_2_gave_it(tmp_path: Path) -> None:
    """These four were computed by Plumline 0.2: who landed them then is told so when they come again."""
    items, events, users = a_delivery()
    with_ids = events.set_column(0, "event_id", [[f"e{n:03d}" for n in range(events.num_rows)]])
    deliveries = [(items, events, users), (None, events, None), (items, None, None), (None, with_ids, None)]
    names = [land(*tables, landing=tmp_path, source="", now=NOW).name for tables in deliveries]
    assert names == ["520d7abeff98e16d", "3fb25fd52201a87e", "0e35c00e4a87c8c3", "01f1749c0abafd19"]


@pytest.mark.parametrize("size", [1, 7])
def test_a_delivery_in_blocks_is_the_same_batch(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    items, events, users = a_delivery()
    whole = land(items, events, users, landing=tmp_path / "whole", source="x", now=NOW)
    monkeypatch.setattr(day_parts, "_RUN_BYTES", 2_000)
    blocks = (events.slice(start, size) for start in range(0, events.num_rows, size))
    parts = land(items, blocks, users, landing=tmp_path / "parts", source="x", now=NOW)
    verify(parts)
    assert parts.name == whole.name
    assert files(parts) == files(whole)
    (batch,) = list_batches(tmp_path / "parts")
    assert batch.manifest.arguments["folded"] == 20
    assert not any(path.is_dir() for path in (tmp_path / "parts").glob(".scratch/*"))
    with pytest.raises(InputError, match="all lie after now"):
        land(None, iter([events]), None, landing=tmp_path / "none", source="x", now=datetime(2023, 1, 1, tzinfo=UTC))
    assert not (tmp_path / "none").exists()


def test_what_arrives_is_counted_before_it_lands(tmp_path: Path) -> None:
    items, events, users = a_delivery()
    items = pa.concat_tables([items, items.slice(1)])
    with scratch_folder(tmp_path / "data" / "landing") as scratch:
        arrival = arrive(items, events, users, scratch=scratch, now=NOW, known=["i2", "i3"])
        assert arrival.rows == {"items": 2, "users": 2, "events": 83}
        assert arrival.folded == {"items": 1, "users": 0, "events": 20}
        assert sum(arrival.days.values()) == 83
        assert list(arrival.days) == sorted(arrival.days)
        assert (arrival.num_late, arrival.num_unknown) == (7, 22)
        assert [problem.column for problem in arrival.problems] == ["unknown item_id", "timestamp in the future:"]
        assert not arrival.fatal
    assert list(tmp_path.iterdir()) == []


def test_a_delivery_is_found_by_its_id_its_beginning_or_its_number(tmp_path: Path) -> None:
    first = land(make_items("a"), None, None, landing=tmp_path, source="a.csv", now=NOW).name
    second = land(make_items("b"), None, None, landing=tmp_path, source="b.csv", now=NOW).name
    assert {find_batch(tmp_path, name).id for name in (first, first[:4], "0")} == {first}
    batch = find_batch(tmp_path, "1")
    assert str(batch) == f"delivery 1 ({second}, b.csv, landed 2024-01-10 12:00 UTC)"
    assert (batch.rows(), batch.of_init) == ({"items": 1}, False)
    for name in (first[:3], "nothing"):
        with pytest.raises(InputError, match=rf"{name} is no delivery; there are: {first} \(a.csv\), {second}"):
            find_batch(tmp_path, name)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_rows_in_a_file_does_not_matter(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rows = [(f"u{n % 3}", f"i{n % 5}", f"2024-01-0{1 + n % 4} 00:00:{n % 2:02d}") for n in range(24)]
    shuffled = np.random.default_rng(seed).permutation(len(rows))
    folders = [
        land(
            None, make_events(*(rows[n] for n in order)), None, landing=tmp_path_factory.mktemp("l"), source="", now=NOW
        )
        for order in (range(len(rows)), shuffled)
    ]
    assert folders[0].name == folders[1].name
    assert files(folders[0]) == files(folders[1])


def test_equal_rows_without_ids_are_one_event_and_with_ids_all_are_kept(tmp_path: Path) -> None:
    rows = [("u", "a", "2024-01-01"), ("u", "a", "2024-01-01"), ("u", "a", "2024-01-01")]
    events = make_events(*rows, quantity=[1, 1, 2])
    (folder,) = {land(None, events, None, landing=tmp_path, source="", now=NOW)}
    (batch,) = list_batches(tmp_path)
    assert batch.manifest.arguments["folded"] == 1
    ids = batch.read("events/day=2024-01-01.parquet").column("event_id").to_pylist()
    assert len(set(ids)) == len(ids) == 2
    with_ids = make_events(*rows, event_id=["x", "x", "y"])
    land(None, with_ids, None, landing=tmp_path / "two", source="", now=NOW)
    assert list_batches(tmp_path / "two")[0].read("events/day=2024-01-01.parquet").num_rows == 3
    assert verify(folder)


def test_the_future_goes_into_quarantine(tmp_path: Path) -> None:
    events = make_events(("u", "a", "2024-01-10 12:04"), ("u", "a", "2024-01-10 12:06"), ("u", "a", "2999-01-01"))
    (problem,) = check(make_items("a"), events, None, now=NOW)
    assert not problem.fatal
    assert str(problem).startswith("events: row 2: timestamp in the future:")
    land(None, events, None, landing=tmp_path, source="", now=NOW)
    (batch,) = list_batches(tmp_path)
    assert list(batch.day_files()) == [date(2024, 1, 10)]
    assert batch.read("quarantine.parquet").column("reason").to_pylist() == ["timestamp in the future"] * 2


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"items": make_items("a", "b", "a", channel=["x", "y", "z"])}, "items: row 3: item_id is there twice: 'a'"),
        ({"items": make_items("a", "")}, "items: row 2: item_id is empty"),
        ({"items": make_items("a", title=[""])}, "no column describes an item"),
        ({"items": make_items()}, "items: no row"),
        ({"events": make_events(("", "a", "2024-01-01"))}, "events: row 1: user_id is empty"),
        ({"events": make_events(("u", "a", ""))}, "events: row 1: timestamp is empty"),
        ({"events": make_events(("u", "a", "2999-01-01"))}, "all lie after now"),
        ({"events": make_events(*[("u", "a", "2024-01-01")] * 2, event_id=["x", None])}, "row 2: event_id is empty"),
        (
            {"users": rename(pa.table({"user_id": ["u", "u"], "age": [1, 2]}), USERS, {}).table},
            "users: row 2: user_id is there twice",
        ),
        ({}, "nothing to land"),
    ],
)
def test_a_fatal_problem_lands_nothing(tmp_path: Path, tables: dict[str, pa.Table], expected: str) -> None:
    arguments = [tables.get(noun) for noun in ("items", "events", "users")]
    with pytest.raises(InputError) as error:
        land(*arguments, landing=tmp_path / "landing", source="", now=NOW)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "landing").exists()
    if tables:
        assert any(problem.fatal and expected in str(problem) for problem in check(*arguments, now=NOW))


def test_what_is_not_fatal_is_said_with_its_row() -> None:
    items = make_items("a", "b", "c", "d", title=["x", None, "", None], channel=[None, None, None, "shop"])
    events = make_events(("u", "a", "2024-01-01"), ("u", "zz", "2024-01-01"), ("u", "zy", "2024-01-01"))
    told = [str(problem) for problem in check(items, events, None, now=NOW, known=["zy"])]
    assert told[0].startswith("items: row 2: nothing describes 'b' (2 such rows)")
    assert told[1].startswith("events: row 2: unknown item_id 'zz'; ")
    assert len(told) == 2


def test_a_damaged_partition_is_refused_by_name(tmp_path: Path) -> None:
    folder = land(make_items("a"), None, None, landing=tmp_path, source="", now=NOW)
    path = folder / "items.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptArtifactError, match=r"items\.parquet"):
        list_batches(tmp_path)[0].read("items.parquet")
