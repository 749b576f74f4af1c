import json
import shutil
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from features import events
from features.events import EventSnapshot, EventsParams
from features.expectations.events import REPEATED, UNKNOWN_ITEM
from features.intake.tables import read_table, rename
from features.landing import land
from features.partitions import LANDED, Partition
from plumline.errors import CorruptArtifactError, InputError, MissingArtifactError, RefusedError
from plumline.schema import EVENTS, ITEMS, TRAFFIC, USERS, conform
from plumline.settings import child_environment
from plumline.tables import read_parquet, write_parquet

NOW = datetime(2024, 3, 1, tzinfo=UTC)
START = date(2024, 1, 1)
ITEM_TABLE = rename(pa.table({"item_id": ["a", "b"], "title": ["x", "y"]}), ITEMS, {}).table


def day(number: int) -> date:
    return START + timedelta(days=number)


class Home:
    """A folder with data/ and artifacts/, and the stage run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.landing, self.traffic, self.lake = (folder / "data" / name for name in ("landing", "traffic", "events"))
        self.traffic.mkdir(parents=True)

    def deliver(self, days: range, num_rows: int = 5, *, items: pa.Table | None = ITEM_TABLE, **columns: list) -> None:
        times = [f"{day(d)} 00:{n:02d}" for d in days for n in range(num_rows)]
        table = {
            "user_id": [f"u{n % 3}" for _ in days for n in range(num_rows)],
            "item_id": ["ab"[n % 2] for _ in days for n in range(num_rows)],
            "timestamp": times,
            **columns,
        }
        land(items, rename(pa.table(table), EVENTS, {}).table, None, landing=self.landing, source="", now=NOW)

    def run(self, as_of: date, **params: object) -> EventSnapshot:
        out = self.folder / "artifacts" / f"events-{as_of}"
        out.mkdir(parents=True, exist_ok=True)
        told = {"horizon_days": 2, **params}
        chosen = EventsParams.model_validate({name: value for name, value in told.items() if value is not None})
        events.run(chosen, landing=self.landing, traffic=self.traffic, lake=str(self.lake), as_of=as_of, out=out)
        return EventSnapshot.load(out)

    def out(self, as_of: date) -> Path:
        return self.folder / "artifacts" / f"events-{as_of}"

    def refused(self, as_of: date) -> pa.Table:
        return read_parquet(self.out(as_of) / "quarantine.parquet")

    def lake_files(self) -> dict[str, bytes]:
        found = (p for p in self.lake.rglob("*") if p.is_file() and ".scratch" not in p.parts)
        return {p.relative_to(self.lake).as_posix(): p.read_bytes() for p in sorted(found)}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_days_up_to_the_horizon_land_and_are_read_in_order(home: Home) -> None:
    home.deliver(range(5))
    snapshot = home.run(day(1))
    assert snapshot.days == tuple(day(n) for n in range(4))
    assert {p.name for p in home.out(day(1)).iterdir()} == {"snapshot.json", "verdict.json", "quarantine.parquet"}
    table = snapshot.read(through=day(2), after=day(0))
    assert table.schema.equals(EVENTS.schema)
    assert table.num_rows == 10
    assert table.equals(table.sort_by([("timestamp", "ascending"), ("event_id", "ascending")]))
    assert snapshot.read(through=day(0), columns=["user_id"]).column_names == ["user_id"]
    with pytest.raises(InputError, match="horizon_days"):
        snapshot.read(through=day(4))


def test_a_judged_day_is_not_touched_again(home: Home) -> None:
    home.deliver(range(5))
    home.run(day(1))
    before = home.lake_files()
    assert home.run(day(2)).days == tuple(day(n) for n in range(5))
    after = home.lake_files()
    assert before.items() <= after.items()
    assert [name for name in after.keys() - before.keys() if "day=" in name] == [
        name for name in after if name.endswith(f"day={day(4)}.parquet")
    ]
    first = {p.name: p.read_bytes() for p in home.out(day(1)).iterdir()}
    home.run(day(1))  # the lake is ahead now: an old snapshot stays what it was
    assert {p.name: p.read_bytes() for p in home.out(day(1)).iterdir()} == first
    assert home.lake_files() == after


def test_a_late_delivery_joins_its_day_and_a_repeated_one_counts_once(home: Home) -> None:
    home.deliver(range(2), num_rows=5)
    home.run(day(1))
    home.deliver(range(2), num_rows=7, items=None)  # the five again, two more
    snapshot = home.run(day(1))
    table = snapshot.read(through=day(1))
    assert table.num_rows == 14 == pc.count_distinct(table.column("event_id")).as_py()
    assert table.equals(table.sort_by([("timestamp", "ascending"), ("event_id", "ascending")]))
    refused = home.refused(day(1))
    assert refused.column("reason").to_pylist() == [REPEATED] * 10
    assert len(snapshot.batches) == 2


def test_every_row_is_in_the_lake_or_in_the_quarantine(home: Home) -> None:
    num_rows = 40
    items = ["ab"[n % 2] for n in range(num_rows)]
    items[3] = "nobody"
    prices = [1.0] * num_rows
    prices[5] = -1.0
    ids = [f"e{n}" for n in range(num_rows)]
    ids[9] = ids[8]
    stamps = [f"{day(0)} 00:{n:02d}" for n in range(num_rows - 1)] + ["2999-01-01"]
    home.deliver(range(1), num_rows, item_id=items, price=prices, event_id=ids, timestamp=stamps)
    landed = home.run(day(0)).read(through=day(0))
    refused = home.refused(day(0))
    assert sorted(landed.column("event_id").to_pylist() + refused.column("event_id").to_pylist()) == sorted(ids)
    reasons = dict(zip(refused.column("event_id").to_pylist(), refused.column("reason").to_pylist(), strict=True))
    assert reasons == {
        "e3": UNKNOWN_ITEM,
        "e5": "price below 0",
        "e8": REPEATED,
        "e39": "timestamp in the future",
    }
    verdict = json.loads((home.out(day(0)) / "verdict.json").read_text())
    assert sum(check["num_bad"] for check in verdict if check["expectation"] != "quarantine_share") == 3


def test_too_many_bad_rows_refuse_everything(home: Home) -> None:
    home.deliver(range(2), 20, item_id=["a"] * 20 + ["nobody"] * 12 + ["a"] * 8)
    with pytest.raises(RefusedError) as error:
        home.run(day(0))
    assert "2024-01-02: 12 of 20 rows are bad (1 such days, 12 of 40 rows in all), allowed are 5.0%" in str(error.value)
    assert home.lake_files() == {}
    home.run(day(0), quarantine_slack=12)
    assert home.refused(day(0)).num_rows == 12


@pytest.mark.parametrize(("num_rows", "num_bad"), [(20, 10), (400, 20)])
def test_a_day_may_have_ten_bad_rows_or_one_in_twenty(home: Home, num_rows: int, num_bad: int) -> None:
    def deliver(bad: int) -> None:
        times = [f"{START} {n // 60:02d}:{n % 60:02d}" for n in range(num_rows)]
        items = ["nobody"] * bad + ["a"] * (num_rows - bad)
        home.deliver(range(1), num_rows, item_id=items, timestamp=times)

    deliver(num_bad + 1)
    with pytest.raises(RefusedError, match=f"{num_bad + 1} of {num_rows} rows are bad"):
        home.run(day(0))
    shutil.rmtree(home.landing)
    deliver(num_bad)
    home.run(day(0))
    assert home.refused(day(0)).num_rows == num_bad


def test_days_of_two_weeks_after_as_of_are_judged_too(home: Home) -> None:
    home.deliver(range(17), 1)
    assert home.run(day(0), horizon_days=None).days[-1] == day(14)


@pytest.mark.parametrize(
    ("num_before", "num_rows", "noted"),
    [(7, 8, True), (7, 10, False), (7, 160, False), (7, 162, True), (6, 162, False)],
)
def test_a_day_of_a_quarter_or_four_times_the_seven_before_it_is_noted(
    home: Home, capsys: pytest.CaptureFixture[str], num_before: int, num_rows: int, noted: bool
) -> None:
    home.deliver(range(num_before), 40)
    home.run(day(num_before - 1), horizon_days=0)
    times = [f"{day(num_before)} {n // 60:02d}:{n % 60:02d}" for n in range(num_rows)]
    home.deliver(range(num_before, num_before + 1), num_rows, items=None, timestamp=times)
    home.run(day(num_before), horizon_days=0)
    assert ("row count far from the trailing week's" in capsys.readouterr().err) is noted


def test_two_million_rows_are_judged_at_a_time(tmp_path: Path) -> None:
    class Days(Partition):
        """A million rows of nothing, which take no memory."""

        def read(self) -> pa.Table:
            return pa.table({"x": pa.nulls(1_000_000)})

    partitions = [Days(str(n), day(n), "", tmp_path, None, LANDED) for n in range(5)]
    assert [chunk.num_rows for chunk in events._chunks(partitions)] == [2_000_000, 2_000_000, 1_000_000]


def test_a_day_out_of_proportion_is_noted_or_refused(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.deliver(range(8), 4)
    home.run(day(7), horizon_days=0)
    home.deliver(range(8, 9), 30, items=None)
    with pytest.raises(RefusedError, match=r"30 rows, expected 1 to 16"):
        home.run(day(8), horizon_days=0, volume_strict=True)
    assert home.run(day(8), horizon_days=0).days[-1] == day(8)
    assert "2024-01-09: row count far from the trailing week's: 30 rows" in capsys.readouterr().err


def test_nothing_landed_is_refused(home: Home) -> None:
    with pytest.raises(RefusedError, match="no event was landed up to 2024-01-03"):
        home.run(day(0))


def test_reactions_to_what_was_served_become_events(home: Home) -> None:
    home.deliver(range(1))
    rows = [
        ("r1", "u1", "served", ["a", "b"]),
        ("r1", "u1", "click", ["b"]),
        ("r2", None, "click", ["a"]),
        ("r3", "u2", "click", ["nobody"]),
    ]
    traffic = pa.table(
        {
            "request_id": [row[0] for row in rows],
            "timestamp": [datetime(2024, 1, 2, 3, n, tzinfo=UTC) for n in range(4)],
            "user_id": [row[1] for row in rows],
            "release_id": ["release"] * 4,
            "action": [row[2] for row in rows],
            "item_ids": [row[3] for row in rows],
        }
    )
    path = home.traffic / f"day={day(1)}" / "worker-0.parquet"
    write_parquet(path, conform(traffic, TRAFFIC))
    write_parquet(path.parent / ".half.parquet", conform(traffic, TRAFFIC))
    (row,) = home.run(day(1)).read(through=day(1), after=day(0)).to_pylist()
    assert (row["user_id"], row["item_id"], row["action"], row["surface"]) == ("u1", "b", "click", "plumline")
    assert home.refused(day(1)).column("reason").to_pylist() == [UNKNOWN_ITEM]


def test_what_a_reaction_says_reaches_the_lake(home: Home) -> None:
    home.deliver(range(1))
    traffic = pa.table(
        {
            "request_id": ["r1", "r2", "r3"],
            "timestamp": [datetime(2024, 1, 2, 3, n, tzinfo=UTC) for n in range(3)],
            "user_id": ["u1"] * 3,
            "release_id": ["release"] * 3,
            "action": ["play", "rate", "play"],
            "item_ids": [["b"]] * 3,
            "scores": pa.array([[], [], [0.25]], pa.list_(pa.float64())),  # the last one as 0.2 wrote it
            "watch_ratio": pa.array([0.5, None, None], pa.float64()),
            "watch_time_s": pa.array([12.0, None, None], pa.float64()),
            "rating": pa.array([None, 4.5, None], pa.float64()),
        }
    )
    write_parquet(home.traffic / f"day={day(1)}" / "worker-0.parquet", conform(traffic, TRAFFIC))
    rows = home.run(day(1)).read(through=day(1), after=day(0)).sort_by("timestamp").to_pylist()
    told = [(row["action"], row["watch_ratio"], row["watch_time_s"], row["rating"]) for row in rows]
    assert told == [("play", 0.5, 12.0, None), ("rate", None, None, 4.5), ("play", 0.25, None, None)]


def test_a_lake_that_is_not_the_judged_one_is_refused(home: Home) -> None:
    home.deliver(range(2))
    snapshot = home.run(day(0))
    path = next(home.lake.rglob("day=2024-01-01.parquet"))
    good = path.read_bytes()
    path.write_bytes(good[:-20] + bytes(20))
    with pytest.raises(CorruptArtifactError, match="day=2024-01-01"):
        snapshot.read(through=day(0))
    assert snapshot.read(through=day(1), after=day(0)).num_rows == 5  # only the needed files are opened
    path.write_bytes(good)
    manifest = path.parent.parent / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"size"', '"size" ').replace('"stage": "lake"', '"stage": "x"'))
    with pytest.raises(CorruptArtifactError, match="not the batch"):
        EventSnapshot.load(home.out(day(0)))
    manifest.unlink()
    with pytest.raises(MissingArtifactError):
        EventSnapshot.load(home.out(day(0)))


def run_process(folder: Path, root: Path, crash_at: str) -> dict[str, bytes]:
    """Deliver (once) and run the stage in a process of its own; every file of the lake and the artifact."""
    home = Home(folder) if not folder.joinpath("data").exists() else None
    if home is not None:
        home.deliver(range(3))
        (folder / "recipe.yaml").write_text("events: {horizon_days: 1}\n")
    command = [
        *(sys.executable, "-m", "features.events", "--params", "recipe.yaml", "--landing", "data/landing"),
        *("--traffic", "data/traffic", "--lake", "data/events", "--as-of", "2024-01-02", "--out", "artifacts/events"),
    ]
    environment = child_environment(PLUMLINE_CRASH_AT=crash_at, PYTHONPATH=str(root))
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    assert done.returncode == (-9 if crash_at else 0), done.stderr.decode()
    found = (p for name in ("data/events", "artifacts") for p in (folder / name).rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found if ".scratch" not in p.parts}


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, bytes]:
    return run_process(tmp_path_factory.mktemp("whole"), root, "")


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("point", ["lake:body", "lake:written", "lake:sealed", "lake:published", "events:sealed"])
def test_killed_and_run_again_equals_never_killed(
    tmp_path: Path, point: str, root: Path, never_killed: dict[str, bytes]
) -> None:
    left = run_process(tmp_path, root, point)
    assert not any(name.startswith("artifacts/") for name in left)
    assert any(name.startswith("data/events/") for name in left) == (point in ("lake:published", "events:sealed"))
    assert run_process(tmp_path, root, "") == never_killed


@pytest.mark.slow
def test_the_sample_lands_whole(tmp_path: Path, root: Path) -> None:
    home = Home(tmp_path)
    tables = [
        rename(read_table(root / f"examples/online_retail/{contract.name}.parquet"), contract, {}).table
        for contract in (ITEMS, EVENTS, USERS)
    ]
    land(*tables, landing=home.landing, source="", now=NOW)
    snapshot = home.run(date(2011, 10, 31), horizon_days=14)
    assert home.refused(date(2011, 10, 31)).num_rows == 0
    landed = snapshot.read(through=date(2011, 11, 14))
    rows = tables[1].drop_columns("event_id").to_pandas()
    rows = rows[rows.timestamp < datetime(2011, 11, 15, tzinfo=UTC)]
    assert landed.num_rows == len(rows.drop_duplicates()) > 0.98 * len(rows)
