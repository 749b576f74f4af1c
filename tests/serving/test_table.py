"""The offline table says what the retriever says, seed by seed."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from plumline import artifact
from serving.recommender import Recommender
from serving.table import RecommendationTable, TableParams, run


def test_the_table_is_what_the_model_answers(real: Any, tmp_path: Path) -> None:
    run(TableParams(num_seeds=12, k=5), release=real.folder(0), out=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "table.parquet"]
    rows = RecommendationTable.load(tmp_path).rows
    assert list(rows) == [f"item{number:03d}" for number in range(12)]
    recommender = Recommender.load(real.folder(0))
    for seed, found in rows.items():
        living = recommender.with_tombstones(frozenset({seed}))
        asked = living.recommend(context_item=seed, k=5, retrieval_only=True)
        assert [item for item, _ in found] == [item.item_id for item in asked.items]
        assert [score for _, score in found] == pytest.approx([item.score for item in asked.items], abs=1e-4)
    report = artifact.read_json(tmp_path / "report.json")
    assert (report["num_seeds"], report["num_items"], report["num_short"]) == (12, 57, 0)


def test_equal_inputs_give_equal_bytes(real: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(TableParams(num_seeds=4, k=3), release=real.folder(1), out=tmp_path / name)
    assert artifact.sha256_file(tmp_path / "one/table.parquet") == artifact.sha256_file(tmp_path / "two/table.parquet")


def test_all_seeds_by_default(real: Any, tmp_path: Path) -> None:
    run(TableParams(k=1), release=real.folder(0), out=tmp_path)
    rows = RecommendationTable.load(tmp_path).rows
    assert len(rows) == 57
    assert all(seed not in dict(found) for seed, found in rows.items())


def test_params_are_checked() -> None:
    with pytest.raises(ValidationError):
        TableParams(k=0)
