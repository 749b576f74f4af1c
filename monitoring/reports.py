"""Reports: one day's figures as an Evidently snapshot, a page to read, and alerts. The only importer of Evidently.

Reads   a sealed release, data/traffic, artifacts/events and releases/tombstones.json of a home
Writes  <home>/.plumline/evidently/          a workspace of the project "plumline"; one snapshot a day and release
        <home>/.plumline/reports/<day>/      report.html, report.md, gauges.json
        <home>/.plumline/alerts.jsonl        what a person should know
Run     publish_day(home, release, day=…, now=…) once a day; `dashboards_command(home)` starts the dashboards

Every write is one rename, and everything of a day is named after the day and the release: publishing a day again
replaces it. Evidently itself is imported inside functions (it takes seconds).
"""

import contextlib
import math
import secrets
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cache
from pathlib import Path
from typing import Any

from monitoring.alerts import Alert, Limit, record
from monitoring.day import gather
from monitoring.health import MonitorParams
from monitoring.page import last_reported_day, write_page
from monitoring.verdict import Verdict
from plumline import artifact
from plumline.errors import InputError
from plumline.settings import switch_telemetry_off
from serving.release import Release

PROJECT = "plumline"
PROJECT_ID = uuid.uuid5(uuid.NAMESPACE_URL, "plumline/monitoring")
NOON = time(12)
"""Where a day's point stands: Evidently takes times without a zone, and from noon few zones leave the day."""


@dataclass(frozen=True)
class Panel:
    """One chart of the dashboard. gauges: gauge → legend. kind: line, bar or counter. size: full or half a row."""

    title: str
    gauges: dict[str, str]
    kind: str = "line"
    size: str = "half"
    note: str = ""


# What Evidently 0.7.23 draws decides the form: it has no limit lines, so `<gauge>_limit` is drawn as one more gauge; a
# counter rounds to two decimals, calls a 0 "no value", and repeats an older value where the last day has none, so only
# percentages and counts that every day has are counters.
PANELS = (
    Panel(
        "Last day",
        {
            "checks_passed": "checks that hold",
            "checks": "checks made",
            "requests": "answers served",
            "recall_served_percent": "recall@10, %",
            "sid_uniqueness_percent": "SIDs unique, %",
        },
        kind="counter",
        size="full",
        note="Fewer checks hold than were made? .plumline/reports/<day>/report.html says which. 'no value' is 0.",
    ),
    Panel("Failed checks a day", {"checks_failed": "failed"}, kind="bar"),
    Panel(
        "Items that must not be served (should lie on 0)",
        {
            "invalid_served": "invalid SID",
            "retired_served": "retired",
            "repeated_served": "repeated",
            "invalid_served_limit": "limit (invalid)",
        },
    ),
    Panel(
        "Held-out recall@10, %",
        {
            "recall_served_percent": "served",
            "recall_without_model_percent": "without model",
            "recall_model_percent": "model",
            "recall_memory_percent": "memory",
            "recall_own_percent": "own",
            "recall_popularity_percent": "popularity",
            "recall_item_knn_percent": "item-kNN",
            "recall_sasrec_percent": "SASRec",
        },
        note="Seen items kept; pooled over all held-out days of the day's release.",
    ),
    Panel(
        "What the language model adds to recall@10, percentage points",
        {
            "model_gain_percent": "gain",
            "model_gain_se_percent": "its s.e.",
            "model_gain_masked_percent": "gain, seen masked",
            "model_gain_masked_se_percent": "its s.e., seen masked",
        },
        note="Served minus the same ranker without the model, by user; up to two standard errors are noise.",
    ),
    Panel(
        "Next-day recall@10, %",
        {"recall_next_day_percent": "served"},
        note="Seen items kept; the first held-out day alone, so it jumps more than the pooled figure.",
    ),
    Panel(
        "Hallucination, % of what the model says freely",
        {
            "hallucination_percent": "of its probability",
            "hallucination_best_percent": "of the ten best of a beam search",
            "hallucination_percent_limit": "limit",
        },
        note="No SID of a live item, any token of the vocabulary allowed. What is served is constrained and has none.",
    ),
    Panel(
        "What beams miss, % of the true best",
        {
            "beam_missed_items_percent": "items",
            "beam_missed_mass_percent": "probability",
            "beam_missed_items_percent_limit": "limit (items)",
        },
        note="Every allowed SID scored exactly, for a sample of requests; only days of a release with a certificate.",
    ),
    Panel(
        "Drift of what is served, in units of its limit",
        {
            "drift_codes": "SID codes",
            "drift_history_length": "history length",
            "drift_popularity": "popularity",
            "drift_score_limit": "limit",
        },
        note="1 is the larger of the PSI limit and what chance alone reaches.",
    ),
    Panel(
        "SID uniqueness, % of items",
        {
            "sid_uniqueness_percent": "alone on a SID",
            "sid_uniqueness_with_tie_break_percent": "with tie-break digit",
            "sid_uniqueness_percent_limit": "limit",
        },
    ),
    Panel(
        "SID collisions, items", {"sid_collisions": "share a full SID", "sid_largest_bucket": "behind the fullest SID"}
    ),
    Panel(
        "SID churn of a retraining, % of known traffic",
        {
            "sid_churn_level1_percent": "level 1",
            "sid_churn_level1_unaligned_percent": "level 1, names not kept",
            "sid_churn_level2_percent": "levels 1 and 2",
        },
        kind="bar",
        note="Known items whose SID moved; only on days of a release that follows another one's SIDs.",
    ),
    Panel(
        "Degraded and empty answers, %",
        {"degraded_percent": "degraded", "empty_percent": "empty", "degraded_percent_limit": "limit (degraded)"},
    ),
    Panel("Latency, ms", {"latency_p50_ms": "p50", "latency_p99_ms": "p99", "latency_p99_ms_limit": "limit (p99)"}),
    Panel(
        "Staleness, hours since the model's last day ended",
        {"staleness_hours": "staleness", "staleness_hours_limit": "limit"},
    ),
    Panel("Event rows put aside by validation", {"quarantined_rows": "rows"}, kind="bar"),
    Panel(
        "Reactions put aside by validation, %",
        {"reactions_put_aside_percent": "put aside", "reactions_put_aside_percent_limit": "limit"},
    ),
)


