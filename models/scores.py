"""Stage `scores`: what the fine-tuned model would have shown on the days after as_of, against what users then took.

    reads   catalog, histories (histories, queries), sids, vocabulary, sft (weights/), index, base (scores/, if any)
    writes  scores.json, predictions.parquet (user_id, day, item_ids: the model's top 10, seen items not masked)
    run     python -m models.scores --params recipes/cpu_tiny.yaml --catalog … --histories … --sids … --vocabulary … \\
                --sft … --index … --base= --seed 17 --out artifacts/scores

A query is a user and a held-out day: the history is what was known before that day, relevant are the distinct items of
that day, and every live item is ranked (nothing is sampled). Models stay as they were at as_of; only histories
grow from day to day. Two protocols, because the difference between them is large wherever things are bought twice:

    seen_masked    items of the history are taken out of the ranking and out of the relevant ones; queries of which
                   nothing relevant remains are left out
    not_masked     nothing is taken out

SASRec takes a minute to train, so it is trained for a bootstrap only; with a base its figures are the base's, with
`from`: the as_of for which they were measured. The other baselines are fitted anew every time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from models import metrics
from plumline.artifact import read_json, write_json
from plumline.settings import get_settings
from plumline.stage import Params, hash_seed, main, say
from plumline.tables import column, write_parquet

if TYPE_CHECKING:
    from features.catalog import Catalog
    from models.beam_check import Certificate
    from models.retriever import Request, Retriever

K = 10
"""Cut-off of every measure; the names in scores.json hold it."""

MASKED, PLAIN = PROTOCOLS = ("seen_masked", "not_masked")
NEW_ITEM_DAYS = 7
COLD_EVENTS = 2
_SCORES = "scores.json"
_PROTOCOL = (
    "user-days after as_of, item level, full ranking over live items; recall@10 = hits / min(10, relevant); "
    "standard errors by bootstrap over users"
)

Ranker = Callable[[Sequence[Sequence[str]], int, Sequence[Collection[str]]], list[list[str]]]


class ScoresParams(Params):
    """How much is measured, and against what."""

    width: int = Field(default=50, ge=K)
    """Beams of a search."""
    max_queries: int = Field(default=1500, ge=1)
    """Queries scored; more are drawn from by the seed."""
    hallucination_queries: int = Field(default=200, ge=1)
    """Queries that are also searched without the index, for the hallucination rate."""
    beam_check_queries: int = Field(default=10, ge=0)
    """Queries of which every SID is scored exactly, to see what the beams miss; 0: none."""
    beam_check_max_sids: int = Field(default=100_000, ge=1)
    """SIDs of the index above which that is left out: each query sends all of them through the model."""
    bootstrap_samples: int = Field(default=1000, ge=2)
    """Samples behind a standard error."""
    popularity_half_life_days: float | None = Field(default=14.0, gt=0)
    """Age at which an event counts half for popularity; null: all events count one."""
    knn_half_life_days: float | None = Field(default=30.0, gt=0)
    """The same for the pairs of the sequential item-kNN."""
    knn_window: int = Field(default=3, ge=1)
    """Steps within which one item follows another for the item-kNN."""
    knn_decay: float = Field(default=0.8, gt=0, le=1)
    """Weight lost a step, between the items of a pair and back through a query's history."""
    sasrec_steps: int = Field(default=0, ge=0)
    """Training steps of SASRec; 0 leaves it out."""
    sasrec_half_life_days: float | None = Field(default=60.0, gt=0)
    """Age at which a window of a history is drawn half as often for SASRec; null: all equally."""


@dataclass(frozen=True)
class Query:
    """A user-day that is held out. history: (item_id, epoch ms) before the day, oldest first."""

    user_id: str
    day: date
    history: list[tuple[str, int]]
    relevant: frozenset[str]

    @property
    def seen(self) -> frozenset[str]:
        """Items of the history."""
        return frozenset(item for item, _ in self.history)

    def request(self, profile: dict[str, str | None]) -> Request:
        """The request of a user who comes at noon of the day (when is not known; that it is that day, is)."""
        from models.retriever import Request

        noon = datetime(self.day.year, self.day.month, self.day.day, 12, tzinfo=UTC)
        return Request(history=self.history, profile=profile, at_ms=int(noon.timestamp() * 1000))


