"""The gate lets good releases through and keeps each kind of bad one out, for the reason it names."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.gates import Check, GateParams, Verdict, judge, judge_release
from plumline import artifact
from plumline.errors import ArtifactError, CorruptArtifactError, RefusedError

DAY = date(2011, 10, 31)
PARAMS = GateParams(slice_floors={"history/short": 0.05}, max_behind_popularity_se=0.0)


def _change(value: dict[str, Any], path: str, new: Any) -> dict[str, Any]:
    changed = copy.deepcopy(value)
    *parents, last = path.split("|")
    node = changed
    for key in parents:
        node = node[key]
    if new is None:
        del node[last]
    else:
        node[last] = new
    return changed


def test_good_release_passes(example: ModuleType) -> None:
    verdict = judge(example.make_scores(DAY), example.make_sids_report(), example.make_scores(DAY), PARAMS)
    assert verdict.passed
    assert verdict.status == "passed"
    assert verdict.failures == ()


@pytest.mark.parametrize(
    ("path", "new", "failing", "status"),
    [
        ("num_queries", 0, "num_queries", "invalid"),
        ("num_queries", None, "num_queries", "invalid"),
        ("num_invalid", 1, "num_invalid", "failed"),
        ("num_invalid", None, "num_invalid", "invalid"),
        ("hallucination_rate", 0.11, "hallucination_rate", "failed"),
        ("hallucination_rate", float("nan"), "hallucination_rate", "invalid"),
        ("methods|model|not_masked|recall@10", 0.09, "not_masked/popularity", "failed"),
        ("methods|model", None, "not_masked/popularity", "invalid"),
        ("methods|popularity", None, "not_masked/popularity", "invalid"),
        ("slices|history|short|recall@10", 0.04, "slice/history/short", "failed"),
        ("slices|history", None, "slice/history/short", "invalid"),
    ],
)
def test_bad_scores_are_kept_out(example: ModuleType, path: str, new: Any, failing: str, status: str) -> None:
    scores = _change(example.make_scores(DAY), path, new)
    verdict = judge(scores, example.make_sids_report(), None, PARAMS)
    assert not verdict.passed
    assert failing in [check.name for check in verdict.failures]
    assert verdict.status == status
    assert all("\n" not in check.reason for check in verdict.checks)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_invalid": 2}, "broken: 2 invalid, 0 duplicates, score error 2e-06 over 10 requests"),
        ({"num_duplicates": 1}, "broken: 0 invalid, 1 duplicates, score error 2e-06 over 10 requests"),
        ({"score_error": 0.02}, "broken: 0 invalid, 0 duplicates, score error 0.02 over 10 requests"),
    ],
)
def test_a_broken_beam_certificate_is_kept_out(example: ModuleType, changes: dict[str, Any], reason: str) -> None:
    scores = example.make_scores(DAY, beam=example.make_certificate(**changes))
    verdict = judge(scores, example.make_sids_report(), None, PARAMS)
    assert verdict.status == "failed"
    assert [(check.name, check.reason) for check in verdict.failures] == [("beam_certificate", reason)]


def test_beams_that_miss_much_and_say_nothing_false_pass(example: ModuleType) -> None:
    scores = example.make_scores(DAY, beam=example.make_certificate(missed_items=0.9, missed_mass=0.9))
    verdict = judge(scores, example.make_sids_report(), None, PARAMS)
    check = _check_of(verdict, "beam_certificate")
    assert verdict.passed
    assert check.passed
    assert check.blocking
    assert check.reason == "holds: 0 invalid, 0 duplicates, score error 2e-06 over 10 requests"


@pytest.mark.parametrize("absent", [{}, {"beam": None}])
def test_a_release_without_a_certificate_is_judged_by_the_rest(example: ModuleType, absent: dict[str, Any]) -> None:
    scores = {key: value for key, value in example.make_scores(DAY).items() if key != "beam"} | absent
    verdict = judge(scores, example.make_sids_report(), None, PARAMS)
    check = _check_of(verdict, "beam_certificate")
    assert verdict.status == "passed"
    assert not check.passed
    assert not check.blocking
    assert check.reason.startswith("no certificate")


def test_a_certificate_without_a_word_on_whether_it_holds_is_not_judged(example: ModuleType) -> None:
    verdict = judge(_change(example.make_scores(DAY), "beam|holds", None), example.make_sids_report(), None, PARAMS)
    assert verdict.status == "invalid"
    assert [check.name for check in verdict.failures] == ["beam_certificate"]


def test_collapsed_codebook_is_kept_out(example: ModuleType) -> None:
    verdict = judge(example.make_scores(DAY), example.make_sids_report(uniqueness=0.3), None, PARAMS)
    assert [check.name for check in verdict.failures] == ["uniqueness"]
    assert verdict.failures[0].reason == "0.3 share of items alone on a SID, at least 0.5"


def test_better_simpler_methods_are_named_and_do_not_block(example: ModuleType) -> None:
    verdict = judge(example.make_scores(DAY, recall=0.2), example.make_sids_report(), None, PARAMS)
    knn = next(check for check in verdict.checks if check.name == "not_masked/item_knn")
    assert verdict.passed
    assert not knn.passed
    assert not knn.blocking
    assert knn.reason == "recall@10 0.2, item_knn 0.25: item_knn is better"


@pytest.mark.parametrize(("behind", "passes"), [(0.0, True), (1.9, True), (2.1, False)])
def test_popularity_ahead_by_noise_does_not_block(example: ModuleType, behind: float, passes: bool) -> None:
    scores = example.make_scores(DAY)
    for name, recall in (("model", 0.2 - behind * 0.05), ("popularity", 0.2)):
        for key, value in (("recall@10", recall), ("recall@10_se", 0.03 if name == "model" else 0.04)):
            scores = _change(scores, f"methods|{name}|not_masked|{key}", value)  # together 0.05
    verdict = judge(scores, example.make_sids_report(), None, GateParams(protocol="not_masked"))
    check = next(check for check in verdict.checks if check.name == "not_masked/popularity")
    assert check.passed is passes
    assert ("popularity is better" in check.reason) is (behind > 0)


@pytest.mark.parametrize(("champion", "passes"), [(None, True), (0.1, True), (0.3, False)])
def test_once_beaten_popularity_blocks_only_if_the_champion_beats_it(
    example: ModuleType, champion: float | None, passes: bool
) -> None:
    def scored(recall: float) -> dict[str, Any]:
        scores = example.make_scores(DAY, recall=recall)
        for name, value in (("model", recall), ("popularity", 0.2)):
            scores = _change(scores, f"methods|{name}|not_masked|recall@10", value)
            scores = _change(scores, f"methods|{name}|not_masked|recall@10_se", 0.001)
        return scores

    params = GateParams(popularity_blocks="once_beaten", max_relative_drop=1.0, max_slice_relative_drop=1.0)
    before = None if champion is None else scored(champion)
    verdict = judge(scored(0.1), example.make_sids_report(), before, params)
    assert verdict.passed is passes
    check = next(check for check in verdict.checks if check.name == "not_masked/popularity")
    assert not check.passed
    assert not judge(scored(0.1), example.make_sids_report(), before, GateParams(max_relative_drop=1.0)).passed


@pytest.mark.parametrize(("protocol", "passes"), [("seen_masked", False), ("not_masked", True)])
def test_protocol_decides_which_recall_blocks(example: ModuleType, protocol: Any, passes: bool) -> None:
    scores = _change(example.make_scores(DAY), "methods|model|seen_masked|recall@10", 0.05)
    verdict = judge(scores, example.make_sids_report(), None, GateParams(protocol=protocol))
    assert verdict.passed is passes
    assert not next(check for check in verdict.checks if check.name == "seen_masked/popularity").passed


@pytest.mark.parametrize(
    ("recall", "error", "passes"),
    [
        (0.30, 0.001, True),  # better
        (0.29, 0.001, True),  # significant, but small (3%)
        (0.25, 0.040, True),  # large, but noise
        (0.25, 0.001, False),  # large and significant
    ],
)
def test_only_a_large_and_significant_drop_blocks(
    example: ModuleType, recall: float, error: float, passes: bool
) -> None:
    scores, champion = example.make_scores(DAY), example.make_scores(DAY)
    scores["methods"]["model"] = example.method(recall, error)
    champion["methods"]["model"] = example.method(0.30, error)
    verdict = judge(scores, example.make_sids_report(), champion, GateParams())
    assert verdict.passed is passes
    if not passes:
        assert [check.name for check in verdict.failures] == ["not_masked/champion"]


def test_drop_of_one_slice_alone_blocks(example: ModuleType) -> None:
    scores, champion = example.make_scores(DAY), example.make_scores(DAY)
    champion["slices"]["history"]["short"]["recall@10"] = 0.4
    verdict = judge(scores, example.make_sids_report(), champion, GateParams())
    assert [check.name for check in verdict.failures] == ["slice/history/short/champion"]


@pytest.mark.parametrize(("now", "before", "passes"), [(70, 100, True), (69, 100, False), (0, None, False)])
def test_shrunk_index_is_kept_out(example: ModuleType, now: int, before: int | None, passes: bool) -> None:
    scores, report = example.make_scores(DAY), example.make_sids_report()
    verdict = judge(scores, report, None, GateParams(), num_indexed=now, champion_num_indexed=before)
    assert verdict.passed is passes


@given(better=st.floats(0, 1), worse=st.floats(0, 1), error=st.floats(0, 0.1))
def test_more_recall_never_fails_where_less_passed(better: float, worse: float, error: float) -> None:
    better, worse = max(better, worse), min(better, worse)

    def scores(recall: float) -> dict[str, Any]:
        methods = {
            name: {key: {"recall@10": value, "recall@10_se": error} for key in ("seen_masked", "not_masked")}
            for name, value in (("model", recall), ("popularity", 0.3))
        }
        return {"num_queries": 1, "num_invalid": 0, "hallucination_rate": 0.0, "methods": methods}

    def passed(recall: float) -> bool:
        return judge(scores(recall), {"uniqueness": 1.0}, scores(0.5), GateParams()).passed

    assert passed(better) or not passed(worse)


def test_verdict_is_for_one_release_and_must_have_passed() -> None:
    good = Verdict(True, (Check("num_queries", 5, 1, True, "5 queries, at least 1"),)).named("r1", "d1")
    assert good.for_release("r1", "d1") is good
    with pytest.raises(RefusedError, match="not r2"):
        good.for_release("r2", "d1")
    with pytest.raises(RefusedError, match="not r1"):
        good.for_release("r1", "d2")
    bad = Verdict(False, (Check("num_invalid", 3, 0, False, "3, at most 0"),), "r1", "d1")
    with pytest.raises(RefusedError, match="gate failed: num_invalid: 3, at most 0"):
        bad.for_release("r1", "d1")


def test_verdict_survives_the_disk_and_a_forged_one_does_not(tmp_path: Path) -> None:
    bad = Verdict(False, (Check("num_queries", None, 1, False, "none", valid=False),), "r1", "d1")
    path = tmp_path / "verdict.json"
    bad.save(path)
    assert Verdict.load(path) == bad
    path.write_text(path.read_text().replace('"passed": false,\n  "release', '"passed": true,\n  "release'))
    with pytest.raises(CorruptArtifactError, match="against its own checks"):
        Verdict.load(path)
    path.write_text("[]")
    with pytest.raises(CorruptArtifactError, match="not a verdict"):
        Verdict.load(path)


def test_judge_release_reads_a_sealed_folder(example: ModuleType, tmp_path: Path) -> None:
    make: Callable[..., Any] = example.make_release
    release, champion = make(tmp_path / "r1", DAY), make(tmp_path / "r0", date(2011, 10, 30))
    verdict = judge_release(release.folder, champion.folder, GateParams())
    assert verdict.passed
    assert verdict.release_id == release.release_id
    assert verdict.for_release(release.release_id, artifact.read_manifest(release.folder).digest).passed
    small = make(tmp_path / "r2", DAY, num_indexed=5)
    assert [c.name for c in judge_release(small.folder, champion.folder, GateParams()).failures] == ["index_size"]


def test_scores_of_another_day_make_the_verdict_invalid(example: ModuleType, tmp_path: Path) -> None:
    release = example.make_release(tmp_path / "r", DAY, scores=example.make_scores(date(2011, 10, 30)))
    verdict = judge_release(release.folder, None, GateParams())
    assert verdict.status == "invalid"
    assert verdict.failures[0].reason == "scores are of 2011-10-30, the release is of 2011-10-31"


def test_a_damaged_release_is_not_judged(example: ModuleType, tmp_path: Path) -> None:
    release = example.make_release(tmp_path / "r", DAY)
    scores = release.path("scores") / "scores.json"
    scores.write_text(scores.read_text().replace('"num_invalid": 0', '"num_invalid": 1'))
    with pytest.raises(ArtifactError, match=r"scores\.json"):
        judge_release(release.folder, None, GateParams())


def test_status_follows_blocking_checks_only() -> None:
    said = Check("seen_masked/sasrec", None, None, False, "x", blocking=False, valid=False)
    verdict = Verdict(True, (said,))
    assert verdict.status == "passed"
    assert replace(verdict, passed=False, checks=(replace(said, blocking=True),)).status == "invalid"


# --- churn of a retraining ---

BUDGET = GateParams(max_churn=0.5, min_churn_recall_gain=0.10, min_churn_gain_se=2.0, max_behind_popularity_se=0.0)


def _moved(traffic: float | None, items: float = 0.4) -> dict[str, Any]:
    after = [{"level": 1, "items": items, "traffic": traffic}, {"level": 2, "items": 0.9, "traffic": 0.9}]
    before = [{"level": n, "items": 1.0, "traffic": 1.0} for n in (1, 2)]
    return {"num_known": 20, "before": before, "after": after}


def _judge_churn(
    example: ModuleType,
    churn: dict[str, Any] | None,
    recall: float = 0.30,
    params: GateParams = BUDGET,
    error: float = 0.01,
) -> Verdict:
    scores, champion = example.make_scores(DAY), example.make_scores(DAY)
    scores["methods"]["model"] = example.method(recall, error)
    champion["methods"]["model"] = example.method(0.30, error)
    report = example.make_sids_report() if churn is None else example.make_sids_report(churn=churn)
    return judge(scores, report, champion, params)


def _check_of(verdict: Verdict, name: str) -> Check:
    return next(check for check in verdict.checks if check.name == name)


def test_a_release_that_follows_none_has_no_churn_rule(example: ModuleType) -> None:
    assert "churn" not in [check.name for check in _judge_churn(example, None).checks]
    first = judge(example.make_scores(DAY), example.make_sids_report(churn=_moved(0.9)), None, BUDGET)
    assert "churn" not in [check.name for check in first.checks]  # nobody answers: nobody's SIDs move


@pytest.mark.parametrize("moved", [0.0, 0.5])
def test_within_the_budget_nothing_is_to_be_paid(example: ModuleType, moved: float) -> None:
    verdict = _judge_churn(example, _moved(moved))
    assert verdict.passed
    said = f"{moved:.1%} of known traffic moved at level 1, the budget is 50.0%"
    assert _check_of(verdict, "churn").reason == said


@pytest.mark.parametrize(
    ("recall", "error", "passes"),
    [
        (0.30, 0.001, False),  # no better
        (0.32, 0.001, False),  # beyond noise, but not enough
        (0.35, 0.030, False),  # enough, but noise
        (0.34, 0.010, True),  # enough and beyond noise
    ],
)
def test_over_the_budget_recall_must_pay(example: ModuleType, recall: float, error: float, passes: bool) -> None:
    verdict = _judge_churn(example, _moved(0.7), recall, error=error)
    assert verdict.passed is passes
    assert _check_of(verdict, "churn").passed is passes
    if not passes:
        assert [check.name for check in verdict.failures] == ["churn"]


def test_the_refusal_says_churn_budget_recall_and_what_was_wanted(example: ModuleType) -> None:
    check = _judge_churn(example, _moved(0.7), 0.31).failures[0]
    assert (check.observed, check.limit) == (0.7, 0.5)
    assert check.reason == (
        "70.0% of known traffic moved at level 1, the budget is 50.0%; recall@10 0.31 does not pay for it: "
        "at least 0.33 is wanted (champion 0.3; 10% more, and 2 s.e. are 0.028)"
    )
    assert "recall@10 0.34 pays for it" in _check_of(_judge_churn(example, _moved(0.7), 0.34), "churn").reason


def test_a_gain_of_nothing_pays_for_nothing(example: ModuleType) -> None:
    free = GateParams(max_churn=0.0, min_churn_recall_gain=0.0, min_churn_gain_se=0.0)
    assert not _judge_churn(example, _moved(0.1), 0.30, free).passed
    assert _judge_churn(example, _moved(0.1), 0.3001, free).passed


def test_churn_is_by_traffic_if_there_is_any_and_of_the_level_of_the_recipe(example: ModuleType) -> None:
    assert _check_of(_judge_churn(example, _moved(None, items=0.6)), "churn").observed == 0.6
    assert "60.0% of known items" in _judge_churn(example, _moved(None, items=0.6)).failures[0].reason
    second = BUDGET.model_copy(update={"churn_level": 2})
    assert _check_of(_judge_churn(example, _moved(0.1), params=second), "churn").observed == 0.9


@pytest.mark.parametrize(
    ("churn", "level", "words"),
    [
        (_moved(0.1), 3, "no figure at level 3 .*2 levels"),
        ({"num_known": 0, "before": [], "after": []}, 1, "no item of the release it follows is left"),
        (_moved(float("nan"), items=float("nan")), 1, "no figure at level 1"),
    ],
)
def test_churn_that_nothing_is_known_of_is_not_judged(
    example: ModuleType, churn: dict[str, Any], level: int, words: str
) -> None:
    verdict = _judge_churn(example, churn, params=BUDGET.model_copy(update={"churn_level": level}))
    assert verdict.status == "invalid"
    assert re.search(words, verdict.failures[0].reason)


def test_over_the_budget_without_a_recall_is_not_judged(example: ModuleType) -> None:
    scores = _change(example.make_scores(DAY), "methods|model|not_masked|recall@10", None)
    verdict = judge(scores, example.make_sids_report(churn=_moved(0.7)), example.make_scores(DAY), BUDGET)
    assert not _check_of(verdict, "churn").valid
    assert "(no figure) this release, 0.2 the champion" in _check_of(verdict, "churn").reason


def test_the_default_budget_lets_a_usual_retraining_pass_and_not_one_that_lost_its_names(example: ModuleType) -> None:
    """What was measured on two catalogues (docs/experiments.md): .29 to .55 with the names kept, .94 to 1.0 without."""
    assert all(_judge_churn(example, _moved(moved), params=GateParams()).passed for moved in (0.29, 0.55))
    assert not _judge_churn(example, _moved(0.94), params=GateParams()).passed
