"""What is served must not be below a simpler method or a rival by more than noise; the gain of a model is said."""

from datetime import date
from types import ModuleType
from typing import Any

import pytest

from monitoring.method_rules import against_methods, on_model_gain
from monitoring.methods import Protocol
from monitoring.verdict import Check

DAY = date(2011, 10, 31)
BLOCKING = ("without_model", "memory", "own", "popularity", "item_knn", "sasrec")


def _checks(scores: dict[str, Any], protocol: Protocol = "not_masked", max_behind_se: float = 2.0) -> dict[str, Check]:
    return {check.name: check for check in against_methods(scores, protocol, max_behind_se)}


@pytest.mark.parametrize("protocol", ["not_masked", "seen_masked"])
def test_every_method_is_looked_at_under_both_protocols_and_blocks_under_the_recipe_s(
    example: ModuleType, protocol: Protocol
) -> None:
    checks = _checks(example.make_scores(DAY), protocol)
    assert [*checks] == [
        f"{asked}/{name}"
        for asked in ("seen_masked", "not_masked")
        for name in ("without_model", "memory", "own", "popularity", "model", "item_knn", "sasrec")
    ]
    assert {name for name, check in checks.items() if check.blocking} == {f"{protocol}/{name}" for name in BLOCKING}
    assert all(check.passed and check.valid for check in checks.values())


@pytest.mark.parametrize("method", ["without_model", "memory", "own", "popularity", "item_knn"])
@pytest.mark.parametrize(("behind", "passes"), [(0.0, True), (0.0099, True), (0.0101, False)])
def test_ahead_by_more_than_two_paired_errors_fails(
    example: ModuleType, method: str, behind: float, passes: bool
) -> None:
    scores = example.make_scores(DAY)
    scores["served_minus"][method]["not_masked"] |= {"recall@10": -behind, "recall@10_se": 0.005}
    check = _checks(scores)[f"not_masked/{method}"]
    assert check.passed is passes
    assert check.blocking
    assert (check.observed, check.limit) == (-behind, pytest.approx(-0.01))
    assert "(paired by user), at least −0.0100" in check.reason
    assert ("is better" in check.reason) is (behind > 0)
    assert check.reason.endswith(" is better, within noise") is (behind > 0 and passes)
    assert all(other.passed for name, other in _checks(scores).items() if name != check.name)


@pytest.mark.parametrize(("recall", "passes"), [(0.399, True), (0.401, False)])
def test_without_a_paired_difference_two_independent_errors_are_noise(
    example: ModuleType, recall: float, passes: bool
) -> None:
    scores = example.make_scores(DAY, recall=0.3)
    scores["methods"]["served"]["not_masked"]["recall@10_se"] = 0.03
    scores["methods"]["sasrec"]["not_masked"] |= {"recall@10": recall, "recall@10_se": 0.04}  # together 0.05
    check = _checks(scores)["not_masked/sasrec"]
    assert check.passed is passes
    assert check.blocking
    assert check.limit == pytest.approx(-0.1)
    assert "± 0.0500 (errors taken as independent, figures of 2011-10-01), at least −0.1000" in check.reason


def test_a_paired_error_is_what_counts_where_independent_ones_would_let_pass(example: ModuleType) -> None:
    scores = example.make_scores(DAY, recall=0.26)  # 0.01 behind memory: 2.5 paired errors, 0.7 independent ones
    assert not _checks(scores)["not_masked/memory"].passed
    del scores["served_minus"]["memory"]
    check = _checks(scores)["not_masked/memory"]
    assert check.passed
    assert "(errors taken as independent), at least" in check.reason


@pytest.mark.parametrize(("max_behind_se", "passes"), [(0.0, False), (2.4, False), (2.6, True)])
def test_the_recipe_says_what_is_noise(example: ModuleType, max_behind_se: float, passes: bool) -> None:
    scores = example.make_scores(DAY, recall=0.26)
    assert _checks(scores, max_behind_se=max_behind_se)["not_masked/memory"].passed is passes


def test_the_beams_alone_are_compared_and_block_nothing(example: ModuleType) -> None:
    scores = example.make_scores(DAY)
    scores["served_minus"]["model"]["not_masked"]["recall@10"] = -0.1
    check = _checks(scores)["not_masked/model"]
    assert (check.passed, check.blocking) == (False, False)
    assert check.reason.endswith("model is better")


