"""Validate landed events and served traffic's reactions day by day; what holds goes into the lake, exactly once.

    reads   data/landing (batches of features/landing.py), data/traffic (day=YYYY-MM-DD/*.parquet, TRAFFIC)
    writes  snapshot.json (which lake batches and days this run may see), verdict.json, quarantine.parquet
    and     <lake>/<batch id>/: events/day=YYYY-MM-DD.parquet, verdict.json, quarantine.parquet, its own manifest
    run     python -m features.events --params recipes/cpu_tiny.yaml --landing data/landing --traffic data/traffic \\
                --lake data/events --as-of 2011-10-31 --out artifacts/events

A partition (one day of one landed batch, or one traffic file) whose bytes the lake has judged is not judged again, but
where a delivery was taken back (features/withdrawal.py); late partitions of an old day make a new lake batch of that
day. Every row of a judged partition is in the lake or in the quarantine, with the first reason against it, and comes
back from there when the reason is gone (features/requeue.py). When a rule refuses, nothing of the run lands. Rules
refuse landed days only: reactions that cannot be used are put aside and said.
"""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field
from tqdm import tqdm

from features.batches import ITEMS_FILE, QUARANTINE_FILE, cut_days, day_file, list_batches
from features.expectations import events as expectations
from features.expectations.validation import Check, validate
from features.lake import (
    PLACE_SCHEMA,
    QUARANTINE_SCHEMA,
    RELEASED_FILE,
    ROWS_FILE,
    VERDICT_FILE,
    EventSnapshot,
    list_lake,
    read_waiting,
)
from features.partitions import AGAIN, REFUSED, TRAFFIC_FILE, Partition, again_by_day, keep_rows, list_partitions
from features.requeue import JUDGED_BY, Mark, due, of_no_batch, on_their_days, read_anew, read_mark
from features.tally import Limits, Tally
from features.withdrawal import finish
from plumline import artifact
from plumline.errors import RefusedError
from plumline.schema import EVENTS
from plumline.stage import Params, code_version, git_sha, main, say
from plumline.tables import write_parquet

__all__ = ["EventSnapshot", "EventsParams", "run"]

CHUNK_ROWS = 2_000_000
"""Rows that one Great Expectations run sees: about 1.5 GB of memory."""

TRAILING_DAYS = 7


class EventsParams(Params):
    """Which days are judged, and how bad a day may be."""

    horizon_days: int = Field(default=14, ge=0)
    """Days after as_of that are validated too, so that scoring can hold them out."""
    quarantine_limit: float = Field(default=0.05, ge=0, le=1)
    """Share of a day's landed rows that may be bad (repeated deliveries not counted) before the run is refused."""
    quarantine_slack: int = Field(default=10, ge=0)
    """Bad rows that a day may have whatever its size: one bad row of a day with three is no disaster."""
    volume_factor: float = Field(default=4.0, gt=1)
    """A single new day should have between 1/factor and factor times the mean rows of the 7 active days before it."""
    volume_strict: bool = False
    """Refuse such a day instead of noting it in the verdict."""


_NO_IDS = pa.array([], pa.string())
_PLACES = [(name, "ascending") for name in PLACE_SCHEMA.names]


def run(params: EventsParams, *, landing: Path, traffic: Path, lake: str, as_of: date, out: Path) -> None:
    """Bring the lake up to as_of + horizon_days and write the snapshot of it that later stages read.

    Raises RefusedError (nothing landed, too many bad rows, a day out of proportion) and leaves the lake as it was.
    """
    if finish(landing, Path(lake)):
        say("events: a delivery was taken back, and its process killed; that is finished now")
    through = as_of + timedelta(days=params.horizon_days)
    partitions = list(list_partitions(landing, traffic))
    if not any(p.kind != REFUSED and p.day <= through for p in partitions):
        raise RefusedError(f"no event was landed up to {through}; land some with plumline init or plumline land")
    known_items, mark = _known_items(landing), read_mark(landing)
    pending, released = _to_judge(partitions, Path(lake), through=through, known_items=known_items, mark=mark)
    if pending or released.num_rows:
        _judge(params, pending, released, known_items=known_items, lake=Path(lake), mark=mark)
    _write_snapshot(Path(lake), as_of, through, out)


# --- 1. WHAT IS THERE TO JUDGE ---


