"""Files as people have them → Rows: paths, globs, folders, archives and `-`, of csv, json and parquet, packed or not.

    rows = stage(["logs/", "more.csv.gz"], options, noun="events", into=scratch)
    for block in rows.blocks(): …                      text columns (parquet: its types), FILE and LINE

Every file is read once from end to end, so that whatever is wrong with it is said before anything is made of it. Plain
CSV and parquet are then read again where they lie, the rest from a copy in `into`, which must stay as long as the rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from features.intake.staged import Staged
from features.intake.staging.arrow_types import common_type
from features.intake.staging.reading import (
    EmptyFileError,
    Reading,
    ReadingOptions,
    columns_of,
    own_column,
    read_guessing,
)
from features.intake.staging.sources import find
from features.intake.staging.spool import Spool, read_spool
from plumline.errors import InputError


@dataclass(frozen=True)
class StagedFile:
    """One file that was read to its end."""

    reading: Reading
    types: dict[str, pa.DataType]
    num_rows: int
    blocks: Callable[[], Iterator[pa.Table]]


def stage(
    paths: Sequence[str], options: ReadingOptions, *, noun: str, into: Path, stdin: BinaryIO | None = None
) -> Staged:
    """noun: items, events or users, for messages; into: a scratch folder; stdin: what `-` reads.

    Raises InputError of one line for what cannot be used: the file, the line, what is wrong, what to do.
    """
    if not paths:
        raise InputError(f"{noun}: no file was given; give a file, a folder, a glob or -")
    notes: list[str] = []
    said: list[tuple[str, str]] = []
    files: list[StagedFile] = []
    for source in find(paths, into=into, stdin=stdin, notes=notes):
        try:
            files.append(read_guessing(source, options, into=into, use=partial(_read, into=into)))
        except EmptyFileError:
            if not source.found:
                raise
            said.append((source.name, "is empty and passed over"))
    _refuse_unused(options, files, noun)
    _refuse_mixture(files)
    if not any(file.num_rows for file in files):
        names = ", ".join(file.reading.source.name for file in files[:3]) or ", ".join(paths)
        columns = f"columns {list(files[0].types)} but " if files else ""
        raise InputError(f"{names}: {columns}no row; give a file with at least one row")
    kinds: dict[str, list[pa.DataType]] = {}
    for file in files:
        said += [*file.reading.notes, *dict.fromkeys(file.reading.said), *_folder_notes(file)]
        if not file.num_rows:
            said.append((file.reading.source.name, "has columns but no row"))
        for name, kind in file.types.items():
            kinds.setdefault(name, []).append(kind)
    schema = pa.schema([(name, common_type(found)) for name, found in kinds.items()])
    return Staged(
        files=tuple(file.reading.source.name for file in files),
        unit=tuple(file.reading.unit for file in files),
        columns=tuple(schema.names),
        notes=(*notes, *_together(said)),
        schema=schema,
        parts=tuple(file.blocks for file in files),
    )


def _read(reading: Reading, *, into: Path) -> StagedFile:
    types: dict[str, pa.DataType] = {}
    if reading.dialect is not None:
        types = dict.fromkeys(reading.dialect.columns, pa.string())
    spool = None
    if reading.packing or reading.kind == "json":
        spool = Spool(into)
    num_rows = 0
    try:
        for table in reading.blocks():
            num_rows += table.num_rows
            for name in columns_of(table):
                kind = table.schema.field(name).type
                types[name] = common_type([types.get(name, kind), kind])
            if spool is not None:
                spool.write(table)
    except BaseException:
        if spool is not None:
            spool.path.unlink()
        raise
    finally:
        if spool is not None:
            spool.close()
    return StagedFile(reading, types, num_rows, reading.blocks if spool is None else partial(read_spool, spool.path))


def _refuse_unused(options: ReadingOptions, files: Sequence[StagedFile], noun: str) -> None:
    """An option that no file asks for is a mistake."""
    kinds = {file.reading.kind for file in files}
    if "csv" not in kinds and (options.separator is not None or options.columns):
        option = "--separator" if options.separator is not None else "--columns"
        raise InputError(f"{noun}: {option} is for separated cells, and there is only {', '.join(sorted(kinds))}")
    if kinds == {"parquet"} and options.encoding is not None:
        raise InputError(f"{noun}: --encoding is for text, and there is only parquet")


def _refuse_mixture(files: Sequence[StagedFile]) -> None:
    """Files that a folder or an archive happens to hold together are one table only if they have columns in common."""
    found = [file for file in files if file.reading.source.found and file.types]
    for file in found[1:]:
        common = found[0].types.keys() & file.types.keys()
        if len(common) * 2 < min(len(found[0].types), len(file.types)):
            first, other = (f"{one.reading.source.name} {list(one.types)[:6]}" for one in (found[0], file))
            raise InputError(f"{first} and {other} are tables of different columns; name the files that are meant")


def _folder_notes(file: StagedFile) -> list[tuple[str, str]]:
    source = file.reading.source
    left_out = {what for _, what in file.reading.said}
    return [
        (source.name, f"column {name} is what its folder says")
        for name, _ in source.constants
        if own_column(name) not in left_out
    ]


def _together(said: Sequence[tuple[str, str]]) -> list[str]:
    """One line for what is said of many files."""
    names: dict[str, list[str]] = {}
    for name, what in said:
        names.setdefault(what, []).append(name)
    return [f"{of[0]}{f' and {len(of) - 1} more' if len(of) > 1 else ''}: {what}" for what, of in names.items()]
