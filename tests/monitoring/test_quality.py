"""A release's own figures, read as they stand."""

from datetime import date
from pathlib import Path
from types import ModuleType

import pytest

from monitoring.quality import Beam, next_day_recalls, read_quality

DAY = date(2011, 10, 31)


def test_figures_of_a_release(example: ModuleType, tmp_path: Path) -> None:
    quality = read_quality(example.make_release(tmp_path / "r", DAY))
    assert quality.num_queries == 500
    assert quality.recall("model") == 0.2
    assert quality.recall("nobody") is None
    assert quality.next_day == 0.32  # the first held-out day, whatever the order of the rows
    assert quality.gauges["recall_sasrec_percent"] == pytest.approx(15)
    assert quality.gauges["recall_over_popularity"] == pytest.approx(2)
    assert quality.gauges["hallucination_percent"] == pytest.approx(2)
    assert quality.gauges["sid_collisions"] == 0
    assert quality.gauges["sid_least_perplexity"] == 3.9
    assert quality.gauges["effective_vocabulary"] == 11
    assert quality.num_last_events == 77
    assert [(s.method, s.protocol, s.recall) for s in quality.last_event] == [
        ("served", "not_masked", 0.061),
        ("served", "seen_masked", 0.061),
        ("text_knn", "not_masked", 0.043),
        ("text_knn", "seen_masked", 0.043),
        ("without_model", "not_masked", 0.05),
        ("without_model", "seen_masked", 0.05),
    ]


def test_churn_of_a_retraining_is_a_gauge_a_level(example: ModuleType, tmp_path: Path) -> None:
    churn = {
        "num_known": 20,
        "before": [{"level": 1, "items": 0.98, "traffic": None}, {"level": 2, "items": 1.0, "traffic": None}],
        "after": [{"level": 1, "items": 0.4, "traffic": 0.35}, {"level": 2, "items": 0.9, "traffic": 0.875}],
    }
    report = example.make_sids_report(churn=churn)
    gauges = read_quality(example.make_release(tmp_path / "r", DAY, sids_report=report)).gauges
    found = {name: value for name, value in gauges.items() if "churn" in name}
    assert found == {
        "sid_churn_level1_percent": 35.0,
        "sid_churn_level1_unaligned_percent": 98.0,  # by items, where nothing has traffic
        "sid_churn_level2_percent": 87.5,
        "sid_churn_level2_unaligned_percent": 100.0,
    }


def test_what_the_beams_miss_and_say_falsely_are_gauges(example: ModuleType, tmp_path: Path) -> None:
    beam = example.make_certificate(num_invalid=2, num_duplicates=3)
    quality = read_quality(example.make_release(tmp_path / "r", DAY, scores=example.make_scores(DAY, beam=beam)))
    assert quality.beam == Beam(missed_mass=0.005, missed_items=0.03, score_error=2e-6, num_false=5)
    found = {name: value for name, value in quality.gauges.items() if name.startswith("beam_")}
    assert found == {
        "beam_missed_mass_percent": 0.5,
        "beam_missed_items_percent": 3.0,
        "beam_score_error": 2e-6,
        "beam_false": 5.0,
    }


def test_a_clean_certificate_is_a_zero_and_none_is_a_gap(example: ModuleType, tmp_path: Path) -> None:
    assert read_quality(example.make_release(tmp_path / "clean", DAY)).gauges["beam_false"] == 0
    scores = example.make_scores(DAY)
    del scores["beam"]
    without = read_quality(example.make_release(tmp_path / "without", DAY, scores=scores))
    assert without.beam is None
    assert not [name for name in without.gauges if name.startswith("beam_")]


def test_figures_that_are_missing_are_left_out(example: ModuleType, tmp_path: Path) -> None:
    bare = {"as_of": DAY.isoformat(), "num_queries": 0, "methods": {"model": {"not_masked": {}}}, "daily": []}
    release = example.make_release(tmp_path / "r", DAY, scores=bare, sids_report={"uniqueness": 0.5})
    quality = read_quality(release)
    assert quality.scores == ()
    assert quality.gauges == {"sid_uniqueness_percent": 50.0}


def test_next_day_recall_of_successive_releases(example: ModuleType, tmp_path: Path) -> None:
    days = [date(2011, 11, 2), date(2011, 10, 31), date(2011, 11, 1)]
    releases = [example.make_release(tmp_path / str(day), day) for day in days]
    silent = example.make_scores(date(2011, 11, 3), daily=[{"day": "2011-11-04", "num_queries": 0, "recall@10": 0.0}])
    releases.append(example.make_release(tmp_path / "silent", date(2011, 11, 3), scores=silent))
    found = next_day_recalls(releases)
    assert [point.day for point in found] == [date(2011, 11, 1), date(2011, 11, 2), date(2011, 11, 3)]
    assert [point.recall for point in found] == [0.32] * 3
