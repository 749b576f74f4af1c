"""A delivery that is refused leaves nothing, one that landed may be landed otherwise, taken back, or added to."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from features.batches import list_batches
from flows.commands.cli import main
from flows.steps import landing as module

ITEMS = "item_id,title\n1,Thing 1\n2,Thing 2\n3,Thing 3\n4,Thing 4\n5,Thing 5\n"
EVENTS = "user_id,item_id,timestamp\nu1,1,2024-01-01\nu1,2,2024-01-02\nu2,3,2024-01-03\nu2,4,2024-01-04\n"


class Shell:
    """Commands in one home, in this process."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def file(self, name: str, text: str) -> str:
        (self.home / name).write_text(text)
        return str(self.home / name)

    def run(self, *arguments: str, exit_code: int = 0) -> Result:
        done = CliRunner(env={"PLUMLINE_HOME": str(self.home)}).invoke(main, list(arguments))
        assert done.exit_code == exit_code, done.output
        if exit_code:
            assert done.stderr.strip().splitlines()[-1].startswith("plumline: ")
        return done

    def init(self, items: str = ITEMS, events: str = EVENTS, *more: str, exit_code: int = 0) -> Result:
        words = ["--items", self.file("items.csv", items), "--events", self.file("events.csv", events)]
        return self.run("init", *words, *more, exit_code=exit_code)

    def land(self, events: str, *more: str, exit_code: int = 0) -> Result:
        return self.run("land", "--events", self.file("more.csv", events), *more, exit_code=exit_code)

    def trace(self) -> dict[str, bytes]:
        """Every file of the home but those that are delivered."""
        found = (path for path in self.home.rglob("*") if path.suffix != ".csv" and path.name != ".scratch")
        return {str(path.relative_to(self.home)): path.read_bytes() if path.is_file() else b"" for path in found}

    @property
    def batches(self) -> list[Any]:
        return list_batches(self.home / "data" / "landing")


@pytest.fixture
def shell(home: Path) -> Shell:
    return Shell(home)


def event(user: str, item: str, day: int) -> str:
    return f"user_id,item_id,timestamp\n{user},{item},2024-01-{day:02d}\n"


@pytest.mark.parametrize(
    ("items", "events", "words"),
    [
        (ITEMS, "user_id,item_id,timestamp\nu1,1,2024-01-01 10:00:00\n", "events of 1 day; two are needed"),
        (
            ITEMS,
            "user_id,item_id,timestamp\nu1,77,2024-01-01\nu1,78,2024-01-02\n",
            "unknown item_id '77' (2 such rows)",
        ),
        (ITEMS, EVENTS.replace("2024", "2090"), "lies after now ("),
        (ITEMS, EVENTS.replace("u1", ""), "user_id is empty"),
        (ITEMS.replace("5,", "4,"), EVENTS, "item_id '4' is there twice, and the rows differ"),
    ],
)
def test_a_refused_init_leaves_no_trace(shell: Shell, items: str, events: str, words: str) -> None:
    before = shell.trace()
    assert words in shell.init(items, events, exit_code=2).stderr
    assert shell.trace() == before


def test_an_init_without_its_recipe_leaves_no_trace(shell: Shell) -> None:
    before = shell.trace()
    assert "cpu_tiny" in shell.init(ITEMS, EVENTS, "--recipe", "huge", exit_code=2).stderr
    assert shell.trace() == before


