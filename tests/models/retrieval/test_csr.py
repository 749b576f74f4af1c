"""The trie against a plain dictionary: same leaves, same items in the same order, also after a round trip."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.retrieval.csr import Index
from plumline.errors import CorruptArtifactError, InputError, MissingArtifactError, RefusedError


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
    for before, after in zip((*index.codes, *index.children), (*loaded.codes, *loaded.children), strict=True):
        np.testing.assert_array_equal(before, after)
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


def test_bad_tables_are_refused() -> None:
    with pytest.raises(InputError, match=r"row 1: codes \[2, 0\]"):
        Index.build(np.array([[0, 0], [2, 0]]), (2, 2))
    with pytest.raises(InputError, match=r"row 0"):
        Index.build(np.array([[0, -1]]), (2, 2))
    with pytest.raises(InputError, match=r"expected \(N, 2\)"):
        Index.build(np.array([[0, 0, 0]]), (2, 2))
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
