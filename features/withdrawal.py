"""A delivery is taken back: its rows, and all that was judged with them, as if it had never landed.

    plan = plan_withdrawal(batches, landing=…, lake=…)        what that touches; changes nothing
    withdraw(plan, landing=…, lake=…, now=…, arriving=…)      all of it or nothing, also if the process is killed
    finish(landing, lake)                                     what a killed one left is done

    data/landing/withdrawal.json   the plan that was decided upon (there while it is carried out)
    data/landing/.arriving/        a delivery that takes the place of one that goes, finished and not visible yet
    data/landing/.withdrawn/, data/events/.withdrawn/   on their way out
    data/landing/withdrawn.json    what was taken back, oldest first

The lake is what validation made of the deliveries and the traffic, so a lake batch may go: what remains of its sources
is judged again by the next run of stage `events`, which finds them in no batch. Gone with a delivery are the lake
batches

    that hold rows of it, or events of items that nobody else describes,
    that put a row aside because one of those was there first (`event_id repeated`),
    that judged again what one of those had put aside (`released.parquet`).

docs/decisions/0014 has the reasons.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from features.batches import ITEMS_FILE, QUARANTINE_FILE, Batch, day_files, landing_lock, list_batches
from features.expectations.events import REPEATED
from features.lake import LakeBatch, list_lake
from plumline import artifact
from plumline.crash import crash_point
from plumline.errors import CorruptArtifactError

PLAN_FILE = "withdrawal.json"
WITHDRAWN_FILE = "withdrawn.json"
ARRIVING = ".arriving"
_LEAVING = ".withdrawn"
_NO_IDS = pa.array([], pa.string())


@dataclass(frozen=True)
class Plan:
    """What goes.

    batches: deliveries. lake: lake batches that are judged again. days_gone: UTC days that then have no event.
    num_items_gone: items that nobody else describes. num_events_put_aside: events of other deliveries that name them.
    """

    batches: tuple[Batch, ...]
    lake: tuple[LakeBatch, ...]
    days_gone: tuple[date, ...]
    num_items_gone: int
    num_events_put_aside: int


def plan_withdrawal(
    batches: Sequence[Batch], *, landing: Path, lake: Path, arriving: pa.Array = _NO_IDS, new_days: Sequence[date] = ()
) -> Plan:
    """Look at what a withdrawal touches. arriving, new_days: item ids and days of what comes instead."""
    ids = {batch.id for batch in batches}
    others = [batch for batch in list_batches(landing) if batch.id not in ids]
    gone = _without(_items_of(batches), pa.concat_arrays([arriving, _items_of(others)]))
    remaining = {day for batch in others for day in batch.day_files()} | set(new_days)
    days = {day for batch in batches for day in batch.day_files()} - remaining
    everything = list_lake(lake)
    first = {batch.id for batch in everything if any(name.partition("/")[0] in ids for name in _sources(batch))}
    num_orphans = 0
    for batch in everything if len(gone) else []:
        named = _count_named(batch, gone)
        if named:
            first.add(batch.id)
            num_orphans += named
    if num_orphans:
        num_orphans -= sum(_count_in(batch, gone) for batch in batches)
    closed = _close(first, everything)
    return Plan(
        tuple(batches),
        tuple(batch for batch in everything if batch.id in closed),
        tuple(sorted(days)),
        len(gone),
        max(0, num_orphans),
    )


def withdraw(plan: Plan, *, landing: Path, lake: Path, now: datetime, arriving: str = "") -> None:
    """Carry a plan out. arriving: id of the finished delivery in `.arriving` that comes instead, "" for none.

    Callers hold the landing zone's lock, and nobody writes into the lake meanwhile.
    """
    value = {
        "number": len(read_withdrawn(landing)) + 1,
        "at": now.isoformat(timespec="seconds"),
        "withdraw": [{"id": batch.id, "order": batch.order, "source": batch.source} for batch in plan.batches],
        "arriving": arriving,
        "lake": [batch.id for batch in plan.lake],
    }
    artifact.replace_file(landing / PLAN_FILE, json.dumps(value, indent=2) + "\n")
    crash_point("withdrawal", "planned")
    _finish(landing, lake)


def finish(landing: Path, lake: Path) -> bool:
    """Carry out the plan that a killed process left, if there is one; says whether there was. Harmless to repeat."""
    left = [landing / PLAN_FILE, landing / ARRIVING, landing / _LEAVING, lake / _LEAVING]
    if not any(path.exists() for path in left):
        return False
    with landing_lock(landing):
        found = left[0].exists()
        _finish(landing, lake)
    return found


def _finish(landing: Path, lake: Path) -> None:
    """Every step may be the last one of a killed process: what is renamed is renamed, what is written down is not
    written down twice, and the plan goes when all is done."""
    path = landing / PLAN_FILE
    if path.exists():
        plan = _read_plan(path)
        for name in plan["lake"]:
            _put_away(lake / name)
        crash_point("withdrawal", "lake")
        for one in plan["withdraw"]:
            _put_away(landing / one["id"])
        crash_point("withdrawal", "landing")
        if plan["arriving"] and not (landing / plan["arriving"]).exists():
            (landing / ARRIVING / plan["arriving"]).rename(landing / plan["arriving"])
            artifact.fsync_path(landing)
        crash_point("withdrawal", "arrived")
        written = read_withdrawn(landing)
        if len(written) < plan["number"]:
            entry = {name: plan[name] for name in ("at", "withdraw", "arriving")}
            artifact.replace_file(landing / WITHDRAWN_FILE, json.dumps([*written, entry], indent=2) + "\n")
        path.unlink()
        artifact.fsync_path(landing)
        crash_point("withdrawal", "done")
    for folder in (landing / ARRIVING, landing / _LEAVING, lake / _LEAVING):
        shutil.rmtree(folder, ignore_errors=True)


def read_withdrawn(landing: Path) -> list[dict[str, Any]]:
    """What was taken back, oldest first: at, withdraw (id, order, source), arriving (id that came instead, or "")."""
    path = landing / WITHDRAWN_FILE
    return list(artifact.read_json(path)) if path.exists() else []


def _read_plan(path: Path) -> dict[str, Any]:
    plan = artifact.read_json(path)
    if not isinstance(plan, dict) or not {"number", "at", "withdraw", "arriving", "lake"} <= plan.keys():
        raise CorruptArtifactError(f"{path}: no plan of a withdrawal; delete it, and look at plumline deliveries")
    return plan


def _put_away(folder: Path) -> None:
    """Move a finished artifact out of sight in one step; nothing to do if it is."""
    if folder.exists():
        goal = folder.parent / _LEAVING / folder.name
        shutil.rmtree(goal, ignore_errors=True)
        goal.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(goal)
        artifact.fsync_path(folder.parent)


# --- what hangs together ---


def _close(first: set[str], lake: Sequence[LakeBatch]) -> set[str]:
    """Ids of lake batches: the given ones and all whose judgement rests on one of them."""
    closed: set[str] = set()
    added = set(first)
    gone = _NO_IDS
    while added:
        closed |= added
        gone = pa.concat_arrays([gone, *(batch.event_ids() for batch in lake if batch.id in added)])
        added = {batch.id for batch in lake if batch.id not in closed and _rests_on(batch, closed, gone)}
    return closed


def _rests_on(batch: LakeBatch, closed: set[str], gone: pa.Array) -> bool:
    if not closed.isdisjoint(batch.released().column("batch").to_pylist()):
        return True
    refused = batch.read(QUARANTINE_FILE, ["event_id", "reason"])
    repeated = refused.filter(pc.equal(refused.column("reason"), REPEATED)).column("event_id")
    return bool(pc.any(pc.is_in(repeated, value_set=gone)).as_py())


def _sources(batch: LakeBatch) -> list[str]:
    return list(batch.manifest.arguments["sources"])


def _items_of(batches: Sequence[Batch]) -> pa.Array:
    """Ids of all items of some deliveries."""
    columns = [batch.read(ITEMS_FILE).column("item_id") for batch in batches if batch.holds(ITEMS_FILE)]
    return pc.unique(pa.concat_arrays([_NO_IDS, *(chunk for column in columns for chunk in column.chunks)]))


def _without(ids: pa.Array, others: pa.Array) -> pa.Array:
    return ids.filter(pc.invert(pc.is_in(ids, value_set=others)))


def _count_named(batch: LakeBatch, items: pa.Array) -> int:
    """Events of a lake batch that name one of these items."""
    names = day_files(batch.manifest).values()
    return sum(_num_in(batch.read(name, ["item_id"]), items) for name in names)


def _count_in(batch: Batch, items: pa.Array) -> int:
    return sum(_num_in(batch.read(name).select(["item_id"]), items) for name in batch.day_files().values())


def _num_in(table: pa.Table, items: pa.Array) -> int:
    return int(pc.sum(pc.is_in(table.column("item_id"), value_set=items)).as_py() or 0)
