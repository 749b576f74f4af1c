"""Stage `ranker`: learn the order of what is served, and make the lists of the held-out days that are scored.

    reads   catalog, histories (queries, labels, last_events, stats), sids, vocabulary, sft (weights/), index, memory,
            base or previous (its release: labels, and for base the candidates of the label day)
    writes  model.txt (LightGBM's text format; none where nothing could be learned), config.json, words.json (what the
            items of a prefix have in common), labels.parquet (for the next days), lists.parquet (the top 10 of every
            held-out request, each method and protocol), report.json
    run     python -m models.ranking.ranker --params recipes/cpu_tiny.yaml --catalog … --histories … --sids … \\
                --vocabulary … --sft … --index … --memory … --base= --previous= --seed 17 --out artifacts/ranker

Labels are user-days: the candidates that a release gave before the day, and what the user took on it. Without a base
they are the held-out days after as_of; a daily takes its base's and adds the days since, with the candidates of that
base. Whoever is scored was not learned from: lists come from rankers of the other fold of users; what serves learned
from all. Below `min_queries` nothing is learned, and places are fused (`lambdarank.fuse`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from models.ranking import lambdarank
from models.ranking.candidates import COUNTED, CandidateParams, Candidates
from models.ranking.features import FEATURES, features
from models.ranking.frozen_ranker import Ranker
from models.ranking.labels import FOLDS, Labels, fold_of
from models.ranking.lambdarank import ALL, WITHOUT_MODEL, LambdarankParams
from models.ranking.trees import Trees
from models.retrieval.held_out import (
    LEAVE_ONE_OUT,
    MASKED,
    NEXT_DAY,
    PROTOCOLS,
    K,
    Query,
    list_row,
    read_sample,
    to_queries,
    write_lists,
)
from plumline import artifact
from plumline.settings import get_settings
from plumline.stage import Params, hash_seed, main, say

if TYPE_CHECKING:
    from lightgbm import Booster

    from features.catalog import Catalog
    from models.ranking.ranked import Found, RankedRetriever
    from models.retrieval.retriever import Request

METHODS = ("served", "without_model", "model", "memory")
_NAMED_ITEMS = 3  # the words of a smaller prefix are one title's
_LEAST_WORTH = 1e-6  # of what was taken, whatever a recipe's reward says of it
_VERBS = {"purchase": "bought", "buy": "bought", "order": "bought", "play": "played", "watch": "watched"}
_VERBS |= {"view": "viewed", "click": "clicked", "read": "read", "listen": "heard", "rating": "rated"}


class RankerParams(Params):
    """How candidates are ordered, and how many requests are held out."""

    candidates: CandidateParams = CandidateParams()
    """What is ordered."""
    trees: LambdarankParams = LambdarankParams()
    """What orders."""
    max_negatives: int = Field(default=150, ge=1)
    """Candidates of a label group that were not taken; more are drawn from."""
    min_queries: int = Field(default=100, ge=1)
    """User-days with labels below which nothing is learned and places are fused."""
    max_groups: int = Field(default=10_000, ge=1)
    """Label groups kept, those of the newest days."""
    max_queries: int = Field(default=1500, ge=1)
    """Held-out user-days that are asked; more are drawn from by the seed."""
    leave_one_out_queries: int = Field(default=300, ge=0)
    """Users asked for their last held-out event, given all before it; 0: that protocol is left out."""


@dataclass(frozen=True, eq=False)
class _Asked:
    """Held-out queries and what was found for them: protocol → one a query. tables: features of the candidates."""

    task: str
    queries: list[Query]
    found: dict[str, list[Found]]
    tables: dict[str, list[np.ndarray]]

    def relevant(self, protocol: str) -> list[frozenset[str]]:
        """What counts as taken, of each query."""
        return [query.relevant - query.seen if protocol == MASKED else query.relevant for query in self.queries]


def run(
    params: RankerParams,
    *,
    catalog: Path,
    histories: Path,
    sids: Path,
    vocabulary: Path,
    sft: Path,
    index: Path,
    memory: Path,
    base: Path | None,
    previous: Path | None,
    seed: int,
    out: Path,
) -> None:
    """Learn the order, and make the lists of the held-out days."""
    import torch

    from features.catalog import Catalog
    from models.ranking.ranked import RankedRetriever

    torch.set_num_threads(get_settings().threads or 1)  # a second thread gains such small batches 7%
    parts = {"catalog": catalog, "sids": sids, "vocabulary": vocabulary, "index": index, "weights": sft / "weights"}
    retriever = RankedRetriever.load(parts, memory, Ranker(params.candidates))
    known = Catalog.load(catalog)
    asked = [_ask(retriever, known, NEXT_DAY, read_sample(histories, params.max_queries, seed))]
    if params.leave_one_out_queries:
        sample = read_sample(histories, params.leave_one_out_queries, seed, last_events=True)
        asked.append(_ask(retriever, known, LEAVE_ONE_OUT, sample))

    labels = _labels(params, retriever, asked[0], known, histories, base, previous)
    labels.save(out)
    learned = labels.num_queries >= params.min_queries
    booster, folds = _learn(labels, params, seed) if learned else (None, [_fused(params)] * FOLDS)
    if booster is not None:
        booster.save_model(out / "model.txt")
    write_lists(out, (row for one in asked for row in _lists(retriever, one, folds)))

    stats = artifact.read_json(histories / "stats.json")
    about = {
        "kind": "lambdarank" if learned else "fusion",
        "features": list(FEATURES),
        "candidates": params.candidates.model_dump(mode="json"),
        "verb": _VERBS.get(str(stats.get("action")), "taken"),
    }
    artifact.write_json(out / "config.json", about)
    artifact.write_json(out / "words.json", prefix_words(known.items, sids))
    report: dict[str, Any] = {
        "kind": about["kind"],
        "num_label_queries": labels.num_queries,
        "label_days": labels.span,
        "folds": FOLDS,
        "max_queries": params.max_queries,
        "leave_one_out_queries": params.leave_one_out_queries,
        "candidates": _coverage(retriever, asked[0]),
        "num_unknown_history_items": _count_unknown(retriever, known, asked[0].queries),
        "gain": {} if booster is None else _gains(booster),
    }
    artifact.write_json(out / "report.json", report)
    say(
        f"ranker: {about['kind']} of {labels.num_queries} user-days {' to '.join(labels.span)}; of what was taken "
        + ", ".join(f"{share:.1%} ({p})" for p, share in report["candidates"].items())
        + " were candidates"
    )


def _requests(known: Catalog, queries: Sequence[Query]) -> list[Request]:
    from models.language.words import read_profiles

    profiles = read_profiles(known)
    return [query.request(profiles.get(query.user_id, {})) for query in queries]


def _ask(retriever: RankedRetriever, known: Catalog, task: str, queries: list[Query]) -> _Asked:
    """Both protocols of each query, from one prompt."""
    requests = _requests(known, queries)
    masked = [replace(request, exclude=query.seen) for request, query in zip(requests, queries, strict=True)]
    found = retriever.find([masked, requests]) if queries else [[], []]
    shelf = retriever.shelf
    tables = [[features(shelf, one.visit, one.candidates, one.unseen_only) for one in some] for some in found]
    return _Asked(task, queries, dict(zip(PROTOCOLS, found, strict=True)), dict(zip(PROTOCOLS, tables, strict=True)))


def _labels(
    params: RankerParams,
    retriever: RankedRetriever,
    asked: _Asked,
    known: Catalog,
    histories: Path,
    base: Path | None,
    previous: Path | None,
) -> Labels:
    """Without a base the held-out days, and what the release followed knew; else the base's labels and today's."""
    from features.histories import read_labels

    before = Labels.none()
    folder = base or previous
    if folder is not None and (folder / "ranker").is_dir():
        before = Labels.load(folder / "ranker")
    if base is None:
        new = _groups(retriever, asked, params.max_negatives)
    else:
        new = Labels.none()
        since = date.fromisoformat(artifact.read_json(base / "release.json")["as_of"])
        queries = [query for query in to_queries(read_labels(histories)) if query.day > since]
        if queries and (yesterday := _of_release(base, params)) is not None:
            new = _groups(yesterday, _ask(yesterday, known, NEXT_DAY, queries), params.max_negatives)
    days = set(new.days.tolist())
    kept = before.where(np.array([day not in days for day in before.days.tolist()], dtype=bool))
    return Labels.concat([kept, new]).newest(params.max_groups)


def _of_release(release: Path, params: RankerParams) -> RankedRetriever | None:
    """The candidates of a sealed release; None if it is of before there was a memory."""
    from models.ranking.ranked import RankedRetriever

    if not (release / "memory").is_dir():
        return None
    parts = {name: release / name for name in ("catalog", "sids", "vocabulary", "index")}
    return RankedRetriever.load(
        {**parts, "weights": release / "sft" / "weights"}, release / "memory", Ranker(params.candidates)
    )


def _groups(retriever: RankedRetriever, asked: _Asked, max_negatives: int) -> Labels:
    """A group a query and protocol."""
    groups = []
    for protocol in PROTOCOLS:
        rows = zip(asked.queries, asked.relevant(protocol), asked.found[protocol], asked.tables[protocol], strict=True)
        for query, relevant, found, table in rows:
            worth = np.zeros(len(found.candidates), dtype=np.float32)
            for item in relevant:
                reward = query.rewards.get(item)
                at = found.candidates.items == retriever.shelf.number_of(item)
                worth[at] = 1.0 if reward is None else max(reward, _LEAST_WORTH)
            groups.append(Labels.group(query.user_id, query.day, table, worth, max_negatives))
    return Labels.concat(groups)


def _learn(labels: Labels, params: RankerParams, seed: int) -> tuple[Booster, list[dict[str, Ranker]]]:
    """What serves, learned from all labels; of each fold the rankers whose lists are scored, from those outside it.

    `served`, and `without_model` on what is counted alone. Each learns on one thread, several side by side.
    """
    jobs: list[tuple[int, str, Labels, Sequence[int]]] = [(FOLDS, "served", labels, ALL)]
    for fold in range(FOLDS):
        others = labels.outside(fold)
        if others.num_queries:
            jobs.append((fold, "served", others, ALL))
        if (counted := others.of_counted()).num_queries:
            jobs.append((fold, "without_model", counted, WITHOUT_MODEL))
    with ThreadPoolExecutor(get_settings().threads or len(os.sched_getaffinity(0))) as pool:
        goal = hash_seed(seed, "ranker")
        boosters = list(pool.map(lambda job: lambdarank.train(job[2], job[3], params.trees, goal), jobs))
    folds = [_fused(params) for _ in range(FOLDS)]
    for (fold, name, _, _), booster in zip(jobs[1:], boosters[1:], strict=True):
        folds[fold][name] = Ranker(params.candidates, Trees.parse(booster.model_to_string(), FEATURES))
    return boosters[0], folds


def _fused(params: RankerParams) -> dict[str, Ranker]:
    return {"served": Ranker(params.candidates)}


def _lists(retriever: RankedRetriever, asked: _Asked, folds: Sequence[Mapping[str, Ranker]]) -> list[dict[str, Any]]:
    """Rows of lists.parquet: every method's top 10 of every query and protocol."""
    rows: list[dict[str, Any]] = []
    for protocol in PROTOCOLS:
        found = asked.found[protocol]
        counted = [one.candidates.counted() for one in found]  # rows that a counted source names
        lists = {
            "served": _ordered(asked, protocol, folds, "served", [np.arange(len(one.candidates)) for one in found]),
            "memory": [
                at[np.argsort(-lambdarank.fuse(one.candidates, COUNTED)[at], kind="stable")]
                for one, at in zip(found, counted, strict=True)
            ],
        }
        learned = all("without_model" in rankers for rankers in folds)
        lists["without_model"] = (
            _ordered(asked, protocol, folds, "without_model", counted) if learned else lists["memory"]
        )
        for number, (query, one) in enumerate(zip(asked.queries, found, strict=True)):
            for method, order in lists.items():
                items = [retriever.shelf.item_id(int(item)) for item in one.candidates.items[order[number][:K]]]
                rows.append(list_row(asked.task, protocol, method, query, items))
            rows.append(list_row(asked.task, protocol, "model", query, [hit.item_id for hit in one.beams[:K]]))
    return rows