@dataclass(frozen=True)
class DayReport:
    """What `publish_day` left. alerts: all of the day and release; report: the page; snapshot: Evidently's file."""

    day: date
    release_id: str
    gauges: dict[str, float]
    alerts: list[Alert]
    report: Path
    snapshot: Path


def publish_day(
    home: Path,
    release_folder: Path,
    *,
    day: date,
    now: datetime,
    params: MonitorParams | None = None,
    verdict: Verdict | None = None,
    notify: Callable[[Alert], None] | None = None,
) -> DayReport:
    """Judge a day, write its snapshot and its page, then record its alerts. Safe to repeat.

    release_folder: the sealed release that served on `day`. now: with a time zone; the model's age is taken against it.
    verdict: the gate's word of that day, if a release was judged. notify: told of every alert that is new.
    Raises ArtifactError if the release cannot be trusted, InputError for a `now` without time zone.
    """
    release = Release.load(release_folder)
    found = gather(
        home,
        release,
        day=day,
        now=now,
        params=params or MonitorParams(),
        verdict=verdict,
        last_report=last_reported_day(reports_folder(home), day),
    )
    about = {"release_id": release.release_id, "as_of": release.as_of.isoformat(), "day": day.isoformat()}
    snapshot = write_snapshot(home, day, found.gauges, found.bounds, tags=("daily",), metadata=about)
    report = write_page(reports_folder(home), found, now)
    record(home, found.alerts, notify)
    return DayReport(day, release.release_id, found.gauges, found.alerts, report, snapshot)


def reports_folder(home: Path) -> Path:
    """Where the pages lie, one folder a day."""
    return home / ".plumline" / "reports"


def workspace_folder(home: Path) -> Path:
    """The Evidently workspace of a home."""
    return home / ".plumline" / "evidently"


def snapshot_path(home: Path, day: date, release_id: str) -> Path:
    """Where the snapshot of a day and a release lies."""
    name = uuid.uuid5(PROJECT_ID, f"{day.isoformat()}/{release_id}")
    return workspace_folder(home) / str(PROJECT_ID) / "snapshots" / f"{name}.json"


