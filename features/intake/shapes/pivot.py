"""`--pivot property,value`: files with one row a property become rows with one column a property.

    itemid  timestamp      property    value            itemid  categoryid  available
    1       1435460400000  categoryid  1338       →     1       1279        0
    1       1439694000000  categoryid  1279
    1       1439694000000  available   0

Of several values of one property the last one wins: by the time, where there is a column for it, then by the order of
the rows. It is counted on disk (DuckDB), so that a file may be larger than memory.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from features.intake.shapes.conditions import as_text
from features.intake.shapes.parts import Parts, lay_down
from features.intake.staged import FILE, LINE, Rows
from plumline.errors import InputError

TIMES = ("timestamp", "time", "ts", "date", "updated_at")
"""Columns that say which value is the last, where none is named."""
MOST_PROPERTIES = 500
"""Properties of a file of which none is asked for by name; RetailRocket has 1,104, of which two are text."""


def pivot(rows: Rows, columns: Sequence[str], *, id_column: str, wanted: Sequence[str], noun: str, into: Path) -> Parts:
    """One row an id of `id_column`, one column a property; FILE and LINE are those of its last row.

    columns: of the property's name, its value and (optional) its time. wanted: properties to keep; none: every one.
    Raises InputError for a column that is not there, and where there are too many properties to keep every one.
    """
    for column in (*columns, id_column):
        if column not in rows.columns:
            raise InputError(
                f"--pivot {','.join(columns)}: {noun} have no column {column!r}; there are {', '.join(rows.columns)}"
            )
    time = columns[2] if len(columns) > 2 else next((name for name in TIMES if name in rows.columns), None)
    narrow = lay_down(rows, _narrow(rows, columns, id_column, time, wanted), into.with_name(f"{into.name}-long"))
    if not narrow.num_rows:
        words = f"none of the properties {', '.join(wanted)} is there" if wanted else "no row has one"
        raise InputError(f"--pivot {','.join(columns)}: {words}; look at plumline inspect")
    connection = duckdb.connect(config={"memory_limit": "2GB", "threads": 2})
    try:
        spill = str(narrow.paths[0].parent).replace("'", "''")
        connection.execute(f"SET temp_directory = '{spill}'")
        connection.execute("SET preserve_insertion_order = false")
        paths = [str(path) for path in narrow.paths]
        there = _properties(connection, paths, every=not wanted)
        names = [name for name in wanted if name in there] if wanted else there
        connection.execute(
            "CREATE TEMP TABLE latest AS SELECT id, p, min(n) AS first, max(struct_pack(t := t, n := n)) AS moment, "
            f"arg_max(v, (t, n)) AS v, arg_max({FILE}, (t, n)) AS file, arg_max({LINE}, (t, n)) AS line "
            "FROM read_parquet($1) GROUP BY id, p",
            [paths],
        )
        picked = ", ".join(f"any_value(v) FILTER (p = ${1 + i})" for i in range(len(names)))
        place = "arg_max(file, moment), arg_max(line, moment)"
        found = connection.execute(f"SELECT id, {picked}, {place} FROM latest GROUP BY id ORDER BY min(first)", names)
        reader = found.fetch_record_batch(16_384)
        header = [id_column, *names, FILE, LINE]
        made = (pa.Table.from_batches([batch]).rename_columns(header) for batch in reader)
        notes = (f"the last value of a property by {time} is kept" if time else "the last value of a property is kept",)
        return lay_down(rows, made, into, notes)
    finally:
        connection.close()


def _narrow(
    rows: Rows, columns: Sequence[str], id_column: str, time: str | None, wanted: Sequence[str]
) -> Iterator[pa.Table]:
    """Blocks of id, p(roperty), v(alue), t(ime as a number, or null), n(umber of the row), FILE, LINE."""
    seen = 0
    for block in rows.blocks():
        name = as_text(block.column(columns[0]))
        table = pa.table(
            {
                "id": block.column(id_column).cast(pa.string()),
                "p": name,
                "v": block.column(columns[1]).cast(pa.string()),
                "t": _moments(block.column(time)) if time else pa.nulls(block.num_rows, pa.float64()),
                "n": pa.array(range(seen, seen + block.num_rows), pa.int64()),
                FILE: block.column(FILE),
                LINE: block.column(LINE),
            }
        )
        seen += block.num_rows
        keep = pc.is_in(name, value_set=pa.array(list(wanted), pa.string())) if wanted else pc.not_equal(name, "")
        yield table.filter(keep)


def _moments(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Something that orders times: numbers as they are, dates and ISO text by their digits; never null."""
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("us", tz=getattr(values.type, "tz", None))).cast(pa.int64())
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        text = as_text(values)
        number = pc.match_substring_regex(text, r"^[+-]?[0-9]+(\.[0-9]+)?$")
        digits = pc.utf8_rpad(pc.utf8_slice_codeunits(pc.replace_substring_regex(text, "[^0-9]", ""), 0, 17), 17, "0")
        values = pc.if_else(number, text, pc.if_else(pc.equal(text, ""), "0", digits))
    return pc.fill_null(values.cast(pa.float64()), 0.0)


def _properties(connection: duckdb.DuckDBPyConnection, paths: list[str], *, every: bool) -> list[str]:
    """Names of properties, the most frequent first; every: each of them is to become a column."""
    found = connection.execute(
        "SELECT p, count(*) FROM read_parquet(?) GROUP BY p ORDER BY 2 DESC, p", [paths]
    ).fetchall()
    if every and len(found) > MOST_PROPERTIES:
        some = ", ".join(str(name) for name, _ in found[:5])
        raise InputError(
            f"--pivot: {len(found)} properties ({some} …), at most {MOST_PROPERTIES} become columns; "
            "name those you want with --map, as in --map topics=categoryid"
        )
    return [str(name) for name, _ in found]