def _ordered(
    asked: _Asked, protocol: str, folds: Sequence[Mapping[str, Ranker]], name: str, rows: list[np.ndarray]
) -> list[np.ndarray]:
    """For each query `rows` of its candidates, best first, by the ranker of the query's fold."""
    order: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(rows)
    for fold, rankers in enumerate(folds):
        mine = [n for n, query in enumerate(asked.queries) if fold_of(query.user_id) == fold and len(rows[n])]
        if not mine:
            continue
        found = [asked.found[protocol][n].candidates for n in mine]
        table = np.concatenate([asked.tables[protocol][n][rows[n]] for n in mine])
        places = np.concatenate([one.places[rows[n]] for one, n in zip(found, mine, strict=True)])
        every = Candidates(np.arange(len(table)), np.full_like(places, np.nan), places)
        scores = np.split(rankers[name].scores(every, table), np.cumsum([len(rows[n]) for n in mine])[:-1])
        for n, score in zip(mine, scores, strict=True):
            order[n] = rows[n][np.argsort(-score, kind="stable")]
    return order


def _coverage(retriever: RankedRetriever, asked: _Asked) -> dict[str, float]:
    """Protocol → share of what was taken that was among the candidates: what no order can exceed."""
    shares = {}
    for protocol in PROTOCOLS:
        taken = hits = 0
        for relevant, found in zip(asked.relevant(protocol), asked.found[protocol], strict=True):
            taken += len(relevant)
            hits += int(np.isin([retriever.shelf.number_of(item) for item in relevant], found.candidates.items).sum())
        shares[protocol] = hits / taken if taken else 0.0
    return shares


