"""Rows of best neighbours against a sort of dense rows."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from models.memory.neighbours import Entries, Neighbours, _order, row_blocks
from plumline.errors import CorruptArtifactError

WEIGHTS = st.sampled_from([0.0, 0.0, 0.0, 1.0, 2.0, 2.5])


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    number = draw(st.integers(1, 9))
    return np.array(
        draw(st.lists(st.lists(WEIGHTS, min_size=number, max_size=number), min_size=number, max_size=number))
    )


def weights_of(tables: list[Neighbours], rows: np.ndarray, items: np.ndarray) -> np.ndarray:
    """(T, R, n) what each row gives each of the items."""
    given_to = np.zeros((len(tables), len(rows), len(items)))
    table, row, which, weights = Entries.of(tables, rows).of_items(items)
    given_to[table, row, which] = weights
    assert np.count_nonzero(given_to) == len(weights)
    return given_to


@given(dense=matrices(), k=st.integers(1, 5), size=st.integers(1, 20), seed=st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_equals_a_sort_of_the_dense_rows(dense: np.ndarray, k: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    allowed = rng.random(len(dense)) < 0.7
    sparse = csr_matrix(dense)
    found = Neighbours.best_of((sparse[rows] for rows in row_blocks(sparse.indptr, size)), k, allowed)
    assert found.num_rows == len(dense)
    assert (found.starts.dtype, found.items.dtype, found.weights.dtype) == (np.int64, np.int32, np.float32)
    wanted = [
        sorted((n for n in np.flatnonzero(row) if allowed[n]), key=lambda n, row=row: (-row[n], n))[:k] for row in dense
    ]
    assert [found.row(row)[0].tolist() for row in range(len(dense))] == wanted
    kept = np.zeros_like(dense)
    for row, items in enumerate(wanted):
        kept[row, items] = dense[row, items]
    rows, weights = rng.integers(0, len(dense), 4), rng.random(4)
    items, sums = found.scores(rows, weights)
    assert items.tolist() == np.flatnonzero((kept[rows] > 0).any(axis=0)).tolist()
    np.testing.assert_allclose(sums, (weights @ kept[rows])[items])
    some = rng.permutation(len(dense))[: rng.integers(0, len(dense) + 1)]
    np.testing.assert_array_equal(weights_of([found], rows, some)[0], kept[rows][:, some])
    less = Neighbours.best_of([sparse], 1, allowed)
    both = Entries.of([less, found, less], rows).sums(weights)
    for (one, sums), table in zip(both, (less, found, less), strict=True):
        alone, wanted_sums = table.scores(rows, weights)
        assert (one.tolist(), sums.tolist()) == (alone.tolist(), wanted_sums.tolist())
    given_to = weights_of([less, found], rows, some)
    np.testing.assert_array_equal(given_to[0], np.where(given_to[0] > 0, kept[rows][:, some], 0))
    np.testing.assert_array_equal(given_to[1], kept[rows][:, some])


def test_blocks_cover_all_rows_once() -> None:
    starts = np.array([0, 0, 5, 5, 6, 30, 30])
    blocks = list(row_blocks(starts, 6))
    assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(6))
    assert all(starts[b.stop] - starts[b.start] <= 6 or b.stop - b.start == 1 for b in blocks)
    assert list(row_blocks(np.zeros(1, np.int64))) == []


def test_no_rows_asked_no_scores() -> None:
    table = Neighbours.best_of([csr_matrix(np.eye(3))], 2)
    items, sums = table.scores(np.zeros(0, np.int64), np.zeros(0))
    assert (len(items), len(sums)) == (0, 0)
    assert weights_of([table], np.zeros(0, np.int64), np.array([1])).shape == (1, 0, 1)
    assert not len(Entries.of([table], np.array([0, 2])).of_items(np.zeros(0, np.int64))[0])


@pytest.mark.parametrize("number", [50, 5000])
def test_few_entries_of_many_items_are_summed_as_many_of_few(number: int) -> None:
    rng = np.random.default_rng(number)
    dense = np.where(rng.random((50, 50)) < 0.3, rng.random((50, 50)), 0)
    wide = np.zeros((50, number))
    wide[:, :50] = dense
    table = Neighbours.best_of([csr_matrix(wide), csr_matrix((number - 50, number))], 10)
    rows, weights = np.array([3, 3, 49]), np.array([1.0, 0.5, 0.0])
    items, sums = table.scores(rows, weights)
    assert items.tolist() == sorted({*table.row(3)[0].tolist(), *table.row(49)[0].tolist()})
    expected = np.zeros(number)
    for row, weight in zip(rows, weights, strict=True):
        np.add.at(expected, table.row(row)[0], table.row(row)[1] * weight)
    np.testing.assert_allclose(sums, expected[items], rtol=1e-12)
    some = np.array([49, number, 7, 3, 20])  # one that the table has no row of
    given = np.zeros((3, number + 1))
    for place, row in enumerate(rows):
        given[place, table.row(row)[0]] = table.row(row)[1]
    assert given[:, some].any()
    np.testing.assert_array_equal(weights_of([table], rows, some)[0], given[:, some])


def test_saved_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    table = Neighbours.best_of([csr_matrix(np.eye(3))], 2)
    table.save(tmp_path, "x")
    loaded = Neighbours.load(tmp_path, "x")
    assert loaded.items.tolist() == [0, 1, 2]
    np.save(tmp_path / "x_weights.npy", np.zeros(2, np.float32))
    with pytest.raises(CorruptArtifactError, match="do not belong together"):
        Neighbours.load(tmp_path, "x")
    (tmp_path / "x_items.npy").write_bytes(b"torn")
    with pytest.raises(CorruptArtifactError, match="unreadable npy"):
        Neighbours.load(tmp_path, "x")


@pytest.mark.parametrize("num_weights", [1, 3, 10_000])
def test_equal_weights_stand_in_the_order_of_their_items(num_weights: int) -> None:
    rng = np.random.default_rng(num_weights)
    row = np.sort(rng.integers(0, 50, 5_000)).astype(np.int32)
    item = rng.permutation(2**31 - 1 - np.arange(5_000)).astype(np.int32)
    weight = (rng.integers(1, num_weights + 1, 5_000) / 7).astype(np.float32)
    assert np.array_equal(_order(row, item, weight), np.lexsort((item, -weight, row)))
