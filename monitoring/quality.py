"""Quality: what a release's own reports say, and how it moved from release to release.

Reads scores/scores.json and sids/report.json of sealed releases. Writes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import zip_longest
from typing import Any

from monitoring.methods import (
    MODEL,
    PROTOCOLS,
    SERVED,
    SIMPLE,
    WITHOUT_MODEL,
    Difference,
    Protocol,
    difference,
    label,
    methods_of,
    model_gain,
    number,
    served_method,
)
from plumline import artifact
from serving.release import Release

DRAWN_METHODS = (SERVED, WITHOUT_MODEL, MODEL, "memory", "own", "popularity", "item_knn", "sasrec")
"""Methods whose recall is a gauge."""


@dataclass(frozen=True)
class MethodScore:
    """One method under one protocol, pooled over what was asked; shares in [0, 1] with standard errors.

    name: for people. minus: what is served minus this method in recall@10, None of what is served itself.
    """

    method: str
    name: str
    protocol: str
    recall: float
    recall_se: float | None
    ndcg: float | None
    ndcg_se: float | None
    minus: Difference | None


@dataclass(frozen=True)
class Comparison:
    """Every method asked for the same of num_queries.

    served: the method whose lists users get. gains: protocol → what the language model adds in recall@10, without the
    protocols of which it was not measured.
    """

    num_queries: int
    served: str
    scores: tuple[MethodScore, ...]
    gains: dict[Protocol, Difference]

    def of(self, method: str, protocol: Protocol) -> MethodScore | None:
        """A method's figures, None if it was not scored."""
        found = [score for score in self.scores if (score.method, score.protocol) == (method, protocol)]
        return found[0] if found else None


@dataclass(frozen=True)
class Level:
    """One SID level. usage: share of codes in use; perplexity: codes worth of entropy; gini: 0 even … 1 one code.

    astray: share of the language model's probability that leaves the SIDs of live items at this level.
    """

    usage: float | None
    perplexity: float | None
    gini: float | None
    astray: float | None = None


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

    next_days: of user-days. last_event: of users asked for their last held-out event (leave-one-out), None if they were
    not. next_day: recall@10 of what is served on the first held-out day alone; coverage and effective_vocabulary are of
    what is served too, hallucination_rate (of the model's probability), hallucination_best (of the ten best of a beam
    search that nothing holds) and beam of the language model. churn: a level, what a retraining moved;
    empty for a release that follows none. beam: None if nothing was certified.
    """

    release_id: str
    as_of: date
    next_days: Comparison
    next_day: float | None
    hallucination_rate: float | None
    hallucination_best: float | None
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
    last_event: Comparison | None = None

    def recall(self, method: str, protocol: Protocol = "not_masked") -> float | None:
        """Pooled recall@10 of a method, None if it was not scored. `served` is what was served, ranker or not."""
        found = self.next_days.of(self.next_days.served if method == SERVED else method, protocol)
        return found.recall if found else None

    @property
    def simple_methods_ahead(self) -> list[str] | None:
        """Simple methods that are ahead of what is served by more than noise (seen items kept), by their names.

        None where none was compared.
        """
        rows = [self.next_days.of(method, "not_masked") for method in SIMPLE]
        compared = [(row.name, row.minus) for row in rows if row and row.minus]
        return [name for name, minus in compared if minus.is_behind()] if compared else None

    @property
    def gauges(self) -> dict[str, float]:
        """Gauge name → value; recalls and shares in percent (a dashboard counter shows two decimals)."""
        served, popularity, ahead = self.recall(SERVED), self.recall("popularity"), self.simple_methods_ahead
        perplexities = [level.perplexity for level in self.levels if level.perplexity is not None]
        measured: dict[str, float | None] = {
            **{f"recall_{m}_percent": _percent(self.recall(m)) for m in DRAWN_METHODS},
            **{f"recall_masked_{m}_percent": _percent(self.recall(m, "seen_masked")) for m in DRAWN_METHODS},
            "recall_next_day_percent": _percent(self.next_day),
            "recall_over_popularity": served / popularity if served is not None and popularity else None,
            "simple_methods_ahead": None if ahead is None else len(ahead),
            "hallucination_percent": _percent(self.hallucination_rate),
            "hallucination_best_percent": _percent(self.hallucination_best),
            "coverage_percent": _percent(self.coverage),
            "effective_vocabulary": self.effective_vocabulary,
            "sid_uniqueness_percent": _percent(self.uniqueness),
            "sid_uniqueness_with_tie_break_percent": _percent(self.uniqueness_with_tie_break),
            "sid_collisions": self.collisions,
            "sid_largest_bucket": self.largest_bucket,
            "sid_least_perplexity": min(perplexities, default=None),
        }
        for protocol, gain in self.next_days.gains.items():
            name = "model_gain" if protocol == "not_masked" else "model_gain_masked"
            measured |= {f"{name}_percent": 100 * gain.value, f"{name}_se_percent": 100 * gain.standard_error}
        if self.beam is not None:
            measured |= {
                "beam_missed_mass_percent": _percent(self.beam.missed_mass),
                "beam_missed_items_percent": _percent(self.beam.missed_items),
                "beam_score_error": self.beam.score_error,
                "beam_false": self.beam.num_false,
            }
        for place, level in enumerate(self.churn, start=1):
            measured[f"sid_churn_level{place}_percent"] = _percent(level.moved)
            measured[f"sid_churn_level{place}_unaligned_percent"] = _percent(level.unaligned)
        return {name: float(value) for name, value in measured.items() if value is not None}


@dataclass(frozen=True)
class DayRecall:
    """Next-day recall@10 of what one release serves: on the first day after what it knew."""

    release_id: str
    day: date
    num_queries: int
    recall: float


def read_quality(release: Release) -> Quality:
    """The figures of one sealed release. Raises MissingArtifactError or CorruptArtifactError naming the file."""
    scores = artifact.read_json(release.path("scores") / "scores.json")
    sids = artifact.read_json(release.path("sids") / "report.json")
    last_event = scores.get("leave_one_out")
    collisions, bucket, num_items = (number(sids, key) for key in ("collisions", "largest_bucket", "num_items"))
    return Quality(
        release_id=release.release_id,
        as_of=release.as_of,
        next_days=_compare(scores),
        next_day=next((number(row, "recall@10") for row in _days(scores)), None),
        hallucination_rate=number(scores, "hallucination_rate"),
        hallucination_best=number(scores, "hallucination_best"),
        coverage=number(scores, "coverage"),
        effective_vocabulary=number(scores, "effective_vocabulary"),
        num_items=None if num_items is None else int(num_items),
        uniqueness=number(sids, "uniqueness"),
        uniqueness_with_tie_break=number(sids, "uniqueness_with_tie_break"),
        collisions=None if collisions is None else int(collisions),
        largest_bucket=None if bucket is None else int(bucket),
        levels=_levels(sids.get("levels", []), scores.get("hallucination_by_level", [])),
        churn=_churn(sids.get("churn", {})),
        beam=_beam(scores.get("beam")),
        last_event=_compare(last_event) if last_event else None,
    )


def next_day_recalls(releases: Sequence[Release]) -> list[DayRecall]:
    """The next-day recall of successive releases, by day; releases without a scored day are left out."""
    found = []
    for release in releases:
        days = _days(artifact.read_json(release.path("scores") / "scores.json"))
        if days and (recall := number(days[0], "recall@10")) is not None:
            day = date.fromisoformat(str(days[0]["day"]))
            found.append(DayRecall(release.release_id, day, int(days[0].get("num_queries", 0)), recall))
    return sorted(found, key=lambda point: (point.day, point.release_id))


def _levels(reports: Sequence[Mapping[str, Any]], astray: Sequence[float]) -> tuple[Level, ...]:
    """astray: of each level; empty for a release of before 2026-11-28."""
    shares = zip_longest(reports, astray[: len(reports)])
    return tuple(
        Level(number(row, "usage"), number(row, "perplexity"), number(row, "gini"), astray=share)
        for row, share in shares
    )


def _days(scores: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The held-out days that had queries, oldest first."""
    return sorted((row for row in scores.get("daily", []) if row.get("num_queries", 1)), key=lambda row: row["day"])


