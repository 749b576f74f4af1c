"""What was put aside comes back when what was missing is there: once, and without anybody delivering it again."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from features.batches import FUTURE, list_artifacts
from features.expectations.events import REPEATED, UNKNOWN_ITEM
from features.lake import list_lake, read_waiting
from features.partitions import TORN
from features.requeue import read_mark, write_mark
from plumline.errors import CorruptArtifactError

FIRST = [("u", "a", 0), ("u", "a", 1), ("u", "a", 2)]


def test_an_event_waits_for_its_item(zone: Any) -> None:
    """The case n1_event, n1_item, n1_event: an event, later its item, and the event once more."""
    zone.items("a")
    zone.events(*FIRST)
    zone.events(("u9", "N1", 1))
    assert zone.known() == FIRST
    assert zone.aside() == [("N1", UNKNOWN_ITEM)]
    zone.items("N1")
    assert zone.known() == [*FIRST, ("u9", "N1", 1)]
    assert zone.aside() == []
    again = zone.events(("u9", "N1", 1))
    assert again.order == 2  # it is there already
    lake = {path.name for path, _ in list_artifacts(zone.lake)}
    assert zone.known() == [*FIRST, ("u9", "N1", 1)]
    assert {path.name for path, _ in list_artifacts(zone.lake)} == lake


def test_an_event_that_came_twice_before_its_item_counts_once(zone: Any) -> None:
    zone.items("a")
    zone.events(*FIRST)
    zone.events(("u9", "N1", 1), ids=["x"])
    zone.known()
    zone.items("N1")
    zone.events(("u9", "N1", 1), ("u9", "a", 2), ids=["x", "y"])
    assert zone.known() == [*FIRST, ("u9", "N1", 1), ("u9", "a", 2)]
    assert zone.aside() == [("N1", REPEATED)]


def test_an_event_of_the_future_waits_for_its_day(zone: Any) -> None:
    zone.items("a")
    early = datetime(2024, 1, 2, 12, tzinfo=UTC)
    zone.events(("u", "a", 0), ("u", "a", 1), ("u", "a", 5), ("u", "a", 5.5), ("u", "a", 9), now=early)
    assert zone.known() == [("u", "a", 0), ("u", "a", 1)]
    assert zone.aside() == [("a", FUTURE)] * 3
    zone.events(("v", "a", 6))
    assert zone.known() == [("u", "a", 0), ("u", "a", 1), ("u", "a", 5), ("u", "a", 5), ("v", "a", 6)]
    assert zone.aside() == [("a", FUTURE)]
    write_mark(zone.landing, datetime(2024, 1, 9, 12, tzinfo=UTC))  # before the last one
    assert len(zone.known()) == 5
    write_mark(zone.landing, datetime(2024, 1, 10, 12, tzinfo=UTC))
    assert len(zone.known(8)) == 5  # not by a day before it
    assert zone.known(9)[3:] == [("u", "a", 5), ("u", "a", 9), ("v", "a", 6)]
    assert zone.aside() == []


def test_what_is_the_past_by_the_first_judgement_is_judged_then(zone: Any) -> None:
    zone.items("a")
    zone.events(("u", "a", 0), ("u", "a", 5), now=datetime(2024, 1, 2, 12, tzinfo=UTC))
    zone.events(("v", "b", 5))
    assert zone.known() == [("u", "a", 0), ("u", "a", 5)]
    assert zone.aside() == [("b", UNKNOWN_ITEM)]


def test_what_is_judged_again_and_bad_stays_put_aside_once(zone: Any, capsys: pytest.CaptureFixture) -> None:
    zone.items("a")
    zone.events(("u", "a", 0), ("v", "b", 1), ("v", "c", 1))
    zone.known()
    write_mark(zone.landing, datetime(2024, 1, 10, tzinfo=UTC))
    for _ in range(2):
        assert zone.known() == [("u", "a", 0)]
        assert zone.aside() == [("b", UNKNOWN_ITEM), ("c", UNKNOWN_ITEM)]
    assert len(list_lake(zone.lake)) == 2
    assert "2 of 2 rows that had been put aside are put aside: 2 × item_id unknown" in capsys.readouterr().err
    zone.items("c")
    assert zone.known() == [("u", "a", 0), ("v", "c", 1)]
    assert zone.aside() == [("b", UNKNOWN_ITEM)]
    assert read_waiting(list_lake(zone.lake)).num_rows == 1


def test_rows_that_are_judged_again_refuse_no_day(zone: Any) -> None:
    """They were put up with before; a limit that is lower now is for what comes."""
    zone.items("a")
    zone.events(*(("u", "a", 0 + n / 100) for n in range(20)), *(("v", "b", 0 + n / 100) for n in range(15)))
    zone.judge(quarantine_slack=20)
    write_mark(zone.landing, datetime(2024, 1, 10, tzinfo=UTC))
    assert len(zone.known(quarantine_slack=0, quarantine_limit=0)) == 20


def test_a_file_that_could_not_be_read_is_told_of_until_it_can_be(zone: Any) -> None:
    zone.items("a")
    zone.events(*FIRST)
    path = zone.react("w", ("r", "a", 1))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert zone.known() == FIRST
    assert zone.aside() == [("", TORN)]
    write_mark(zone.landing, datetime(2024, 1, 10, tzinfo=UTC))
    assert zone.known() == FIRST
    path.write_bytes(whole)
    assert zone.known() == [("r", "a", 1), *FIRST]
    assert zone.aside() == []


def test_a_mark_is_counted(zone: Any) -> None:
    assert read_mark(zone.landing).number == 0
    now = datetime(2024, 1, 10, 1, 2, 3, 4, tzinfo=UTC)
    assert [write_mark(zone.landing, now + timedelta(days=n)).number for n in range(2)] == [1, 2]
    assert read_mark(zone.landing).until == datetime(2024, 1, 11, 1, 2, 3, tzinfo=UTC)
    (zone.landing / "requeue.json").write_text("{}")
    with pytest.raises(CorruptArtifactError, match="not a mark"):
        read_mark(zone.landing)
