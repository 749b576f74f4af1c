"""`plumline inspect FILE…`: what would be read of files, before anything lands. Nothing is written.

For each file: kind, packing, encoding, separator, header; each column with what it would be read as; the first rows as
they would land, times as dates; what was guessed, what is missing, and the options that would help.
"""

import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.commands.verb import json_option, print_answer
from flows.steps.given import reading_options
from plumline.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from features.intake.options import Options
    from features.intake.staging.peek import Peek

NOT_READABLE = "not readable"
_LOOKED_AT = 1000  # rows of a file by which its types are told
_ROWS = 5
_WIDEST = 30  # characters of a cell that are shown


@dataclass(frozen=True)
class FileLook:
    """What one file is and what would be read of it.

    noun: "items", "events" or "users", and whether that was guessed. columns: source column → its first value as text.
    read_as: contract column → source column. suggested: of these, what nothing but its name says, so that --map must.
    rows: the first rows as they would land, times as ISO text. notes: what was guessed or decided; problems: what would
    be refused; missing: columns that are wanted and not there.
    """

    name: str
    kind: str
    compression: str
    encoding: str | None
    separator: str | None
    has_header: bool | None
    num_files: int
    noun: str | None
    guessed: bool
    columns: Mapping[str, str | None]
    read_as: Mapping[str, str]
    suggested: Mapping[str, str]
    rows: tuple[Mapping[str, str], ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def advice(self) -> str:
        """The --map options that would name what was guessed by name, "" if there is nothing to say."""
        return " ".join(shlex.quote(f"--map={self.noun}:{n}={column}") for n, column in self.suggested.items())

    def lines(self) -> list[str]:
        """For people."""
        if not self.columns and self.problems:
            return [f"{self.name}: {self.kind}", *(f"  refused  {problem}" for problem in self.problems)]
        about = [self.kind, self.compression or "plain"]
        about += [self.encoding] if self.encoding else []
        about += [f"separator {self.separator!r}"] if self.separator else []
        about += [] if self.has_header is None else ["with a header" if self.has_header else "without a header"]
        more = f" (the first of {self.num_files} files)" if self.num_files > 1 else ""
        lines = [f"{self.name}{more}: {', '.join(about)}"]
        noun = f"{self.noun}{', guessed' if self.guessed else ''}" if self.noun else "unknown: say --as events"
        lines.append(f"  read as  {noun}")
        from_column = {column: name for name, spec in self.read_as.items() for column in re.split(r"\+", spec)}
        width = max((len(column) for column in self.columns), default=0)
        for column, value in self.columns.items():
            name = from_column.get(column, "")
            lines.append(f"  {column:<{width}}  → {name or '-':<12}  {_short(value)}")
        lines += [f"  {line}" for line in _table(self.rows)]
        lines += [f"  note     {note}" for note in self.notes]
        lines += [f"  refused  {problem}" for problem in self.problems]
        lines += [f"  missing  {name}" for name in self.missing]
        lines += [f"  say      {self.advice}"] if self.advice else []
        return lines


@dataclass(frozen=True)
class Inspection:
    """One look a file."""

    looks: tuple[FileLook, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """Everything."""
        return [{**look.__dict__, "advice": look.advice} for look in self.looks]

    def lines(self) -> list[str]:
        """For people."""
        return [line for look in self.looks for line in look.lines()]


def inspect_files(
    paths: Sequence[str], said: Mapping[str, Sequence[str]], *, noun: str | None, now: datetime
) -> Inspection:
    """Look at files as `plumline land` would read them.

    said: option → values, as `parse_options` takes them; those for another noun are passed over. noun: None: guessed.
    Raises InputError for a file that cannot be read at all, if it is the only one.
    """
    looks = []
    for path in paths:
        try:
            looks.append(_look(path, said, noun, now, alone=len(paths) == 1))
        except InputError as error:
            if len(paths) == 1:
                raise
            looks.append(_unreadable(path, error))
    return Inspection(tuple(looks))


_READING = ("format", "separator", "encoding", "columns", "quote", "heading", "explode")


def _look(path: str, said: Mapping[str, Sequence[str]], noun: str | None, now: datetime, *, alone: bool) -> FileLook:
    """alone: no other file was given, so that a --map must be meant for this one."""
    from features.intake.guess import guess_noun
    from features.intake.options import find_sources, parse_options
    from features.intake.shapes.lines import CutLines, has_odd_lines, one_cell
    from features.intake.staged import RowsOf
    from features.intake.staging.peek import peek

    reading = {name: values for name, values in said.items() if name in _READING}
    options = parse_options({"events": [path], **_without_noun(reading, noun)})["events"]
    seen = peek(path, one_cell(options) if has_odd_lines(options) else options, rows=_LOOKED_AT, stdin=sys.stdin.buffer)
    rows = RowsOf(seen.rows, (seen.name,), "row" if seen.kind == "parquet" else "line")
    cut = CutLines(rows, options) if has_odd_lines(options) else rows
    lists = _lists(seen.rows)
    chosen = noun or ("events" if lists or options.explode else guess_noun(cut.columns))
    if chosen is None or not seen.rows.num_rows:
        return _unread(seen, chosen, noun is None, cut.columns)
    asked = parse_options({chosen: [path], **_of_noun(said, chosen)})[chosen]
    if not alone and not asked.explode and not asked.pivot:
        there = {name: spec for name, spec in asked.map.items() if not spec or find_sources(spec, cut.columns)}
        asked = asked.model_copy(update={"map": there})
    look = _read(seen, cut, asked, chosen, noun is None, now)
    if lists and not asked.explode:
        words = f"{', '.join(lists)} holds a list of objects: --explode {lists[0]} makes each one a row"
        look = replace(look, notes=(*look.notes, words))
    return look


def _lists(table: "pa.Table") -> list[str]:
    """Columns whose first value is a list of objects."""
    found = []
    for name, value in _first_values(table, table.column_names).items():
        if re.match(r"\[\s*\{", value or ""):
            found.append(name)
    return found


def _read(seen: "Peek", rows: Any, options: "Options", noun: str, guessed: bool, now: datetime) -> FileLook:
    """Shape and type the first rows as a delivery would."""
    import tempfile

    from features.intake.columns import choose_columns
    from features.intake.delivery import CONTRACTS
    from features.intake.facts import Facts
    from features.intake.guess import guess_mapping, missing
    from features.intake.reshape import reshape, unfold
    from features.intake.typed import look

    problems: list[str] = []
    suggested: dict[str, str] = {}
    typed: list[Mapping[str, str]] = []
    notes: list[str] = [*seen.notes]
    read_as: dict[str, str] = {}
    wanted: list[str] = []
    columns = rows.columns
    try:
        with tempfile.TemporaryDirectory() as scratch:
            unfolded = unfold(rows, options, noun=noun, scratch=Path(scratch))
            likely = guess_mapping(noun, unfolded.rows.columns)
            known = {**likely, **{name: spec for name, spec in unfolded.options.map.items() if spec}}
            wanted = missing(noun, known)
            suggested = _only_by_name(noun, unfolded.rows.columns, unfolded.options.map, likely)
            told = unfolded.options.model_copy(update={"map": {**suggested, **unfolded.options.map}})
            shaped = reshape(type(unfolded)(unfolded.rows, told, unfolded.told), noun=noun)
            columns = shaped.rows.columns
            first = next(iter(shaped.rows.blocks()), None)
            if not [name for name in wanted if " " not in name]:
                chosen = choose_columns(columns, CONTRACTS[noun], shaped.options.map)
                read_as = {name: "+".join(sources) for name, sources in chosen.sources.items()}
                reading = look(shaped.rows, CONTRACTS[noun], shaped.options, Facts(), now=now)
                problems += [str(finding) for finding in reading.findings if finding.fatal]
                typed = [] if problems else _rows(next(reading.blocks(), None), read_as)
                notes += [str(finding) for finding in reading.findings if not finding.fatal]
            notes += [*unfolded.told, *(note for note in shaped.rows.notes if note not in notes)]
            values = _first_values(first, columns)
    except InputError as error:
        problems.append(str(error))
        values = _first_values(seen.rows, [name for name in columns if name in seen.rows.column_names])
    return FileLook(
        **_about(seen),
        noun=noun,
        guessed=guessed,
        columns=values,
        read_as=read_as,
        suggested=suggested,
        rows=tuple(typed),
        notes=tuple(dict.fromkeys(notes)),
        problems=tuple(problems),
        missing=tuple(wanted),
    )


def _only_by_name(
    noun: str, columns: Sequence[str], mapping: Mapping[str, str], likely: Mapping[str, str]
) -> dict[str, str]:
    """What is likely, and would not be read without a --map: no column of its own name, no usual one, not mapped."""
    from features.intake.columns import ALIASES

    found = {}
    for name, column in likely.items():
        usual = (name, *ALIASES[noun].get(name, ()))
        if name not in mapping and column not in mapping.values() and not set(usual) & set(columns):
            found[name] = column
    return found


def _unread(seen: "Peek", noun: str | None, guessed: bool, columns: Sequence[str]) -> FileLook:
    """A file of which nothing can be typed: no row, or nobody knows what it is."""
    missing = ("a row",) if not seen.rows.num_rows else ("ids of a user or an item: no column is called like one",)
    return FileLook(
        **_about(seen),
        noun=noun,
        guessed=guessed,
        columns=_first_values(seen.rows, [name for name in columns if name in seen.rows.column_names]),
        read_as={},
        suggested={},
        rows=(),
        notes=tuple(seen.notes),
        problems=(),
        missing=missing,
    )


def _unreadable(path: str, error: InputError) -> FileLook:
    none: Any = None
    about = dict.fromkeys(("encoding", "separator", "has_header", "noun"), none)
    empty: Any = {}
    return FileLook(
        name=path,
        kind=NOT_READABLE,
        compression="",
        num_files=1,
        guessed=False,
        columns=empty,
        read_as=empty,
        suggested=empty,
        rows=(),
        notes=(),
        problems=(str(error),),
        missing=(),
        **about,
    )


def _about(seen: "Peek") -> dict[str, Any]:
    names = ("name", "kind", "compression", "encoding", "separator", "has_header", "num_files")
    return {name: getattr(seen, name) for name in names}


def _without_noun(said: Mapping[str, Sequence[str]], noun: str | None) -> dict[str, list[str]]:
    """Values for any noun, or for this one, without the noun."""
    found = {}
    for name, values in said.items():
        split = [re.match(r"(?:(items|events|users):)?(.*)", value, re.S) for value in values]
        found[name] = [match[2] for match in split if match and (match[1] is None or noun in (None, match[1]))]
    return found


def _of_noun(said: Mapping[str, Sequence[str]], noun: str) -> dict[str, list[str]]:
    """Values that are for this noun: with its name before them, or with none where it can have them."""
    from features.intake.options import knows

    found = _without_noun(said, noun)
    found["map"] = [value for value in found.get("map", []) if knows(noun, value.partition("=")[0])]
    if noun != "events":
        found.pop("value", None)
    else:
        found.pop("keep", None)
    return found


def _first_values(table: "pa.Table | None", columns: Sequence[str]) -> dict[str, str | None]:
    """The first value of each column that is not null, as text."""
    values: dict[str, str | None] = dict.fromkeys(columns)
    for name in columns if table is not None else ():
        assert table is not None
        present = table.column(name).drop_null() if name in table.column_names else []
        values[name] = str(present[0].as_py()) if len(present) else None
    return values


def _rows(block: "pa.Table | None", names: Collection[str]) -> list[Mapping[str, str]]:
    """The first rows of a typed block, as text."""
    if block is None:
        return []
    found = block.select([name for name in block.column_names if name in names]).slice(0, _ROWS).to_pylist()
    return [{name: _text(value) for name, value in row.items()} for row in found]


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Rows under their names, in columns."""
    if not rows:
        return []
    cells = [list(rows[0]), *([_short(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[number]) for line in cells) for number in range(len(cells[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _short(value: str | None) -> str:
    text = " ".join((value or "").split())
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@click.option("--as", "noun", type=click.Choice(["items", "events", "users"]), help="What it is; default: guessed.")
@reading_options
@json_option
def inspect(files: tuple[str, ...], noun: str | None, as_json: bool, **said: tuple[str, ...]) -> None:
    """Show what would be read of a FILE: kind, columns, the first rows with their times as dates, what is missing."""
    found = inspect_files(files, said, noun=noun, now=datetime.now(UTC))
    print_answer(found.to_json(), as_json, found.lines())
    sys.exit(2 if any(look.kind == NOT_READABLE for look in found.looks) else 0)
