"""A sealed release and a day of traffic, small and made by hand."""

import copy
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models.retrieval.beam_check import Certificate
from models.semantic_ids.table import SidTable
from plumline import artifact
from plumline.sid import SidSpace
from plumline.tables import write_parquet
from serving.release import COMPONENTS, EDGES, LINEAGE, Release
from serving.traffic import TrafficRow, rows_to_table

SPACE = SidSpace((8, 4))
NUM_ITEMS = 20
ITEM_IDS = [f"item-{i:02d}" for i in range(NUM_ITEMS)]
RETIRED = "item-19"
SLICES = ("items/new", "items/tail", "history/cold")
NASTY_TITLE = "<script>alert(1)</script> | `x` <a_3>"


def method(recall: float, error: float = 0.01) -> dict[str, dict[str, float]]:
    """Figures of one method, the same under both protocols."""
    row = {"recall@10": recall, "recall@10_se": error, "ndcg@10": recall / 2, "ndcg@10_se": error / 2}
    return {"seen_masked": dict(row), "not_masked": dict(row)}


def minus(methods: dict[str, Any], error: float = 0.004) -> dict[str, Any]:
    """What is served minus each method whose figures are of these very queries, with its error paired by user."""
    return {
        name: {
            protocol: {
                "recall@10": methods["served"][protocol]["recall@10"] - row["recall@10"],
                "recall@10_se": error,
                "ndcg@10": methods["served"][protocol]["ndcg@10"] - row["ndcg@10"],
                "ndcg@10_se": error / 2,
            }
            for protocol, row in figures.items()
        }
        for name, figures in methods.items()
        if name != "served" and "from" not in figures
    }


def compared(methods: dict[str, Any]) -> dict[str, Any]:
    """The three entries that say how methods compare."""
    against = minus(methods)
    return {"methods": methods, "served_minus": against, "model_gain": copy.deepcopy(against["without_model"])}


def make_scores(as_of: date, recall: float = 0.3, **changes: Any) -> dict[str, Any]:
    """A scores.json of a good release. recall: of what is served; every other method has its own."""
    methods = {
        "served": method(recall),
        "without_model": method(0.28),
        "model": method(0.2),
        "memory": method(0.27),
        "own": method(0.24),
        "popularity": method(0.1),
        "item_knn": method(0.25),
        "sasrec": {"from": "2011-10-01", **method(0.15)},
    }
    slices = {
        name: {p: {"num_queries": 90, "recall@10": 0.12} for p in ("seen_masked", "not_masked")} for name in SLICES
    }
    return {
        "as_of": as_of.isoformat(),
        "protocol": "rolling",
        "num_queries": 500,
        "num_users": 200,
        **compared(methods),
        "leave_one_out": {
            "num_queries": 77,
            **compared({"served": method(0.061), "without_model": method(0.05), "text_knn": method(0.043)}),
        },
        "hallucination_rate": 0.02,
        "hallucination_by_level": [0.001, 0.004, 0.015],
        "hallucination_best": 0.0,
        "beam": make_certificate(),
        "num_invalid": 0,
        "coverage": 0.6,
        "effective_vocabulary": 11,
        "shown": {name: {"coverage": 0.6, "effective_vocabulary": 11} for name in methods if name != "sasrec"},
        "slices": {"history": {"short": {"num_queries": 90, "recall@10": 0.12, "recall@10_se": 0.02}}},
        "method_slices": {name: slices for name in methods if name != "sasrec"},
        "ranker": {
            "kind": "lambdarank",
            "num_label_queries": 60,
            "label_days": ["2011-10-24", "2011-10-30"],
            "folds": 2,
        },
        "daily": [
            {"day": (as_of + timedelta(days=2)).isoformat(), "num_queries": 40, "recall@10": 0.4},
            {"day": (as_of + timedelta(days=1)).isoformat(), "num_queries": 50, "recall@10": 0.32},
        ],
        **changes,
    }


def make_old_scores(as_of: date, recall: float = 0.2, **changes: Any) -> dict[str, Any]:
    """A scores.json of before there was a ranker: users got what its `model` proposed."""
    scores = make_scores(as_of)
    for key in ("served_minus", "model_gain", "method_slices", "shown", "ranker"):
        del scores[key]
    methods = {
        "model": method(recall),
        "popularity": method(0.1),
        "item_knn": method(0.19),
        "sasrec": method(0.15),
    }
    last_event = {"num_queries": 77, "methods": {"model": method(0.061), "text_knn": method(0.043)}}
    return {**scores, "methods": methods, "leave_one_out": last_event, **changes}


