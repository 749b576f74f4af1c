"""What was noticed while files were read: one line each, with a count and the place of the first row.

    tally = Tally("events")
    places = Places(rows, block)
    tally.add("price", "is no number and is left empty", bad, values, places)      counted over all blocks
    tally.findings                                                                  problems first, by frequency

A *note* says what was decided, *counted* what changed in some cells or rows, a *problem* why nothing may land.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from features.intake.staged import FILE, LINE, Rows
from features.intake.words import Words
from plumline.errors import InputError

Kind = Literal["note", "counted", "problem"]

_SHOWN = 80  # characters of a value


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed.

    noun: "items", "events" or "users". column: of the contract, or "" for the table. what: a clause that follows the
    column ("is no number and is left empty"). count: cells or rows. example: the first value, as text. where:
    "FILE: line N" of it. kind: "note", "counted" or "problem". advice: what to do, with the option that helps.
    """

    noun: str
    column: str
    what: str
    count: int = 0
    example: str | None = None
    where: str | None = None
    kind: Kind = "note"
    advice: str = ""

    @property
    def fatal(self) -> bool:
        """Whether nothing may land."""
        return self.kind == "problem"

    def __str__(self) -> str:
        advice = f"; {self.advice}" if self.advice else ""
        subject = f"{self.column} " if self.column else ""
        if self.kind == "problem" and self.where:
            value = f"{self.example!r} " if self.example is not None else ""
            many = f" ({self.count:,} such rows)" if self.count > 1 else ""
            return f"{self.where}: {subject}{value}{self.what}{many}{advice}"
        first = "" if self.where is None else f", first {self.where}"
        first += "" if self.example is None else f": {self.example!r}"
        many = f": {self.count:,} row{'s' if self.count > 1 else ''}{first}" if self.count else ""
        return f"{self.noun}: {subject}{self.what}{many}{advice}"


@dataclass(frozen=True)
class Places:
    """Where the rows of one block come from. rows of the block are counted from 0 here."""

    rows: Rows
    block: pa.Table

    def file(self, row: int) -> str:
        """What messages call the file of a row."""
        return self.rows.files[self.block.column(FILE)[row].as_py()]

    def at(self, row: int) -> str:
        """FILE: line N of a row."""
        return self.rows.place(self.block.column(FILE)[row].as_py(), self.block.column(LINE)[row].as_py())


class Tally:
    """Findings of one noun, counted over its blocks."""

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._found: dict[tuple[str, str, str], Finding] = {}
        self._kept: dict[tuple[str, str, str], Finding] = {}

    def add(
        self,
        column: str,
        what: str,
        bad: np.ndarray | pa.Array | pa.ChunkedArray,
        values: Any,
        places: Places,
        kind: Kind = "counted",
        advice: str = "",
    ) -> None:
        """Count the rows of a block where `bad` holds. values: what stands there, or None to show nothing."""
        mask = bad if isinstance(bad, np.ndarray) else bad.fill_null(False).to_numpy(zero_copy_only=False)
        count = int(mask.sum())
        if not count:
            return
        key = (column, what, kind)
        if key in self._found:
            self._found[key] = replace(self._found[key], count=self._found[key].count + count)
            return
        first = int(mask.argmax())
        example = None if values is None else show(values[first])
        self.put(Finding(self.noun, column, what, count, example, places.at(first), kind, advice))

    def nulled(self, column: str, words: Words, values: pa.Array, places: Places) -> None:
        """Count the cells of a block whose word means that nothing is known."""
        self.add(column, "means nothing is known and is left empty", words.nulled(values), values, places)

    def note(self, column: str, what: str) -> None:
        """Say what was decided about a column, once."""
        self.put(Finding(self.noun, column, what))

    def put(self, finding: Finding) -> None:
        """Keep a finding that was counted elsewhere; of two that say the same, the first."""
        self._found.setdefault((finding.column, finding.what, finding.kind), finding)

    def keep(self) -> None:
        """What was found so far is final: `rewind` comes back to here."""
        self._kept = dict(self._found)

    def rewind(self) -> None:
        """Forget what was found since `keep`: the rows are read once more."""
        self._found = dict(self._kept)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Problems, then what was counted, then notes; the most frequent of each first."""
        return order(self._found.values())


def where_advice(noun: str, source: str, condition: str = "!= ''") -> str:
    """The option that leaves rows out by a condition on a source column."""
    name = source if re.fullmatch(r"\w+", source) else f"`{source}`"
    conditions = " and ".join(f"{name} {part}" for part in condition.split(" and "))
    return f'--where "{noun}:{conditions}"'


def order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Problems, then what was counted, then notes; the most frequent of each first."""
    rank = {"problem": 0, "counted": 1, "note": 2}
    return tuple(sorted(findings, key=lambda found: (rank[found.kind], -found.count)))


def refuse(findings: Sequence[Finding]) -> None:
    """Raise InputError if there is a problem: the most frequent one, and how many others there are."""
    problems = [finding for finding in order(findings) if finding.fatal]
    if problems:
        others = len(problems) - 1
        more = f" (and {others} other problem{'s' if others > 1 else ''})" if others else ""
        raise InputError(f"{problems[0]}{more}")


def show(value: Any) -> str | None:
    """A value as a message shows it: short, None for a missing one."""
    if isinstance(value, pa.Scalar):
        try:
            value = value.as_py()
        except (ValueError, OverflowError):  # a time that Python does not know
            value = value.value  # the number behind it
    if value is None:
        return None
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
