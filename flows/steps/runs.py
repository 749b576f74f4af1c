"""What a run measured, and by which code: `.plumline/runs/<release id>.json`. Artifacts hold no clock."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.batches import list_batches
from plumline import artifact
from plumline.stage import sources_version

if TYPE_CHECKING:
    from flows.steps.stages import Finished


def record_run(home: Path, release_id: str, code: str, finished: "list[Finished]", began: float) -> None:
    """Keep seconds a stage, training speed, what had landed, and which code made the release, or made it again.

    code: hash of all code that its stages can reach; beside it stands that of all sources, which is found much faster.
    began: time.time() before the first stage; what is older was measured by another run.
    """
    throughput = {}
    for name in ("cpt", "sft"):
        path = home / "artifacts" / "progress" / f"{name}.jsonl"
        if path.exists() and path.stat().st_mtime >= began:
            lines = path.read_text(encoding="utf-8").splitlines()
            throughput[name] = json.loads(lines[-1]) if lines else {}
    old = read_run(home, release_id).get("seconds", {})
    seconds = {f.stage: old.get(f.stage, f.seconds) if f.skipped else f.seconds for f in finished}
    record: dict[str, Any] = {"release_id": release_id, "seconds": seconds, "throughput": throughput}
    record |= {"code": code, "sources": sources_version()}
    record["deliveries"] = [batch.id for batch in list_batches(home / "data" / "landing")]
    artifact.replace_file(_path(home, release_id), json.dumps(record, indent=2, sort_keys=True) + "\n")


def read_run(home: Path, release_id: str) -> dict[str, Any]:
    """What was recorded when a release was made; empty if it was made elsewhere."""
    path = _path(home, release_id)
    return dict(artifact.read_json(path)) if path.exists() else {}


def _path(home: Path, release_id: str) -> Path:
    return home / ".plumline" / "runs" / f"{release_id}.json"
