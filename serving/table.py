"""Stage `table`: seed item → recommendations, computed once for everybody (the offline serving of PLUM).

reads   a sealed release
writes  table.parquet (item_id, item_ids list<str>, scores list<float64>; sorted by item_id), report.json
run     python -m serving.table --params recipes/cpu_tiny.yaml --release artifacts/release --out artifacts/table

A seed stands alone: no history, no profile, the seed as context item. Its own row never holds the seed. Tombstones of a
home are not known here: whoever hands the table on strikes them out.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pydantic import Field

from plumline import artifact, tables
from plumline.stage import Params, main

_TABLE = "table.parquet"
_BATCH = 256


class TableParams(Params):
    """How many seeds, and how many recommendations each."""

    num_seeds: int = Field(default=0, ge=0)
    """Seeds: the first so many live items in item_id order; 0 takes all."""
    k: int = Field(default=20, ge=1, le=100)
    """Recommendations a seed."""
    width: int = Field(default=40, ge=1)
    """Beams of a seed."""


def run(params: TableParams, *, release: Path, out: Path) -> None:
    """Write the table. Raises the errors of Release.load."""
    from tqdm import tqdm

    from models.retrieval.retriever import Request
    from serving.recommender import Recommender

    retriever = Recommender.load(release, precision="float32").retriever
    seeds = sorted(retriever.live_items)[: params.num_seeds or None]
    rows: dict[str, list] = {"item_ids": [], "scores": []}
    for start in tqdm(range(0, len(seeds), _BATCH), desc="table", unit="batch", disable=len(seeds) < 1000):
        requests = [Request(context_item=seed, exclude=frozenset({seed})) for seed in seeds[start : start + _BATCH]]
        for hits in retriever.retrieve(requests, k=params.k, width=params.width):
            rows["item_ids"].append([hit.item_id for hit in hits])
            rows["scores"].append([hit.score for hit in hits])
    columns = {
        "item_id": pa.array(seeds, pa.string()),
        "item_ids": pa.array(rows["item_ids"], pa.list_(pa.string())),
        "scores": pa.array(rows["scores"], pa.list_(pa.float64())),
    }
    tables.write_parquet(out / _TABLE, pa.table(columns))
    covered = {item for items in rows["item_ids"] for item in items}
    artifact.write_json(
        out / "report.json",
        {
            "num_seeds": len(seeds),
            "num_items": len(retriever.live_items),
            "num_recommended": len(covered),
            "num_short": sum(len(items) < params.k for items in rows["item_ids"]),
        },
    )


@dataclass(frozen=True)
class RecommendationTable:
    """Reader of the artifact. rows: seed → (item_id, score) best first."""

    rows: dict[str, tuple[tuple[str, float], ...]]

    @classmethod
    def load(cls, folder: Path) -> "RecommendationTable":
        """Read a finished table. Raises MissingArtifactError or CorruptArtifactError."""
        table = tables.read_parquet(folder / _TABLE)
        columns = (tables.column(table, name) for name in ("item_id", "item_ids", "scores"))
        return cls({seed: tuple(zip(items, scores, strict=True)) for seed, items, scores in zip(*columns, strict=True)})


if __name__ == "__main__":
    main(run, section="table")
