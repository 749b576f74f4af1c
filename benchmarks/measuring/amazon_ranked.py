"""The lists that are served, on a leave-one-out benchmark: memory and ranker of the project, with beams or without.

The memory counts training events alone, their days shuffled by the seed. The ranker learns from validation items: what
comes back for the history before one, with the item itself as the only relevant one, under both protocols; it is asked
for the test items. Three things must not tell the order of the ids, which is the order of a day in the files: item ids
become hashes (equal scores are put in the order of ids), the days of a query's history are shuffled, and a query is
asked a day after the last event of its history, so nothing says when the held-out one was.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.measuring.leave_one_out import LeaveOneOut, Query
from models.memory.memory import Memory, MemoryParams
from models.memory.memory import run as run_memory
from models.ranking import lambdarank
from models.ranking.candidates import COUNTED, CandidateParams, Candidates, Counted, Named, Visit, gather
from models.ranking.features import FEATURES, features
from models.ranking.frozen_ranker import Ranker
from models.ranking.labels import Labels
from models.ranking.lambdarank import ALL, WITHOUT_MODEL, LambdarankParams
from models.ranking.ranker import RankerParams
from models.ranking.shelf import DAY_MS, Shelf
from models.ranking.trees import Trees
from plumline.artifact import write_json
from plumline.stage import hash_seed
from plumline.tables import write_parquet

PROTOCOLS = ("seen_masked", "not_masked")
K, MAX_NEGATIVES = 10, RankerParams().max_negatives
_NO_DAY = date(1970, 1, 1)
_NOTHING: Named = (np.zeros(0, np.int64), np.zeros(0))


@dataclass(frozen=True)
class Said:
    """What a model says to one query. hits: item ids and scores, best first, seen items among them. score: codes of
    SIDs (n, L) → log-probabilities (n,), of a model that can be asked for any SID."""

    hits: Sequence[tuple[str, float]]
    score: Callable[[np.ndarray], np.ndarray] | None = None


Hits = Sequence[Said]
"""One a query."""


@dataclass(frozen=True)
class RankedParams:
    """As the stages have them."""

    memory: MemoryParams = field(default_factory=MemoryParams)
    candidates: CandidateParams = field(default_factory=lambda: CandidateParams(fresh_width=0))
    trees: LambdarankParams = field(default_factory=LambdarankParams)

    def to_json(self) -> dict[str, Any]:
        """All of them."""
        return {name: value.model_dump(mode="json") for name, value in vars(self).items()}


@dataclass(frozen=True)
class Desk:
    """Candidates of one benchmark and seed. name_of: item id → the hash that stands for it; shelf: of hashes."""

    task: LeaveOneOut
    shelf: Shelf
    name_of: Mapping[str, str]
    seed: int
    params: RankedParams

    @staticmethod
    def of(task: LeaveOneOut, seed: int, params: RankedParams, codes_of: Mapping[str, tuple[int, ...]]) -> "Desk":
        """Count the training events. codes_of: item id → SID, {} where no model is asked."""
        name_of = {item: f"{hash_seed(seed, 'name', item):016x}" for item in task.item_ids}
        with tempfile.TemporaryDirectory() as scratch:
            memory = _count(task, Path(scratch), seed, params.memory, name_of)
            codes = {name_of[item]: sid for item, sid in codes_of.items()}
            shelf = Shelf.counted(memory, np.arange(len(memory.item_ids)), codes)
            return Desk(task, shelf, name_of, seed, params)  # the mapped tables outlive the folder's names

    def ask(self, query: Query, protocol: str, said: Said | None) -> tuple[Candidates, np.ndarray]:
        """Candidates of a query and their features. said: by the model; None: it is not asked."""
        rng = np.random.default_rng(hash_seed(self.seed, "days", query.user_id, len(query.item_ids)))
        order = np.lexsort((rng.random(len(query.item_ids)), np.array(query.timestamps, dtype=np.int64)))
        history = [(self.name_of[query.item_ids[row]], query.timestamps[row]) for row in order]
        last = query.timestamps[-1] if query.timestamps else self.shelf.memory.end_ms
        visit = Visit.of(self.shelf, history, last + DAY_MS)
        masked = protocol == PROTOCOLS[0]
        allowed = np.ones(len(self.shelf), dtype=bool)
        if masked:
            allowed[visit.items] = False
        beams = {"beam": _NOTHING, "fresh_beam": _NOTHING}
        if said is not None:
            numbers = np.array([self.shelf.number_of(self.name_of[item]) for item, _ in said.hits], dtype=np.int64)
            kept = allowed[numbers]
            beams["beam"] = numbers[kept], np.array([score for _, score in said.hits])[kept]
        counted = Counted.of(self.shelf, visit, self.params.candidates)
        found = gather(self.shelf, visit, counted, lambda numbers: allowed[numbers], beams, self.params.candidates)
        if said is not None and said.score is not None:
            found = replace(found, model=said.score(self.shelf.codes[found.items].astype(np.int64)))
        return found, features(self.shelf, visit, found, masked)

    def labels(self, rows: np.ndarray, hits: Hits | None) -> Labels:
        """A group for each of these validation queries and protocols. hits: one a row."""
        groups = []
        for place, row in enumerate(rows.tolist()):
            query = self.task.validation[row]
            number = self.shelf.number_of(self.name_of[query.relevant])
            for protocol in PROTOCOLS:
                found, table = self.ask(query, protocol, None if hits is None else hits[place])
                taken = found.items == number
                groups.append(Labels.group(query.user_id, _NO_DAY, table, taken, MAX_NEGATIVES))
        return Labels.concat(groups)

    def rank(self, hits: Hits | None, rankers: Mapping[str, Ranker]) -> dict[str, dict[str, list[list[str]]]]:
        """Method → protocol → a list a test query: of `rankers`, and "memory" (places of what is counted, fused)."""
        item_of = {name: item for item, name in self.name_of.items()}
        ids = [item_of[name] for name in self.shelf.memory.item_ids]
        lists: dict[str, dict[str, list[list[str]]]] = {
            method: {protocol: [] for protocol in PROTOCOLS} for method in (*rankers, "memory")
        }
        for number, query in enumerate(self.task.test):
            for protocol in PROTOCOLS:
                found, table = self.ask(query, protocol, None if hits is None else hits[number])
                counted = found.counted()
                for method, ranker in rankers.items():
                    rows = counted if method == "without_model" else np.arange(len(found))
                    part = Candidates(found.items[rows], found.scores[rows], found.places[rows])
                    lists[method][protocol].append(_best(part, ranker.scores(part, table[rows]), ids))
                lists["memory"][protocol].append(_best(found, lambdarank.fuse(found, COUNTED), ids))
        return lists


def rank_all(
    task: LeaveOneOut,
    seed: int,
    params: RankedParams,
    *,
    codes_of: Mapping[str, tuple[int, ...]] | None = None,
    hits_of: Mapping[str, Hits] | None = None,
    label_rows: np.ndarray | None = None,
) -> dict[str, dict[str, list[list[str]]]]:
    """Method → protocol → lists of the test queries; `served` only with hits_of.

    hits_of: "labels": of label_rows, the validation queries that are learned from (None: all); "test": of all test
    queries. codes_of: item id → SID.
    """
    desk = Desk.of(task, seed, params, codes_of or {})
    rows = np.arange(len(task.validation)) if label_rows is None else label_rows
    labels = desk.labels(rows, hits_of["labels"] if hits_of else None)
    told = hash_seed(seed, "ranker")

    def learn(groups: Labels, columns: Sequence[int]) -> Ranker:
        booster = lambdarank.train(groups, columns, params.trees, told)
        return Ranker(params.candidates, Trees.parse(booster.model_to_string(), FEATURES))

    rankers = {"without_model": learn(labels.of_counted(), WITHOUT_MODEL)}
    if hits_of:
        rankers["served"] = learn(labels, ALL)
    return desk.rank(hits_of["test"] if hits_of else None, rankers)


def draw_rows(number: int, size: int, seed: int) -> np.ndarray:
    """At most `size` of so many rows, ascending."""
    if number <= size:
        return np.arange(number)
    return np.sort(np.random.default_rng(hash_seed(seed, "labels")).choice(number, size, replace=False))


def _best(candidates: Candidates, scores: np.ndarray, ids: Sequence[str]) -> list[str]:
    order = np.argsort(-scores, kind="stable")[:K]
    return [ids[number] for number in candidates.items[order]]


def _count(task: LeaveOneOut, folder: Path, seed: int, params: MemoryParams, name_of: Mapping[str, str]) -> Memory:
    """The stage `memory` on the training events under their hashes."""
    items = task.items.append_column("first_seen_day", pa.nulls(task.items.num_rows, pa.date32()))
    items = items.append_column("retired", pa.array(np.zeros(items.num_rows, bool)))
    items = _renamed(items, "item_id", pa.array([name_of[item] for item in task.item_ids])).sort_by("item_id")
    histories = task.shuffled_days(seed)
    lists = histories.column("item_ids").combine_chunks()
    names = pa.array([name_of[item] for item in lists.flatten().to_pylist()], pa.string())
    hashed = pa.ListArray.from_arrays(lists.offsets, names).cast(histories.schema.field("item_ids").type)
    newest = pc.max(pc.list_flatten(histories.column("timestamps"))).as_py()
    write_parquet(folder / "catalog" / "items.parquet", items)
    write_parquet(folder / "catalog" / "users.parquet", pa.table({"user_id": pa.array([], pa.string())}))
    write_parquet(folder / "histories" / "histories.parquet", _renamed(histories, "item_ids", hashed))
    as_of = datetime.fromtimestamp(newest / 1000, UTC).date()
    write_json(folder / "histories" / "stats.json", {"as_of": as_of.isoformat()})
    run_memory(params, catalog=folder / "catalog", histories=folder / "histories", out=folder / "memory")
    return Memory.load(folder / "memory")


def _renamed(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    place = table.column_names.index(name)
    return table.set_column(place, table.schema.field(name), values)
