"""Records line by line, exact in their lines; what does not match says where it opened."""

import pytest

from features.intake.staging.records import MalformedError, Record, Writing, records, stand_in

COMMA = Writing(",")


def test_lines_and_cells() -> None:
    text = 'a,"b\nc"\n\n1,"say ""x"""\r\n,\n'
    assert list(records(text, COMMA, whole=True)) == [
        Record(1, 2, ["a", "b\nc"]),
        Record(4, 1, ["1", 'say "x"']),
        Record(5, 1, ["", ""]),
    ]


def test_an_end_within_a_record_is_left_out_or_refused() -> None:
    text = 'a,b\n1,"open\n'
    assert list(records(text, COMMA, whole=False)) == [Record(1, 1, ["a", "b"])]
    with pytest.raises(MalformedError, match="never closed") as error:
        list(records(text, COMMA, whole=True))
    assert (error.value.line, error.value.open) == (2, True)


@pytest.mark.parametrize(
    ("text", "line"),
    [('1,"a"b\n', 1), ('1,"a\nb",c,"d\ne"f\n', 2), ('1,"a"\n"2"3\n', 2), ('1,2\n"x,\ny" ,3\n', 2)],
)
def test_quotes_that_do_not_match(text: str, line: int) -> None:
    with pytest.raises(MalformedError, match="where no cell ends") as error:
        list(records(text, COMMA, whole=True))
    assert error.value.line == line


def test_other_writings() -> None:
    assert next(records('1::"a::b"\n', Writing("::"), whole=True)).cells == ["1", "a::b"]
    assert next(records('1\t"a\n', Writing("\t", "none"), whole=True)).cells == ["1", '"a']
    assert next(records('1,"a \\"b\\""\n', Writing(",", "escaped"), whole=True)).cells == ["1", 'a "b"']
    assert next(records('1, "a"\n', Writing(",", spaced=True), whole=True)).cells == ["1", "a"]
    assert next(records("1," + "x" * 200_000 + "\n", COMMA, whole=True)).cells[1] == "x" * 200_000


def test_a_stand_in_is_not_in_the_text() -> None:
    assert stand_in("a") == "\x1f"
    assert stand_in(b"a\x1f") == b"\x1e"
    with pytest.raises(MalformedError, match="every control character"):
        stand_in("\x1f\x1e\x1d\x1c\x02\x03")
