"""What is served and its rivals on the held-out days of a home: figures, also by the age of what was taken.

Every list is that of the stage `ranker` (whoever is scored was not learned from) or `rivals`. By age: a query keeps the
relevant items of that age on its day, as in models/evaluation/slices.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from typing import Any

import numpy as np

from benchmarks.measuring.home import Home
from features.catalog import Catalog, published_ms
from features.histories import item_counts
from models.evaluation.queries import Ruler
from models.evaluation.ranked_lists import Ranked
from models.evaluation.scores import ScoresParams
from models.evaluation.slices import COLD_EVENTS, group_items
from models.memory.events import DAY_MS
from models.retrieval.held_out import NEXT_DAY, PROTOCOLS, Query, read_lists, read_sample
from plumline.artifact import read_json
from plumline.stage import hash_seed, load_params
from plumline.tables import column

AGES = {"0-3 days": (0, 3), "4-10 days": (4, 10), "older": (11, 10**6)}
"""Whole days from publication to the day of the request, both ends in it."""

Lister = Callable[[Sequence[Query], Sequence[frozenset[str]]], list[list[str]]]
"""(queries, what each may not get back) → a list each, best first."""

_EPOCH = date(1970, 1, 1)


def measure(home: Home, seed: int, more: Mapping[str, Lister]) -> dict[str, Any]:
    """Figures of a home where `ranker` and `rivals` have run: methods, served_minus, ages, num_targets, kinds (recall
    of new and tail items and of cold users, and what the model adds there), shown (how much of the catalogue is).

    more: further methods.
    """
    histories = home.artifact("histories")
    about = read_json(home.artifact("ranker") / "report.json")
    queries = read_sample(histories, about["max_queries"], seed)
    params = load_params(home.recipe, "scores", ScoresParams)
    known = Catalog.load(home.artifact("catalog"))
    lists = read_lists(home.artifact("ranker")) | read_lists(home.artifact("rivals"))
    ranked = Ranked.of(NEXT_DAY, queries, lists)
    extra = {
        name: {protocol: lister(task.queries, task.exclude) for protocol, task in ranked.tasks.items()}
        for name, lister in more.items()
    }
    ranked = replace(ranked, lists={**ranked.lists, **extra})
    ruler = Ruler(hash_seed(seed, "bootstrap"), params.bootstrap_samples)
    minus = ranked.served_minus(ruler)
    born = dict(zip(column(known.items, "item_id"), published_ms(known.items).to_pylist(), strict=True))
    groups = group_items(
        known.items, item_counts(histories), date.fromisoformat(read_json(histories / "stats.json")["as_of"])
    )
    ages, targets = _by_age(ranked, ruler, {item: at // DAY_MS for item, at in born.items() if at is not None})
    return {
        "num_queries": len(queries),
        "num_users": len({query.user_id for query in queries}),
        "ranker": about["kind"],
        "candidates": about["candidates"],
        "methods": ranked.measure(ruler),
        "served_minus": minus,
        "model_gain": minus["without_model"],
        "ages": ages,
        "num_targets": targets,
        "kinds": _by_kind(ranked, ruler, groups["items"]),
        "shown": ranked.shown(len(known.live_ids())),
    }


def _by_kind(ranked: Ranked, ruler: Ruler, members: Mapping[str, frozenset[str]]) -> dict[str, Any]:
    """new, tail, cold → protocol → methods (figures) and model_gain (served less without_model, paired by user)."""
    found: dict[str, Any] = {"new": {}, "tail": {}, "cold": {}}
    for kind, of_protocol in found.items():
        for protocol, task in ranked.tasks.items():
            relevant = [items & members[kind] if kind in members else items for items in task.relevant]
            kept = [
                number
                for number, (query, items) in enumerate(zip(task.queries, relevant, strict=True))
                if items and (kind in members or len(query.history) <= COLD_EVENTS)
            ]
            queries, wanted = [task.queries[n] for n in kept], [relevant[n] for n in kept]
            lists = {name: [of[protocol][n] for n in kept] for name, of in ranked.lists.items()}
            methods = {name: ruler.measure(queries, one, wanted) for name, one in lists.items()}
            gain = ruler.compare(queries, lists["served"], lists["without_model"], wanted)
            of_protocol[protocol] = {"num_queries": len(kept), "methods": methods, "model_gain": gain}
    return found


def _by_age(ranked: Ranked, ruler: Ruler, born: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """age → method → protocol → figures, and age → protocol → number of (query, relevant item). born: days of 1970."""
    figures: dict[str, Any] = {}
    targets: dict[str, Any] = {}
    for name, (low, high) in AGES.items():
        targets[name] = {}
        figures[name] = {method: {} for method in ranked.lists}
        for protocol, task in ranked.tasks.items():
            relevant = []
            for query, items in zip(task.queries, task.relevant, strict=True):
                day = (query.day - _EPOCH).days
                relevant.append(frozenset(item for item in items if item in born and low <= day - born[item] <= high))
            kept = [number for number, items in enumerate(relevant) if items]
            targets[name][protocol] = sum(map(len, relevant))
            for method, lists in ranked.lists.items():
                rows = [(task.queries[n], lists[protocol][n], relevant[n]) for n in kept]
                figures[name][method][protocol] = ruler.measure_rows(rows)
    return figures, targets


def pooled(
    figures: Sequence[Mapping[str, Any]], measure: str, *, same_users: bool = False
) -> tuple[float, float] | None:
    """Mean over seeds of one figure, and its standard error: of users, who are other ones in each world.

    same_users: each seed asked the same users; the error is then a seed's, as if other seeds told nothing new.
    """
    found = [one for one in figures if measure in one]
    if not found:
        return None
    errors = np.array([one[f"{measure}_se"] for one in found])
    error = errors.mean() if same_users else np.sqrt((errors**2).sum()) / len(found)
    return float(np.mean([one[measure] for one in found])), float(error)


def table(rows: Sequence[Mapping[str, Any]], *, same_users: bool = False) -> Iterator[str]:
    """Lines: a method a row, recall@10 and ndcg@10 of both protocols, recall@10 by age; means over the rows' seeds."""
    mean_of = partial(pooled, same_users=same_users)
    for protocol in PROTOCOLS:
        number = sum(row["methods"]["served"][protocol]["num_queries"] for row in rows)
        words = protocol.replace("_", " ")
        yield f"next day, {words}: {number:,} user-days, {len(rows)} seed(s), item level, full ranking"
        ages = "".join(f"{f'R@10 {name}':18s}" for name in AGES)
        yield f"{'':16s}{'R@10':18s}{'N@10':18s}{ages}{'served - it, R@10':18s}"
        for method in rows[0]["methods"]:
            of_all = [row["methods"][method][protocol] for row in rows]
            cells = [mean_of(of_all, "recall@10"), mean_of(of_all, "ndcg@10")]
            cells += [mean_of([row["ages"][age][method][protocol] for row in rows], "recall@10") for age in AGES]
            cells.append(mean_of([row["served_minus"].get(method, {}).get(protocol, {}) for row in rows], "recall@10"))
            yield f"{method:16s}" + "".join(f"{_shown(cell):18s}" for cell in cells)
        counts = ", ".join(f"{sum(row['num_targets'][age][protocol] for row in rows):,} {age}" for age in AGES)
        reached = np.mean([row["candidates"][protocol] for row in rows])
        gain = [mean_of([row["model_gain"][protocol] for row in rows], name) for name in ("recall@10", "ndcg@10")]
        yield f"targets: {counts}; among the candidates: {reached:.1%}"
        yield f"model_gain: R@10 {_shown(gain[0])}, N@10 {_shown(gain[1])}"
        yield from _kinds(rows, protocol, mean_of)
        yield ""


