"""`tag_*` columns of items: text, lists of text, numbers or booleans, one type a home.

    column = TagColumn("tag_size", words, facts.tags.get("tag_size"), tally)
    column.look(values, places)     every block once: which types its cells could have
    column.decide()                 the home's type, or that of the first delivery
    column.read(values, places)     every block again; None where no row has a value

A cell of CSV is text whatever it looks like, a list in it aside; a number or a boolean of JSON is one.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.intake.facts import TAG_TYPES, Known, tag_type
from features.intake.findings import Finding, Places, Tally, show
from features.intake.lists import flatten, is_bracketed, parse_list
from features.intake.words import Words, as_text, is_textual

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")  # of JSON: no leading zero
_TRUTHS = {"true": True, "false": False}
_JSON = re.compile(r"\.(json|jsonl|ndjson)(\.\w+)?$", re.I)


class TagColumn:
    """One tag. home: the type that landed before."""

    def __init__(self, name: str, words: Words, home: Known | None, tally: Tally) -> None:
        self.name, self._words, self._home, self._tally = name, words, home, tally
        self._could_be = set(TAG_TYPES)  # types that every cell so far could be
        self._is_known = False
        self._first: dict[str, tuple[str | None, str, int]] = {}  # first cell that is not of a type
        self.type: str | None = None

    def look(self, values: pa.Array, places: Places) -> None:
        """See one block."""
        kind = values.type
        if pa.types.is_null(kind):
            return
        if not is_textual(kind):
            named = tag_type(kind)
            present = values.is_valid().to_numpy(zero_copy_only=False)
            if named is None:
                what = f"is {kind}, which is no tag (text, lists of text, numbers, booleans), and is left empty"
                self._tally.add(self.name, what, present, values, places)
            elif present.any():
                self._is_known = True
                for other in TAG_TYPES:
                    if other != named:
                        self._rule_out(other, present, values, places)
            return
        text = self._words.clean(as_text(values))
        if not len(text):
            return
        is_json = bool(_JSON.search(places.file(0)))
        self._is_known = self._is_known or text.null_count < len(text)
        coded = text.dictionary_encode()
        cells = coded.dictionary.to_pylist()
        for named in tuple(TAG_TYPES):
            if named == "text" or (named in self._first and not self._is_home(named)):
                continue
            if named in ("numbers", "booleans") and not is_json and not self._is_home(named):
                self._could_be.discard(named)
                continue
            wrong = pa.array([self._parse(cell, named) is None for cell in cells], pa.bool_())
            self._rule_out(named, pc.fill_null(wrong.take(coded.indices), False), text, places)

    def _is_home(self, named: str) -> bool:
        return self._home is not None and self._home.value == named

    def _rule_out(self, named: str, bad: Any, values: pa.Array, places: Places) -> None:
        mask = bad if isinstance(bad, np.ndarray) else bad.to_numpy(zero_copy_only=False)
        count = int(mask.sum())
        if count:
            self._could_be.discard(named)
            row = int(mask.argmax())
            example, where, before = self._first.get(named, (None, "", 0))
            if not before:
                example, where = show(values[row]), places.at(row)
            self._first[named] = (example, where, before + count)

    def decide(self) -> None:
        """The type of the column, from the home or from what was seen."""
        if not self._is_known:
            self.type = self._home.value if self._home else None
            return
        preferred = ("booleans", "numbers", "lists of text", "text")
        self.type = self._home.value if self._home else next((t for t in preferred if t in self._could_be), "text")
        if self.type in self._could_be or self.type not in self._first:
            return
        example, where, count = self._first[self.type]
        advice = f"deliver {self.type}, or give the new ones a name of their own (tag_<name>)"
        there = f"the {self.type} that {self.name} has in {self._home.source}" if self._home else self.type
        what = f"is not one of {there}"
        self._tally.put(Finding(self._tally.noun, self.name, what, count, example, where, "problem", advice))

    def read(self, values: pa.Array, places: Places) -> pa.Array | None:
        """Tags of a block in the column's type; None if there is neither a value nor a type."""
        if self.type is None:
            self._tally.note(self.name, "is left out, no row has a value")
            return None
        kind = TAG_TYPES[self.type]
        if tag_type(values.type) is None:
            return pa.nulls(len(values), kind)
        if is_textual(values.type):
            self._tally.nulled(self.name, self._words, values, places)
        if self.type == "text":
            return self._words.read(values)
        if self.type == "lists of text" and not is_textual(values.type):
            rows = [None if row is None else flatten(row, self._words) for row in values.to_pylist()]
            return pa.array(rows, kind)
        if is_textual(values.type):
            coded = self._words.clean(as_text(values)).dictionary_encode()
            cells = [self._parse(cell, self.type) for cell in coded.dictionary.to_pylist()]
            typed = pa.array(cells, kind).take(coded.indices)
        else:
            typed = values.cast(kind, safe=False)
        if self.type == "numbers":
            self._tally.add(self.name, "is not finite and is left empty", pc.is_inf(typed), values, places)
            typed = pc.if_else(pc.is_finite(typed), typed, pa.scalar(None, kind))
        return typed

    def _parse(self, text: str, named: str) -> Any:
        if named == "booleans":
            return _TRUTHS.get(text.lower() if self._home else text)
        if named == "numbers":
            return float(text) if _NUMBER.fullmatch(text) else None
        if named == "lists of text":
            parts = parse_list(text) if is_bracketed(text) else None
            return None if parts is None else flatten(parts, self._words)
        return text
