"""Cells that hold more than one value: a list or an object as JSON, as Python writes it, or as parquet keeps it.

read_cell('[{"aid": 1517085}]')   → [{"aid": "1517085"}]      numbers keep their spelling, as text
write_cell(["a", None])           → '["a", null]'             back to one cell
field_of(value, "genres.name")    → what stands at a path, through lists
"""

import ast
import json
from typing import Any

import msgspec

_ROWS = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_LONGEST_LITERAL = 1_000_000
"""Characters of a Python literal that are read: its parser takes a hundred bytes of memory a character."""


def read_cell(cell: Any) -> Any:
    """The value of a cell. Text that begins like a list or an object is read as one; ValueError where it is none."""
    if not isinstance(cell, str):
        return cell
    text = cell.strip()
    if text[:1] not in ("[", "{", "("):
        return cell
    try:
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError):
        pass
    if len(text) > _LONGEST_LITERAL:
        raise ValueError("neither JSON nor a short Python literal")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError("neither JSON nor a Python literal") from error


def names_of(cell: str, path: str) -> str | None:
    """What stands at a key of each object of a JSON list, as a JSON list: the usual case, quickly. None: read it."""
    if not cell.startswith("[") or "." in path:
        return None
    try:
        values = [row[path] for row in _ROWS.decode(cell) if path in row]
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None
    parts = [bytes(value) for value in values]
    if not parts or any(part[:1] in b"[{n" for part in parts):
        return None
    return f"[{b', '.join(parts).decode()}]"


def write_cell(value: Any) -> str | None:
    """A value as one cell: text as it is, lists and objects as JSON, true and false as JSON writes them."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple, dict, set)):
        return json.dumps(list(value) if isinstance(value, (tuple, set)) else value, ensure_ascii=False, default=str)
    return str(value)


def field_of(value: Any, path: str) -> Any:
    """What stands at `path` (`a`, `a.b`) of an object; of a list, the list of what stands there in each element."""
    if isinstance(value, (list, tuple)):
        found = [field_of(part, path) for part in value]
        flat = [one for part in found for one in (part if isinstance(part, list) else [part])]
        return [one for one in flat if one is not None] or None
    if not isinstance(value, dict):
        return None
    if path in value:
        return value[path]
    head, _, rest = path.partition(".")
    return field_of(value.get(head), rest) if rest else None
