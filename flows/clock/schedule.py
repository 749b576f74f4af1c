"""Start the clock on one machine: Prefect server, work pool, the deployments of prefect.yaml, automations, one worker.

The two automations exist because Prefect alone leaves the run of a dead machine Running for ever and, with it, blocks
the next one: a run without a heartbeat for 90 s becomes Crashed, and a Crashed run of ours is scheduled again. A flow
may be started again at any point, so that is safe; it gives up after three starts of the same run.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from flows.clock.server import prefect_environment, prefect_server
from plumline.errors import PlumlineError
from plumline.settings import child_environment
from plumline.stage import CODE_ROOT, say

POOL = "plumline"
STOP_SECONDS = 20
"""How long a worker that was told to stop may take."""

AUTOMATIONS: tuple[dict[str, Any], ...] = (
    {
        "name": "plumline: a run without a heartbeat has crashed",
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "threshold": 1,
            "within": 90,
            "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
            "for_each": ["prefect.resource.id"],
            "after": ["prefect.flow-run.heartbeat"],
            "expect": [
                "prefect.flow-run.heartbeat",
                "prefect.flow-run.Completed",
                "prefect.flow-run.Failed",
                "prefect.flow-run.Cancelled",
                "prefect.flow-run.Crashed",
            ],
        },
        "actions": [{"type": "change-flow-run-state", "state": "CRASHED", "message": "no heartbeat for 90 s"}],
    },
    {
        "name": "plumline: a crashed run starts again",
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            "threshold": 1,
            "within": 0,
            "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
            "match_related": {
                "prefect.resource.role": "deployment",
                "prefect.resource.name": ["daily", "retrain-sids"],
            },
            "for_each": ["prefect.resource.id"],
            "expect": ["prefect.flow-run.Crashed"],
        },
        "actions": [{"type": "change-flow-run-state", "state": "SCHEDULED", "name": "AwaitingRetry"}],
    },
)


def deploy(home: Path) -> None:
    """Create work pool, deployments and automations on the server of PREFECT_API_URL; again is an update."""
    _prefect(home, "work-pool", "create", POOL, "--type", "process", "--overwrite")
    _prefect(home, "--no-prompt", "deploy", "--all", "--prefect-file", str(CODE_ROOT / "prefect.yaml"))
    folder = home / ".plumline"
    folder.mkdir(parents=True, exist_ok=True)
    known = _automation_names()
    for number, automation in enumerate(AUTOMATIONS):
        if automation["name"] in known:
            continue
        path = folder / f"automation-{number}.yaml"
        path.write_text(yaml.safe_dump(automation, sort_keys=False), encoding="utf-8")
        _prefect(home, "automation", "create", "--from-file", str(path))


def run_clock(home: Path) -> int:
    """Serve the schedule until stopped. Returns the worker's exit code."""
    with prefect_server(home) as url:
        deploy(home)
        say(f"schedules are on: daily 02:30 UTC, new SIDs on Sundays 04:00 UTC; runs: {url.removesuffix('/api')}")
        worker = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--limit", "1"],
            cwd=CODE_ROOT,
            env=_environment(home),
        )
        try:
            return worker.wait()
        finally:
            if worker.poll() is None:
                worker.terminate()
                try:
                    worker.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:  # told to stop while it was starting, it may not have heard
                    worker.kill()
                    worker.wait()


def _automation_names() -> set[str]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return {automation.name for automation in client.read_automations()}


def _environment(home: Path) -> dict[str, str]:
    python_path = os.pathsep.join(filter(None, [str(CODE_ROOT), os.environ.get("PYTHONPATH", "")]))
    extra = {**prefect_environment(home), "PLUMLINE_HOME": str(home.resolve()), "PLUMLINE_CODE": str(CODE_ROOT)}
    return child_environment(**extra, PYTHONPATH=python_path)


def _prefect(home: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        cwd=CODE_ROOT,
        env=_environment(home),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        words = (done.stdout + done.stderr).strip().splitlines()
        raise PlumlineError(f"prefect {' '.join(arguments[:3])}: {words[-1] if words else done.returncode}")
    return done.stdout
