r"""Separated cells → blocks of text columns, by Arrow's reader, with the line of the file of every row.

    for table in read_blocks(name, text, dialect, …)      columns of text and LINE

The text is cut where a record ends, and each piece is read by itself, so memory is that of a piece. Where Arrow would
read something else than records.py, or cannot say which line it is, that piece is read by records.py:

1. Quotes: a piece is cut at a line end that an even number of quotes precedes. That is right if every other quote
   opens a cell and the one after it ends it, or stands before another quote; all of them are looked at.
2. Lines: with as many line feeds as rows each row is a line. Else rows begin after the line feeds outside of quotes.
3. NULs, broken UTF-8, a wrong number of cells, a carriage return alone: records.py finds the line and says it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from features.intake.staged import LINE
from features.intake.staging.dialects import Dialect, shown
from features.intake.staging.encodings import NotDecodableError, Utf8, first_broken, is_mostly_utf8
from features.intake.staging.records import MalformedError, Record, records, stand_in
from plumline.errors import InputError

ROWS = 1 << 16
"""Rows a block that pieces are sized for."""
_FIRST, _SMALLEST, _LARGEST = 1 << 20, 1 << 18, 1 << 23  # bytes a piece
LONGEST = 1 << 25
"""Bytes that one record may take."""
_QUOTE, _LF, _CR = 34, 10, 13


class QuotesAreLettersError(Exception):
    """Quotes that do not match in a file of which nothing but a guess says that they are quotes."""

    def __init__(self, error: InputError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class _Piece:
    """What was read of the bytes at hand: so many bytes and lines of them."""

    table: pa.Table | None
    num_bytes: int
    num_lines: int


def read_blocks(name: str, text: Utf8, dialect: Dialect) -> Iterator[pa.Table]:
    """Blocks of about 64k rows. Raises InputError with the line, NotDecodableError, QuotesAreLettersError."""
    reader = _Reader(name, dialect)
    rest, line, size, plain = b"", 1, _FIRST, True
    while True:
        more = text.read(size)
        final = not more
        data = rest + more if rest else more
        if final:
            data = data.removesuffix(b"\x1a")  # the end of a file as DOS wrote it
        if final and data and not data.endswith(b"\n"):
            data += b"\n"
        if line <= dialect.skipped:
            data, line = _without_first_lines(data, line, dialect.skipped)
        is_ascii = data.isascii()
        try:
            piece = reader.read(data, line, final=final, is_ascii=is_ascii)
        except NotDecodableError as error:
            error.plain &= plain
            raise
        if piece.table is not None and piece.table.num_rows:
            yield from _slices(piece.table)
            size = int(np.clip(ROWS * piece.num_bytes // piece.table.num_rows, _SMALLEST, _LARGEST))
        elif not piece.num_bytes:
            size = max(size, len(data))  # a record longer than the piece: not looked through again and again
        rest, line = data[piece.num_bytes :], line + piece.num_lines
        plain = plain and is_ascii
        if final:
            return


def _without_first_lines(data: bytes, line: int, skipped: int) -> tuple[bytes, int]:
    start = 0
    while line <= skipped:
        end = data.find(b"\n", start)
        if end < 0:
            return data[start:], line
        start, line = end + 1, line + 1
    return data[start:], line


def _slices(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, 2 * ROWS):
        yield table.slice(start, 2 * ROWS)


class _Reader:
    def __init__(self, name: str, dialect: Dialect) -> None:
        self._name, self._dialect, self._writing = name, dialect, dialect.writing
        self._columns = dialect.columns
        names = [str(number) for number in range(len(self._columns))]
        self._separator = self._writing.separator.encode("utf-8")
        self._quoted = self._writing.quoting == "doubled"
        self._fast = self._writing.quoting != "escaped" and not self._writing.spaced
        self._names = names
        self._converts = {
            is_ascii: pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                check_utf8=not is_ascii,
            )
            for is_ascii in (False, True)
        }

    # --- 1. A PIECE ---

    def read(self, data: bytes, line: int, *, final: bool, is_ascii: bool) -> _Piece:
        """As many whole records as there are. line: of the file, at which `data` begins."""
        if not data:
            return _Piece(None, 0, 0)
        if not final and b"\n" not in data:
            return self._slow(data, line, final=False)
        piece = self._quick(data, line, is_ascii=is_ascii) if self._fast else None
        return self._slow(data, line, final=final) if piece is None else piece

    def _quick(self, data: bytes, line: int, *, is_ascii: bool) -> _Piece | None:
        """By Arrow; None where records.py has to look."""
        separator, longer = self._separator, None
        if len(separator) > 1:
            try:
                separator, longer = stand_in(data), separator
            except MalformedError:
                return None
            data = data.replace(longer, separator)
        values = np.frombuffer(data, np.uint8)
        quotes = np.flatnonzero(values == _QUOTE) if self._quoted and b'"' in data else None
        end = _last_end(data, quotes)
        if end <= 0:
            return None
        values = values[:end]
        if data.find(b"\0", 0, end) >= 0:
            return None
        if data.find(b"\r", 0, end) >= 0 and data.count(b"\r", 0, end) != data.count(b"\r\n", 0, end):
            return None
        if quotes is not None:
            quotes = quotes[: int(np.searchsorted(quotes, end))]
            if not self._match(values, quotes, separator):
                return None
        table = self._arrow(values, separator, is_ascii=is_ascii)
        num_lines = int(np.count_nonzero(values == _LF))
        lines = None if table is None else _lines_of(table, line, num_lines)
        if table is not None and lines is None:
            lines = _lines_after_blanks(values, quotes, line, table.num_rows)
        if table is None or lines is None:
            return None
        num_bytes = end
        if longer is not None:
            num_bytes += data.count(separator, 0, end) * (len(longer) - 1)
            if quotes is not None:  # only within quotes can one be left
                table = _put_back(table, separator.decode(), longer.decode("utf-8"))
        columns = dict(zip(self._columns, table.columns, strict=True))
        return _Piece(pa.table({**columns, LINE: lines}), num_bytes, num_lines)

    def _match(self, values: np.ndarray, quotes: np.ndarray, separator: bytes) -> bool:
        """Whether every other quote opens a cell and those between end one. values: ends with a line feed, so that the
        byte before the first is one too."""
        before, after = values[quotes[0::2] - 1], values[quotes[1::2] + 1]
        opens = (before == separator[0]) | (before == _QUOTE) | (before == _LF)
        closes = (after == separator[0]) | (after == _QUOTE) | (after == _LF) | (after == _CR)
        return bool(opens.all() and closes.all())

    def _arrow(self, values: np.ndarray, separator: bytes, *, is_ascii: bool) -> pa.Table | None:
        # Arrow's own memory: a thread of its reader may still hold it when the process ends, and must not need Python
        buffer = pa.allocate_buffer(len(values))
        np.frombuffer(buffer, np.uint8)[:] = values
        try:
            return pyarrow.csv.read_csv(
                pa.BufferReader(buffer),
                read_options=pyarrow.csv.ReadOptions(
                    use_threads=False, block_size=len(values) + 1, column_names=self._names
                ),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=separator.decode("utf-8"),
                    quote_char='"' if self._quoted else False,
                    newlines_in_values=True,
                ),
                convert_options=self._converts[is_ascii],
            )
        except pa.ArrowInvalid:
            return None

    # --- 2. LINE BY LINE ---

    def _slow(self, data: bytes, line: int, *, final: bool) -> _Piece:
        whole_lines = data if final else data[: data.rfind(b"\n") + 1]
        broken = first_broken(whole_lines, whole=True)
        if broken is not None:
            before = whole_lines[:broken]
            at = line + before.count(b"\n")
            plain = before.isascii() and not is_mostly_utf8(whole_lines)
            raise NotDecodableError(
                at, whole_lines[broken], whole_lines[max(broken - ROWS, 0) :][: 2 * ROWS], plain=plain
            )
        rows = list(self._checked(whole_lines.decode("utf-8"), line, final=final))
        if not rows and len(data) > LONGEST:
            raise self._too_long(data, line)
        num_lines = whole_lines.count(b"\n") if final else rows[-1].line + rows[-1].height - 1 if rows else 0
        columns = {
            name: pa.array([row.cells[number] or None for row in rows], pa.string())
            for number, name in enumerate(self._columns)
        }
        lines = pa.array([line + row.line - 1 for row in rows], pa.int64())
        return _Piece(pa.table({**columns, LINE: lines}), _end_of_line(whole_lines, num_lines), num_lines)

    def _checked(self, text: str, line: int, *, final: bool) -> Iterator[Record]:
        try:
            for record in records(text, self._writing, whole=final):
                if _is_blank(record.cells) and len(self._columns) > 1:
                    continue
                at = f"{self._name}: line {line + record.line - 1}"
                if any("\0" in cell for cell in record.cells):
                    raise InputError(f"{at}: holds a NUL byte, which no text does; mend or remove that line")
                if len(record.cells) != len(self._columns):
                    raise InputError(
                        f"{at}: {len(record.cells)} cells where {self._whose} {len(self._columns)} "
                        f"(the separator is {shown(self._writing.separator)}); mend or remove that line"
                    )
                yield record
        except MalformedError as error:
            refusal = InputError(f"{self._name}: line {line + error.line - 1}: {error}")
            raise (QuotesAreLettersError(refusal) if self._dialect.may_be_plain else refusal) from None

    @property
    def _whose(self) -> str:
        return "the header has" if self._dialect.has_header else "--columns names"

    def _too_long(self, data: bytes, line: int) -> InputError:
        try:
            list(records(data.decode("utf-8", "replace"), self._writing, whole=True))
        except MalformedError as error:
            if error.open:
                refusal = InputError(f"{self._name}: line {line + error.line - 1}: {error}")
                raise (QuotesAreLettersError(refusal) if self._dialect.may_be_plain else refusal) from None
        return InputError(f"{self._name}: line {line}: is longer than {LONGEST >> 20} MiB; no row of a log is")


# --- 3. WHERE RECORDS END, WHERE ROWS BEGIN ---


def _last_end(data: bytes, quotes: np.ndarray | None) -> int:
    """The end of the last line that an even number of quotes precedes; 0 if there is none."""
    end = data.rfind(b"\n")
    if quotes is None:
        return end + 1
    while end >= 0:
        before = int(np.searchsorted(quotes, end))
        if before % 2 == 0:
            return end + 1
        end = data.rfind(b"\n", 0, int(quotes[before - 1]))
    return 0


def _lines_of(table: pa.Table, line: int, num_lines: int) -> pa.Array | None:
    """The line of the file of each row, by the line feeds in its cells; None if there are blank lines too."""
    lines = np.arange(line, line + table.num_rows)
    if num_lines == table.num_rows:  # blank lines and feeds within cells only ever add to the lines
        return pa.array(lines)
    within = np.zeros(table.num_rows, np.int64)
    for column in table.columns:
        if any(_has_feed(chunk) for chunk in column.chunks):
            within += pc.fill_null(pc.count_substring(column, "\n"), 0).to_numpy()
    if num_lines != table.num_rows + within.sum():
        return None
    return pa.array(lines + np.cumsum(within) - within)


def _has_feed(texts: pa.Array) -> bool:
    data = texts.buffers()[2]
    return data is not None and bool((np.frombuffer(data, np.uint8) == _LF).any())


def _lines_after_blanks(values: np.ndarray, quotes: np.ndarray | None, line: int, num_rows: int) -> pa.Array | None:
    """The line of the file of each row, by where records begin; None if that cannot be told."""
    feeds = np.flatnonzero(values == _LF)
    ends = feeds if quotes is None else feeds[np.searchsorted(quotes, feeds) % 2 == 0]
    starts = np.concatenate([[0], ends[:-1] + 1])
    blank = (starts == ends) | ((ends - starts == 1) & (values[starts] == _CR))
    starts = starts[~blank]
    if len(starts) != num_rows:
        return None
    return pa.array(line + np.searchsorted(feeds, starts))


def _is_blank(cells: list[str]) -> bool:
    return len(cells) == 1 and not cells[0].strip()


def _end_of_line(data: bytes, num_lines: int) -> int:
    """Bytes that so many lines take."""
    if not num_lines:
        return 0
    return int(np.flatnonzero(np.frombuffer(data, np.uint8) == _LF)[num_lines - 1]) + 1


def _put_back(table: pa.Table, mark: str, separator: str) -> pa.Table:
    columns = [pc.replace_substring(column, mark, separator) for column in table.columns]
    return pa.table(columns, names=table.column_names)
