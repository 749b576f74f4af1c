"""Cells of any type → text: spaces around it away, the words that mean "nothing is known" as null.

words = Words(("", "NULL", "nan"))
words.clean(as_text(values))          ["  x ", "NULL", ""] → ["x", None, None]
words.read(values)                    the same, and lists and MongoDB's {"$oid": "…"} as what they hold
"""

import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class Words:
    """Null words: compared with the whole cell, after the spaces around it."""

    def __init__(self, null_words: Sequence[str]) -> None:
        self._nulls = frozenset({"", *null_words})
        self._value_set = pa.array(sorted(self._nulls), pa.string())
        self._spoken = pa.array(sorted(self._nulls - {""}), pa.string())

    def __contains__(self, text: object) -> bool:
        return text in self._nulls

    def clean(self, text: pa.Array) -> pa.Array:
        """A column of text, trimmed, null words as null."""
        trimmed = pc.utf8_trim_whitespace(text)
        nothing = pc.is_in(trimmed, value_set=self._value_set)  # false for null
        return pc.if_else(nothing, pa.scalar(None, pa.string()), trimmed) if pc.any(nothing).as_py() else trimmed

    def read(self, values: pa.Array) -> pa.Array:
        """A column of any type as text: a JSON list of texts as they follow each other, {"$oid": "50"} as 50."""
        text = self.clean(as_text(values))
        if not is_textual(values.type):
            return text
        text = self.clean(unwrap(text))
        return self.clean(map_values(text, _join, pc.starts_with(text, '["')))

    def nulled(self, values: pa.Array) -> np.ndarray:
        """Which cells hold a word that means nothing, those that are empty aside."""
        if not is_textual(values.type):
            return np.zeros(len(values), dtype=bool)
        trimmed = pc.utf8_trim_whitespace(as_text(values))
        return pc.is_in(trimmed, value_set=self._spoken).to_numpy(zero_copy_only=False)


def is_textual(kind: pa.DataType) -> bool:
    """Whether a type is text of any width."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_listed(kind: pa.DataType) -> bool:
    """Whether a type is a list of any kind."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_numeric(kind: pa.DataType) -> bool:
    """Whether a type is a number: whole, floating or decimal."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def whole(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column of a block as one array."""
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def as_text(values: pa.Array) -> pa.Array:
    """Any column as text: lists joined by a space, points in time as days, bytes as UTF-8, UUID or hexadecimal."""
    kind = values.type
    if pa.types.is_string(kind):
        return values
    if pa.types.is_timestamp(kind):
        values, kind = values.cast(pa.date32(), safe=False), pa.date32()
    if is_listed(kind):
        return pa.array([None if row is None else join(row) for row in values.to_pylist()], pa.string())
    if pa.types.is_nested(kind):
        return pa.array([None if row is None else dump(row) for row in values.to_pylist()], pa.string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.array([_decode(value) for value in values.to_pylist()], pa.string())
    try:
        return values.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.array([None if value is None else str(value) for value in values.to_pylist()], pa.string())


def map_values(text: pa.Array, change: Callable[[str], str | None], where: pa.Array | None = None) -> pa.Array:
    """Change a text where a mask holds, every distinct one once; the rest stays as it is."""
    if where is not None and not pc.any(where).as_py():
        return text
    rows = text if where is None else pc.if_else(pc.fill_null(where, False), text, pa.scalar(None, pa.string()))
    coded = rows.dictionary_encode()
    changed = pa.array([change(value) for value in coded.dictionary.to_pylist()], pa.string())
    new = changed.take(coded.indices)
    return new if where is None else pc.if_else(pc.fill_null(where, False), new, text)


def unwrap(text: pa.Array) -> pa.Array:
    """MongoDB's {"$oid": "50"}, {"$numberLong": "7"}, {"$date": …} as what they hold; other text stays."""
    return map_values(text, _unwrap, pc.starts_with(text, '{"$'))


def _unwrap(text: str) -> str | None:
    value = read_json(text)
    if not isinstance(value, dict):
        return text
    while isinstance(value, dict) and len(value) == 1 and next(iter(value)).startswith("$"):
        value = next(iter(value.values()))
    return value if value is None or isinstance(value, str) else text


def _join(text: str) -> str:
    row = read_json(text)
    is_text = isinstance(row, list) and all(part is None or isinstance(part, str) for part in row)
    return join(row) if is_text else text


def read_json(text: str) -> Any:
    """The value of a JSON text, numbers as they are written; None where it is none."""
    try:
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None


def join(row: Sequence[Any]) -> str:
    """The parts of a list as one text."""
    return " ".join(str(part) for part in row if part is not None)


def dump(row: Any) -> str:
    """A nested value as JSON text."""
    return json.dumps(row, sort_keys=True, default=str)


def _uuid(value: bytes) -> str:
    return str(uuid.UUID(bytes=value))


def _decode(value: bytes | None) -> str | None:
    if value is None:
        return None
    try:
        text = value.decode()
        if text.isprintable():
            return text
    except UnicodeDecodeError:
        pass
    return _uuid(value) if len(value) == 16 else value.hex()
