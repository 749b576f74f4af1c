"""What a verdict says, word for word: a release against a champion, and one of which nothing is known."""

from dataclasses import replace
from datetime import date
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import ValidationError

from monitoring.gates import GateParams, judge
from monitoring.verdict import Verdict
from plumline.errors import InputError
from plumline.stage import load_params

DAY = date(2011, 10, 31)
FLOORS = GateParams(slice_floors={"history/short": 0.05})
CHURN = {"num_known": 20, "before": [], "after": [{"level": 1, "items": 0.4, "traffic": 0.7}]}

AGAINST_A_CHAMPION = """
num_queries [500/1] passed:
    500 queries, at least 1
num_invalid [0/0] passed:
    0 items that may not stand in a list, at most 0
hallucination_rate [0.02/0.1] passed:
    0.02 share of the model's probability on no live item's SID, at most 0.1
beam_certificate [-/-] passed:
    holds: 0 invalid, 0 duplicates, score error 2e-06 over 10 requests
uniqueness [0.9/0.5] passed:
    0.9 share of items alone on a SID, at least 0.5
seen_masked/without_model [-0.02/-0.008] failed, said:
    recall@10 served 0.26, without model 0.28: −0.0200 ± 0.0040 (paired by user), at least −0.0080;
    without model is better
seen_masked/memory [-0.01/-0.008] failed, said:
    recall@10 served 0.26, memory 0.27: −0.0100 ± 0.0040 (paired by user), at least −0.0080;
    memory is better
seen_masked/own [0.02/-0.008] passed, said:
    recall@10 served 0.26, own 0.24: +0.0200 ± 0.0040 (paired by user), at least −0.0080
seen_masked/popularity [0.16/-0.008] passed, said:
    recall@10 served 0.26, popularity 0.1: +0.1600 ± 0.0040 (paired by user), at least −0.0080
seen_masked/model [0.06/-0.008] passed, said:
    recall@10 served 0.26, model 0.2: +0.0600 ± 0.0040 (paired by user), at least −0.0080
seen_masked/item_knn [0.01/-0.008] passed, said:
    recall@10 served 0.26, item-kNN 0.25: +0.0100 ± 0.0040 (paired by user), at least −0.0080
seen_masked/sasrec [0.11/-0.02828] passed, said:
    recall@10 served 0.26, SASRec 0.15: +0.1100 ± 0.0141
    (errors taken as independent, figures of 2011-10-01), at least −0.0283
not_masked/without_model [-0.02/-0.008] failed:
    recall@10 served 0.26, without model 0.28: −0.0200 ± 0.0040 (paired by user), at least −0.0080;
    without model is better
not_masked/memory [-0.01/-0.008] failed:
    recall@10 served 0.26, memory 0.27: −0.0100 ± 0.0040 (paired by user), at least −0.0080;
    memory is better
not_masked/own [0.02/-0.008] passed:
    recall@10 served 0.26, own 0.24: +0.0200 ± 0.0040 (paired by user), at least −0.0080
not_masked/popularity [0.16/-0.008] passed:
    recall@10 served 0.26, popularity 0.1: +0.1600 ± 0.0040 (paired by user), at least −0.0080
not_masked/model [0.06/-0.008] passed, said:
    recall@10 served 0.26, model 0.2: +0.0600 ± 0.0040 (paired by user), at least −0.0080
not_masked/item_knn [0.01/-0.008] passed:
    recall@10 served 0.26, item-kNN 0.25: +0.0100 ± 0.0040 (paired by user), at least −0.0080
not_masked/sasrec [0.11/-0.02828] passed:
    recall@10 served 0.26, SASRec 0.15: +0.1100 ± 0.0141
    (errors taken as independent, figures of 2011-10-01), at least −0.0283
seen_masked/model_gain [-0.02/0.008] failed, said:
    the language model makes what is served worse: model_gain −0.0200 ± 0.0040 in recall@10, seen masked;
    docs/training.md
not_masked/model_gain [-0.02/0.008] failed, said:
    the language model makes what is served worse: model_gain −0.0200 ± 0.0040 in recall@10, not masked;
    docs/training.md
seen_masked/champion [0.26/0.3717] failed, said:
    recall@10 0.26, at least 0.3717 (champion 0.4;
    2 s.e. are 0.028, 5% are accepted)
not_masked/champion [0.26/0.3717] failed:
    recall@10 0.26, at least 0.3717 (champion 0.4;
    2 s.e. are 0.028, 5% are accepted)
slice/history/short/champion [0.12/0.006863] passed:
    recall@10 0.12, at least 0.006863 (champion 0.12;
    4 s.e. are 0.11, 25% are accepted)
churn [0.7/0.6] failed:
    70.0% of known traffic moved at level 1, the budget is 60.0%;
    recall@10 0.26 does not pay for it: at least 0.4283 is wanted (champion 0.4;
    5% more, and 2 s.e. are 0.028)
slice/history/short [0.12/0.05] passed:
    0.12 recall@10, at least 0.05
index_size [80/70] passed:
    80 items;
    champion 100, at least 70
"""

