r"""Lines of separated cells read one by one by Python's csv module: exact about every line, for what the fast path
(csv_blocks.py) does not read or cannot explain.

    for record in records(text, Writing(","), whole=True):
        record.line, record.height, record.cells     first line (from 1), lines it takes, its cells

A quote is one only where a cell begins with it. What follows a closing quote must be a separator or the end of the
line: otherwise the quotes do not match, and a cell would swallow what stands between them.
"""

import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

STAND_INS = ("\x1f", "\x1e", "\x1d", "\x1c", "\x02", "\x03")
"""One-byte separators that take the place of a longer one; one that the text does not hold is chosen."""


@dataclass(frozen=True)
class Writing:
    """How cells are written."""

    separator: str
    quoting: Literal["doubled", "escaped", "none"] = "doubled"
    """`"a ""b"" c"`, `"a \"b\" c"`, or a quote is a letter."""
    spaced: bool = False
    """Blanks after a separator are not part of the cell: `a, "b"`."""


@dataclass(frozen=True)
class Record:
    """One row as it stands in the text."""

    line: int
    height: int
    cells: list[str]


class MalformedError(Exception):
    """What cannot be read, without the name of the file. line: of the text, from 1; open: a quote has no end here."""

    def __init__(self, line: int, message: str, *, open: bool = False) -> None:
        super().__init__(message)
        self.line, self.open = line, open


def stand_in(text: Any) -> Any:
    """A separator of one byte that a text (str or bytes) does not hold. Raises MalformedError if it holds all."""
    for mark in STAND_INS:
        wanted = mark.encode() if isinstance(text, bytes) else mark
        if wanted not in text:
            return wanted
    raise MalformedError(1, "holds every control character; choose a separator of one character")


def records(text: str, writing: Writing, *, whole: bool) -> Iterator[Record]:
    """The records of a text that begins with one; blank lines are none. Without `whole` the last one is left out if
    the text ends within it.

    Raises MalformedError for quotes that do not match and for a carriage return outside of quotes.
    """
    separator, longer = writing.separator, None
    if len(separator.encode("utf-8")) > 1:
        mark = stand_in(text)
        separator, longer, text = mark, separator, text.replace(separator, mark)
    quotes: dict[str, Any] = {"quotechar": '"', "doublequote": True}
    if writing.quoting == "none":
        quotes = {"quoting": csv.QUOTE_NONE, "quotechar": None}
    elif writing.quoting == "escaped":
        quotes = {"quotechar": '"', "doublequote": False, "escapechar": "\\"}
    csv.field_size_limit(sys.maxsize)  # of the process; one long cell is no reason to refuse a file
    lines = _Lines(text)
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=writing.spaced, **quotes)
    while True:
        before = reader.line_num
        lines.taken.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if "unexpected end of data" in str(error) and not whole:
                return
            raise _explained(str(error), "".join(lines.taken), before + 1, separator, writing) from None
        if cells is None:
            return
        if not cells:
            continue
        if longer is not None:
            cells = [cell.replace(separator, longer) for cell in cells]
        yield Record(before + 1, reader.line_num - before, cells)


class _Lines:
    """Lines that end with a line feed and nothing else, and those that were taken since `taken` was cleared."""

    def __init__(self, text: str) -> None:
        self._lines = io.StringIO(text, newline="\n")
        self.taken: list[str] = []

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.taken.append(line)
        return line


def _explained(reason: str, record: str, line: int, separator: str, writing: Writing) -> MalformedError:
    """What the csv module complains of in a record that begins at this line, in the words of a user."""
    if "new-line" in reason:
        return MalformedError(line, "a carriage return stands in the middle of the line; mend or remove that line")
    start, end = _unmatched(record, separator, writing)
    line += record.count("\n", 0, start)
    if end is None:
        message = "a quote is opened and never closed; mend that line, or say --quote none"
        return MalformedError(line, message, open=True)
    after = record[end : end + 20].split("\n")[0].rstrip()
    return MalformedError(
        line,
        f"a quote is opened and closed where no cell ends (before {after!r}); double the quotes within a cell, "
        "or say --quote none where they are letters",
    )


def _unmatched(record: str, separator: str, writing: Writing) -> tuple[int, int | None]:
    """Where the quote opens that does not match, and where the text after its end begins."""
    start, escaped = 0, writing.quoting == "escaped"
    while True:
        while writing.spaced and record[start : start + 1] == " ":
            start += 1
        if record[start : start + 1] == '"':
            end = record.find('"', start + 1)
            while end >= 0 and (record[end - 1] == "\\" if escaped else record[end + 1 : end + 2] == '"'):
                end = record.find('"', end + (1 if escaped else 2))
            if end < 0:
                return start, None
            if record[end + 1 : end + 2] not in (separator, "\r", "\n", ""):
                return start, end + 1
        else:
            end = start
        following = record.find(separator, end)
        if following < 0:
            return start, None
        start = following + 1
