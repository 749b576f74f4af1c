"""What is served and its rivals on the held-out days of a home: figures, also by the age of what was taken.

Every list is that of the stage `ranker` (whoever is scored was not learned from) or `rivals`. By age: a query keeps the
relevant items of that age on its day, as in models/evaluation/slices.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np

from benchmarks.measuring.home import Home
from features.catalog import Catalog, published_ms
from models.evaluation.queries import Ruler
from models.evaluation.ranked_lists import Ranked
from models.evaluation.scores import ScoresParams
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
    """Figures of a home where `ranker` and `rivals` have run: methods, served_minus, ages, num_targets.

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
    }


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


def pooled(figures: Sequence[Mapping[str, Any]], measure: str) -> tuple[float, float] | None:
    """Mean over seeds of one figure, and its standard error: of users, who are other ones in each world."""
    found = [one for one in figures if measure in one]
    if not found:
        return None
    errors = np.array([one[f"{measure}_se"] for one in found])
    return float(np.mean([one[measure] for one in found])), float(np.sqrt((errors**2).sum()) / len(found))


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines: a method a row, recall@10 and ndcg@10 of both protocols, recall@10 by age; means over the rows' seeds."""
    for protocol in PROTOCOLS:
        number = sum(row["methods"]["served"][protocol]["num_queries"] for row in rows)
        words = protocol.replace("_", " ")
        yield f"next day, {words}: {number:,} user-days, {len(rows)} seed(s), item level, full ranking"
        ages = "".join(f"{f'R@10 {name}':18s}" for name in AGES)
        yield f"{'':16s}{'R@10':18s}{'N@10':18s}{ages}{'served - it, R@10':18s}"
        for method in rows[0]["methods"]:
            of_all = [row["methods"][method][protocol] for row in rows]
            cells = [pooled(of_all, "recall@10"), pooled(of_all, "ndcg@10")]
            cells += [pooled([row["ages"][age][method][protocol] for row in rows], "recall@10") for age in AGES]
            cells.append(pooled([row["served_minus"].get(method, {}).get(protocol, {}) for row in rows], "recall@10"))
            yield f"{method:16s}" + "".join(f"{_shown(cell):18s}" for cell in cells)
        counts = ", ".join(f"{sum(row['num_targets'][age][protocol] for row in rows):,} {age}" for age in AGES)
        reached = np.mean([row["candidates"][protocol] for row in rows])
        gain = [pooled([row["model_gain"][protocol] for row in rows], name) for name in ("recall@10", "ndcg@10")]
        yield f"targets: {counts}; among the candidates: {reached:.1%}"
        yield f"model_gain: R@10 {_shown(gain[0])}, N@10 {_shown(gain[1])}"
        yield ""


def _shown(cell: tuple[float, float] | None) -> str:
    return "-" if cell is None else f"{cell[0]:.4f} ± {cell[1]:.4f}"
