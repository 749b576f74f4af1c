"""Flow `daily`: every landed day since the last release, in order, each an increment on the champion's lineage.

validate → SIDs of new items from the frozen quantizer → histories → corpus → SFT from the champion's weights or its CPT
checkpoint (`sft.start`) → index → scores → release → gate → promote → online features → monitoring. A late or missed
schedule loses nothing: the next run starts at the first day that has no release.
"""

from datetime import date
from pathlib import Path

from prefect import flow

from flows.steps.calendar import days_to_process
from flows.steps.foresight import ForeseenError
from flows.steps.produce import Made, produce, refuse_unless_promoted
from flows.steps.publish_day import publish_day
from flows.steps.registry import Registry
from flows.steps.restarts import give_up_after_too_many_starts
from plumline.errors import RefusedError
from plumline.stage import say
from serving.pointers import read_pointer


@flow(name="daily", persist_result=False, validate_parameters=False)
def daily(
    home: str = ".", as_of: str | None = None, max_days: int | None = None, raise_refusal: bool = True
) -> list[Made]:
    """Make the releases of the missing days up to `as_of` (ISO date; None: the last day that another day follows).

    max_days: at most so many, oldest first. Raises RefusedError if there is no champion to continue from, or, after all
    days were tried, if the gate turned a fresh one down (unless not raise_refusal) or would turn down whatever is
    trained for a day.
    """
    give_up_after_too_many_starts()
    folder = Path(home)
    days = days_to_process(folder, date.fromisoformat(as_of) if as_of else None)
    if not days:
        say("every landed day has its release; nothing to do")
    made, foreseen = [], []
    for day in days[:max_days]:
        champion = read_pointer(folder / "releases")
        if champion is None:
            raise RefusedError("no champion to continue from; run plumline bootstrap first")
        base = _base_of(folder, day, champion.release_id)
        try:
            made.append(produce(folder, as_of=day, base=base, previous="", kind="daily"))
        except ForeseenError as refusal:
            foreseen.append(refusal)
        else:
            publish_day(folder, made[-1])
    if waiting := days[len(days[:max_days]) :]:
        say(f"{len(waiting)} more landed days wait; plumline daily --as-of {days[-1]} makes them all")
    for later in foreseen[1:]:
        say(str(later))
    if foreseen:
        raise foreseen[0]
    for one in made if raise_refusal else ():
        refuse_unless_promoted(one)
    return made


def _base_of(home: Path, day: date, champion: str) -> str:
    """The release a day continues from: the one it already continued from if it was made before, else the champion.

    Made before in another lineage is another release: after a rollback the day is made anew in the one that answers.
    """
    for entry in Registry(home).lineage(champion):
        if entry.kind == "daily" and entry.as_of == day.isoformat():
            return entry.base
    return champion
