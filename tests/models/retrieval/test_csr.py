"""The trie against a plain dictionary: same leaves, same items in the same order, also after a round trip."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.retrieval.csr import ITEMS_FILE, Index, is_old_format, read_index_item_ids
from plumline.errors import CorruptArtifactError, InputError, MissingArtifactError, RefusedError
from plumline.tables import write_parquet


@st.composite
def code_tables(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...], np.ndarray | None]:
    sizes = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 7, 300, 40_000, 2**31 - 1]), min_size=1, max_size=5)))
    row = st.tuples(*(st.integers(0, min(size, draw(st.sampled_from([2, 4, 2**31]))) - 1) for size in sizes))
    rows = draw(st.lists(row, min_size=1, max_size=60))
    priority = draw(st.none() | st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    return np.array(rows, dtype=np.int64), sizes, None if priority is None else np.array(priority)


def dictionary(codes: np.ndarray, priority: np.ndarray | None) -> dict[tuple[int, ...], list[int]]:
    """Leaf → rows, the slow and obvious way."""
    behind: dict[tuple[int, ...], list[int]] = {}
    for row, key in enumerate(map(tuple, codes.tolist())):
        behind.setdefault(key, []).append(row)
    if priority is not None:
        behind = {key: sorted(rows, key=lambda r: (priority[r], r)) for key, rows in behind.items()}
    return dict(sorted(behind.items()))


@given(code_tables())
@settings(max_examples=200, deadline=None)
def test_index_equals_a_dictionary(table: tuple[np.ndarray, tuple[int, ...], np.ndarray | None]) -> None:
    codes, sizes, priority = table
    index = Index.build(codes, sizes, priority)
    expected = dictionary(codes, priority)
    assert list(map(tuple, index.leaf_codes().tolist())) == list(expected)
    assert [index.rows_behind(leaf).tolist() for leaf in range(index.num_leaves)] == list(expected.values())
    assert index.find_leaves(codes).tolist() == [list(expected).index(key) for key in map(tuple, codes.tolist())]
    # Every node's children, level by level.
    nodes: list[tuple[int, ...]] = [()]
    for level in range(len(sizes)):
        below = sorted({key[: level + 1] for key in expected})
        for number, prefix in enumerate(nodes):
            start, end = index.children[level][number], index.children[level][number + 1]
            assert index.codes[level][start:end].tolist() == [key[level] for key in below if key[:level] == prefix]
        nodes = below


@given(code_tables(), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_unknown_sids_have_no_leaf(table: tuple[np.ndarray, tuple[int, ...], np.ndarray | None], seed: int) -> None:
    codes, sizes, _ = table
    index = Index.build(codes, sizes)
    probes = np.random.default_rng(seed).integers(-1, np.minimum(np.array(sizes), 8) + 1, (50, len(sizes)))
    expected = dictionary(codes, None)
    keys = list(expected)
    wanted = [keys.index(key) if key in expected else -1 for key in map(tuple, probes.tolist())]
    assert index.find_leaves(probes).tolist() == wanted


def test_round_trip_is_mapped_and_equal(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 40, (500, 3))
    index = Index.build(codes, (40, 40_000, 40))
    index.save(tmp_path / "a")
    loaded = Index.load(tmp_path / "a")
    assert isinstance(loaded.item_rows, np.memmap)
    assert [a.dtype for a in loaded.codes] == [np.int16, np.int32, np.int16]
    assert loaded.sizes == index.sizes
    before = (*index.codes, *index.children, *index.items, index.item_rows)
    after = (*loaded.codes, *loaded.children, *loaded.items, loaded.item_rows)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    assert index.num_bytes == sum(array.nbytes for array in before)
    np.testing.assert_array_equal(index.leaf_codes(), loaded.leaf_codes())
    np.testing.assert_array_equal(loaded.find_leaves(codes), index.find_leaves(codes))
    loaded.save(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_damage_is_refused(tmp_path: Path) -> None:
    Index.build(np.array([[0, 1], [1, 1], [1, 0]]), (2, 2)).save(tmp_path / "a")
    Index.build(np.array([[0, 1], [1, 1]]), (2, 2)).save(tmp_path / "b")
    (tmp_path / "a" / "level_1_codes.npy").write_bytes((tmp_path / "b" / "level_1_codes.npy").read_bytes())
    with pytest.raises(CorruptArtifactError, match="different indexes"):
        Index.load(tmp_path / "a")
    (tmp_path / "b" / "item_rows.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(CorruptArtifactError, match=r"item_rows\.npy"):
        Index.load(tmp_path / "b")
    (tmp_path / "b" / "item_rows.npy").unlink()
    with pytest.raises(MissingArtifactError, match=r"item_rows\.npy"):
        Index.load(tmp_path / "b")


FILES = [*(f"level_{level}_{kind}" for level in (0, 1) for kind in ("codes", "children", "items")), "item_rows"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_index_is_refused(tmp_path: Path, name: str) -> None:
    """Two indexes that differ in every array, saved in the other's folder one file at a time."""
    Index.build(np.array([[0, 1], [1, 1], [1, 0], [1, 0]]), (3, 2)).save(tmp_path / "a")
    Index.build(np.array([[0, 1], [1, 1], [2, 0], [2, 1], [2, 1], [2, 1]]), (3, 2)).save(tmp_path / "b")
    for one, other in (("a", "b"), ("b", "a")):
        own = (tmp_path / one / f"{name}.npy").read_bytes()
        (tmp_path / one / f"{name}.npy").write_bytes((tmp_path / other / f"{name}.npy").read_bytes())
        with pytest.raises(CorruptArtifactError, match="different indexes"):
            Index.load(tmp_path / one)
        (tmp_path / one / f"{name}.npy").write_bytes(own)
        Index.load(tmp_path / one)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(("children", "items"))])
