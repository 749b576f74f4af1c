import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.retrieval.bits import Bits
from models.retrieval.tags import TAG_COLUMNS, Tags, tag_columns
from plumline.errors import InputError
from plumline.schema import ITEMS

UNKNOWN = -(2**63)


def positions(bits: Bits) -> list[int]:
    return np.flatnonzero(bits.mask()).tolist()


def tags_of(published_ms: np.ndarray | None = None, size: int = 4, **columns: pa.Array) -> Tags:
    return Tags(columns, published_ms, size)


def test_text_lists_numbers_and_times() -> None:
    tags = tags_of(
        np.array([10, UNKNOWN, 20, 30]),
        region=pa.array(["DE", None, "FR", "DE"]),
        genres=pa.array([["a", "b", "a"], None, [], ["b", None]]),
        price=pa.array([1.5, None, 20.0, -3.0]),
        adult=pa.array([True, False, None, True]),
    )
    assert tags.names == ("adult", "genres", "price", "region")
    assert positions(tags.has("region", "DE")) == [0, 3]
    assert positions(tags.has("region", "DE", "FR", "XX")) == [0, 2, 3]
    assert positions(tags.has("region", "XX")) == []
    assert positions(tags.has("genres", "b")) == [0, 3]
    assert positions(tags.has("genres", "a", "XX")) == [0]
    assert positions(tags.compare("price", "<", 20)) == [0, 3]
    assert positions(tags.compare("price", "!=", 20)) == [0, 3]
    assert positions(tags.compare("price", ">=", 1.5)) == [0, 2]
    assert positions(tags.compare("adult", "==", 1)) == [0, 3]
    assert positions(tags.since(20)) == [2, 3]
    assert positions(tags.since(-(10**40))) == [0, 2, 3]
    assert positions(tags.since(10**40)) == []
    assert positions(tags_of().since(0)) == []


@pytest.mark.parametrize(
    "column",
    [
        pa.chunked_array([["a"], ["b", None], [], ["a"]]),
        pa.array(["a", "b", None, "a"], pa.large_string()),
        pa.array(["a", "b", None, "a"]).dictionary_encode(),
        pa.array(["x", "a", "b", None, "a", "x"]).slice(1, 4),
        pa.array([["x"], ["a"], ["b"], None, ["a"], ["x"]]).slice(1, 4),
        pa.array([["a"], ["b"], [], ["a"]], pa.large_list(pa.large_string())),
        pa.ListArray.from_arrays([0, 1, 2, 2, 3], pa.array(["a", "b", "a"]).dictionary_encode()),
        pa.chunked_array([[["a"], ["b"]], [None, ["a"]]]),
    ],
    ids=lambda column: str(column.type),
)
def test_the_same_however_it_is_stored(column: pa.Array) -> None:
    tags = tags_of(t=column)
    assert positions(tags.has("t", "a")) == [0, 3]
    assert positions(tags.has("t", "b")) == [1]
    assert positions(tags.has("t", "x")) == []


@given(
    st.lists(st.lists(st.sampled_from("abcdefghijkl"), max_size=3) | st.none(), max_size=40),
    st.sets(st.text("abcdefghijklm", min_size=1, max_size=1)),
)
@settings(deadline=None)
def test_values_found_are_those_there(rows: list[list[str] | None], values: set[str]) -> None:
    first = [row[0] if row else None for row in rows]
    tags = tags_of(size=len(rows), l=pa.array(rows, pa.list_(pa.string())), t=pa.array(first, pa.string()))
    assert positions(tags.has("l", *values)) == [i for i, row in enumerate(rows) if set(row or ()) & values]
    assert positions(tags.has("t", *values)) == [i for i, value in enumerate(first) if value in values]


def test_more_values_than_fit_into_sixteen_bits() -> None:
    size = 40_000
    tags = tags_of(size=size, l=pa.array([[f"v{i}"] for i in range(size)]))
    assert positions(tags.has("l", "v39999", "v7")) == [7, 39_999]


def test_what_cannot_be_asked_is_said() -> None:
    tags = tags_of(region=pa.array(["DE"] * 4), price=pa.array([1, 2, 3, 4]))
    for ask, says in [
        (lambda: tags.has("colour", "x"), r"no tag 'colour'; there are \['price', 'region'\]"),
        (lambda: tags.compare("colour", "<", 1), "no tag 'colour'"),
        (lambda: tags.has("price", "x"), "'price' holds numbers; write price < 20"),
        (lambda: tags.compare("region", "<", 1), r"'region' holds text; write region\(\"value\"\), not region < 1"),
        (lambda: tags_of(t=pa.array([1])), "'t' has 1 values; one for each of 4"),
        (lambda: tags_of(t=pa.array([[1.0]] * 4)), "'t' is list"),
    ]:
        with pytest.raises(InputError, match=says):
            ask()


def test_tags_of_an_items_table() -> None:
    items = pa.table(
        {
            "item_id": ["a", "b"],
            "title": ["A", "B"],
            "channel": ["c", None],
            "price": [1.0, 2.0],
            "tag_price": ["cheap", "dear"],
            "tag_region": ["DE", "FR"],
            "emb_x": [[1.0], [2.0]],
            "published_ms": pa.array([5, None], pa.int64()),
        }
    )
    assert tag_columns(items.schema) == ["channel", "price", "tag_price", "tag_region"]
    for table in (items, items.select(items.column_names[::-1])):
        tags = Tags.of(table)
        assert tags.names == ("channel", "price", "region")
        assert positions(tags.has("price", "dear")) == [1]  # the tag_ column, not the number
        assert positions(tags.since(-(2**62))) == [0]
    assert positions(Tags.of(items.drop_columns(["published_ms"])).since(0)) == []
    assert set(TAG_COLUMNS) <= set(ITEMS.schema.names)
    assert Tags.of(pa.table({"item_id": ["a"]})).names == ()


def test_only_so_many_sets_are_remembered() -> None:
    tags, found = tags_of(), []

    def find() -> Bits:
        found.append(1)
        return Bits.full(4)

    for key in range(257):
        tags.remember(key, find)
        tags.remember(0, find)  # asked for again and again: it stays
    assert len(found) == 257
    tags.remember(1, find)
    assert len(found) == 258
