"""Ids as text, never inferred: leading zeros stay, and whether 13085.0 means 13085 is decided once a home.

    column = IdColumn("user_id", words, facts.ids.get("user_id"), tally)
    column.look(values, places)     every block once: which forms there are, what cannot be an id
    column.decide()                 whether 13085.0 is 13085
    column.read(values, places)     every block again, as text

A column that went through a float (it had holes, or a join made some) has 13085.0 where 13085 was meant. It is read as
13085 where all ids look like that, or where plain integers are there too, in the file or in the home; it stays where
versions like 1.10 or names are among them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.intake.findings import Finding, Kind, Places, Tally, show, where_advice
from features.intake.words import Words, as_text, is_numeric, is_textual, read_json, unwrap

ID_COLUMNS = ("item_id", "user_id", "event_id", "session_id")

_WHOLE = r"^-?(0|[1-9][0-9]*)\.0+$"  # 13085.0
_DOTTED = r"^-?[0-9]+\.[0-9]+$"  # 13085.0 and 1.10
_ROUNDED = r"^-?[0-9](\.[0-9]+)?[eE]\+[0-9]+$"  # 1.23457E+12, as spreadsheets write long numbers
_LARGEST_FLOAT = 2**53  # above it a float does not say every whole number
_SAMPLE = 512  # rows of a block whose forms are counted where none looks like a float


@dataclass(frozen=True)
class IdForms:
    """How ids are written: how many, of those looked at, are 13085, 13085.0, 1.10 and anything else.

    source: the delivery that came first. whole_example: one like 13085.0.
    """

    plain: int = 0
    whole: int = 0
    dotted: int = 0
    other: int = 0
    source: str = ""

    def __add__(self, later: IdForms) -> IdForms:
        plain, whole = self.plain + later.plain, self.whole + later.whole
        dotted, other = self.dotted + later.dotted, self.other + later.other
        return IdForms(plain, whole, dotted, other, self.source or later.source)

    @property
    def are_integers(self) -> bool:
        """Whether numbers among the ids are plain integers."""
        return bool(self.plain) and not self.whole and not self.dotted

    @property
    def are_floats(self) -> bool:
        """Whether numbers among the ids are written like 13085.0, as landed by versions before this module."""
        return bool(self.whole) and not (self.plain or self.dotted or self.other)


def forms_of(text: pa.Array, source: str = "") -> IdForms:
    """The forms of some ids."""
    present = text.drop_null()
    dotted = pc.match_substring_regex(present, _DOTTED)
    num_dotted = pc.sum(dotted).as_py() or 0
    num_whole = (pc.sum(pc.match_substring_regex(present, _WHOLE)).as_py() or 0) if num_dotted else 0
    num_plain = pc.sum(pc.match_substring_regex(present, r"^-?(0|[1-9][0-9]*)$")).as_py() or 0
    return IdForms(num_plain, num_whole, num_dotted - num_whole, len(present) - num_plain - num_dotted, source)


class IdColumn:
    """One column of ids.

    source: its name in the file. is_required: an empty one is a problem; None: only where other rows have one
    (event_id). is_key: a row is one id (items, users), and two spellings of one id are a problem.
    """

    def __init__(
        self,
        name: str,
        source: str,
        words: Words,
        home: IdForms | None,
        tally: Tally,
        *,
        is_required: bool | None,
        is_key: bool = False,
    ) -> None:
        self.name, self._source, self._words, self._home, self._tally = name, source, words, home, tally
        self._is_required, self._is_key = is_required, is_key
        self._empties, self._num_present = Tally(tally.noun), 0
        self._forms = IdForms()
        self._first_whole: tuple[str, str] | None = None
        self._trimmed: dict[str, tuple[str, str]] = {}
        self._is_whole_an_integer = False

    # --- 1. every block once ---

    def look(self, values: pa.Array, places: Places) -> None:
        """See one block. Adds problems to the tally."""
        text = self._text(values)
        self._num_present += len(text) - text.null_count
        if is_textual(values.type):
            self._look_at_text(values, text, places)
        elif is_numeric(values.type):
            self._forms += IdForms(plain=len(text) - text.null_count)
            if not pa.types.is_integer(values.type):
                self._look_at_floats(values, places)
        elif pa.types.is_nested(values.type):
            self._problem("is nested, which is no id", pc.is_valid(values), text, places, self._field_advice)
        if self._is_required is not False and text.null_count:
            empty = pc.is_null(text).to_numpy(zero_copy_only=False)
            said = self._words.nulled(values)
            self._empty("means nothing is known, and every row needs one", said, values, places)
            self._empty("is empty, and every row needs one", empty & ~said, None, places)

    def _look_at_floats(self, values: pa.Array, places: Places) -> None:
        is_whole, is_exact = self._whole(values)
        present = pc.invert(pc.is_null(values, nan_is_null=True))
        fraction = pc.and_not(present, is_whole)
        self._problem("is no whole number, which is no id", fraction, values, places, self._map_advice)
        what = "is a float above 2**53, which does not say every whole number"
        rounded = pc.and_not(is_whole, is_exact)
        self._problem(what, rounded, values, places, "write the column as integers or text")

    @staticmethod
    def _whole(values: pa.Array) -> tuple[pa.Array, pa.Array]:
        """Which numbers are whole, and which of them lie where every whole number can be told from the next."""
        if pa.types.is_decimal(values.type):
            whole = pc.equal(values, pc.floor(values))
            return pc.fill_null(whole, False), pc.fill_null(whole, False)
        numbers = values.cast(pa.float64())
        whole = pc.and_(pc.is_finite(numbers), pc.equal(numbers, pc.floor(numbers)))
        return pc.fill_null(whole, False), pc.fill_null(pc.less(pc.abs(numbers), float(_LARGEST_FLOAT)), False)

    def _look_at_text(self, values: pa.Array, text: pa.Array, places: Places) -> None:
        if pc.any(pc.match_substring(text, ".")).as_py():
            forms = forms_of(text)
            if forms.whole and self._first_whole is None:
                row = pc.index(pc.fill_null(pc.match_substring_regex(text, _WHOLE), False), True).as_py()
                self._first_whole = (show(text[row]) or "", places.at(row))
            self._forms += forms
        else:
            self._forms += forms_of(text.slice(0, _SAMPLE))
        rounded = pc.match_substring_regex(text, _ROUNDED) if pc.any(pc.match_substring(text, "+")).as_py() else None
        if rounded is not None:
            what = "is a number that a spreadsheet rounded: which id it was is lost"
            self._problem(what, rounded, text, places, "write the column as text again")
        nested = self._nested(text)
        if nested is not None:
            what = "is nested, which is no id"
            self._problem(what, nested, text, places, self._field_advice)
        self._look_at_spaces(values, places)

    def _look_at_spaces(self, values: pa.Array, places: Places) -> None:
        raws = as_text(values)
        trims = pc.utf8_trim_whitespace(raws)
        changed = pc.fill_null(pc.not_equal(raws, trims), False)
        what = "has spaces around it, which do not count"
        self._tally.add(self.name, what, changed, values, places)
        for row in np.flatnonzero(changed.to_numpy(zero_copy_only=False)) if self._is_key else ():
            raw, trimmed = raws[int(row)].as_py(), trims[int(row)].as_py()
            first, where = self._trimmed.setdefault(trimmed, (raw, places.at(int(row))))
            if first != raw:
                self._two_spellings(trimmed, raw, first, where, places.at(int(row)))

    @property
    def needs_another_look(self) -> bool:
        """Whether ids had spaces around them, so that others may be the same id without."""
        return bool(self._trimmed)

    def look_again(self, values: pa.Array, places: Places) -> None:
        """Compare a block's ids with those that had spaces around them."""
        text = as_text(values)
        for row in np.flatnonzero(pc.is_in(text, value_set=pa.array(list(self._trimmed), pa.string())).to_numpy(False)):
            raw = text[int(row)].as_py()
            first, where = self._trimmed[raw]
            self._two_spellings(raw, raw, first, where, places.at(int(row)))

    def _two_spellings(self, text: str, raw: str, first: str, where: str, here: str) -> None:
        what = f"is {first!r} too ({where}), and the spaces around an id do not count"
        advice = "keep one row an id"
        self._tally.put(Finding(self._tally.noun, self.name, what, 1, raw, here, "problem", advice))

    # --- 2. decide ---

    def decide(self) -> None:
        """Whether 13085.0 is 13085, from what was seen and what the home has."""
        if self._is_required or self._num_present:
            for finding in self._empties.findings:
                self._tally.put(finding)
        forms, home = self._forms, self._home or IdForms()
        if home.are_floats:
            if forms.plain and not forms.whole:
                what = f"is written like 13085, and like 13085.0 in {home.source}"
                advice = f"take that one back with plumline unland and land it again, or write {self.name} as there"
                self._tally.put(Finding(self._tally.noun, self.name, what, kind="problem", advice=advice))
            return
        if not forms.whole:
            return
        alone = not (forms.plain or forms.dotted or forms.other)
        among_plain = bool(forms.plain) and not forms.dotted and forms.plain + forms.whole > forms.other
        unknown = home.dotted == 0 and home.whole == 0
        self._is_whole_an_integer = home.are_integers or (unknown and (alone or among_plain))
        example, where = self._first_whole or (None, None)
        if self._is_whole_an_integer:
            number = (example or "13085.0").split(".")[0]
            because = f", as in {home.source}" if home.are_integers and home.source else ""
            what = f"written like {example} is read as {number}{because}"
            self._tally.put(Finding(self._tally.noun, self.name, what, forms.whole, None, where, "counted"))
        else:
            what = "is written like a float among ids that are none, and stays as it is"
            self._tally.put(Finding(self._tally.noun, self.name, what, forms.whole, example, where, "counted"))

    @property
    def forms(self) -> IdForms:
        """How the ids are written after reading, for those that are read later."""
        if self._is_whole_an_integer:
            return replace(self._forms, plain=self._forms.plain + self._forms.whole, whole=0)
        return self._forms

    # --- 3. every block again ---

    def read(self, values: pa.Array, places: Places) -> pa.Array:
        """Ids of a block as text."""
        text = self._text(values)
        if is_textual(values.type):
            if not self._is_required:
                self._tally.nulled(self.name, self._words, values, places)
            if self._is_whole_an_integer:
                text = pc.replace_substring_regex(text, r"^(-?(?:0|[1-9][0-9]*))\.0+$", r"\1")
        return text

    def _text(self, values: pa.Array) -> pa.Array:
        if pa.types.is_decimal(values.type) or pa.types.is_floating(values.type):
            is_whole, is_exact = self._whole(values)
            good = pc.if_else(pc.and_(is_whole, is_exact), values, pa.scalar(None, values.type))
            return pc.replace_substring_regex(_integers(good), r"\.0*$", "")
        text = self._words.clean(as_text(values))
        return self._words.clean(unwrap(text)) if is_textual(values.type) else text

    # --- messages ---

    @property
    def _map_advice(self) -> str:
        return f"map another column with --map {self.name}=COLUMN"

    @property
    def _field_advice(self) -> str:
        return f"name one of its fields with --map {self.name}={self._source}.FIELD"

    def _nested(self, text: pa.Array) -> pa.Array | None:
        """JSON objects and lists where an id is wanted."""
        suspects = pc.or_(pc.starts_with(text, '{"'), pc.starts_with(text, "["))
        if not pc.any(suspects).as_py():
            return None
        rows = suspects.fill_null(False).to_numpy(zero_copy_only=False).copy()
        for row in np.flatnonzero(rows):
            rows[row] = isinstance(read_json(text[int(row)].as_py()), dict | list)
        return pa.array(rows)

    def _problem(self, what: str, bad: Any, values: pa.Array, places: Places, advice: str) -> None:
        kind: Kind = "problem" if self._is_required is not False else "counted"
        self._tally.add(self.name, what, bad, values, places, kind, advice)

    def _empty(self, what: str, bad: np.ndarray, values: pa.Array | None, places: Places) -> None:
        leave_out = where_advice(self._tally.noun, self._source)
        advice = f"leave such rows out with {leave_out}, or {self._map_advice}"
        self._empties.add(self.name, what, bad, values, places, "problem", advice)


def _integers(values: pa.Array) -> pa.Array:
    return (values.cast(pa.int64()) if pa.types.is_floating(values.type) else values).cast(pa.string())
