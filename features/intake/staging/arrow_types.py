"""Arrow's many types → those that the steps after staging know, and any of them as text.

plain(column)          no dictionaries, extensions, views, run-lengths; UUIDs and 16 bytes as UUID text
as_type(column, type)  what a block has in the type that all files have in common
common_type(types)     that type; text where they have none
"""

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

UUID_BYTES = 16


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of parquet without what only a file's layout asks for."""
    chunks = [_plain(chunk) for chunk in column.chunks]
    return pa.chunked_array(chunks, plain_type(column.type))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type that `plain` makes of this one."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pa.types.is_fixed_size_binary(kind) and kind.byte_width == UUID_BYTES:
        return pa.string()
    if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_binary_view(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, plain_type(field.type)) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type), kind.list_size)
    if _is_list(kind):
        return pa.list_(plain_type(kind.value_type))
    return kind


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view, pa.types.is_large_list_view)
    return any(test(kind) for test in tests)


def _plain(values: pa.Array) -> pa.Array:
    kind, wanted = values.type, plain_type(values.type)
    if kind == wanted:
        return values
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(values.storage)
    if pa.types.is_dictionary(kind):
        return _plain(values.dictionary_decode())
    if pa.types.is_run_end_encoded(kind):
        return _plain(pc.run_end_decode(values))
    if pa.types.is_fixed_size_binary(kind) and kind.byte_width == UUID_BYTES:
        return pa.array([None if v is None else str(UUID(bytes=v)) for v in values.to_pylist()], pa.string())
    if pa.types.is_nested(kind):
        try:
            cast = values.cast(wanted)
            cast.validate()  # Arrow 26 casts list views to lists without an end
            return cast
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
            return pa.array(_uuids_as_text(values.to_pylist(), kind), wanted)
    return values.cast(wanted)


def _uuids_as_text(value: Any, kind: pa.DataType) -> Any:
    """Python values of a nested column; only 16 bytes become text."""
    if isinstance(value, bytes):
        return str(UUID(bytes=value)) if len(value) == UUID_BYTES and not pa.types.is_binary(kind) else value
    if isinstance(value, list):
        return [_uuids_as_text(part, kind) for part in value]
    if isinstance(value, tuple):
        return tuple(_uuids_as_text(part, kind) for part in value)
    if isinstance(value, dict):
        return {name: _uuids_as_text(part, kind) for name, part in value.items()}
    return str(value) if isinstance(value, UUID) else value


def common_type(kinds: Sequence[pa.DataType]) -> pa.DataType:
    """One type for all that changes no value: null yields, integers and floats each widen, all else is text.

    Not Arrow's own promotion: 2**53 + 1 among floats is another number, and text among bytes is no text any more.
    """
    kinds = [kind for kind in dict.fromkeys(kinds) if not pa.types.is_null(kind)]
    if len(kinds) < 2:
        return kinds[0] if kinds else pa.null()
    if all(pa.types.is_integer(kind) and kind != pa.uint64() for kind in kinds):
        return pa.int64()
    if all(pa.types.is_floating(kind) for kind in kinds):
        return pa.float64()
    if all(_is_list(kind) or pa.types.is_fixed_size_list(kind) for kind in kinds):
        parts = [kind.value_type for kind in kinds]
        part = common_type(parts)
        return pa.string() if part == pa.string() and set(parts) - {pa.string(), pa.null()} else pa.list_(part)
    return pa.string()


def as_type(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """The column in a type of `common_type`."""
    if column.type == kind:
        return column
    if pa.types.is_null(column.type):
        return pa.chunked_array([pa.nulls(len(column), kind)])
    if kind == pa.string():
        return as_text(column)
    return column.cast(kind, safe=False)


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Any column as text: floats keep their point (13085.0), bytes are UTF-8 or hexadecimal, nested values JSON."""
    kind = column.type
    if pa.types.is_string(kind):
        return column
    if pa.types.is_float32(kind):
        texts = [None if value is None else str(np.float32(value)) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])
    if pa.types.is_nested(kind) or pa.types.is_floating(kind) or pa.types.is_binary(kind):
        texts = [None if value is None else _text(value) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])
    return column.cast(pa.string())


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.hex()
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_text)
    return str(value)
