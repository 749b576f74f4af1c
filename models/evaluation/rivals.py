"""Stage `rivals`: what simpler methods, and SASRec, would have shown on the held-out days.

    reads   catalog, histories (histories, queries, last_events), base (only whether there is one)
    writes  lists.parquet (the top 10 of every held-out request, each rival and protocol), report.json
    run     python -m models.evaluation.rivals --params recipes/cpu_tiny.yaml --catalog … --histories … --base= \\
                --seed 17 --out artifacts/rivals

They learn from the same histories as everything else, rank all live items, and are asked what the stage `ranker` asks;
the stage `scores` makes figures of both. Nothing here waits for the language model, so it is done while that trains.

SASRec takes a minute or two to train, so it is trained for a bootstrap only; the scores of a daily quote its base's.
The other rivals are fitted anew every time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from models.evaluation.queries import Ranker, Task
from models.retrieval.held_out import LEAVE_ONE_OUT, NEXT_DAY, PROTOCOLS, list_row, read_sample, write_lists
from plumline.artifact import write_json
from plumline.settings import get_settings
from plumline.stage import Params, hash_seed, main
from plumline.tables import column

if TYPE_CHECKING:
    import pyarrow as pa


class RivalsParams(Params):
    """What is fitted, and how many requests are held out."""

    popularity_half_life_days: float | None = Field(default=14.0, gt=0)
    """Age at which an event counts half for popularity and for a user's own items; null: all events count one."""
    knn_half_life_days: float | None = Field(default=30.0, gt=0)
    """The same for the pairs of the sequential item-kNN."""
    knn_window: int = Field(default=3, ge=1)
    """Steps within which one item follows another for the item-kNN."""
    knn_decay: float = Field(default=0.8, gt=0, le=1)
    """Weight lost a step, between the items of a pair and back through a query's history."""
    text_baselines: bool = True
    """Also text kNN, its sum with the item-kNN, and STAR (on TF-IDF vectors), where an item has a word."""
    knn_text_weight: float = Field(default=0.03, ge=0)
    """What a cosine of 1 is worth in the sum, in (aged, decayed) counts of the item-kNN: text orders equals."""
    sasrec_steps: int = Field(default=0, ge=0)
    """Training steps of SASRec; 0 leaves it out."""
    sasrec_half_life_days: float | None = Field(default=60.0, gt=0)
    """Age at which a window of a history is drawn half as often for SASRec; null: all equally."""
    sasrec_max_items: int = Field(default=8192, ge=1)
    """Items over which SASRec's loss is taken: all of them up to so many, else so many that are drawn for each batch
    (sampled softmax), so that a step does not grow with the catalogue."""
    max_queries: int = Field(default=1500, ge=1)
    """Held-out user-days that are asked, at least as many as `ranker.max_queries`."""
    leave_one_out_queries: int = Field(default=300, ge=0)
    """Users asked for their last held-out event, at least as many as `ranker.leave_one_out_queries`."""


def run(params: RivalsParams, *, catalog: Path, histories: Path, base: Path | None, seed: int, out: Path) -> None:
    """Fit every rival and list the held-out requests. Raises InputError if SASRec has nothing to learn from."""
    from features.catalog import Catalog
    from features.histories import read_histories

    samples = {
        NEXT_DAY: read_sample(histories, params.max_queries, seed),
        LEAVE_ONE_OUT: read_sample(histories, params.leave_one_out_queries, seed, last_events=True),
    }
    rows = []
    rivals: dict[str, Ranker] = {}
    if samples[NEXT_DAY]:
        known = Catalog.load(catalog)
        params = params.model_copy(update={"sasrec_steps": 0}) if base is not None else params
        rivals = fit_rivals(params, read_histories(histories), known.live_ids(), known.items, seed)
    for name, rank in rivals.items():
        for task, queries in samples.items():
            for protocol in PROTOCOLS:
                asked = Task.of(queries, protocol)
                answers = zip(asked.queries, asked.rank(rank), strict=True)
                rows += [list_row(task, protocol, name, query, items) for query, items in answers]
    write_lists(out, rows)
    about = {"rivals": list(rivals), "num_queries": {task: len(queries) for task, queries in samples.items()}}
    write_json(out / "report.json", about)


def fit_rivals(
    params: RivalsParams, histories: pa.Table, item_ids: list[str], items: pa.Table, seed: int
) -> dict[str, Ranker]:
    """Every rival by its name in scores.json. items: the catalogue's, for their text."""
    from models.baselines.item_knn import ItemKnn
    from models.baselines.knn_sum import KnnSum
    from models.baselines.own import Own
    from models.baselines.popularity import Popularity
    from models.baselines.star import Star, text_vectors
    from models.baselines.text_knn import TextKnn
    from models.memory.texts import has_words

    popularity = Popularity.fit(histories, item_ids, half_life_days=params.popularity_half_life_days)
    item_knn = ItemKnn.fit(
        histories,
        item_ids,
        window=params.knn_window,
        decay=params.knn_decay,
        half_life_days=params.knn_half_life_days,
    )
    own = Own.fit(histories, item_ids, half_life_days=params.popularity_half_life_days)
    rivals: dict[str, Ranker] = {"popularity": popularity.rank, "own": own.rank, "item_knn": item_knn.rank}
    if params.text_baselines and has_words(items, item_ids):
        text_knn = TextKnn.fit(histories, item_ids, items, decay=params.knn_decay)
        rivals["text_knn"] = text_knn.rank
        rivals["knn_sum"] = KnnSum(item_knn, text_knn, params.knn_text_weight).rank
        rivals["star"] = Star.fit(histories, item_ids, column(items, "item_id"), text_vectors(items)).rank
    if params.sasrec_steps:
        import torch

        from models.baselines.sasrec import SasRec

        # A second thread gains such small batches little, and costs tenfold where it has to wait.
        torch.set_num_threads(get_settings().threads or 1)
        rivals["sasrec"] = SasRec.fit(
            histories,
            item_ids,
            steps=params.sasrec_steps,
            seed=hash_seed(seed, "sasrec"),
            half_life_days=params.sasrec_half_life_days,
            num_negatives=None if len(item_ids) <= params.sasrec_max_items else params.sasrec_max_items,
        ).rank
    return rivals


if __name__ == "__main__":
    main(run, section="rivals")
