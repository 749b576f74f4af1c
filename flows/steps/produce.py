"""One release from start to end: stages → sealed folder → registry → gate → promotion. Shared by all flows that train.

Every step is idempotent, so a flow killed anywhere and started again ends in the state of one that was not: stages skip
by their keys, a seal that is there is kept, a tag that is there is kept, a pointer that is there is kept.
"""

import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from prefect import task
from prefect.artifacts import create_table_artifact

from flows.steps.foresight import foresee
from flows.steps.graph import graph_version, read_graph, read_params, upstream
from flows.steps.promotion import promote
from flows.steps.recipe import check_recipe
from flows.steps.registry import Entry, Registry
from flows.steps.runs import record_run
from flows.steps.stages import run_stages
from flows.steps.verdicts import judge_release
from flows.steps.workspace import workspace_lock
from plumline import artifact
from plumline.errors import RefusedError
from plumline.stage import say
from serving.pointers import read_pointer


@dataclass(frozen=True)
class Made:
    """What became of one release. fresh: made by this run, not found finished."""

    entry: Entry
    promoted: bool
    fresh: bool
    reasons: tuple[str, ...]


def produce(home: Path, *, as_of: date, base: str, previous: str, kind: str, anew: bool = True) -> Made:
    """Make, publish, judge and (if the gate agrees) promote the release of one day. Call it inside a flow.

    base: release id to continue from, "" to learn everything anew. previous: release id whose SIDs a retraining
    follows, "" for none. kind: "bootstrap", "daily" or "retrain", for people; what is made follows from the others.
    anew: also if there is a release that differs from the one asked for in nothing but the code that made it.
    Raises RefusedError when a stage refuses its input, ForeseenError where nothing that is trained could pass the
    gate; a refusal of the gate itself is no exception but `promoted` False.
    """
    registry = Registry(home)
    values = {**read_params(home), "as_of": as_of.isoformat(), "base": _folder(base), "previous": _folder(previous)}
    graph = read_graph(home)
    names = upstream(graph, "release")
    with workspace_lock(home):
        parts = _parts(home, as_of=as_of, base=base, previous=previous)
        known = next((entry for entry in registry.entries() if entry.key == artifact.sha256_json(parts)), None)
        if known is not None:
            say(f"release {known.release_id} of {as_of} is already published; nothing to redo")
        elif not anew and (known := _of_other_code(registry, parts)):
            say(
                f"release {known.release_id} of {as_of} was made by other code than what is installed; it stays, and "
                "days continue it; plumline bootstrap --anew learns everything again"
            )
        if known is not None:
            registry.restore(known.release_id)
            return _judge_and_promote(home, known, fresh=False)
        check_recipe(home / read_params(home)["recipe"], graph)
        for release_id in filter(None, (base, previous)):
            registry.restore(release_id)
        began = time.time()
        finished = run_stages(graph, names, values, home, foresee(home, base=base))
        entry = seal_and_publish(str(home), base, previous, kind, parts)
        record_run(home, entry.release_id, parts["code"], finished, began)
    return _judge_and_promote(home, entry, fresh=True)


def run_key(home: Path, *, as_of: date, base: str, previous: str) -> str:
    """Hash of what determines a release: recipe, code, as_of, seed, and the bytes of base and previous ("": none)."""
    return artifact.sha256_json(_parts(home, as_of=as_of, base=base, previous=previous))


def _parts(home: Path, *, as_of: date, base: str, previous: str) -> dict[str, str]:
    """What determines a release, but for what has landed: later deliveries are the next days' to learn. What was taken
    back counts, or a release that knows it would be found finished for ever."""
    registry, params, graph = Registry(home), read_params(home), read_graph(home)
    withdrawn = home / "data" / "landing" / "withdrawn.json"
    return {
        "recipe": artifact.sha256_file(home / params["recipe"]),
        "code": graph_version(graph, upstream(graph, "release")),
        "as_of": as_of.isoformat(),
        "seed": params.get("seed", ""),
        "base": registry.find(base).digest if base else "",
        "previous": registry.find(previous).digest if previous else "",
        **({"withdrawn": artifact.sha256_file(withdrawn)} if withdrawn.exists() else {}),
    }


