"""Files from outside → tables with the contract's columns: reading, renaming, typing. Nothing is written here.

    read_table(path)                      parquet, CSV, JSON lines (any of them .gz) → the table as it lies there
    split_mapping(["title=name", …], …)   --map pairs → which pair belongs to which table
    rename(table, contract, mapping)      → every contract column, typed, and notes on what was decided

Whatever cannot be used is an InputError of one line that names the file or the row. Missing values in required columns
pass here; features/landing.py reports them all at once.
"""

import ast
import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from features.intake.columns import ALIASES
from plumline.errors import InputError
from plumline.schema import EVENTS, ITEMS, TIMESTAMP, USERS, Contract, conform

FORMATS = (".parquet", ".csv", ".jsonl", ".ndjson", ".json")

_CONTRACTS = {contract.name: contract for contract in (ITEMS, EVENTS, USERS)}
_IDS = ("item_id", "user_id", "event_id", "session_id")
_JSON_BLOCK = 1 << 24  # bytes; one JSON line (an item with its vectors) must fit


@dataclass(frozen=True)
class Renamed:
    """A table in its contract's columns, and one line for each thing that was decided on the way."""

    table: pa.Table
    notes: tuple[str, ...]


# --- 1. READ ---


def read_table(path: Path) -> pa.Table:
    """Read a file by its extension. CSV cells come as text (an id keeps its leading zeros), empty cells as null.

    Raises InputError naming the file, and for a broken line its number and what is wrong with it.
    """
    name = path.name.lower().removesuffix(".gz")
    kind = next((suffix for suffix in FORMATS if name.endswith(suffix)), None)
    if kind is None:
        raise InputError(f"{path}: unknown kind of file; give one of {', '.join(FORMATS)} (.gz may follow)")
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.name.lower().endswith(".gz") else data
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not data.strip():
        raise InputError(f"{path}: the file is empty; give a file with a header and at least one row")
    table = _read_parquet(path, data) if kind == ".parquet" else _read_text(path, data, is_csv=kind == ".csv")
    doubled = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if doubled:
        raise InputError(f"{path}: column {doubled[0]!r} is there twice; rename one of them")
    if not table.num_rows:
        raise InputError(f"{path}: columns {table.column_names} but no row; give a file with at least one row")
    return table


def _read_parquet(path: Path, data: bytes) -> pa.Table:
    try:
        # Not pq.read_table: a thread of its scanner may outlive a process that ends at once (Arrow issue 39862).
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            return file.read()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: no readable parquet ({_one_line(error)}); write the file again") from None


def _read_text(path: Path, data: bytes, *, is_csv: bool) -> pa.Table:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}: line {line}: byte {data[error.start]:#04x} is not UTF-8; save it as UTF-8") from None
    if is_csv:
        return _read_csv(path, data)
    return _read_json_array(path, data) if data.lstrip()[:1] == b"[" else _read_json_lines(path, data)


def _read_csv(path: Path, data: bytes) -> pa.Table:
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    header = next(csv.reader(io.StringIO(data.split(b"\n", 1)[0].decode("utf-8-sig"))))
    convert = pyarrow.csv.ConvertOptions(
        column_types={name: pa.string() for name in header}, strings_can_be_null=True, null_values=[""]
    )
    try:
        table = pyarrow.csv.read_csv(pa.BufferReader(data), parse_options=parse, convert_options=convert)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: {_broken_csv_line(data) or _one_line(error)}; mend or remove that line") from None
    if data.count(b'"') % 2 and table.num_rows:  # a quote that is never closed swallows the rest of the file
        last = table.slice(table.num_rows - 1).to_pylist()[0]
        if any(isinstance(cell, str) and "\n" in cell for cell in last.values()):
            raise InputError(f"{path}: row {table.num_rows}: a quote is opened and never closed; mend that line")
    return table


def _broken_csv_line(data: bytes) -> str | None:
    reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    header = next(reader)
    for cells in reader:
        if cells and len(cells) != len(header):
            return f"line {reader.line_num}: {len(cells)} cells where the header has {len(header)}"
    return None


def _read_json_lines(path: Path, data: bytes) -> pa.Table:
    try:
        return pyarrow.json.read_json(
            pa.BufferReader(data), read_options=pyarrow.json.ReadOptions(block_size=_JSON_BLOCK)
        )
    except pa.ArrowInvalid as error:
        for number, line in enumerate(data.splitlines(), 1):
            try:
                if line.strip() and not isinstance(json.loads(line), dict):
                    raise InputError(f"{path}: line {number}: not a JSON object; one {{…}} a line is wanted") from None
            except json.JSONDecodeError as broken:
                raise InputError(f"{path}: line {number}: no JSON ({broken.msg}); mend or remove that line") from None
        raise InputError(f"{path}: {_one_line(error)}; give every row of a column the same type") from None


def _read_json_array(path: Path, data: bytes) -> pa.Table:
    try:
        return pa.Table.from_pylist(json.loads(data))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno}: no JSON ({error.msg}); mend that line") from None
    except (pa.ArrowInvalid, pa.ArrowTypeError, AttributeError) as error:
        raise InputError(f"{path}: no list of like objects ({_one_line(error)}); give JSON lines") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


