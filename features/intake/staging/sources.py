"""What was given on the command line → the files to read: paths, globs, folders, archives, `-` for standard input.

    find(["logs/", "more-*.csv.gz", "-"], …) → Sources, in order, each with the name that messages call it by

A folder gives all data files below it, hive folders (`day=2024-01-01/part.parquet`) also a column; a zip gives the data
files in it. What can be read only once (standard input, a pipe) is copied into the scratch folder first.
"""

import glob
import shutil
import stat
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from features.intake.staging.spool import new_file
from features.intake.staging.streams import ZIP, Stream, open_file, open_member
from plumline.errors import InputError

KINDS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".dat": "csv",
    ".data": "csv",
    ".txt": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
}
"""Suffix → kind of file. It says which files of a folder are read, and how, where content leaves a choice."""

PACKED = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".zip")
_NULL_DAY = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Source:
    """One file to read. It can be opened as often as wanted."""

    name: str
    """As messages call it: the path as it was given, `a.zip/b.csv` inside of an archive, `-` for standard input."""
    path: Path
    member: str | None = None
    constants: tuple[tuple[str, str | None], ...] = ()
    """Columns that its folders name: (("day", "2024-01-01"),)."""
    found: bool = False
    """It was found in a folder or an archive, not named: if it is empty, it is passed over."""
    seen: tuple[int, int] = (0, 0)
    """Size in bytes and time of the last change (ns) when it was found."""

    def open(self) -> Stream:
        """Its bytes, unpacked. Raises InputError if the file is gone or has changed."""
        self.check()
        if self.member is None:
            return open_file(self.path, self.name)
        return open_member(self.path, self.member, self.name)

    def check(self) -> None:
        """Raises InputError if the file is gone or has changed since it was found."""
        if self.seen != _seen(self.path, self.name):
            raise InputError(f"{self.name}: has changed since it was first read; copy it, then give the copy")

    def looked_at(self) -> "Source":
        """The same source with the file that lies at its path now."""
        return replace(self, seen=_seen(self.path, self.name))

    @property
    def kind_by_name(self) -> str | None:
        """csv, json, parquet or None."""
        return _kind(self.name)


def find(paths: Sequence[str], *, into: Path, stdin: BinaryIO | None, notes: list[str]) -> list[Source]:
    """The sources of what was given, in that order. Raises InputError for what is not there or holds no data."""
    sources: list[Source] = []
    for given in paths:
        sources += _archives(_found(given, into=into, stdin=stdin, notes=notes))
    seen: dict[tuple[Path, str | None], Source] = {}
    for source in sources:
        key = (source.path.resolve(), source.member)
        if key in seen:
            notes.append(f"{source.name}: is given twice and read once")
        seen.setdefault(key, source)
    return list(seen.values())


def _found(given: str, *, into: Path, stdin: BinaryIO | None, notes: list[str]) -> list[Source]:
    if given == "-":
        if stdin is None:
            raise InputError("-: there is no standard input here; give a file")
        return [_copied(stdin, "-", into)]
    path = Path(given)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return _globbed(given, into=into, stdin=stdin, notes=notes)
    except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
        raise _unreadable(given, error) from None
    if stat.S_ISDIR(mode):
        return _of_folder(path, given, notes)
    if not stat.S_ISREG(mode):
        with _opened(path, given) as pipe:
            return [_copied(pipe, given, into)]
    return [_source(path, given)]


def _source(path: Path, name: str, *, found: bool = False) -> Source:
    return Source(on_one_line(name), path, constants=_constants(name), found=found, seen=_seen(path, name))


def _seen(path: Path, name: str) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(name, error) from None
    return status.st_size, status.st_mtime_ns


def _opened(path: Path, name: str) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: Exception) -> InputError:
    return InputError(f"{on_one_line(name)}: cannot be read ({getattr(error, 'strerror', None) or error})")


