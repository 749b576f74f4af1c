"""A day is gathered from every place that holds a part of it; a part that is missing is a gap."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import ModuleType

import pyarrow as pa

from features.expectations.events import REPEATED
from monitoring.day import gather
from monitoring.health import MonitorParams
from monitoring.verdict import Check, Verdict
from plumline.tables import write_parquet
from serving.pointers import add_tombstones

DAY = date(2011, 11, 1)
NOW = datetime(2011, 11, 2, 6, tzinfo=UTC)


def test_a_bare_home_has_the_release_alone(example: ModuleType, tmp_path: Path) -> None:
    release = example.make_release(tmp_path / "r", DAY - timedelta(days=1))
    day = gather(tmp_path, release, day=DAY, now=NOW, params=MonitorParams())
    assert day.gauges["requests"] == 0
    assert (
        not {"invalid_served", "drift_score", "quarantined_rows", "reactions_put_aside_percent", "unreported_days"}
        & day.gauges.keys()
    )
    assert day.alerts == []
    assert day.gauges["checks"] == day.gauges["checks_passed"] > 0


def test_traffic_quarantine_tombstones_and_verdict(example: ModuleType, tmp_path: Path) -> None:
    release = example.make_release(tmp_path / "r", DAY - timedelta(days=1))
    rows = [example.answer(DAY, n, ["item-00", f"item-0{1 + n % 5}"], release.release_id) for n in range(20)]
    clicks = [example.answer(DAY, n, ["item-00"], release.release_id, action="click", sids=()) for n in range(5)]
    example.put_traffic(tmp_path / "data" / "traffic", DAY, rows + clicks)
    yesterday = DAY - timedelta(days=1)
    older = [example.answer(yesterday, n, ["item-00", f"item-0{1 + n % 5}"], "any") for n in range(20)]
    example.put_traffic(tmp_path / "data" / "traffic", yesterday, older)
    aside = [
        (DAY, "unknown item", "ab/day"),
        (DAY, "late", "traffic/x"),
        (DAY - timedelta(days=1), "late", "traffic/y"),
    ]
    aside += [(DAY, REPEATED, "traffic/x")]
    quarantine = pa.table(dict(zip(("day", "reason", "source"), map(list, zip(*aside, strict=True)), strict=True)))
    write_parquet(tmp_path / "artifacts" / "events" / "quarantine.parquet", quarantine)
    add_tombstones(tmp_path / "releases", ["item-01"])
    failed = Verdict(False, (Check("num_invalid", 1, 0, False, "1, at most 0"),), "r9", "d")
    last_report = DAY - timedelta(days=6)

    params = MonitorParams()
    day = gather(tmp_path, release, day=DAY, now=NOW, params=params, verdict=failed, last_report=last_report)

    assert day.quarantine == {"late": 1, "unknown item": 1, REPEATED: 1}
    assert day.gauges["reactions_put_aside_percent"] == 20
    assert day.gauges["requests"] == 20
    assert day.gauges["retired_served"] == 4
    assert day.gauges["unreported_days"] == 5
    assert day.most_served[0].item_id == "item-00"
    assert day.most_served[0].title == example.NASTY_TITLE
    assert day.most_served[0].num_served == 20
    assert [alert.name for alert in day.alerts] == [
        "retired_served",
        "reactions_put_aside_percent",
        "unreported_days",
        "gate_failed",
    ]
    assert day.gauges["checks_failed"] == 4


def test_a_day_is_compared_with_the_week_before_it(example: ModuleType, tmp_path: Path) -> None:
    release = example.make_release(tmp_path / "r", DAY - timedelta(days=1))
    for back in (0, 7, 8):
        rows = [example.answer(DAY - timedelta(days=back), n, ["item-00"], release.release_id) for n in range(3 + back)]
        example.put_traffic(tmp_path / "data" / "traffic", DAY - timedelta(days=back), rows)
    day = gather(tmp_path, release, day=DAY, now=NOW, params=MonitorParams())
    assert {(drift.num_reference, drift.num_current) for drift in day.drifts} == {(10, 3)}
