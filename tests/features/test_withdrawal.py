"""A delivery that was taken back is as one that never came, wherever its process was killed."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from features import withdrawal
from features.batches import landing_lock, list_batches
from features.expectations.events import REPEATED, UNKNOWN_ITEM
from features.lake import list_lake
from features.withdrawal import finish, plan_withdrawal, read_withdrawn, withdraw
from plumline import artifact
from plumline.errors import CorruptArtifactError

FIRST = [("u", "a", 0), ("u", "a", 1), ("u", "a", 2)]
MORE = [("v", "a", 1), ("v", "a", 3)]


def digests(zone: Any) -> dict[str, str]:
    """Lake batches by what they are, whenever they were made."""
    return {batch.id: batch.manifest.digest for batch in list_lake(zone.lake)}


@pytest.mark.parametrize("judged_between", [False, True])
def test_what_was_taken_back_never_came(zone: Any, new_zone: Callable[[], Any], judged_between: bool) -> None:
    zone.items("a")
    zone.events(*FIRST)
    if judged_between:
        zone.known()
    second = zone.events(*MORE, ("v", "b", 2))
    zone.known()
    zone.withdraw(second)
    other = new_zone()
    other.items("a")
    other.events(*FIRST)
    assert zone.known() == other.known() == FIRST
    assert zone.aside() == other.aside() == []
    assert digests(zone) == digests(other)
    assert [batch.id for batch in list_batches(zone.landing)] == [batch.id for batch in list_batches(other.landing)]
    # and it may come again
    assert zone.events(*MORE, ("v", "b", 2)).id == second.id
    assert zone.known() == sorted([*FIRST, *MORE])


def test_a_snapshot_of_before_is_not_taken_for_the_one_after(zone: Any) -> None:
    """The stage's key is made of the landing zone's fingerprint: coming and going leave a trace there."""
    zone.items("a")
    before = artifact.fingerprint(zone.landing)
    batch = zone.events(*FIRST)
    there = artifact.fingerprint(zone.landing)
    zone.withdraw(batch)
    gone = artifact.fingerprint(zone.landing)
    zone.events(*FIRST)
    assert len({before, there, gone, artifact.fingerprint(zone.landing)}) == 4


def test_what_was_a_repetition_of_it_counts_now(zone: Any) -> None:
    zone.items("a")
    first = zone.events(("u", "a", 0), ("u", "a", 1), ids=["x", "y"])
    zone.known()
    zone.events(("w", "a", 0), ("w", "a", 2), ids=["x", "z"])
    assert zone.known() == [("u", "a", 0), ("u", "a", 1), ("w", "a", 2)]
    assert zone.aside() == [("a", REPEATED)]
    plan = plan_withdrawal([first], landing=zone.landing, lake=zone.lake)
    assert len(plan.lake) == 2
    zone.withdraw(first)
    assert zone.known() == [("w", "a", 0), ("w", "a", 2)]
    assert zone.aside() == []


def test_events_of_items_that_nobody_else_describes_wait_for_them(zone: Any) -> None:
    zone.items("a")
    items = zone.items("b", "c")
    zone.items("c")
    zone.events(("u", "a", 0), ("u", "b", 1), ("u", "c", 2))
    zone.known()
    other = zone.events(("u", "a", 4))
    zone.known()
    plan = plan_withdrawal([items], landing=zone.landing, lake=zone.lake)
    assert (plan.num_items_gone, plan.num_events_put_aside, len(plan.lake), plan.days_gone) == (1, 1, 1, ())
    zone.withdraw(items)
    assert zone.known() == [("u", "a", 0), ("u", "a", 4), ("u", "c", 2)]
    assert zone.aside() == [("b", UNKNOWN_ITEM)]
    zone.items("b", title="another word")
    assert len(zone.known()) == 4
    assert plan_withdrawal([other], landing=zone.landing, lake=zone.lake).days_gone[0].day == 5


def test_what_was_judged_again_goes_with_what_had_put_it_aside(zone: Any) -> None:
    zone.items("a")
    zone.events(("u", "a", 0))
    batch = zone.events(("u", "b", 1), ("u", "a", 3))
    zone.known()
    zone.items("b")
    assert len(zone.known()) == 3
    assert len(list_lake(zone.lake)) == 2
    zone.withdraw(batch)
    assert zone.known() == [("u", "a", 0)]
    assert zone.aside() == []


def test_the_items_of_a_delivery_that_had_freed_rows_may_go_too(zone: Any) -> None:
    zone.items("a")
    zone.events(("u", "a", 0), ("u", "b", 1))
    zone.known()
    items = zone.items("b")
    zone.known()
    zone.withdraw(items)
    assert zone.known() == [("u", "a", 0)]
    assert zone.aside() == [("b", UNKNOWN_ITEM)]


POINTS = ("planned", "lake", "landing", "arrived", "done")


class KilledError(Exception):
    """In the place of kill -9."""


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_it_is_finished_by_who_comes_next(
    zone: Any, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One delivery goes and another one comes: both or neither, and the next command sees to it."""
    zone.items("a")
    old = zone.events(*FIRST)
    zone.known()
    new = zone.events(*MORE)
    (zone.landing / ".arriving").mkdir()
    shutil.move(new.folder, zone.landing / ".arriving" / new.id)

    def die(stage: str, at: str) -> None:
        if (stage, at) == ("withdrawal", point):
            raise KilledError

    with pytest.raises(KilledError), landing_lock(zone.landing), monkeypatch.context() as patched:
        patched.setattr(withdrawal, "crash_point", die)
        plan = plan_withdrawal([old], landing=zone.landing, lake=zone.lake)
        withdraw(plan, landing=zone.landing, lake=zone.lake, now=datetime(2024, 1, 9, tzinfo=UTC), arriving=new.id)
    assert finish(zone.landing, zone.lake) == (point != "done")
    assert not finish(zone.landing, zone.lake)
    assert [batch.id for batch in list_batches(zone.landing)][1:] == [new.id]
    assert list_lake(zone.lake) == []
    assert sorted(path.name for path in zone.landing.iterdir() if path.name.startswith(".")) == [".lock", ".scratch"]
    assert read_withdrawn(zone.landing) == [
        {
            "at": "2024-01-09T00:00:00+00:00",
            "withdraw": [{"id": old.id, "order": 1, "source": "e.csv"}],
            "arriving": new.id,
        }
    ]
    if point == "landing":
        assert zone.known() == sorted(MORE)