def test_what_an_init_landed_is_replaced_until_a_release_was_made_of_it(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case kuairand_log: the wrong column first, then the right one; nothing of the first stays."""
    log = "user_id,item_id,date,time_ms\nu1,1,2000-01-01,1649386800000\nu2,2,2000-01-02,1649475000000\n"
    shell.init(ITEMS, log, "--map", "timestamp=date")
    (first,) = shell.batches
    said = shell.init(ITEMS, log, "--map", "timestamp=time_ms").stderr
    assert f"in the place of delivery 0 ({first.id}, items.csv, events.csv, landed" in said
    (second,) = shell.batches
    assert [day.isoformat() for day in second.day_files()] == ["2022-04-08", "2022-04-09"]
    assert 'as_of: "2022-04-08"' in (shell.home / "params.yaml").read_text()
    monkeypatch.setattr(module, "Registry", lambda _: SimpleNamespace(entries=lambda: ["a release"]))
    before = shell.trace()
    refused = shell.init(ITEMS, EVENTS, exit_code=2).stderr
    assert f"plumline land --replace {second.id}" in refused
    assert "rm " not in refused
    assert "make clean" not in refused
    assert shell.trace() == before
    again = shell.init(ITEMS, log, "--map", "timestamp=time_ms").stderr
    assert f"already landed: delivery 0 ({second.id}" in again
    assert "next: plumline daily" in again


def test_other_deliveries_are_never_mixed_into_an_init(shell: Shell) -> None:
    shell.init()
    shell.land(event("u3", "5", 9))
    later = shell.batches[1]
    refused = shell.init(ITEMS, EVENTS.replace("u1", "u7"), exit_code=2).stderr
    assert f"plumline unland {later.id}" in refused
    shell.run("unland", later.id)
    shell.init(ITEMS, EVENTS.replace("u1", "u7"))
    assert len(shell.batches) == 1


def test_the_same_files_are_said_to_have_landed(shell: Shell) -> None:
    shell.init()
    before = shell.trace()
    for words in ((), ("--map", "item_id=item_id")):  # known by their bytes; read, and known by what is in them
        said = json.loads(shell.init(ITEMS, EVENTS, *words, "--json").stdout)
        assert said["already_landed"]
        assert said["delivery"] == shell.batches[0].id
    assert "already landed: delivery 0" in shell.init().stderr
    assert shell.trace() == before
    shell.land(event("u3", "5", 9))
    assert "already landed: delivery 1" in shell.land(event("u3", "5", 9)).stderr
    assert len(shell.batches) == 2


def test_what_was_folded_and_put_aside_is_told(shell: Shell) -> None:
    """The case e_dup, and with it an item that nobody landed and a day of the future."""
    items = ITEMS + "5,Thing 5\n"
    rows = ["u1,1,2024-01-01", "u1,1,2024-01-01", "u1,2,2024-01-02", "u9,nosuch,2024-01-02", "u1,2,2090-01-01"]
    done = shell.init(items, "\n".join(["user_id,item_id,timestamp", *rows, ""]), "--json")
    said = json.loads(done.stdout)
    assert said["folded"] == {"items": 1, "events": 1}
    assert (said["future"], said["unknown_items"]) == (1, 1)
    assert said["rows"] == {"items": 5, "events": 3}
    assert said["days"] == {"first": "2024-01-01", "last": "2024-01-02", "days": 2}
    assert (said["as_of"], said["recipe"], said["already_landed"]) == ("2024-01-01", "cpu_tiny", False)
    assert len(said["problems"]) == 2
    for words in ("events: 1 row repeats another one", "unknown item_id 'nosuch'", "timestamp in the future"):
        assert words in done.stderr


def test_events_may_come_before_their_items(shell: Shell) -> None:
    """The case n1_event alone: `land` says that nobody knows the item, and lands."""
    shell.init()
    done = shell.run("land", "--events", shell.file("n1.csv", event("u9", "N1", 2)), "--json")
    assert "all name items that no items file has" in done.stderr
    assert json.loads(done.stdout)["unknown_items"] == 1
    shell.run("land", "--items", shell.file("n1_item.csv", "item_id,title\nN1,New thing\n"))
    assert "already landed" in shell.run("land", "--events", shell.file("n1.csv", event("u9", "N1", 2))).stderr


def test_land_puts_a_delivery_in_the_place_of_another(shell: Shell) -> None:
    shell.init()
    shell.land(event("u3", "5", 9))
    shell.land(event("u3", "5", 10))
    old = shell.batches[1]
    said = shell.run("land", "--events", shell.file("mended.csv", event("u4", "5", 9)), "--replace", old.id[:6]).stderr
    assert f"in the place of delivery 1 ({old.id}" in said
    assert [batch.source for batch in shell.batches] == ["items.csv, events.csv", "mended.csv", "more.csv"]
    assert [batch.order for batch in shell.batches] == [0, 1, 2]
    assert "already landed" in shell.land(event("u4", "5", 9), "--replace", "1").stderr
    refused = shell.land(event("u3", "5", 10), "--replace", "1", exit_code=2).stderr
    assert "is this very delivery; plumline unland" in refused
    assert (
        "nothing is no delivery; there are:"
        in shell.land(event("u", "5", 3), "--replace", "nothing", exit_code=2).stderr
    )
    assert "unland" not in shell.land(event("u", "", 3), "--replace", "1", exit_code=2).stderr
    assert [batch.order for batch in shell.batches] == [0, 1, 2]


def test_a_contradiction_is_found_at_the_door_with_the_delivery_s_name(shell: Shell) -> None:
    """The cases t1.csv, then t2.jsonl: a tag that was text and is a number now."""
    shell.init()
    text, number = "item_id,title,tag_size\n7,Seven,large\n", '{"item_id": "8", "title": "Eight", "tag_size": 12}\n'
    shell.run("land", "--items", shell.file("t2.jsonl", number))
    before = shell.trace()
    refused = shell.run("land", "--items", shell.file("t1.csv", text), exit_code=2).stderr
    earlier = shell.batches[1]
    assert "tag_size" in refused
    assert f"delivery {earlier.id} (t2.jsonl)" in refused
    assert shell.trace() == before
    shell.run("land", "--items", shell.file("t1.csv", text), "--replace", earlier.id)
    shell.run("land", "--items", shell.file("t2.jsonl", number))  # a number can be told as text
    shell.run("unland", "1")
    shell.run("land", "--items", shell.file("t3.csv", text.replace("7,", "9,")))


def test_spellings_of_ids_are_decided_once_a_home(shell: Shell) -> None:
    """The cases d1.csv, then d2.csv: 13085.0 is the user that it was."""
    shell.init(ITEMS, EVENTS.replace("u1", "13085.0").replace("u2", "13086.0"))
    shell.land("user_id,item_id,timestamp\n13085.0,3,2024-01-04\nguest,4,2024-01-04\n")
    users = {
        user for batch in shell.batches for user in batch.read("events/day=2024-01-04.parquet")["user_id"].to_pylist()
    }
    assert users == {"13085", "13086", "guest"}


def test_a_folder_is_guessed_and_nothing_lands(shell: Shell) -> None:
    before = shell.trace()
    (shell.home / "log").mkdir()
    shell.file("log/things.csv", ITEMS)
    shell.file("log/events.csv", EVENTS)
    told = shell.run("init", "--guess", str(shell.home / "log")).stdout
    assert "next: plumline init --items" in told
    assert {name: text for name, text in shell.trace().items() if name != "log"} == before
    assert "--guess looks at a folder alone" in shell.run("init", "--guess", exit_code=2).stderr
    refused = shell.run("init", "--guess", str(shell.home / "log"), "--events", "e", exit_code=2).stderr
    assert "without --events" in refused
