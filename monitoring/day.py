"""Day: everything that is known about one served day, gathered from the places that hold it.

Reads a sealed release, data/traffic, the events artifact and releases/tombstones.json of a home. Writes nothing;
reports.py publishes what is gathered here.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from features.batches import QUARANTINE_FILE
from features.expectations.events import REPEATED
from monitoring.alerts import Alert, Limit, judge_gauges, judge_verdict, limits
from monitoring.drift import Drift, drift_gauges, drift_of_day
from monitoring.health import Health, MonitorParams, answers, judge_traffic, of_days, read_served_items
from monitoring.quality import Quality, read_quality
from monitoring.verdict import Verdict
from plumline.tables import column, read_parquet
from serving.pointers import read_tombstones
from serving.release import Release
from serving.traffic import read_traffic

NUM_MOST_SERVED = 10


@dataclass(frozen=True)
class ServedItem:
    """An item and how often it was in an answer that day. title: "" where the catalogue has none; untrusted text."""

    item_id: str
    title: str
    num_served: int


@dataclass(frozen=True)
class Day:
    """What was found about a day. bounds: gauge → limit. quarantine: reason → rows, None if there is no such file.
    num_reactions_aside: reactions among them, not counting those that came twice.

    last_report: the last day before this one that was reported, None on the first.
    """

    day: date
    health: Health
    quality: Quality
    drifts: list[Drift]
    bounds: dict[str, Limit]
    quarantine: dict[str, int] | None
    most_served: list[ServedItem]
    verdict: Verdict | None
    last_report: date | None
    num_reactions_aside: int = 0

    @property
    def measured(self) -> dict[str, float]:
        """Gauge name → value; what was not measured is not there, so that a gap looks like a gap."""
        found = {**self.quality.gauges, **self.health.gauges, **drift_gauges(self.drifts)}
        if self.quarantine is not None:
            found["quarantined_rows"] = float(sum(self.quarantine.values()))
            reactions = max(self.health.num_reactions, self.num_reactions_aside)
            if reactions:
                found["reactions_put_aside_percent"] = 100 * self.num_reactions_aside / reactions
        if self.last_report is not None:
            found["unreported_days"] = float((self.day - self.last_report).days - 1)
        return found

    @property
    def gauges(self) -> dict[str, float]:
        """`measured`, and how many checks (limits, and rules of the gate) there were, held and failed."""
        measured = self.measured
        held = [limit.holds(measured[name]) for name, limit in self.bounds.items() if name in measured]
        if self.verdict is not None:
            held += [check.passed and check.valid for check in self.verdict.checks if check.blocking]
        counts = {"checks": len(held), "checks_passed": sum(held), "checks_failed": len(held) - sum(held)}
        return {**measured, **{name: float(count) for name, count in counts.items()}}

    @property
    def alerts(self) -> list[Alert]:
        """What a person should know about this day."""
        found = judge_gauges(self.measured, self.bounds, day=self.day, release_id=self.quality.release_id)
        return found + (judge_verdict(self.verdict, day=self.day) if self.verdict else [])


def gather(
    home: Path,
    release: Release,
    *,
    day: date,
    now: datetime,
    params: MonitorParams,
    verdict: Verdict | None = None,
    last_report: date | None = None,
) -> Day:
    """Look at a day: the release's own figures, the day's traffic against it, and what validation put aside.

    release: the one that served on `day`. now: with a time zone. verdict: the gate's word on the release that was
    judged that day, whether or not it became champion. Missing traffic or events leave their figures out.
    """
    served_items = read_served_items(release, read_tombstones(home / "releases"))
    first, yesterday = day - timedelta(days=params.reference_days), day - timedelta(days=1)
    traffic = read_traffic(home / "data" / "traffic", first, day)
    today = of_days(traffic, day, day)
    quarantine, reactions_aside = _quarantine(home / "artifacts" / "events", day)
    return Day(
        day=day,
        health=judge_traffic(today, served_items, now=now),
        quality=read_quality(release),
        drifts=drift_of_day(of_days(traffic, first, yesterday), today, served_items, params, day=day),
        bounds=limits(params),
        quarantine=quarantine,
        most_served=_most_served(today, served_items.titles),
        verdict=verdict,
        last_report=last_report,
        num_reactions_aside=reactions_aside,
    )


def _quarantine(events: Path, day: date) -> tuple[dict[str, int] | None, int]:
    """The day's rows that validation put aside, a reason, and how many are reactions that did not come twice."""
    path = events / QUARANTINE_FILE
    if not path.is_file():
        return None, 0
    rows = read_parquet(path, ["day", "reason", "source"])
    rows = rows.filter(pc.equal(rows.column("day"), day))
    reactions = rows.filter(pc.starts_with(rows.column("source"), "traffic/")).column("reason")
    num_reactions = pc.sum(pc.not_equal(reactions, REPEATED)).as_py() or 0
    return dict(sorted(Counter(column(rows, "reason")).items())), num_reactions


def _most_served(today: pa.Table, titles: Mapping[str, str]) -> list[ServedItem]:
    counts = Counter(pc.list_flatten(answers(today).column("item_ids")).to_pylist())
    first = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:NUM_MOST_SERVED]
    return [ServedItem(item, titles.get(item, ""), count) for item, count in first]
