r"""JSON → blocks of text columns: lines of objects, a list of objects, one object with one list of objects.

    shape_of(name, head, …)             "lines" or "document"
    read_lines(name, text)              one object a line
    read_document(name, text, …)        [ … ], { …: [ … ] }, or objects one after the other, over any lines

A document is never whole in memory: the end of each object is found, and some thousand objects at a time go the way of
lines. Of one object its only list of objects is read, unless the object itself is the row that was meant.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa

from features.intake.staging.csv_blocks import LONGEST, ROWS
from features.intake.staging.encodings import NotDecodableError, Utf8, first_broken, is_mostly_utf8
from features.intake.staging.json_rows import JsonRows, Notes, kind_of
from plumline.errors import InputError

_PIECE = 1 << 22  # bytes at a time
_FIRST = 1 << 20  # bytes of the first piece: who only peeks waits for no more
_BLANK = re.compile(r"[ \t\r\n]*")
_ENDS = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)
_LITERAL = re.compile(r"\{\s*[ub]?'")


def shape_of(name: str, head: str, *, whole: bool) -> Literal["lines", "document"]:
    """head: the first characters of the file, all of them if `whole`."""
    head = head.lstrip()
    line, feed, after = head.partition("\n")
    named_lines = bool(re.search(r"\.(jsonl|ndjson)(\.|$)", name.lower()))
    if head.startswith("["):
        return "document"
    if named_lines and line.strip() != "{":
        return "lines"
    if _LITERAL.match(head):
        return "lines"
    try:
        _, end = _ENDS.raw_decode(line)
    except (json.JSONDecodeError, RecursionError):
        return "document"
    alone = whole and not after.strip()
    return "document" if line[end:].strip() or alone or not (feed or whole) else "lines"


# --- 1. LINES ---


def read_lines(name: str, text: Utf8, said: Notes) -> Iterator[pa.Table]:
    """Blocks of rows; said: takes a note of what is not as it stands. Raises InputError with the line,
    NotDecodableError."""
    rows = JsonRows(name, said)
    rest, line, size, plain = b"", 1, _FIRST, True
    while True:
        more = text.read(size)
        final = not more
        data = rest + more
        if final and data and not data.endswith(b"\n"):
            data += b"\n"
        end = data.rfind(b"\n") + 1
        piece, rest = data[:end], data[end:]
        size = max(_PIECE, len(rest))
        if len(rest) > LONGEST:
            raise _too_long(name, line + piece.count(b"\n"))
        if piece:
            _check(piece, line, plain=plain)
            yield from _blocks(rows, piece, line)
            line += piece.count(b"\n")
            plain = plain and piece.isascii()
        if final:
            return


def _check(piece: bytes, line: int, *, plain: bool) -> None:
    broken = first_broken(piece, whole=True)
    if broken is not None:
        plain = plain and piece[:broken].isascii() and not is_mostly_utf8(piece)
        around = piece[max(broken - ROWS, 0) : broken + ROWS]
        raise NotDecodableError(line + piece.count(b"\n", 0, broken), piece[broken], around, plain=plain)


def _blocks(rows: JsonRows, piece: bytes, line: int) -> Iterator[pa.Table]:
    values = np.frombuffer(piece, np.uint8)
    feeds = np.flatnonzero(values == 10)
    lines = np.arange(line, line + len(feeds))
    if piece[:1].isspace() or np.isin(values[feeds[:-1] + 1], (9, 10, 13, 32)).any():
        texts = piece.split(b"\n")[:-1]
        kept = [number for number, text in enumerate(texts) if text.strip()]
        piece = b"".join(texts[number] + b"\n" for number in kept)
        lines = lines[kept]
    for start, end in _cuts(piece, len(lines)):
        cut = piece if len(lines) == end - start else _some_lines(piece, start, end)
        if end > start:
            yield rows.table(cut, lines[start:end])


def _cuts(piece: bytes, num_lines: int) -> list[tuple[int, int]]:
    return [(start, min(start + ROWS, num_lines)) for start in range(0, num_lines, ROWS)]


def _some_lines(piece: bytes, start: int, end: int) -> bytes:
    ends = np.flatnonzero(np.frombuffer(piece, np.uint8) == 10)
    return piece[ends[start - 1] + 1 if start else 0 : ends[end - 1] + 1]


class _TooLongError(InputError):
    """One object of more than LONGEST bytes."""


def _too_long(name: str, line: int) -> InputError:
    return _TooLongError(
        f"{name}: line {line}: an object of more than {LONGEST >> 20} MiB begins; no row of a log is that long"
    )


# --- 2. DOCUMENTS ---


def read_document(name: str, text: Utf8, said: Notes, *, keep_whole: bool) -> Iterator[pa.Table]:
    """Blocks of rows. keep_whole: one object is one row, whatever lists it has."""
    objects = _objects(_Document(name, text, said), keep_whole=keep_whole)
    rows = JsonRows(name, said)
    batch: list[bytes] = []
    lines: list[int] = []
    size = 0
    for line, source in objects:
        batch.append(_on_one_line(source))
        lines.append(line)
        size += len(batch[-1]) + 1
        if size >= _PIECE or len(batch) >= ROWS:
            yield rows.table(b"\n".join([*batch, b""]), np.array(lines))
            batch, lines, size = [], [], 0
    if batch:
        yield rows.table(b"\n".join([*batch, b""]), np.array(lines))


def _on_one_line(source: str) -> bytes:
    data = source.encode("utf-8")
    try:
        return msgspec.json.format(data, indent=-1)
    except msgspec.DecodeError:  # NaN
        return data.replace(b"\n", b" ")  # a string of JSON holds no line feed, only a blank can be one


class _Document:
    """The text of a document, as much of it as is needed, and where in it the next value begins."""

    def __init__(self, name: str, text: Utf8 | None, said: Notes, begun: str = "", line: int = 1) -> None:
        self.name, self.said, self._text, self.buffer, self.at = name, said, text, begun, 0
        self._line, self._counted = line, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self._plain = True
        self._ended = text is None

    @property
    def line(self) -> int:
        """Of the file, at which the next value begins."""
        self._line += self.buffer.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def more(self) -> bool:
        """Read on; False at the end. What was taken is forgotten."""
        if self._ended or self._text is None:
            return False
        self._line, self._counted = self.line, 0
        self.buffer, self.at = self.buffer[self.at :], 0
        data = self._text.read(max(_FIRST, min(len(self.buffer), LONGEST)))
        self._ended = not data
        try:
            text = self._decoder.decode(data, self._ended)
        except UnicodeDecodeError as error:
            held = bytes(error.object)
            before = held[: error.start]
            line = self._line + self.buffer.count("\n") + before.count(b"\n")
            plain = self._plain and before.isascii() and self.buffer.isascii() and not is_mostly_utf8(held)
            raise NotDecodableError(line, held[error.start], held, plain=plain) from None
        self._plain = self._plain and data.isascii()
        self.buffer += text
        return True

    def next(self) -> str:
        """The next character that is no blank, "" at the end; it is not taken."""
        while True:
            match = _BLANK.match(self.buffer, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self.more():
                return ""

    def take(self, wanted: str, where: str) -> None:
        """Take one sign. Raises InputError where another stands."""
        if self.next() != wanted:
            raise self.broken(f"{wanted} is wanted {where}")
        self.at += 1

    def broken(self, reason: str) -> InputError:
        stands = f"{self.buffer[self.at : self.at + 12]!r} stands there" if self.next() else "the file ends there"
        return InputError(f"{self.name}: line {self.line}: no JSON ({reason}, {stands}); mend the file")

    def value(self, longest: int | None = None) -> tuple[str, Any]:
        """Take the next value: as it is spelt, and read. Raises _TooLongError beyond `longest` characters."""
        self.next()
        while True:
            try:
                value, end = _ENDS.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                certain = error.pos < len(self.buffer) - 16 and not error.msg.startswith("Unterminated")
                if not certain and len(self.buffer) - self.at > (longest or LONGEST):
                    raise _too_long(self.name, self.line) from None
                if certain or not self.more():
                    line = self.line + self.buffer.count("\n", self.at, error.pos)
                    raise InputError(f"{self.name}: line {line}: no JSON ({error.msg}); mend the file") from None
                continue
            except RecursionError:
                raise InputError(f"{self.name}: line {self.line}: nested too deep to be read; mend the file") from None
            if end == len(self.buffer) and self.more():  # 12 may go on as 123
                continue
            source, self.at = self.buffer[self.at : end], end
            return source, value


def _objects(document: _Document, *, keep_whole: bool) -> Iterator[tuple[int, str]]:
    """Line and text of each object that is a row."""
    num_objects = 0
    while char := document.next():
        if char == "[":
            yield from _elements(document)
        elif char == "{":
            line = document.line
            num_objects += 1
            try:
                source, value = document.value(None if num_objects > 1 or keep_whole else _PIECE)
            except _TooLongError:
                if num_objects > 1 or keep_whole:
                    raise
                yield from _only_list(document)
                continue
            lists = [key for key, part in value.items() if _is_rows(part)]
            if num_objects == 1 and lists and not keep_whole and not document.next():
                yield from _only_list(_Document(document.name, None, document.said, source, line))
            else:
                yield line, source
        else:
            raise document.broken("a list or an object is wanted")


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) for part in value)


def _elements(document: _Document) -> Iterator[tuple[int, str]]:
    """The objects of a list."""
    document.take("[", "before a list")
    if document.next() == "]":
        document.at += 1
        return
    while True:
        document.next()
        line = document.line
        source, value = document.value()
        if not isinstance(value, dict):
            raise InputError(
                f"{document.name}: line {line}: {kind_of(value)} in the list, not an object; one {{…}} a row is wanted"
            )
        yield line, source
        if document.next() == "]":
            document.at += 1
            return
        document.take(",", "between two objects")


def _only_list(document: _Document) -> Iterator[tuple[int, str]]:
    """The objects of the one list of objects that an object has."""
    found: str | None = None
    document.take("{", "before an object")
    while document.next() != "}":
        key = document.value()[1]
        document.take(":", "after a key")
        if document.next() == "[" and _begins_rows(document):
            if found is not None:
                both = f"{found!r} and {key!r}"
                raise InputError(f"{document.name}: has two lists of objects, {both}; give the one that is meant alone")
            found = key
            document.said.append((document.name, f"rows are the objects of its list {key!r}"))
            yield from _elements(document)
        else:
            document.value()
        if document.next() == ",":
            document.at += 1
    document.at += 1


def _begins_rows(document: _Document) -> bool:
    """Whether the list that begins here holds objects; nothing is taken."""
    while True:
        match = _BLANK.match(document.buffer, document.at + 1)
        assert match is not None
        if match.end() < len(document.buffer):
            return document.buffer[match.end()] == "{"
        if not document.more():
            return False
