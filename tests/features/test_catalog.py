from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from features import catalog, events
from features.catalog import Catalog, CatalogParams
from features.events import EventsParams
from features.intake.tables import rename
from features.landing import land
from plumline.errors import InputError, RefusedError
from plumline.schema import EVENTS, ITEMS, USERS
from plumline.tables import read_parquet

NOW = datetime(2024, 3, 1, tzinfo=UTC)


def deliver(home: Path, items: dict[str, list], event_rows: list[tuple[str, str]] = (), **users: list) -> None:
    """Land items, events of user "u" as (item, time), and users."""
    item_table = rename(pa.table(items), ITEMS, {}).table
    rows = {name: [row[n] for row in event_rows] for n, name in enumerate(("item_id", "timestamp"))}
    event_table = (
        rename(pa.table({**rows, "user_id": ["u"] * len(event_rows)}), EVENTS, {}).table if event_rows else None
    )
    user_table = rename(pa.table(users), USERS, {}).table if users else None
    land(item_table, event_table, user_table, landing=home / "landing", source="", now=NOW)


def build(home: Path, as_of: str) -> Catalog:
    day = date.fromisoformat(as_of)
    for name in ("traffic", "events", "catalog"):
        (home / name).mkdir(exist_ok=True)
    lake = str(home / "lake")
    params = EventsParams(horizon_days=5)
    events.run(params, landing=home / "landing", traffic=home / "traffic", lake=lake, as_of=day, out=home / "events")
    catalog.run(CatalogParams(), landing=home / "landing", events=home / "events", as_of=day, out=home / "catalog")
    return Catalog.load(home / "catalog")


def test_what_was_known_by_the_day(tmp_path: Path) -> None:
    items = {
        "item_id": ["undated", "past", "that day", "next day", "seen early", "retired", "retires later"],
        "title": list("abcdefg"),
        "published_at": [None, "2024-01-01", "2024-01-05 23:59:59", "2024-01-06", "2024-01-09", None, None],
        "retired_at": [None, None, None, None, None, "2024-01-05 12:00", "2024-01-06"],
    }
    seen = [("past", "2024-01-03"), ("seen early", "2024-01-04"), ("undated", "2024-01-04"), ("undated", "2024-01-02")]
    deliver(tmp_path, items, [*seen, ("next day", "2024-01-06")])
    known = build(tmp_path, "2024-01-05")
    assert {p.name for p in (tmp_path / "catalog").iterdir()} == {
        "items.parquet",
        "users.parquet",
        "verdict.json",
        "quarantine.parquet",
    }
    first_seen = dict(zip(known.item_ids, known.items.column("first_seen_day").to_pylist(), strict=True))
    assert first_seen == {
        "past": date(2024, 1, 1),
        "retired": None,
        "retires later": None,
        "seen early": date(2024, 1, 4),
        "that day": date(2024, 1, 5),
        "undated": date(2024, 1, 2),
    }
    assert known.live_ids() == ["past", "retires later", "seen early", "that day", "undated"]
    assert known.position == {item: row for row, item in enumerate(sorted(first_seen))}
    assert known.items.schema.field("first_seen_day").type == pa.date32()


def test_the_newest_delivery_of_an_item_and_a_user_is_believed(tmp_path: Path) -> None:
    vectors = pa.array([[1.0, 2.0]] * 2, pa.list_(pa.float32()))
    deliver(
        tmp_path, {"item_id": ["b", "a"], "title": ["old b", "a"], "emb_x": vectors}, user_id=["u", "v"], age=[1, 2]
    )
    deliver(
        tmp_path,
        {"item_id": ["c", "b"], "title": ["c", "new b"], "retired_at": [None, "2024-01-01"]},
        [("a", "2024-01-01")],
        user_id=["v", "w"],
        land=["DE", "FR"],
    )
    known = build(tmp_path, "2024-01-01")
    assert known.items.column("title").to_pylist() == ["a", "new b", "c"]
    assert known.items.column("emb_x").to_pylist() == [[1.0, 2.0], None, None]
    assert known.live_ids() == ["a", "c"]
    assert known.users.to_pylist() == [
        {"user_id": "u", "age": "1", "land": None},
        {"user_id": "v", "age": None, "land": "DE"},
        {"user_id": "w", "age": None, "land": "FR"},
    ]


def test_items_that_nothing_describes_are_quarantined(tmp_path: Path) -> None:
    titles = ["x", None, "", "y", " "]
    deliver(tmp_path, {"item_id": list("abcde"), "title": titles, "price": [1.0] * 5}, [("b", "2024-01-01")])
    known = build(tmp_path, "2024-01-01")
    assert known.item_ids == ["a", "d"]
    refused = read_parquet(tmp_path / "catalog" / "quarantine.parquet")
    assert refused.column("item_id").to_pylist() == ["b", "c", "e"]
    assert all(reason.startswith("nothing describes it") for reason in refused.column("reason").to_pylist())
    assert known.users.column_names == ["user_id"]
    assert known.users.num_rows == 0


def test_no_known_item_is_refused(tmp_path: Path) -> None:
    deliver(tmp_path, {"item_id": ["a"], "title": ["x"], "published_at": ["2024-02-01"]}, [("a", "2024-01-03")])
    with pytest.raises(RefusedError, match="none of 1 landed items was known by 2024-01-01"):
        build(tmp_path, "2024-01-01")


def test_deliveries_whose_vectors_differ_are_refused(tmp_path: Path) -> None:
    for size in (2, 3):
        table = {"item_id": [f"i{size}"], "title": ["x"], "emb_x": [[1.0] * size]}
        deliver(tmp_path, table, [(f"i{size}", "2024-01-01")])
    with pytest.raises(
        InputError, match=r"^items\.parquet: emb_x is .* in delivery 0 \(.* in delivery 1 \(.*plumline unland"
    ):
        build(tmp_path, "2024-01-01")