def _to_judge(
    partitions: Sequence[Partition], lake: Path, *, through: date, known_items: pa.Array, mark: Mark
) -> tuple[list[Partition], pa.Table]:
    """What is judged now, rows that were put aside first; and where those lay (PLACE_SCHEMA)."""
    batches = list_lake(lake)
    judged = {source for batch in batches for source in batch.manifest.arguments["sources"].items()}
    pending = [p for p in partitions if p.day <= through and (p.name, p.sha256) not in judged]
    last_day = max(p.day for p in partitions if p.kind != REFUSED)

    def is_due(waiting: pa.Table) -> pa.Array:
        return due(waiting, known_items=known_items, through=through, last_day=last_day, mark=mark, batches=batches)

    waiting = read_waiting(batches, JUDGED_BY)  # of what came twice there may be millions
    which = is_due(waiting)
    ready = [read_waiting(batches).filter(which)] if pc.any(which).as_py() else []
    unreadable = waiting.filter(read_anew(waiting, [p.name for p in pending])).select(PLACE_SCHEMA.names)
    released = pa.concat_tables([*(table.select(PLACE_SCHEMA.names) for table in ready), unreadable])
    for place, partition in enumerate(pending):
        if partition.kind == REFUSED:  # it lay in the future when it came, and perhaps does so no more
            rows = of_no_batch(partition.read())
            now = is_due(rows)
            ready.append(rows.filter(now))
            pending[place] = keep_rows(rows.filter(pc.invert(now)), partition)
    again = on_their_days(pa.concat_tables(ready)) if ready else QUARANTINE_SCHEMA.empty_table()
    return [*again_by_day(again), *pending], released


def _known_items(landing: Path) -> pa.Array:
    tables = [batch.read(ITEMS_FILE).select(["item_id"]) for batch in list_batches(landing) if batch.holds(ITEMS_FILE)]
    return _NO_IDS if not tables else pc.unique(pa.concat_tables(tables).column("item_id"))


# --- 2. JUDGE AND LAND ---


def _judge(
    params: EventsParams,
    pending: Sequence[Partition],
    released: pa.Table,
    *,
    known_items: pa.Array,
    lake: Path,
    mark: Mark,
) -> None:
    """Validate the pending partitions and land what holds as one lake batch. Raises RefusedError.

    released: PLACE_SCHEMA, where the rows lay that are judged again.
    """
    sources = {p.name: p.sha256 for p in pending if p.kind != AGAIN}
    about: dict[str, Any] = {"params": params.model_dump(mode="json"), "code": code_version("features.events")}
    places = {"released": released.sort_by(_PLACES).to_pylist()} if released.num_rows else {}
    key = artifact.sha256_json({"stage": "lake", "sources": sources, **places, **about})
    days = sorted({p.day.isoformat() for p in pending})
    arguments: dict[str, Any] = {"sources": sources, "days": days}
    arguments |= {"requeue": mark.number} if mark.number else {}
    volume = _expected_volume(params, pending, lake)
    landed_ids = [batch.event_ids() for batch in list_lake(lake)]
    refused: list[pa.Table] = [QUARANTINE_SCHEMA.empty_table()]
    verdict: list[dict[str, Any]] = []
    rows_of_days: dict[str, int] = {}
    tally = Tally()
    if days:
        say(f"events: validating {len(days)} days, {days[0]} to {days[-1]}")
    with artifact.writing(
        lake / key[:16], stage="lake", key=key, arguments=arguments, git_sha=git_sha(), **about
    ) as scratch:
        for chunk in _chunks(pending):
            at_door = pc.is_valid(chunk.column("reason"))
            aside = chunk.filter(at_door)
            refused.append(aside.select(QUARANTINE_SCHEMA.names))
            unfit = aside.filter(pc.equal(aside.column("kind"), TRAFFIC_FILE))
            tally.add(unfit, unfit.column("reason").to_numpy())
            rows = chunk.filter(pc.invert(at_door)).combine_chunks()
            if not rows.num_rows:
                continue
            framed = expectations.frame(
                rows, known_items=known_items, landed_ids=pa.concat_arrays([_NO_IDS, *landed_ids])
            )
            found = validate(framed, "events", volume)
            reasons = found.reasons(rows.num_rows, "critical", "warning")
            tally.add(rows, found.reasons(rows.num_rows, "critical"))
            verdict += [check.describe() for check in found.checks]
            _refuse_table_checks(params, found.checks, days[0], volume)
            reason_column = pa.array(reasons, pa.string(), mask=reasons == "")
            rows = rows.set_column(rows.column_names.index("reason"), "reason", reason_column)
            rows = rows.select(QUARANTINE_SCHEMA.names)
            good = rows.filter(pa.array(reasons == ""))
            refused.append(rows.filter(pa.array(reasons != "")))
            landed_ids.append(good.column("event_id").combine_chunks())
            rows_of_days |= _write_days(scratch, good)
        verdict += tally.check(Limits(params.quarantine_limit, params.quarantine_slack))
        artifact.write_json(scratch / VERDICT_FILE, verdict)
        artifact.write_json(scratch / ROWS_FILE, rows_of_days)
        order = [("day", "ascending"), ("timestamp", "ascending"), ("event_id", "ascending"), ("source", "ascending")]
        write_parquet(scratch / QUARANTINE_FILE, pa.concat_tables(refused).sort_by(order))
        if released.num_rows:
            write_parquet(scratch / RELEASED_FILE, released.sort_by(_PLACES))
    for line in tally.lines():
        say(line)


