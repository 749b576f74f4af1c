"""What the stage writes and says, word for word: snapshot, lake batch, quarantine, verdict, refusals, reactions."""

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import ValidationError

from features import events
from features.events import EventsParams
from features.expectations.events import REPEATED, UNKNOWN_ITEM
from features.intake.tables import rename
from features.lake import EventSnapshot
from features.landing import land
from plumline import artifact
from plumline.errors import RefusedError
from plumline.schema import EVENTS, ITEMS, TRAFFIC, conform
from plumline.tables import read_parquet, write_parquet

START = date(2024, 1, 1)
ITEM_TABLE = rename(pa.table({"item_id": ["a", "b"], "title": ["x", "y"]}), ITEMS, {}).table


def day(number: int) -> date:
    return START + timedelta(days=number)


class Home:
    """A folder with data/, and the stage run in it."""

    def __init__(self, folder: Path) -> None:
        self.landing, self.traffic, self.lake = (folder / "data" / name for name in ("landing", "traffic", "events"))
        self.out = folder / "artifacts" / "events"
        self.out.mkdir(parents=True)

    def deliver(self, items: pa.Table | None = ITEM_TABLE, **columns: list) -> None:
        times = columns["timestamp"]
        table = {"user_id": ["u"] * len(times), "item_id": ["a"] * len(times), **columns}
        now = datetime(2024, 3, 1, tzinfo=UTC)
        land(items, rename(pa.table(table), EVENTS, {}).table, None, landing=self.landing, source="", now=now)

    def react(self, number: int, rows: list[tuple[str, str | None, str, list[str]]]) -> None:
        table = {
            "request_id": [row[0] for row in rows],
            "timestamp": [datetime(2024, 1, 1 + number, 3, n, tzinfo=UTC) for n in range(len(rows))],
            "user_id": [row[1] for row in rows],
            "release_id": ["release"] * len(rows),
            "action": [row[2] for row in rows],
            "item_ids": [row[3] for row in rows],
        }
        write_parquet(self.traffic / f"day={day(number)}" / "worker-0.parquet", conform(pa.table(table), TRAFFIC))

    def run(self, as_of: date, **params: object) -> EventSnapshot:
        chosen = EventsParams.model_validate({"horizon_days": 2, **params})
        events.run(chosen, landing=self.landing, traffic=self.traffic, lake=str(self.lake), as_of=as_of, out=self.out)
        return EventSnapshot.load(self.out)

    @property
    def batches(self) -> list[Path]:
        return sorted(path for path in self.lake.iterdir() if path.name != ".scratch")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def deliver_some_bad_rows(home: Home) -> str:
    """Twelve rows of two days, four of them bad; returns the landed batch's id."""
    stamps = [f"{day(n // 6)} 00:{n:02d}" for n in range(11)] + ["2999-01-01"]
    items, prices, ids = ["a"] * 12, [1.0] * 12, [f"e{n:02d}" for n in range(12)]
    items[3], prices[5], ids[9] = "nobody", -1.0, ids[8]
    home.deliver(item_id=items, price=prices, event_id=ids, timestamp=stamps)
    (landed,) = [path.name for path in home.landing.iterdir() if not path.name.startswith(".")]
    return landed


def test_the_snapshot_names_the_batches_and_their_days(home: Home) -> None:
    deliver_some_bad_rows(home)
    home.run(day(0))
    (batch,) = home.batches
    assert json.loads((home.out / "snapshot.json").read_text()) == {
        "as_of": "2024-01-01",
        "through": "2024-01-03",
        "lake": str(home.lake),
        "batches": [
            {
                "id": batch.name,
                "digest": artifact.read_manifest(batch).digest,
                "days": ["2024-01-01", "2024-01-02"],
                "rows": 8,
            }
        ],
    }


def test_a_batch_is_called_by_what_made_it(home: Home) -> None:
    landed = deliver_some_bad_rows(home)
    home.run(day(0))
    (batch,) = home.batches
    manifest = artifact.verify(batch)
    names = [f"{landed}/{name}" for name in ("events/day=2024-01-01", "events/day=2024-01-02", "quarantine")]
    assert sorted(manifest.arguments["sources"]) == [f"{name}.parquet" for name in names]
    for name, sha256 in manifest.arguments["sources"].items():
        assert artifact.sha256_file(home.landing / name) == sha256
    assert manifest.arguments["days"] == ["2024-01-01", "2024-01-02"]
    params = EventsParams(horizon_days=2).model_dump(mode="json")
    about = {"params": params, "code": manifest.code}
    key = {"stage": "lake", "sources": manifest.arguments["sources"], **about}
    assert (manifest.stage, manifest.params, manifest.key) == ("lake", params, artifact.sha256_json(key))
    assert batch.name == manifest.key[:16]
    assert len(manifest.code) == 64
    assert manifest.git_sha
    assert json.loads((batch / "rows.json").read_text()) == {"2024-01-01": 4, "2024-01-02": 4}
    files = [f"events/day={day(0)}.parquet", f"events/day={day(1)}.parquet", "quarantine.parquet", "rows.json"]
    assert sorted(manifest.files) == [*files, "verdict.json"]