def _kinds(rows: Sequence[Mapping[str, Any]], protocol: str, mean_of: Callable[..., Any]) -> Iterator[str]:
    """Recall of new and tail items and of cold users, and how much is shown; rows of older runs have none."""
    if not all("kinds" in row for row in rows):
        return
    kinds = {kind: [row["kinds"][kind][protocol] for row in rows] for kind in rows[0]["kinds"]}
    counts = {kind: sum(one["num_queries"] for one in found) for kind, found in kinds.items()}
    titles = "".join(f"{f'R@10 {kind} ({counts[kind]:,})':22s}" for kind in kinds)
    yield f"{'':16s}{titles}effective vocabulary"
    for method in rows[0]["methods"]:
        cells = [mean_of([one["methods"].get(method, {}) for one in found], "recall@10") for found in kinds.values()]
        vocabulary = np.mean([row["shown"][method]["effective_vocabulary"] for row in rows])
        yield f"{method:16s}" + "".join(f"{_shown(cell):22s}" for cell in cells) + f"{vocabulary:,.0f}"
    gains = [mean_of([one["model_gain"] for one in found], "recall@10") for found in kinds.values()]
    yield f"{'model gain':16s}" + "".join(f"{_shown(gain):22s}" for gain in gains)


def _shown(cell: tuple[float, float] | None) -> str:
    return "-" if cell is None else f"{cell[0]:.4f} ± {cell[1]:.4f}"