def _copied(stream: BinaryIO, name: str, into: Path) -> Source:
    """A copy of what can be read only once."""
    copy = new_file(into)
    with copy.open("wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
    return Source(on_one_line(name), copy, seen=_seen(copy, name))


def _globbed(given: str, *, into: Path, stdin: BinaryIO | None, notes: list[str]) -> list[Source]:
    if glob.has_magic(given):
        names = sorted(glob.glob(given, recursive=True))  # noqa: PTH207  Path has no glob of absolute patterns
        if not names:
            raise InputError(f"{given}: no file fits; {_what_is_there(Path(given))}")
        sources = []
        for name in names:
            inner = _found(name, into=into, stdin=stdin, notes=notes)
            sources += [replace(source, found=len(names) > 1 or source.found) for source in inner]
        return sources
    for folder in Path(given).parents:
        if folder.is_file() and _is_archive(folder, given):
            member = Path(given).relative_to(folder).as_posix()
            names = _members(folder, str(folder))
            if member not in names:
                raise InputError(f"{given}: is not in the archive; it holds {_some(names)}")
            return [Source(given, folder, member, _constants(given), seen=_seen(folder, given))]
    raise InputError(f"{on_one_line(given)}: there is no such file; {_what_is_there(Path(given))}")


def _what_is_there(path: Path) -> str:
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return f"{folder} holds {_some(names)}" if names else f"{folder} is empty"


def _some(names: Iterable[str]) -> str:
    listed = [on_one_line(name) for name in names]
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")


def on_one_line(name: str) -> str:
    """A name as messages show it: a line feed in it is written as \\n."""
    return name if name.isprintable() else name.encode("unicode_escape").decode("ascii")


def _of_folder(folder: Path, given: str, notes: list[str]) -> list[Source]:
    if (folder / "_delta_log").is_dir():
        raise InputError(
            f"{given}: is a Delta table, whose files hold deleted rows too; write its rows as parquet files"
        )
    below = sorted(path for path in folder.rglob("*") if path.is_file())
    shown = [path for path in below if not any(part[:1] in "._" for part in path.relative_to(folder).parts)]
    data = [path for path in shown if _kind(path.name) or path.name.startswith("part-") or _is_zip(path.name)]
    if not data:
        held = _some(path.relative_to(folder).as_posix() for path in shown) if shown else "nothing"
        raise InputError(f"{given}: is a folder without data files; it holds {held}; wanted are {', '.join(KINDS)}")
    left_out = [path.relative_to(folder).as_posix() for path in shown if path not in set(data)]
    if left_out:
        notes.append(f"{given}: left out, no data files by their names: {_some(left_out)}")
    return [_source(path, f"{given.rstrip('/')}/{path.relative_to(folder).as_posix()}", found=True) for path in data]


def _kind(name: str) -> str | None:
    plain = name.lower()
    while (suffix := Path(plain).suffix) in PACKED:
        plain = plain.removesuffix(suffix)
    return KINDS.get(Path(plain).suffix)


def _is_zip(name: str) -> bool:
    return name.lower().endswith(".zip")


def _constants(name: str) -> tuple[tuple[str, str | None], ...]:
    """Columns of hive folders: `a/day=2024-01-01/b.csv` → (("day", "2024-01-01"),)."""
    pairs = [part.split("=", 1) for part in Path(name).parts[:-1] if part.count("=") == 1]
    named = {key: unquote(value) for key, value in pairs if key.isidentifier()}
    return tuple((key, None if value == _NULL_DAY else value) for key, value in named.items())


def _archives(sources: Sequence[Source]) -> list[Source]:
    """Each zip replaced by the data files in it."""
    unpacked: list[Source] = []
    for source in sources:
        if source.member is not None or not _is_archive(source.path, source.name):
            unpacked.append(source)
            continue
        names = _members(source.path, source.name)
        data = [name for name in names if _kind(name)] or (names if len(names) == 1 else [])
        kinds = {_kind(name) for name in data}
        if not data:
            held = f"it holds {_some(names)}" if names else "it is empty"
            raise InputError(f"{source.name}: no data file in the archive; {held}; wanted are {', '.join(KINDS)}")
        if len(kinds) > 1:
            raise InputError(f"{source.name}: holds several kinds ({_some(data)}); name one: {source.name}/{data[0]}")
        unpacked += [
            replace(
                source,
                name=f"{source.name}/{on_one_line(name)}",
                member=name,
                found=source.found or len(data) > 1,
                constants=source.constants + _constants(name),
            )
            for name in data
        ]
    return unpacked


def _is_archive(path: Path, name: str) -> bool:
    with _opened(path, name) as file:
        return file.read(4) in ZIP


def _members(path: Path, name: str) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if entry.filename and not entry.is_dir()]
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name}: the zip archive is broken ({reason}); download or pack it again") from None
    if any(entry in ("xl/workbook.xml", "[Content_Types].xml") for entry in names):
        raise InputError(f"{name}: is an office document, not data; save the sheet as CSV")
    return [entry for entry in names if not any(mark in f"/{entry}" for mark in ("/__MACOSX/", "/._", "/.DS_Store"))]
