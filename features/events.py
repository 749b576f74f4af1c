"""Validate landed events and served traffic's reactions day by day; what holds goes into the lake, exactly once.

    reads   data/landing (batches of features/landing.py), data/traffic (day=YYYY-MM-DD/*.parquet, TRAFFIC)
    writes  snapshot.json (which lake batches and days this run may see), verdict.json, quarantine.parquet
    and     <lake>/<batch id>/: events/day=YYYY-MM-DD.parquet, verdict.json, quarantine.parquet, its own manifest
    run     python -m features.events --params recipes/cpu_tiny.yaml --landing data/landing --traffic data/traffic \\
                --lake data/events --as-of 2011-10-31 --out artifacts/events

The lake only grows. A partition (one day of one landed batch, or one traffic file) whose bytes the lake has judged is
never judged again; late partitions of an old day make a new lake batch of that day. Every row of a judged partition is
in the lake or in the quarantine, with the first reason against it. When a rule refuses, nothing of the run lands.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field
from tqdm import tqdm

from features.batches import ITEMS_FILE, QUARANTINE_FILE, cut_days, day_file, list_batches, read_verified
from features.expectations import events as expectations
from features.expectations.validation import Check, validate
from features.lake import ROWS_FILE, VERDICT_FILE, EventSnapshot, list_lake
from plumline import artifact
from plumline.artifact import Manifest
from plumline.errors import RefusedError
from plumline.schema import EVENTS, TRAFFIC, Contract, conform
from plumline.stage import Params, code_version, git_sha, main, say
from plumline.tables import read_parquet, write_parquet

__all__ = ["EventSnapshot", "EventsParams", "run"]

CHUNK_ROWS = 2_000_000
"""Rows that one Great Expectations run sees: about 1.5 GB of memory."""

TRAILING_DAYS = 7

QUARANTINE_SCHEMA = pa.schema([*EVENTS.schema, ("day", pa.date32()), ("source", pa.string()), ("reason", pa.string())])


class EventsParams(Params):
    """Which days are judged, and how bad a day may be."""

    horizon_days: int = Field(default=14, ge=0)
    """Days after as_of that are validated too, so that scoring can hold them out."""
    quarantine_limit: float = Field(default=0.05, ge=0, le=1)
    """Share of a day's rows that may be bad (repeated deliveries not counted) before the run is refused."""
    quarantine_slack: int = Field(default=10, ge=0)
    """Bad rows that a day may have whatever its size: one bad row of a day with three is no disaster."""
    volume_factor: float = Field(default=4.0, gt=1)
    """A single new day should have between 1/factor and factor times the mean rows of the 7 active days before it."""
    volume_strict: bool = False
    """Refuse such a day instead of noting it in the verdict."""


@dataclass(frozen=True)
class Partition:
    """A file of events that is judged as a whole. day: UTC day it was delivered as; name: unique and stable."""

    name: str
    day: date
    sha256: str
    path: Path
    manifest: Manifest | None
    kind: str

    def read(self) -> pa.Table:
        """Rows as QUARANTINE_SCHEMA; `reason` is null but for rows that were refused at the door already."""
        if self.kind == "traffic":
            rows = _reactions(read_parquet(self.path))
        else:
            assert self.manifest is not None
            folder = self.path.parent if self.kind == "refused" else self.path.parent.parent
            rows = read_verified(folder, self.manifest, self.path.relative_to(folder).as_posix())
        reasons = rows.column("reason") if self.kind == "refused" else pa.nulls(rows.num_rows, pa.string())
        return (
            conform(rows, _LENIENT)
            .append_column("day", pa.repeat(pa.scalar(self.day, pa.date32()), rows.num_rows))
            .append_column("source", pa.repeat(self.name, rows.num_rows))
            .append_column("reason", reasons)
        )


_LENIENT = Contract(EVENTS.name, EVENTS.schema, ())  # missing ids are for the expectations to find
_NO_IDS = pa.array([], pa.string())


def run(params: EventsParams, *, landing: Path, traffic: Path, lake: str, as_of: date, out: Path) -> None:
    """Bring the lake up to as_of + horizon_days and write the snapshot of it that later stages read.

    Raises RefusedError (nothing landed, too many bad rows, a day out of proportion) and leaves the lake as it was.
    """
    through = as_of + timedelta(days=params.horizon_days)
    judged = {source for batch in list_lake(Path(lake)) for source in batch.manifest.arguments["sources"].items()}
    partitions = [p for p in _partitions(landing, traffic) if p.day <= through]
    if not any(p.kind != "refused" for p in partitions):
        raise RefusedError(f"no event was landed up to {through}; land some with plumline init or plumline land")
    pending = [p for p in partitions if (p.name, p.sha256) not in judged]
    if pending:
        _judge(params, pending, known_items=_known_items(landing), lake=Path(lake))
    _write_snapshot(Path(lake), as_of, through, out)


