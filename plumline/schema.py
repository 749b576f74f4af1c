"""Column contracts of everything that crosses a door: items, users, events, histories, queries, traffic.

A contract says which columns there are, their types, and which may be missing. `conform` turns a table that has the
right names into exactly the contract's columns and types, or says which column of which row cannot be.
"""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from plumline.errors import InputError

TIMESTAMP = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Contract:
    """Columns of one kind of table.

    name: noun for messages. schema: every column there can be. required: those that must be there and never null.
    prefix_columns: prefixes of further columns that are kept as they are (`emb_`, `tag_` of items).
    """

    name: str
    schema: pa.Schema
    required: tuple[str, ...]
    prefix_columns: tuple[str, ...] = ()


ITEMS = Contract(
    name="items",
    schema=pa.schema(
        {
            "item_id": pa.string(),
            "title": pa.string(),
            "description": pa.string(),
            "channel": pa.string(),
            "topics": pa.list_(pa.string()),
            "language": pa.string(),
            "duration_s": pa.float64(),
            "price": pa.float64(),
            "published_at": TIMESTAMP,
            "retired_at": TIMESTAMP,
        }
    ),
    required=("item_id",),
    prefix_columns=("emb_", "tag_"),
)
"""One row an item. `emb_<name>`: fixed-size lists of floats, each a modality of its own. `tag_<name>`: text, a list of
text, a number or a boolean, which rules ask for as <name>; no model reads it."""

DESCRIBING = ("title", "description", "channel", "topics")
"""Columns of items of which at least one must be there (an `emb_*` column counts too)."""

USERS = Contract(name="users", schema=pa.schema({"user_id": pa.string()}), required=("user_id",), prefix_columns=("",))
"""One row a user; every further column is a profile feature."""

EVENTS = Contract(
    name="events",
    schema=pa.schema(
        {
            "event_id": pa.string(),
            "user_id": pa.string(),
            "item_id": pa.string(),
            "timestamp": TIMESTAMP,
            "action": pa.string(),
            "watch_ratio": pa.float64(),
            "watch_time_s": pa.float64(),
            "rating": pa.float64(),
            "price": pa.float64(),
            "quantity": pa.float64(),
            "surface": pa.string(),
            "session_id": pa.string(),
        }
    ),
    required=("event_id", "user_id", "item_id", "timestamp"),
)
"""One row an event; `event_id` is derived by hash where the source has none. Partitioned by UTC day."""

HISTORIES = Contract(
    name="histories",
    schema=pa.schema(
        {
            "user_id": pa.string(),
            "item_ids": pa.list_(pa.string()),
            "timestamps": pa.list_(pa.int64()),
            "rewards": pa.list_(pa.float32()),
            "watch_ratio": pa.list_(pa.float32()),
            "watch_time_s": pa.list_(pa.float32()),
            "rating": pa.list_(pa.float32()),
            "price": pa.list_(pa.float32()),
            "quantity": pa.list_(pa.float32()),
        }
    ),
    required=("user_id", "item_ids", "timestamps", "rewards"),
)
"""One row a user, oldest event first, ties by event_id; equally long lists; `timestamps` are epoch milliseconds.

The numbers are those of EVENTS; null in a list: not known there; null instead of a list: not known of that user."""

NUMBERS = tuple(field.name for field in EVENTS.schema if pa.types.is_floating(field.type))
"""Numeric columns of events, which histories carry as lists of the same names."""

QUERIES = Contract(
    name="queries",
    schema=pa.schema(
        {
            "user_id": pa.string(),
            "day": pa.date32(),
            "item_ids": pa.list_(pa.string()),
            "timestamps": pa.list_(pa.int64()),
            "relevant": pa.list_(pa.string()),
            "rewards": pa.list_(pa.float32()),
            **{name: pa.list_(pa.float32()) for name in NUMBERS},
        }
    ),
    required=("user_id", "day", "item_ids", "timestamps", "relevant"),
)
"""One row a user and held-out day: what was known before that day, and the distinct items of that day (sorted).

rewards: what each of these items was worth to the user that day, the largest where there were several events. The
numbers are those of the events in item_ids, as in HISTORIES."""

