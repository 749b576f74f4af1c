"""What is said before a training: the value, the limit, what to change; and never what the gate would let pass."""

from datetime import date
from types import ModuleType
from typing import Any

import pytest

from monitoring.foresight import foresee_index, foresee_queries, foresee_sids
from monitoring.gates import GateParams, judge

DAY, PARAMS = date(2011, 10, 31), GateParams()


def stats(num_queries: int, last_day: str) -> dict[str, Any]:
    return {"num_queries": num_queries, "as_of": "2011-10-31", "last_day": last_day}


def test_one_query_is_enough() -> None:
    assert foresee_queries(stats(1, "2011-11-01"), PARAMS) == ""


def test_an_as_of_that_nothing_follows() -> None:
    assert foresee_queries(stats(0, "2011-10-31"), PARAMS) == (
        "as_of 2011-10-31: 0 queries, at least 1, and the gate would turn this release down, so nothing was trained: "
        "no event after it has landed; give an earlier --as-of, or land later days: plumline land --events F"
    )


def test_days_that_hold_nothing_to_ask_for() -> None:
    said = foresee_queries(stats(0, "2011-11-14"), PARAMS)
    assert said.startswith("as_of 2011-10-31: 0 queries, at least 1, and the gate")
    assert "no event of the days after it shows interest in a live item" in said
    assert "loosen histories.eval_days, positive_actions or min_watch_ratio" in said


def sids(alone: float, told_apart: float = 1.0, own: float | None = 1.0, **more: Any) -> dict[str, Any]:
    figures = {"uniqueness": alone, "uniqueness_with_tie_break": told_apart, **more}
    return figures if own is None else {**figures, "content_uniqueness": own}


def foresee(report: dict[str, Any], size: int = 256, *, continues: bool = False) -> str:
    return foresee_sids(report, {"num_contents": 9_000}, [size, 256], PARAMS, continues=continues)


def test_too_small_codebooks_and_those_that_would_do() -> None:
    assert foresee(sids(0.4899)) == (
        "uniqueness: 0.4899 share of items alone on a SID (1 have content of their own), at least 0.5, and the gate "
        "would turn this release down, so nothing was trained: set quantizer.codebooks: [512, 512] in the recipe (now "
        "[256, 256]), or land more columns that describe the items (title, description, topics, channel, emb_…)"
    )


def test_codebooks_that_should_have_done_are_doubled() -> None:
    assert "set quantizer.codebooks: [512, 512]" in foresee(sids(0.1), 512)  # fewer than the contents would get
    assert "set quantizer.codebooks: [2048, 256]" in foresee(sids(0.1), 1024)
    assert "set quantizer.codebooks: [512, 512]" in foresee_sids(sids(0.1), {"num_contents": 9_000}, [8], PARAMS)
    unknown = foresee_sids(sids(0.1, own=None), {}, [256, 64], PARAMS)  # a quantizer of an older release
    assert "0.1 share of items alone on a SID, at least 0.5" in unknown
    assert "set quantizer.codebooks: [512, 64]" in unknown


def test_a_day_does_not_choose_its_codebooks() -> None:
    said = foresee(sids(0.3), continues=True)
    assert "a day has the codebooks of the release that it continues, [256, 256]; plumline retrain-sids makes" in said
    assert "new ones (quantizer.codebooks: auto, or [512, 512]), or land more columns" in said


def test_items_that_nothing_tells_apart() -> None:
    said = foresee(sids(0.0, told_apart=0.2, own=0.0))
    assert said.startswith("uniqueness_with_tie_break: 0.2 share of items alone on a SID, the tie-break included, at ")
    assert said.endswith(
        "land more columns that describe the items (title, description, topics, channel, emb_…), or set "
        "sids.tie_break: auto in the recipe"
    )


def test_a_retraining_that_knows_no_item_of_the_release_it_follows() -> None:
    said = foresee(sids(0.9, churn={"num_known": 0, "before": [], "after": []}))
    assert said.startswith("churn: no item of the release it follows is left")
    assert said.endswith("plumline bootstrap follows nobody, and is not asked what has moved")


def test_a_churn_that_a_gain_may_pay_for_is_not_foreseen() -> None:
    churn = {"num_known": 9, "before": [], "after": [{"level": 1, "items": 1.0, "traffic": 1.0}]}
    assert foresee(sids(0.9, churn=churn)) == ""


@pytest.mark.parametrize("own", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("alone", [0.0, 0.1, 0.15, 0.3, 0.499, 0.5, 0.9])
@pytest.mark.parametrize("told_apart", [0.0, 0.499, 0.5, 1.0])
def test_refused_is_what_the_gate_refuses(
    example: ModuleType, alone: float, told_apart: float, own: float | None
) -> None:
    """With scores that nothing is wrong with."""
    report = sids(alone, told_apart, own)
    passed = judge(example.make_scores(DAY), example.make_sids_report(**report), None, PARAMS).passed
    assert (foresee(report) == "") is passed


@pytest.mark.parametrize(
    ("now", "champion", "said"),
    [
        (70, 100, ""),
        (1, None, ""),
        (69, 100, "index_size: 69 items; champion 100, at least 70, and the gate would turn this release down"),
        (0, None, "index_size: 0 items; no champion yet, at least 1, and the gate would turn this release down"),
    ],
)
def test_a_catalogue_that_has_shrunk(now: int, champion: int | None, said: str) -> None:
    found = foresee_index(now, champion, PARAMS)
    assert found.startswith(said)
    assert bool(found) is bool(said)
    if found:
        assert found.endswith("give a later --as-of, or raise gate.max_index_shrinkage in the recipe")