# --- 2. WHICH COLUMN IS WHICH ---


def split_mapping(pairs: Sequence[str], tables: Mapping[str, pa.Table]) -> dict[str, dict[str, str]]:
    """Sort --map pairs by table: `{"items": {"title": "name"}, …}` for the keys of `tables` (items, events, users).

    `title=name` goes to every given table whose contract has `title` and which has the column `name`;
    `events.item_id=sku` goes to that table alone. Raises InputError for a pair that fits nowhere.
    """
    mapping: dict[str, dict[str, str]] = {noun: {} for noun in tables}
    for pair in pairs:
        name, _, columns = pair.partition("=")
        prefix, dot, rest = name.partition(".")
        if not name or not columns:
            raise InputError(f"--map {pair}: not of the form name=column (or topics=column+column)")
        nouns = [prefix] if dot and prefix in _CONTRACTS else list(tables)
        name = rest if dot and prefix in _CONTRACTS else name
        if not set(nouns) <= set(tables):
            raise InputError(f"--map {pair}: no {prefix} file was given; there are {sorted(tables)}")
        knowing = [noun for noun in nouns if len(nouns) == 1 or _knows(_CONTRACTS[noun], name)]
        if not knowing:
            known = {noun: sorted(_CONTRACTS[noun].schema.names) for noun in nouns}
            raise InputError(f"--map {pair}: no contract has {name!r}; there are {known} (users.NAME takes any name)")
        having = [n for n in knowing if set(columns.split("+")) <= set(tables[n].column_names)]
        for noun in having or knowing[:1]:  # one that has not the column: rename says which ones there are
            mapping[noun][name] = columns
    return mapping


def _knows(contract: Contract, name: str) -> bool:
    prefixes = [prefix for prefix in contract.prefix_columns if prefix]
    return name in contract.schema.names or any(name.startswith(prefix) for prefix in prefixes)


def rename(table: pa.Table, contract: Contract, mapping: Mapping[str, str]) -> Renamed:
    """A table from outside in the columns and types of its contract.

    mapping: contract column → source column, for topics also `col1+col2`: the union of both, each value as
    `column:value`. Where a contract column is absent and not mapped, `ALIASES` may fill it. Further columns of items
    and events are left out (ids and ranks of other systems must never reach the model); users keep theirs as text.
    Raises InputError for an unknown name, a missing column, or a value (with its row) that has not the type.
    """
    notes: list[str] = []
    sources = _choose_sources(table, contract, mapping, notes)
    columns: dict[str, Any] = {}
    for name, spec in sources.items():
        if name == "topics" and contract is ITEMS:
            columns[name] = _topics(table, spec.split("+"))
        elif name in contract.schema.names:
            columns[name] = _typed(table.column(spec), name, spec, contract, notes)
        elif name.startswith("tag_") and contract is ITEMS and pa.types.is_null(table.column(spec).type):
            notes.append(f"items: {name} is left out, no row has a value")  # any type would clash with a later delivery
        elif contract is ITEMS:
            columns[name] = (_tags if name.startswith("tag_") else _vectors)(table.column(spec), name)
        else:
            columns[name] = _text(table.column(spec))
    used = {column for spec in sources.values() for column in spec.split("+")}
    unused = [name for name in table.column_names if name not in used]
    if unused:
        notes.append(f"{contract.name}: left out, not in the contract: {', '.join(unused)}")
    if "event_id" in contract.schema.names and "event_id" not in columns:
        columns["event_id"] = pa.nulls(table.num_rows, pa.string())
    lenient = Contract(contract.name, contract.schema, (), contract.prefix_columns)
    return Renamed(conform(pa.table(columns), lenient), tuple(notes))


