"""Verdicts of the gate as files: releases/verdicts/<release id>.json names the release by its digest."""

from pathlib import Path

from flows.steps.graph import read_params
from flows.steps.registry import Registry
from monitoring import gates
from monitoring.verdict import Verdict
from plumline import artifact
from plumline.errors import MissingArtifactError, RefusedError
from plumline.stage import load_params
from serving.pointers import read_pointer


def read_gate(home: Path) -> gates.GateParams:
    """The limits of the home's recipe. Raises InputError naming the setting that is none, and what to do."""
    return load_params(home / read_params(home)["recipe"], "gate", gates.GateParams)


def judge_release(home: Path, release_id: str) -> Verdict:
    """Judge a sealed release against the recipe's limits and the champion, and keep the verdict."""
    registry = Registry(home)
    params = read_gate(home)
    champion = read_pointer(registry.root)
    against = registry.restore(champion.release_id) if champion and champion.release_id != release_id else None
    verdict = gates.judge_release(registry.restore(release_id), against, params)
    verdict.save(_path(registry, release_id))
    return verdict


def require_verdict(home: Path, release_id: str) -> None:
    """Raise RefusedError unless a verdict names exactly the bytes of this release and says yes."""
    digest = artifact.read_manifest(Registry(home).restore(release_id)).digest
    verdict = read_verdict(home, release_id)
    if verdict is None:
        raise RefusedError(f"release {release_id} has no verdict of the gate; plumline bootstrap or daily judges it")
    verdict.for_release(release_id, digest)


def read_verdict(home: Path, release_id: str) -> Verdict | None:
    """The kept verdict on a release, None if it was never judged."""
    try:
        return Verdict.load(_path(Registry(home), release_id))
    except MissingArtifactError:
        return None


def _path(registry: Registry, release_id: str) -> Path:
    return registry.root / "verdicts" / f"{release_id}.json"
