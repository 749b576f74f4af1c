"""What a verdict says, word for word: a release against a champion, and one of which nothing is known."""

from datetime import date
from types import ModuleType

import pytest
from pydantic import ValidationError

from monitoring.gates import GateParams, judge
from monitoring.verdict import Verdict

DAY = date(2011, 10, 31)
FLOORS = GateParams(slice_floors={"history/short": 0.05})
CHURN = {"num_known": 20, "before": [], "after": [{"level": 1, "items": 0.4, "traffic": 0.7}]}

AGAINST_A_CHAMPION = """
num_queries [500/1] passed:
    500 queries, at least 1
num_invalid [0/0] passed:
    0 invalid SIDs in constrained lists, at most 0
hallucination_rate [0.02/0.1] passed:
    0.02 share of SIDs of no item, search without index, at most 0.1
beam_certificate [-/-] passed:
    holds: 0 invalid, 0 duplicates, score error 2e-06 over 10 requests
uniqueness [0.9/0.5] passed:
    0.9 share of items alone on a SID, at least 0.5
seen_masked/popularity [0.2/0.07172] passed, said:
    recall@10 0.2, popularity 0.1 (at least 0.07172: 2 s.e. are noise)
seen_masked/item_knn [0.2/0.25] failed, said:
    recall@10 0.2, item_knn 0.25: item_knn is better
seen_masked/sasrec [0.2/0.15] passed, said:
    recall@10 0.2, sasrec 0.15
not_masked/popularity [0.2/0.07172] passed:
    recall@10 0.2, popularity 0.1 (at least 0.07172: 2 s.e. are noise)
not_masked/item_knn [0.2/0.25] failed, said:
    recall@10 0.2, item_knn 0.25: item_knn is better
not_masked/sasrec [0.2/0.15] passed, said:
    recall@10 0.2, sasrec 0.15
seen_masked/champion [0.2/0.2717] failed, said:
    recall@10 0.2, at least 0.2717 (champion 0.3;
    2 s.e. are 0.028, 5% are accepted)
not_masked/champion [0.2/0.2717] failed:
    recall@10 0.2, at least 0.2717 (champion 0.3;
    2 s.e. are 0.028, 5% are accepted)
slice/history/short/champion [0.12/0.006863] passed:
    recall@10 0.12, at least 0.006863 (champion 0.12;
    4 s.e. are 0.11, 25% are accepted)
churn [0.7/0.6] failed:
    70.0% of known traffic moved at level 1, the budget is 60.0%;
    recall@10 0.2 does not pay for it: at least 0.3283 is wanted (champion 0.3;
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
    (no figure) invalid SIDs in constrained lists, at most 0
hallucination_rate [-/0.1] failed, invalid:
    (no figure) share of SIDs of no item, search without index, at most 0.1
beam_certificate [-/-] failed, said, invalid:
    no certificate: an older release, or scores.beam_check_queries is 0
uniqueness [-/0.5] failed, invalid:
    (no figure) share of items alone on a SID, at least 0.5
seen_masked/popularity [-/-] failed, said, invalid:
    recall@10 (no figure), popularity (no figure)
not_masked/popularity [-/-] failed, invalid:
    recall@10 (no figure), popularity (no figure)
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


def said(verdict: Verdict) -> str:
    """A line a check: name, what was seen and what is wanted, whether it passed and counts, and why."""

    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    lines = []
    for check in verdict.checks:
        word = {True: "passed", False: "failed"}[check.passed]
        word += {True: "", False: ", said"}[check.blocking] + {True: "", False: ", invalid"}[check.valid]
        lines.append(f"{check.name} [{figure(check.observed)}/{figure(check.limit)}] {word}:; {check.reason}")
    return "\n".join(lines).replace(":; ", ":\n    ").replace("; ", ";\n    ")


def test_a_release_against_a_champion(example: ModuleType) -> None:
    scores, champion = example.make_scores(DAY), example.make_scores(DAY, recall=0.3)
    report = example.make_sids_report(churn=CHURN)
    verdict = judge(scores, report, champion, FLOORS, num_indexed=80, champion_num_indexed=100)
    assert verdict.status == "failed"
    assert said(verdict) == AGAINST_A_CHAMPION.strip()


def test_a_release_of_which_nothing_is_known() -> None:
    verdict = judge({}, {"churn": {"after": []}}, {}, FLOORS, num_indexed=0)
    assert verdict.status == "invalid"
    assert not verdict.passed
    assert said(verdict) == NOTHING_IS_KNOWN.strip()


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("max_churn", (0.0, 1.0), (-0.01, 1.01)),
        ("churn_level", (1,), (0,)),
        ("min_churn_recall_gain", (0.0,), (-0.01,)),
        ("min_churn_gain_se", (0.0,), (-0.01,)),
        ("protocol", ("seen_masked", "not_masked"), ("masked",)),
        ("popularity_blocks", ("always", "once_beaten"), ("never",)),
    ],
)
def test_what_a_recipe_may_set(name: str, allowed: tuple, refused: tuple) -> None:
    for value in allowed:
        assert getattr(GateParams.model_validate({name: value}), name) == value
    for value in refused:
        with pytest.raises(ValidationError, match=name):
            GateParams.model_validate({name: value})
