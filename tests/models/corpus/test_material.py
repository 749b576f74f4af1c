"""Events as flat arrays: numbers stay beside the item they belong to."""

import numpy as np
import pyarrow as pa

from models.corpus.material import Events
from models.semantic_ids.table import SidTable
from plumline.schema import HISTORIES, NUMBERS, conform
from plumline.sid import SidSpace

SIDS = SidTable(SidSpace((3, 2)), False, ["a", "b", "c"], np.array([[0, 0], [1, 1], [2, 0]], dtype=np.int32))


def test_numbers_lie_beside_their_events() -> None:
    table = {
        "user_id": ["u", "v", "w"],
        "item_ids": [["a", "gone", "b"], [], ["c", "a"]],
        "timestamps": [[1, 2, 3], [], [4, 5]],
        "rewards": [[1.0] * 3, [], [1.0] * 2],
        "watch_ratio": [[0.5, 0.6, None], [], [0.7, 0.8]],
        "price": pa.array([None, [], [2.0, None]], pa.list_(pa.float32())),  # nothing known of u
    }
    events = Events.of(conform(pa.table(table), HISTORIES), SIDS)
    assert events.rows.tolist() == [0, 1, 2, 0]
    assert set(events.numbers) == set(NUMBERS)
    assert all(values.dtype == np.float32 and values.shape == (4,) for values in events.numbers.values())
    np.testing.assert_array_equal(events.numbers["watch_ratio"], np.float32([0.5, np.nan, 0.7, 0.8]))
    np.testing.assert_array_equal(events.numbers["price"], np.float32([np.nan, np.nan, 2.0, np.nan]))
    assert np.isnan(events.numbers["rating"]).all()