@dataclass(frozen=True)
class Task:
    """The queries of one protocol: what is asked, what may not come back, what counts as a hit. Q of each."""

    queries: list[Query]
    exclude: list[frozenset[str]]
    relevant: list[frozenset[str]]

    @staticmethod
    def of(queries: Sequence[Query], protocol: str) -> Task:
        """Apply a protocol."""
        if protocol == PLAIN:
            return Task(list(queries), [frozenset()] * len(queries), [query.relevant for query in queries])
        kept = [query for query in queries if query.relevant - query.seen]
        return Task(kept, [query.seen for query in kept], [query.relevant - query.seen for query in kept])

    def rank(self, ranker: Ranker) -> list[list[str]]:
        """Ask a baseline."""
        return ranker([[item for item, _ in query.history] for query in self.queries], K, self.exclude)


@dataclass(frozen=True)
class Ruler:
    """How a list of rankings becomes figures: one seed for all, so that all methods meet the same resampled users."""

    seed: int
    num_samples: int

    def measure(
        self, queries: Sequence[Query], ranked: Sequence[Sequence[str]], relevant: Sequence[Collection[str]]
    ) -> dict[str, Any]:
        """recall@10 and ndcg@10 with standard errors; without any query only `num_queries`: 0."""
        figures: dict[str, Any] = {"num_queries": len(queries)}
        if not queries:
            return figures
        hits = metrics.hit_matrix(ranked, relevant, K)
        num_relevant = np.asarray([len(items) for items in relevant])
        users = np.asarray([query.user_id for query in queries])
        for name, measure in (("recall", metrics.recall), ("ndcg", metrics.ndcg)):
            values = measure(hits, num_relevant)
            estimate = metrics.bootstrap_mean(values, users, seed=self.seed, num_samples=self.num_samples)
            figures |= {f"{name}@{K}": estimate.mean, f"{name}@{K}_se": estimate.standard_error}
        return figures


def read_scores(folder: Path) -> dict[str, Any]:
    """Contents of a scores artifact's scores.json. `num_queries` 0: nothing was measured, there are no methods."""
    return read_json(folder / _SCORES)


def run(
    params: ScoresParams,
    *,
    catalog: Path,
    histories: Path,
    sids: Path,
    vocabulary: Path,
    sft: Path,
    index: Path,
    base: Path | None,
    seed: int,
    out: Path,
) -> None:
    """Score the model and the baselines on the held-out days. Nothing held out: num_queries 0 and no methods."""
    from features.catalog import Catalog
    from features.histories import read_histories
    from models.language import pick_device
    from models.retriever import Retriever

    as_of = date.fromisoformat(read_json(histories / "stats.json")["as_of"])
    queries = read_sample(histories, params.max_queries, seed)
    scores: dict[str, Any] = {
        "as_of": as_of.isoformat(),
        "protocol": _PROTOCOL,
        "num_queries": len(queries),
        "num_users": len({query.user_id for query in queries}),
    }
    if not queries:
        say(f"scores: no held-out day after {as_of} has queries; nothing is measured (the gate will not pass this)")
        write_json(out / _SCORES, {**scores, "methods": {}, "slices": {}, "daily": []})
        write_parquet(out / "predictions.parquet", _predictions([], []))
        return
    _use_few_threads()
    retriever = Retriever.load(
        vocabulary=vocabulary, sids=sids, weights=sft / "weights", index=index, catalog=catalog, device=pick_device()
    )
    known = Catalog.load(catalog)
    ruler = Ruler(hash_seed(seed, "bootstrap"), params.bootstrap_samples)
    tasks = {protocol: Task.of(queries, protocol) for protocol in PROTOCOLS}

    # 1. The model.
    ranked, unknown = _ask_model(retriever, known, tasks, params.width)
    scores["num_unknown_history_items"] = unknown
    scores["num_invalid"] = _count_invalid(tasks, ranked, frozenset(known.live_ids()))
    scores["hallucination_rate"] = _hallucination_rate(retriever, known, queries, params, seed)
    if params.beam_check_queries and (certificate := _certificate(retriever, known, queries, params, seed)):
        scores["beam"] = certificate.to_json()
    counts = metrics.impressions(ranked[PLAIN])
    scores["coverage"] = metrics.coverage(counts, len(retriever.live_items))
    scores["effective_vocabulary"] = metrics.effective_vocabulary(counts)
    scores["slices"] = _slices(ruler, tasks, ranked, _new_items(known, as_of))
    scores["daily"] = _daily(ruler, tasks[PLAIN], ranked[PLAIN])
    methods = {"model": {p: ruler.measure(tasks[p].queries, ranked[p], tasks[p].relevant) for p in PROTOCOLS}}

    # 2. The baselines, on the same queries and the same items.
    item_ids = sorted(retriever.live_items)
    for name, ranker in fit_baselines(params, read_histories(histories), item_ids, base, seed).items():
        methods[name] = {p: ruler.measure(t.queries, t.rank(ranker), t.relevant) for p, t in tasks.items()}
    if base is not None and "sasrec" in (before := read_scores(base / "scores"))["methods"]:
        methods["sasrec"] = {"from": before["as_of"], **before["methods"]["sasrec"]}  # an older `from` stays
    scores["methods"] = methods

    write_json(out / _SCORES, scores)
    write_parquet(out / "predictions.parquet", _predictions(tasks[PLAIN].queries, ranked[PLAIN]))
    for name, figures in methods.items():
        shown = ", ".join(f"{p} {figures[p].get(f'recall@{K}', 0):.4f}" for p in PROTOCOLS)
        say(f"scores: {name} recall@{K} {shown}")


