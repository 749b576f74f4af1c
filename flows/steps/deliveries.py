"""`plumline deliveries` and `plumline requeue`: what has landed, and what of it is put aside."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.steps.unlanding import finish_withdrawal, lake_of, landing_of

if TYPE_CHECKING:
    from features.batches import Batch


def list_deliveries(home: Path) -> list[dict[str, Any]]:
    """Every delivery, oldest first: order, id, source, by, landed_at, rows, days, put_aside (reason → rows)."""
    from features.batches import QUARANTINE_FILE, list_batches

    finish_withdrawal(home)
    aside: Counter[tuple[str, str]] = Counter()
    for source, reason, number in _waiting(home):
        aside[source.partition("/")[0], reason] += number
    found = []
    for batch in list_batches(landing_of(home)):
        reasons = {reason: number for (of, reason), number in sorted(aside.items()) if of == batch.id}
        if batch.holds(QUARANTINE_FILE) and not _is_judged(home, batch):
            reasons["timestamp in the future"] = batch.num_rows(QUARANTINE_FILE)
        days = sorted(batch.day_files())
        found.append(
            {
                "order": batch.order,
                "id": batch.id,
                "source": batch.source,
                "by": "init" if batch.of_init else "land",
                "landed_at": batch.landed_at.isoformat(),
                "rows": batch.rows(),
                "days": {"first": str(days[0]), "last": str(days[-1]), "days": len(days)} if days else None,
                "put_aside": reasons,
            }
        )
    return found


def deliveries_table(deliveries: Sequence[dict[str, Any]]) -> list[str]:
    """Lines for people."""
    if not deliveries:
        return ["nothing has landed; plumline init --items F --events F"]
    rows = [["", "delivery", "landed (UTC)", "events", "items", "users", "days", "put aside", "files"]]
    for one in deliveries:
        days = one["days"]
        rows.append(
            [
                str(one["order"]),
                one["id"],
                one["landed_at"][:16].replace("T", " "),
                *(str(one["rows"].get(noun, "")) for noun in ("events", "items", "users")),
                f"{days['first']} to {days['last']}" if days else "",
                str(sum(one["put_aside"].values()) or ""),
                one["source"],
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = {0, 3, 4, 5, 7}
    return [
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def requeue(home: Path) -> dict[str, int]:
    """Have every row that is put aside judged again by the next run; reason → rows that wait."""
    from features.requeue import write_mark

    finish_withdrawal(home)
    waiting: Counter[str] = Counter()
    for _, reason, number in _waiting(home):
        waiting[reason] += number
    if waiting:
        write_mark(landing_of(home), datetime.now(UTC))
    return dict(waiting.most_common())


def _waiting(home: Path) -> Iterator[tuple[str, str, int]]:
    """(source, reason, rows) of what is put aside in the lake."""
    from features.lake import list_lake, read_waiting

    rows = read_waiting(list_lake(lake_of(home)), ["source", "reason"])
    for row in rows.group_by(["source", "reason"]).aggregate([([], "count_all")]).to_pylist():
        yield row["source"], row["reason"], row["count_all"]


def _is_judged(home: Path, batch: "Batch") -> bool:
    from features.batches import QUARANTINE_FILE
    from features.lake import list_lake

    name = f"{batch.id}/{QUARANTINE_FILE}"
    return any(name in one.manifest.arguments["sources"] for one in list_lake(lake_of(home)))
