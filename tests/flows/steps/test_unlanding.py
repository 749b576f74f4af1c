"""What depends on a delivery is told before it is taken back; `deliveries` and `requeue` know what is there."""

import json
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from features import events
from features.batches import list_batches
from features.events import EventsParams
from flows.commands.cli import main
from flows.steps import unlanding
from flows.steps.calendar import landed_days
from flows.steps.registry import Entry
from flows.steps.runs import read_run, record_run

ITEMS = "item_id,title\n1,Thing 1\n2,Thing 2\n3,Thing 3\n"
EVENTS = "user_id,item_id,timestamp\nu1,1,2024-01-01\nu1,2,2024-01-02\nu2,3,2024-01-03\nu2,1,2024-01-04\n"


@pytest.fixture
def plumline(home: Path) -> Callable[..., str]:
    """A command in a home where an init has landed; its stdout."""

    def run(*arguments: str) -> str:
        done = CliRunner(env={"PLUMLINE_HOME": str(home)}).invoke(main, list(arguments))
        assert done.exit_code == 0, done.output
        return done.stdout

    (home / "items.csv").write_text(ITEMS)
    (home / "events.csv").write_text(EVENTS)
    run("init", "--items", str(home / "items.csv"), "--events", str(home / "events.csv"))
    (home / "more.csv").write_text("user_id,item_id,timestamp\nu1,4,2024-01-04\nu3,1,2024-01-06\nu3,2,2090-01-01\n")
    (home / "items2.csv").write_text("item_id,title\n4,Thing 4\n")
    run("land", "--events", str(home / "more.csv"))
    run("land", "--items", str(home / "items2.csv"))
    return run


def judge(home: Path) -> None:
    out = home / "artifacts" / "events"
    out.mkdir(parents=True, exist_ok=True)
    (home / "data" / "traffic").mkdir(exist_ok=True)
    folders = {"landing": home / "data" / "landing", "traffic": home / "data" / "traffic"}
    lake = str(home / "data" / "events")
    events.run(EventsParams(), **folders, lake=lake, as_of=date(2024, 1, 5), out=out)


def make_release(home: Path, monkeypatch: pytest.MonkeyPatch, *as_ofs: str) -> None:
    """Releases of which the registry knows, made of what has landed."""
    entries = [Entry(f"{day}-aa", "d", day, "", "bootstrap", "k") for day in as_ofs]
    registry = SimpleNamespace(entries=lambda: entries, sealed=lambda name: home / "releases" / "sealed" / name)
    monkeypatch.setattr(unlanding, "Registry", lambda _: registry)
    pointer = {"release_id": f"{as_ofs[-1]}-aa", "fencing": 1, "previous": None, "history": [], "action": "promote"}
    (home / "releases" / "pointers").mkdir(parents=True)
    (home / "releases" / "pointers" / "champion.json").write_text(json.dumps(pointer))
    for entry in entries:
        record_run(home, entry.release_id, "code", [], 0.0)


def test_what_depends_on_it_is_told_first(
    home: Path, plumline: Callable[..., str], quick_validation: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    del quick_validation
    judge(home)
    make_release(home, monkeypatch, "2024-01-02", "2024-01-05")
    first, second, third = list_batches(home / "data" / "landing")
    assert read_run(home, "2024-01-05-aa")["deliveries"] == [first.id, second.id, third.id]
    told = plumline("unland", second.id[:5], "--dry-run")
    assert told.splitlines() == [
        f"{second}: 2 events of 2 days, 2024-01-04 to 2024-01-06",
        "days without an event then: 1, 2024-01-06",
        "judged again by the next run: 6 events (1 batch of the lake)",
        "releases made with it, which stay as they are: 2024-01-05-aa; 2024-01-05-aa answers",
        "nothing was changed (--dry-run)",
    ]
    said = json.loads(plumline("unland", "2", "--dry-run", "--json"))
    assert (said["items_gone"], said["events_put_aside"], said["days_gone"], said["done"]) == (1, 1, [], False)
    assert said["releases"] == ["2024-01-02-aa", "2024-01-05-aa"]
    assert len(list_batches(home / "data" / "landing")) == 3
    (home / ".plumline" / "runs" / "2024-01-05-aa.json").unlink()  # of before deliveries were noted: by its age
    (home / "releases" / "sealed" / "2024-01-05-aa").mkdir(parents=True)
    (home / "releases" / "sealed" / "2024-01-05-aa" / "manifest.json").touch()
    assert json.loads(plumline("unland", "1", "--json"))["releases"] == ["2024-01-05-aa"]
    assert [batch.id for batch in list_batches(home / "data" / "landing")] == [first.id, third.id]
    assert landed_days(home) == [date(2024, 1, 1) + timedelta(days=n) for n in range(4)]


def test_deliveries_say_what_waits(home: Path, plumline: Callable[..., str], quick_validation: object) -> None:
    del quick_validation
    (home / "bad.csv").write_text("user_id,item_id,timestamp\nu1,99,2024-01-04\nu3,98,2024-01-04\n")
    plumline("land", "--events", str(home / "bad.csv"))

    def put_aside() -> list[dict[str, int]]:
        return [one["put_aside"] for one in json.loads(plumline("deliveries", "--json"))]

    unknown, future = "item_id unknown: no landed items file has it", "timestamp in the future"
    assert put_aside() == [{}, {future: 1}, {}, {}]
    assert plumline("requeue") == "nothing is put aside\n"
    assert not (home / "data" / "landing" / "requeue.json").exists()
    judge(home)
    assert put_aside() == [{}, {future: 1}, {}, {unknown: 2}]
    assert plumline("requeue").splitlines() == [
        f"       2  {unknown}",
        f"       1  {future}",
        "the next plumline daily or bootstrap judges them again",
    ]
    judge(home)
    assert put_aside() == [{}, {future: 1}, {}, {unknown: 2}]
    table = plumline("deliveries").splitlines()
    assert table[0].split() == [
        "delivery",
        "landed",
        "(UTC)",
        "events",
        "items",
        "users",
        "days",
        "put",
        "aside",
        "files",
    ]
    assert [line.split()[0] for line in table[1:]] == ["0", "1", "2", "3"]
    assert "2024-01-01 to 2024-01-04" in table[1]
    assert table[1].endswith("items.csv, events.csv")


def test_a_killed_withdrawal_is_finished_by_whoever_looks(home: Path, plumline: Callable[..., str]) -> None:
    _, second, _ = list_batches(home / "data" / "landing")
    plan: dict[str, Any] = {"number": 1, "at": "", "arriving": "", "lake": [], "withdraw": [{"id": second.id}]}
    (home / "data" / "landing" / "withdrawal.json").write_text(json.dumps(plan))
    assert date(2024, 1, 6) not in landed_days(home)
    assert len(json.loads(plumline("deliveries", "--json"))) == 2


def test_nothing_landed_is_a_line(home: Path) -> None:
    done = CliRunner(env={"PLUMLINE_HOME": str(home)}).invoke(main, ["deliveries"])
    assert done.stdout == "nothing has landed; plumline init --items F --events F\n"
    done = CliRunner(env={"PLUMLINE_HOME": str(home)}).invoke(main, ["unland", "abcd"])
    assert done.stderr == "plumline: abcd is no delivery; there are: none (plumline deliveries)\n"
