"""Separator, quotes and header are guessed from the first lines, and what was told goes before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from features.intake.staged import LINE, Staged
from features.intake.staging.dialects import Dialect, guess_dialect, separator_of
from plumline.errors import InputError


def guessed(text: str, name: str = "t.csv", separator: str | None = None, columns: Any = ()) -> Dialect:
    return guess_dialect(name, text, whole=True, separator=separator, columns=columns)


@pytest.mark.parametrize(
    ("text", "separator", "width"),
    [
        ("a,b\n1,2\n", ",", 2),
        ("a;b\n1,5;2,5\n", ";", 2),
        ("a\tb\n1,2\tx\n", "\t", 2),
        ("a|b|c\n1|2|3\n", "|", 3),
        ("a::b\n1::x: y\n", "::", 2),
        ("a\x01b\n1\x012\n", "\x01", 2),
        ("user item time\n1 2 3\n4 5 6\n", " ", 3),
        ('a,b\n1,"x;y;z"\n2,"u;v;w"\n', ",", 2),
        ('"a;x","b;y"\n"1;2","3;4"\n', ",", 2),
        ("id;title\n1;a, b\n2;c\n", ";", 2),
        ("id,tags\n1,a|b\n2,c|d\n", ",", 2),
        ("just a text\nand another one here\n", ",", 1),
        ("ids\n1\n2\n", ",", 1),
        ("a,b\n1,2\n1,2,3\n", ",", 2),
        ("sep=;\na;b\n1;2\n", ";", 2),
    ],
)
def test_separators(text: str, separator: str, width: int) -> None:
    dialect = guessed(text)
    assert (dialect.writing.separator, len(dialect.columns)) == (separator, width)
    said = [note for note in dialect.notes if "the separator is" in note]
    assert bool(said) == (separator != "," and not text.startswith("sep="))


def test_a_name_prefers_its_separator() -> None:
    assert guessed("a,b\tc,d\n1,2\t3,4\n", "t.tsv").writing.separator == "\t"
    assert guessed("a,b\tc,d\n1,2\t3,4\n", "t.csv").writing.separator == ","
    assert guessed("a\tb\n1\t2\n", "t.tsv.gz").notes == ()


def test_told_separators(write: Callable[..., Path], read: Callable[..., Any], staged: Callable[..., Staged]) -> None:
    assert read(write("t.csv", "a#b\n1#2\n"), separator="#") == [{"a": "1", "b": "2", LINE: 2}]
    assert read(write("t.csv", "a##b\n1##2\n"), separator="##") == [{"a": "1", "b": "2", LINE: 2}]
    assert separator_of("\\t") == separator_of("tab") == "\t"
    for wrong in ("", '"', "a\n"):
        with pytest.raises(InputError, match="cannot separate cells"):
            separator_of(wrong)
    path = write("t.csv", "a;b\n1;2\n")
    assert staged(path).notes == (f"{path}: the separator is ';' (guessed; --separator says otherwise)",)
    assert staged(path, separator=";").notes == ()


@pytest.mark.parametrize(
    "line",
    ["25,1,2520386,buy,1511560457", "1,2", "u1,i1,2024-01-01", "u1,i1,2024-01-01T10:00:00Z,x", "1,a,b.c,3.5",
     "u1,10:00:00,a,b", "6fa459ea-ee8a-3ca4-894e-db77e160355e,a,b"],
)  # fmt: skip
def test_data_where_a_header_belongs(line: str) -> None:
    with pytest.raises(InputError, match=r"t.csv: line 1: the first line looks like data .*with --columns a,b"):
        guessed(line + "\n" + line + "\n")


@pytest.mark.parametrize("line", ["user_id,item_id", "item_id,0,1,2,3", "user,2019,2020", "a,b,1", "1st,2nd", "x,,y"])
def test_headers_that_hold_numbers(line: str) -> None:
    assert guessed(line + "\na,b,c,d,e\n").has_header


def test_named_columns(write: Callable[..., Path], read: Callable[..., Any], refusal: Callable[..., str]) -> None:
    path = write("t.csv", "1::x\n2::y\n")
    assert read(path, columns=("id", "title"))[0] == {"id": "1", "title": "x", LINE: 1}
    assert refusal(path, columns=("id",)).startswith("line 1: 2 cells where --columns names 1 (the separator is '::')")
    assert refusal(path, columns=("id", "id")).startswith("line 1: column 'id' is there twice")
    dialect = guessed("a,b\n1,2\n", columns=("a", "b"))
    assert dialect.has_header
    assert dialect.notes == ("its first line is what --columns says, so it is taken as the header",)


def test_headers_are_cleaned(write: Callable[..., Path], read: Callable[..., Any], refusal: Callable[..., str]) -> None:
    assert read(write("t.csv", '\ufeff\n a , ,"c\nd"\n1,2,3\n')) == [{"a": "1", "column_2": "2", "c\nd": "3", LINE: 4}]
    assert refusal(write("t.csv", "a,b, a\n1,2,3\n")).startswith(
        "line 1: column 'a' is there twice; rename one of them"
    )
    assert (
        refusal(write("t.csv", 'a,"b\n1,2\n'))
        == "line 1: a quote is opened and never closed; mend that line, or say --quote none"
    )