def write_snapshot(
    home: Path,
    day: date,
    gauges: Mapping[str, float],
    bounds: Mapping[str, Limit],
    tags: Sequence[str] = (),
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Put a day's gauges into the workspace; a snapshot of the same day and metadata["release_id"] is replaced.

    gauges: finite numbers (InputError otherwise). bounds: gauge → limit, tested by Evidently and recorded as
    `<gauge>_limit`, also where the gauge is missing. Days may come in any order. A running dashboard shows the point
    as soon as its page is loaded anew.
    """
    for name, value in gauges.items():
        if not math.isfinite(value):
            raise InputError(f"gauge {name} is {value}; leave out what was not measured")
    about = dict(metadata or {})
    prepare_workspace(home)
    with _scratch_workspace(home) as workspace:
        reference = workspace.add_run(PROJECT_ID, _measure(gauges, bounds, day, list(tags), about))
        goal = snapshot_path(home, day, about.get("release_id", ""))
        _put(goal, Path(reference.url).read_text(encoding="utf-8"))
    return goal


def prepare_workspace(home: Path) -> None:
    """Make the project and the newest form of its dashboard; leaves the snapshots alone."""
    _import_evidently()
    from evidently.sdk.models import DashboardModel, DashboardTabModel, ProjectModel

    panels = [_draw(panel) for panel in PANELS]
    tab = DashboardTabModel(id=uuid.uuid5(PROJECT_ID, "tab"), title="On call", panels=[panel.id for panel in panels])
    with _scratch_workspace(home) as workspace:
        workspace.add_project(ProjectModel(id=PROJECT_ID, name=PROJECT, description="One point a day and release."))
        # the whole dashboard at once: add_panel writes every panel twice from the second on
        workspace.save_dashboard(PROJECT_ID, DashboardModel(tabs=[tab], panels=panels))
        made = Path(workspace.path) / str(PROJECT_ID)
        for name in ("metadata.json", "dashboard.json"):
            text = (made / name).read_text(encoding="utf-8")
            goal = workspace_folder(home) / str(PROJECT_ID) / name
            if not goal.is_file() or goal.read_text(encoding="utf-8").strip() != text:
                _put(goal, text)
    (workspace_folder(home) / str(PROJECT_ID) / "snapshots").mkdir(exist_ok=True)


def dashboards_command(home: Path, host: str = "127.0.0.1", port: int = 8001) -> list[str]:
    """The command that shows the dashboards until it is stopped, telemetry off; makes the workspace if there is none.

    Evidently asks nobody for a password to read, so keep it on loopback or behind something that does. Writing over
    HTTP needs a secret, which is drawn here and told to no one: snapshots come through files.
    """
    if not (workspace_folder(home) / str(PROJECT_ID) / "dashboard.json").is_file():
        prepare_workspace(home)
    where = ["--workspace", str(workspace_folder(home).resolve()), "--host", host, "--port", str(port)]
    quiet = ["env", "DO_NOT_TRACK=1", "GIT_PYTHON_REFRESH=quiet"]
    return [*quiet, sys.executable, "-m", "evidently.cli", "ui", *where, "--secret", secrets.token_hex(16)]


def _put(path: Path, text: str) -> None:
    """Put a JSON file in place at once and tell a running dashboard.

    Its watcher acts on writes to a file under its own name: it passes over renames and new time stamps, and a torn file
    can stop it for good. So the whole file comes by a rename, and then one line break is written behind it.
    """
    artifact.replace_file(path, text)
    with path.open("a", encoding="utf-8") as file:
        file.write("\n")


def _import_evidently() -> None:
    """Import Evidently without the deprecations of its own dependencies, which no on-call can act on."""
    switch_telemetry_off()
    if "evidently" in sys.modules:
        return
    with warnings.catch_warnings():
        warnings.showwarning = lambda *_args, **_kwargs: None  # a filter would not do: Evidently resets the filters
        import evidently.ui.workspace  # noqa: F401


@contextlib.contextmanager
def _scratch_workspace(home: Path) -> Iterator[Any]:
    """An empty Evidently workspace that goes again: Evidently writes in place, `_put` moves its files."""
    _import_evidently()
    from evidently.ui.workspace import Workspace

    root = home / ".plumline"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".evidently-", dir=root) as folder:
        yield Workspace(folder)


def _draw(panel: Panel) -> Any:
    from evidently.sdk.models import DashboardPanelPlot, PanelMetric

    further: dict[str, dict[str, Any]] = {"counter": {"aggregation": "last"}, "bar": {"is_stacked": False}}
    return DashboardPanelPlot(
        id=uuid.uuid5(PROJECT_ID, panel.title),
        title=panel.title,
        subtitle=panel.note or None,
        size=panel.size,
        values=[
            PanelMetric(metric="Gauge", metric_labels={"name": gauge}, legend=legend)
            for gauge, legend in panel.gauges.items()
        ],
        plot_params={"plot_type": panel.kind, **further.get(panel.kind, {})},
    )


@cache
def _gauge_metric() -> Any:
    """The Evidently metric `Gauge`: a number that was computed elsewhere, read from a frame of one row.

    The number is no field of the metric, or each value would become a series of its own.
    """
    from evidently.core.metric_types import SingleValueCalculation, SingleValueMetric

    class Gauge(SingleValueMetric):
        name: str

    class GaugeCalculation(SingleValueCalculation[Gauge]):
        def display_name(self) -> str:
            return str(self.metric.name)

        def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
            return self.result(float(current_data.column(self.metric.name).data.iloc[0]))

    return Gauge


def _measure(
    gauges: Mapping[str, float], bounds: Mapping[str, Limit], day: date, tags: list[str], metadata: dict[str, str]
) -> Any:
    """An Evidently snapshot of the gauges and their limits."""
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.tests import gte, lte

    gauge = _gauge_metric()
    # In the order of the panels, limits last: Evidently hands out colours in the order in which it meets the gauges.
    drawn = list(dict.fromkeys(name for panel in PANELS for name in panel.gauges))
    ordered = [name for name in drawn if name in gauges] + sorted(gauges.keys() - set(drawn))
    values = {name: gauges[name] for name in ordered}
    # A limit stands on every day: the axis has only days on which a panel has something, and a gap must show as one.
    values |= {f"{name}_limit": bounds[name].value for name in bounds}
    frame = pd.DataFrame({name: [float(value)] for name, value in values.items()})
    tests = {name: [(lte if limit.most else gte)(limit.value)] for name, limit in bounds.items()}
    metrics = [gauge(name=name, tests=tests.get(name)) for name in frame.columns]
    dataset = Dataset.from_pandas(frame, data_definition=DataDefinition(numerical_columns=list(frame.columns)))
    name = f"{day.isoformat()} {metadata.get('release_id', '')}".strip()
    return Report(metrics).run(
        dataset, None, timestamp=datetime.combine(day, NOON), name=name, tags=tags, metadata=metadata
    )