def test_what_nobody_decided_upon_changes_nothing(zone: Any) -> None:
    assert not finish(zone.landing, zone.lake)
    assert not zone.landing.exists()
    batch = zone.items("a")
    (zone.landing / ".arriving" / "half").mkdir(parents=True)  # killed before the plan was written
    assert not finish(zone.landing, zone.lake)
    assert [one.id for one in list_batches(zone.landing)] == [batch.id]
    assert not (zone.landing / ".arriving").exists()
    (zone.landing / "withdrawal.json").write_text(json.dumps({"lake": []}))
    with pytest.raises(CorruptArtifactError, match="no plan of a withdrawal"):
        finish(zone.landing, zone.lake)


def test_a_stage_finishes_what_lies_there(zone: Any, capsys: pytest.CaptureFixture) -> None:
    zone.items("a")
    zone.events(*FIRST)
    batch = zone.events(*MORE)
    zone.known()
    plan = {"number": 1, "at": "", "arriving": "", "lake": [one.id for one in list_lake(zone.lake)]}
    plan["withdraw"] = [{"id": batch.id, "order": 2, "source": ""}]
    Path(zone.landing / "withdrawal.json").write_text(json.dumps(plan))
    assert zone.known() == FIRST
    assert "that is finished now" in capsys.readouterr().err
