"""Files whose lines are not all rows of one width: lines that head others, and a last cell that takes what is left.

    17:                         item_id  user_id  rating       1,2003,Dinosaur       item_id  year  title
    1488844,3,2005-09-06   →    17       1488844  3            2,1999,Gone, Lost  →  1        2003  Dinosaur
    822109,5,2005-05-13         17       822109   5                                  2        1999  Gone, Lost

They are staged as lines of one cell (`one_cell`) and cut here. A last column whose name ends in … (or ...) takes the
rest of the line.
"""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from features.intake.options import Options
from features.intake.staged import FILE, LINE, Rows
from plumline.errors import InputError

_REST = ("…", "...")
_LINE = "line"
_NO_SEPARATOR = "\x1f"  # ASCII's own "unit separator", which stands in no file of data


def has_odd_lines(options: Options) -> bool:
    """Whether the files are to be cut here."""
    return bool(options.heading) or bool(options.columns and options.columns[-1].endswith(_REST))


def one_cell(options: Options) -> Options:
    """The options that stage a file as lines of one cell. Raises InputError where the columns are not named."""
    if not options.columns:
        raise InputError(f"--heading {options.heading}: name the columns of the lines below with --columns A,B,…")
    update = {"format": "csv", "separator": _NO_SEPARATOR, "quote": "none", "columns": (_LINE,)}
    return options.model_copy(update=update)


class CutLines(Rows):
    """Lines of one cell cut into columns. Blocks raise InputError at a line with more or fewer cells, or no heading."""

    def __init__(self, lines: Rows, options: Options) -> None:
        self._lines, self._heading = lines, options.heading
        self._separator = options.separator or ","
        self._takes_rest = options.columns[-1].endswith(_REST)
        names = [name.rstrip("….") if name.endswith(_REST) else name for name in options.columns]
        self._cells = tuple(names)
        self.files, self.unit, self.notes = lines.files, lines.unit, lines.notes
        self.columns = (*((options.heading,) if options.heading else ()), *names)

    def blocks(self) -> Iterator[pa.Table]:
        file, heading = -1, None
        for block in self._lines.blocks():
            for number in pc.unique(block.column(FILE)).to_pylist():  # one, but for rows in memory
                part = block.filter(pc.equal(block.column(FILE), number))
                heading = heading if number == file else None
                file = number
                if self._heading:
                    part, heading = self._headed(part, heading)
                if part.num_rows:
                    yield self._cut(part)

    def _headed(self, block: pa.Table, before: str | None) -> tuple[pa.Table, str | None]:
        """Rows with the heading above each, and the last heading."""
        text = pc.utf8_trim_whitespace(block.column(_LINE).combine_chunks())
        is_heading = pc.and_(pc.ends_with(text, ":"), pc.invert(pc.match_substring(text, self._separator)))
        heads = pc.if_else(is_heading, pc.utf8_slice_codeunits(text, 0, -1), pa.scalar(None, pa.string()))
        filled = pc.fill_null_forward(pa.concat_arrays([pa.array([before], pa.string()), heads]))
        block = block.append_column(str(self._heading), filled.slice(1)).filter(pc.invert(is_heading))
        without = pc.index(pc.is_null(block.column(str(self._heading))), True).as_py()
        if without >= 0:
            words = f"no line like 17: says the {self._heading} of the lines below it"
            raise InputError(f"{self._place(block, without)}: {words}; leave --heading away, or mend the file")
        return block, filled[-1].as_py()

    def _cut(self, block: pa.Table) -> pa.Table:
        width = len(self._cells)
        most = width - 1 if self._takes_rest else None
        cells = pc.split_pattern(block.column(_LINE).combine_chunks(), self._separator, max_splits=most)
        lengths = pc.list_value_length(cells)
        wrong = pc.index(pc.not_equal(lengths, width), True).as_py()
        if wrong >= 0:
            raise InputError(
                f"{self._place(block, wrong)}: {lengths[wrong].as_py()} cells where {width} columns are named "
                f"({', '.join(self._cells)}); the separator is {self._separator!r}"
            )
        made = {name: block.column(name) for name in (self._heading,) if name}
        for number, name in enumerate(self._cells):
            text = pc.utf8_trim_whitespace(pc.list_element(cells, number))
            made[name] = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
        return pa.table({**made, FILE: block.column(FILE), LINE: block.column(LINE)})

    def _place(self, block: pa.Table, row: int) -> str:
        return self.place(block.column(FILE)[row].as_py(), block.column(LINE)[row].as_py())
