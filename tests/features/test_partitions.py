"""Traffic that nobody can use is put aside and said; it stops nobody."""

from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from features.expectations.events import OTHER_DAY, UNKNOWN_ITEM
from features.lake import list_lake
from features.partitions import NO_ACTION, TORN, again_by_day, keep_rows, list_partitions
from plumline.errors import RefusedError
from plumline.tables import write_parquet

FIRST = [("u", "a", 0), ("u", "a", 1)]


@pytest.fixture
def home(zone: Any) -> Any:
    """Two landed days."""
    zone.items("a")
    zone.events(*FIRST)
    return zone


def test_a_bad_client_stops_no_day(home: Any, capsys: pytest.CaptureFixture) -> None:
    """The case feedback_unknown: eleven reactions to items that nobody landed, on a day with two events."""
    home.react("bad", *((f"c{n}", f"nosuch{n}", 1) for n in range(11)))
    home.react("good", ("r", "a", 1))
    assert home.known() == [("r", "a", 1), *FIRST]
    assert home.aside() == [(f"nosuch{n}", UNKNOWN_ITEM) for n in sorted(range(11), key=str)]
    assert "11 of 12 reactions are put aside: 11 × item_id unknown: no landed" in capsys.readouterr().err
    (batch,) = list_lake(home.lake)
    share = next(check for check in batch.verdict() if check["reason"] == "reactions put aside")
    assert (share["observed"], share["num_bad"], share["severity"]) == (11 / 12, 11, "info")


def test_landed_rows_have_a_limit_of_their_own(home: Any) -> None:
    """Good reactions do not make up for a bad delivery, nor bad ones add to it."""
    home.react("good", *(("r", "a", 1 + n / 1000) for n in range(300)))
    bad = home.events(*((f"v{n}", "b", 1) for n in range(11)))
    with pytest.raises(RefusedError) as refusal:
        home.known()
    assert str(refusal.value) == (
        "events: 2024-01-02: 11 of 12 rows are bad (1 such days, 11 of 13 rows in all), allowed are 5.0% and 10 rows a "
        f"day; most: {UNKNOWN_ITEM} (11); land the items, take the delivery back with plumline unland {bad.id}, put a "
        f"mended one in its place with plumline land --replace {bad.id}, or raise events.quarantine_limit"
    )
    home.withdraw(bad)
    home.react("bad", *(("c", "nosuch", 1 + n / 1000) for n in range(300)))
    home.events(*((f"v{n}", "b", 1) for n in range(10)))
    assert len(home.known()) == 302


def test_files_that_cannot_be_read_are_rows_that_say_so(home: Any) -> None:
    path = home.react("torn", ("r", "a", 1))
    path.write_bytes(path.read_bytes()[:40])
    write_parquet(path.with_name("other.parquet"), pa.table({"action": [["no", "text"]]}))
    home.react("whole", ("s", "a", 1))
    assert home.known() == [("s", "a", 1), *FIRST]
    assert home.aside() == [("", TORN)] * 2
    assert home.known() == [("s", "a", 1), *FIRST]


@pytest.mark.parametrize("action", [None, "", "DROP TABLE", "x" * 33])
def test_a_reaction_that_says_nothing(home: Any, action: str | None) -> None:
    home.react("bad", ("r", "a", 1), action=action)
    assert home.known() == FIRST
    assert home.aside() == [("a", NO_ACTION)]


def test_a_reaction_of_another_day_or_of_nobody(home: Any) -> None:
    path = home.react("w", ("r", "a", 1), (None, "a", 1), ("r", None, 1))
    path.rename(Path(home.folder) / "traffic" / "day=2024-01-01.parquet")
    goal = Path(home.folder) / "traffic" / "day=2024-01-01" / "w.parquet"
    goal.parent.mkdir()
    (Path(home.folder) / "traffic" / "day=2024-01-01.parquet").rename(goal)
    assert home.known() == FIRST
    assert home.aside() == [("a", OTHER_DAY)]


def test_partitions_come_in_the_order_of_delivery_and_traffic_last(home: Any) -> None:
    home.react("w", ("r", "a", 1))
    found = list(list_partitions(home.landing, home.folder / "traffic"))
    assert [(one.kind, one.day.day) for one in found] == [("landed", 1), ("landed", 2), ("traffic", 2)]
    rows = pa.concat_tables([one.read() for one in found])
    assert rows.column("source").to_pylist() == [one.name for one in found]
    again = again_by_day(rows)
    assert [(one.kind, one.day, one.read().num_rows) for one in again] == [
        ("again", date(2024, 1, 1), 1),
        ("again", date(2024, 1, 2), 2),
    ]
    kept = keep_rows(rows.slice(0, 2), found[0])
    assert (kept.name, kept.sha256, kept.read().num_rows) == (found[0].name, found[0].sha256, 2)
