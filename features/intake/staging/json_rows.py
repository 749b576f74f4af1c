r"""Lines of JSON → columns of text, each value as it is spelt: 13085.0 and 1e5 stay, nothing is inferred.

    table = JsonRows(name, said).table(data, lines)     data: objects, each ended by a line feed; lines: of each

A string is its text, null is null, true and numbers are their spelling, lists and objects are compact JSON. msgspec
finds the values of a line without reading them. What it refuses (NaN), and lines that are longer than their keys and
values, which a key given twice makes them, are read by Python's json module, which says what is wrong and where.
"""

import ast
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.intake.staged import LINE, refuse_ours
from plumline.errors import InputError

Notes = list[tuple[str, str]]
"""(file, what is not read as it stands)."""
MOST_COLUMNS = 4096
"""Different keys that a file may have; with more of them the keys are data."""
_HALF = re.compile("[\ud800-\udfff]")
_RAW = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ABSENT = msgspec.Raw(b"")  # no value of JSON is empty
_ODD = re.compile(r'[\\"\x00-\x1f]')  # signs that msgspec takes in no field
_LONGEST_LITERAL = 1 << 20  # characters; Python's own parser takes a hundred bytes for each
_MOST_KNOWN = 256  # keys of which a decoder is made


class Number(str):
    """A number, NaN or Infinity as it is spelt."""


class Pairs(list[tuple[str, Any]]):
    """An object as its keys and values, those given twice too."""


_SPELT = json.JSONDecoder(object_pairs_hook=Pairs, parse_float=Number, parse_int=Number, parse_constant=Number)


class JsonRows:
    """The rows of one file; the keys met so far are kept, for lines of known keys are taken apart twice as fast."""

    def __init__(self, name: str, said: Notes) -> None:
        """said: takes a note of what is not as it stands."""
        self._name, self._said = name, said
        self._keys: dict[str, None] = {}
        self._known: msgspec.json.Decoder | None = None

    def table(self, data: bytes, lines: np.ndarray) -> pa.Table:
        """The columns met so far, in order of first appearance, and LINE. Raises InputError with the line."""
        columns = self._by_msgspec(data, len(lines))
        if columns is None:
            columns = _by_python(self._name, data, lines, self._said)
        if len(columns.keys() | self._keys) > MOST_COLUMNS:
            raise InputError(
                f"{self._name}: more than {MOST_COLUMNS} keys by line {lines[-1]} ({list(columns)[-1]!r}, …); "
                "keys that are data belong into a value"
            )
        if columns.keys() - self._keys:
            refuse_ours(self._name, columns)
            self._keys |= dict.fromkeys(columns)
            self._known = _decoder(self._keys)
        return pa.table({**columns, LINE: pa.array(lines, pa.int64())})

    # --- 1. FAST ---

    def _by_msgspec(self, data: bytes, num_rows: int) -> dict[str, pa.Array] | None:
        """None where it cannot be told that Python's reader would say the same."""
        try:
            raw = self._raw_by_known_keys(data)
            if raw is None:
                raw = _raw_by_any_keys(data)
            if raw is None or not _is_all(data, raw, num_rows):
                return None
            return {name: _text(values) for name, values in raw.items()}
        except (msgspec.DecodeError, pa.ArrowInvalid, ValueError, RecursionError):
            return None

    def _raw_by_known_keys(self, data: bytes) -> dict[str, pa.Array] | None:
        """Each value as it stands; None if there are other keys."""
        if self._known is None:
            return None
        try:
            rows = self._known.decode_lines(data)
        except msgspec.ValidationError:
            return None
        return {
            key: pa.array(map(bytes, map(attrgetter(f"f{number}"), rows)), pa.binary(), size=len(rows))
            for number, key in enumerate(self._keys)
        }


def _decoder(keys: Iterable[str]) -> msgspec.json.Decoder | None:
    names = {f"f{number}": key for number, key in enumerate(keys)}
    if len(names) > _MOST_KNOWN or any(_ODD.search(key) for key in names.values()):
        return None
    fields = [(name, msgspec.Raw, _ABSENT) for name in names]
    row = msgspec.defstruct("Row", fields, rename=names.get, forbid_unknown_fields=True, gc=False)
    return msgspec.json.Decoder(row)


def _raw_by_any_keys(data: bytes) -> dict[str, pa.Array] | None:
    rows = _RAW.decode_lines(data)
    keys = dict.fromkeys(key for layout in dict.fromkeys(map(tuple, rows)) for key in layout)
    if len(keys) > MOST_COLUMNS:
        return None
    return {key: pa.array([bytes(row.get(key, _ABSENT)) for row in rows], pa.binary()) for key in keys}