def test_the_quarantine_says_from_where_and_why_by_day_and_time(home: Home) -> None:
    landed = deliver_some_bad_rows(home)
    home.run(day(0))
    (batch,) = home.batches
    refused = read_parquet(home.out / "quarantine.parquet")
    assert refused.schema.names == [*EVENTS.schema.names, "day", "source", "reason"]
    assert refused.equals(read_parquet(batch / "quarantine.parquet"))
    assert [tuple(row.values()) for row in refused.select(["event_id", "day", "source", "reason"]).to_pylist()] == [
        ("e03", day(0), f"{landed}/events/day=2024-01-01.parquet", UNKNOWN_ITEM),
        ("e05", day(0), f"{landed}/events/day=2024-01-01.parquet", "price below 0"),
        ("e11", day(0), f"{landed}/quarantine.parquet", "timestamp in the future"),
        ("e08", day(1), f"{landed}/events/day=2024-01-02.parquet", REPEATED),
    ]
    home.run(day(0), horizon_days=0)  # what lies behind the horizon is not shown
    assert set(read_parquet(home.out / "quarantine.parquet").column("day").to_pylist()) == {day(0)}


def test_the_verdict_ends_with_the_share_of_bad_rows(home: Home) -> None:
    deliver_some_bad_rows(home)
    home.run(day(0))
    (batch,) = home.batches
    verdict = json.loads((home.out / "verdict.json").read_text())
    assert verdict[-1] == {
        "batch": batch.name,
        "reason": "too many bad rows",
        "expectation": "quarantine_share",
        "severity": "critical",
        "success": True,
        "observed": pytest.approx(2 / 11),  # a repeated delivery is not counted, nor what was refused at the door
        "num_bad": 2,
    }
    assert [entry["reason"] for entry in verdict if not entry["success"]] == [UNKNOWN_ITEM, REPEATED, "price below 0"]
    assert [{**entry, "batch": batch.name} for entry in json.loads((batch / "verdict.json").read_text())] == verdict


def test_good_rows_of_a_day_are_sorted_by_time_and_id(home: Home) -> None:
    home.deliver(event_id=["z", "b", "a"], timestamp=["2024-01-01 00:09", "2024-01-01 00:03", "2024-01-01 00:03"])
    home.run(day(0))
    (batch,) = home.batches
    table = read_parquet(batch / "events" / "day=2024-01-01.parquet")
    assert table.schema.equals(EVENTS.schema)
    assert table.column("event_id").to_pylist() == ["a", "b", "z"]


def test_what_was_refused_at_the_door_alone_is_kept_and_nothing_is_judged(home: Home) -> None:
    home.deliver(timestamp=["2024-01-01"])
    home.run(day(0))
    home.deliver(None, timestamp=["2024-01-02", *[f"2999-01-01 00:{n:02d}" for n in range(20)]])
    home.run(day(0))  # 20 rows of 21, and no share of anything
    assert read_parquet(home.out / "quarantine.parquet").num_rows == 20


def test_a_delivery_of_nothing_but_repeats_changes_no_day(home: Home) -> None:
    home.deliver(event_id=["e1", "e2"], timestamp=["2024-01-01", "2024-01-02"])
    days = home.run(day(0)).days
    home.deliver(None, event_id=["e2"], timestamp=["2024-01-02"])
    snapshot = home.run(day(0))
    assert (snapshot.days, snapshot.read(through=day(1)).num_rows) == (days, 2)
    assert read_parquet(home.out / "quarantine.parquet").column("reason").to_pylist() == [REPEATED]
    assert [entry["rows"] for entry in _entries(home)] == [0, 2]


def test_batches_stand_in_the_order_of_their_days(home: Home) -> None:
    home.deliver(timestamp=["2024-01-02"])
    home.run(day(0))
    home.deliver(None, timestamp=["2024-01-01"])
    home.run(day(0))
    home.deliver(None, timestamp=["2024-01-09"])
    snapshot = home.run(day(8))
    assert [entry["days"] for entry in _entries(home)] == [["2024-01-01"], ["2024-01-02"], ["2024-01-09"]]
    assert snapshot.days == (day(0), day(1), day(8))
    home.run(day(0))
    assert [entry["days"] for entry in _entries(home)] == [["2024-01-01"], ["2024-01-02"]]


def _entries(home: Home) -> list[dict]:
    return list(json.loads((home.out / "snapshot.json").read_text())["batches"])


def test_the_worst_day_is_named_or_the_sum(home: Home) -> None:
    bad = {0: 2, 1: 11, 2: 15}
    times = [f"{day(d)} 00:{n:02d}" for d in bad for n in range(20)]
    items = ["nobody" if n < num_bad else "a" for num_bad in bad.values() for n in range(20)]
    home.deliver(item_id=items, timestamp=times)
    (landed,) = [path.name for path in home.landing.iterdir() if len(path.name) == 16]
    mend = f"most: {UNKNOWN_ITEM} (%d); land the items, take the delivery back with plumline unland {landed}, "
    mend += f"put a mended one in its place with plumline land --replace {landed}, or raise events.quarantine_limit"
    with pytest.raises(RefusedError) as error:
        home.run(day(0))
    assert str(error.value) == (
        "events: 2024-01-03: 15 of 20 rows are bad (2 such days, 28 of 60 rows in all), "
        f"allowed are 5.0% and 10 rows a day; {mend % 26}"
    )
    with pytest.raises(RefusedError) as error:
        home.run(day(0), quarantine_slack=15)
    assert str(error.value) == (
        "events: 2024-01-03: 15 of 20 rows are bad (0 such days, 28 of 60 rows in all), "
        f"allowed are 5.0% and 15 rows a day; {mend % 28}"
    )
    home.run(day(0), quarantine_limit=0.75)


