"""One file → how it is read: unpacked, decoded, as which kind, with which separator; and then its blocks.

reading = decide(source, options, into=scratch, guess=Guess())      looks at the first MiB only
for table in reading.blocks(): …                                    its own columns and LINE, again and again
"""

import codecs
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import pyarrow as pa

from features.intake.staged import LINE, refuse_ours
from features.intake.staging import csv_blocks, parquet_blocks
from features.intake.staging.csv_blocks import QuotesAreLettersError
from features.intake.staging.dialects import Dialect, guess_dialect, separator_of
from features.intake.staging.encodings import (
    Encoding,
    NotDecodableError,
    Utf8,
    guess_encoding,
    known_encoding,
    mark_of,
    single_byte,
)
from features.intake.staging.json_blocks import read_document, read_lines, shape_of
from features.intake.staging.kinds import is_parquet, refuse_bytes, refuse_others, text_kind
from features.intake.staging.sources import Source
from features.intake.staging.spool import new_file
from features.intake.staging.streams import Stream
from plumline.errors import InputError

HEAD = 1 << 20
"""Bytes by which everything is guessed."""


class ReadingOptions(Protocol):
    """What staging asks of Options."""

    @property
    def format(self) -> str | None: ...
    @property
    def separator(self) -> str | None: ...
    @property
    def encoding(self) -> str | None: ...
    @property
    def columns(self) -> tuple[str, ...]: ...


class EmptyFileError(InputError):
    """A file without a byte or without a line that is not blank."""


@dataclass(frozen=True)
class Guess:
    """What was learnt from reading a file further than its head."""

    encoding: Encoding | None = None
    quoting: Literal["none"] | None = None


