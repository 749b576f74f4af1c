"""`emb_*` columns of items: lists of finite numbers of one length, as fixed-size lists of float32.

    column = VectorColumn("emb_image", words, facts.lengths.get("emb_image"), tally)
    column.look(values, places)     every block once: lengths, and what is no vector
    column.decide()
    column.read(values, places)     every block again; None where no row has a vector

A text cell is JSON, or as NumPy prints a vector. A vector that is none is a problem: no other row can mend it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.intake.facts import Known
from features.intake.findings import Finding, Places, Tally
from features.intake.lists import parse_list
from features.intake.words import Words, as_text, is_listed, is_numeric, is_textual


class VectorColumn:
    """One column of vectors. home: the length that landed before."""

    def __init__(self, name: str, words: Words, home: Known | None, tally: Tally) -> None:
        self.name, self._words, self._home, self._tally = name, words, home, tally
        self._lengths: Counter[int] = Counter()
        self._first: dict[int, str] = {}
        self.length: int | None = None

    def look(self, values: pa.Array, places: Places) -> None:
        """See one block. Adds problems to the tally."""
        vectors, bad = self._vectors(values)
        self._problem("is no list of numbers", bad, values, places)
        flat = vectors.flatten()
        parents = pc.list_parent_indices(vectors)
        odd = pc.or_(pc.is_null(flat), pc.fill_null(pc.invert(pc.is_finite(flat)), True))
        if pc.any(odd).as_py():
            rows = np.zeros(len(values), dtype=bool)
            rows[parents.filter(odd).to_numpy()] = True
            self._problem("holds a number that is missing or not finite", rows, values, places)
        lengths = pc.list_value_length(vectors)
        empty = pc.fill_null(pc.equal(lengths, 0), False)
        self._problem("is a list without numbers", empty, values, places)
        for entry in pc.value_counts(lengths.drop_null()).to_pylist():
            length = entry["values"]
            self._lengths[length] += entry["counts"]
            if length not in self._first:
                self._first[length] = places.at(pc.index(lengths, length).as_py())

    def decide(self) -> None:
        """The length of all vectors."""
        lengths = [length for length, _ in self._lengths.most_common() if length]
        if not lengths:
            return
        self.length = int(self._home.value) if self._home else lengths[0]
        for length in lengths:
            if length != self.length:
                others = f"in {self._home.source}" if self._home else "most"
                what = f"has {length} numbers, {others} {self.length}"
                advice = "all vectors of a column are of one length; give others a name of their own (emb_<name>)"
                count, where = self._lengths[length], self._first[length]
                self._tally.put(Finding(self._tally.noun, self.name, what, count, None, where, "problem", advice))

    def read(self, values: pa.Array, places: Places) -> pa.Array | None:
        """Vectors of a block as fixed-size lists of float32; None if no row of the column has one."""
        if self.length is None:
            self._tally.note(self.name, "is left out, no row has a vector")
            return None
        vectors, _ = self._vectors(values)
        return vectors.cast(pa.list_(pa.float32(), self.length))

    def _vectors(self, values: pa.Array) -> tuple[pa.Array, np.ndarray]:
        """list<float32> and which cells are no vector."""
        kind = values.type
        if is_listed(kind) and (is_numeric(kind.value_type) or pa.types.is_null(kind.value_type)):
            return values.cast(pa.list_(pa.float32()), safe=False), np.zeros(len(values), dtype=bool)
        text = self._words.clean(as_text(values))
        if not is_textual(kind):
            bad = np.array(values.is_valid().to_numpy(zero_copy_only=False), dtype=bool)
            return pa.nulls(len(values), pa.list_(pa.float32())), bad
        rows = [None if cell is None else _parse_vector(cell) for cell in text.to_pylist()]
        bad = np.array([row is None for row in rows], dtype=bool) & text.is_valid().to_numpy(zero_copy_only=False)
        return pa.array(rows, pa.list_(pa.float32())), bad

    def _problem(self, what: str, bad: Any, values: pa.Array, places: Places) -> None:
        advice = f"mend the file, or leave the column out with --map {self.name}="
        self._tally.add(self.name, what, bad, values, places, "problem", advice)


def _parse_vector(text: str) -> list[float | None] | None:
    parts = parse_list(text)
    if parts is None:
        return None
    try:
        return [None if part is None else float(part) for part in parts]
    except (TypeError, ValueError, OverflowError):
        return None
