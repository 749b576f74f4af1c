"""Rows of separated cells are staged as they stand, with their lines; what is broken is one line with its line."""

import csv
import io
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from features.intake.staged import LINE, Staged
from features.intake.staging import csv_blocks
from features.intake.staging.dialects import Dialect
from features.intake.staging.encodings import Encoding, Utf8
from features.intake.staging.records import MalformedError, Writing, records
from features.intake.staging.streams import Stream
from plumline.errors import InputError

N = int(os.environ.get("N", "40"))
FEW = settings(max_examples=N, deadline=None, suppress_health_check=list(HealthCheck))
NEAR = st.text(st.sampled_from("ab \",;|\n\t'é€0.:\\"), max_size=6)
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"), max_size=8)


@st.composite
def tables(draw: Any) -> tuple[list[str], list[list[str]]]:
    width = draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(NEAR | TEXT, min_size=width, max_size=width), min_size=1, max_size=8))
    return [f"name{number}" for number in range(width)], rows


def written(rows: list[list[str]], separator: str, end: str, *, everywhere: bool) -> str:
    if len(separator) == 1:
        out = io.StringIO(newline="")
        quoting = csv.QUOTE_ALL if everywhere else csv.QUOTE_MINIMAL
        csv.writer(out, delimiter=separator, quoting=quoting, lineterminator=end).writerows(rows)
        return out.getvalue()
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in rows]
    return "".join(separator.join(row) + end for row in quoted)


@given(
    table=tables(),
    separator=st.sampled_from([",", ";", "\t", "|", "::", "\x01", "§"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"]),
    packing=st.sampled_from(["", ".gz", ".bz2", ".zst", ".zip"]),
    end=st.sampled_from(["\n", "\r\n"]),
    everywhere=st.booleans(),
    last=st.booleans(),
    told=st.booleans(),
    piece=st.sampled_from([1, 7, 40, 1 << 20]),
)
@FEW
def test_any_texts(
    write: Callable[..., Path],
    read: Callable[..., Any],
    small_pieces: Callable[[int], AbstractContextManager[None]],
    table: Any,
    separator: str,
    encoding: str,
    packing: str,
    end: str,
    everywhere: bool,
    last: bool,
    told: bool,
    piece: int,
) -> None:
    names, rows = table
    text = written([names, *rows], separator, end, everywhere=everywhere)
    before = [written([names, *rows[:k]], separator, end, everywhere=everywhere) for k in range(len(rows))]
    try:
        data = (text if last else text.removesuffix(end)).encode(encoding)
    except UnicodeEncodeError:
        return
    path = write(f"t.csv{packing}", data)
    options: dict[str, str] = {}
    if told or separator == "§":
        options |= {"separator": separator}
    if told or encoding in ("latin-1", "utf-16-le"):
        options |= {"encoding": encoding}
    try:
        with small_pieces(piece):
            got = read(path, **options)
    except InputError as error:
        assert "\n" not in str(error)
        assert not told, error
        return
    assert got == [
        {**{name: cell or None for name, cell in zip(names, row, strict=True)}, LINE: text.count("\n") + 1}
        for row, text in zip(rows, before, strict=True)
    ]


def blocks_of(text: str, dialect: Dialect) -> list[tuple[int, list[str | None]]]:
    """(line, cells) of each row, by the reader alone."""
    stream = Stream("t.csv", io.BytesIO(text.encode()))
    rows: list[tuple[int, list[str | None]]] = []
    for table in csv_blocks.read_blocks("t.csv", Utf8(stream, Encoding("utf-8")), dialect):
        rows += [(row.pop(LINE), list(row.values())) for row in table.to_pylist()]
    return rows


@given(
    text=st.text(st.sampled_from('ab,"\n\r '), max_size=40),
    quoting=st.sampled_from(["doubled", "none"]),
    piece=st.sampled_from([1, 5, 1 << 20]),
)
@example(text='1,"5 inch\n2,"6 inch\n3,4', quoting="doubled", piece=5)
@example(text='1,5" pipe\n\n2,b\n', quoting="doubled", piece=5)
@example(text='1,"a\n\nb"\n\n2,b\n', quoting="doubled", piece=1 << 20)
@settings(FEW, max_examples=5 * N)
def test_the_fast_way_reads_what_the_exact_one_reads(
    small_pieces: Callable[[int], AbstractContextManager[None]], text: str, quoting: Any, piece: int
) -> None:
    """Any text of quotes, commas and line ends: rows and lines of records.py, or refused where it refuses."""
    writing = Writing(",", quoting)
    expected: list[Any] | None = None
    try:
        found = [row for row in records(text, writing, whole=True) if len(row.cells) > 1 or row.cells[0].strip()]
        if all(len(row.cells) == 2 for row in found):
            expected = [(row.line, [cell or None for cell in row.cells]) for row in found]
    except MalformedError:
        pass
    with small_pieces(piece):
        try:
            got: list[Any] | None = blocks_of(text, Dialect(writing, ("a", "b"), 0, has_header=False))
        except InputError:
            got = None
    assert got == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\n1,x\n2,y\n3,z,more\n", "line 4: 3 cells where the header has 2 (the separator is ',')"),
        ('a,b\n1,"two\nlines"\n2\n', "line 4: 1 cells where the header has 2"),
        ("a,b\n\n\n1,x\n\n2\n", "line 6: 1 cells"),
        (
            'a,b\n1,x\n2,"never closed\n3,y\n',
            "line 3: a quote is opened and never closed; mend that",
        ),
        ('a,b\n1,"5 inch pipe\n2,"6 inch pipe\n3,C\n', "line 2: a quote is opened and closed where no cell ends"),
        ('a,b\n1,"x\ny" z\n', "line 2: a quote is opened and closed where no cell ends (before ' z')"),
        ("a,b\n1,x\n2,y\0\n", "line 3: holds a NUL byte"),
        ("a,b\n1,x\ry,2\n", "line 2: a carriage return stands in the middle of the line"),
        ("a,b\n", "columns ['a', 'b'] but no row"),
        ("a,b", "columns ['a', 'b'] but no row"),
        ("", "the file is empty"),
        (" \n\n", "the file is empty but for blanks"),
        ("\ufeff", "the file is empty but for blanks"),
        ("\n\na,b,a\n1,2,3\n", "line 3: column 'a' is there twice; rename one of them"),
    ],
)
def test_what_is_broken_is_one_line(
    write: Callable[..., Path], refusal: Callable[..., str], text: str, expected: str
) -> None:
    for name in ("t.csv", "t.csv.gz"):
        assert refusal(write(name, text)).startswith(expected)