def _choose_sources(
    table: pa.Table, contract: Contract, mapping: Mapping[str, str], notes: list[str]
) -> dict[str, str]:
    for name, spec in mapping.items():
        if not _knows(contract, name) and contract is not USERS:
            raise InputError(
                f"--map {name}={spec}: {contract.name} have no {name!r}; there are {contract.schema.names}"
            )
        if "+" in spec and name != "topics":
            raise InputError(f"--map {name}={spec}: only topics can be made of several columns")
        for column in spec.split("+"):
            if column not in table.column_names:
                raise InputError(
                    f"--map {name}={spec}: {contract.name} have no column {column!r}; there are {table.column_names}"
                )
    sources = dict(mapping)
    taken = {column for spec in mapping.values() for column in spec.split("+")}
    for name in table.column_names:
        is_profile = contract is USERS and name not in taken
        if name not in sources and (_knows(contract, name) or is_profile):
            sources[name] = name
    for name, aliases in ALIASES[contract.name].items():
        alias = next((a for a in aliases if a in table.column_names and a not in taken), None)
        if name not in sources and alias is not None:
            sources[name] = alias
            notes.append(f"{contract.name}: {name} is taken from column {alias}")
    for name in contract.required:
        if name not in sources and name != "event_id":
            raise InputError(
                f"{contract.name}: no column {name!r}; there are {table.column_names}; "
                f"rename one with --map {name}=COLUMN"
            )
    return sources


# --- 3. TYPES ---


def _typed(values: Any, name: str, source: str, contract: Contract, notes: list[str]) -> Any:
    field = contract.schema.field(name)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if name in _IDS:
        return _ids(values, name, contract.name, notes)
    if field.type == TIMESTAMP:
        return _timestamps(values, name, contract.name, notes)
    if field.type == pa.string():
        return _text(values)
    numbers = conform(pa.table({name: values}), Contract(contract.name, pa.schema([field]), ())).column(name)
    numbers = pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, numbers.type))
    if name.endswith("_s") and source.endswith("_ms"):
        numbers = pc.divide(numbers, 1000.0)
        notes.append(f"{contract.name}: {name} = {source} / 1000")
    return numbers


def _ids(values: Any, name: str, noun: str, notes: list[str]) -> Any:
    """Ids as text; 13085.0 (a column with holes that went through a float) is 13085, an empty text is missing."""
    if pa.types.is_floating(values.type):
        try:
            values = values.cast(pa.int64())
        except pa.ArrowInvalid:
            raise InputError(f"{noun}: {name} holds fractions, which are no ids; map another column") from None
    text = _text(values, trim=False)
    present = text.drop_null()
    if len(present) and pc.all(pc.match_substring_regex(present, r"^\d+\.0$")).as_py():
        notes.append(f"{noun}: {name} written like 13085.0 is read as 13085")
        text = pc.replace_substring_regex(text, r"\.0$", "")
    return text


def _text(values: Any, *, trim: bool = True) -> Any:
    """Any column as text: lists joined by a space, times as days, blank texts as null."""
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        rows = [None if row is None else " ".join(str(v) for v in row if v is not None) for row in values.to_pylist()]
        text = pa.chunked_array([pa.array(rows, pa.string())])
    elif pa.types.is_nested(kind):
        rows = [None if row is None else json.dumps(row, sort_keys=True, default=str) for row in values.to_pylist()]
        text = pa.chunked_array([pa.array(rows, pa.string())])
    else:
        text = (values.cast(pa.date32(), safe=False) if pa.types.is_timestamp(kind) else values).cast(pa.string())
    if trim:
        text = pc.utf8_trim_whitespace(text)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _timestamps(values: Any, name: str, noun: str, notes: list[str]) -> Any:
    """ISO text, dates, timestamps, or epoch numbers (unit by magnitude) as UTC microseconds; no zone means UTC."""
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        values = _text(values)
        try:
            values = values.cast(pa.float64())  # CSV and JSON may carry epoch numbers as text
        except pa.ArrowInvalid:
            return _parse_times(values, name, noun)
        kind = values.type
    if pa.types.is_date(kind):
        return values.cast(pa.timestamp("us")).cast(TIMESTAMP)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        largest = pc.max(pc.abs(values)).as_py() or 0
        unit, times, per = next((unit, times, per) for below, unit, times, per in _EPOCH_UNITS if largest < below)
        notes.append(f"{noun}: {name} is read as epoch {unit} (largest value {largest:.0f})")
        if pa.types.is_floating(kind):
            values = pc.round(pc.multiply(values, times / per)).cast(pa.int64(), safe=False)
        else:
            values = pc.divide(pc.multiply(values.cast(pa.int64()), times), per)
        return values.cast(TIMESTAMP)
    return values


