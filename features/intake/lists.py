"""Lists in one cell: JSON, Python's and NumPy's way to print them, PostgreSQL's {a,b}, a|b|c, a;b, a, b.

    parse_list('["a", null]')           ["a"]           a list that went through text, whichever program wrote it
    parse_list("Home, Garden & Tools")  None            no list: split_text does what the column asks for

    column = TopicsColumn("topics", ("genres", "tags"), words, tally)
    column.look([values, …], places)    every block once: what stands between the topics of a text
    column.decide()
    column.read([values, …], places)    every block again, as list<string>, null where there is none

The text of a column is split at |, else at ;, else at commas; not at commas where other rows hold lists, or where what
is between them is no topic of its own ("Home, Garden & Tools", "Toys, Games").
"""

import ast
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.intake.findings import Places, Tally
from features.intake.words import Words, as_text, is_listed, is_textual, read_json

_QUOTED = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_QUOTED_LIST = re.compile(rf"[\[{{]\s*(?:{_QUOTED}(?:\s*,\s*|\s+|(?=['\"])))*{_QUOTED}?\s*,?\s*[\]}}]", re.S)
_ARRAY = re.compile(r"array\((.*?)(?:,\s*dtype=[\w<>'\"]+)?\)", re.S)
_BARE = re.compile(r"\{[^{}\[\]\"':]*\}|\[[^{}\[\]\"]*\]")  # PostgreSQL's {a,b} and Java's [a, b]
_NUMBERS = re.compile(r"\[[\s0-9.eE+\-]*\]")  # NumPy: [1 2 3]
_ENTITY = re.compile(r"&#?\w+;")  # &amp;
_NO_TOPIC = frozenset({"(no genres listed)"})
_CLOSING = {"[": "]", "{": "}"}
_MOST_TEXTS = 20_000  # different texts by which it is decided whether commas split them
_FEW_TEXTS = 5
_DEEPEST = 20  # lists in lists
_LONGEST_LITERAL = 1_000_000  # characters; Python's parser takes a hundred bytes of memory for each
_BROKEN: list[str] = []  # compared by identity: no list, and no object either


def parse_list(text: str) -> list[Any] | None:
    """The parts of a list that was written as text; None if it is none, or a broken one.

    Numbers stay as they are written; parts may be None, dicts or lists.
    """
    array = _ARRAY.fullmatch(text)
    text = array[1].strip() if array else text
    if len(text) < 2 or text[-1] != _CLOSING.get(text[0]):  # no list, or one that was cut off
        return None
    if text[0] == "[":
        parts = read_json(text)
        if parts is not None:
            return list(parts)
    if _QUOTED_LIST.fullmatch(text):  # before ast, which joins 'a' 'b' to 'ab'
        return [_unquote(part) for part in re.findall(_QUOTED, text, re.S)]
    if _NUMBERS.fullmatch(text):
        return list(text[1:-1].split())
    value = _literal(text)
    if isinstance(value, list | tuple | set):
        return list(value)
    if _BARE.fullmatch(text):
        return [part.strip().strip("'") for part in text[1:-1].split(",")]
    return None


def _unquote(quoted: str) -> str:
    value = _literal(quoted)
    return value if isinstance(value, str) else quoted[1:-1]  # a line break inside


def _literal(text: str) -> Any:
    """What a Python literal says; None where it is none."""
    if len(text) > _LONGEST_LITERAL:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd backslash is no news
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _is_object(text: str) -> bool:
    return isinstance(read_json(text), dict) or isinstance(_literal(text), dict)


def is_bracketed(text: str) -> bool:
    """Whether a text opens like a list."""
    return text[:1] in ("[", "{") or text.startswith("array([")


def flatten(parts: Sequence[Any], words: Words, depth: int = 0) -> list[str] | None:
    """Texts of a list, lists in it unfolded, null words and doubles left out; None if it holds objects."""
    if depth > _DEEPEST:
        return None
    found: dict[str, None] = {}
    for part in parts:
        if isinstance(part, dict):
            return None
        if isinstance(part, list | tuple | set):
            inner = flatten(list(part), words, depth + 1)
            if inner is None:
                return None
            found |= dict.fromkeys(inner)
        elif part is not None and part == part:
            text = str(part).lower() if isinstance(part, bool) else str(part).strip()
            if text not in words and text not in _NO_TOPIC:
                found[text] = None
    return list(found)


