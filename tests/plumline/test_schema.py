from datetime import UTC, datetime

import pyarrow as pa
import pytest

from plumline.errors import InputError
from plumline.schema import EVENTS, ITEMS, TIMESTAMP, USERS, conform


def test_missing_optional_columns_become_nulls_and_strangers_go():
    table = conform(pa.table({"item_id": [1, 2], "rank": [9, 9], "emb_image": [[1.0], [2.0]]}), ITEMS)
    assert table.column("item_id").to_pylist() == ["1", "2"]
    assert table.column("title").null_count == 2
    assert "rank" not in table.column_names
    assert table.column_names[-1] == "emb_image"


def test_users_keep_their_profile():
    assert conform(pa.table({"user_id": ["u"], "country": ["DE"]}), USERS).column_names == ["user_id", "country"]


def test_naive_times_are_utc():
    table = pa.table({"event_id": ["e"], "user_id": ["u"], "item_id": ["i"], "timestamp": [datetime(2020, 1, 1)]})
    assert conform(table, EVENTS).column("timestamp")[0].as_py() == datetime(2020, 1, 1, tzinfo=UTC)
    assert conform(table, EVENTS).schema.field("timestamp").type == TIMESTAMP


def test_a_bad_value_is_named_with_its_row():
    with pytest.raises(InputError, match=r"items: row 3: price is 'cheap'"):
        conform(pa.table({"item_id": ["a", "b", "c"], "price": ["1", "2", "cheap"]}), ITEMS)


def test_a_missing_required_column_says_how_to_rename():
    with pytest.raises(InputError, match=r"no column 'item_id'.*--map item_id=COLUMN"):
        conform(pa.table({"sku": ["a"]}), ITEMS)


def test_a_null_id_is_named_with_its_row():
    with pytest.raises(InputError, match=r"items: row 2: item_id is empty"):
        conform(pa.table({"item_id": ["a", None]}), ITEMS)