def make_certificate(**changes: Any) -> dict[str, Any]:
    """The certificate of a beam search that misses a little and says nothing that is not so."""
    certificate = Certificate(
        num_requests=10,
        width=50,
        k=10,
        num_sids=19.0,
        missed_mass=0.005,
        missed_items=0.03,
        worst_missed_items=0.2,
        score_error=2e-6,
        num_invalid=0,
        num_duplicates=0,
    )
    return replace(certificate, **changes).to_json()


def make_sids_report(**changes: Any) -> dict[str, Any]:
    """A sids/report.json of a good table."""
    levels = [{"usage": 0.9, "perplexity": 6.5, "gini": 0.2}, {"usage": 1.0, "perplexity": 3.9, "gini": 0.1}]
    return {
        "num_items": NUM_ITEMS,
        "uniqueness": 0.9,
        "uniqueness_with_tie_break": 1.0,
        "collisions": 0,
        "largest_bucket": 1,
        "levels": levels,
        **changes,
    }


def make_release(
    folder: Path,
    as_of: date,
    *,
    scores: dict[str, Any] | None = None,
    sids_report: dict[str, Any] | None = None,
    num_indexed: int = NUM_ITEMS - 1,
) -> Release:
    """Seal a release at `folder` whose every part names its parents."""
    digests = {"corpus": "c" * 64}
    codes = np.array([(i % 8, i // 8) for i in range(NUM_ITEMS)], np.int32)

    def fill(name: str, out: Path) -> None:
        if name == "catalog":
            titles = [NASTY_TITLE if item == ITEM_IDS[0] else f"Title of {item}" for item in ITEM_IDS]
            retired = [item == RETIRED for item in ITEM_IDS]
            write_parquet(out / "items.parquet", pa.table({"item_id": ITEM_IDS, "title": titles, "retired": retired}))
            write_parquet(out / "users.parquet", pa.table({"user_id": ["u0"]}))
        elif name == "sids":
            SidTable(SPACE, False, ITEM_IDS, codes).save(out)
            artifact.write_json(out / "report.json", sids_report or make_sids_report())
        elif name == "index":
            write_parquet(out / "items.parquet", pa.table({"item_id": ITEM_IDS[:num_indexed]}))
        elif name == "scores":
            artifact.write_json(out / "scores.json", scores or make_scores(as_of))
        else:
            artifact.write_json(out / "about.json", {"part": name})

    about: dict[str, Any] = {"stage": "release", "key": "k", "params": {}}
    with artifact.writing(folder, **about) as out:
        for name in COMPONENTS:
            part = out / name
            part.mkdir()
            fill(name, part)
            parents = {parent: digests[parent] for parent in EDGES.get(name, ())}
            digests[name] = artifact.seal(part, stage=name, key="k", parents=parents).digest
        components = {name: digests[name] for name in COMPONENTS}
        release_id = f"{as_of}-{artifact.sha256_json(components)[:8]}"
        lineage = {name: digests[name] for name in LINEAGE}
        description = {"release_id": release_id, "as_of": as_of.isoformat(), "components": components}
        made_from = {"corpus": digests["corpus"]}
        artifact.write_json(out / "release.json", {**description, "lineage": lineage, "made_from": made_from})
    return Release.load(folder)


def sid_of(item_id: str) -> str:
    """What the SID of an item reads in every release of `make_release`; of an item that it lacks, that of the first."""
    if item_id not in ITEM_IDS:
        return sid_of(ITEM_IDS[0])
    row = ITEM_IDS.index(item_id)
    return SPACE.format([row % 8, row // 8])


def answer(day: date, number: int, items: list[str], release_id: str, **changes: Any) -> TrafficRow:
    """One good answer."""
    row: dict[str, Any] = {
        "request_id": f"r{number:05d}",
        "timestamp_ms": int(datetime(day.year, day.month, day.day, 8, tzinfo=UTC).timestamp() * 1000) + number,
        "user_id": f"u{number % 7}",
        "release_id": release_id,
        "action": "served",
        "item_ids": tuple(items),
        "sids": tuple(sid_of(item) for item in items),
        "scores": tuple(-float(i) for i in range(len(items))),
        "history_length": 1 + number % 9,
        "latency_ms": 10.0 + number,
    }
    return TrafficRow(**{**row, **changes})


def put_traffic(folder: Path, day: date, rows: list[TrafficRow]) -> None:
    """Write rows where the service writes them."""
    write_parquet(folder / f"day={day.isoformat()}" / "hand-000000.parquet", rows_to_table(rows))


@pytest.fixture(scope="session")
def example() -> ModuleType:
    """This module: the builders above (a test file cannot import a conftest)."""
    return sys.modules[__name__]
