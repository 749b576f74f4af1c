"""Stage `scores`: what would have been shown on the days after as_of, against what users then took.

    reads   catalog, histories (histories, queries, last_events), sids, vocabulary, sft (weights/), index,
            ranker and rivals (lists.parquet), base (scores/, if any)
    writes  scores.json, predictions.parquet (user_id, day, item_ids: the top 10 served, seen items not masked)
    run     python -m models.evaluation.scores --params recipes/cpu_tiny.yaml --catalog … --histories … --sids … \\
                --vocabulary … --sft … --index … --ranker … --rivals … --base= --seed 17 --out artifacts/scores

A query is a user and a held-out day: the history is what was known before that day, relevant are the distinct items of
that day, and every live item is ranked (nothing is sampled). Models stay as they were at as_of; only histories grow
from day to day. The user is said to come at noon of the day, and is told to the model as the service tells it. Two
protocols, because the difference between them is large wherever things are bought twice:

    seen_masked    items of the history are taken out of the ranking and out of the relevant ones; queries of which
                   nothing relevant remains are left out
    not_masked     nothing is taken out

Methods: `served` is what a user gets; `without_model` the same ranker without beams and the model's features; `model`
the beams alone; `memory` what was counted alone. These four were listed by the stage `ranker`, by rankers that did not
learn from the users whom they rank for. The rivals were listed by the stage `rivals`. `served_minus` holds
served less every other, paired by user; `model_gain` is that of `without_model`: what the language model is worth.

Under `leave_one_out` stand the same figures of a sample of users asked for their last held-out event alone, who are
known up to it (what benchmarks of sequential recommendation ask; no ranker has learned from the user).

SASRec is trained for a bootstrap only; with a base its figures are the base's, with `from`: the as_of for which they
were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import Field

from models.evaluation.hallucination import measure_hallucination
from models.evaluation.queries import Ruler, Task
from models.evaluation.ranked_lists import Ranked
from models.evaluation.slices import group_items, measure_by_sid, measure_few_slices, measure_slices
from models.ranking.ranker import METHODS
from models.retrieval.held_out import LEAVE_ONE_OUT, NEXT_DAY, PLAIN, PROTOCOLS, K, Query, draw, read_lists, read_sample
from plumline.artifact import read_json, write_json
from plumline.settings import get_settings
from plumline.stage import Params, hash_seed, main, say
from plumline.tables import write_parquet

if TYPE_CHECKING:
    from features.catalog import Catalog
    from models.retrieval.beam_check import Certificate
    from models.retrieval.retriever import Request, Retriever

_SCORES = "scores.json"
_PROTOCOL = (
    "user-days after as_of, item level, full ranking over live items; recall@10 = hits / min(10, relevant); "
    "standard errors by bootstrap over users"
)


class ScoresParams(Params):
    """How much is measured, and against what."""

    width: int = Field(default=50, ge=K)
    """Beams of a search that is made here: without the index, or certified."""
    hallucination_queries: int = Field(default=100, ge=1)
    """Queries of which the model is also asked without the index, any token allowed, for the hallucination rate."""
    beam_check_queries: int = Field(default=10, ge=0)
    """Queries of which every SID is scored exactly, to see what the beams miss; 0: none."""
    beam_check_max_sids: int = Field(default=100_000, ge=1)
    """SIDs of the index above which that is left out: each query sends all of them through the model."""
    bootstrap_samples: int = Field(default=1000, ge=2)
    """Samples behind a standard error."""


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
    ranker: Path,
    rivals: Path,
    base: Path | None,
    seed: int,
    out: Path,
) -> None:
    """Score what is served and its rivals on the held-out days. Nothing held out: num_queries 0 and no methods."""
    from features.catalog import Catalog
    from features.histories import item_counts
    from models.language.model import pick_device
    from models.retrieval.retriever import Retriever

    as_of = date.fromisoformat(read_json(histories / "stats.json")["as_of"])
    about = read_json(ranker / "report.json")
    queries = read_sample(histories, about["max_queries"], seed)
    scores: dict[str, Any] = {
        "as_of": as_of.isoformat(),
        "protocol": _PROTOCOL,
        "num_queries": len(queries),
        "num_users": len({query.user_id for query in queries}),
        "ranker": {name: about[name] for name in ("kind", "num_label_queries", "label_days", "folds")},
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
    lists = read_lists(ranker) | read_lists(rivals)

    # 1. The model by itself: what only it can say.
    sample = draw(queries, params.hallucination_queries, hash_seed(seed, "hallucinations"))
    scores |= measure_hallucination(
        retriever,
        _requests(known, sample),
        [query.user_id for query in sample],
        ruler,
        k=K,
        width=params.width,
    )
    if params.beam_check_queries and (certificate := _certificate(retriever, known, queries, params, seed)):
        scores["beam"] = certificate.to_json()
    scores["num_unknown_history_items"] = about["num_unknown_history_items"]

    # 2. Every method's lists, on the same queries and the same items.
    ranked = Ranked.of(NEXT_DAY, queries, lists)
    scores["num_invalid"] = ranked.count_invalid(frozenset(known.live_ids()), METHODS)
    scores["methods"] = methods = ranked.measure(ruler)
    if base is not None and "sasrec" in (before := read_scores(base / "scores"))["methods"]:
        methods["sasrec"] = {"from": before["as_of"], **before["methods"]["sasrec"]}  # an older `from` stays
    scores["served_minus"] = ranked.served_minus(ruler)
    scores["model_gain"] = scores["served_minus"]["without_model"]
    scores["shown"] = ranked.shown(len(retriever.live_items))
    scores |= scores["shown"]["served"]
    groups = group_items(known.items, item_counts(histories), as_of)
    scores["slices"] = measure_slices(ruler, ranked.tasks, ranked.lists["served"], groups)
    scores["method_slices"] = {
        name: measure_few_slices(ruler, ranked.tasks, ranked.lists[name], groups) for name in ranked.lists
    }
    scores["sid_level"] = measure_by_sid(ruler, ranked.tasks, ranked.lists["model"], retriever.codes_of)
    served = ranked.lists["served"][PLAIN]
    scores["daily"] = _daily(ruler, ranked.tasks[PLAIN], served)
    if about["leave_one_out_queries"]:
        last = read_sample(histories, about["leave_one_out_queries"], seed, last_events=True)
        one = Ranked.of(LEAVE_ONE_OUT, last, lists)
        minus = one.served_minus(ruler)
        scores["leave_one_out"] = {
            "num_queries": len(last),
            "methods": one.measure(ruler),
            "served_minus": minus,
            "model_gain": minus.get("without_model", {}),
        }
    write_json(out / _SCORES, scores)
    write_parquet(out / "predictions.parquet", _predictions(ranked.tasks[PLAIN].queries, served))
    for name, figures in methods.items():
        shown = ", ".join(f"{p} {figures[p].get(f'recall@{K}', 0):.4f}" for p in PROTOCOLS)
        say(f"scores: {name} recall@{K} {shown}")


def _use_few_threads() -> None:
    """PLUMLINE_THREADS, or one: a second thread gains such small batches 7%, and costs tenfold where it has to wait."""
    import torch

    torch.set_num_threads(get_settings().threads or 1)


def _requests(known: Catalog, queries: Sequence[Query]) -> list[Request]:
    from models.language.words import read_profiles

    profiles = read_profiles(known)
    return [query.request(profiles.get(query.user_id, {})) for query in queries]


def _certificate(
    retriever: Retriever, known: Catalog, queries: list[Query], params: ScoresParams, seed: int
) -> Certificate | None:
    """What the beams of a sample of the queries miss; every other query with its seen items masked, as a rule."""
    from models.retrieval.beam_check import check_beams

    if (num_sids := retriever.epoch.base.index.num_leaves) > params.beam_check_max_sids:
        say(f"scores: no certificate of the beams: {num_sids:,} SIDs (scores.beam_check_max_sids)")
        return None
    sample = draw(queries, params.beam_check_queries, hash_seed(seed, "beam_check"))
    requests = [
        replace(request, exclude=query.seen if number % 2 else frozenset())
        for number, (query, request) in enumerate(zip(sample, _requests(known, sample), strict=True))
    ]
    certificate = check_beams(retriever, requests, k=K, width=params.width)
    say("scores: beams " + "; ".join(" ".join(line.split()) for line in certificate.lines()[2:]))
    return certificate


def _daily(ruler: Ruler, task: Task, ranked: list[list[str]]) -> list[dict[str, Any]]:
    """The figures of each held-out day that has queries, oldest first; seen items are not masked."""
    rows = task.rows(ranked)
    days = sorted({query.day for query in task.queries})
    return [{"day": day.isoformat(), **ruler.measure_rows([row for row in rows if row[0].day == day])} for day in days]


def _predictions(queries: Sequence[Query], ranked: Sequence[Sequence[str]]) -> pa.Table:
    schema = pa.schema({"user_id": pa.string(), "day": pa.date32(), "item_ids": pa.list_(pa.string())})
    columns = [[query.user_id for query in queries], [query.day for query in queries], list(ranked)]
    return pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema)


if __name__ == "__main__":
    main(run, section="scores")
