"""Quality: what a release's own reports say, and how it moved from release to release.

Reads scores/scores.json and sids/report.json of sealed releases. Writes nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from plumline import artifact
from serving.release import Release

METHODS = ("model", "popularity", "item_knn", "sasrec")
PROTOCOLS = ("not_masked", "seen_masked")


@dataclass(frozen=True)
class MethodScore:
    """One method under one protocol, pooled over what was asked; shares in [0, 1] with standard errors."""

    method: str
    protocol: str
    recall: float
    recall_se: float | None
    ndcg: float | None
    ndcg_se: float | None


@dataclass(frozen=True)
class Level:
    """One SID level. usage: share of codes in use; perplexity: codes worth of entropy; gini: 0 even … 1 one code."""

    usage: float | None
    perplexity: float | None
    gini: float | None


@dataclass(frozen=True)
class Churn:
    """Share of the known items whose SID moved up to one level, by traffic where there is any.

    moved: as users meet it. unaligned: what would have moved, had the codes not got their old names.
    """

    moved: float | None
    unaligned: float | None


@dataclass(frozen=True)
class Beam:
    """What the certificate in scores.json says of the beams: shares of the true best that they miss, and errors.

    missed_mass: by probability; missed_items: of a list. score_error: the largest. num_false: invalid SIDs or items,
    and those that came twice.
    """

    missed_mass: float | None
    missed_items: float | None
    score_error: float | None
    num_false: int | None


@dataclass(frozen=True)
class Quality:
    """A release's own figures; None where its reports have none. Shares in [0, 1].

    next_day: recall@10 of the model on the first held-out day alone. churn: a level, what a retraining moved; empty for
    a release that follows none. beam: None if nothing was certified. last_event: of num_last_events users asked for
    their last held-out event (leave-one-out); scores is of user-days.
    """

    release_id: str
    as_of: date
    num_queries: int
    scores: tuple[MethodScore, ...]
    next_day: float | None
    hallucination_rate: float | None
    coverage: float | None
    effective_vocabulary: float | None
    num_items: int | None
    uniqueness: float | None
    uniqueness_with_tie_break: float | None
    collisions: int | None
    largest_bucket: int | None
    levels: tuple[Level, ...]
    churn: tuple[Churn, ...] = ()
    beam: Beam | None = None
    num_last_events: int = 0
    last_event: tuple[MethodScore, ...] = ()

    def recall(self, method: str, protocol: str = "not_masked") -> float | None:
        """Pooled recall@10 of a method, None if it was not scored."""
        found = [s.recall for s in self.scores if (s.method, s.protocol) == (method, protocol)]
        return found[0] if found else None

    @property
    def gauges(self) -> dict[str, float]:
        """Gauge name → value; recalls and shares in percent (a dashboard counter shows two decimals)."""
        model, popularity = self.recall("model"), self.recall("popularity")
        perplexities = [level.perplexity for level in self.levels if level.perplexity is not None]
        measured: dict[str, float | None] = {
            **{f"recall_{m}_percent": _percent(self.recall(m)) for m in METHODS},
            **{f"recall_masked_{m}_percent": _percent(self.recall(m, "seen_masked")) for m in METHODS},
            "recall_next_day_percent": _percent(self.next_day),
            "recall_over_popularity": model / popularity if model is not None and popularity else None,
            "hallucination_percent": _percent(self.hallucination_rate),
            "coverage_percent": _percent(self.coverage),
            "effective_vocabulary": self.effective_vocabulary,
            "sid_uniqueness_percent": _percent(self.uniqueness),
            "sid_uniqueness_with_tie_break_percent": _percent(self.uniqueness_with_tie_break),
            "sid_collisions": self.collisions,
            "sid_largest_bucket": self.largest_bucket,
            "sid_least_perplexity": min(perplexities, default=None),
        }
        if self.beam is not None:
            measured |= {
                "beam_missed_mass_percent": _percent(self.beam.missed_mass),
                "beam_missed_items_percent": _percent(self.beam.missed_items),
                "beam_score_error": self.beam.score_error,
                "beam_false": self.beam.num_false,
            }
        for number, level in enumerate(self.churn, start=1):
            measured[f"sid_churn_level{number}_percent"] = _percent(level.moved)
            measured[f"sid_churn_level{number}_unaligned_percent"] = _percent(level.unaligned)
        return {name: float(value) for name, value in measured.items() if value is not None}


@dataclass(frozen=True)
class DayRecall:
    """Next-day recall@10 of one release: on the first day after what it knew."""

    release_id: str
    day: date
    num_queries: int
    recall: float


def read_quality(release: Release) -> Quality:
    """The figures of one sealed release. Raises MissingArtifactError or CorruptArtifactError naming the file."""
    scores = artifact.read_json(release.path("scores") / "scores.json")
    sids = artifact.read_json(release.path("sids") / "report.json")
    last_event = scores.get("leave_one_out", {})
    collisions, bucket, num_items = (_number(sids.get(k)) for k in ("collisions", "largest_bucket", "num_items"))
    return Quality(
        release_id=release.release_id,
        as_of=release.as_of,
        num_queries=int(scores.get("num_queries", 0)),
        scores=_method_scores(scores.get("methods", {})),
        next_day=next((_number(row.get("recall@10")) for row in _days(scores)), None),
        hallucination_rate=_number(scores.get("hallucination_rate")),
        coverage=_number(scores.get("coverage")),
        effective_vocabulary=_number(scores.get("effective_vocabulary")),
        num_items=None if num_items is None else int(num_items),
        uniqueness=_number(sids.get("uniqueness")),
        uniqueness_with_tie_break=_number(sids.get("uniqueness_with_tie_break")),
        collisions=None if collisions is None else int(collisions),
        largest_bucket=None if bucket is None else int(bucket),
        levels=tuple(
            Level(*(_number(level.get(key)) for key in ("usage", "perplexity", "gini")))
            for level in sids.get("levels", [])
        ),
        churn=_churn(sids.get("churn", {})),
        beam=_beam(scores.get("beam")),
        num_last_events=int(last_event.get("num_queries", 0)),
        last_event=_method_scores(last_event.get("methods", {})),
    )


def next_day_recalls(releases: Sequence[Release]) -> list[DayRecall]:
    """The next-day recall of successive releases, by day; releases without a scored day are left out."""
    found = []
    for release in releases:
        days = _days(artifact.read_json(release.path("scores") / "scores.json"))
        if days and (recall := _number(days[0].get("recall@10"))) is not None:
            day = date.fromisoformat(str(days[0]["day"]))
            found.append(DayRecall(release.release_id, day, int(days[0].get("num_queries", 0)), recall))
    return sorted(found, key=lambda point: (point.day, point.release_id))


def _days(scores: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The held-out days that had queries, oldest first."""
    return sorted((row for row in scores.get("daily", []) if row.get("num_queries", 1)), key=lambda row: row["day"])


