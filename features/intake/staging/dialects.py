r"""How a text file with separated cells is written: separator, quotes, header; told, or guessed from its first lines.

    guess_dialect(text, …) → Dialect(separator=";", quoting="doubled", columns=("user_id", …), skipped=1, notes=(…))

A separator is right if it cuts every line into as many cells as the first. A first line of numbers and dates is no
header: that is refused unless the columns were named.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from features.intake.staging.records import MalformedError, Writing, records
from plumline.errors import InputError

SEPARATORS = (",", "\t", ";", "|", "::", "\x01", "^")
_SAMPLE = 1 << 16  # characters
_NAMES = {",": "','", "\t": "a tab", " ": "a space", "\x01": "byte 1"}
_WORDS = {"\\t": "\t", "tab": "\t", "\\x01": "\x01", "space": " "}
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_TIME = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})([T ,].*)?|\d{1,2}:\d{2}(:\d{2}.*)?"
)
_UUID = re.compile(r"[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
_EXCEL = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)


@dataclass(frozen=True)
class Dialect:
    """How the lines of one file are read."""

    writing: Writing
    columns: tuple[str, ...]
    skipped: int
    """Lines of the file before its first row: blank ones and the header."""
    has_header: bool
    notes: tuple[str, ...] = ()
    may_be_plain: bool = False
    """Quotes may turn out to be letters of the text further on: nothing but a guess says that they are quotes."""


def separator_of(told: str) -> str:
    """What --separator was told: `\\t` and `tab` are a tab. Raises InputError for what cannot separate."""
    separator = _WORDS.get(told, told)
    if not separator or set(separator) & set('"\r\n'):
        raise InputError(f"--separator {told!r}: cannot separate cells; give ',', ';', '|', '::' or tab")
    return separator


def shown(separator: str) -> str:
    """A separator as messages show it."""
    return _NAMES.get(separator, repr(separator))


def guess_dialect(
    name: str, text: str, *, whole: bool, separator: str | None, columns: Sequence[str], quoting: str | None = None
) -> Dialect:
    """text: the first lines of the file, all of them if `whole`; separator, columns: as told.

    Raises InputError for a file without a line, a header twice the same, or data where a header belongs.
    """
    lines = text.split("\n")
    first = next((number for number, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise InputError(f"{name}: {'holds blank lines only' if text else 'is empty'}; give a file with rows")
    directive = _EXCEL.fullmatch(lines[first])
    if directive:
        separator, first = separator or directive[1], first + 1
    sample = "\n".join(lines[first:])
    if len(sample) > _SAMPLE or not whole:
        end = sample.rfind("\n", 0, _SAMPLE) + 1
        sample, whole = sample[: end or len(sample)], False
    writing, notes = _writing(name, sample, whole=whole, separator=separator, quoting=quoting)
    cells, height = _first_record(name, sample, writing, first)
    told, header = tuple(columns), tuple(cell.strip() for cell in cells)
    has_header = not told or header == told
    if told and len(told) != len(header):
        raise InputError(
            f"{name}: line {first + 1}: {len(header)} cells where --columns names {len(told)} "
            f"(the separator is {shown(writing.separator)}); name every column"
        )
    if told and has_header:
        notes.append("its first line is what --columns says, so it is taken as the header")
    if not told:
        _refuse_data(name, first + 1, header)
    names = _named(name, first + 1, told or header)
    return Dialect(
        writing,
        names,
        first + (height if has_header else 0),
        has_header,
        tuple(notes),
        may_be_plain=quoting is None and writing.quoting != "none" and writing.separator in ("\t", "::", "\x01"),
    )


def _writing(
    name: str, sample: str, *, whole: bool, separator: str | None, quoting: str | None
) -> tuple[Writing, list[str]]:
    preferred = "\t" if re.search(r"\.(tsv|tab)(\.|$)", name.lower()) else ","
    begin = sample.split("\n", 1)[0]
    candidates = (
        [separator] if separator else [sign for sign in (*SEPARATORS, " ") if sign in begin or sign == preferred]
    )
    best: tuple[tuple[float, ...], Writing] | None = None
    for candidate in candidates:
        writing, rows, can_be_read = _cut(sample, candidate, whole=whole, quoting=quoting)
        width = len(rows[0]) if rows else 1
        agree = sum(len(row) == width for row in rows) / max(len(rows), 1)
        if candidate == " " and (agree < 1 or len(rows) < 2):
            continue
        rank = (
            width > 1 and can_be_read,
            width > 1,
            candidate != " ",
            agree == 1,
            candidate == preferred == "\t",  # a name that says tabs says more than one that says csv
            agree if agree < 1 else width,
            candidate == preferred,
        )
        if best is None or rank > best[0]:
            best = rank, writing
    assert best is not None
    writing = best[1]
    if separator is None and not best[0][1]:
        writing = Writing(preferred, writing.quoting)
    notes = []
    if separator is None and writing.separator != preferred:
        notes.append(f"the separator is {shown(writing.separator)} (guessed; --separator says otherwise)")
    if (writing.quoting == "none" and '"' in sample) or quoting == "none":
        notes.append("its quotes are taken as letters, for as quotes they do not match")
    if writing.quoting == "escaped":
        notes.append('\\" within quotes is taken as a quote')
    return writing, notes


def _cut(sample: str, separator: str, *, whole: bool, quoting: str | None) -> tuple[Writing, list[list[str]], bool]:
    """The kind of quotes with which the sample can be read with this separator, its rows, and whether there is one."""
    kinds: list[Literal["doubled", "escaped", "none"]] = ["doubled"]
    if '\\"' in sample:
        kinds.append("escaped")
    if separator in ("\t", "::", "\x01"):
        kinds.append("none")
    if quoting == "none":
        kinds = ["none"]
    rows: list[list[str]] = []
    for kind in kinds:
        spaced = kind != "none" and bool(re.match(rf'.*{re.escape(separator)} "', sample.split("\n", 1)[0]))
        writing, rows = Writing(separator, kind, spaced=spaced), []
        try:
            for record in records(sample, writing, whole=whole):
                if len(record.cells) > 1 or record.cells[0].strip():
                    rows.append(record.cells)
        except MalformedError:
            continue
        if kind == kinds[0] or len({len(row) for row in rows}) == 1:
            return writing, rows, True
    return Writing(separator, kinds[0]), [sample.split("\n", 1)[0].split(separator)], False


def _first_record(name: str, sample: str, writing: Writing, before: int) -> tuple[list[str], int]:
    """The cells of the first line, and how many lines of the file they take."""
    try:
        for record in records(sample, writing, whole=True):
            return record.cells, record.height
    except MalformedError as error:
        raise InputError(f"{name}: line {before + error.line}: {error}") from None
    return sample.split("\n", 1)[0].split(writing.separator), 1


def _refuse_data(name: str, line: int, cells: Sequence[str]) -> None:
    numbers = [cell for cell in cells if _NUMBER.fullmatch(cell)]
    certain = [cell for cell in cells if _TIME.fullmatch(cell) or _UUID.fullmatch(cell)]
    certain += [cell for cell in numbers if len(cell) > 4]
    counted = [int(cell) for cell in numbers if cell.isdigit()]
    in_order = counted == list(range(counted[0], counted[0] + len(cells) - 1)) if counted else False
    if in_order and not _NUMBER.fullmatch(cells[0]) and len(counted) > 1:
        return  # item_id,0,1,2,…: numbered columns after a name
    if certain or len(numbers) * 2 >= len(cells):
        example = (certain or numbers)[0][:40]
        names = ",".join("abcde"[: len(cells)]) + (",…" if len(cells) > 5 else "")
        raise InputError(
            f"{name}: line {line}: the first line looks like data ({example!r} is no name of a column); "
            f"name the {len(cells)} columns with --columns {names}"
        )


def _named(name: str, line: int, header: Sequence[str]) -> tuple[str, ...]:
    names = tuple(cell or f"column_{number}" for number, cell in enumerate(header, 1))
    doubled = next((cell for cell in names if names.count(cell) > 1), None) if len(set(names)) < len(names) else None
    if doubled is not None:
        raise InputError(f"{name}: line {line}: column {doubled!r} is there twice; rename one of them")
    return names