def _of_other_code(registry: Registry, parts: dict[str, str]) -> Entry | None:
    """The newest release that the same parts made with other code, if any."""
    made = [e for e in registry.entries() if e.code and e.key == artifact.sha256_json({**parts, "code": e.code})]
    return made[-1] if made else None


def _folder(release_id: str) -> str:
    """Where a stage finds a release, relative to the home."""
    return f"releases/sealed/{release_id}" if release_id else ""


@task(task_run_name="publish", persist_result=False)
def seal_and_publish(home: str, base: str, previous: str, kind: str, parts: dict[str, str]) -> Entry:
    """Seal artifacts/release under its own name and publish it to the registry. parts: what determined it."""
    registry = Registry(Path(home))
    folder = Path(home) / "artifacts" / "release"
    release_id = artifact.read_json(folder / "release.json")["release_id"]
    sealed = registry.seal(folder, release_id)
    digest = artifact.read_manifest(sealed).digest
    key = artifact.sha256_json(parts)
    return registry.publish(
        Entry(release_id, digest, parts["as_of"], base, kind, key, previous=previous, code=parts["code"])
    )


def _judge_and_promote(home: Path, entry: Entry, *, fresh: bool) -> Made:
    registry, champion = Registry(home), read_pointer(home / "releases")
    if champion is not None and champion.release_id == entry.release_id:
        return Made(entry, True, fresh, ())
    passed, reasons = gate(str(home), entry.release_id)
    if not passed:
        say(f"gate: {entry.release_id} is not promoted: {'; '.join(reasons)}")
        return Made(entry, False, fresh, tuple(reasons))
    objection = champion and objection_to(registry, entry, champion.release_id)
    if objection:
        return Made(entry, False, fresh, (objection,))
    promote_release(str(home), entry.release_id, champion.fencing if champion else 0)
    return Made(entry, True, fresh, ())


def objection_to(registry: Registry, entry: Entry, champion: str) -> str:
    """Why a release that the gate passed must not take the champion's place by itself; "" if nothing is against it."""
    if registry.find(champion).as_of > entry.as_of:
        return f"the champion {champion} knows a later day"
    if entry.previous and entry.previous not in {known.release_id for known in registry.lineage(champion)}:
        return (
            f"it follows the SIDs of {entry.previous}, but {champion} of another lineage answers by now, so nothing "
            "says what would move; run plumline retrain-sids again"
        )
    return ""


@task(task_run_name="gate", persist_result=False)
def gate(home: str, release_id: str) -> tuple[bool, list[str]]:
    """Judge a sealed release against the recipe's limits and the champion; keep the verdict as a file."""
    verdict = judge_release(Path(home), release_id)
    rows = [{"check": c.name, "passed": c.passed, "blocking": c.blocking, "reason": c.reason} for c in verdict.checks]
    create_table_artifact(table=rows, key="gate", description=f"Gate of {release_id}: {verdict.status}")
    return verdict.passed, [f"{c.name}: {c.reason}" for c in verdict.failures]


@task(task_run_name="promote", persist_result=False)
def promote_release(home: str, release_id: str, fencing: int) -> None:
    """Point the champion at a release whose verdict says yes, if nobody moved it since the judgement began."""
    promote(Path(home), release_id, expected=fencing)


def refuse_unless_promoted(made: Made, *, only_fresh: bool = True) -> None:
    """Raise RefusedError for a release that the gate turned down, so that a person and a schedule see it.

    only_fresh: not for one that was found finished.
    """
    if not made.promoted and made.reasons and (made.fresh or not only_fresh):
        raise RefusedError(f"{made.entry.release_id} was made but not promoted: {'; '.join(made.reasons)}")
