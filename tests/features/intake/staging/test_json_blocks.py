"""Rows of JSON are staged as they are spelt, with their lines, from any layout; what is broken is one line."""

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.intake.staged import LINE, Staged
from features.intake.staging import json_blocks

N = int(os.environ.get("N", "40"))
FEW = settings(max_examples=N, deadline=None, suppress_health_check=list(HealthCheck))
NUMBERS = st.sampled_from(["0", "-0", "13085.0", "1e5", "1E+5", "0.10", "12345678901234567890", "NaN", "Infinity"])
TEXTS = st.one_of(st.text(max_size=6), st.sampled_from(["", "a", '"', "\\", "\u2028", "{", "null", "1", "é", "\ud83d"]))


KEYS = st.sampled_from(["id", "a b", "é", 'q"'])


@st.composite
def spelt(draw: Any, depth: int = 2) -> tuple[str, str | None, str]:
    """A JSON value as it is written, the text of its cell, and how it stands in a nested value."""
    kind = draw(st.sampled_from(["text", "number", "word", *(["list", "object"] if depth else [])]))
    if kind == "text":
        value = draw(TEXTS)
        shown = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ascii_only = draw(st.booleans()) or shown != value
        return json.dumps(value, ensure_ascii=ascii_only), shown, json.dumps(shown, ensure_ascii=False)
    if kind == "number":
        number = draw(NUMBERS)
        return number, number, number
    if kind == "word":
        word = draw(st.sampled_from(["true", "false", "null"]))
        return word, None if word == "null" else word, word
    parts = draw(st.lists(spelt(depth=depth - 1), max_size=2))
    blank = draw(st.sampled_from(["", " "]))
    if kind == "list":
        text = "[" + ",".join(part[2] for part in parts) + "]"
        return "[" + f",{blank}".join(part[0] for part in parts) + "]", text, text
    text = "{" + ",".join(f'"k{number}":{part[2]}' for number, part in enumerate(parts)) + "}"
    return "{" + f",{blank}".join(f'"k{n}":{blank}{part[0]}' for n, part in enumerate(parts)) + "}", text, text


@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from(["id", "a b", "é", 'q"']), spelt(), min_size=1), min_size=1, max_size=5
    ),
    layout=st.sampled_from(["lines", "blank lines", "list", "wrapped", "one after the other"]),
    style=st.sampled_from([("", ""), (" ", " "), (" ", ""), ("\n  ", "\t")]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    packing=st.sampled_from(["", ".gz", ".zip"]),
    piece=st.sampled_from([1, 7, 40, 1 << 20]),
)
@FEW
def test_any_rows(
    write: Callable[..., Path],
    read: Callable[..., Any],
    small_pieces: Callable[[int], AbstractContextManager[None]],
    rows: Any,
    layout: str,
    style: tuple[str, str],
    encoding: str,
    packing: str,
    piece: int,
) -> None:
    colon, comma = style if "lines" not in layout else (style[0].strip("\n"), style[1])
    texts = [
        "{" + f",{comma}".join(f"{json.dumps(key)}:{colon}{value[0]}" for key, value in row.items()) + "}"
        for row in rows
    ]
    text = {
        "lines": "\n".join(texts),
        "blank lines": "\n\n" + "\r\n \n".join(texts) + "\n",
        "list": "[" + ",\n".join(texts) + "]\n",
        "wrapped": '{"n": 3, "data": [' + ",".join(texts) + '], "more": [1]}',
        "one after the other": "".join(texts),
    }[layout]
    suffix = ".jsonl" if "lines" in layout else ".json"
    path = write(f"t{suffix}{packing}", text.encode(encoding))
    keys = list(dict.fromkeys(key for row in rows for key in row))
    expected = [{key: row[key][1] if key in row else None for key in keys} for row in rows]
    with small_pieces(piece):
        got = read(path, explode="data" if layout != "wrapped" else None)
    lines = [row.pop(LINE) for row in got]
    assert got == expected
    at = -1
    for line, written in zip(lines, texts, strict=True):
        at = text.index(written, at + 1)
        assert line == text.count("\n", 0, at) + 1


