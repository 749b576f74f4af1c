"""`plumline init` and `plumline land`: files from outside → data/landing, told in one line a finding.

A refused one leaves nothing behind. What `init` landed may be landed otherwise by another `init` until a release was
made of it; after that deliveries are added, taken back or put in the place of others, each by its command.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.steps.calendar import landed_days
from flows.steps.graph import read_params
from flows.steps.registry import Registry
from flows.steps.unlanding import finish_withdrawal, landing_of, number_of, put_in_place
from plumline import artifact
from plumline.errors import InputError, RefusedError
from plumline.stage import read_recipe, say

if TYPE_CHECKING:
    import pyarrow as pa

    from features.batches import Batch
    from features.intake.options import Options
    from features.landing import Arrival

    Given = Mapping[str, Sequence[Options]]  # noun → options, one entry a kind of file


@dataclass(frozen=True)
class Landed:
    """What came of a delivery.

    already: it was there. arrival: None where the files were known without being read. notes: what was decided while
    they were. replaced: deliveries in whose place it is. as_of, recipe: of an init.
    """

    batch: "Batch"
    already: bool
    arrival: "Arrival | None" = None
    notes: tuple[str, ...] = ()
    replaced: "tuple[Batch, ...]" = ()
    as_of: str = ""
    recipe: str = ""

    def to_json(self) -> dict[str, Any]:
        """The summary of `--json`."""
        days = list(self.batch.day_files())
        found: dict[str, Any] = {
            "delivery": self.batch.id,
            "order": self.batch.order,
            "source": self.batch.source,
            "landed_at": self.batch.landed_at.isoformat(),
            "already_landed": self.already,
            "replaced": [batch.id for batch in self.replaced],
            "rows": self.batch.rows(),
            "days": {"first": str(days[0]), "last": str(days[-1]), "days": len(days)} if days else None,
            "notes": list(self.notes),
        }
        if self.arrival is not None:
            found |= {
                "folded": self.arrival.folded,
                "future": self.arrival.num_late,
                "unknown_items": self.arrival.num_unknown,
                "problems": [str(problem) for problem in self.arrival.problems],
            }
        return found | ({"as_of": self.as_of, "recipe": self.recipe} if self.recipe else {})

    def tell(self) -> None:
        """Say what a person should know of it, a line each."""
        if self.already:
            say(f"already landed: {self.batch}; nothing is landed again")
            return
        for noun, number in (self.arrival.folded if self.arrival else {}).items():
            if number:
                rows = number_of(number, "rows") + (" repeats" if number == 1 else " repeat")
                say(f"{noun}: {rows} another one in every column: counted once")
        for batch in self.replaced:
            say(f"in the place of {batch}")
        told = ", ".join(number_of(number, noun) for noun, number in self.batch.rows().items())
        say(f"landed as {self.batch.id}: {told}")


def init_home(home: Path, given: "Given", *, recipe: str, as_of: str | None = None) -> Landed:
    """Check files, land them, and write recipe and as_of into params.yaml. The same delivery again lands nothing.

    as_of: None takes a day that leaves enough for scoring (flows/steps/holdout.py); where a release was made it stays.
    What another init landed is replaced while no release was made of it. Raises InputError after one line a problem,
    RefusedError where other data has landed already; nothing is changed then.
    """
    from features.batches import list_batches

    read_params(home)
    recipe_path = Path("recipes") / f"{recipe}.yaml"
    read_recipe(home / recipe_path)
    finish_withdrawal(home)
    there = list_batches(landing_of(home))
    is_made = bool(there) and bool(Registry(home).entries())
    with _arriving(home, given, without=[batch.id for batch in there if batch.of_init]) as arriving:
        landed = _of_init(home, arriving, there, is_made, home / recipe_path)
    day = as_of or landed.as_of or (None if is_made else _holdout(home, list_batches(landing_of(home)), recipe_path))
    landed.tell()
    _write_params(home, {"recipe": recipe_path.as_posix(), **({"as_of": day} if day else {})})
    days, day = landed_days(home), read_params(home)["as_of"]
    say(f"{len(days)} days have landed, {days[0]} to {days[-1]}; recipe {recipe}, as_of {day} (params.yaml)")
    say(f"next: plumline {'daily' if is_made else 'bootstrap'}")
    return replace(landed, as_of=day, recipe=recipe)


def land_more(home: Path, given: "Given", *, instead_of: str | None = None) -> Landed:
    """Land further files beside what is there.

    instead_of: a delivery that goes when this one comes: its id, its beginning, or its number. Raises InputError after
    one line a problem, or naming the deliveries there are.
    """
    from features.batches import find_batch, list_batches

    finish_withdrawal(home)
    old = (find_batch(landing_of(home), instead_of),) if instead_of is not None else ()
    with _arriving(home, given, without=[batch.id for batch in old]) as arriving:
        same = next((batch for batch in list_batches(landing_of(home)) if batch.id == arriving.arrival.id), None)
        if same is not None and old and same.id != old[0].id:
            raise RefusedError(
                f"{same} is this very delivery; plumline unland {old[0].id} takes the other one back, {old[0]}"
            )
        if same is not None:
            landed = Landed(same, True, arriving.arrival, arriving.notes)
        else:
            landed = arriving.land(home, old, by="init" if old and old[0].of_init else "land")
    landed.tell()
    days = landed_days(home)
    say(f"{len(days)} days have landed, the last is {days[-1] if days else 'none'}; next: plumline daily")
    return landed


@dataclass(frozen=True)
class _Arriving:
    """A delivery that was read and looked at, and is good to land."""

    arrival: "Arrival"
    notes: tuple[str, ...]
    source: str
    now: datetime
    about: dict[str, Any]

    def land(self, home: Path, old: "Sequence[Batch]", *, by: str) -> Landed:
        """Land it, in the place of other deliveries if there are any."""
        from features.landing import publish

        told: dict[str, Any] = {"source": self.source, "by": by, "now": self.now, "about": self.about}
        if old:
            batch = put_in_place(home, old, self.arrival, **told)
        else:
            batch = publish(self.arrival, landing=landing_of(home), **told)
        (home / "data" / "traffic").mkdir(parents=True, exist_ok=True)
        return Landed(batch, False, self.arrival, self.notes, tuple(old))


@contextmanager
def _arriving(home: Path, given: "Given", without: Sequence[str]) -> Iterator[_Arriving]:
    """Read files and look at them. without: ids of deliveries in whose place they come, if they come."""
    from features.intake.delivery import read_delivery
    from features.intake.facts import gather_facts
    from features.landing import arrive, known_items, scratch_folder

    now, landing = datetime.now(UTC), landing_of(home)
    with scratch_folder(landing) as scratch:
        for name in ("read", "batch"):
            (scratch / name).mkdir()
        delivery = read_delivery(
            given,
            facts=gather_facts(landing, without),
            scratch=scratch / "read",
            now=now,
            stdin=sys.stdin.buffer if _asks_stdin(given) else None,
            tell=lambda finding: say(f"refused: {finding}" if finding.fatal else str(finding)),
        )
        arrival = arrive(
            delivery.items,
            delivery.placed_events() if delivery.events is not None else None,
            delivery.users,
            scratch=scratch / "batch",
            now=now,
            known=known_items(landing, without),
        )
        notes = tuple(map(str, delivery.findings))
        for line in notes:
            say(line)
        for problem in arrival.problems:
            say(f"{'refused' if problem.fatal else 'warning'}: {problem}")
        if arrival.fatal:
            number = len(arrival.fatal)
            said = f"{number} problems" if number > 1 else "1 problem"
            raise InputError(f"nothing was landed: {said} above must be mended first")
        about = {"options": delivery.options, "facts": delivery.seen.to_json()}
        yield _Arriving(arrival, notes, delivery.sources, now, about)


def _asks_stdin(given: "Given") -> bool:
    return any("-" in options.files for kinds in given.values() for options in kinds)


def _of_init(home: Path, arriving: _Arriving, there: "Sequence[Batch]", is_made: bool, recipe: Path) -> Landed:
    """Land what an init brings, or find it there. as_of is chosen before: a log of one day is refused, not landed."""
    from flows.steps.holdout import holdout_as_of

    arrival = arriving.arrival
    same = next((batch for batch in there if batch.id == arrival.id), None)
    if same is not None:
        return Landed(same, True, arrival, arriving.notes)
    if is_made:
        first = there[0]
        raise RefusedError(
            "a release was made of what has landed here; add to it with plumline land, or put these files in the place "
            f"of {first} with plumline land --replace {first.id} (plumline deliveries lists them)"
        )
    later = [batch for batch in there if not batch.of_init]
    if later:
        raise RefusedError(
            f"{later[0]} came after init; take it back first with plumline unland {later[0].id}, or add these files "
            "with plumline land"
        )
    files = {day: [arrival.folder / name] for day, name in arrival.day_files().items()}
    day = holdout_as_of(files, _ids(arrival.folder / "items.parquet"), recipe)
    return replace(arriving.land(home, there, by="init"), as_of=day.isoformat())


def _holdout(home: Path, batches: "Sequence[Batch]", recipe: Path) -> str:
    """as_of for what has landed."""
    import pyarrow as pa

    from flows.steps.holdout import holdout_as_of

    files: dict[date, list[Path]] = {}
    for batch in batches:
        for day, name in batch.day_files().items():
            files.setdefault(day, []).append(batch.folder / name)
    items = [_ids(batch.folder / "items.parquet") for batch in batches if batch.holds("items.parquet")]
    return holdout_as_of(files, pa.concat_arrays([pa.array([], pa.string()), *items]), home / recipe).isoformat()


def _ids(path: Path) -> "pa.Array":
    from plumline.tables import read_parquet

    return read_parquet(path, ["item_id"]).column("item_id").combine_chunks()


def _write_params(home: Path, values: dict[str, str]) -> None:
    """Change lines of params.yaml and keep its comments."""
    text = (home / "params.yaml").read_text(encoding="utf-8")
    for name, value in values.items():
        quoted = f'"{value}"' if re.fullmatch(r"[\d-]+", value) else value
        text = re.sub(rf'(?m)^{name}:(\s*)("[^"\n]*"|[^#\n]*?)(\s*)(#.*)?$', rf"{name}:\g<1>{quoted}\g<3>\g<4>", text)
    artifact.replace_file(home / "params.yaml", text)
