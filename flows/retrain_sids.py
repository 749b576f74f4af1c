"""Flow `retrain_sids`, the slow clock (weekly, on demand, when drift asks): new SIDs, a new CPT, a new lineage."""

from pathlib import Path

from prefect import flow

from flows.calendar import newest_as_of
from flows.produce import Made, produce, refuse_unless_promoted
from flows.publish_day import publish_day
from flows.schedule import give_up_after_too_many_starts


@flow(name="retrain_sids", persist_result=False, validate_parameters=False)
def retrain_sids(home: str = ".") -> Made:
    """Learn everything anew from all days but those held out for scoring. Raises RefusedError if the gate says no."""
    give_up_after_too_many_starts()
    folder = Path(home)
    made = produce(folder, as_of=newest_as_of(folder), base="", kind="bootstrap")
    publish_day(folder, made)
    refuse_unless_promoted(made)
    return made