def _use_few_threads() -> None:
    """PLUMLINE_THREADS, or one: a second thread gains such small batches 7%, and costs tenfold where it has to wait."""
    import torch

    torch.set_num_threads(get_settings().threads or 1)


def read_sample(histories: Path, max_queries: int, seed: int) -> list[Query]:
    """The held-out queries that have something relevant, at most max_queries, in the order of the file."""
    from features.histories import read_queries

    table = read_queries(histories)
    queries = [
        Query(row["user_id"], row["day"], list(zip(row["item_ids"], row["timestamps"], strict=True)), relevant)
        for row in table.to_pylist()
        if (relevant := frozenset(row["relevant"]))
    ]
    return _sample(queries, max_queries, hash_seed(seed, "queries"))


def fit_baselines(
    params: ScoresParams, histories: pa.Table, item_ids: list[str], base: Path | None, seed: int
) -> dict[str, Ranker]:
    """Every baseline that is to be fitted now, by its name in scores.json."""
    from models.baselines.item_knn import ItemKnn
    from models.baselines.popularity import Popularity

    rankers: dict[str, Ranker] = {
        "popularity": Popularity.fit(histories, item_ids, half_life_days=params.popularity_half_life_days).rank,
        "item_knn": ItemKnn.fit(
            histories,
            item_ids,
            window=params.knn_window,
            decay=params.knn_decay,
            half_life_days=params.knn_half_life_days,
        ).rank,
    }
    if params.sasrec_steps and base is None:
        from models.baselines.sasrec import SasRec

        rankers["sasrec"] = SasRec.fit(
            histories,
            item_ids,
            steps=params.sasrec_steps,
            seed=hash_seed(seed, "sasrec"),
            half_life_days=params.sasrec_half_life_days,
        ).rank
    return rankers


def _sample(queries: list[Query], size: int, seed: int) -> list[Query]:
    if len(queries) <= size:
        return queries
    chosen = np.random.default_rng(seed).choice(len(queries), size, replace=False)
    return [queries[number] for number in np.sort(chosen)]


def _requests(known: Catalog, queries: Sequence[Query]) -> list[Request]:
    from models.vocabulary import read_profiles

    profiles = read_profiles(known)
    return [query.request(profiles.get(query.user_id, {})) for query in queries]


def _ask_model(
    retriever: Retriever, known: Catalog, tasks: dict[str, Task], width: int
) -> tuple[dict[str, list[list[str]]], int]:
    """The model's lists of every protocol, and how many history items had no SID.

    Each protocol is a search of its own: what must not come back is closed to the beams, as in serving.
    """
    queries = tasks[PLAIN].queries
    requests = _requests(known, queries)
    place = {id(query): number for number, query in enumerate(queries)}
    ranked = {}
    for protocol, task in tasks.items():
        numbers = [place[id(query)] for query in task.queries]
        asked = [replace(requests[n], exclude=seen) for n, seen in zip(numbers, task.exclude, strict=True)]
        ranked[protocol] = [[hit.item_id for hit in hits] for hits in retriever.retrieve(asked, K, width)]
    return ranked, sum(retriever.prompt(request).num_unknown for request in requests)