def _churn(section: Mapping[str, Any]) -> tuple[Churn, ...]:
    def share(row: Mapping[str, Any]) -> float | None:
        by_traffic = _number(row.get("traffic"))
        return _number(row.get("items")) if by_traffic is None else by_traffic

    pairs = zip(section.get("after", []), section.get("before", []), strict=True)
    return tuple(Churn(share(after), share(before)) for after, before in pairs)


def _beam(certificate: Mapping[str, Any] | None) -> Beam | None:
    if certificate is None:
        return None
    mass, items, error, invalid, duplicates = (
        _number(certificate.get(key))
        for key in ("missed_mass", "missed_items", "score_error", "num_invalid", "num_duplicates")
    )
    return Beam(mass, items, error, None if invalid is None or duplicates is None else int(invalid + duplicates))


def _method_scores(methods: Mapping[str, Any]) -> tuple[MethodScore, ...]:
    return tuple(
        _method_score(method, protocol, methods[method][protocol])
        for method in [*METHODS, *sorted(set(methods) - set(METHODS))]
        for protocol in PROTOCOLS
        if _number(methods.get(method, {}).get(protocol, {}).get("recall@10")) is not None
    )


def _method_score(method: str, protocol: str, row: Mapping[str, Any]) -> MethodScore:
    recall_se, ndcg, ndcg_se = (_number(row.get(key)) for key in ("recall@10_se", "ndcg@10", "ndcg@10_se"))
    return MethodScore(method, protocol, float(row["recall@10"]), recall_se, ndcg, ndcg_se)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
