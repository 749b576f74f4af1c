"""What intake says and decides, word for word: broken files, pairs, notes, times, texts, topics, vectors and tags."""

import gzip
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from features.intake.tables import read_table, rename, split_mapping
from plumline.errors import InputError
from plumline.schema import EVENTS, ITEMS, USERS, Contract


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def items(**columns: list) -> pa.Table:
    return pa.table({"item_id": ["a", "b"], **columns})


def events(**columns: list) -> pa.Table:
    return pa.table({"user_id": ["u"], "item_id": ["i"], "timestamp": ["2020-01-01"], **columns})


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        (
            "a.xlsx",
            b"x",
            "unknown kind of file; give one of .parquet, .csv, .jsonl, .ndjson, .json (.gz may follow)",
        ),
        ("a.csv.gz", b"no gzip", "cannot be read (Not a gzipped file (b'no'))"),
        (
            "a.csv.gz",
            gzip.compress(b"item_id", mtime=0)[:-4],  # no clock in it: workers must collect the same tests
            "cannot be read (Compressed file ended before the end-of",
        ),
        ("a.csv", b" \n", "the file is empty; give a file with a header and at least one row"),
        ("a.csv", b"a,b,b,a\n1,2,3,4\n", "column 'a' is there twice; rename one of them"),
        ("a.csv", b"a,b\n", "columns ['a', 'b'] but no row; give a file with at least one row"),
        ("a.parquet", b"PAR1", "no readable parquet ("),
        ("a.csv", b"a\n\n\xfe\n", "line 3: byte 0xfe is not UTF-8; save it as UTF-8"),
        ("a.csv", b"a,b\n1,2\n3\n", "line 3: 1 cells where the header has 2; mend or remove that line"),
        ("a.csv", b'a,b\n1,2\n3,"x\ny\n', "row 2: a quote is opened and never closed; mend that line"),
        ("a.ndjson", b'{"a": 1}\n\n7\n', "line 3: not a JSON object; one {…} a line is wanted"),
        (
            "a.jsonl",
            b'{"a": 1}\n{"a": }\n',
            "line 2: no JSON (Expecting value); mend or remove that line",
        ),
        (
            "a.jsonl",
            b'{"a": 1}\n{"a": [1]}\n',
            "JSON parse error: Column(/a) changed from number to array in row 1; give every row of a column the same",
        ),
        ("a.json", b"[\n{},\n{]", "line 3: no JSON (Expecting property name enclosed in double quotes); mend that"),
        ("a.json", b"[1, 2]", "no list of like objects ("),
        ("a.json", b'[{"a": 1}, {"a": "x"}]', "no list of like objects ("),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as error:
        read_table(tmp_path / name)
    assert one_line(error).startswith(f"{tmp_path / name}: {said}")


def test_files_are_read_by_their_names_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "A.CSV.GZ").write_bytes(gzip.compress('\ufeffitem_id,note\n007,\n,NULL\n8,"a\nb"\n'.encode()))
    table = read_table(tmp_path / "A.CSV.GZ")
    assert table.to_pydict() == {"item_id": ["007", None, "8"], "note": [None, "NULL", "a\nb"]}
    (tmp_path / "b.csv").write_text('item_id,size\n1,"7"""\n2,9"\n')  # an odd quote that swallows no line
    assert read_table(tmp_path / "b.csv").column("size").to_pylist() == ['7"', '9"']
    (tmp_path / "c.json").write_text(' \n[{"a": 1}]')
    (tmp_path / "d.json").write_text('{"a": 1}\n{"a": 2}\n')
    assert [read_table(tmp_path / name).column("a").to_pylist() for name in ("c.json", "d.json")] == [[1], [1, 2]]


def test_what_arrow_says_is_cut_to_two_hundred_characters(tmp_path: Path) -> None:
    path, name = tmp_path / "a.jsonl", "x" * 300
    path.write_text(f'{{"{name}": 1}}\n{{"{name}": "y"}}\n')
    with pytest.raises(InputError) as error:
        read_table(path)
    said = one_line(error).removeprefix(f"{path}: ").removesuffix("; give every row of a column the same type")
    assert len(said) == 200


def test_what_is_wrong_with_a_pair() -> None:
    tables = {"items": items(), "users": pa.table({"user_id": ["u"]})}
    cases = {
        "title": "not of the form name=column (or topics=column+column)",
        "events.item_id=sku": "no events file was given; there are ['items', 'users']",
        "titel=name": f"no contract has 'titel'; there are {{'items': {sorted(ITEMS.schema.names)}, "
        f"'users': {sorted(USERS.schema.names)}}} (users.NAME takes any name)",
    }
    for pair, said in cases.items():
        with pytest.raises(InputError) as error:
            split_mapping([pair], tables)
        assert one_line(error) == f"--map {pair}: {said}"


