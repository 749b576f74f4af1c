"""Whatever is landed, taken back, put in the place of something, judged again or killed, in whatever order: what a run
sees is what is there, each event once, and a refusal names a command that leads on.

The rules of the state machine are the commands, called in this process; a run is the stages that a daily cannot pass by
(events, catalog, histories). N=1000 pytest … tries more sequences.
"""

import os
import re
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from features import catalog, events, histories, withdrawal
from features.batches import list_batches
from features.catalog import CatalogParams
from features.events import EventsParams
from features.histories import HistoriesParams
from features.intake.options import Options
from features.lake import EventSnapshot
from flows.steps import landing as landing_module
from flows.steps.calendar import landed_days, newest_as_of
from flows.steps.deliveries import list_deliveries, requeue
from flows.steps.landing import init_home, land_more
from flows.steps.unlanding import unland
from plumline.artifact import read_json
from plumline.errors import PlumlineError
from plumline.schema import TRAFFIC, conform
from plumline.tables import write_parquet

EXAMPLES = int(os.environ.get("N", "6"))
ITEMS, USERS, DAYS = [str(n) for n in range(1, 7)], ["u", "v", "w"], list(range(8))
Event = tuple[str, str, int]  # user, item, hours after 2024-01-01

an_event = st.tuples(
    st.sampled_from(USERS), st.sampled_from(ITEMS), st.sampled_from(DAYS).map(lambda day: 24 * day + 9)
)
some_events = st.lists(an_event, min_size=1, max_size=6)
some_items = st.lists(st.sampled_from(ITEMS), min_size=1, max_size=4, unique=True)
a_title = st.sampled_from(["cup", "pot"])
a_point = st.sampled_from(["", "", "planned", "lake", "landing", "arrived", "done"])


class KilledError(Exception):
    """In the place of kill -9."""


@dataclass
class Delivered:
    """What a delivery holds."""

    items: set[str] = field(default_factory=set)
    events: set[Event] = field(default_factory=set)


def when(hours: int) -> datetime:
    return datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=hours)


