"""Gates: may this release serve? Pure rules from scores and thresholds to a Verdict; the recipe section is `gate`.

Reads (only `judge_release`): scores/scores.json, sids/report.json, index/ and release.json of a sealed release and of
the champion. Writes nothing by itself; `Verdict.save` puts a verdict.json where the flow wants it.

A rule that has nothing to look at (no queries, a figure missing, scores of another day) makes the verdict *invalid*,
which is neither a pass nor a fail: it says that the release was not judged.

What is served is what is judged: `served`, or the beams of the model in a release of before there was a ranker. A pass
says that nothing simpler is better than that, not that the language model is good: what it adds (`model_gain`) is said
and does not decide.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, LiteralString

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from monitoring.method_rules import against_methods, on_model_gain
from monitoring.methods import PROTOCOLS, Protocol, number, served_method
from monitoring.verdict import Check, Verdict, passes, show
from plumline import artifact
from plumline.stage import Params
from serving.release import Release

_GONE: dict[str, LiteralString] = {
    "popularity_blocks": "this setting is gone, one rule holds for every recipe; delete the line",
    "max_behind_popularity_se": "this setting is gone, max_behind_se holds for every method; rename it",
}

_NEW = "items/new"


class GateParams(Params):
    """Thresholds of the gate: recipe section `gate`."""

    protocol: Protocol = "not_masked"
    """Which recall decides: with the user's seen items masked out of every list, or not. The other one is reported."""
    max_hallucination_rate: float = 0.10
    """Share of the model's probability, any token of its vocabulary allowed, that is on no live item's SID, above which
    the model does not speak SIDs."""
    min_uniqueness: float = 0.50
    """Share of items alone on their SID before the tie-break digit, of those whose content no other item has: less is a
    collapsed codebook. Of all items, the digit included: less, and nothing tells them apart."""
    max_behind_se: float = Field(default=2.0, ge=0)
    """Standard errors of the difference by which a simpler method or a rival may be ahead of what is served and it
    still counts as noise; 0: none."""
    max_drop_se: float = 2.0
    """Drop against the champion in standard errors of the difference that is still noise."""
    max_relative_drop: float = 0.05
    """Drop against the champion as a share of its recall that is still accepted; both must be exceeded to block."""
    max_slice_drop_se: float = 4.0
    """As max_drop_se for one slice; higher because many slices are looked at."""
    max_slice_relative_drop: float = 0.25
    """As max_relative_drop for one slice."""
    slice_floors: dict[str, float] = Field(default_factory=dict)
    """Slice name ("history/short") → the least recall@10 it must have."""
    max_index_shrinkage: float = 0.30
    """Share of the champion's indexed items that may vanish at once (a lost feed looks like this)."""
    max_churn: float = Field(default=0.60, ge=0, le=1)
    """Share of known items, by traffic, whose SID may move at `churn_level` in a retraining without paying for it. With
    the names aligned, a healthy one moves .29 to .55 at level 1, whether the seed changed or four weeks of catalogue
    (docs/experiments.md, 2026-11-24), so less would refuse every refresh; without them .95 to 1.0, and a scrambled one
    (another encoder, other codebooks, names lost) lies near that, so more would let everything pass. A recipe that
    inherits its codes (`quantizer.retraining_start`) moves less and can set less."""
    churn_level: int = Field(default=1, ge=1)
    """Levels of the SID that are looked at: 1 is the coarsest code; below it nearly everything moves by chance."""
    min_churn_recall_gain: float = Field(default=0.05, ge=0)
    """Over max_churn: gain in recall@10 against the champion that pays for it, as a share of the champion's."""
    min_churn_gain_se: float = Field(default=2.0, ge=0)
    """Over max_churn: standard errors of the difference that the gain must reach as well, since less may be noise."""

    @model_validator(mode="before")
    @classmethod
    def _say_what_is_gone(cls, values: Any) -> Any:
        """A recipe of an older home may hold a setting that there is no more: say what to do with its line."""
        for name, said in _GONE.items():
            if isinstance(values, Mapping) and name in values:
                error = InitErrorDetails(type=PydanticCustomError("gone", said), loc=(name,), input=values[name])
                raise ValidationError.from_exception_data(cls.__name__, [error])
        return values