def test_a_pair_goes_wherever_its_column_is_and_to_the_first_table_if_nowhere() -> None:
    tables = {"items": pa.table({"sku": ["1"], "a": ["x"], "b": ["y"]}), "events": pa.table({"sku": ["1"]})}
    assert split_mapping(["item_id=sku", "topics=a+b", "emb_x=a"], tables) == {
        "items": {"item_id": "sku", "topics": "a+b", "emb_x": "a"},
        "events": {"item_id": "sku"},
    }
    assert split_mapping(["item_id=nowhere"], tables) == {"items": {"item_id": "nowhere"}, "events": {}}
    assert split_mapping(["topics=a+c"], tables)["items"] == {"topics": "a+c"}
    assert split_mapping(["a.b=c"], {"users": pa.table({"c": ["1"]})}) == {"users": {"a.b": "c"}}


def test_every_note_of_an_items_file() -> None:
    table = items(
        brand=["x", "y"], duration_ms=[1500, 2000], tag_none=pa.nulls(2), rank=[1, 2], tags=["p", "q"], other=[3, 4]
    )
    renamed = rename(table, ITEMS, {})
    assert renamed.notes == (
        "items: channel is taken from column brand",
        "items: topics is taken from column tags",
        "items: duration_s is taken from column duration_ms",
        "items: tag_none is left out, no row has a value",
        "items: duration_s = duration_ms / 1000",
        "items: left out, not in the contract: rank, other",
    )
    assert renamed.table.column("duration_s").to_pylist() == [1.5, 2.0]
    assert rename(items(duration_s=[1500.0, 1.0]), ITEMS, {}).table.column("duration_s").to_pylist() == [1500.0, 1.0]


def test_every_note_of_an_events_file() -> None:
    table = pa.table({"video_id": ["7.0", "8.0"], "user_id": ["u", "v"], "ts": [1, 2], "event_type": ["a", None]})
    renamed = rename(table, EVENTS, {})
    assert renamed.notes == (
        "events: item_id is taken from column video_id",
        "events: timestamp is taken from column ts",
        "events: action is taken from column event_type",
        "events: item_id written like 13085.0 is read as 13085",
        "events: timestamp is read as epoch seconds (largest value 2)",
    )
    assert renamed.table.column("item_id").to_pylist() == ["7", "8"]
    assert renamed.table.column("event_id").null_count == 2
    assert rename(events(event_id=["e"]), EVENTS, {}).table.column("event_id").to_pylist() == ["e"]


@pytest.mark.parametrize(
    ("value", "unit", "micros"),
    [
        (99_999_999_999, "seconds", 99_999_999_999_000_000),
        (100_000_000_000, "milliseconds", 100_000_000_000_000),
        (99_999_999_999_999, "milliseconds", 99_999_999_999_999_000),
        (100_000_000_000_000, "microseconds", 100_000_000_000_000),
        (100_000_000_000_000_000, "nanoseconds", 100_000_000_000_000),
        (-1.5, "seconds", -1_500_000),
    ],
)
def test_the_unit_of_an_epoch_number_follows_from_its_size(value: float, unit: str, micros: int) -> None:
    renamed = rename(events(timestamp=[value]), EVENTS, {})
    assert renamed.table.column("timestamp").cast(pa.int64()).to_pylist() == [micros]
    assert f"read as epoch {unit} (largest value {abs(value):.0f})" in renamed.notes[-1]


def test_times_that_are_missing_mixed_or_no_times() -> None:
    table = pa.table({"user_id": ["u"] * 3, "item_id": ["i"] * 3, "timestamp": ["2020-01-01", None, " "]})
    assert rename(table, EVENTS, {}).table.column("timestamp").null_count == 2
    mixed = ["2020-01-01T00:00:00+01:00", None, "2020-01-01"]
    found = rename(table.set_column(2, "timestamp", [mixed]), EVENTS, {}).table.column("timestamp").to_pylist()
    assert found == [datetime(2019, 12, 31, 23, tzinfo=UTC), None, datetime(2020, 1, 1, tzinfo=UTC)]
    with pytest.raises(InputError) as error:
        rename(table.set_column(2, "timestamp", [["2020-01-01", None, "soon"]]), EVENTS, {})
    assert one_line(error) == (
        "events: row 3: timestamp is 'soon', which is no time; write YYYY-MM-DD HH:MM:SS (UTC) or epoch seconds"
    )
    day = pa.table({"user_id": ["u"], "item_id": ["i"], "timestamp": pa.array([18262], pa.date32())})
    assert rename(day, EVENTS, {}).table.column("timestamp")[0].as_py() == datetime(2020, 1, 1, tzinfo=UTC)
    empty = pa.table({"user_id": ["u"], "item_id": ["i"], "timestamp": pa.nulls(1, pa.int64())})
    assert rename(empty, EVENTS, {}).notes[-1] == "events: timestamp is read as epoch seconds (largest value 0)"