# --- 1. WHAT IS THERE TO JUDGE ---


def _partitions(landing: Path, traffic: Path) -> Iterator[Partition]:
    """Every landed partition in the order of delivery, then the traffic by day."""
    for batch in list_batches(landing):
        days = batch.day_files()
        for day, name in days.items():
            yield Partition(
                f"{batch.id}/{name}", day, batch.sha256(name), batch.folder / name, batch.manifest, "landed"
            )
        if batch.holds(QUARANTINE_FILE) and days:
            path = batch.folder / QUARANTINE_FILE
            name = f"{batch.id}/{QUARANTINE_FILE}"
            yield Partition(name, min(days), batch.sha256(QUARANTINE_FILE), path, batch.manifest, "refused")
    for path in sorted(traffic.glob("day=*/*.parquet")):
        if not path.name.startswith("."):
            name = f"traffic/{path.parent.name}/{path.name}"
            day = date.fromisoformat(path.parent.name.removeprefix("day="))
            yield Partition(name, day, artifact.sha256_file(path), path, None, "traffic")


def _reactions(traffic: pa.Table) -> pa.Table:
    """Reactions of known users as EVENTS; answers ("served") and anonymous reactions are no events."""
    traffic = conform(traffic, TRAFFIC)
    is_reaction = pc.and_(pc.not_equal(traffic.column("action"), "served"), pc.is_valid(traffic.column("user_id")))
    has_item = pc.greater(pc.list_value_length(traffic.column("item_ids")), 0)
    rows = traffic.filter(pc.and_(is_reaction, has_item))
    items = [ids[0] for ids in rows.column("item_ids").to_pylist()]
    times = rows.column("timestamp").cast(pa.int64()).to_pylist()
    requests, actions = rows.column("request_id").to_pylist(), rows.column("action").to_pylist()
    parts = zip(requests, actions, items, times, strict=True)
    ids = ["t" + artifact.sha256_json(list(part))[:24] for part in parts]
    return pa.table(
        {
            "event_id": pa.array(ids, pa.string()),
            "user_id": rows.column("user_id"),
            "item_id": pa.array(items, pa.string()),
            "timestamp": rows.column("timestamp"),
            "action": rows.column("action"),
            "watch_ratio": pa.array(_watch_ratios(rows), pa.float64()),
            "watch_time_s": rows.column("watch_time_s"),
            "rating": rows.column("rating"),
            "surface": pa.repeat("plumline", rows.num_rows),
            "session_id": rows.column("request_id"),
        }
    )


def _watch_ratios(reactions: pa.Table) -> list[float | None]:
    """Until 0.2 a reaction's watch ratio stood where an answer has its scores."""
    told, scores = reactions.column("watch_ratio").to_pylist(), reactions.column("scores").to_pylist()
    return [one if one is not None or not old else old[0] for one, old in zip(told, scores, strict=True)]


def _known_items(landing: Path) -> pa.Array:
    tables = [batch.read(ITEMS_FILE).select(["item_id"]) for batch in list_batches(landing) if batch.holds(ITEMS_FILE)]
    return _NO_IDS if not tables else pc.unique(pa.concat_tables(tables).column("item_id"))


# --- 2. JUDGE AND LAND ---


def _judge(params: EventsParams, pending: Sequence[Partition], *, known_items: pa.Array, lake: Path) -> None:
    """Validate the pending partitions and land what holds as one lake batch. Raises RefusedError."""
    sources = {p.name: p.sha256 for p in pending}
    about: dict[str, Any] = {"params": params.model_dump(mode="json"), "code": code_version("features.events")}
    key = artifact.sha256_json({"stage": "lake", "sources": sources, **about})
    days = sorted({p.day.isoformat() for p in pending})
    arguments = {"sources": sources, "days": days}
    volume = _expected_volume(params, pending, lake)
    landed_ids = [batch.event_ids() for batch in list_lake(lake)]
    refused: list[pa.Table] = []
    verdict: list[dict[str, Any]] = []
    rows_of_days: dict[str, int] = {}
    tally = _Tally()
    say(f"events: validating {len(days)} days, {days[0]} to {days[-1]}")
    with artifact.writing(
        lake / key[:16], stage="lake", key=key, arguments=arguments, git_sha=git_sha(), **about
    ) as scratch:
        for chunk in _chunks(pending):
            at_door = pc.is_valid(chunk.column("reason"))
            refused.append(chunk.filter(at_door))
            rows = chunk.filter(pc.invert(at_door)).combine_chunks()
            if not rows.num_rows:
                continue
            framed = expectations.frame(
                rows, known_items=known_items, landed_ids=pa.concat_arrays([_NO_IDS, *landed_ids])
            )
            found = validate(framed, "events", volume)
            reasons = found.reasons(rows.num_rows, "critical", "warning")
            tally.add(rows, counted=found.reasons(rows.num_rows, "critical") != "")
            verdict += [check.describe() for check in found.checks]
            _refuse_table_checks(params, found.checks, days[0], volume)
            reason_column = pa.array(reasons, pa.string(), mask=reasons == "")
            rows = rows.set_column(rows.column_names.index("reason"), "reason", reason_column)
            good = rows.filter(pa.array(reasons == ""))
            refused.append(rows.filter(pa.array(reasons != "")))
            landed_ids.append(good.column("event_id").combine_chunks())
            rows_of_days |= _write_days(scratch, good)
        verdict.append(tally.check(params))
        artifact.write_json(scratch / VERDICT_FILE, verdict)
        artifact.write_json(scratch / ROWS_FILE, rows_of_days)
        order = [("day", "ascending"), ("timestamp", "ascending"), ("event_id", "ascending"), ("source", "ascending")]
        write_parquet(scratch / QUARANTINE_FILE, pa.concat_tables(refused).sort_by(order))