def _parse_times(values: Any, name: str, noun: str) -> Any:
    """ISO text as UTC microseconds. Arrow reads columns of one kind, pandas mixed ones (years 1678 to 2261)."""
    for kind in (pa.timestamp("us"), TIMESTAMP):  # without a zone, with one
        try:
            return values.cast(kind).cast(TIMESTAMP)
        except pa.ArrowInvalid:
            continue
    import pandas as pd

    parsed = pd.to_datetime(values.to_pandas(), format="ISO8601", utc=True, errors="coerce")
    bad = (parsed.isna() & values.is_valid().to_pandas()).to_numpy()
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            f"{noun}: row {row + 1}: {name} is {values[row].as_py()!r}, which is no time; "
            "write YYYY-MM-DD HH:MM:SS (UTC) or epoch seconds"
        )
    return pa.chunked_array([pa.array(parsed.dt.as_unit("us"), TIMESTAMP)])


_EPOCH_UNITS = (
    (1e11, "seconds", 1_000_000, 1),
    (1e14, "milliseconds", 1000, 1),
    (1e17, "microseconds", 1, 1),
    (1e20, "nanoseconds", 1, 1000),
)
"""Largest value below → unit, factor and divisor to microseconds; 1e11 s is the year 5138, 1e11 ms is 1973."""


def _topics(table: pa.Table, columns: Sequence[str]) -> pa.Array:
    """The union of some columns as list<str>; with more than one column each value says where it is from."""
    rows: list[dict[str, None]] = [{} for _ in range(table.num_rows)]
    for column in columns:
        prefix = f"{column}:" if len(columns) > 1 else ""
        for row, value in zip(rows, table.column(column).to_pylist(), strict=True):
            row.update(dict.fromkeys(f"{prefix}{topic}" for topic in _split_topics(value)))
    return pa.array([list(row) or None for row in rows], pa.list_(pa.string()))


def _split_topics(value: Any) -> list[str]:
    if value is None or value != value:
        return []
    if isinstance(value, list):
        return [text for part in value if part is not None and (text := str(part).strip())]
    text = str(value).strip()
    if text.startswith("[") and text.endswith("]"):  # a list that went through a CSV
        try:
            return _split_topics(list(ast.literal_eval(text)))
        except (ValueError, SyntaxError, TypeError):
            pass
    separator = "|" if "|" in text else ","
    return [part.strip() for part in text.split(separator) if part.strip()]


def _vectors(values: Any, name: str) -> Any:
    """An `emb_*` column as fixed-size lists of float32. Raises InputError where the lengths differ."""
    if not (pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type)):
        raise InputError(f"items: {name} is {values.type}; an emb_ column is a list of floats a row")
    sizes = pc.unique(pc.list_value_length(values).drop_null()).to_pylist()
    if len(sizes) != 1:
        raise InputError(f"items: {name} has lists of {sorted(sizes)[:5]} numbers; all must be of one length")
    return values.cast(pa.list_(pa.float32(), sizes[0]))


def _tags(values: Any, name: str) -> Any:
    """A `tag_*` column: text, lists of text, float64 (not finite is null) or bool. InputError for any other type."""
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_boolean(kind):
        return values.cast(kind)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _text(values.cast(kind))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _typed(values, name, name, Contract("items", pa.schema({name: pa.float64()}), ()), [])
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if is_list and kind.value_type in (pa.string(), pa.large_string(), pa.null()):
        return values.cast(pa.list_(pa.string()))
    raise InputError(f"items: {name} is {kind}; a tag_ column is text, a list of text, a number or a boolean a row")