def _count_unknown(retriever: RankedRetriever, known: Catalog, queries: Sequence[Query]) -> int:
    return sum(retriever.retriever.prompt(request).num_unknown for request in _requests(known, queries))


def _gains(booster: Booster) -> dict[str, float]:
    """Feature → its part of all that the trees gained, of those that gained something."""
    gains = booster.feature_importance("gain")
    total = max(gains.sum(), 1e-9)
    return {name: round(float(gain / total), 4) for name, gain in zip(FEATURES, gains, strict=True) if gain}


def prefix_words(items: pa.Table, sids: Path) -> dict[str, str]:
    """ "c" and "c d" (the first codes of a SID) → the word or two that tell its items from the others best."""
    from models.semantic_ids.atlas import draw_atlas, read_terms
    from models.semantic_ids.table import SidTable

    table = SidTable.load(sids)
    place = {item: row for row, item in enumerate(items.column("item_id").to_pylist())}
    known = [row for row, item in enumerate(table.item_ids) if item in place]
    rows = pa.array([place[table.item_ids[row]] for row in known], pa.int64())
    atlas = draw_atlas(table.prefixes[known], read_terms(items.take(rows)))
    found = {}
    for prefix in atlas.prefixes:
        for one in (prefix, *prefix.children):
            if one.words and one.num_items >= _NAMED_ITEMS:
                found[" ".join(map(str, one.codes))] = one.words[0]
    return found


if __name__ == "__main__":
    main(run, section="ranker")
