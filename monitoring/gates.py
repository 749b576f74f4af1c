"""Gates: may this release serve? Pure rules from scores and thresholds to a Verdict; the recipe section is `gate`.

Reads (only `judge_release`): scores/scores.json, sids/report.json, index/ and release.json of a sealed release and of
the champion. Writes nothing by itself; `Verdict.save` puts a verdict.json where the flow wants it.

A rule that has nothing to look at (no queries, a figure missing, scores of another day) makes the verdict *invalid*,
which is neither a pass nor a fail: it says that the release was not judged.

A pass says that no blocking rule failed, not that the model is good: with `popularity_blocks: once_beaten` (cpu_tiny) a
release that loses to every baseline may pass where the champion loses to popularity too, or there is none.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from plumline import artifact
from plumline.errors import CorruptArtifactError, RefusedError
from plumline.stage import Params
from serving.release import Release

Protocol = Literal["seen_masked", "not_masked"]
PROTOCOLS: tuple[Protocol, ...] = ("seen_masked", "not_masked")


class GateParams(Params):
    """Thresholds of the gate: recipe section `gate`."""

    protocol: Protocol = "not_masked"
    """Which recall decides: with the user's seen items masked out of every list, or not. The other one is reported."""
    max_hallucination_rate: float = 0.10
    """Share of SIDs that are no item's, of a search without the index (codes are held to their level), above which the
    model does not speak SIDs."""
    min_uniqueness: float = 0.50
    """Share of items alone on their SID before the tie-break digit, of those whose content no other item has: less is a
    collapsed codebook. Of all items, the digit included: less, and nothing tells them apart."""
    popularity_blocks: Literal["always", "once_beaten"] = "always"
    """When losing to popularity keeps a release out. once_beaten: only if the champion beats it, since otherwise what
    would go on serving is no better (or nothing at all, for a first release); the alert is raised in any case."""
    max_behind_popularity_se: float = 2.0
    """Standard errors of the difference by which popularity may be ahead and it still counts as noise; 0: none."""
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


@dataclass(frozen=True)
class Check:
    """One rule looked at. observed and limit are None where there is no such number.

    blocking: whether a failed check keeps the release out; the others are said and do not decide.
    valid: False if the rule had nothing to look at.
    """

    name: str
    observed: float | None
    limit: float | None
    passed: bool
    reason: str
    blocking: bool = True
    valid: bool = True


