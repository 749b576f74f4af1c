from collections import Counter, defaultdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import catalog, events, histories
from features.catalog import Catalog, CatalogParams
from features.events import EventsParams
from features.histories import (
    HistoriesParams,
    parse_reward,
    read_histories,
    read_labels,
    read_last_events,
    read_pairs,
    read_queries,
)
from features.intake.tables import rename
from features.lake import EventSnapshot
from features.landing import land
from features.online import MAX_HISTORY
from features.synthetic import make_world
from plumline.artifact import read_json
from plumline.errors import InputError, RefusedError
from plumline.schema import EVENTS, HISTORIES, ITEMS, NUMBERS, PAIRS, QUERIES

AS_OF = date(2024, 1, 7)
NOW = datetime(2024, 3, 1, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def prepare(home: Path, items: pa.Table, event_table: pa.Table, as_of: date) -> Path:
    """A home with artifacts/events and artifacts/catalog of as_of."""
    land(items, event_table, None, landing=home / "landing", source="", now=NOW)
    for name in ("traffic", "events", "catalog"):
        (home / name).mkdir()
    lake = str(home / "lake")
    params = EventsParams(horizon_days=5, quarantine_limit=1.0)
    events.run(params, landing=home / "landing", traffic=home / "traffic", lake=lake, as_of=as_of, out=home / "events")
    catalog.run(CatalogParams(), landing=home / "landing", events=home / "events", as_of=as_of, out=home / "catalog")
    return home


@pytest.fixture(scope="module")
def world_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = make_world(5, 40, 60, 12, events_per_user=30, retiring=0.3, start=date(2023, 12, 30))
    return prepare(tmp_path_factory.mktemp("world"), world.items, world.events, AS_OF)


@pytest.fixture(scope="module")
def hand_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    items = rename(pa.table({"item_id": ["a", "b", "c"], "title": ["x", "y", None]}), ITEMS, {}).table
    rows = [  # user, item, time, action, quantity, event id
        ("u", "a", "2024-01-01 10:00:00.001", "buy", 1, "e3"),
        ("u", "b", "2024-01-01 10:00:00.001", "buy", 2, "e2"),
        ("u", "a", "2024-01-01 10:00:00.001", "buy", 5, "e1"),
        ("u", "a", "2024-01-05", "cancel", -1, "e4"),
        ("u", "b", "2024-01-06", "look", None, "e5"),
        ("u", "c", "2024-01-07 23:59:59", "buy", 3, "e6"),
        ("u", "a", "2024-01-08", "buy", 1, "e7"),
        ("u", "c", "2024-01-08 01:00", "buy", 1, "e8"),
        ("u", "b", "2024-01-09", "buy", 1, "e9"),
        ("v", "b", "2024-01-09", "buy", 1, "f1"),
        ("w", "c", "2024-01-09", "buy", 1, "f2"),
    ]
    names = ("user_id", "item_id", "timestamp", "action", "quantity", "event_id")
    columns = {name: [row[n] for row in rows] for n, name in enumerate(names)}
    return prepare(tmp_path_factory.mktemp("hand"), items, rename(pa.table(columns), EVENTS, {}).table, AS_OF)


def run(home: Path, out: Path, as_of: date = AS_OF, **params: Any) -> Path:
    out.mkdir(exist_ok=True)
    chosen = HistoriesParams.model_validate({"eval_days": 5, **params})
    histories.run(chosen, events=home / "events", catalog=home / "catalog", as_of=as_of, out=out)
    return out


def millis(text: str) -> int:
    return (datetime.fromisoformat(text).replace(tzinfo=UTC) - EPOCH) // timedelta(milliseconds=1)


def test_by_hand(hand_home: Path, tmp_path: Path) -> None:
    out = run(hand_home, tmp_path / "out", reward="quantity * 2", min_pair_count=1)
    tables = {f"{name}.parquet" for name in ("histories", "pairs", "queries", "last_events", "labels")}
    assert {p.name for p in out.iterdir()} == tables | {"stats.json"}
    (user,) = read_histories(out).to_pylist()
    # Two lines of one item and instant are one step (the larger reward); a cancellation is none; ties go by event id.
    assert user == {
        "user_id": "u",
        "item_ids": ["a", "b", "b", "c"],
        "timestamps": [millis("2024-01-01 10:00:00.001")] * 2 + [millis("2024-01-06"), millis("2024-01-07 23:59:59")],
        "rewards": [10.0, 4.0, 1.0, 6.0],
        **dict.fromkeys(("watch_ratio", "watch_time_s", "rating", "price"), [None] * 4),
        "quantity": [5.0, 2.0, None, 3.0],  # of two lines the larger one
    }
    assert read_pairs(out).to_pylist() == [{"item_a": "a", "item_b": "b", "count": 2}]  # c is not in the catalogue
    queries = [(q["user_id"], q["day"].day, q["item_ids"], q["relevant"]) for q in read_queries(out).to_pylist()]
    assert queries == [
        ("u", 8, ["a", "b", "b", "c"], ["a"]),
        ("u", 9, ["a", "b", "b", "c", "a", "c"], ["b"]),
        ("v", 9, [], ["b"]),
    ]
    last = [(q["user_id"], q["day"].day, q["item_ids"], q["relevant"]) for q in read_last_events(out).to_pylist()]
    assert last == [("u", 9, ["a", "b", "b", "c", "a", "c"], ["b"]), ("v", 9, [], ["b"])]
    assert read_queries(out).column("rewards").to_pylist()[1:] == [[2.0], [2.0]]  # quantity * 2
    for table in (read_queries(out).slice(1), read_last_events(out)):  # the numbers of what was known, as in histories
        assert [row[:4] for row in table.column("quantity").to_pylist()] == [user["quantity"], []]
        assert table.column("rating").to_pylist() == [[None] * 6, []]
    labels = [
        (q["user_id"], q["day"].day, q["item_ids"], q["relevant"], q["rewards"]) for q in read_labels(out).to_pylist()
    ]
    assert labels == [
        ("u", 1, [], ["a", "b"], [10.0, 4.0]),
        ("u", 6, ["a", "b"], ["b"], [1.0]),
    ]
    stats = read_json(out / "stats.json")
    assert (stats["num_users"], stats["num_events"], stats["num_sessions"], stats["num_days"]) == (1, 4, 3, 3)
    assert stats["median_history_length"] == 4.0


def test_what_counts_as_interest_is_chosen(hand_home: Path, tmp_path: Path) -> None:
    out = run(hand_home, tmp_path / "out", positive_actions=["look"])
    assert read_histories(out).column("item_ids").to_pylist() == [["b"]]
    for params in ({"positive_actions": ["sing"]}, {"min_watch_ratio": 0.5}):
        with pytest.raises(RefusedError, match="no event by 2024-01-07 shows interest"):
            run(hand_home, tmp_path / "none", **params)


def test_an_action_has_its_worth_and_one_without_is_no_interest(hand_home: Path, tmp_path: Path) -> None:
    out = run(hand_home, tmp_path / "out", action_worth={"look": 0.5}, reward="2")
    (user,) = read_histories(out).to_pylist()
    assert (user["item_ids"], user["rewards"]) == (["a", "b", "b", "c"], [2.0, 2.0, 1.0, 2.0])
    for refused in (0, -1):
        out = run(hand_home, tmp_path / f"no{refused}", action_worth={"look": refused})
        (user,) = read_histories(out).to_pylist()
        assert user["item_ids"] == ["a", "b", "c"]
        assert [q["relevant"] for q in read_labels(out).to_pylist()] == [["a", "b"]]
    out = run(hand_home, tmp_path / "only", action_worth={"buy": 0})
    assert (read_histories(out).column("item_ids").to_pylist(), read_queries(out).num_rows) == ([["b"]], 0)


@pytest.mark.parametrize("action", ["dislike", "Return", "refund", "SKIP", "report", "Impression"])
def test_who_says_no_is_not_asked_for_it(tmp_path: Path, action: str) -> None:
    """Whatever the recipe says of other actions, and unless it says something of this one."""
    items = rename(pa.table({"item_id": ["a", "b"], "title": ["x", "y"]}), ITEMS, {}).table
    rows = [("u", "a", "like"), ("u", "b", action), ("u", "b", None), ("v", "b", action)]
    table = {
        "user_id": [row[0] for row in rows] * 2,
        "item_id": [row[1] for row in rows] * 2,
        "action": [row[2] for row in rows] * 2,
        "timestamp": [f"2024-01-{day} 10:0{n}" for day in ("07", "08") for n in range(4)],
    }
    home = prepare(tmp_path / "home", items, rename(pa.table(table), EVENTS, {}).table, AS_OF)
    out = run(home, tmp_path / "out", action_worth={"like": 2})
    assert [(row["user_id"], row["item_ids"]) for row in read_histories(out).to_pylist()] == [("u", ["a", "b"])]
    assert [(row["user_id"], row["relevant"]) for row in read_queries(out).to_pylist()] == [("u", ["a", "b"])]
    assert [row["relevant"] for row in read_last_events(out).to_pylist()] == [["b"]]
    assert read_queries(out).column("rewards").to_pylist() == [[2.0, 1.0]]
    kept = run(home, tmp_path / "kept", action_worth={action.lower(): 0.5})
    assert read_histories(kept).column("user_id").to_pylist() == ["u", "v"]


def test_what_is_worth_nothing_stands_in_histories_and_is_not_asked_for(hand_home: Path, tmp_path: Path) -> None:
    out = run(hand_home, tmp_path / "out", reward="quantity - 1")  # 0 for one piece
    (user,) = read_histories(out).to_pylist()
    assert user["item_ids"] == ["a", "b", "b", "c"]
    assert (read_queries(out).num_rows, read_last_events(out).num_rows) == (0, 0)


def test_two_hundred_events_are_kept_and_pairs_that_were_seen_twice_within_five_steps() -> None:
    """What a recipe that is silent about it gets; the test below says what the three mean."""
    told = HistoriesParams()
    assert (told.max_events, told.min_pair_count, told.pair_window, told.eval_days) == (200, 2, 5, 14)
    assert told.max_events == MAX_HISTORY  # what the online store keeps of a history


def numbers_of(table: pa.Table) -> list[list[list[Any]]]:
    """Row → numeric column → values."""
    lists = zip(*(table.column(name).to_pylist() for name in NUMBERS), strict=True)
    return [[[v if v is None else pytest.approx(v, rel=1e-6) for v in one] for one in row] for row in lists]


@pytest.mark.parametrize("params", [{}, {"max_events": 4, "pair_window": 1, "min_pair_count": 1, "eval_days": 2}])
def test_the_fast_path_equals_the_plain_one(world_home: Path, tmp_path: Path, params: dict[str, int]) -> None:
    chosen = HistoriesParams.model_validate({"eval_days": 5, **params})
    out = run(world_home, tmp_path / "out", **params)
    steps: dict[str, list[tuple[datetime, str, str]]] = defaultdict(list)
    through = AS_OF + timedelta(days=chosen.eval_days)
    numbers: dict[str, dict[str, float | None]] = {}
    for row in EventSnapshot.load(world_home / "events").read(through=through).to_pylist():
        steps[row["user_id"]].append((row["timestamp"], row["event_id"], row["item_id"]))
        numbers[row["event_id"]] = {name: row[name] for name in NUMBERS}
    known = Catalog.load(world_home / "catalog")
    live = set(known.live_ids())
    assert len(live) < len(known.item_ids)

    expected = []
    pairs: Counter[tuple[str, str]] = Counter()
    queries = []
    last = []
    asked_numbers: dict[str, list[list[list[float | None]]]] = {"queries": [], "last": []}
    for user, its in sorted(steps.items()):
        past = [step for step in its if step[0].date() <= AS_OF]
        if past:
            newest = past[-chosen.max_events :]
            times = [(step[0] - EPOCH) // timedelta(milliseconds=1) for step in newest]
            known_numbers = [[numbers[step[1]][name] for step in newest] for name in NUMBERS]
            expected.append((user, [step[2] for step in newest], times, [1.0] * len(newest), *known_numbers))
        names = [step[2] for step in past if step[2] in known.position]
        for n, name in enumerate(names):
            for other in names[n + 1 : n + 1 + chosen.pair_window]:
                if other != name:
                    pairs[min(name, other), max(name, other)] += 1
        for day in sorted({step[0].date() for step in its if step[0].date() > AS_OF}):
            relevant = sorted({step[2] for step in its if step[0].date() == day} & live)
            before = [step for step in its if step[0].date() < day][-chosen.max_events :]
            if relevant:
                queries.append((user, day, [step[2] for step in before], relevant))
                asked_numbers["queries"].append([[numbers[step[1]][name] for step in before] for name in NUMBERS])
        after = [n for n, step in enumerate(its) if step[0].date() > AS_OF and step[2] in live]
        if after:
            before = its[: after[-1]][-chosen.max_events :]
            last.append((user, its[after[-1]][0].date(), [step[2] for step in before], [its[after[-1]][2]]))
            asked_numbers["last"].append([[numbers[step[1]][name] for step in before] for name in NUMBERS])

    got = read_histories(out)
    assert got.schema.equals(HISTORIES.schema)
    floats = pa.table({name: got.column(name).cast(pa.list_(pa.float64())) for name in NUMBERS}).to_pydict()
    assert any(value is not None for row in floats["watch_time_s"] for value in row)
    for row, wanted, *lists in zip(got.to_pylist(), expected, *floats.values(), strict=True):
        assert tuple(row.values())[:4] == wanted[:4]
        for values, right in zip(lists, wanted[4:], strict=True):
            assert values == [None if v is None else pytest.approx(v, rel=1e-6) for v in right]
    assert read_pairs(out).schema.equals(PAIRS.schema)
    assert [tuple(row.values()) for row in read_pairs(out).to_pylist()] == sorted(
        (a, b, count) for (a, b), count in pairs.items() if count >= chosen.min_pair_count
    )
    others = ["timestamps", "rewards", *NUMBERS]
    table = read_queries(out)
    assert table.schema.equals(QUERIES.schema)
    assert [tuple(row.values()) for row in table.drop_columns(others).to_pylist()] == queries
    assert numbers_of(table) == asked_numbers["queries"]
    assert [len(row) for row in table.column("timestamps").to_pylist()] == [len(query[2]) for query in queries]
    table = read_last_events(out)
    assert table.schema.equals(QUERIES.schema)
    assert [tuple(row.values()) for row in table.drop_columns(others).to_pylist()] == last
    assert numbers_of(table) == asked_numbers["last"]
    assert len(last) > 3


def test_the_same_bytes_again_and_nothing_of_the_future(world_home: Path, tmp_path: Path) -> None:
    first, second = run(world_home, tmp_path / "a"), run(world_home, tmp_path / "b")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    short = run(world_home, tmp_path / "c", eval_days=0)
    for name in ("histories.parquet", "pairs.parquet"):  # held-out days change nothing that is learned from
        assert (first / name).read_bytes() == (short / name).read_bytes()
    assert read_queries(short).num_rows == 0


def test_days_that_cannot_be(world_home: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"no event by 2023-12-29; landed days: 2023-12-30 to 2024-01-10"):
        run(world_home, tmp_path / "out", as_of=date(2023, 12, 29))
    with pytest.raises(InputError, match="raise events.horizon_days"):
        run(world_home, tmp_path / "out", eval_days=6)


# --- rewards ---

COLUMNS = {
    "watch_ratio": [0.5, None],
    "watch_time_s": [2.0, 3.0],
    "rating": [4.0, 4.0],
    "price": [1.5, 1.0],
    "quantity": [3.0, 1.0],
}


def evaluate(text: str) -> list[float]:
    table = ibis.memtable(pa.table({name: pa.array(values, pa.float64()) for name, values in COLUMNS.items()}))
    worth = ibis.duckdb.connect().to_pyarrow(table.select(worth=parse_reward(text, table))).column("worth")
    values: list[float] = worth.to_pylist()
    return values


EXPRESSIONS = st.recursive(
    st.sampled_from(["watch_time_s", "rating", "price", "quantity", "2", "0.25"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda t: f"{t[0]}({t[1]}, {t[2]})"),
        inner.map(lambda text: f"-{text}"),
    ),
    max_leaves=6,
)


@settings(max_examples=25, deadline=None)
@given(EXPRESSIONS)
def test_a_reward_is_worth_what_python_says(text: str) -> None:
    row = {name: values[0] for name, values in COLUMNS.items()}
    assert evaluate(text)[0] == pytest.approx(eval(text, {"min": min, "max": max}, row))


def test_a_reward_without_its_column_is_one() -> None:
    assert evaluate("min(watch_ratio, 1) / 2 + price") == [1.75, 1.0]
    assert evaluate("1.0") == [1.0, 1.0]


REFUSED = "item_id|__import__('os')|price.sum()|price ** 2|'x'|True|min(x for x in y)|max(1)|1 +|"


@pytest.mark.parametrize("text", REFUSED.split("|"))
def test_other_rewards_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"histories\.reward"):
        evaluate(text)
