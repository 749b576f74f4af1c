"""The gate lets good releases through and keeps each kind of bad one out, for the reason it names."""

import copy
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.gates import GateParams, judge, judge_release
from monitoring.verdict import Check, Verdict
from plumline import artifact
from plumline.errors import ArtifactError

DAY = date(2011, 10, 31)
PARAMS = GateParams(slice_floors={"history/short": 0.05}, max_behind_se=0.0)


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


def _check_of(verdict: Verdict, name: str) -> Check:
    return next(check for check in verdict.checks if check.name == name)


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
        ("served_minus|popularity|not_masked|recall@10", -0.01, "not_masked/popularity", "failed"),
        ("methods|served|not_masked", None, "not_masked/popularity", "invalid"),
        ("methods|popularity", None, "not_masked/popularity", "invalid"),
        ("methods|own|not_masked|recall@10", float("nan"), "not_masked/own", "invalid"),
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
    assert [(check.name, check.passed) for check in verdict.failures] == [("beam_certificate", False)]


def test_collapsed_codebook_is_kept_out(example: ModuleType) -> None:
    verdict = judge(example.make_scores(DAY), example.make_sids_report(uniqueness=0.3), None, PARAMS)
    assert [check.name for check in verdict.failures] == ["uniqueness"]
    assert verdict.failures[0].reason == "0.3 share of items alone on a SID, at least 0.5"


def test_a_codebook_is_asked_for_no_more_than_the_contents_give(example: ModuleType) -> None:
    """Of ten items four have content of their own: half of those alone on a SID, and half of all with the tie-break."""
    scores = example.make_scores(DAY)
    for alone, told_apart, failed in (
        (0.2, 0.5, []),
        (0.199, 1.0, ["uniqueness"]),
        (0.4, 0.499, ["uniqueness_with_tie_break"]),
        (0.1, 0.1, ["uniqueness", "uniqueness_with_tie_break"]),
    ):
        figures = {"uniqueness": alone, "uniqueness_with_tie_break": told_apart, "content_uniqueness": 0.4}
        verdict = judge(scores, example.make_sids_report(**figures), None, PARAMS)
        assert [check.name for check in verdict.failures] == failed
        checks = {check.name: check for check in verdict.checks}
        assert checks["uniqueness"].limit == pytest.approx(0.2)
        assert checks["uniqueness"].reason == (
            f"{alone:.4g} share of items alone on a SID (0.4 have content of their own), at least 0.2"
        )
        assert checks["uniqueness_with_tie_break"].reason == (
            f"{told_apart:.4g} share of items alone on a SID, the tie-break included, at least 0.5"
        )


def test_contents_are_known_and_what_is_told_apart_is_not(example: ModuleType) -> None:
    report = example.make_sids_report(content_uniqueness=1.0)
    del report["uniqueness_with_tie_break"]
    assert judge(example.make_scores(DAY), report, None, PARAMS).status == "invalid"


@pytest.mark.parametrize(("protocol", "passes"), [("seen_masked", False), ("not_masked", True)])
def test_protocol_decides_which_recall_blocks(example: ModuleType, protocol: Any, passes: bool) -> None:
    scores = _change(example.make_scores(DAY), "served_minus|popularity|seen_masked|recall@10", -0.05)
    verdict = judge(scores, example.make_sids_report(), None, GateParams(protocol=protocol))
    assert verdict.passed is passes
    assert not _check_of(verdict, "seen_masked/popularity").passed


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
    scores["methods"]["served"] = example.method(recall, error)
    champion["methods"]["served"] = example.method(0.30, error)
    verdict = judge(scores, example.make_sids_report(), champion, GateParams())
    assert verdict.passed is passes
    if not passes:
        assert [check.name for check in verdict.failures] == ["not_masked/champion"]


def test_drop_of_one_slice_alone_blocks(example: ModuleType) -> None:
    scores, champion = example.make_scores(DAY), example.make_scores(DAY)
    champion["slices"]["history"]["short"]["recall@10"] = 0.4
    verdict = judge(scores, example.make_sids_report(), champion, GateParams())
    assert [check.name for check in verdict.failures] == ["slice/history/short/champion"]


