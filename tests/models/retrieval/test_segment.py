"""An index with its items: the order behind a SID, the round trip, and what a catalogue's rows become."""

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.retrieval.csr import Index
from models.retrieval.segment import Segment, index_items, newest_first
from plumline.errors import CorruptArtifactError
from plumline.schema import ITEMS, conform
from plumline.tables import write_parquet

DAY = datetime.date(2020, 1, 5)


def items() -> pa.Table:
    days = [DAY, None, DAY - datetime.timedelta(days=1), DAY]
    table = conform(pa.table({"item_id": ["b", "c", "d", "a"], "title": list("bcda"), "channel": list("xyxy")}), ITEMS)
    published = pa.array(
        [None, None, datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC), None], pa.timestamp("us", "UTC")
    )
    table = table.set_column(table.column_names.index("published_at"), "published_at", published)
    return index_items(table.append_column("first_seen_day", pa.array(days, pa.date32())))


def test_the_newest_come_first_and_ties_by_id() -> None:
    assert newest_first(items()).tolist() == [1, 3, 2, 0]


def test_positions_are_those_of_the_trie(tmp_path: Path) -> None:
    built = Segment.build(items(), np.array([[1, 0], [0, 1], [1, 0], [1, 0]]), (2, 2))
    built.save(tmp_path)
    for segment in (built, Segment.load(tmp_path)):
        assert segment.item_ids == ["c", "a", "b", "d"]
        assert segment.index.item_rows.tolist() == [0, 1, 2, 3]
        assert segment.index.item_codes().tolist() == [[0, 1], [1, 0], [1, 0], [1, 0]]
        assert np.flatnonzero(segment.positions(["d", "a", "nobody"]).mask()).tolist() == [1, 3]
        assert np.flatnonzero(segment.tags.has("channel", "x").mask()).tolist() == [2, 3]
        assert segment.trie("cpu") is segment.trie("cpu")


def test_published_is_when_published_else_when_first_seen() -> None:
    noon = int(datetime.datetime(2020, 1, 5, tzinfo=datetime.UTC).timestamp() * 1000)
    assert items().column("published_ms").to_pylist() == [noon, None, noon - 3 * 86_400_000, noon]


def test_items_of_another_index_are_refused(tmp_path: Path) -> None:
    Segment.build(items(), np.array([[1, 0], [0, 1], [1, 0], [1, 0]]), (2, 2)).save(tmp_path)
    write_parquet(tmp_path / "items.parquet", items().slice(1))
    with pytest.raises(CorruptArtifactError, match="3 items beside an index of 4"):
        Segment.load(tmp_path)


def test_an_index_of_a_release_of_before_is_read(tmp_path: Path) -> None:
    """Until 2026-11-24 item_starts.npy stood where the bounds of each level are, and items in the order of a table."""
    codes = np.array([[1, 0], [0, 1], [1, 0], [1, 1]])
    index = Index.build(codes, (2, 2), np.array([3, 2, 1, 0]))
    index.save(tmp_path)
    for level in range(2):
        (tmp_path / f"level_{level}_items.npy").unlink()
    np.save(tmp_path / "item_starts.npy", index.items[-1])
    write_parquet(tmp_path / "items.parquet", pa.table({"item_id": ["a", "b", "c", "d"]}))
    segment = Segment.load(tmp_path)
    for before, after in zip(index.items, segment.index.items, strict=True):
        np.testing.assert_array_equal(before, after)
    assert segment.item_ids == ["b", "c", "a", "d"]
    assert segment.index.item_codes().tolist() == [[0, 1], [1, 0], [1, 0], [1, 1]]
    assert segment.days.tolist() == [0, 0, 0, 0]
    assert len(segment.tags.since(0)) == 0