def test_an_array_of_another_length_or_that_ends_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    Index.build(np.array([[0, 1], [1, 1], [1, 0]]), (2, 2)).save(tmp_path)
    array = np.load(tmp_path / f"{name}.npy")
    for damaged in (np.append(array[:-1], array[-1] + 1), np.append(array, array[-1]), np.append(0, array)):
        np.save(tmp_path / f"{name}.npy", damaged)
        with pytest.raises(CorruptArtifactError, match="different indexes"):
            Index.load(tmp_path)


@pytest.mark.parametrize("name", ["num_leaves", "num_items"])
def test_counts_that_are_another_index_s_are_refused(tmp_path: Path, name: str) -> None:
    Index.build(np.array([[0, 1], [1, 1], [1, 1]]), (2, 2)).save(tmp_path)
    about = json.loads((tmp_path / "index.json").read_text())
    assert about == {"sizes": [2, 2], "num_items": 3, "num_leaves": 2}
    (tmp_path / "index.json").write_text(json.dumps(about | {name: 4}))
    with pytest.raises(CorruptArtifactError, match="different indexes"):
        Index.load(tmp_path)


def test_an_index_of_before_2026_11_25_is_read(tmp_path: Path) -> None:
    """It kept the items of the last level alone; those above follow from the children."""
    index = Index.build(np.random.default_rng(2).integers(0, 4, (80, 3)), (4, 4, 4))
    index.save(tmp_path)
    assert not is_old_format(tmp_path)
    for level in range(3):
        (tmp_path / f"level_{level}_items.npy").unlink()
    np.save(tmp_path / "item_starts.npy", index.items[-1])
    assert is_old_format(tmp_path)
    loaded = Index.load(tmp_path)
    for one, other in zip(index.items, loaded.items, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_array_takes_the_smallest_signed_type_that_holds_it() -> None:
    for size, kind in {1: np.int16, 2**15: np.int16, 2**15 + 1: np.int32, 2**31: np.int32, 2**31 + 1: np.int64}.items():
        index = Index.build(np.array([[size - 1], [0]]), (size,))
        assert index.codes[0].dtype == kind
        assert index.leaf_codes().tolist() == ([[0], [size - 1]] if size > 1 else [[0]])
        assert {array.dtype for array in (*index.children, *index.items, index.item_rows)} == {np.dtype(np.int32)}


@pytest.mark.parametrize("sizes", [(2**31, 2**31, 2), (2**31, 2**31, 4), (2**31, 2**32, 2**31)])
def test_a_space_around_and_beyond_64_bits_is_sorted(sizes: tuple[int, ...]) -> None:
    last = [size - 1 for size in sizes]
    codes = np.array([last, [0, 0, 1], [last[0], 0, 0], [0, last[1], 0], [1, 0, 0], last])
    expected = sorted({tuple(row) for row in codes.tolist()})
    assert list(map(tuple, Index.build(codes, sizes).leaf_codes().tolist())) == expected


def test_items_stand_at_the_positions_of_their_leaves() -> None:
    codes = np.array([[1, 0], [0, 1], [1, 1], [0, 1], [0, 0]])
    index = Index.build(codes, (2, 2), priority=np.array([0, 9, 0, 3, 0]))
    assert index.item_rows.tolist() == [4, 3, 1, 0, 2]
    np.testing.assert_array_equal(index.item_codes(), codes[index.item_rows])
    assert list(map(list, index.positions_behind(np.array([0, 1, -1, 2, 3])))) == [[0], [1, 2], [], [3], [4]]
    assert [starts.tolist() for starts in index.items] == [[0, 3, 5], [0, 1, 3, 4, 5]]


def test_ids_of_the_items_are_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / ITEMS_FILE, pa.table({"published_ms": [1, 2], "item_id": ["b", "a"]}))
    assert read_index_item_ids(tmp_path) == ["b", "a"]


def test_bad_tables_are_refused() -> None:
    with pytest.raises(InputError, match=r"row 1: codes \[2, 0\]"):
        Index.build(np.array([[0, 0], [2, 0]]), (2, 2))
    with pytest.raises(InputError, match=r"row 0"):
        Index.build(np.array([[0, -1]]), (2, 2))
    with pytest.raises(InputError, match=r"expected \(N, 2\)"):
        Index.build(np.array([[0, 0, 0]]), (2, 2))
    with pytest.raises(InputError, match="type float64: expected"):
        Index.build(np.array([[0.0, 1.0]]), (2, 2))
    with pytest.raises(InputError, match=r"codes of shape \(2,\) and type"):
        Index.build(np.array([0, 1]), (2, 2))
    for bad in (np.zeros(2, dtype=np.int64), np.zeros((1, 3), dtype=np.int64)):
        with pytest.raises(InputError, match=r"expected \(M, 2\), one column a level"):
            Index.build(np.array([[0, 0]]), (2, 2)).find_leaves(bad)
    with pytest.raises(RefusedError, match="no SID"):
        Index.build(np.zeros((0, 2), dtype=np.int64), (2, 2))


def test_a_million_sids_take_seconds() -> None:
    generator = np.random.default_rng(1)
    sizes = (256, 128, 64, 16)
    codes = np.stack([generator.integers(0, size, 1_000_000) for size in sizes], axis=1).astype(np.int32)
    index = Index.build(codes, sizes)
    assert index.num_items == 1_000_000
    assert index.num_bytes <= 90_000_000
    np.testing.assert_array_equal(index.leaf_codes()[index.find_leaves(codes[:1000])], codes[:1000])
