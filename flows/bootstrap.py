"""Flow `bootstrap`: everything is learned anew from the events up to one day, and becomes a release.

catalog → embeddings → quantizer → sids → histories → corpus → cpt → sft → index → scores → release → gate → promote.
"""

from datetime import date
from pathlib import Path

from prefect import flow

from flows.steps.calendar import default_as_of
from flows.steps.produce import Made, produce
from flows.steps.publish_day import publish_day


@flow(name="bootstrap", flow_run_name="bootstrap-{as_of}", persist_result=False, validate_parameters=False)
def bootstrap(home: str = ".", as_of: str | None = None, anew: bool = False) -> Made:
    """Make the release of `as_of` (ISO date; None: params.yaml's) without a base, and promote it if the gate agrees.

    A release of this day, recipe and seed stays as it is if only the code has changed since, unless `anew`.
    """
    folder = Path(home)
    day = date.fromisoformat(as_of) if as_of else default_as_of(folder)
    made = produce(folder, as_of=day, base="", previous="", kind="bootstrap", anew=anew)
    publish_day(folder, made)
    return made