def _count_invalid(tasks: dict[str, Task], ranked: dict[str, list[list[str]]], live: frozenset[str]) -> int:
    """Recommended items that are not live, excluded, or repeated. Asks the catalogue, not the index. Must be 0."""
    num_invalid = 0
    for protocol, task in tasks.items():
        for items, exclude in zip(ranked[protocol], task.exclude, strict=True):
            num_invalid += len(items) - len((set(items) & live) - exclude)
    return num_invalid


def _hallucination_rate(
    retriever: Retriever, known: Catalog, queries: list[Query], params: ScoresParams, seed: int
) -> float:
    """Share of the ten best SIDs, each code of each level allowed, that no live item has."""
    sample = _sample(queries, params.hallucination_queries, hash_seed(seed, "hallucinations"))
    beams = retriever.beams(_requests(known, sample), params.width, constrained=False)
    codes = np.concatenate([one.codes[:K] for one in beams])
    return metrics.hallucination_rate(retriever.epoch.has_sids(codes))


def _certificate(
    retriever: Retriever, known: Catalog, queries: list[Query], params: ScoresParams, seed: int
) -> Certificate | None:
    """What the beams of a sample of the queries miss; every other query with its seen items masked, as a rule."""
    from models.beam_check import check_beams

    if (num_sids := retriever.epoch.base.index.num_leaves) > params.beam_check_max_sids:
        say(f"scores: no certificate of the beams: {num_sids:,} SIDs (scores.beam_check_max_sids)")
        return None
    sample = _sample(queries, params.beam_check_queries, hash_seed(seed, "beam_check"))
    requests = [
        replace(request, exclude=query.seen if number % 2 else frozenset())
        for number, (query, request) in enumerate(zip(sample, _requests(known, sample), strict=True))
    ]
    certificate = check_beams(retriever, requests, k=K, width=params.width)
    say("scores: beams " + "; ".join(" ".join(line.split()) for line in certificate.lines()[2:]))
    return certificate


def _new_items(known: Catalog, as_of: date) -> frozenset[str]:
    """Items first seen within the last days of what the model could know."""
    first_seen = zip(column(known.items, "item_id"), column(known.items, "first_seen_day"), strict=True)
    since = as_of - timedelta(days=NEW_ITEM_DAYS)
    return frozenset(item for item, day in first_seen if day is not None and day > since)


def _slices(
    ruler: Ruler, tasks: dict[str, Task], ranked: dict[str, list[list[str]]], new: frozenset[str]
) -> dict[str, Any]:
    """The model's figures where it is hardest: dimension → value → protocol → figures.

    items/new: only relevant items first seen within NEW_ITEM_DAYS before as_of count, and only queries that have one.
    history/cold: users with at most COLD_EVENTS events.
    """
    slices: dict[str, Any] = {"items": {"new": {}}, "history": {"cold": {}}}
    for protocol, task in tasks.items():
        rows = list(zip(task.queries, ranked[protocol], task.relevant, strict=True))
        fresh = [(query, items, relevant & new) for query, items, relevant in rows if relevant & new]
        cold = [row for row in rows if len(row[0].history) <= COLD_EVENTS]
        slices["items"]["new"][protocol] = _measure_rows(ruler, fresh)
        slices["history"]["cold"][protocol] = _measure_rows(ruler, cold)
    return slices


def _daily(ruler: Ruler, task: Task, ranked: list[list[str]]) -> list[dict[str, Any]]:
    """The model's figures of each held-out day that has queries, oldest first; seen items are not masked."""
    rows = list(zip(task.queries, ranked, task.relevant, strict=True))
    days = sorted({query.day for query in task.queries})
    return [
        {"day": day.isoformat(), **_measure_rows(ruler, [row for row in rows if row[0].day == day])} for day in days
    ]


def _measure_rows(ruler: Ruler, rows: Sequence[tuple[Query, list[str], frozenset[str]]]) -> dict[str, Any]:
    queries, ranked, relevant = zip(*rows, strict=True) if rows else ((), (), ())
    return ruler.measure(queries, ranked, relevant)


def _predictions(queries: Sequence[Query], ranked: Sequence[Sequence[str]]) -> pa.Table:
    schema = pa.schema({"user_id": pa.string(), "day": pa.date32(), "item_ids": pa.list_(pa.string())})
    columns = [[query.user_id for query in queries], [query.day for query in queries], list(ranked)]
    return pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema)


if __name__ == "__main__":
    main(run, section="scores")