def _churn(section: Mapping[str, Any]) -> tuple[Churn, ...]:
    def share(row: Mapping[str, Any]) -> float | None:
        by_traffic = number(row, "traffic")
        return number(row, "items") if by_traffic is None else by_traffic

    pairs = zip(section.get("after", []), section.get("before", []), strict=True)
    return tuple(Churn(share(after), share(before)) for after, before in pairs)


def _beam(certificate: Mapping[str, Any] | None) -> Beam | None:
    if certificate is None:
        return None
    mass, items, error, invalid, duplicates = (
        number(certificate, key)
        for key in ("missed_mass", "missed_items", "score_error", "num_invalid", "num_duplicates")
    )
    return Beam(mass, items, error, None if invalid is None or duplicates is None else int(invalid + duplicates))


def _compare(scores: Mapping[str, Any]) -> Comparison:
    """A scores.json, or its `leave_one_out`."""
    gains = {protocol: gain for protocol in PROTOCOLS if (gain := model_gain(scores, protocol))}
    rows = [_method_score(scores, method, protocol) for method in methods_of(scores) for protocol in PROTOCOLS]
    found = tuple(row for row in rows if row)
    return Comparison(int(scores.get("num_queries", 0)), served_method(scores), found, gains)


def _method_score(scores: Mapping[str, Any], method: str, protocol: Protocol) -> MethodScore | None:
    keys = ("recall@10", "recall@10_se", "ndcg@10", "ndcg@10_se")
    recall, recall_se, ndcg, ndcg_se = (number(scores, "methods", method, protocol, key) for key in keys)
    if recall is None:
        return None
    minus = None if method == served_method(scores) else difference(scores, method, protocol)
    return MethodScore(method, label(scores, method), protocol, recall, recall_se, ndcg, ndcg_se, minus)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