def judge(
    scores: Mapping[str, Any],
    sids_report: Mapping[str, Any],
    champion_scores: Mapping[str, Any] | None,
    params: GateParams,
    *,
    num_indexed: int | None = None,
    champion_num_indexed: int | None = None,
) -> Verdict:
    """Judge one release from its numbers alone.

    scores, champion_scores: contents of scores.json; champion_scores None: there is no champion yet.
    sids_report: contents of sids/report.json. num_indexed: items behind the index, None leaves the rule out.
    """
    checks = [
        _queries(scores),
        _at_most("num_invalid", number(scores, "num_invalid"), 0, "items that may not stand in a list"),
        _at_most(
            "hallucination_rate",
            number(scores, "hallucination_rate"),
            params.max_hallucination_rate,
            "share of the model's probability on no live item's SID",
        ),
        _beam_certificate(scores),
        *_uniqueness(sids_report, params),
        *against_methods(scores, params.protocol, params.max_behind_se),
        *on_model_gain(scores),
    ]
    if champion_scores is not None:
        checks += [_against_champion(scores, champion_scores, protocol, params) for protocol in PROTOCOLS]
        checks += _against_champion_slices(scores, champion_scores, params)
        checks += _churn(sids_report, scores, champion_scores, params)
    checks += _slice_floors(scores, params)
    if num_indexed is not None and champion_num_indexed is not None:
        floor = math.ceil(champion_num_indexed * (1 - params.max_index_shrinkage))
        checks.append(_at_least("index_size", float(num_indexed), floor, f"items; champion {champion_num_indexed}"))
    elif num_indexed is not None:
        checks.append(_at_least("index_size", float(num_indexed), 1, "items; no champion yet"))
    return Verdict(passes(tuple(checks)), tuple(checks))


def judge_release(release: Path, champion: Path | None, params: GateParams) -> Verdict:
    """Judge a sealed release folder against the champion's folder; the verdict names the release.

    Raises CorruptArtifactError, MissingArtifactError or MixedReleaseError if a folder is not what was sealed.
    """
    from models.retrieval.csr import read_index_item_ids  # not for who only reads verdicts

    sealed = Release.load(release)
    reigning = Release.load(champion) if champion else None
    scores = artifact.read_json(sealed.path("scores") / "scores.json")
    verdict = judge(
        scores,
        artifact.read_json(sealed.path("sids") / "report.json"),
        artifact.read_json(reigning.path("scores") / "scores.json") if reigning else None,
        params,
        num_indexed=len(read_index_item_ids(sealed.path("index"))),
        champion_num_indexed=len(read_index_item_ids(reigning.path("index"))) if reigning else None,
    )
    same_day = scores.get("as_of") == sealed.as_of.isoformat()
    reason = f"scores are of {scores.get('as_of')}, the release is of {sealed.as_of}"
    checks = (*verdict.checks, Check("scores_day", None, None, same_day, reason, valid=same_day))
    return Verdict(passes(checks), checks).named(sealed.release_id, artifact.read_manifest(release).digest)


def _queries(scores: Mapping[str, Any]) -> Check:
    observed = number(scores, "num_queries")
    passed = observed is not None and observed >= 1
    return Check("num_queries", observed, 1, passed, f"{show(observed)} queries, at least 1", valid=passed)


def _at_most(name: str, observed: float | None, limit: float, what: str, *, blocking: bool = True) -> Check:
    passed = observed is not None and observed <= limit
    reason = f"{show(observed)} {what}, at most {show(limit)}"
    return Check(name, observed, limit, passed, reason, blocking=blocking, valid=observed is not None)


