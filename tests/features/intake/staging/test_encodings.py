"""Which encoding it is: by a mark, by NULs, by what can be decoded; never one that changes letters in silence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from features.intake.staged import LINE, Staged
from features.intake.staging.encodings import guess_encoding, known_encoding
from plumline.errors import InputError

ROWS = "user_id,title\n" + "".join(f"u{number},x\n" for number in range(50))


@pytest.mark.parametrize(
    ("encoding", "text", "expected"),
    [
        ("utf-8", ROWS + "u,é\n", "utf-8"),
        ("utf-8-sig", ROWS, "utf-8"),
        ("utf-16", ROWS, "utf-16-le"),
        ("utf-16-le", ROWS, "utf-16-le"),
        ("utf-16-be", ROWS, "utf-16-be"),
        ("utf-16-le", "标题,用户\n" + "上海,1\n" * 20, "utf-16-le"),
        ("utf-32", ROWS, "utf-32-le"),
        ("latin-1", ROWS + "u,é\nv,ü\n", "cp1252"),
        ("cp1252", ROWS + "u,“x”\n", "cp1252"),
        ("cp1251", "user_id,title\n" + "u1,Привет мир\nu2,Настольная лампа\nu3,Деревянный стул\n" * 9, "cp1251"),
        ("gb18030", "user_id,title\n" + "u1,中文标题很长\nu2,木制椅子和桌子\n" * 9, "gb18030"),
        ("shift_jis", "user_id,title\n" + "u1,木製の椅子とテーブル\nu2,ランプです\n" * 9, "cp932"),
    ],
)
def test_encodings_are_told_by_their_bytes(encoding: str, text: str, expected: str) -> None:
    assert guess_encoding(text.encode(encoding), whole=True).name == expected


def test_a_guess_takes_no_longer_for_a_long_word() -> None:
    """A broken archive may well end in a MB of one letter."""
    assert guess_encoding(b"\xe9" + b"g" * (1 << 20), whole=True).name == "cp1252"


def test_a_sequence_that_the_head_cuts_is_no_error() -> None:
    data = (ROWS + "é").encode()[:-1]
    assert guess_encoding(data, whole=False).name == "utf-8"
    assert guess_encoding(data, whole=True).name == "cp1252"


def test_a_broken_byte_in_utf8_is_not_another_encoding(write: Callable[..., Path], refusal: Callable[..., str]) -> None:
    data = b"a,b\n" + "1,é\n".encode() * 3 + b"2,\xe9\n"
    expected = "line 5: byte 0xe9 is not UTF-8, though the rest of the file is; mend it, or say with --encoding what"
    assert refusal(write("t.csv", data)).startswith(expected)
    late = b"a,b\n" + "1,é\n".encode() + b"1,x\n" * 600_000 + b"2,\xe9\n"  # beyond the head
    assert refusal(write("t.csv", late)).startswith("line 600003: byte 0xe9 is not UTF-8, though the rest")


def test_a_file_that_turns_out_to_be_of_one_byte_a_letter_is_begun_again(
    write: Callable[..., Path], staged: Callable[..., Staged], read: Callable[..., Any], refusal: Callable[..., str]
) -> None:
    plain = b"a,b\n" + b"1,x\n" * 300_000
    path = write("t.csv", plain + b"2,\xe9\n")
    assert read(path)[-1] == {"a": "2", "b": "é", LINE: 300_002}
    assert staged(path).notes == (f"{path}: is read as cp1252 (guessed; --encoding says otherwise)",)
    assert read(write("t.csv", plain + b"2,\xe9\n2,\x81\n"))[-1]["b"] == "\x81"  # which only latin-1 has
    mixed = plain + b"2,\xe9\n" + b"1,x\n" * 300_000 + "3,é\n".encode() * 20
    assert "is not" in refusal(write("t.csv", mixed))


def test_what_was_told_is_taken(
    write: Callable[..., Path], read: Callable[..., Any], refusal: Callable[..., str]
) -> None:
    assert read(write("t.csv", "a,b\n1,ї\n".encode("koi8-u")), encoding="koi8-u") == [{"a": "1", "b": "ї", LINE: 2}]
    assert read(write("t.csv", "a,b\n1,é\n".encode("utf-16")), encoding="UTF16") == [{"a": "1", "b": "é", LINE: 2}]
    assert read(write("t.csv", "\ufeffa,b\n1,é\n"), encoding="utf8") == [{"a": "1", "b": "é", LINE: 2}]
    path = write("t.csv", b"a,b\n1,x\n2,\xe9\n")
    assert refusal(path, encoding="ascii").startswith("line 3: byte 0xe9 is not ascii; mend it")
    assert refusal(path, encoding="utf-8").startswith("line 3: byte 0xe9 is not utf-8; mend it")


@pytest.mark.parametrize("name", ["utf-9", "base64", "rot13", "", "x\0"])
def test_what_is_no_encoding(name: str) -> None:
    with pytest.raises(InputError, match="--encoding .*: no encoding; there are utf-8"):
        known_encoding(name)
