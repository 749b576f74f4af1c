"""Alerts: a day's figures against their limits, and the gate's verdict, as events for a person.

Writes `<home>/.plumline/alerts.jsonl`, one JSON object a line; one alert a name, day and release, however often the day
is judged. Nothing goes over the network: who wants to be told passes a `notify` callable.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Literal

from monitoring.health import MonitorParams
from monitoring.verdict import Verdict
from plumline.artifact import canonical_json

Severity = Literal["page", "ticket"]


@dataclass(frozen=True)
class Limit:
    """What a gauge may be: at most `value`, or at least `value` with most=False."""

    value: float
    most: bool = True

    def holds(self, observed: float) -> bool:
        """Whether a value keeps the limit; a NaN does not."""
        return observed <= self.value if self.most else observed >= self.value

    def __str__(self) -> str:
        return f"{'at most' if self.most else 'at least'} {self.value:g}"


@dataclass(frozen=True)
class Watch:
    """A gauge with a limit. param: the field of MonitorParams that holds it ("" for the fixed 1 of drift scores).

    severity: page wakes somebody (users see it now), ticket waits for the morning. what: the gauge in words.
    """

    gauge: str
    param: str
    severity: Severity
    what: str
    most: bool = True


WATCHED = (
    Watch("invalid_served", "max_invalid_served", "page", "items served with a SID that is no item's"),
    Watch("retired_served", "max_retired_served", "page", "retired items served"),
    Watch("repeated_served", "max_repeated_served", "ticket", "items served twice in one answer"),
    Watch("empty_percent", "max_empty_percent", "page", "% of answers without an item"),
    Watch("degraded_percent", "max_degraded_percent", "page", "% of answers by the fallback"),
    Watch("latency_p99_ms", "max_latency_p99_ms", "page", "ms for the slowest 1% of answers"),
    Watch("requests", "min_requests", "ticket", "answers that day", most=False),
    Watch("staleness_hours", "max_staleness_hours", "ticket", "hours since the model's last day ended"),
    Watch(
        "hallucination_percent",
        "max_hallucination_percent",
        "ticket",
        "% of the model's probability on no item's SID",
    ),
    Watch("beam_false", "max_beam_false", "page", "SIDs or items of a beam search that are invalid or came twice"),
    Watch("beam_score_error", "max_beam_score_error", "page", "between a beam's score and the exact one"),
    Watch("beam_missed_items_percent", "max_beam_missed_percent", "ticket", "% of the true best items the beams miss"),
    Watch("sid_uniqueness_percent", "min_sid_uniqueness_percent", "ticket", "% of items alone on a SID", most=False),
    Watch("recall_over_popularity", "min_recall_over_popularity", "ticket", "× popularity's recall@10", most=False),
    Watch("simple_methods_ahead", "max_simple_methods_ahead", "ticket", "simple methods ahead of what is served"),
    Watch("quarantined_rows", "max_quarantined_rows", "ticket", "event rows put aside by validation"),
    Watch(
        "reactions_put_aside_percent",
        "max_reactions_put_aside_percent",
        "ticket",
        "% of the day's reactions put aside by validation",
    ),
    Watch("unreported_days", "max_unreported_days", "ticket", "days without a report before this one"),
    Watch("drift_score", "", "ticket", "× the drift limit in what is served"),
)
GATE_FAILED, GATE_INVALID = "gate_failed", "gate_invalid"
ALERT_NAMES = (*(watch.gauge for watch in WATCHED), GATE_FAILED, GATE_INVALID)
"""Every alert there can be; each has a section of that name in docs/runbook.md."""


@dataclass(frozen=True)
class Alert:
    """One thing a person should know. runbook: file and anchor of what to do."""

    name: str
    severity: Severity
    summary: str
    value: float | None
    limit: float | None
    day: str
    release_id: str
    runbook: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same alert."""
        return self.name, self.day, self.release_id


def limits(params: MonitorParams) -> dict[str, Limit]:
    """Gauge → limit, for the gauges that are watched."""
    found = {watch.gauge: getattr(params, watch.param) if watch.param else 1.0 for watch in WATCHED}
    return {w.gauge: Limit(float(found[w.gauge]), w.most) for w in WATCHED if found[w.gauge] is not None}


def judge_gauges(
    gauges: Mapping[str, float], bounds: Mapping[str, Limit], *, day: date, release_id: str
) -> list[Alert]:
    """An alert for every gauge beyond its limit, pages first. A gauge that was not measured alerts nobody."""
    found = []
    for watch in WATCHED:
        limit, value = bounds.get(watch.gauge), gauges.get(watch.gauge)
        if limit is None or value is None or limit.holds(value):
            continue
        summary = f"{value:.4g} {watch.what}, {limit}"
        found.append(_alert(watch.gauge, watch.severity, summary, value, limit.value, day, release_id))
    return sorted(found, key=lambda alert: alert.severity != "page")


def judge_verdict(verdict: Verdict, *, day: date) -> list[Alert]:
    """An alert if the gate did not let a release pass: the champion stays, so nobody is woken."""
    if verdict.status == "passed":
        return []
    name = GATE_INVALID if verdict.status == "invalid" else GATE_FAILED
    first = verdict.failures[0]
    more = f" (and {len(verdict.failures) - 1} more)" if len(verdict.failures) > 1 else ""
    summary = f"release kept out: {first.name}: {first.reason}{more}"
    return [_alert(name, "ticket", summary, first.observed, first.limit, day, verdict.release_id)]


def _alert(
    name: str, severity: Severity, summary: str, value: float | None, limit: float | None, day: date, release_id: str
) -> Alert:
    return Alert(name, severity, summary, value, limit, day.isoformat(), release_id, f"docs/runbook.md#{name}")


def alerts_file(home: Path) -> Path:
    """Where a home keeps its alerts."""
    return home / ".plumline" / "alerts.jsonl"


def read_alerts(home: Path) -> list[Alert]:
    """Every alert recorded, oldest first. A last line that a killed writer left unfinished is passed over."""
    return _parse(alerts_file(home).read_bytes()) if alerts_file(home).is_file() else []


def record(home: Path, alerts: Sequence[Alert], notify: Callable[[Alert], None] | None = None) -> list[Alert]:
    """Append the alerts that are not recorded yet, and return them.

    Each is told to `notify` before it is recorded: after a crash in between, or if `notify` raises, it is told again by
    the next call rather than never. Callers take turns under a lock on the file, and all lines go in one write.
    """
    path = alerts_file(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        content = file.read()
        seen = {alert.key for alert in _parse(content)}
        told: list[Alert] = []
        try:
            for alert in _distinct(alerts):
                if alert.key not in seen:
                    if notify is not None:
                        notify(alert)
                    told.append(alert)
        finally:
            if told:
                mend = b"" if content.endswith(b"\n") or not content else b"\n"
                file.write(mend + b"".join(canonical_json(asdict(alert)).encode() + b"\n" for alert in told))
                file.flush()
                os.fsync(file.fileno())
    return told


def _distinct(alerts: Iterable[Alert]) -> list[Alert]:
    return list({alert.key: alert for alert in alerts}.values())


def _parse(content: bytes) -> list[Alert]:
    found = []
    for line in content.splitlines():
        try:
            found.append(Alert(**json.loads(line)))
        except (ValueError, TypeError):
            continue  # a line cut by a kill: its alert was not recorded and is told again
    return found
