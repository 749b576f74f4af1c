"""`plumline unland` and `plumline land --replace`: a delivery is taken back, and what hangs on it is told first."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.steps.registry import Registry
from flows.steps.runs import read_run
from flows.steps.workspace import workspace_lock
from plumline import artifact
from plumline.stage import say
from serving.pointers import read_pointer

if TYPE_CHECKING:
    from features.batches import Batch
    from features.landing import Arrival
    from features.withdrawal import Plan


def landing_of(home: Path) -> Path:
    """Where deliveries lie."""
    return home / "data" / "landing"


def lake_of(home: Path) -> Path:
    """Where judged events lie."""
    return home / "data" / "events"


def finish_withdrawal(home: Path) -> None:
    """Carry out what a killed `unland` or `land --replace` had decided upon."""
    if (landing_of(home) / "withdrawal.json").exists():
        from features.withdrawal import finish

        if finish(landing_of(home), lake_of(home)):
            say("a delivery was being taken back when its command was killed; that is finished now")


# --- taking back ---


@dataclass(frozen=True)
class Unlanded:
    """What a withdrawal touches, as it was before.

    deliveries: their ids; described: the same in words. days_gone: UTC days that then have no event. judged_again:
    events of the lake, of so many lake_batches. items_gone: items that nobody else describes; events_put_aside: events
    of other deliveries that name them. releases: ids of those made with one of the deliveries. done: not a dry run.
    """

    deliveries: tuple[str, ...]
    described: tuple[str, ...]
    days_gone: tuple[str, ...]
    lake_batches: int
    judged_again: int
    items_gone: int
    events_put_aside: int
    releases: tuple[str, ...]
    champion: str
    done: bool

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What goes and what depends on it, a line each."""
        found = list(self.described)
        if self.days_gone:
            found.append(f"days without an event then: {len(self.days_gone)}, {_some(self.days_gone)}")
        if self.items_gone:
            waits = f"; {number_of(self.events_put_aside, 'events')} of other deliveries will wait for them"
            found.append(f"items that nobody else describes: {self.items_gone}{waits if self.events_put_aside else ''}")
        if self.judged_again:
            batches = "batch" if self.lake_batches == 1 else "batches"
            judged = number_of(self.judged_again, "events")
            found.append(f"judged again by the next run: {judged} ({self.lake_batches} {batches} of the lake)")
        if self.releases:
            answers = f"; {self.champion} answers" if self.champion in self.releases else ""
            found.append(f"releases made with it, which stay as they are: {_some(self.releases)}{answers}")
        return [*found, "taken back" if self.done else "nothing was changed (--dry-run)"]


def unland(home: Path, name: str, *, dry_run: bool = False) -> Unlanded:
    """Take a delivery back. name: its id, its beginning, or its number. Raises InputError naming those there are."""
    from features.batches import find_batch, landing_lock
    from features.withdrawal import plan_withdrawal, withdraw

    finish_withdrawal(home)
    landing, lake = landing_of(home), lake_of(home)
    batch = find_batch(landing, name)
    if dry_run:
        return _told(home, plan_withdrawal([batch], landing=landing, lake=lake), done=False)
    with workspace_lock(home), landing_lock(landing):
        plan = plan_withdrawal([batch], landing=landing, lake=lake)
        told = _told(home, plan, done=True)
        withdraw(plan, landing=landing, lake=lake, now=datetime.now(UTC))
    return told


def put_in_place(
    home: Path,
    old: "Sequence[Batch]",
    arrival: "Arrival",
    *,
    source: str,
    by: str,
    now: datetime,
    about: dict[str, Any] | None = None,
) -> "Batch":
    """Land what has arrived in the place of deliveries: both or neither, also for a process that is killed.

    It takes the oldest one's number, so that a later delivery is still believed over it.
    """
    import pyarrow as pa

    from features.batches import ITEMS_FILE, find_batch, landing_lock
    from features.landing import seal
    from features.withdrawal import ARRIVING, plan_withdrawal, withdraw
    from plumline.tables import read_parquet

    landing, lake = landing_of(home), lake_of(home)
    with workspace_lock(home), landing_lock(landing):
        items = pa.array([], pa.string())
        if ITEMS_FILE in arrival.files:
            items = read_parquet(arrival.folder / ITEMS_FILE, ["item_id"]).column("item_id").combine_chunks()
        plan = plan_withdrawal(old, landing=landing, lake=lake, arriving=items, new_days=list(arrival.days))
        told = _told(home, plan, done=True)
        for line in told.lines()[len(told.described) : -1]:
            say(line)
        order = min(batch.order for batch in old)
        seal(arrival, landing / ARRIVING / arrival.id, order=order, source=source, now=now, by=by, about=about)
        withdraw(plan, landing=landing, lake=lake, now=now, arriving=arrival.id)
    return find_batch(landing, arrival.id)


def _told(home: Path, plan: "Plan", *, done: bool) -> Unlanded:
    releases = {release for batch in plan.batches for release in releases_with(home, batch)}
    pointer = read_pointer(home / "releases")
    return Unlanded(
        deliveries=tuple(batch.id for batch in plan.batches),
        described=tuple(f"{batch}: {_holds(batch)}" for batch in plan.batches),
        days_gone=tuple(map(str, plan.days_gone)),
        lake_batches=len(plan.lake),
        judged_again=sum(sum(batch.rows().values()) for batch in plan.lake),
        items_gone=plan.num_items_gone,
        events_put_aside=plan.num_events_put_aside,
        releases=tuple(sorted(releases)),
        champion=pointer.release_id if pointer else "",
        done=done,
    )


def releases_with(home: Path, batch: "Batch") -> list[str]:
    """Releases that were made when the delivery had landed, and that know its days.

    A release of before this was noted counts if it was sealed later.
    """
    registry, days = Registry(home), batch.day_files()
    found = []
    for entry in registry.entries():
        knows = not days or entry.as_of >= min(days).isoformat()
        noted = read_run(home, entry.release_id).get("deliveries")
        if noted is None:
            sealed = registry.sealed(entry.release_id) / artifact.MANIFEST
            made = sealed.exists() and datetime.fromtimestamp(sealed.stat().st_mtime, UTC) >= batch.landed_at
        else:
            made = batch.id in noted
        if made and knows:
            found.append(entry.release_id)
    return found


def _holds(batch: "Batch") -> str:
    """What a delivery holds, in words."""
    days = sorted(batch.day_files())
    span = f"{days[0]} to {days[-1]}" if len(days) > 1 else "".join(map(str, days))
    of_days = f" of {number_of(len(days), 'days')}, {span}" if days else ""
    return ", ".join(
        f"{number_of(number, noun)}{of_days if noun == 'events' else ''}" for noun, number in batch.rows().items()
    )


def number_of(number: int, noun: str) -> str:
    """A number of things, the noun in its plural: "1 event", "1,200 events"."""
    return f"{number:,} {noun.removesuffix('s') if number == 1 else noun}"


def _some(words: Sequence[str], number: int = 5) -> str:
    more = f" and {len(words) - number} more" if len(words) > number else ""
    return ", ".join(words[:number]) + more