def test_a_strict_recipe_refuses_a_day_out_of_proportion(home: Home) -> None:
    home.deliver(timestamp=[f"{day(d)} 00:{n:02d}" for d in range(7) for n in range(4)])
    home.run(day(6), horizon_days=0)
    home.deliver(None, timestamp=[f"{day(7)} 00:{n:02d}" for n in range(17)])
    with pytest.raises(RefusedError) as error:
        home.run(day(7), horizon_days=0, volume_strict=True)
    assert str(error.value) == (
        "events: 2024-01-08: row count far from the trailing week's: 17 rows, expected 1 to 16; "
        "look at the source, or set events.volume_factor or events.volume_strict"
    )
    assert home.run(day(7), horizon_days=0, volume_strict=True, volume_factor=4.25).days[-1] == day(7)


def test_the_volume_is_that_of_the_last_seven_days_with_events_over_all_batches(home: Home) -> None:
    days = [0, 1, 3, 4, 5, 6, 7, 8]  # the second day has no event, the first one is too long ago
    home.deliver(timestamp=[f"{day(d)} 00:{n:02d}" for d in days for n in range(50 if d == 0 else 4)])
    home.run(day(8), horizon_days=0)
    home.deliver(None, timestamp=[f"{day(8)} 01:{n:02d}" for n in range(7)])  # late: 11 that day, 35 of seven days
    home.run(day(8), horizon_days=0)
    home.deliver(None, timestamp=[f"{day(9)} 00:{n:02d}" for n in range(21)])
    with pytest.raises(RefusedError, match="21 rows, expected 1 to 20; look"):
        home.run(day(9), horizon_days=0, volume_strict=True)


def test_two_new_days_at_once_are_not_compared(home: Home) -> None:
    home.deliver(timestamp=[f"{day(d)} 00:{n:02d}" for d in range(7) for n in range(4)])
    home.run(day(6), horizon_days=0)
    home.deliver(None, timestamp=[f"{day(d)} 00:{n:02d}" for d in (7, 8) for n in range(40)])
    assert home.run(day(8), horizon_days=0, volume_strict=True).days[-1] == day(8)


def test_a_reaction_is_an_event_with_an_id_of_its_own(home: Home) -> None:
    home.deliver(timestamp=["2024-01-01"])
    home.react(0, [("r1", "u", "served", ["a"]), ("r1", "u", "click", []), ("r1", None, "click", ["a"])])
    home.react(1, [("r1", "u", "click", ["b", "a"])])
    (row,) = home.run(day(0)).read(through=day(1), after=day(0)).to_pylist()
    at = datetime(2024, 1, 2, 3, tzinfo=UTC)
    about = ["r1", "click", "b", int(at.timestamp() * 1_000_000)]
    assert {name: value for name, value in row.items() if value is not None} == {
        "event_id": "t" + artifact.sha256_json(about)[:24],
        "user_id": "u",
        "item_id": "b",
        "timestamp": at,
        "action": "click",
        "surface": "plumline",
        "session_id": "r1",
    }
    sources = [name for batch in home.batches for name in artifact.read_manifest(batch).arguments["sources"]]
    assert sorted(name for name in sources if name.startswith("traffic/")) == [
        "traffic/day=2024-01-01/worker-0.parquet",
        "traffic/day=2024-01-02/worker-0.parquet",
    ]


def test_nothing_but_reactions_is_enough_and_nothing_at_all_is_not(home: Home) -> None:
    with pytest.raises(RefusedError) as error:
        home.run(day(0))
    said = "no event was landed up to 2024-01-03; land some with plumline init or plumline land"
    assert str(error.value) == said
    home.react(0, [("r1", "u", "click", ["a"])])
    assert home.run(day(0)).days == ()  # no items file was landed: the item is not known
    assert read_parquet(home.out / "quarantine.parquet").column("reason").to_pylist() == [UNKNOWN_ITEM]


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("horizon_days", (0,), (-1,)),
        ("quarantine_limit", (0.0, 1.0), (-0.01, 1.01)),
        ("quarantine_slack", (0,), (-1,)),
        ("volume_factor", (1.01,), (1.0,)),
    ],
)
def test_what_a_recipe_may_set(name: str, allowed: tuple, refused: tuple) -> None:
    for value in allowed:
        assert getattr(EventsParams.model_validate({name: value}), name) == value
    for value in refused:
        with pytest.raises(ValidationError, match=name):
            EventsParams.model_validate({name: value})