class TextLists:
    """One source column whose cells are lists, or texts to be split."""

    def __init__(self, name: str, source: str, words: Words, tally: Tally) -> None:
        self._name, self._source, self._words, self._tally = name, source, words, tally
        self._has_lists = self._has_bars = self._has_semicolons = False
        self._texts: dict[str, None] = {}
        self.separator: str | None = None

    def look(self, values: pa.Array) -> None:
        """See one block: what its texts look like."""
        if not is_textual(values.type):
            self._has_lists = self._has_lists or is_listed(values.type)
            return
        for text in pc.unique(self._words.clean(values)).drop_null().to_pylist():
            if is_bracketed(text):
                self._has_lists = self._has_lists or parse_list(text) is not None
            else:
                self._has_bars = self._has_bars or "|" in text
                self._has_semicolons = self._has_semicolons or ";" in _ENTITY.sub("", text)
                if len(self._texts) < _MOST_TEXTS:
                    self._texts[text] = None

    def decide(self) -> None:
        """What stands between the parts of a text."""
        if self._has_bars:
            self.separator = "|"
        elif self._has_semicolons:
            self.separator = ";"
        elif any("," in text for text in self._texts):
            self.separator = "," if not self._has_lists and _is_split_by_commas(self._texts) else None
            if self.separator is None:
                self._tally.note(
                    self._name, f"is not split at commas (column {self._source}); JSON lists leave no doubt"
                )
        if self.separator:
            self._tally.note(self._name, f"is split at {self.separator!r} (column {self._source})")

    def read(self, values: pa.Array, places: Places) -> list[list[str]]:
        """The parts of every cell of a block, none for an empty one."""
        if pa.types.is_nested(values.type):
            rows = values.to_pylist()
            is_list = is_listed(values.type)
            found = [[] if row is None else flatten(row, self._words) if is_list else None for row in rows]
        else:
            self._tally.nulled(self._name, self._words, values, places)
            coded = self._words.clean(as_text(values)).dictionary_encode()
            parse = self._parse if is_textual(values.type) else self._take
            each = [parse(text) for text in coded.dictionary.to_pylist()]
            found = [[] if code is None else each[code] for code in coded.indices.to_pylist()]
        advice = f"read a field of them with --map {self._name}={self._source}.name"
        is_object = np.array([row is None for row in found], dtype=bool)
        is_broken = np.array([row is _BROKEN for row in found], dtype=bool)
        what = "holds objects instead of texts and is left empty"
        self._tally.add(self._name, what, is_object, values, places, advice=advice)
        self._tally.add(self._name, "opens like a list but is none and is left empty", is_broken, values, places)
        return [row or [] for row in found]

    def _take(self, text: str) -> list[str] | None:
        return flatten([text], self._words)

    def _parse(self, text: str) -> list[str] | None:
        if is_bracketed(text):
            parts = parse_list(text)
            if parts is not None:
                return flatten(parts, self._words)
            return None if _is_object(text) else _BROKEN
        return flatten(text.split(self.separator) if self.separator else [text], self._words)


def _is_split_by_commas(texts: Sequence[str] | dict[str, None]) -> bool:
    """Whether what is between the commas are topics of their own: some come back in other company."""
    splits = [[part.strip() for part in text.split(",")] for text in texts]
    joined = [parts for parts in splits if len(parts) > 1]
    named = sum(bool(re.search(r"(^|\s)(&|and)\s", parts[-1])) for parts in joined)  # Home, Garden & Tools
    if 2 * named > len(joined):
        return False
    if len(joined) < _FEW_TEXTS:
        return True
    counts = Counter(part for parts in splits for part in set(parts))
    return sum(counts[part] > 1 for parts in joined for part in parts) >= 0.1 * sum(map(len, joined))


class TopicsColumn:
    """`topics` of items: the union of some columns, with more than one each value as `column:value`."""

    def __init__(self, name: str, sources: Sequence[str], words: Words, tally: Tally) -> None:
        self.name, self._sources = name, tuple(sources)
        self._columns = [TextLists(name, source, words, tally) for source in sources]

    def look(self, values: Sequence[pa.Array], places: Places) -> None:
        """See one block: one array a source column."""
        for column, one in zip(self._columns, values, strict=True):
            column.look(one)

    def decide(self) -> None:
        """What stands between the topics of a text."""
        for column in self._columns:
            column.decide()

    def read(self, values: Sequence[pa.Array], places: Places) -> pa.Array:
        """Topics of a block as list<string>; null where there is none."""
        rows: list[dict[str, None]] = [{} for _ in range(len(values[0]))]
        for source, column, one in zip(self._sources, self._columns, values, strict=True):
            prefix = f"{source}:" if len(self._sources) > 1 else ""
            for row, topics in zip(rows, column.read(one, places), strict=True):
                row.update(dict.fromkeys(f"{prefix}{topic}" for topic in topics))
        return pa.array([list(row) or None for row in rows], pa.list_(pa.string()))
