"""A published day is one snapshot, one page and its alerts, however often it is published."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from monitoring.alerts import read_alerts
from monitoring.reports import (
    PANELS,
    PROJECT_ID,
    DayReport,
    dashboards_command,
    publish_day,
    snapshot_path,
    workspace_folder,
    write_snapshot,
)
from plumline.errors import InputError

DAY = date(2011, 11, 1)


def _now(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, 6, tzinfo=UTC) + timedelta(days=1)


@dataclass(frozen=True)
class Published:
    """A home with two published days, and the state of a dashboard that was running meanwhile."""

    home: Path
    folders: list[Path]
    reports: list[DayReport]
    running: Any


@pytest.fixture(scope="module")
def published(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    home = tmp_path_factory.mktemp("home")
    command = dashboards_command(home)
    assert command[:2] == ["env", "DO_NOT_TRACK=1"]
    from evidently.ui.service.storage.local.base import LocalState
    from evidently.ui.service.storage.local.watcher import WorkspaceDirHandler
    from watchdog.observers import Observer

    workspace = command[command.index("--workspace") + 1]
    running = LocalState.load(workspace, None)  # what the UI keeps in memory, and how it is told of changes
    observer = Observer()
    observer.schedule(WorkspaceDirHandler(running), workspace, recursive=True)
    observer.start()
    folders, reports = [], []
    for n in range(2):
        day = DAY + timedelta(days=n)
        moved = [{"level": level, "items": 0.5, "traffic": 0.4} for level in (1, 2)]
        report = example.make_sids_report(churn={"num_known": 20, "before": moved, "after": moved}) if n else None
        release = example.make_release(home / "sealed" / str(n), day - timedelta(days=1), sids_report=report)
        rows = [example.answer(day, i, ["item-01", "item-02"], release.release_id) for i in range(5)]
        example.put_traffic(home / "data" / "traffic", day, [*rows, example.answer(day, 9, [example.RETIRED], "x")])
        folders.append(release.folder)
        reports.append(publish_day(home, release.folder, day=day, now=_now(day)))
    yield Published(home, folders, reports, running)
    observer.stop()
    observer.join()


def _snapshots(home: Path) -> list[Path]:
    return sorted((workspace_folder(home) / str(PROJECT_ID) / "snapshots").iterdir())


def _counts(state: Any) -> int:
    return len(state.snapshots[PROJECT_ID])


def test_a_day_leaves_a_snapshot_a_page_and_alerts(published: Published) -> None:
    report = published.reports[0]
    assert report.snapshot == snapshot_path(published.home, DAY, report.release_id)
    assert report.report.read_text().startswith("<!doctype html>")
    assert [alert.name for alert in report.alerts] == ["retired_served"]
    assert report.gauges["checks_failed"] == 1
    assert [alert.day for alert in read_alerts(published.home)] == ["2011-11-01", "2011-11-02"]
    assert not [path for path in (published.home / ".plumline").iterdir() if path.name.startswith(".")]


def test_snapshot_has_the_day_the_release_and_a_test_a_limit(published: Published) -> None:
    snapshot = json.loads(published.reports[0].snapshot.read_text())
    assert snapshot["timestamp"] == "2011-11-01T12:00:00"
    assert snapshot["metadata"]["release_id"] == published.reports[0].release_id
    assert snapshot["tags"] == ["daily"]
    values = {r["display_name"]: r["value"] for r in snapshot["metric_results"].values()}
    assert values["retired_served"] == 1
    assert values["hallucination_percent_limit"] == 10
    assert "drift_score" not in values  # first day: nothing to compare with
    assert values["drift_score_limit"] == 1  # the day stands on the axis all the same
    tests = {r["display_name"]: [t["status"] for t in r["tests"]] for r in snapshot["metric_results"].values()}
    assert (tests["retired_served"], tests["hallucination_percent"]) == (["FAIL"], ["SUCCESS"])


def test_every_panel_draws_gauges_that_exist(published: Published) -> None:
    snapshot = json.loads(published.reports[1].snapshot.read_text())
    names = {result["display_name"] for result in snapshot["metric_results"].values()}
    drawn = {gauge for panel in PANELS for gauge in panel.gauges}
    # this home has no events artifact
    assert drawn - names == {"quarantined_rows", "reactions_put_aside_percent"}
    dashboard = json.loads((workspace_folder(published.home) / str(PROJECT_ID) / "dashboard.json").read_text())
    assert len(dashboard["panels"]) == len(PANELS) == len({panel["id"] for panel in dashboard["panels"]})
    metrics = {value["metric"] for panel in dashboard["panels"] for value in panel["values"]}
    assert metrics == {"evidently:metric_v2:Gauge"}


def test_what_beams_miss_is_a_panel_with_its_limit(published: Published) -> None:
    snapshot = json.loads(published.reports[0].snapshot.read_text())
    values = {result["display_name"]: result["value"] for result in snapshot["metric_results"].values()}
    panel = next(panel for panel in PANELS if "beam_missed_items_percent" in panel.gauges)
    assert [values[gauge] for gauge in panel.gauges] == [3.0, 0.5, 10.0]  # items, probability, limit


def test_publishing_again_replaces(published: Published) -> None:
    before = [path.name for path in _snapshots(published.home)]
    told: list[Any] = []
    again = publish_day(
        published.home, published.folders[1], day=DAY + timedelta(days=1), now=_now(DAY), notify=told.append
    )
    assert [path.name for path in _snapshots(published.home)] == before
    assert len(before) == 2
    assert again.alerts
    assert told == []


def test_a_running_dashboard_sees_new_days(published: Published) -> None:
    deadline = time.monotonic() + 10
    while _counts(published.running) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _counts(published.running) == 2


def test_past_days_and_what_is_no_number(published: Published, tmp_path: Path) -> None:
    path = write_snapshot(tmp_path, date(1999, 12, 31), {"requests": 1.0}, {})
    assert json.loads(path.read_text())["timestamp"] == "1999-12-31T12:00:00"
    with pytest.raises(InputError, match="gauge requests is nan"):
        write_snapshot(tmp_path, DAY, {"requests": float("nan")}, {})


def test_evidently_is_imported_late() -> None:
    code = "import monitoring.reports, sys; sys.exit('evidently' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
