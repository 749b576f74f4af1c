"""The stage `index`: which items of a catalogue may be generated, and in which order those of one SID stand."""

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.retrieval.csr import Index, read_index_item_ids
from models.retrieval.index import IndexParams, run
from models.semantic_ids.table import SidTable
from plumline.errors import RefusedError
from plumline.schema import ITEMS, conform
from plumline.sid import SidSpace
from plumline.tables import write_parquet


def write_inputs(folder: Path, retired: list[bool]) -> tuple[Path, Path]:
    """A catalogue of five items and their SIDs; b and d share one."""
    ids = ["a", "b", "c", "d", "e"]
    days = [datetime.date(2020, 1, day) for day in (1, 2, 3, 4, 5)]
    items = conform(pa.table({"item_id": ids, "title": ids}), ITEMS)
    items = items.append_column("first_seen_day", pa.array(days)).append_column("retired", pa.array(retired))
    write_parquet(folder / "catalog" / "items.parquet", items)
    write_parquet(folder / "catalog" / "users.parquet", pa.table({"user_id": pa.array([], pa.string())}))
    codes = np.array([[1, 0], [0, 1], [1, 1], [0, 1], [0, 0]], dtype=np.int32)
    (folder / "sids").mkdir(parents=True)
    SidTable(SidSpace((2, 2)), False, ids, codes).save(folder / "sids")
    return folder / "catalog", folder / "sids"


def test_stage_indexes_live_items_newest_first(tmp_path: Path) -> None:
    catalog, sids = write_inputs(tmp_path, [False, False, True, False, False])
    out = tmp_path / "out"
    run(IndexParams(), catalog=catalog, sids=sids, out=out)
    index, item_ids = Index.load(out), read_index_item_ids(out)
    behind = {
        tuple(codes): [item_ids[row] for row in index.rows_behind(leaf)]
        for leaf, codes in enumerate(index.leaf_codes().tolist())
    }
    assert behind == {(0, 0): ["e"], (0, 1): ["d", "b"], (1, 0): ["a"]}


def test_stage_refuses_an_empty_catalogue(tmp_path: Path) -> None:
    catalog, sids = write_inputs(tmp_path, [True] * 5)
    with pytest.raises(RefusedError, match="5 are retired"):
        run(IndexParams(), catalog=catalog, sids=sids, out=tmp_path / "out")


def test_stage_leaves_out_and_counts_live_items_without_a_sid(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    catalog, sids = write_inputs(tmp_path, [False, True, False, True, False])
    codes = np.array([[1, 0], [0, 1]], dtype=np.int32)
    SidTable(SidSpace((2, 2)), False, ["a", "b"], codes).save(sids)  # c and e are live, d is retired
    run(IndexParams(), catalog=catalog, sids=sids, out=tmp_path / "out")
    index = Index.load(tmp_path / "out")
    assert index.leaf_codes().tolist() == [[1, 0]]
    assert read_index_item_ids(tmp_path / "out") == ["a"]
    assert "index: 2 live items have no SID" in capsys.readouterr().err
    catalog, sids = write_inputs(tmp_path / "whole", [False] * 5)
    run(IndexParams(), catalog=catalog, sids=sids, out=tmp_path / "whole" / "out")
    assert "no SID" not in capsys.readouterr().err