PAIRS = Contract(
    name="pairs",
    schema=pa.schema({"item_a": pa.string(), "item_b": pa.string(), "count": pa.int64()}),
    required=("item_a", "item_b", "count"),
)
"""Co-occurrence of two items within a few steps of one user's history; item_a < item_b."""

TRAFFIC = Contract(
    name="traffic",
    schema=pa.schema(
        {
            "request_id": pa.string(),
            "timestamp": TIMESTAMP,
            "user_id": pa.string(),
            "release_id": pa.string(),
            "action": pa.string(),
            "history_length": pa.int64(),
            "item_ids": pa.list_(pa.string()),
            "sids": pa.list_(pa.string()),
            "scores": pa.list_(pa.float64()),
            "why": pa.list_(pa.string()),
            "num_invalid": pa.int64(),
            "degraded": pa.bool_(),
            "latency_ms": pa.float64(),
            "watch_ratio": pa.float64(),
            "watch_time_s": pa.float64(),
            "rating": pa.float64(),
        }
    ),
    required=("request_id", "timestamp", "release_id", "action", "item_ids"),
)
"""One row an answer (`action` "served") or a reaction to one ("click", "play" …, one item).

why: of each item, the parts that spoke for it as JSON, [[part, share, [history items]], …].
watch_ratio, watch_time_s, rating: of a reaction, as in EVENTS."""


def conform(table: pa.Table, contract: Contract) -> pa.Table:
    """Cast a table to its contract: contract columns in contract order, absent optional ones as nulls, others dropped.

    Columns that match `prefix_columns` are kept after them, in name order. Raises InputError naming the column and, for
    a value that cannot be cast or is null where it must not be, the first row (counted from 1).
    """
    columns: dict[str, pa.ChunkedArray | pa.Array] = {}
    for field in contract.schema:
        if field.name not in table.column_names:
            if field.name in contract.required:
                raise InputError(
                    f"{contract.name}: no column {field.name!r}; there are {table.column_names}; "
                    f"rename with --map {field.name}=COLUMN"
                )
            columns[field.name] = pa.nulls(table.num_rows, field.type)
            continue
        columns[field.name] = _cast(table.column(field.name), field, contract.name)
        if field.name in contract.required and columns[field.name].null_count:
            row = pc.index(pc.is_null(columns[field.name]), True).as_py() + 1
            raise InputError(f"{contract.name}: row {row}: {field.name} is empty; it must be there in every row")
    for name in sorted(set(table.column_names) - set(columns)):
        if any(name.startswith(prefix) for prefix in contract.prefix_columns):
            columns[name] = table.column(name)
    return pa.table(columns)


def _cast(values: pa.ChunkedArray, field: pa.Field, noun: str) -> pa.ChunkedArray:
    if values.type == field.type:
        return values
    if field.type == TIMESTAMP and pa.types.is_timestamp(values.type) and values.type.tz is None:
        return values.cast(pa.timestamp("us"), safe=False).cast(TIMESTAMP)  # naive times are read as UTC
    try:
        return values.cast(field.type, safe=field.type != TIMESTAMP)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        row = _first_bad_row(values, field.type)
        raise InputError(
            f"{noun}: row {row + 1}: {field.name} is {values[row].as_py()!r}, which is no {field.type}; mend the file"
        ) from None


def _first_bad_row(values: pa.ChunkedArray, kind: pa.DataType) -> int:
    low, high = 0, len(values) - 1  # bisect: the first prefix that cannot be cast ends at the first bad row
    while low < high:
        middle = (low + high) // 2
        try:
            values.slice(0, middle + 1).cast(kind)
            low = middle + 1
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            high = middle
    return low