LINES = '{"id": "1", "n": 1}\n{"id": "2", "n": 2}\n'


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.jsonl", '{"id": 1}\n{"id": \n', "line 2: no JSON (Expecting value at character 8); mend or remove it"),
        ("a.jsonl", '{"id": 1}\n\n[1]\n', "line 3: a list, not an object; one {…} a row is wanted"),
        ("a.jsonl", '{"id": 1}\n7\n', "line 2: a number, not an object"),
        ("a.jsonl", '{"id": 1, "id": 2}\n', "line 1: key 'id' is given twice in one object; rename or remove one"),
        ("a.jsonl", LINES * 99 + '{"id": "1", "id": "2"}\n', "line 199: key 'id' is given twice"),
        ("a.jsonl", '{"id":"1","n":2}\n{"id":"1","n":2,"id":"7"}\n', "line 2: key 'id' is given twice"),
        ("a.jsonl", '{"id": 1} {"id": 2}\n\n{"id": 3}\n', "line 1: no JSON (Extra data"),
        ("a.json", "[{]", "line 1: no JSON (Expecting property name enclosed in double quotes); mend the file"),
        ("a.json", '[{"id": 1},\n\n{"id": x}]', "line 3: no JSON (Expecting value)"),
        ("a.json", '[{"id": 1},\n 2]', "line 2: a str in the list, not an object"),
        ("a.json", '[{"id": 1}\n{"id": 2}]', "line 2: no JSON (, is wanted between two objects, '{\"id\": 2}]' stands"),
        ("a.json", '[{"id": 1},', "line 1: no JSON (Expecting value)"),
        ("a.json", '[{"id": 1}', "line 1: no JSON (, is wanted between two objects, the file ends there)"),
        ("a.json", '[{"id": 1}]\nmore', "line 2: no JSON (a list or an object is wanted, 'more' stands there)"),
        ("a.json", '[{"id": 1},\n{"a": 1, "a": 2}]', "line 2: key 'a' is given twice"),
        ("a.json", '{"a": [{"id": 1}],\n"b": [{"id": 1}]}', "has two lists of objects, 'a' and 'b'; give the one"),
        ("a.json", "[]", "columns [] but no row"),
        ("a.json", "[" * 100_000, "line 1: nested too deep to be read"),
        ("a.jsonl", '{"a": ' + "[" * 100_000 + "\n", "line 1: nested too deep to be read"),
        ("a.jsonl", '{"a": "\0"}\n', "line 1: no JSON (Invalid control character"),
    ],
)
def test_what_is_broken_is_one_line(
    write: Callable[..., Path], refusal: Callable[..., str], name: str, text: str, expected: str
) -> None:
    assert refusal(write(name, text)).startswith(expected)


def test_bytes_that_are_no_text(write: Callable[..., Path], refusal: Callable[..., str], read: Any) -> None:
    good, bad = '{"id": "é"}\n'.encode(), b'{"id": "\xe9"}\n'
    assert refusal(write("a.jsonl", good * 5 + bad)).startswith("line 6: byte 0xe9 is not UTF-8, though the rest")
    assert refusal(write("a.json", b"[" + b",".join([good] * 5 + [bad]) + b"]")).startswith("line 6: byte 0xe9")
    assert [row["id"] for row in read(write("a.jsonl", bad * 3))] == ["é"] * 3  # cp1252 throughout


def test_one_object_is_a_row_or_its_list(
    write: Callable[..., Path], read: Callable[..., Any], staged: Callable[..., Staged]
) -> None:
    text = '{"user": "u1",\n "events": [{"id": 1},\n {"id": 2}]}'
    path = write("a.json", text)
    assert read(path) == [{"id": "1", LINE: 2}, {"id": "2", LINE: 3}]
    assert staged(path).notes == (f"{path}: rows are the objects of its list 'events'",)
    row = {"user": "u1", "events": '[{"id":1},{"id":2}]', LINE: 1}
    assert read(path, explode="events") == [row]
    assert read(write("a.jsonl", text.replace("\n", ""))) == [row]
    assert read(write("a.json", text + text)) == [row, {**row, LINE: 3}]
    assert read(write("a.json", '{"user": "u1", "tags": ["x"]}')) == [{"user": "u1", "tags": '["x"]', LINE: 1}]


def test_a_document_is_read_in_pieces(
    write: Callable[..., Path],
    read: Callable[..., Any],
    refusal: Callable[..., str],
    small_pieces: Callable[[int], AbstractContextManager[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One object that is longer than what is held in memory is read by its list."""
    monkeypatch.setattr(json_blocks, "LONGEST", 200)
    rows = ",\n".join(f'{{"id": "{number}"}}' for number in range(100))
    with small_pieces(50):
        got = read(write("a.json", f'{{"n": 1, "data": [{rows}], "more": [1, 2]}}'))
        assert [(row["id"], row[LINE]) for row in got] == [(str(n), n + 1) for n in range(100)]
        assert "more than 0 MiB" in refusal(write("a.json", f'[{{"a": "{"x" * 400}"}}]'))
        assert "more than 0 MiB" in refusal(write("a.jsonl", f'{{"a": "{"x" * 400}"}}'))


def test_what_python_prints_is_read(write: Callable[..., Path], staged: Callable[..., Staged], read: Any) -> None:
    """Public logs of reviews are written so: {u'user_id': u'…', 'found_funny': None}."""
    path = write("a.json", "{u'id': u'1', 'ok': True, 'x': None, 'tags': ['a', \"b's\"], 'n': 1.0}\n{'id': '2'}\n")
    first = {"id": "1", "ok": "true", "x": None, "tags": '["a","b\'s"]', "n": "1.0", LINE: 1}
    assert read(path) == [first, {"id": "2", "ok": None, "x": None, "tags": None, "n": None, LINE: 2}]
    assert staged(path).notes == (
        f"{path}: line 1: and others are no JSON but what Python prints, and are read as that",
    )


def test_keys_that_are_data(write: Callable[..., Path], refusal: Callable[..., str]) -> None:
    text = "".join(f'{{"u{number}": 1}}\n' for number in range(5000))
    assert "more than 4096 keys" in refusal(write("a.jsonl", text))


def test_late_columns_and_types(write: Callable[..., Path], staged: Callable[..., Staged]) -> None:
    text = '{"id": 1}\n' * 70_000 + '{"late": true, "id": "x"}\n'
    rows = staged(write("a.jsonl", text))
    assert rows.columns == ("id", "late")
    blocks = list(rows.blocks())
    assert len({block.schema for block in blocks}) == 1
    assert blocks[-1].to_pylist()[-1] | {"__file": 0} == {"id": "x", "late": "true", "__file": 0, LINE: 70_001}