def _chunks(pending: Sequence[Partition]) -> Iterator[pa.Table]:
    """Partitions by day (all of a day in one chunk), at least one day and about CHUNK_ROWS rows at a time."""
    by_day: dict[date, list[Partition]] = {}
    for partition in pending:
        by_day.setdefault(partition.day, []).append(partition)
    tables: list[pa.Table] = []
    for day in tqdm(sorted(by_day), desc="read", unit="day", disable=len(by_day) < 50):
        for partition in by_day[day]:
            rows = partition.read()
            tables.append(rows.append_column("kind", pa.repeat(partition.kind, rows.num_rows)))
        if sum(table.num_rows for table in tables) >= CHUNK_ROWS:
            yield pa.concat_tables(tables)
            tables = []
    if tables:
        yield pa.concat_tables(tables)


def _write_days(scratch: Path, good: pa.Table) -> dict[str, int]:
    """Write one file a day, sorted; day → rows."""
    good = good.sort_by([("timestamp", "ascending"), ("event_id", "ascending")])
    rows = {}
    for day, part in cut_days(good):
        write_parquet(scratch / day_file(day), part.select(EVENTS.schema.names))
        rows[day.isoformat()] = part.num_rows
    return rows


def _expected_volume(params: EventsParams, pending: Sequence[Partition], lake: Path) -> dict[str, float | None]:
    """Bounds of the row count, if one single new day is judged and 7 active days lie before it in the lake."""
    days = {p.day for p in pending}
    first = min(days, default=date.min)
    counts: dict[date, int] = {}
    for batch in list_lake(lake) if len(days) == 1 and not any(p.kind == AGAIN for p in pending) else []:
        for day, num_rows in batch.rows().items():
            if day < first:
                counts[day] = counts.get(day, 0) + num_rows
    trailing = [counts[day] for day in sorted(counts)[-TRAILING_DAYS:]]
    if len(trailing) < TRAILING_DAYS:
        return {"rows_low": None, "rows_high": None}
    mean = sum(trailing) / len(trailing)
    return {"rows_low": int(mean / params.volume_factor), "rows_high": int(mean * params.volume_factor)}


# --- 3. RULES THAT REFUSE ---


def _refuse_table_checks(params: EventsParams, checks: Sequence[Check], day: str, volume: dict) -> None:
    for check in checks:
        if check.success or check.num_bad or not check.expectation.startswith("expect_table_"):
            continue
        bounds = f"expected {volume['rows_low']} to {volume['rows_high']}"
        text = f"events: {day}: {check.reason}: {check.observed:.0f} rows, {bounds}"
        if check.severity == "critical" or params.volume_strict:
            raise RefusedError(f"{text}; look at the source, or set events.volume_factor or events.volume_strict")
        say(text)


# --- 4. THE SNAPSHOT AND ITS READER ---


def _write_snapshot(lake: Path, as_of: date, through: date, out: Path) -> None:
    batches: list[dict[str, Any]] = []
    verdict: list[dict[str, Any]] = []
    lake_batches = list_lake(lake)
    for batch in lake_batches:
        if not any(day <= through.isoformat() for day in batch.manifest.arguments["days"]):
            continue
        rows = {day.isoformat(): n for day, n in batch.rows().items() if day <= through}
        entry = {"id": batch.id, "digest": batch.manifest.digest, "days": sorted(rows), "rows": sum(rows.values())}
        batches.append(entry)
        verdict += [{"batch": batch.id, **check} for check in batch.verdict()]
    waiting = read_waiting(lake_batches)
    waiting = waiting.filter(pc.less_equal(waiting.column("day"), pa.scalar(through, pa.date32())))
    batches.sort(key=lambda entry: (entry["days"][:1], entry["id"]))
    snapshot = {"lake": str(lake), "as_of": as_of.isoformat(), "through": through.isoformat(), "batches": batches}
    artifact.write_json(out / "snapshot.json", snapshot)
    artifact.write_json(out / "verdict.json", verdict)
    write_parquet(out / QUARANTINE_FILE, waiting.select(QUARANTINE_SCHEMA.names))


if __name__ == "__main__":
    main(run, section="events")