def test_more_columns_named_than_a_line_has(write: Callable[..., Path], refusal: Callable[..., str]) -> None:
    path = write("t.csv", "1,2\n3\n")
    assert refusal(path, columns=("a", "b")).startswith("line 2: 1 cells where --columns names 2")


def test_a_quote_that_swallows_a_file_is_found_before_the_file_is_in_memory(
    write: Callable[..., Path], refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_blocks, "LONGEST", 1 << 16)
    monkeypatch.setattr(csv_blocks, "_FIRST", 1 << 10)
    path = write("t.csv", "a,b\n" + "1,x\n" * 99 + '2,"open\n' + "3,y\n" * 100_000)
    assert refusal(path) == "line 101: a quote is opened and never closed; mend that line, or say --quote none"
    path = write("t.csv", "a,b\n1," + "x" * (1 << 17) + "\n")
    assert refusal(path).startswith("line 2: is longer than")


def test_quotes_of_a_log_with_tabs_may_be_letters(
    write: Callable[..., Path], staged: Callable[..., Staged], read: Callable[..., Any], refusal: Callable[..., str]
) -> None:
    """Nothing but a guess says that they are quotes; the guess is withdrawn for the whole file."""
    text = "id\ttitle\n" + '1\t"quoted"\n' * 8_000 + '2\t"6 inch" pipe\n3\t"half\n'
    path = write("t.tsv", text)
    rows = read(path)
    assert rows[0] == {"id": "1", "title": '"quoted"', LINE: 2}
    assert rows[-1] == {"id": "3", "title": '"half', LINE: 8_003}
    assert staged(path).notes == (f"{path}: its quotes are taken as letters, for as quotes they do not match",)
    assert read(write("t.tsv", 'id\ttitle\n1\t"a\tb"\n')) == [{"id": "1", "title": "a\tb", LINE: 2}]
    letters = write("t.csv", 'id,title\n1,"6 inch" pipe\n2,"half\n')
    assert refusal(letters).startswith("line 2: a quote is opened and closed")
    assert [row["title"] for row in read(letters, quote="none")] == ['"6 inch" pipe', '"half']
    assert staged(letters, quote="none").notes == ()
    both = write("t.tsv", 'id\ttitle\n1\t"a\tb"\n2\t"6" pipe\n')  # neither as quotes nor as letters
    assert refusal(both).startswith("line 3: a quote is opened and closed where no cell ends")


def test_other_ways_of_quoting(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    assert read(write("t.csv", 'id,title\n1,"a \\"b\\" c, d"\n')) == [{"id": "1", "title": 'a "b" c, d', LINE: 2}]
    assert read(write("t.csv", '"id", "title"\n"1", "a, b"\n')) == [{"id": "1", "title": "a, b", LINE: 2}]
    assert read(write("t.csv", "id,title\n1, a \n")) == [{"id": "1", "title": " a ", LINE: 2}]
    assert read(write("t.csv", 'id,title\n1,5" pipe\n')) == [{"id": "1", "title": '5" pipe', LINE: 2}]


def test_cells_are_never_inferred(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    cells = ["007", "1.50", "13085.0", "1e5", "NULL", "nan", "true", "2024-01-01", "\\N", "-0"]
    names = [f"c{number}" for number in range(len(cells))]
    rows = read(write("t.csv", ",".join(names) + "\n" + ",".join(cells) + "\n"))
    assert rows == [{**dict(zip(names, cells, strict=True)), LINE: 2}]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(write: Callable[..., Path], read: Callable[..., Any], end: str) -> None:
    path = write("t.csv", end.join(["", "a,b", "1,x", "", "2,y"]))
    assert read(write("dos.csv", end.join(["a,b", "1,x", "\x1a"]))) == [{"a": "1", "b": "x", LINE: 2}]
    assert read(path) == [{"a": "1", "b": "x", LINE: 3}, {"a": "2", "b": "y", LINE: 5}]


def test_blocks_are_of_about_64k_rows(write: Callable[..., Path], staged: Callable[..., Staged]) -> None:
    sizes = [block.num_rows for block in staged(write("t.csv", "a,b\n" + "1,x\n" * 600_000)).blocks()]
    assert sum(sizes) == 600_000
    assert max(sizes) <= 2 * csv_blocks.ROWS
    assert sum(sizes[1:-1]) / len(sizes[1:-1]) > csv_blocks.ROWS / 2