NOTHING_IS_KNOWN = """
num_queries [-/1] failed, invalid:
    (no figure) queries, at least 1
num_invalid [-/0] failed, invalid:
    (no figure) items that may not stand in a list, at most 0
hallucination_rate [-/0.1] failed, invalid:
    (no figure) share of the model's probability on no live item's SID, at most 0.1
beam_certificate [-/-] failed, said, invalid:
    no certificate: an older release, or scores.beam_check_queries is 0
uniqueness [-/0.5] failed, invalid:
    (no figure) share of items alone on a SID, at least 0.5
seen_masked/popularity [-/-] failed, said, invalid:
    recall@10 model (no figure), popularity (no figure)
not_masked/popularity [-/-] failed, invalid:
    recall@10 model (no figure), popularity (no figure)
seen_masked/champion [-/-] failed, said, invalid:
    recall@10 (no figure) this release, (no figure) the champion
not_masked/champion [-/-] failed, invalid:
    recall@10 (no figure) this release, (no figure) the champion
churn [-/0.6] failed, invalid:
    no item of the release it follows is left: nothing says what users will find again
slice/history/short [-/0.05] failed, invalid:
    (no figure) recall@10, at least 0.05
index_size [0/1] failed:
    0 items;
    no champion yet, at least 1
"""

NOTHING_OF_A_RANKER = """
seen_masked/without_model [-/-] failed, said, invalid:
    recall@10 served (no figure), without model (no figure)
seen_masked/memory [-/-] failed, said, invalid:
    recall@10 served (no figure), memory (no figure)
seen_masked/own [-/-] failed, said, invalid:
    recall@10 served (no figure), own (no figure)
seen_masked/popularity [-/-] failed, said, invalid:
    recall@10 served (no figure), popularity (no figure)
not_masked/without_model [-/-] failed, invalid:
    recall@10 served (no figure), without model (no figure)
not_masked/memory [-/-] failed, invalid:
    recall@10 served (no figure), memory (no figure)
not_masked/own [-/-] failed, invalid:
    recall@10 served (no figure), own (no figure)
not_masked/popularity [-/-] failed, invalid:
    recall@10 served (no figure), popularity (no figure)
seen_masked/model_gain [-/-] failed, said, invalid:
    nothing says what the language model adds: model_gain (no figure) in recall@10, seen masked
not_masked/model_gain [-/-] failed, said, invalid:
    nothing says what the language model adds: model_gain (no figure) in recall@10, not masked
"""


def said(verdict: Verdict) -> str:
    """A line a check: name, what was seen and what is wanted, whether it passed and counts, and why."""

    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    lines = []
    for check in verdict.checks:
        word = {True: "passed", False: "failed"}[check.passed]
        word += {True: "", False: ", said"}[check.blocking] + {True: "", False: ", invalid"}[check.valid]
        lines.append(f"{check.name} [{figure(check.observed)}/{figure(check.limit)}] {word}:; {check.reason}")
    return "\n".join(lines).replace(":; ", ":\n    ").replace("; ", ";\n    ").replace(" (errors", "\n    (errors")


def test_a_release_against_a_champion(example: ModuleType) -> None:
    scores, champion = example.make_scores(DAY, recall=0.26), example.make_scores(DAY, recall=0.4)
    report = example.make_sids_report(churn=CHURN)
    verdict = judge(scores, report, champion, FLOORS, num_indexed=80, champion_num_indexed=100)
    assert verdict.status == "failed"
    assert said(verdict) == AGAINST_A_CHAMPION.strip()


def test_a_release_of_which_nothing_is_known() -> None:
    verdict = judge({}, {"churn": {"after": []}}, {}, FLOORS, num_indexed=0)
    assert verdict.status == "invalid"
    assert not verdict.passed
    assert said(verdict) == NOTHING_IS_KNOWN.strip()


def test_a_release_with_a_ranker_of_which_nothing_is_known() -> None:
    """The methods that must be there are asked for by name, and the beams alone, which are no rival, are not."""
    verdict = judge({"methods": {"served": {}}}, {}, None, FLOORS)
    assert verdict.status == "invalid"
    asked = replace(verdict, checks=tuple(check for check in verdict.checks if "_masked/" in check.name))
    assert said(asked) == NOTHING_OF_A_RANKER.strip()


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("max_churn", (0.0, 1.0), (-0.01, 1.01)),
        ("churn_level", (1,), (0,)),
        ("min_churn_recall_gain", (0.0,), (-0.01,)),
        ("min_churn_gain_se", (0.0,), (-0.01,)),
        ("protocol", ("seen_masked", "not_masked"), ("masked",)),
        ("max_behind_se", (0.0,), (-0.01,)),
    ],
)
def test_what_a_recipe_may_set(name: str, allowed: tuple, refused: tuple) -> None:
    for value in allowed:
        assert getattr(GateParams.model_validate({name: value}), name) == value
    for value in refused:
        with pytest.raises(ValidationError, match=name):
            GateParams.model_validate({name: value})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("popularity_blocks", "once_beaten", "this setting is gone, one rule holds for every recipe; delete the line"),
        ("max_behind_popularity_se", 2.0, "this setting is gone, max_behind_se holds for every method; rename it"),
    ],
)
def test_a_recipe_with_a_setting_that_is_gone_is_told_in_one_line(
    tmp_path: Path, name: str, value: object, said: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"gate:\n  protocol: not_masked\n  {name}: {value}\n")
    with pytest.raises(InputError) as refused:
        load_params(recipe, "gate", GateParams)
    assert str(refused.value).startswith(f"{recipe}: gate.{name}: {said} (got {value!r})")
    assert "\n" not in str(refused.value)
    assert f"'{name}'" not in str(refused.value).partition("gate takes")[2]