@dataclass(frozen=True)
class Verdict:
    """What the gate says about one release, named by id and manifest digest."""

    passed: bool
    checks: tuple[Check, ...]
    release_id: str = ""
    digest: str = ""

    @property
    def valid(self) -> bool:
        """Whether every blocking rule had something to look at."""
        return all(check.valid for check in self.checks if check.blocking)

    @property
    def status(self) -> Literal["passed", "failed", "invalid"]:
        """One word for tables."""
        return "invalid" if not self.valid else "passed" if self.passed else "failed"

    @property
    def failures(self) -> tuple[Check, ...]:
        """The blocking checks that failed."""
        return tuple(check for check in self.checks if check.blocking and not check.passed)

    def named(self, release_id: str, digest: str) -> "Verdict":
        """The same verdict, bound to a release."""
        return replace(self, release_id=release_id, digest=digest)

    def for_release(self, release_id: str, digest: str) -> "Verdict":
        """This verdict, if it lets exactly this release pass; RefusedError if it is another's, failed or invalid."""
        if (self.release_id, self.digest) != (release_id, digest):
            raise RefusedError(
                f"verdict names release {self.release_id or '(none)'} ({self.digest[:12]}), not {release_id} "
                f"({digest[:12]}); judge this release and promote with its own verdict"
            )
        if self.status != "passed":
            said = "; ".join(f"{check.name}: {check.reason}" for check in self.failures)
            raise RefusedError(f"release {release_id}: gate {self.status}: {said}; the champion stays")
        return self

    def save(self, path: Path) -> None:
        """Put the verdict in place at once, as JSON."""
        value = {**asdict(self), "status": self.status}
        artifact.replace_file(path, json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Verdict":
        """Read a saved verdict. Raises MissingArtifactError or CorruptArtifactError naming the file."""
        raw = artifact.read_json(path)
        try:
            checks = tuple(Check(**check) for check in raw["checks"])
            verdict = cls(bool(raw["passed"]), checks, str(raw["release_id"]), str(raw["digest"]))
        except (TypeError, KeyError) as error:
            raise CorruptArtifactError(f"{path}: not a verdict ({error}); judge the release again") from None
        if verdict.passed != _passes(verdict.checks):
            raise CorruptArtifactError(f"{path}: says passed={verdict.passed} against its own checks; judge it again")
        return verdict


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
        _at_most("num_invalid", _number(scores, "num_invalid"), 0, "invalid SIDs in constrained lists"),
        _at_most(
            "hallucination_rate",
            _number(scores, "hallucination_rate"),
            params.max_hallucination_rate,
            "share of SIDs of no item, search without index",
        ),
        _beam_certificate(scores),
        *_uniqueness(sids_report, params),
        *_against_methods(scores, champion_scores, params),
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
    return Verdict(_passes(tuple(checks)), tuple(checks))


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
    return Verdict(_passes(checks), checks).named(sealed.release_id, artifact.read_manifest(release).digest)


def _passes(checks: tuple[Check, ...]) -> bool:
    return all(check.passed and check.valid for check in checks if check.blocking)


def _number(values: Mapping[str, Any], *path: str) -> float | None:
    """A finite number below nested keys, or None."""
    found: Any = values
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return float(found)


def _queries(scores: Mapping[str, Any]) -> Check:
    observed = _number(scores, "num_queries")
    passed = observed is not None and observed >= 1
    return Check("num_queries", observed, 1, passed, f"{_show(observed)} queries, at least 1", valid=passed)


def _at_most(name: str, observed: float | None, limit: float, what: str, *, blocking: bool = True) -> Check:
    passed = observed is not None and observed <= limit
    reason = f"{_show(observed)} {what}, at most {_show(limit)}"
    return Check(name, observed, limit, passed, reason, blocking=blocking, valid=observed is not None)


def _at_least(name: str, observed: float | None, limit: float | None, what: str, *, blocking: bool = True) -> Check:
    both = observed is not None and limit is not None
    passed = observed is not None and limit is not None and observed >= limit
    reason = f"{_show(observed)} {what}, at least {_show(limit)}"
    return Check(name, observed, limit, passed, reason, blocking=blocking, valid=both)


def _show(value: float | None) -> str:
    return "(no figure)" if value is None else f"{value:.4g}"


def _beam_certificate(scores: Mapping[str, Any]) -> Check:
    """What the beams say must be so; that they miss something is no lie and does not block.

    See models/retrieval/beam_check.py.
    """
    name, certificate = "beam_certificate", scores.get("beam")
    if certificate is None:
        reason = "no certificate: an older release, or scores.beam_check_queries is 0"
        return Check(name, None, None, False, reason, blocking=False, valid=False)
    requests, invalid, duplicates, error = (
        _show(_number(certificate, key)) for key in ("num_requests", "num_invalid", "num_duplicates", "score_error")
    )
    said = f"{invalid} invalid, {duplicates} duplicates, score error {error} over {requests} requests"
    holds = certificate.get("holds")
    if not isinstance(holds, bool):
        return Check(name, None, None, False, f"does not say whether it holds: {said}", valid=False)
    return Check(name, None, None, holds, f"{'holds' if holds else 'broken'}: {said}")


def _uniqueness(sids_report: Mapping[str, Any], params: GateParams) -> Iterator[Check]:
    """An older report knows no contents and is judged as if all differed."""
    own, names = _number(sids_report, "content_uniqueness"), ("uniqueness", "uniqueness_with_tie_break")
    found, told_apart = (_number(sids_report, name) for name in names)
    what = "share of items alone on a SID"
    if own is None:
        yield _at_least(names[0], found, params.min_uniqueness, what)
        return
    yield _at_least(names[0], found, params.min_uniqueness * own, f"{what} ({own:.4g} have content of their own)")
    yield _at_least(names[1], told_apart, params.min_uniqueness, f"{what}, the tie-break included")


def _beats_popularity(scores: Mapping[str, Any] | None, protocol: Protocol) -> bool:
    recalls = [_number(scores or {}, "methods", name, protocol, "recall@10") for name in ("model", "popularity")]
    return recalls[0] is not None and recalls[1] is not None and recalls[0] >= recalls[1]


def _against_methods(
    scores: Mapping[str, Any], champion_scores: Mapping[str, Any] | None, params: GateParams
) -> Iterator[Check]:
    """The simpler-model rule (ML Test Score M5): popularity blocks, a better other method is named."""
    methods = scores.get("methods")
    names = sorted(methods) if isinstance(methods, Mapping) else []
    for protocol in PROTOCOLS:
        observed = _number(scores, "methods", "model", protocol, "recall@10")
        for name in ["popularity", *(n for n in names if n not in ("model", "popularity"))]:
            rival = limit = _number(scores, "methods", name, protocol, "recall@10")
            noise = ""
            if rival is not None and name == "popularity" and params.max_behind_popularity_se:
                errors = [_number(scores, "methods", m, protocol, "recall@10_se") or 0.0 for m in ("model", name)]
                limit = rival - params.max_behind_popularity_se * math.hypot(*errors)
                noise = f" (at least {_show(limit)}: {params.max_behind_popularity_se:g} s.e. are noise)"
            decides = name == "popularity" and protocol == params.protocol
            if params.popularity_blocks == "once_beaten" and None not in (observed, rival):
                decides = decides and _beats_popularity(champion_scores, protocol)
            check = _at_least(f"{protocol}/{name}", observed, limit, "", blocking=decides)
            better = f": {name} is better" if observed is not None and rival is not None and observed < rival else ""
            yield replace(check, reason=f"recall@10 {_show(observed)}, {name} {_show(rival)}{noise}{better}")


def _against_champion(
    scores: Mapping[str, Any], champion: Mapping[str, Any], protocol: Protocol, params: GateParams
) -> Check:
    return _drop(
        f"{protocol}/champion",
        [_number(scores, "methods", "model", protocol, key) for key in ("recall@10", "recall@10_se")],
        [_number(champion, "methods", "model", protocol, key) for key in ("recall@10", "recall@10_se")],
        max_drop_se=params.max_drop_se,
        max_relative_drop=params.max_relative_drop,
        blocking=protocol == params.protocol,
    )


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
        reason = f"recall@10 {_show(recall)} this release, {_show(old_recall)} the champion"
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
        yield _at_least(f"slice/{name}", _number(slices.get(name, {}), "recall@10"), floor, "recall@10")


def _against_champion_slices(
    scores: Mapping[str, Any], champion: Mapping[str, Any], params: GateParams
) -> Iterator[Check]:
    """Slices that both have and that carry a standard error; without one a small slice would block by chance."""
    old = _slices(champion, params.protocol)
    for name, new in _slices(scores, params.protocol).items():
        figures = [[_number(side, key) for key in ("recall@10", "recall@10_se")] for side in (new, old.get(name, {}))]
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
    weighed = "traffic" if _number(row, "traffic") is not None else "items"
    moved = _number(row, weighed)
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
    (recall, error), (old_recall, old_error) = (
        [_number(side, "methods", "model", params.protocol, key) for key in ("recall@10", "recall@10_se")]
        for side in (scores, champion)
    )
    if recall is None or old_recall is None:
        reason = f"{said}; recall@10 {_show(recall)} this release, {_show(old_recall)} the champion, cannot pay for it"
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