def _is_all(data: bytes, raw: Mapping[str, pa.Array], num_rows: int) -> bool:
    """Whether so many lines hold their keys and values, the signs between them, and nothing else.

    A line is longer than that if a key is given twice, if more than one object stands on it, or if blanks stand
    elsewhere than in the first line. The signs: `{"a":1,"b":2}` or with a blank after colons, commas, or both; which
    of these it is the first line tells, so that one is looked at by itself.
    """
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == 10)
    if len(ends) != num_rows or _has_doubled(data[: ends[0]]):
        return False
    surplus = np.diff(ends, prepend=-1) - 1
    if b"\r" in data:
        surplus = surplus - (np.frombuffer(data, np.uint8)[np.maximum(ends - 1, 0)] == 13)
    number = np.zeros(num_rows, np.int64)
    for name, values in raw.items():
        length = len(json.dumps(name, ensure_ascii=False).encode("utf-8", "replace"))
        lengths = pc.binary_length(values).to_numpy()
        if len(lengths) != num_rows:
            return False
        there = lengths > 0
        surplus = surplus - there * length - lengths
        number += there
    commas = np.maximum(number - 1, 0)
    bare = 2 + number + commas
    return any(bool((surplus == bare + blanks).all()) for blanks in (0, number + commas, number, commas))


def _has_doubled(line: bytes) -> bool:
    pairs = _SPELT.decode(line.decode("utf-8"))
    return len(dict(pairs)) < len(pairs)


def _text(raw: pa.Array) -> pa.Array:
    """Values as they stand in JSON → their text."""
    quoted = pc.starts_with(raw, b'"')
    text = pc.if_else(quoted, pc.binary_slice(raw, 1, -1), raw)
    null = pc.or_(pc.equal(raw, b"null"), pc.equal(raw, b""))
    text = pc.if_else(null, pa.scalar(None, pa.binary()), text)
    care = pc.or_(
        pc.and_(quoted, pc.match_substring(raw, b"\\")), pc.or_(pc.starts_with(raw, b"{"), pc.starts_with(raw, b"["))
    )
    if pc.any(care).as_py():
        text = pc.replace_with_mask(text, care, pa.array(map(_careful, raw.filter(care).to_pylist()), pa.binary()))
    return text.cast(pa.string())


def _careful(raw: bytes) -> bytes:
    """A string with escapes, or a nested value."""
    if raw[:1] == b'"' or b"\\" in raw:
        return spelling(_SPELT.decode(raw.decode("utf-8")), nested=False).encode("utf-8")
    return msgspec.json.format(raw, indent=-1)


# --- 2. EXACT ---


def _by_python(name: str, data: bytes, lines: np.ndarray, said: Notes) -> dict[str, pa.Array]:
    texts = data.decode("utf-8").split("\n")[:-1]
    rows = [_cells(f"{name}: line {at}", text, said) for at, text in zip(lines, texts, strict=True)]
    names = list(dict.fromkeys(key for row in rows for key in row))[: MOST_COLUMNS + 1]
    return {key: pa.array([row.get(key) for row in rows], pa.string()) for key in names}


def _cells(at: str, line: str, said: Notes) -> dict[str, str | None]:
    """Column → text of one line."""
    try:
        value = _value(at, line, said)
        if not isinstance(value, Pairs):
            raise InputError(f"{at}: {kind_of(value)}, not an object; one {{…}} a row is wanted")
        row = {_HALF.sub("\ufffd", key): None if part is None else spelling(part, nested=False) for key, part in value}
    except RecursionError:
        raise InputError(f"{at}: nested too deep to be read; mend or remove it") from None
    if len(row) < len(value):
        keys = [key for key, _ in value]
        doubled = next((key for key in keys if keys.count(key) > 1), keys[-1])
        raise InputError(f"{at}: key {doubled!r} is given twice in one object; rename or remove one")
    return row


def _value(at: str, line: str, said: Notes) -> Any:
    try:
        return _SPELT.decode(line)
    except json.JSONDecodeError as error:
        value = _python_literal(line)
        if value is None:
            raise InputError(f"{at}: no JSON ({error.msg} at character {error.pos + 1}); mend or remove it") from None
        if not said:
            said.append((at, "and others are no JSON but what Python prints, and are read as that"))
        return value


def kind_of(value: Any) -> str:
    """What a JSON value is, for a message."""
    if isinstance(value, list):
        return "a list"
    return "null" if value is None else "a number" if isinstance(value, Number) else f"a {type(value).__name__}"


def _python_literal(line: str) -> Pairs | None:
    """A dict as Python prints it, {'a': u'x', 'b': None}: public logs have them. None if it is none."""
    if len(line) > _LONGEST_LITERAL or not re.match(r"\s*\{\s*[ub]?['\"]", line):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\d" in a text is a SyntaxWarning
        try:
            value = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    return _as_pairs(value) if isinstance(value, dict) else None


def _as_pairs(value: Any) -> Any:
    if isinstance(value, dict):
        return Pairs((key if isinstance(key, str) else str(key), _as_pairs(part)) for key, part in value.items())
    if isinstance(value, (list, tuple, set)):
        return [_as_pairs(part) for part in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if value is None or isinstance(value, (bool, str)) else Number(value)


def spelling(value: Any, *, nested: bool) -> str:
    """A value as text: a string as it is, or quoted within a nested value; numbers as they were spelt."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, str):
        text = _HALF.sub("\ufffd", value)  # half of a pair of surrogates: a text that was cut within an emoji
        return json.dumps(text, ensure_ascii=False) if nested else text
    if isinstance(value, Pairs):
        parts = (f"{spelling(key, nested=True)}:{spelling(part, nested=True)}" for key, part in value)
        return "{" + ",".join(parts) + "}"
    if isinstance(value, list):
        return "[" + ",".join(spelling(part, nested=True) for part in value) + "]"
    return {None: "null", True: "true", False: "false"}[value]