def test_text_of_every_kind() -> None:
    columns = {
        "user_id": ["1", "2"],
        "lists": pa.array([["a", None, "b"], None], pa.large_list(pa.string())),
        "nested": [{"b": 1, "a": datetime(2020, 1, 1)}, None],
        "blank": ["  x ", "  "],
        "coded": pa.array(["p", None]).dictionary_encode(),
    }
    renamed = rename(pa.table(columns), USERS, {"kept": "blank"})
    assert renamed.table.to_pylist() == [
        {"user_id": "1", "coded": "p", "kept": "x", "lists": "a b", "nested": '{"a": "2020-01-01 00:00:00", "b": 1}'},
        {"user_id": "2", "coded": None, "kept": None, "lists": None, "nested": None},
    ]
    assert rename(items(item_id=[" a ", "b"], title=[" t ", ""]), ITEMS, {}).table.select(
        ["item_id", "title"]
    ).to_pylist() == [{"item_id": " a ", "title": "t"}, {"item_id": "b", "title": None}]


@pytest.mark.parametrize(
    ("value", "topics"),
    [
        (["a ", None, " ", "a"], ["a"]),
        ("[1, 'b']", ["1", "b"]),
        ("[1, 'b'", ["[1", "'b'"]),
        ("1]", ["1]"]),
        ("[x y]", ["[x y]"]),
        ("[]", None),
        ("a||b", ["a", "b"]),
    ],
)
def test_topics_in_odd_shapes(value: object, topics: list[str] | None) -> None:
    assert rename(items(topics=[value, None]), ITEMS, {}).table.column("topics").to_pylist() == [topics, None]


def test_vectors_and_tags_say_what_they_are() -> None:
    cases = {
        "items: emb_x is string; an emb_ column is a list of floats a row": {"emb_x": ["p", "q"]},
        "items: emb_x has lists of [1, 2] numbers; all must be of one length": {"emb_x": [[1.0], [1.0, 2.0]]},
        "items: tag_x is date32[day]; a tag_ column is text, a list of text, a number or a boolean a row": {
            "tag_x": pa.array([1, 2], pa.date32())
        },
    }
    for said, columns in cases.items():
        with pytest.raises(InputError) as error:
            rename(items(**columns), ITEMS, {})
        assert one_line(error) == said
    kinds = {"tag_a": pa.array(["x", "y"], pa.large_string()), "tag_b": pa.array([[], None], pa.list_(pa.null()))}
    fixed = {"emb_x": pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)), **kinds}
    table = rename(items(**fixed), ITEMS, {}).table
    assert table.column("emb_x").type == pa.list_(pa.float32(), 2)
    assert table.column("tag_a").to_pylist() == ["x", "y"]
    assert table.column("tag_b").type == pa.list_(pa.string())


@pytest.mark.parametrize(
    ("contract", "name", "alias"),
    [
        *[(contract, "item_id", alias) for contract in (ITEMS, EVENTS) for alias in ("video_id", "product_id")],
        *[(ITEMS, "channel", alias) for alias in ("brand_or_channel", "brand", "author")],
        *[(ITEMS, "topics", alias) for alias in ("categories", "category", "genres", "tags")],
        (ITEMS, "published_at", "first_seen_at"),
        (ITEMS, "duration_s", "duration_ms"),
        *[(EVENTS, "timestamp", alias) for alias in ("time", "ts")],
        (EVENTS, "action", "event_type"),
        (EVENTS, "watch_time_s", "watch_time_ms"),
    ],
)
def test_every_other_name_of_a_column(contract: Contract, name: str, alias: str) -> None:
    table = items() if contract is ITEMS else events()
    table = table.drop_columns([name]) if name in table.column_names else table
    renamed = rename(table.append_column(alias, pa.array(["1000"] * table.num_rows)), contract, {})
    assert f"{contract.name}: {name} is taken from column {alias}" in renamed.notes
    assert renamed.table.column(name).null_count == 0


def test_a_header_may_have_spaces(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("item id,zip code\n007,01234\n")
    assert read_table(tmp_path / "a.csv").to_pylist() == [{"item id": "007", "zip code": "01234"}]
