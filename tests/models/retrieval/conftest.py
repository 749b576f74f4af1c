"""What tests of retrieval share."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

ROUNDING = 2e-4
"""Scores that lie closer come in an order of their own on each processor."""


def check_ranking(hits: Sequence[Any], expected: Sequence[tuple[str, float]]) -> None:
    """The hits are the expected items, best score first; those behind one SID as expected."""
    exact = dict(expected)
    assert sorted(hit.item_id for hit in hits) == sorted(exact)
    np.testing.assert_allclose([hit.score for hit in hits], [exact[hit.item_id] for hit in hits], atol=1e-4)
    assert all(exact[a.item_id] >= exact[b.item_id] - ROUNDING for a, b in pairwise(hits))
    place = {item: number for number, (item, _) in enumerate(expected)}
    for codes in {hit.codes for hit in hits}:
        behind = [place[hit.item_id] for hit in hits if hit.codes == codes]
        assert behind == sorted(behind)


@pytest.fixture(scope="session")
def is_ranking() -> Callable[[Sequence[Any], Sequence[tuple[str, float]]], None]:
    """`check_ranking`, for tests (a test file cannot import its conftest)."""
    return check_ranking
