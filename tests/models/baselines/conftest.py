"""Histories for baselines."""

from collections.abc import Callable, Sequence

import pyarrow as pa
import pytest

from plumline.schema import HISTORIES, conform

DAY_MS = 86_400_000
MakeHistories = Callable[[Sequence[Sequence[str]]], pa.Table]


@pytest.fixture
def make_histories() -> MakeHistories:
    """Lists of item ids → a HISTORIES table; the i-th event of every user happens on day i."""

    def make(lists: Sequence[Sequence[str]]) -> pa.Table:
        return conform(
            pa.table(
                {
                    "user_id": [f"u{number:04d}" for number in range(len(lists))],
                    "item_ids": pa.array([list(items) for items in lists], pa.list_(pa.string())),
                    "timestamps": pa.array([[DAY_MS * i for i in range(len(x))] for x in lists], pa.list_(pa.int64())),
                    "rewards": pa.array([[1.0] * len(items) for items in lists], pa.list_(pa.float32())),
                }
            ),
            HISTORIES,
        )

    return make
