"""A limit that is passed is told once, whatever happens to the process that tells it."""

import json
import multiprocessing
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from models.retrieval.beam_check import SCORE_TOLERANCE
from monitoring.alerts import (
    ALERT_NAMES,
    WATCHED,
    Alert,
    Limit,
    alerts_file,
    judge_gauges,
    judge_verdict,
    limits,
    read_alerts,
    record,
)
from monitoring.gates import GateParams
from monitoring.health import MonitorParams
from monitoring.verdict import Check, Verdict
from plumline.stage import load_params

DAY = date(2011, 11, 1)
BOUNDS = limits(MonitorParams(max_quarantined_rows=5))


def _alert(name: str = "invalid_served", day: str = "2011-11-01", release: str = "r1") -> Alert:
    return Alert(name, "page", "3 served, at most 0", 3.0, 0.0, day, release, f"docs/runbook.md#{name}")


def test_every_watched_gauge_alerts_beyond_its_limit_and_only_there() -> None:
    for watch in WATCHED:
        limit = BOUNDS[watch.gauge]
        beyond = limit.value + (1 if watch.most else -1)
        found = judge_gauges({watch.gauge: beyond}, BOUNDS, day=DAY, release_id="r1")
        assert [alert.name for alert in found] == [watch.gauge]
        assert found[0].runbook == f"docs/runbook.md#{watch.gauge}"
        assert judge_gauges({watch.gauge: limit.value}, BOUNDS, day=DAY, release_id="r1") == []


@pytest.mark.parametrize(
    ("gauge", "held", "beyond"),
    [
        ("invalid_served", 0, 1),
        ("retired_served", 0, 1),
        ("repeated_served", 0, 1),
        ("empty_percent", 1.0, 1.01),
        ("degraded_percent", 5.0, 5.01),
        ("latency_p99_ms", 1000, 1001),
        ("requests", 0, None),
        ("staleness_hours", 36, 36.1),
        ("hallucination_percent", 10.0, 10.1),
        ("beam_false", 0, 1),
        ("beam_score_error", 1e-3, 1.1e-3),
        ("beam_missed_items_percent", 10.0, 10.1),
        ("sid_uniqueness_percent", 50.0, 49.9),
        ("recall_over_popularity", 1.0, 0.999),
        ("simple_methods_ahead", 0, 1),
        ("quarantined_rows", 10**9, None),
        ("reactions_put_aside_percent", 5.0, 5.01),
        ("unreported_days", 3, 4),
        ("drift_score", 1.0, 1.001),
    ],
)
def test_where_a_day_becomes_an_alert_if_nobody_set_a_limit(gauge: str, held: float, beyond: float | None) -> None:
    bounds = limits(MonitorParams())
    assert judge_gauges({gauge: held}, bounds, day=DAY, release_id="r1") == []
    if beyond is not None:
        (alert,) = judge_gauges({gauge: beyond}, bounds, day=DAY, release_id="r1")
        assert (alert.name, alert.value) == (gauge, beyond)


def test_limits_follow_the_parameters() -> None:
    assert "quarantined_rows" not in limits(MonitorParams())
    assert BOUNDS["quarantined_rows"] == Limit(5.0)
    assert not BOUNDS["sid_uniqueness_percent"].most
    assert not Limit(1.0).holds(float("nan"))
    assert str(Limit(2, most=False)) == "at least 2"


def test_a_broken_certificate_pages_and_a_narrow_search_waits() -> None:
    beams = {"beam_missed_items_percent": 10.1, "beam_missed_mass_percent": 99.0}
    found = judge_gauges({**beams, "beam_false": 1.0, "beam_score_error": 0.002}, BOUNDS, day=DAY, release_id="r1")
    assert [(alert.severity, alert.name, alert.limit) for alert in found] == [
        ("page", "beam_false", 0.0),
        ("page", "beam_score_error", 0.001),
        ("ticket", "beam_missed_items_percent", 10.0),
    ]
    wider = limits(MonitorParams(max_beam_missed_percent=11.0))
    assert judge_gauges(beams, wider, day=DAY, release_id="r1") == []


def test_the_limit_of_the_score_error_is_the_certificates() -> None:
    assert MonitorParams().max_beam_score_error == SCORE_TOLERANCE


def test_every_alert_has_a_section_in_the_runbook(root: Path) -> None:
    headings = {line[3:] for line in (root / "docs" / "runbook.md").read_text().splitlines() if line.startswith("## ")}
    assert set(ALERT_NAMES) <= headings


def test_recipes_hold_sections_that_fit(root: Path) -> None:
    for recipe in sorted((root / "recipes").glob("*.yaml")):
        assert load_params(recipe, "gate", GateParams)
        assert load_params(recipe, "monitor", MonitorParams)


def test_pages_come_first() -> None:
    found = judge_gauges({"drift_score": 2.0, "retired_served": 1.0}, BOUNDS, day=DAY, release_id="r1")
    assert [(alert.severity, alert.name) for alert in found] == [("page", "retired_served"), ("ticket", "drift_score")]


def test_a_verdict_that_is_no_pass_is_an_alert() -> None:
    good = Verdict(True, (Check("num_queries", 5, 1, True, "5"),), "r1", "d")
    bad = replace(good, passed=False, checks=(Check("num_invalid", 2, 0, False, "2 invalid"),) * 2)
    invalid = replace(bad, checks=(Check("num_queries", None, 1, False, "none", valid=False),))
    assert judge_verdict(good, day=DAY) == []
    assert judge_verdict(bad, day=DAY)[0].summary == "release kept out: num_invalid: 2 invalid (and 1 more)"
    assert [judge_verdict(v, day=DAY)[0].name for v in (bad, invalid)] == ["gate_failed", "gate_invalid"]
    assert {"gate_failed", "gate_invalid"} <= set(ALERT_NAMES)


def test_an_alert_is_recorded_and_told_once(tmp_path: Path) -> None:
    told: list[Alert] = []
    alerts = [_alert(), _alert(), _alert(day="2011-11-02"), _alert(release="r2")]
    assert record(tmp_path, alerts, told.append) == [alerts[0], *alerts[2:]]
    assert record(tmp_path, alerts, told.append) == []
    assert told == read_alerts(tmp_path) == [alerts[0], *alerts[2:]]
    lines = alerts_file(tmp_path).read_text().splitlines()
    assert json.loads(lines[0])["name"] == "invalid_served"


def test_a_line_cut_by_a_kill_is_told_again_and_breaks_nothing(tmp_path: Path) -> None:
    first, second = _alert(), _alert("retired_served")
    record(tmp_path, [first, second])
    whole = alerts_file(tmp_path).read_bytes()
    alerts_file(tmp_path).write_bytes(whole[:-20])
    assert read_alerts(tmp_path) == [first]
    assert record(tmp_path, [first, second]) == [second]
    assert read_alerts(tmp_path) == [first, second]


def test_a_notification_that_fails_is_tried_again(tmp_path: Path) -> None:
    def fail_on_second(alert: Alert) -> None:
        if alert.name == "retired_served":
            raise ConnectionError("no route")

    alerts = [_alert(), _alert("retired_served")]
    with pytest.raises(ConnectionError):
        record(tmp_path, alerts, fail_on_second)
    assert read_alerts(tmp_path) == alerts[:1]
    assert record(tmp_path, alerts) == alerts[1:]


def _record_all(home: Path) -> None:
    record(home, [_alert(release=f"r{number}") for number in range(50)])


def test_writers_at_once_record_each_alert_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_record_all, args=(tmp_path,)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(alert.release_id for alert in read_alerts(tmp_path)) == sorted(f"r{number}" for number in range(50))