@dataclass(frozen=True)
class Reading:
    """How one file is read."""

    source: Source
    kind: Literal["csv", "json", "parquet"]
    packing: str = ""
    encoding: Encoding | None = None
    returns: bool = False
    dialect: Dialect | None = None
    shape: Literal["lines", "document"] | None = None
    keep_whole: bool = False
    notes: tuple[tuple[str, str], ...] = ()
    """(file, what was guessed of it)."""
    said: list[tuple[str, str]] = field(default_factory=list)
    """The same of what only reading showed, whole once blocks() has ended."""

    @property
    def unit(self) -> str:
        """What LINE counts."""
        return "row" if self.kind == "parquet" else "line"

    def blocks(self) -> Iterator[pa.Table]:
        """The columns of the file, those that its folders name, and LINE."""
        for table in self._blocks():
            for name, value in self.source.constants:
                if name in table.column_names:
                    if (self.source.name, own_column(name)) not in self.said:
                        self.said.append((self.source.name, own_column(name)))
                    continue
                table = table.append_column(name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
            yield table

    def _blocks(self) -> Iterator[pa.Table]:
        if self.kind == "parquet":
            self.source.check()
            yield from parquet_blocks.read_blocks(self.source.name, self.source.path)
            return
        assert self.encoding is not None
        with self.source.open() as stream:
            text = Utf8(stream, self.encoding, returns=self.returns)
            if self.dialect is not None:
                yield from csv_blocks.read_blocks(self.source.name, text, self.dialect)
            elif self.shape == "lines":
                yield from read_lines(self.source.name, text, self.said)
            else:
                yield from read_document(self.source.name, text, self.said, keep_whole=self.keep_whole)


def decide(source: Source, options: ReadingOptions, *, into: Path, guess: Guess) -> Reading:
    """Look at the first bytes of a file. into: where packed parquet is unpacked to.

    Raises InputError for a file of no kind that is read here, NotDecodableError for UTF-8 with broken bytes.
    """
    with source.open() as stream:
        head = stream.head(HEAD + 1)
        whole, head = len(head) <= HEAD, head[:HEAD]
        if not head:
            raise EmptyFileError(f"{source.name}: the file is empty; give a file with at least one row")
        refuse_others(source.name, head)
        if is_parquet(source.name, head, told=options.format):
            if stream.packing:
                return Reading(_unpacked(source, stream, into), "parquet", stream.packing)
            return Reading(source, "parquet")
        encoding = _encoding(head, options.encoding, guess, whole=whole)
        if options.encoding is None and not encoding.name.startswith(("utf-16", "utf-32")):
            refuse_bytes(source.name, head)
        text, returns = _text(head, encoding, whole=whole)
        if not text.strip():
            raise EmptyFileError(f"{source.name}: the file is empty but for blanks; give a file with at least one row")
        reading = Reading(source, "json", stream.packing, encoding, returns, notes=_encoding_notes(source, encoding))
    kind = text_kind(source.name, text, by_name=source.kind_by_name, told=options.format)
    if kind == "json":
        keep_whole = bool(getattr(options, "explode", ()))
        return replace(reading, shape=shape_of(source.name, text, whole=whole), keep_whole=keep_whole)
    separator = None if options.separator is None else separator_of(options.separator)
    told = getattr(options, "quote", None)
    dialect = guess_dialect(
        source.name, text, whole=whole, separator=separator, columns=options.columns, quoting=guess.quoting or told
    )
    refuse_ours(source.name, dialect.columns)
    notes = tuple((source.name, note) for note in dialect.notes if told is None or "quotes are" not in note)
    return replace(reading, kind="csv", dialect=dialect, notes=reading.notes + notes)


def _unpacked(source: Source, stream: Stream, into: Path) -> Source:
    """Parquet is read from its end, so it must lie unpacked on disk."""
    copy = new_file(into)
    with copy.open("wb") as file:
        reader: Any = stream
        shutil.copyfileobj(reader, file, 1 << 20)
    return replace(source, path=copy, member=None).looked_at()


def _encoding(head: bytes, told: str | None, guess: Guess, *, whole: bool) -> Encoding:
    if told is not None:
        return mark_of(head, known_encoding(told))
    return guess.encoding or guess_encoding(head, whole=whole)


def _text(head: bytes, encoding: Encoding, *, whole: bool) -> tuple[str, bool]:
    """The head as text, and whether its lines end with a carriage return alone. What cannot be decoded is found, with
    its line, by who reads the file."""
    decoder = codecs.getincrementaldecoder(encoding.name)("replace")
    text = decoder.decode(head[encoding.mark :], whole)
    returns = "\r" in text and "\n" not in text
    return text.replace("\r", "\n") if returns else text, returns


def _encoding_notes(source: Source, encoding: Encoding) -> tuple[tuple[str, str], ...]:
    if encoding.guessed:
        return ((source.name, f"is read as {encoding.name} (guessed; --encoding says otherwise)"),)
    return () if encoding.name == "utf-8" else ((source.name, f"is read as {encoding.name}"),)


def own_column(name: str) -> str:
    """The note on a file that has a column of which its folder says something too."""
    return f"column {name} is its own, not what its folder says"


def columns_of(table: pa.Table) -> list[str]:
    """The columns of a block without LINE."""
    return [name for name in table.column_names if name != LINE]


T = TypeVar("T")


def read_guessing(source: Source, options: ReadingOptions, *, into: Path, use: Callable[[Reading], T]) -> T:
    """What `use` makes of a file; begun again where reading on shows that something was guessed wrong."""
    guess, refusal = Guess(), None
    tried: set[str] = set()
    while True:
        try:
            return use(decide(source, options, into=into, guess=guess))
        except NotDecodableError as error:
            guess = replace(guess, encoding=_another(source, options, guess, error, tried))
        except QuotesAreLettersError as error:
            refusal = error.error
            guess = replace(guess, quoting="none")
        except InputError:
            if refusal is not None:  # as letters they make no sense either
                raise refusal from None
            raise


def _another(
    source: Source, options: ReadingOptions, guess: Guess, error: NotDecodableError, tried: set[str]
) -> Encoding:
    """Another encoding to try. Raises InputError where none is to be guessed."""
    told = options.encoding
    name = told or (guess.encoding.name if guess.encoding else "UTF-8")
    if told or not error.plain:
        rest = "" if told else ", though the rest of the file is"
        raise InputError(
            f"{source.name}: line {error.line}: byte {error.byte:#04x} is not {name}{rest}; "
            "mend it, or say with --encoding what the file is (latin-1 reads any byte)"
        )
    encoding = single_byte(error.around)
    if encoding.name in tried:
        encoding = Encoding("latin-1", guessed=True)
    tried.add(encoding.name)
    return encoding