@pytest.mark.parametrize(("day", "passes"), [(DAY, False), (DAY + timedelta(days=1), True)])
def test_new_items_are_other_ones_each_day(example: ModuleType, day: date, passes: bool) -> None:
    scores, champion = example.make_scores(DAY), example.make_scores(day)
    for recall, side in ((0.0, scores), (0.3, champion)):
        few = {protocol: {"recall@10": recall, "recall@10_se": 0.01} for protocol in ("seen_masked", "not_masked")}
        side["slices"]["items"] = {"new": few}
    assert judge(scores, example.make_sids_report(), champion, GateParams()).passed is passes


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


# --- the limits that nobody set ---


def _compared(
    example: ModuleType, recall: float, errors: tuple[float, float], **slices: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores of a release and of a champion, whose recall is 0.5 with the second error, and so of the one slice."""
    scores, champion = example.make_scores(DAY), example.make_scores(DAY)
    scores["methods"]["served"] = example.method(slices.get("whole", recall), errors[0])
    champion["methods"]["served"] = example.method(0.5, errors[1])
    for side, value, error in ((scores, slices.get("short", recall), errors[0]), (champion, 0.5, errors[1])):
        side["slices"]["history"]["short"] |= {"recall@10": value, "recall@10_se": error}
    return scores, champion


@pytest.mark.parametrize(("rate", "passes"), [(0.1, True), (0.101, False)])
def test_one_generation_in_ten_may_be_no_item(example: ModuleType, rate: float, passes: bool) -> None:
    scores = example.make_scores(DAY, hallucination_rate=rate)
    assert judge(scores, example.make_sids_report(), None, GateParams()).passed is passes


@pytest.mark.parametrize(("uniqueness", "passes"), [(0.5, True), (0.499, False)])
def test_half_of_the_items_are_alone_on_a_sid(example: ModuleType, uniqueness: float, passes: bool) -> None:
    report = example.make_sids_report(uniqueness=uniqueness)
    assert judge(example.make_scores(DAY), report, None, GateParams()).passed is passes


@pytest.mark.parametrize(
    ("recall", "errors", "passes"),
    [
        (0.401, (0.03, 0.04), True),  # the errors together are 0.05: two of them are 0.1
        (0.399, (0.03, 0.04), False),
        (0.476, (0.001, 0.001), True),  # 5% of the champion's recall are 0.025
        (0.474, (0.001, 0.001), False),
    ],
)
def test_two_standard_errors_and_five_percent_may_be_lost(
    example: ModuleType, recall: float, errors: tuple[float, float], passes: bool
) -> None:
    scores, champion = _compared(example, recall, errors, short=0.5)
    verdict = judge(scores, example.make_sids_report(), champion, GateParams())
    assert _check_of(verdict, "not_masked/champion").passed is passes
    assert verdict.passed is passes


@pytest.mark.parametrize(
    ("recall", "errors", "passes"),
    [
        (0.301, (0.03, 0.04), True),  # four errors are 0.2
        (0.299, (0.03, 0.04), False),
        (0.376, (0.001, 0.001), True),  # a quarter is 0.125
        (0.374, (0.001, 0.001), False),
    ],
)
def test_a_slice_may_lose_four_standard_errors_and_a_quarter(
    example: ModuleType, recall: float, errors: tuple[float, float], passes: bool
) -> None:
    scores, champion = _compared(example, recall, errors, whole=0.5)
    verdict = judge(scores, example.make_sids_report(), champion, GateParams())
    assert _check_of(verdict, "slice/history/short/champion").passed is passes
    assert verdict.passed is passes


# --- figures that are odd ---


@pytest.mark.parametrize("value", [True, "0", float("inf"), float("nan"), [0], None])
def test_what_is_no_number_is_not_judged(example: ModuleType, value: Any) -> None:
    verdict = judge({**example.make_scores(DAY), "num_invalid": value}, example.make_sids_report(), None, GateParams())
    assert [(check.name, check.observed, check.valid) for check in verdict.failures] == [("num_invalid", None, False)]


def test_one_query_is_enough_to_judge(example: ModuleType) -> None:
    scores = example.make_scores(DAY, num_queries=1)
    assert judge(scores, example.make_sids_report(), None, GateParams(), num_indexed=1).passed


@pytest.mark.parametrize("missing", [0, 1])
def test_an_error_that_is_not_known_counts_as_none(example: ModuleType, missing: int) -> None:
    sides = _compared(example, 0.41, (0.05, 0.05), short=0.5)
    del sides[missing]["methods"]["served"]["not_masked"]["recall@10_se"]
    verdict = judge(sides[0], example.make_sids_report(), sides[1], GateParams())
    assert _check_of(verdict, "not_masked/champion").limit == pytest.approx(0.4)  # two of the other's errors
    assert verdict.passed


@pytest.mark.parametrize("missing", [0, 1])
def test_without_the_champions_recall_nothing_is_compared(example: ModuleType, missing: int) -> None:
    sides = _compared(example, 0.5, (0.05, 0.05))
    del sides[missing]["methods"]["served"]["not_masked"]["recall@10"]
    verdict = judge(sides[0], example.make_sids_report(), sides[1], GateParams())
    assert verdict.status == "invalid"
    assert not _check_of(verdict, "not_masked/champion").valid
    assert _check_of(verdict, "seen_masked/champion").valid


def test_slices_are_found_by_protocol_at_any_depth_and_compared_where_both_have_an_error(example: ModuleType) -> None:
    row = {"recall@10": 0.5, "recall@10_se": 0.01}
    bare = {"recall@10": 0.5}
    slices = {
        "age": {"new": {"not_masked": row, "seen_masked": {**row, "recall@10": 0.1}}, "old": {"seen_masked": row}},
        "history": {"short": bare, "long": row, "cold": row},
        "note": "not a slice",
    }
    before = {"age": {"new": {"not_masked": row}}, "history": {"short": row, "long": bare, "gone": row}}
    scores, champion = example.make_scores(DAY, slices=slices), example.make_scores(DAY, slices=before)
    params = GateParams(slice_floors={"age/new": 0.4, "history/cold": 0.6})
    verdict = judge(scores, example.make_sids_report(), champion, params)
    found = {check.name: (check.observed, check.passed) for check in verdict.checks if check.name.startswith("slice/")}
    assert found == {
        "slice/age/new/champion": (0.5, True),
        "slice/age/new": (0.5, True),
        "slice/history/cold": (0.5, False),
    }


# --- what is served: of a ranker, or of before there was one ---


def test_something_simpler_that_is_better_keeps_a_release_out(example: ModuleType) -> None:
    scores = _change(example.make_scores(DAY), "served_minus|memory|not_masked|recall@10", -0.01)
    verdict = judge(scores, example.make_sids_report(), None, GateParams())
    assert verdict.status == "failed"
    assert [check.name for check in verdict.failures] == ["not_masked/memory"]
    assert judge(scores, example.make_sids_report(), None, GateParams(max_behind_se=2.6)).passed
    assert judge(scores, example.make_sids_report(), None, GateParams(protocol="seen_masked")).passed


def test_a_model_that_adds_nothing_is_said_and_passes(example: ModuleType) -> None:
    scores = _change(example.make_scores(DAY), "model_gain|not_masked|recall@10", 0.0001)
    verdict = judge(scores, example.make_sids_report(), None, GateParams())
    assert verdict.passed
    assert not _check_of(verdict, "not_masked/model_gain").passed
    assert "adds nothing measurable" in _check_of(verdict, "not_masked/model_gain").reason


def test_a_release_and_a_champion_of_before_the_ranker_are_compared_by_what_each_served(example: ModuleType) -> None:
    new, old = example.make_scores(DAY, recall=0.3), example.make_old_scores(DAY, recall=0.35)
    new["methods"]["model"], old["methods"]["model"] = example.method(0.34, 0.001), example.method(0.35, 0.001)
    new["methods"]["served"] = example.method(0.3, 0.001)
    verdict = judge(new, example.make_sids_report(), old, GateParams())
    assert [check.name for check in verdict.failures] == ["not_masked/champion"]
    assert "recall@10 0.3, at least 0.3325 (champion 0.35;" in verdict.failures[0].reason
    assert judge(old, example.make_sids_report(), new, GateParams()).passed


def test_what_is_served_pays_for_churn(example: ModuleType) -> None:
    moved = {"num_known": 20, "before": [], "after": [{"level": 1, "items": 0.7, "traffic": 0.7}]}
    new, old = example.make_scores(DAY, recall=0.3), example.make_old_scores(DAY, recall=0.25)
    check = _check_of(judge(new, example.make_sids_report(churn=moved), old, GateParams()), "churn")
    assert check.passed
    assert "recall@10 0.3 pays for it" in check.reason
    assert "champion 0.25" in check.reason
