"""What follows a release: online features pushed, the champion's Bento built, the day judged. All idempotent."""

import sys
import threading
from datetime import UTC, date, datetime
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.steps.graph import read_params
from flows.steps.produce import Made
from flows.steps.registry import Registry
from flows.steps.stages import execute
from flows.steps.verdicts import read_verdict
from plumline import artifact
from plumline.errors import ArtifactError
from plumline.settings import clock_offset
from plumline.stage import load_params, say


def publish_day(home: Path, made: Made) -> None:
    """Push features, build the Bento, write the day's snapshot, page and alerts. Call it inside a flow.

    Features go online with what was promoted: a user whom the champion's day does not know is a new one, and not one
    whose history is made of items that the champion has never seen.
    """
    stop = threading.Event()
    features = push_features.submit(str(home), made.entry.as_of, stop) if made.promoted else None
    try:
        if made.promoted:
            build_bento_of(str(home), made.entry.release_id)
        monitor_day(str(home), made.entry.release_id, made.entry.as_of)
        if features is not None:  # nothing of the above reads them
            features.result()
    finally:
        stop.set()


@task(task_run_name="features", persist_result=False)
def push_features(home: str, as_of: str, stop: threading.Event | None = None) -> None:
    """Put every user's history and profile of the day online, if artifacts/ still holds that day.

    In a process of its own: Feast, BentoML and Evidently, imported side by side in one, have met a half-imported torch.
    """
    histories = Path(home) / "artifacts" / "histories"
    try:
        if artifact.read_manifest(histories).arguments["as_of"] != as_of:
            return
    except ArtifactError:
        return
    argv = [sys.executable, "-m", "features.online", "artifacts/histories", "artifacts/catalog", as_of]
    execute("features", [*argv, str(Path(home).resolve())], Path(home), stop or threading.Event())


@task(task_run_name="bento", persist_result=False)
def build_bento_of(home: str, release_id: str) -> str:
    """Build the Bento of a release, unless it is there."""
    from serving.deploy import bentoml_home, build_bento

    folder = Path(home)
    if (bentoml_home(folder) / "bentos" / "plumline" / release_id / "bento.yaml").exists():
        return f"plumline:{release_id}"
    tag = build_bento(Registry(folder).restore(release_id), release_id, folder)
    say(f"bento {tag} is built")
    return tag


@task(task_run_name="monitor", persist_result=False)
def monitor_day(home: str, release_id: str, as_of: str) -> None:
    """Write the Evidently snapshot, the page and the alerts of a day, and show its numbers in Prefect."""
    from monitoring.health import MonitorParams
    from monitoring.reports import publish_day as write_day

    folder = Path(home)
    report = write_day(
        folder,
        Registry(folder).restore(release_id),
        day=date.fromisoformat(as_of),
        now=datetime.now(UTC) + clock_offset(),
        params=load_params(folder / read_params(folder)["recipe"], "monitor", MonitorParams),
        verdict=read_verdict(folder, release_id),
    )
    rows = [{"gauge": name, "value": f"{value:.6g}"} for name, value in sorted(report.gauges.items())]
    create_table_artifact(table=rows, key="day", description=f"{as_of}, release {release_id}")
    lines = [f"* **{alert.severity}** {alert.name}: {alert.summary}" for alert in report.alerts] or ["no alerts"]
    create_markdown_artifact(key="alerts", markdown="\n".join([f"# {as_of}", *lines]))
    for alert in report.alerts:
        say(f"alert ({alert.severity}) {alert.name}: {alert.summary}")
