"""A release's own figures, read as they stand."""

from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from monitoring.methods import Difference
from monitoring.quality import Beam, MethodScore, Quality, next_day_recalls, read_quality

DAY = date(2011, 10, 31)


def _read(example: ModuleType, folder: Path, scores: dict[str, Any]) -> Quality:
    return read_quality(example.make_release(folder, DAY, scores=scores))


def test_figures_of_a_release(example: ModuleType, tmp_path: Path) -> None:
    quality = read_quality(example.make_release(tmp_path / "r", DAY))
    assert quality.next_days.num_queries == 500
    assert (quality.recall("served"), quality.recall("model"), quality.recall("nobody")) == (0.3, 0.2, None)
    assert quality.next_day == 0.32  # the first held-out day, whatever the order of the rows
    assert quality.gauges["recall_sasrec_percent"] == pytest.approx(15)
    assert quality.gauges["recall_over_popularity"] == pytest.approx(3)
    assert quality.gauges["hallucination_percent"] == pytest.approx(2)
    assert quality.gauges["sid_collisions"] == 0
    assert quality.gauges["sid_least_perplexity"] == 3.9
    assert quality.gauges["effective_vocabulary"] == 11


def test_every_method_is_a_row_with_what_is_served_beside_it(example: ModuleType, tmp_path: Path) -> None:
    quality = read_quality(example.make_release(tmp_path / "r", DAY))
    names = list(dict.fromkeys(score.name for score in quality.next_days.scores))
    assert names == [
        *("served", "without model", "model", "memory", "own", "popularity", "item-kNN"),
        "SASRec of 2011-10-01",
    ]
    assert len(quality.next_days.scores) == 16
    own = quality.next_days.of("own", "seen_masked")
    assert own == MethodScore(
        "own", "own", "seen_masked", 0.24, 0.01, 0.12, 0.005, Difference(pytest.approx(0.06), 0.004)
    )
    served = quality.next_days.of("served", "not_masked")
    assert served is not None
    assert served.minus is None
    sasrec = quality.next_days.of("sasrec", "not_masked")
    assert sasrec is not None
    assert sasrec.minus == Difference(pytest.approx(0.15), pytest.approx(0.0141, abs=1e-4), paired=False)
    assert quality.last_event is not None
    assert quality.last_event.num_queries == 77
    assert [(s.method, s.protocol, s.recall) for s in quality.last_event.scores] == [
        ("served", "seen_masked", 0.061),
        ("served", "not_masked", 0.061),
        ("without_model", "seen_masked", 0.05),
        ("without_model", "not_masked", 0.05),
        ("text_knn", "seen_masked", 0.043),
        ("text_knn", "not_masked", 0.043),
    ]
    assert quality.last_event.gains["not_masked"] == Difference(pytest.approx(0.011), 0.004)


def test_every_method_has_a_gauge_a_protocol(example: ModuleType, tmp_path: Path) -> None:
    scores = example.make_scores(DAY)
    for number, method in enumerate(scores["methods"]):
        scores["methods"][method]["seen_masked"]["recall@10"] = 0.01 * number
    gauges = _read(example, tmp_path / "r", scores).gauges
    plain = {"served": 30, "without_model": 28, "model": 20, "memory": 27, "own": 24, "popularity": 10, "item_knn": 25}
    for number, (method, percent) in enumerate({**plain, "sasrec": 15}.items()):
        assert gauges[f"recall_{method}_percent"] == pytest.approx(percent)
        assert gauges[f"recall_masked_{method}_percent"] == pytest.approx(number)


def test_what_the_model_adds_is_a_gauge_with_its_error(example: ModuleType, tmp_path: Path) -> None:
    scores = example.make_scores(DAY)
    scores["model_gain"]["not_masked"]["recall@10"] = -0.001
    found = {k: v for k, v in _read(example, tmp_path / "r", scores).gauges.items() if k.startswith("model_gain")}
    assert found == {
        "model_gain_percent": pytest.approx(-0.1),
        "model_gain_se_percent": pytest.approx(0.4),
        "model_gain_masked_percent": pytest.approx(2),
        "model_gain_masked_se_percent": pytest.approx(0.4),
    }
    scores["model_gain"]["not_masked"]["recall@10"] = None
    assert "model_gain_percent" not in _read(example, tmp_path / "gap", scores).gauges


def test_simple_methods_that_are_ahead_are_counted_and_named(example: ModuleType, tmp_path: Path) -> None:
    scores = example.make_scores(DAY)
    assert _read(example, tmp_path / "none", scores).gauges["simple_methods_ahead"] == 0
    for method, behind in (("memory", -0.0081), ("item_knn", -0.02), ("own", -0.008), ("without_model", -0.1)):
        scores["served_minus"][method]["not_masked"]["recall@10"] = behind
    scores["served_minus"]["popularity"]["seen_masked"]["recall@10"] = -0.1
    scores["methods"]["sasrec"] = example.method(0.9)
    quality = _read(example, tmp_path / "two", scores)
    assert quality.simple_methods_ahead == ["memory", "item-kNN"]
    assert quality.gauges["simple_methods_ahead"] == 2


def test_a_release_of_before_the_ranker_served_its_model(example: ModuleType, tmp_path: Path) -> None:
    scores = example.make_old_scores(DAY, recall=0.2)
    quality = _read(example, tmp_path / "r", scores)
    assert quality.recall("served") == quality.recall("model") == 0.2
    assert quality.gauges["recall_served_percent"] == quality.gauges["recall_model_percent"] == pytest.approx(20)
    assert quality.gauges["recall_over_popularity"] == pytest.approx(2)
    assert quality.simple_methods_ahead == []
    assert [score.name for score in quality.next_days.scores][:3] == ["model (served)", "model (served)", "popularity"]
    assert quality.next_days.gains == {}
    assert not [name for name in quality.gauges if name.startswith(("model_gain", "recall_memory"))]
    scores["methods"]["item_knn"] = example.method(0.25)
    assert _read(example, tmp_path / "behind", scores).simple_methods_ahead == ["item-kNN"]


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
    assert quality.next_days.scores == ()
    assert quality.last_event is None
    assert quality.simple_methods_ahead is None
    assert quality.gauges == {"sid_uniqueness_percent": 50.0}


def test_next_day_recall_of_successive_releases(example: ModuleType, tmp_path: Path) -> None:
    days = [date(2011, 11, 2), date(2011, 10, 31), date(2011, 11, 1)]
    releases = [example.make_release(tmp_path / str(day), day) for day in days]
    silent = example.make_scores(date(2011, 11, 3), daily=[{"day": "2011-11-04", "num_queries": 0, "recall@10": 0.0}])
    releases.append(example.make_release(tmp_path / "silent", date(2011, 11, 3), scores=silent))
    found = next_day_recalls(releases)
    assert [point.day for point in found] == [date(2011, 11, 1), date(2011, 11, 2), date(2011, 11, 3)]
    assert [point.recall for point in found] == [0.32] * 3
