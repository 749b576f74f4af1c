"""A log, lived through day by day: what the pipeline's stages make of it, one folder a day, without training anything.

Stages are called in this process, by their functions, with the recipe's parameters: the first day learns embeddings,
quantizer, SIDs and vocabulary, every later one adopts them and gives SIDs to new items, as the flow `daily` does.
A folder is finished when its `done` lies in it; an unfinished one is made anew.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features import catalog, events, histories, landing
from features.batches import utc_day
from models.evaluation import metrics, scores
from models.language import vocabulary
from models.retrieval import index
from models.retrieval.retriever import Retriever
from models.semantic_ids import embeddings, quantizer, sids
from plumline.errors import InputError
from plumline.schema import EVENTS, ITEMS, USERS
from plumline.stage import Params, load_params, say

_DONE = "done"
_LANDED_AT = datetime(2100, 1, 1, tzinfo=UTC)  # no event is from the future: the benchmark has no clock


@contextmanager
def making(folder: Path) -> Iterator[Path | None]:
    """Hands over an empty folder, or None if it is finished; finished once the block has ended well."""
    if (folder / _DONE).exists():
        yield None
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    (folder / _DONE).touch()


@dataclass(frozen=True)
class Day:
    """What may be known at the end of a day. asked: the next day of the log, whose users are the queries.

    folder: events, catalog, histories (with queries), embeddings, quantizer, sids, vocabulary, index.
    """

    as_of: date
    asked: date
    folder: Path

    def inputs(self, *names: str) -> dict[str, Path]:
        """Folders of artifacts by name, as stages and loaders take them."""
        return {name: self.folder / name for name in names}


def recall_of_queries(
    day: Day, weights: Path, queries: Sequence[scores.Query], width: int
) -> dict[str, list[float | None]]:
    """Protocol → recall@10 of each query under these weights; None where nothing relevant is left."""
    inputs: dict[str, Any] = day.inputs("vocabulary", "sids", "index", "catalog")
    retriever = Retriever.load(weights=weights, device="cpu", **inputs)
    profiles = vocabulary.read_profiles(catalog.Catalog.load(day.folder / "catalog"))
    found: dict[str, list[float | None]] = {}
    for protocol in scores.PROTOCOLS:
        task = scores.Task.of(queries, protocol)
        asked = [
            replace(query.request(profiles.get(query.user_id, {})), exclude=seen)
            for query, seen in zip(task.queries, task.exclude, strict=True)
        ]
        ranked = [[hit.item_id for hit in hits] for hits in retriever.retrieve(asked, scores.K, width)]
        hits = metrics.hit_matrix(ranked, task.relevant, scores.K)
        values = metrics.recall(hits, np.array([len(items) for items in task.relevant], dtype=np.int64))
        of_query = dict(zip(map(id, task.queries), values.round(6).tolist(), strict=True))
        found[protocol] = [of_query.get(id(query)) for query in queries]
    return found


@dataclass(frozen=True)
class Log:
    """A landed data set. folder: of everything made of it. recipe: file. days: those that have events, sorted."""

    folder: Path
    recipe: Path
    seed: int
    days: tuple[date, ...]

    @staticmethod
    def land(data: Path, folder: Path, recipe: Path, seed: int, max_days: int | None = None) -> "Log":
        """Land <data>/items.parquet, events.parquet and, if there, users.parquet; only the last max_days of it."""
        tables: dict[str, pa.Table | None] = {"users": None}
        for name, contract in (("items", ITEMS), ("events", EVENTS), ("users", USERS)):
            if (data / f"{name}.parquet").is_file():
                tables[name] = landing.rename(landing.read_table(data / f"{name}.parquet"), contract, {}).table
        if missing := {"items", "events"} - tables.keys():
            raise InputError(f"{data}: no {sorted(missing)[0]}.parquet; give a folder with items and events")
        found = tables["events"]
        assert found is not None
        day_of = utc_day(found.column("timestamp"))
        if max_days is not None:
            first = pc.max(day_of).as_py() - timedelta(days=max_days - 1)
            kept = pc.greater_equal(day_of, pa.scalar(first))
            found, day_of = found.filter(kept), day_of.filter(kept)
        with making(folder / "landing") as scratch:
            if scratch is not None:
                landing.land(tables["items"], found, tables["users"], landing=scratch, source="x", now=_LANDED_AT)
        return Log(folder, recipe, seed, tuple(sorted(pc.unique(day_of).to_pylist())))

    def first_day(self, as_of: date, eval_days: int | None = None) -> Day:
        """Learn everything anew on a day. eval_days: calendar days that are asked; None: the next day with events."""
        return self._make(as_of, None, eval_days)

    def following(self, before: Day, eval_days: int | None = None) -> Day:
        """The next day, with SIDs of the new items from the frozen quantizer. eval_days: as for the first."""
        return self._make(before.asked, before, eval_days)

    def _make(self, as_of: date, before: Day | None, eval_days: int | None = None) -> Day:
        folder = self.folder / f"day-{as_of}{f'-{eval_days}' if before and eval_days else ''}"
        day = Day(as_of, self.days[self.days.index(as_of) + 1], folder)
        base = before.folder if before else None
        with making(folder) as scratch:
            if scratch is None:
                return day
            say(f"{as_of}: {'learning SIDs' if before is None else 'SIDs of new items'}")
            ahead = eval_days or (day.asked - as_of).days
            landed = self.folder / "landing"

            def make(stage: ModuleType, kind: type[Params], told: dict[str, int] | None = None, **inputs: Any) -> None:
                section = stage.__name__.rpartition(".")[2]
                params = load_params(self.recipe, section, kind).model_copy(update=told)
                (folder / section).mkdir()
                stage.run(params, out=folder / section, **inputs)

            lake, traffic = str(self.folder / "lake"), self.folder / "traffic"
            given = {"landing": landed, "traffic": traffic, "lake": lake, "as_of": as_of}
            make(events, events.EventsParams, {"horizon_days": ahead}, **given)
            make(catalog, catalog.CatalogParams, landing=landed, as_of=as_of, **day.inputs("events"))
            inputs = day.inputs("events", "catalog")
            make(histories, histories.HistoriesParams, {"eval_days": ahead}, as_of=as_of, **inputs)
            make(embeddings, embeddings.EmbeddingsParams, base=base, **day.inputs("catalog"))
            inputs = day.inputs("embeddings", "histories")
            make(quantizer, quantizer.QuantizerParams, base=base, previous=None, seed=self.seed, **inputs)
            inputs = day.inputs("embeddings", "quantizer", "histories")
            make(sids, sids.SidsParams, base=base, previous=None, **inputs)
            make(vocabulary, vocabulary.VocabularyParams, base=base, **day.inputs("catalog", "histories", "sids"))
            make(index, index.IndexParams, **day.inputs("catalog", "sids"))
        return day
