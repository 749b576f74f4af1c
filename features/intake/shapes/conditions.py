"""Conditions on rows, as `--where` and `--value` take them: `is_click == 1 and event in (view, "add to cart")`.

    condition = parse_condition("rating >= 4")
    mask = condition.holds(table, find=lambda name: name)     boolean array, never null

A condition is comparisons (== != < <= > >=, in, not in; = and <> are read too) under and, or, not and brackets. Left
stands a column, in `backticks` or quotes where its name is more than one word; right a value. What is right decides how
is compared: a number or true/false as numbers (a cell that is none never fulfils it, except !=), anything else as text.
A cell without a value equals '' alone. No name is called and nothing is evaluated: a value is only ever a value.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from plumline.errors import InputError

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]+`)
    | (?P<op>==|!=|<>|<=|>=|=|<|>|&&?|\|\|?|!)
    | (?P<mark>[()\[\],])
    | (?P<word>[^\s()\[\]<>=!,&|"'`]+)
    )""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_MOST_WORDS = 100  # a hundred brackets are no condition but a slip, and Python's stack is finite
_EXAMPLE = "write it like price > 3 and event in (view, buy)"
Find = Callable[[str], str]
"""Name in a condition → column of the table."""


@dataclass(frozen=True)
class Condition:
    """text: as it was given. names: the columns it asks for, in order."""

    text: str
    names: tuple[str, ...]
    _node: "_Node"

    def holds(self, table: pa.Table, find: Find = str, nulls: Sequence[str] = ()) -> pa.ChunkedArray:
        """For each row whether it is fulfilled, never null. nulls: words that mean that a cell has no value."""
        answer = self._node(table, find, pa.array(sorted(set(nulls)), pa.string()))
        return pc.fill_null(answer, False)


_Node = Callable[[pa.Table, Find, pa.Array], Any]


def parse_condition(text: str, flag: str = "--where") -> Condition:
    """Raises InputError in one line that says where the text stops to be a condition."""
    parser = _Parser(text, flag)
    node = parser.either()
    if parser.peek():
        raise parser.error(f"{parser.peek()!r} is one word too many")
    return Condition(text, tuple(dict.fromkeys(parser.names)), node)


class _Parser:
    """Recursive descent over the words of a condition: either (or), both (and), one (not, brackets, a comparison)."""

    def __init__(self, text: str, flag: str) -> None:
        self.text, self.flag, self.names, self.depth = text, flag, list[str](), 0
        self.tokens: list[tuple[str, str]] = []  # kind, text
        at = 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if found is None:
                raise self.error(f"{text[at:].strip()[:20]!r} cannot be read")
            self.tokens.append((str(found.lastgroup), found[str(found.lastgroup)]))
            at = found.end()
        if not self.tokens:
            raise self.error("it is empty")
        self.at = 0

    def error(self, why: str) -> InputError:
        return InputError(f"{self.flag} {self.text!r}: {why}; {_EXAMPLE}")

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def take(self, *words: str) -> bool:
        """Whether the next word is one of these; then it is passed."""
        kind = self.tokens[self.at][0] if self.at < len(self.tokens) else ""
        if kind == "quoted" or self.peek().lower() not in words:
            return False
        self.at += 1
        return True

    def next(self, wanted: str) -> tuple[str, str]:
        if self.at >= len(self.tokens):
            raise self.error(f"it ends where {wanted} is wanted")
        self.at += 1
        return self.tokens[self.at - 1]

    def either(self) -> _Node:
        parts = [self.both()]
        while self.take("or", "|", "||"):
            parts.append(self.both())
        return _joined(parts, pc.or_)

    def both(self) -> _Node:
        parts = [self.one()]
        while self.take("and", "&", "&&"):
            parts.append(self.one())
        return _joined(parts, pc.and_)

    def one(self) -> _Node:
        self.depth += 1
        if self.depth > _MOST_WORDS:
            raise self.error(f"more than {_MOST_WORDS} comparisons, brackets and nots; say it with in (…)")
        if self.take("not", "!"):
            inner = self.one()
            return lambda table, find, nulls: pc.invert(inner(table, find, nulls))
        if self.take("("):
            inner = self.either()
            if not self.take(")"):
                raise self.error("a bracket is not closed")
            return inner
        return self.comparison()

    def comparison(self) -> _Node:
        kind, name = self.next("a column")
        if kind not in ("word", "quoted"):
            raise self.error(f"{name!r} stands where a column is wanted")
        name = name[1:-1] if kind == "quoted" else name
        self.names.append(name)
        if self.take("not"):
            if not self.take("in"):
                raise self.error("after not in is wanted")
            return _compared(name, "not in", self.values())
        if self.take("in"):
            return _compared(name, "in", self.values())
        kind, op = self.next("== != < <= > >= or in")
        if kind != "op" or op in ("&", "&&", "|", "||", "!"):
            raise self.error(
                f"{op!r} stands where == != < <= > >= or in is wanted (`two words` of a name take backticks)"
            )
        return _compared(name, {"=": "==", "<>": "!="}.get(op, op), [self.value()])

    def value(self) -> str | float | int:
        kind, word = self.next("a value")
        if kind == "quoted":
            return re.sub(r"\\(.)", r"\1", word[1:-1])
        if kind != "word":
            raise self.error(f"{word!r} stands where a value is wanted")
        if word.lower() in ("true", "false"):
            return int(word.lower() == "true")
        if _NUMBER.fullmatch(word):
            return int(word) if re.fullmatch(r"[+-]?\d{1,18}", word) else float(word)
        return word

    def values(self) -> list[Any]:
        if not self.take("(", "["):
            raise self.error("after in a list in brackets is wanted")
        found = [self.value()]
        while self.take(","):
            found.append(self.value())
        if not self.take(")", "]"):
            raise self.error("the list after in is not closed")
        return found


def _joined(parts: list[_Node], join: Callable[[Any, Any], Any]) -> _Node:
    def node(table: pa.Table, find: Find, nulls: pa.Array) -> Any:
        answer = parts[0](table, find, nulls)
        for part in parts[1:]:
            answer = join(answer, part(table, find, nulls))
        return answer

    return node


_OPS = {"==": pc.equal, "!=": pc.equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}


def _compared(name: str, op: str, values: list[Any]) -> _Node:
    """A comparison; != and not in are the opposite of == and in, and so hold for a cell without a value too."""

    def node(table: pa.Table, find: Find, nulls: pa.Array) -> Any:
        column = table.column(find(name))
        answer = pa.chunked_array([pa.array([False] * table.num_rows, pa.bool_())])
        text = as_text(column, nulls) if any(isinstance(value, str) for value in values) else None
        numbers = _as_numbers(column) if any(not isinstance(value, str) for value in values) else None
        for value in values:
            if isinstance(value, str) and text is not None:
                one = pc.equal(text, "") if value == "" else _OPS.get(op, pc.equal)(_valued(text), value)
            else:
                floats = numbers is not None and pa.types.is_floating(numbers.type)
                one = _OPS.get(op, pc.equal)(numbers, float(value) if floats else value)
            answer = pc.or_(answer, pc.fill_null(one, False))
        return pc.invert(answer) if op in ("!=", "not in") else answer

    return node


def _valued(text: Any) -> Any:
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def as_text(column: Any, nulls: pa.Array | None = None) -> Any:
    """Cells as text; what is missing, and words that say so, as an empty text. Times read like 2024-01-31 10:00:00."""
    kind = column.type
    if pa.types.is_nested(kind):
        raise InputError(f"a condition cannot compare a list or an object ({kind}); map a field of it, or explode it")
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us", tz=kind.tz), safe=False).cast(pa.timestamp("us"))
        column = pc.replace_substring_regex(column.cast(pa.string()), r"\.0+$", "")
    text = pc.fill_null(pc.utf8_trim_whitespace(column.cast(pa.string())), "")
    if nulls is not None and len(nulls):
        text = pc.if_else(pc.is_in(text, value_set=nulls), "", text)
    return text


def _as_numbers(column: Any) -> Any:
    """Cells as numbers, true and false as 1 and 0, what is no number as null."""
    kind = column.type
    if pa.types.is_boolean(kind):
        return column.cast(pa.int8())
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return column
    if pa.types.is_decimal(kind):
        return column.cast(pa.float64())
    text = pc.utf8_lower(as_text(column))
    text = pc.if_else(pc.equal(text, "true"), "1", pc.if_else(pc.equal(text, "false"), "0", text))
    whole = pc.match_substring_regex(text, r"^[+-]?[0-9]{1,18}$")
    if pc.all(pc.or_(whole, pc.equal(text, ""))).as_py():  # ids of 18 digits do not fit into a float
        return pc.if_else(whole, pc.replace_substring_regex(text, r"^\+", ""), pa.scalar(None, pa.string())).cast(
            pa.int64()
        )
    number = pc.match_substring_regex(text, r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?$")
    return pc.if_else(number, text, pa.scalar(None, pa.string())).cast(pa.float64())
