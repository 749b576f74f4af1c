"""Headings over blocks of lines, and cells that take the rest of a line."""

import pyarrow as pa
import pytest

from features.intake.options import Options
from features.intake.shapes.lines import CutLines, has_odd_lines, one_cell
from features.intake.staged import FILE, LINE, RowsOf
from plumline.errors import InputError

NETFLIX = Options(heading="item_id", columns=("user_id", "rating", "timestamp"))


def lines(*texts, files=None):
    table = pa.table({"line": list(texts), FILE: pa.array(files or [0] * len(texts), pa.int32())})
    table = table.append_column(LINE, pa.array(range(1, len(texts) + 1), pa.int64()))
    return RowsOf([table.slice(at, 2) for at in range(0, len(texts), 2)], ["a.txt", "b.txt"])


def test_headings_reach_over_blocks_to_the_end_of_the_file(read):
    cut = CutLines(lines("1:", "7,3,2005-09-06", "8,,2005-05-13", " 20: ", "9,1,2005-01-01"), NETFLIX)
    assert read(cut) == {
        "item_id": ["1", "1", "20"],
        "user_id": ["7", "8", "9"],
        "rating": ["3", None, "1"],
        "timestamp": ["2005-09-06", "2005-05-13", "2005-01-01"],
        "line": [2, 3, 5],
    }


def test_a_file_has_its_own_headings():
    cut = CutLines(lines("1:", "7,3,x", "8,3,x", files=[0, 0, 1]), NETFLIX)
    with pytest.raises(InputError, match=r"b.txt: line 3: no line like 17: says the item_id"):
        list(cut.blocks())


@pytest.mark.parametrize("name", ["title…", "title..."])
def test_the_last_cell_takes_the_rest(read, name):
    options = Options(columns=("item_id", "year", name))
    assert has_odd_lines(options)
    found = read(CutLines(lines("1,2003,Dinosaur Planet", "2,NULL,Gone, Not Lost"), options))
    assert found["title"] == ["Dinosaur Planet", "Gone, Not Lost"]


def test_too_few_cells_are_one_line():
    with pytest.raises(InputError, match=r"a.txt: line 2: 2 cells where 3 columns are named"):
        list(CutLines(lines("1:", "7,3"), NETFLIX).blocks())


def test_files_are_staged_as_lines_of_one_cell():
    assert not has_odd_lines(Options(columns=("a", "b")))
    assert one_cell(NETFLIX).columns == ("line",)
    with pytest.raises(InputError, match="--columns"):
        one_cell(Options(heading="item_id"))
