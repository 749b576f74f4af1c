"""Tags of the items, ready to be asked: which positions have a value, lie below a number, were published since.

Not a stage. Rules (`models/retrieval/rules.py`) are evaluated against every item of an index, for every request;
comparing text a million times a request is out of the question. So a column of text is dictionary-encoded once, when it
is first asked for, and a question is one comparison of whole numbers; a column of lists becomes the rows of each value
(an inverted index). Positions are those of the index, not those of the catalogue.
"""

from __future__ import annotations

import operator
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.retrieval.bits import Bits
from plumline.errors import InputError

TAG_COLUMNS = ("channel", "topics", "language", "duration_s", "price")
"""Columns of the items contract that are tags under their own names."""

COMPARISONS = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
}
"""What a number can be asked: operator → NumPy's function of values and number."""

_PREFIX = "tag_"
_UNKNOWN_MS = -(2**63)
_MANY_VALUES = 8  # from here on looking every code up in a table is faster than comparing with each value
_NUM_SHOWN, _LONG_VALUE = 8, 40  # of the values in a message
_NUM_REMEMBERED = 256  # at a million items an eighth of a megabyte each, 0.6 where its ranks were asked for


@dataclass(frozen=True, eq=False)
class _Text:
    """A text an item. codes: (size,) int32, -1 for none; code_of: text → code."""

    codes: np.ndarray
    code_of: dict[str, int]


@dataclass(frozen=True, eq=False)
class _Lists:
    """A list of texts an item. The rows of code c are rows[starts[c]:starts[c+1]]; code_of: text → code."""

    rows: np.ndarray
    starts: np.ndarray
    code_of: dict[str, int]


