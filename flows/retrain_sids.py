"""Flow `retrain_sids`, the slow clock (weekly and on demand; no alert starts it): new SIDs, a new CPT, a new lineage.

It follows the champion: codes keep the champion's names where they mean the same items, the release says what moved all
the same (`churn` in sids/report.json), and the gate wants a churn over the budget to be paid for (docs/decisions/0005).

Which release is followed is decided once and noted, since the champion may move before the work is done:

* A retraining that was interrupted, or turned down, and is started again for the same as_of, recipe, code and seed
  follows the release it followed before, and so ends in the same release, also if a day was promoted meanwhile: a day
  of the same lineage has the same SIDs. A champion of another lineage is followed afresh.
* A champion that is itself a finished retraining (or bootstrap) of this as_of, recipe, code and seed is not followed:
  there is nothing new to learn, and following itself would find another name for the same release every time. It is
  found finished and nothing is redone. A new landed day, another recipe or other code is a retraining again.
"""

from datetime import date
from pathlib import Path

from prefect import flow

from flows.steps.calendar import newest_as_of
from flows.steps.produce import Made, produce, refuse_unless_promoted, run_key
from flows.steps.publish_day import publish_day
from flows.steps.registry import Registry
from flows.steps.restarts import give_up_after_too_many_starts
from flows.steps.workspace import workspace_lock
from plumline import artifact
from plumline.stage import say
from serving.pointers import read_pointer

NOTE = Path("artifacts/progress/retrain_sids.json")
"""What an interrupted retraining follows: {"run": hash of as_of, recipe, code and seed, "previous": release id}."""


@flow(name="retrain_sids", persist_result=False, validate_parameters=False)
def retrain_sids(home: str = ".", raise_refusal: bool = True) -> Made:
    """Learn everything anew from all days but those held out for scoring, with the champion's names of codes.

    Raises RefusedError if the gate says no (unless not raise_refusal), to the same release again as often as it is
    asked: an exit code of a second try must not look like a success.
    """
    give_up_after_too_many_starts()
    folder = Path(home)
    as_of = newest_as_of(folder)
    with workspace_lock(folder):  # not while a day is at work that may move the champion
        previous = release_to_follow(folder, as_of)
    say(f"new SIDs from all days up to {as_of}; names of codes follow {previous or 'nobody: there is no champion'}")
    made = produce(folder, as_of=as_of, base="", previous=previous, kind="retrain")
    publish_day(folder, made)
    if raise_refusal:
        refuse_unless_promoted(made, only_fresh=False)
    return made


def release_to_follow(home: Path, as_of: date) -> str:
    """Id of the release whose SIDs a retraining of as_of follows, "" if nothing answers yet; notes what it decided."""
    registry, pointer = Registry(home), read_pointer(home / "releases")
    run = run_key(home, as_of=as_of, base="", previous="")
    if pointer is not None:
        champion = registry.find(pointer.release_id)
        if not champion.base and champion.key == run_key(home, as_of=as_of, base="", previous=champion.previous):
            return champion.previous
    note = artifact.read_json(home / NOTE) if (home / NOTE).exists() else {}
    previous = pointer.release_id if pointer else ""
    if note.get("run") == run and note["previous"] in {known.release_id for known in registry.lineage(previous)}:
        previous = str(note["previous"])
    artifact.replace_file(home / NOTE, artifact.canonical_json({"run": run, "previous": previous}))
    return previous
