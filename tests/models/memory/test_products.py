"""The highest cells of a sparse product against the dense one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse import random as random_matrix

from models.memory.products import highest_products, place_in_row


@given(
    rows=st.integers(1, 6),
    inner=st.integers(1, 6),
    columns=st.integers(1, 9),
    k=st.integers(1, 12),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_equals_the_dense_product(rows: int, inner: int, columns: int, k: int, seed: int) -> None:
    left = random_matrix(rows, inner, 0.5, "csr", random_state=seed)
    right = random_matrix(inner, columns, 0.5, "csr", random_state=seed + 100)
    best = highest_products(left, right, k)
    for row, dense in enumerate((left @ right).toarray()):
        span = slice(best.indptr[row], best.indptr[row + 1])
        np.testing.assert_allclose(best.data[span], np.sort(dense[dense > 0])[::-1][:k])
        np.testing.assert_allclose(dense[best.indices[span]], best.data[span])


def test_threads_change_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    left = random_matrix(300, 200, 0.2, "csr", random_state=1)
    right = random_matrix(200, 300, 0.2, "csr", random_state=2)
    right.data = np.round(right.data)  # many equal cells
    found = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("PLUMLINE_THREADS", threads)
        best = highest_products(left, right, 10)
        found.append([part.tobytes() for part in (best.indptr, best.indices, best.data)])
    assert found[0] == found[1] == found[2]


def test_nothing_in_common_nothing_found() -> None:
    assert highest_products(csr_matrix((2, 0)), csr_matrix((0, 3)), 2).nnz == 0
    assert highest_products(csr_matrix((2, 4)), csr_matrix((4, 3)), 2).shape == (2, 3)


def test_places_in_rows() -> None:
    assert place_in_row(np.array([0, 0, 2, 2, 2, 4]), 6).tolist() == [0, 1, 0, 1, 2, 0]
    assert place_in_row(np.zeros(0, np.int64), 3).tolist() == []
