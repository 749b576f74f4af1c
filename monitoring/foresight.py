"""Foresight: what the gate will refuse, said when it is known, which is minutes before there is a model to judge.

Pure rules, the gate's own (`monitoring.gates.judge`), on the figures that there are after the stages histories, sids
and index: whether anything is held out to score on, what the SIDs tell apart, whether the catalogue has shrunk. What
has to do with how well a model answers (recall, hallucination, a churn that a gain may pay for) cannot be foreseen.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from math import prod
from typing import Any

from models.semantic_ids.codebook_sizes import codebook_sizes
from monitoring.gates import Check, GateParams, judge

_DESCRIBE = "land more columns that describe the items (title, description, topics, channel, emb_…)"
_GATES_LINE = "the gate would turn this release down, so nothing was trained"


def foresee_queries(stats: Mapping[str, Any], params: GateParams) -> str:
    """What speaks against a release after the stage histories; "" if nothing does.

    stats: contents of histories/stats.json.
    """
    check = _check("num_queries", judge({"num_queries": stats["num_queries"]}, {}, None, params).checks)
    if check is None:
        return ""
    as_of, last = date.fromisoformat(stats["as_of"]), date.fromisoformat(stats["last_day"])
    if last > as_of:
        mend = (
            "no event of the days after it shows interest in a live item; land their events, or loosen "
            "histories.eval_days, positive_actions or min_watch_ratio in the recipe"
        )
    else:
        mend = "no event after it has landed; give an earlier --as-of, or land later days: plumline land --events F"
    return f"as_of {as_of}: {check.reason}, and {_GATES_LINE}: {mend}"


def foresee_sids(
    report: Mapping[str, Any],
    quantizer: Mapping[str, Any],
    codebooks: Sequence[int],
    params: GateParams,
    *,
    continues: bool = False,
) -> str:
    """What speaks against a release after the stage sids; "" if nothing does.

    report, quantizer: contents of sids/report.json and quantizer/report.json. codebooks: codes of each level.
    continues: whether it has them from a base.
    """
    checks = judge({}, report, {}, params).checks
    if (check := _check("uniqueness", checks)) is not None:
        mend = _other_codebooks(quantizer, codebooks, continues)
    elif (check := _check("uniqueness_with_tie_break", checks)) is not None:
        mend = f"{_DESCRIBE}, or set sids.tie_break: auto in the recipe"
    elif (check := _check("churn", checks)) is not None and check.observed is None:
        mend = "plumline bootstrap follows nobody, and is not asked what has moved"
    else:
        return ""
    return f"{check.name}: {check.reason}, and {_GATES_LINE}: {mend}"


def foresee_index(num_indexed: int, champion: int | None, params: GateParams) -> str:
    """What speaks against a release after the stage index; "" if nothing does. champion: items of its index, if any."""
    checks = judge({}, {}, None, params, num_indexed=num_indexed, champion_num_indexed=champion).checks
    if (check := _check("index_size", checks)) is None:
        return ""
    mend = "land the items that are missing, give a later --as-of, or raise gate.max_index_shrinkage in the recipe"
    return f"{check.name}: {check.reason}, and {_GATES_LINE}: {mend}"


def _check(name: str, checks: Sequence[Check]) -> Check | None:
    """The check of this name, if it failed."""
    return next((check for check in checks if check.name == name and not check.passed), None)


def _other_codebooks(quantizer: Mapping[str, Any], codebooks: Sequence[int], continues: bool) -> str:
    """What makes more items alone on their SID: larger codebooks, and the command that may change them."""
    wanted = codebook_sizes(quantizer.get("num_contents", 0))
    if prod(wanted) <= prod(codebooks):
        wanted = (2 * codebooks[0], *codebooks[1:])
    if continues:
        return (
            f"a day has the codebooks of the release that it continues, {list(codebooks)}; plumline retrain-sids makes "
            f"new ones (quantizer.codebooks: auto, or {list(wanted)}), or {_DESCRIBE}"
        )
    return f"set quantizer.codebooks: {list(wanted)} in the recipe (now {list(codebooks)}), or {_DESCRIBE}"