def _at_least(name: str, observed: float | None, limit: float | None, what: str, *, blocking: bool = True) -> Check:
    both = observed is not None and limit is not None
    passed = observed is not None and limit is not None and observed >= limit
    reason = f"{show(observed)} {what}, at least {show(limit)}"
    return Check(name, observed, limit, passed, reason, blocking=blocking, valid=both)


def _beam_certificate(scores: Mapping[str, Any]) -> Check:
    """What the beams say must be so; that they miss something is no lie and does not block.

    See models/retrieval/beam_check.py.
    """
    name, certificate = "beam_certificate", scores.get("beam")
    if certificate is None:
        reason = "no certificate: an older release, or scores.beam_check_queries is 0"
        return Check(name, None, None, False, reason, blocking=False, valid=False)
    requests, invalid, duplicates, error = (
        show(number(certificate, key)) for key in ("num_requests", "num_invalid", "num_duplicates", "score_error")
    )
    said = f"{invalid} invalid, {duplicates} duplicates, score error {error} over {requests} requests"
    holds = certificate.get("holds")
    if not isinstance(holds, bool):
        return Check(name, None, None, False, f"does not say whether it holds: {said}", valid=False)
    return Check(name, None, None, holds, f"{'holds' if holds else 'broken'}: {said}")


def _uniqueness(sids_report: Mapping[str, Any], params: GateParams) -> Iterator[Check]:
    """An older report knows no contents and is judged as if all differed."""
    own, names = number(sids_report, "content_uniqueness"), ("uniqueness", "uniqueness_with_tie_break")
    found, told_apart = (number(sids_report, name) for name in names)
    what = "share of items alone on a SID"
    if own is None:
        yield _at_least(names[0], found, params.min_uniqueness, what)
        return
    yield _at_least(names[0], found, params.min_uniqueness * own, f"{what} ({own:.4g} have content of their own)")
    yield _at_least(names[1], told_apart, params.min_uniqueness, f"{what}, the tie-break included")


def _against_champion(
    scores: Mapping[str, Any], champion: Mapping[str, Any], protocol: Protocol, params: GateParams
) -> Check:
    return _drop(
        f"{protocol}/champion",
        _recall_and_error(scores, protocol),
        _recall_and_error(champion, protocol),
        max_drop_se=params.max_drop_se,
        max_relative_drop=params.max_relative_drop,
        blocking=protocol == params.protocol,
    )


def _recall_and_error(scores: Mapping[str, Any], protocol: Protocol) -> list[float | None]:
    """Of what is served."""
    return [number(scores, "methods", served_method(scores), protocol, key) for key in ("recall@10", "recall@10_se")]


def _drop(
    name: str,
    new: list[float | None],
    old: list[float | None],
    *,
    max_drop_se: float,
    max_relative_drop: float,
    blocking: bool,
) -> Check:
    """Blocks only a drop that is both significant and large; the two samples count as independent."""
    (recall, error), (old_recall, old_error) = new, old
    if recall is None or old_recall is None:
        reason = f"recall@10 {show(recall)} this release, {show(old_recall)} the champion"
        return Check(name, recall, None, False, reason, blocking=blocking, valid=False)
    noise = max_drop_se * math.hypot(error or 0.0, old_error or 0.0)
    limit = old_recall - max(noise, max_relative_drop * old_recall)
    reason = (
        f"recall@10 {recall:.4g}, at least {limit:.4g} "
        f"(champion {old_recall:.4g}; {max_drop_se:g} s.e. are {noise:.2g}, {max_relative_drop:.0%} are accepted)"
    )
    return Check(name, recall, limit, recall >= limit, reason, blocking=blocking)