class Tags:
    """Columns of the items in the order of the index positions; threads may share one object."""

    def __init__(
        self, columns: Mapping[str, pa.Array | pa.ChunkedArray], published_ms: np.ndarray | None, size: int
    ) -> None:
        """Columns of `size` values each: text, list of text, number or boolean (read as 0 and 1), with nulls.

        published_ms: (size,) int64 epoch milliseconds, -2**63 where unknown; None: of no item known.
        Raises InputError for a column of another type or length.
        """
        self.size = size
        self._published_ms = published_ms
        self._columns = {name: _plain(column) for name, column in columns.items()}
        for name, column in self._columns.items():
            if len(column) != size:
                raise InputError(f"tag {name!r} has {len(column)} values; one for each of {size} items is needed")
            if not (_is_text(column.type) or _is_list(column.type) or _is_number(column.type)):
                raise InputError(
                    f"tag {name!r} is {column.type}; give text, lists of text, numbers or booleans, or leave it out"
                )
        self._encoded: dict[str, _Text | _Lists | np.ndarray] = {}
        self._encoding = threading.Lock()
        self._remembered: OrderedDict[Hashable, Bits] = OrderedDict()
        self._remembering = threading.Lock()

    @classmethod
    def of(cls, items: pa.Table) -> Tags:
        """Tags of an items table: `TAG_COLUMNS`, every `tag_<name>` as <name> (it wins over a column of TAG_COLUMNS).

        Column `published_ms` (int64 epoch milliseconds, nullable), if there, says when an item was published.
        """
        carriers = sorted(tag_columns(items.schema), key=lambda name: name.startswith(_PREFIX))
        columns = {name.removeprefix(_PREFIX): items.column(name) for name in carriers}
        published_ms = None
        if "published_ms" in items.column_names:
            published_ms = pc.fill_null(items.column("published_ms").cast(pa.int64()), _UNKNOWN_MS).to_numpy()
        return cls(columns, published_ms, items.num_rows)

    @property
    def names(self) -> tuple[str, ...]:
        """What can be asked for, sorted."""
        return tuple(sorted(self._columns))

    def encode(self) -> None:
        """Bring every column into the form that questions need, which else happens when it is first asked for."""
        for name in self.names:
            self._column(name)

    def has(self, name: str, *values: str) -> Bits:
        """Positions whose text is one of the values, or whose list holds one. A value that no item has finds none.

        Raises InputError for an unknown name, or one that holds numbers.
        """
        column = self._column(name)
        if isinstance(column, np.ndarray):
            raise InputError(f'tag {name!r} holds numbers; write {name} < 20 (<= > >= == !=; true: 1), not {name}("…")')
        codes = [column.code_of[value] for value in values if value in column.code_of]
        if isinstance(column, _Lists):
            mask = np.zeros(self.size, dtype=bool)
            for code in codes:
                mask[column.rows[column.starts[code] : column.starts[code + 1]]] = True
            return Bits.of(mask)
        if len(codes) <= _MANY_VALUES:
            return reduce(operator.or_, (Bits.of(column.codes == code) for code in codes), Bits.empty(self.size))
        wanted = np.zeros(len(column.code_of) + 1, dtype=bool)  # the last place is that of code -1
        wanted[codes] = True
        return Bits.of(wanted.take(column.codes, mode="wrap"))

    def compare(self, name: str, op: str, number: float) -> Bits:
        """Positions whose value is <, <=, >, >=, == or != the number; a missing value is none of them.

        Raises InputError for an unknown name, or one that holds text.
        """
        values = self._column(name)
        if not isinstance(values, np.ndarray):
            raise InputError(f'tag {name!r} holds text; write {name}("value"), not {name} {op} {number:g}')
        mask = COMPARISONS[op](values, number)
        if op == "!=":
            mask &= values == values  # NaN, a missing value, differs from every number
        return Bits.of(mask)

    def since(self, cutoff_ms: int) -> Bits:
        """Positions published at the cutoff (epoch milliseconds) or later; never one of unknown time."""
        if self._published_ms is None or cutoff_ms >= 2**63:
            return Bits.empty(self.size)
        return Bits.of(self._published_ms >= max(cutoff_ms, _UNKNOWN_MS + 1))

    def values(self, name: str) -> str:
        """What a tag can be asked for, in words: the range of a number, the texts that most items have."""
        column = self._column(name)
        if isinstance(column, np.ndarray):
            known = column[~np.isnan(column)]
            return f"{name} goes from {known.min():g} to {known.max():g}" if len(known) else f"no item has any {name}"
        if isinstance(column, _Lists):
            counts = np.diff(column.starts)
        else:
            counts = np.bincount(column.codes[column.codes >= 0], minlength=len(column.code_of))
        texts, order = list(column.code_of), np.argsort(-counts, kind="stable")
        if not len(order):
            return f"no item has any {name}"
        shown = ", ".join(repr(texts[code][:_LONG_VALUE]) for code in order[:_NUM_SHOWN])
        return f"{name} is one of {len(order):,}: {shown}" + (" …" if len(order) > _NUM_SHOWN else "")

    def published(self) -> str:
        """When the items were published, in words."""
        known = np.array([]) if self._published_ms is None else self._published_ms[self._published_ms > _UNKNOWN_MS]
        if not len(known):
            return "no item's time of publication is known"
        first, last = (datetime.fromtimestamp(int(ms) / 1000, UTC) for ms in (known.min(), known.max()))
        return f"items were published from {first:%Y-%m-%d} to {last:%Y-%m-%d}"

    def remember(self, key: Hashable, find: Callable[[], Bits]) -> Bits:
        """What was found under this key, or else find it now; the 256 that were asked for last are kept."""
        with self._remembering:
            if key in self._remembered:
                self._remembered.move_to_end(key)
                return self._remembered[key]
        found = find()  # without the lock: two threads may find the same, neither waits for the other's rule
        with self._remembering:
            self._remembered[key] = found
            if len(self._remembered) > _NUM_REMEMBERED:
                self._remembered.popitem(last=False)
        return found

    def _column(self, name: str) -> _Text | _Lists | np.ndarray:
        if name not in self._columns:
            raise InputError(f"no tag {name!r}; there are {list(self.names)}")
        if name not in self._encoded:
            with self._encoding:  # one thread encodes, the others of the first requests wait
                if name not in self._encoded:
                    self._encoded[name] = _encode(self._columns[name])
        return self._encoded[name]


def tag_columns(schema: pa.Schema) -> list[str]:
    """Columns of an items table that carry tags, in the order of the table."""
    return [name for name in schema.names if name in TAG_COLUMNS or name.startswith(_PREFIX)]


def _encode(column: pa.Array) -> _Text | _Lists | np.ndarray:
    if _is_number(column.type):
        return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)  # null becomes NaN
    if _is_text(column.type):
        return _encode_text(column)
    # 1. One code a value of a list, in the order of the rows.
    text = _encode_text(_plain(pc.list_flatten(column)))
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    # 2. Sorted by code, ties by row; where the codes fit into 16 bits NumPy sorts by radix, many times as fast.
    codes = text.codes.astype(np.int16) if len(text.code_of) < 2**15 else text.codes
    order = np.argsort(codes, kind="stable")
    rows = np.repeat(np.arange(len(column), dtype=np.int32), lengths)[order]
    # 3. Missing values (-1) stand first, before the start of code 0.
    starts = np.searchsorted(codes[order], np.arange(len(text.code_of) + 1))
    return _Lists(rows, starts, text.code_of)


def _encode_text(column: pa.Array) -> _Text:
    encoded = column.cast(pa.string()).dictionary_encode()
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    return _Text(codes, {value: code for code, value in enumerate(encoded.dictionary.to_pylist())})


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _is_text(kind: pa.DataType) -> bool:
    """A column of nulls alone counts as text: nobody has any value of it."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def _is_list(kind: pa.DataType) -> bool:
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