@pytest.mark.parametrize("method", ["without_model", "memory", "own", "popularity"])
def test_a_method_that_must_be_there_and_is_not_leaves_nothing_to_judge_by(example: ModuleType, method: str) -> None:
    scores = example.make_scores(DAY)
    del scores["methods"][method], scores["served_minus"][method]
    check = _checks(scores)[f"not_masked/{method}"]
    assert (check.passed, check.valid, check.blocking) == (False, False, True)
    assert check.reason.startswith("recall@10 served 0.3, ")
    assert check.reason.endswith(" (no figure)")


def test_what_is_missing_where_the_recipe_does_not_look_blocks_nothing(example: ModuleType) -> None:
    scores = example.make_scores(DAY)
    del scores["methods"]["own"]["seen_masked"]
    check = _checks(scores)["seen_masked/own"]
    assert (check.passed, check.valid, check.blocking) == (False, False, False)


def test_a_method_that_has_no_name_for_people_is_a_rival_all_the_same(example: ModuleType) -> None:
    scores = example.make_scores(DAY)
    scores["methods"]["zoo"] = example.method(0.4)
    check = _checks(scores)["not_masked/zoo"]
    assert (check.passed, check.blocking) == (False, True)
    assert check.reason.startswith("recall@10 served 0.3, zoo 0.4: −0.1000 ± 0.0141 (errors taken as independent)")
    assert check.reason.endswith("; zoo is better")


@pytest.mark.parametrize("method", ["item_knn", "sasrec"])
def test_a_rival_may_be_left_out_but_not_be_without_a_figure(example: ModuleType, method: str) -> None:
    scores = example.make_scores(DAY)
    scores["methods"][method]["not_masked"] = {"num_queries": 0}
    check = _checks(scores)[f"not_masked/{method}"]
    assert (check.passed, check.valid, check.blocking) == (False, False, True)
    del scores["methods"][method]
    assert f"not_masked/{method}" not in _checks(scores)


def test_a_release_of_before_the_ranker_is_judged_by_its_model(example: ModuleType) -> None:
    scores = example.make_old_scores(DAY, recall=0.2)
    checks = _checks(scores)
    assert [name for name in checks if name.startswith("not")] == [
        f"not_masked/{name}" for name in ("popularity", "item_knn", "sasrec")
    ]
    assert all(check.passed for check in checks.values())
    assert checks["not_masked/popularity"].reason == (
        "recall@10 model 0.2, popularity 0.1: +0.1000 ± 0.0141 (errors taken as independent), at least −0.0283"
    )
    scores["methods"]["model"] = example.method(0.16, 0.001)
    assert not _checks(scores)["not_masked/item_knn"].passed
    assert [*on_model_gain(scores)] == []


@pytest.mark.parametrize(
    ("gain", "passes"), [(0.0081, True), (0.008, False), (0.0, False), (-0.008, False), (-0.0081, False)]
)
def test_a_model_gain_is_said_and_never_blocks(example: ModuleType, gain: float, passes: bool) -> None:
    scores = example.make_scores(DAY)
    scores["model_gain"]["not_masked"]["recall@10"] = gain
    masked, plain = on_model_gain(scores)
    assert (masked.name, plain.name) == ("seen_masked/model_gain", "not_masked/model_gain")
    assert (plain.observed, plain.limit) == (gain, 0.008)
    assert (plain.passed, plain.blocking, plain.valid) == (passes, False, True)
    assert ("adds nothing measurable" in plain.reason) is (abs(gain) <= 0.008)
    assert masked.passed
    assert not masked.blocking


@pytest.mark.parametrize("lost", [float("nan"), None])
def test_a_model_gain_without_a_figure_is_not_looked_at(example: ModuleType, lost: float | None) -> None:
    scores = example.make_scores(DAY)
    scores["model_gain"]["not_masked"]["recall@10"] = lost
    del scores["model_gain"]["seen_masked"]
    for check in on_model_gain(scores):
        assert check == Check(check.name, None, None, False, check.reason, blocking=False, valid=False)
        assert check.reason.startswith("nothing says what the language model adds")