class Lifecycle(RuleBasedStateMachine):
    """A home, and beside it what should be in it: deliveries by id, and reactions."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home = home
        self.there: dict[str, Delivered] = {}
        self.reactions: set[Event] = set()
        self.number = 0
        self.is_made = False
        self.die_at = ""
        withdrawal.crash_point = self._crash  # type: ignore[assignment]
        landing_module.Registry = lambda _: SimpleNamespace(entries=lambda: ["a"] * self.is_made)  # type: ignore
        (home / "recipes" / "strict.yaml").write_text("histories: {}\n")

    # --- commands ---

    @initialize(titles=a_title)
    def begin(self, titles: str) -> None:
        self._init(set(ITEMS[:3]), {("u", "1", 9), ("v", "2", 33), ("u", "3", 57)}, titles)

    @rule(items=some_items, log=some_events, title=a_title)
    def init(self, items: list[str], log: list[Event], title: str) -> None:
        self._until_done(lambda: self._init(set(items), set(log), title))

    @rule(log=some_events)
    def land_events(self, log: list[Event]) -> None:
        self._land(log=set(log))

    @rule(item=st.sampled_from(ITEMS[3:]), day=st.sampled_from(DAYS))
    def land_a_bad_day(self, item: str, day: int) -> None:
        """More rows that name an unknown item than a day may have, if nobody has landed it."""
        self._land(log={(user, item, 24 * day + hour) for user in USERS for hour in (1, 2, 3)})

    @rule(items=some_items, title=a_title)
    def land_items(self, items: list[str], title: str) -> None:
        self._land(items=set(items), title=title)

    @rule(data=st.data(), log=some_events, point=a_point)
    def replace(self, data: st.DataObject, log: list[Event], point: str) -> None:
        if self.there:
            self._land(log=set(log), old=data.draw(st.sampled_from(sorted(self.there))), point=point)

    @rule(data=st.data(), point=a_point)
    def unland(self, data: st.DataObject, point: str) -> None:
        if self.there:
            self._unland(data.draw(st.sampled_from(sorted(self.there))), point)

    @rule()
    def requeue(self) -> None:
        requeue(self.home)

    @rule(reaction=an_event, kind=st.sampled_from(["good", "unknown", "torn"]))
    def react(self, reaction: Event, kind: str) -> None:
        user, item, hours = reaction
        self.number += 1
        hours += 1  # of another hour than what is landed
        when_ = when(hours) + timedelta(seconds=self.number)
        table = {
            "request_id": [f"r{self.number}"],
            "timestamp": [when_],
            "user_id": [user],
            "release_id": ["release"],
            "action": ["click"],
            "item_ids": [["nosuch" if kind == "unknown" else item]],
        }
        path = self.home / "data" / "traffic" / f"day={when_.date()}" / f"w{self.number}.parquet"
        write_parquet(path, conform(pa.table(table), TRAFFIC))
        if kind == "torn":
            path.write_bytes(path.read_bytes()[:-7])
        if kind == "good":
            self.reactions.add((user, item, hours * 3600 + self.number))

    @rule()
    def bootstrap(self) -> None:
        self.run()
        self.is_made = True

    @rule()
    def run(self) -> None:
        """A daily as far as it is cheap: it gets through, or follows the commands that it is told until it does."""
        for _ in range(len(self.there) + 3):
            try:
                seen = self._run_stages()
            except PlumlineError as refusal:
                self._follow(str(refusal))
            else:
                break
        else:
            raise AssertionError("stuck")
        known = set().union(*(one.items for one in self.there.values()))
        landed = {(u, i, 3600 * h) for one in self.there.values() for u, i, h in one.events}
        last = max(landed_days(self.home))
        wanted = {event for event in landed | self.reactions if event[1] in known and _day(event) <= last + HORIZON}
        assert seen == sorted(wanted)
        assert {one["id"] for one in list_deliveries(self.home)} == set(self.there)

    def teardown(self) -> None:
        self.die_at = ""
        self.run()

    # --- how they are called ---

    def _init(self, items: set[str], log: set[Event], title: str) -> None:
        files = {
            "items": self._file("items", "item_id,title", sorted((item, f"{title} {item}") for item in items)),
            "events": self._file("events", "user_id,item_id,timestamp", _rows(log)),
        }
        landed = init_home(self.home, files, recipe="strict")
        if not landed.already:
            self.there = {landed.batch.id: Delivered(items, log)}

    def _land(
        self,
        items: Set[str] = frozenset(),
        title: str = "",
        log: Set[Event] = frozenset(),
        old: str = "",
        point: str = "",
    ) -> None:
        described = sorted((one, f"{title} {one}") for one in items)
        files = {"items": self._file("i", "item_id,title", described)} if items else {}
        files |= {"events": self._file("e", "user_id,item_id,timestamp", _rows(log))} if log else {}
        before, was_open = set(self.there), self._is_open()
        with self._killed(point) as killed:
            try:
                landed = land_more(self.home, files, instead_of=old or None)
            except PlumlineError as refusal:
                if "this very delivery; plumline unland" not in str(refusal):
                    raise
                return
        if not killed:
            new = landed.batch.id
        elif was_open:  # killed while it finished what another one had left: its own was not decided upon
            return
        else:
            new = self._plan()["arriving"] if self._is_open() else next(iter(self._ids() - before))
        if new not in before:
            self.there[new] = Delivered(set(items), set(log))
            self.there.pop(old, None)
        assert killed or self._ids() == set(self.there)

    def _unland(self, name: str, point: str = "") -> None:
        was_open = self._is_open()
        with self._killed(point) as killed:
            unland(self.home, name)
        if not (killed and was_open):  # else it was killed while it finished what another one had left
            del self.there[name]

    def _is_open(self) -> bool:
        return (self.home / "data" / "landing" / "withdrawal.json").exists()

    def _plan(self) -> dict[str, Any]:
        return dict(read_json(self.home / "data" / "landing" / "withdrawal.json"))

    def _ids(self) -> set[str]:
        return {batch.id for batch in list_batches(self.home / "data" / "landing")}

    def _run_stages(self) -> list[tuple[str, str, int]]:
        """User, item and seconds of every event that a run sees."""
        as_of = newest_as_of(self.home)
        out = {name: self.home / "artifacts" / name for name in ("events", "catalog", "histories")}
        for folder in out.values():
            folder.mkdir(parents=True, exist_ok=True)
        landing, traffic = (self.home / "data" / name for name in ("landing", "traffic"))
        params = EventsParams(quarantine_slack=2, horizon_days=HORIZON.days)
        lake = str(self.home / "data" / "events")
        events.run(params, landing=landing, traffic=traffic, lake=lake, as_of=as_of, out=out["events"])
        catalog.run(CatalogParams(), landing=landing, events=out["events"], as_of=as_of, out=out["catalog"])
        if self.is_made:  # the slow one, now and then
            params_ = HistoriesParams()
            histories.run(params_, events=out["events"], catalog=out["catalog"], as_of=as_of, out=out["histories"])
        snapshot = EventSnapshot.load(out["events"])
        rows = snapshot.read(through=snapshot.through, columns=["user_id", "item_id", "timestamp"]).to_pylist()
        return sorted(
            (row["user_id"], row["item_id"], int((row["timestamp"] - when(0)).total_seconds())) for row in rows
        )

    def _follow(self, refusal: str) -> None:
        """Do what a refusal says."""
        if found := re.search(r"plumline unland (\w+)", refusal):
            self._unland(found[1])
        elif found := re.search(r"plumline land --replace (\w+)", refusal):
            self._land(log={("u", "1", 9)}, old=found[1])
        elif "plumline init" in refusal:
            self._until_done(lambda: self._init(set(ITEMS[:2]), {("u", "1", 9), ("v", "2", 33)}, "cup"))
        elif "plumline land" in refusal or "choose a later as_of" in refusal:
            self._land(log={("u", item, 24 * day + 9) for item in ITEMS for day in DAYS})
            self._land(items=set(ITEMS), title="pot")
        else:
            raise AssertionError(f"no command leads on: {refusal}")

    def _until_done(self, command: Callable[[], None]) -> None:
        for _ in range(len(self.there) + 2):
            try:
                command()
            except PlumlineError as refusal:
                if "above must be mended" in str(refusal) or "two are needed" in str(refusal):
                    return  # a file that is no good
                if self.is_made:
                    assert "plumline land --replace" in str(refusal)
                    return
                self._follow(str(refusal))
            else:
                return
        raise AssertionError("stuck")

    @contextmanager
    def _killed(self, point: str) -> Iterator[list[str]]:
        """Die at a point of a withdrawal; the list is empty if that never came."""
        died: list[str] = []
        self.die_at = point
        try:
            yield died
        except KilledError:
            died.append(point)
        finally:
            self.die_at = ""

    def _crash(self, stage: str, at: str) -> None:
        if stage == "withdrawal" and at == self.die_at:
            raise KilledError

    def _file(self, name: str, header: str, rows: list[tuple[str, ...]]) -> tuple[Options, ...]:
        path = self.home / f"{name}.csv"
        path.write_text("\n".join([header, *(",".join(row) for row in rows), ""]))
        return (Options(files=(str(path),)),)


HORIZON = timedelta(days=14)


def _rows(log: Set[Event]) -> list[tuple[str, ...]]:
    return sorted((user, item, when(hours).isoformat()) for user, item, hours in log)


def _day(event: tuple[str, str, int]) -> date:
    return (when(0) + timedelta(seconds=event[2])).date()


def test_never_stuck(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, quick_validation: Any
) -> None:
    monkeypatch.setattr(catalog, "validate", lambda framed, *_: quick_validation(framed, "items", {}))
    monkeypatch.setattr(withdrawal, "crash_point", withdrawal.crash_point)  # undone afterwards
    monkeypatch.setattr(landing_module, "Registry", landing_module.Registry)

    def machine() -> Lifecycle:
        folder = tmp_path_factory.mktemp("lifecycle") / "home"
        folder.mkdir()
        (folder / "params.yaml").write_text((home / "params.yaml").read_text())
        (folder / "dvc.yaml").write_text((home / "dvc.yaml").read_text())
        (folder / "recipes").mkdir()
        return Lifecycle(folder)

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