def _chunks(pending: Sequence[Partition]) -> Iterator[pa.Table]:
    """Partitions by day (all of a day in one chunk), at least one day and about CHUNK_ROWS rows at a time."""
    by_day: dict[date, list[Partition]] = {}
    for partition in pending:
        by_day.setdefault(partition.day, []).append(partition)
    tables: list[pa.Table] = []
    for day in tqdm(sorted(by_day), desc="read", unit="day", disable=len(by_day) < 50):
        tables += [partition.read() for partition in by_day[day]]
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
    first = min(days)
    counts: dict[date, int] = {}
    for batch in list_lake(lake) if len(days) == 1 else []:
        for day, num_rows in batch.rows().items():
            if day < first:
                counts[day] = counts.get(day, 0) + num_rows
    trailing = [counts[day] for day in sorted(counts)[-TRAILING_DAYS:]]
    if len(trailing) < TRAILING_DAYS:
        return {"rows_low": None, "rows_high": None}
    mean = sum(trailing) / len(trailing)
    return {"rows_low": int(mean / params.volume_factor), "rows_high": int(mean * params.volume_factor)}


# --- 3. RULES THAT REFUSE ---


class _Tally:
    """Rows and bad rows a day, over all chunks."""

    def __init__(self) -> None:
        self.rows: dict[date, int] = {}
        self.bad: dict[date, int] = {}

    def add(self, rows: pa.Table, *, counted: np.ndarray) -> None:
        for into, days in ((self.rows, rows), (self.bad, rows.filter(pa.array(counted)))):
            for entry in pc.value_counts(days.column("day").combine_chunks()).to_pylist():
                into[entry["values"]] = into.get(entry["values"], 0) + entry["counts"]

    def check(self, params: EventsParams) -> dict[str, Any]:
        """The verdict's last line. Raises RefusedError for the worst day, or the sum, above the limit."""
        total, bad = sum(self.rows.values()), sum(self.bad.values())
        over = {day: n for day, n in self.bad.items() if n > _allowed(params, self.rows[day])}
        if over or bad > _allowed(params, total):
            worst = max(over or self.bad, key=lambda day: self.bad[day] / self.rows[day])
            raise RefusedError(
                f"events: {worst}: {self.bad[worst]} of {self.rows[worst]} rows are bad ({len(over)} such days, "
                f"{bad} of {total} rows in all), allowed are {params.quarantine_limit:.1%} and "
                f"{params.quarantine_slack} rows a day; mend the source or raise events.quarantine_limit"
            )
        share = bad / total if total else 0.0
        return Check("too many bad rows", "quarantine_share", "critical", True, share, bad).describe()


def _allowed(params: EventsParams, rows: int) -> float:
    return max(params.quarantine_slack, params.quarantine_limit * rows)


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
    refused = [QUARANTINE_SCHEMA.empty_table()]
    for batch in list_lake(lake):
        if not any(day <= through.isoformat() for day in batch.manifest.arguments["days"]):
            continue
        rows = {day.isoformat(): n for day, n in batch.rows().items() if day <= through}
        entry = {"id": batch.id, "digest": batch.manifest.digest, "days": sorted(rows), "rows": sum(rows.values())}
        batches.append(entry)
        verdict += [{"batch": batch.id, **check} for check in batch.verdict()]
        bad = batch.read(QUARANTINE_FILE)
        refused.append(bad.filter(pc.less_equal(bad.column("day"), pa.scalar(through, pa.date32()))))
    batches.sort(key=lambda entry: (entry["days"][:1], entry["id"]))
    snapshot = {"lake": str(lake), "as_of": as_of.isoformat(), "through": through.isoformat(), "batches": batches}
    artifact.write_json(out / "snapshot.json", snapshot)
    artifact.write_json(out / "verdict.json", verdict)
    write_parquet(out / QUARANTINE_FILE, pa.concat_tables(refused))


if __name__ == "__main__":
    main(run, section="events")