def _slices(scores: Mapping[str, Any], protocol: Protocol) -> dict[str, Mapping[str, Any]]:
    """Slice name → its figures; nested slices are named "dimension/value"."""
    found: dict[str, Mapping[str, Any]] = {}

    def walk(name: str, node: Any) -> None:
        if not isinstance(node, Mapping):
            return
        if "recall@10" in node:
            found[name] = node
        elif protocol in node:
            walk(name, node[protocol])
        else:
            for key, child in sorted(node.items()):
                walk(f"{name}/{key}" if name else key, child)

    walk("", scores.get("slices"))
    return found


def _slice_floors(scores: Mapping[str, Any], params: GateParams) -> Iterator[Check]:
    slices = _slices(scores, params.protocol)
    for name, floor in sorted(params.slice_floors.items()):
        yield _at_least(f"slice/{name}", number(slices.get(name, {}), "recall@10"), floor, "recall@10")


def _against_champion_slices(
    scores: Mapping[str, Any], champion: Mapping[str, Any], params: GateParams
) -> Iterator[Check]:
    """Slices that both have and that carry a standard error; without one a small slice would block by chance.

    Which items are new is another set each day, a few that happen to sell or not (on the sample .23 one day and none
    the next, with 218 and 70 queries): errors over users say nothing about that, so days are not compared by it.
    """
    old = _slices(champion, params.protocol)
    same_day = scores.get("as_of") == champion.get("as_of")
    for name, new in _slices(scores, params.protocol).items():
        if name == _NEW and not same_day:
            continue
        figures = [[number(side, key) for key in ("recall@10", "recall@10_se")] for side in (new, old.get(name, {}))]
        if any(figure is None for side in figures for figure in side):
            continue
        yield _drop(
            f"slice/{name}/champion",
            *figures,
            max_drop_se=params.max_slice_drop_se,
            max_relative_drop=params.max_slice_relative_drop,
            blocking=True,
        )


def _churn(
    sids_report: Mapping[str, Any], scores: Mapping[str, Any], champion: Mapping[str, Any], params: GateParams
) -> Iterator[Check]:
    """The churn budget of a retraining; a release that follows none has no `churn` and no such rule."""
    churn = sids_report.get("churn")
    if churn is None:
        return
    levels = churn.get("after", [])
    row = levels[params.churn_level - 1] if len(levels) >= params.churn_level else {}
    weighed = "traffic" if number(row, "traffic") is not None else "items"
    moved = number(row, weighed)
    if moved is None:
        reason = f"no figure at level {params.churn_level} (gate.churn_level): the release has {len(levels)} levels"
        if not levels:
            reason = "no item of the release it follows is left: nothing says what users will find again"
        yield Check("churn", None, params.max_churn, False, reason, valid=False)
        return
    said = f"{moved:.1%} of known {weighed} moved at level {params.churn_level}, the budget is {params.max_churn:.1%}"
    if moved <= params.max_churn:
        yield Check("churn", moved, params.max_churn, True, said)
        return
    (recall, error), (old_recall, old_error) = (_recall_and_error(side, params.protocol) for side in (scores, champion))
    if recall is None or old_recall is None:
        reason = f"{said}; recall@10 {show(recall)} this release, {show(old_recall)} the champion, cannot pay for it"
        yield Check("churn", moved, params.max_churn, False, reason, valid=False)
        return
    noise = params.min_churn_gain_se * math.hypot(error or 0.0, old_error or 0.0)
    wanted = old_recall + max(noise, params.min_churn_recall_gain * old_recall)
    paid = recall > old_recall and recall >= wanted
    reason = (
        f"{said}; recall@10 {recall:.4g} {'pays' if paid else 'does not pay'} for it: at least {wanted:.4g} is wanted "
        f"(champion {old_recall:.4g}; {params.min_churn_recall_gain:.0%} more, and {params.min_churn_gain_se:g} s.e. "
        f"are {noise:.2g})"
    )
    yield Check("churn", moved, params.max_churn, paid, reason)
