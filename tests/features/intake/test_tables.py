import gzip
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.intake.tables import read_table, rename, split_mapping
from plumline.errors import InputError
from plumline.schema import EVENTS, ITEMS, USERS


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# --- reading ---


def test_the_three_formats_say_the_same(tmp_path: Path) -> None:
    rows = [{"item_id": "007", "title": 'a "b",\nc'}, {"item_id": "8", "title": None}]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "a.csv")
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    write(tmp_path / "a.json", json.dumps(rows))
    for name in ("a.parquet", "a.csv", "a.jsonl.gz", "a.json"):
        assert read_table(tmp_path / name).to_pylist() == rows, name


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", "item_id,title\n1,x\n2,y\n3,z,more\n", "line 4: 3 cells where the header has 2"),
        ("a.csv", 'item_id,title\n1,"two\nlines"\n2\n', "line 4: 1 cells"),
        ("a.csv", 'item_id,title\n1,x\n2,"never closed\n3,y\n', "never closed"),
        ("a.csv", "item_id,item_id\n1,x\n", "'item_id' is there twice"),
        ("a.csv", "item_id,title\n", "no row"),
        ("a.csv", "", "empty"),
        ("a.csv", " \n", "empty"),
        ("a.jsonl", '{"item_id": 1}\n{"item_id": \n', "line 2: no JSON"),
        ("a.jsonl", '{"item_id": 1}\n[1]\n', "line 2: not a JSON object"),
        ("a.jsonl", '{"item_id": 1}\n{"item_id": "x"}\n', "same type"),
        ("a.json", "[{]", "line 1: no JSON"),
        ("a.parquet", "PAR1", "no readable parquet"),
        ("a.xlsx", "x", "unknown kind of file"),
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, name: str, text: str, expected: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(InputError) as error:
        read_table(path)
    assert str(path) in one_line(error)
    assert expected in str(error.value)


def test_a_json_line_may_have_sixteen_megabytes(tmp_path: Path) -> None:
    def line(megabytes: int) -> Path:
        return write(tmp_path / "a.jsonl", json.dumps({"item_id": "x" * (megabytes << 20)}) + "\n")

    assert read_table(line(15)).num_rows == 1
    with pytest.raises(InputError, match="straddling object"):
        read_table(line(33))


def test_bytes_that_are_not_text_and_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"item_id,title\n1,ok\n2,\xff\n")
    with pytest.raises(InputError, match=r"line 3: byte 0xff is not UTF-8"):
        read_table(tmp_path / "a.csv")
    with pytest.raises(InputError, match="No such file"):
        read_table(tmp_path / "b.csv")


# --- mapping ---


def items(**columns: list) -> pa.Table:
    return pa.table({"item_id": ["a", "b"], **columns})


def test_aliases_fill_what_is_absent_and_are_told() -> None:
    table = items(brand=["x", None], categories=[["p", "q"], []], first_seen_at=[datetime(2020, 1, 1)] * 2, rank=[1, 2])
    renamed = rename(table, ITEMS, {})
    assert renamed.table.column("channel").to_pylist() == ["x", None]
    assert renamed.table.column("topics").to_pylist() == [["p", "q"], None]
    assert renamed.table.column("published_at")[0].as_py() == datetime(2020, 1, 1, tzinfo=UTC)
    assert renamed.table.column_names == ITEMS.schema.names
    told = "\n".join(renamed.notes)
    assert "channel is taken from column brand" in told
    assert "left out, not in the contract: rank" in told


def test_an_alias_does_not_replace_what_is_there_or_mapped() -> None:
    table = items(brand=["x", "y"], channel=["c", "d"], categories=["p", "q"], music=["m", "n"])
    renamed = rename(table, ITEMS, {"topics": "music"})
    assert renamed.table.column("channel").to_pylist() == ["c", "d"]
    assert renamed.table.column("topics").to_pylist() == [["m"], ["n"]]


def test_topics_of_several_columns_say_where_they_are_from() -> None:
    table = items(tags=[["tag:7", None], None], music=[12, None])
    renamed = rename(table, ITEMS, {"topics": "tags+music"})
    assert renamed.table.column("topics").to_pylist() == [["tags:tag:7", "music:12"], None]


@pytest.mark.parametrize(
    ("value", "topics"),
    [("a|b, c", ["a", "b, c"]), ("a, b", ["a", "b"]), ("a", ["a"]), ("['a', 'b']", ["a", "b"]), (" ", None)],
)
def test_topics_as_text_are_split(value: str, topics: list[str] | None) -> None:
    assert rename(items(topics=[value, None]), ITEMS, {}).table.column("topics").to_pylist() == [topics, None]


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"title": "nope"}, "no column 'nope'; there are ['item_id', 'name']"),
        ({"titel": "name"}, "no 'titel'; there are ['item_id', 'title'"),
        ({"title": "name+item_id"}, "only topics"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(mapping: dict[str, str], expected: str) -> None:
    with pytest.raises(InputError) as error:
        rename(items(name=["x", "y"]), ITEMS, mapping)
    assert expected in one_line(error)


def test_pairs_go_to_the_tables_they_fit() -> None:
    tables = {
        "items": pa.table({"sku": ["1"], "name": ["x"]}),
        "events": pa.table({"sku": ["1"], "who": ["u"], "at": ["2020-01-01"]}),
        "users": pa.table({"who": ["u"], "land": ["DE"]}),
    }
    pairs = ["item_id=sku", "title=name", "user_id=who", "events.timestamp=at", "users.country=land"]
    assert split_mapping(pairs, tables) == {
        "items": {"item_id": "sku", "title": "name"},
        "events": {"item_id": "sku", "user_id": "who", "timestamp": "at"},
        "users": {"user_id": "who", "country": "land"},
    }
    for pair, expected in (("titel=name", "no contract has"), ("title", "not of the form"), ("=x", "not of the form")):
        with pytest.raises(InputError, match=expected):
            split_mapping([pair], tables)
    with pytest.raises(InputError, match="no users file"):
        split_mapping(["users.x=y"], {"items": tables["items"]})
    with pytest.raises(InputError, match="no column 'nme'"):
        rename(tables["items"], ITEMS, {"item_id": "sku", **split_mapping(["title=nme"], tables)["items"]})


def test_a_missing_required_column_is_named_with_what_there_is() -> None:
    with pytest.raises(InputError, match=r"no column 'item_id'; there are \['sku'\].*--map item_id=COLUMN"):
        rename(pa.table({"sku": ["a"]}), ITEMS, {})


# --- types ---


def events(**columns: list) -> pa.Table:
    return pa.table({"user_id": ["u"], "item_id": ["i"], "timestamp": ["2020-01-01"], **columns})


def test_ids_become_text() -> None:
    table = pa.table({"user_id": [1.0, None], "item_id": [7, 8], "timestamp": ["2020-01-01"] * 2})
    renamed = rename(table, EVENTS, {}).table
    assert renamed.column("user_id").to_pylist() == ["1", None]
    assert renamed.column("item_id").to_pylist() == ["7", "8"]
    assert rename(events(user_id=["13085.0"]), EVENTS, {}).table.column("user_id").to_pylist() == ["13085"]
    assert rename(events(user_id=[""]), EVENTS, {}).table.column("user_id").to_pylist() == [None]
    with pytest.raises(InputError, match="fractions"):
        rename(events(user_id=[1.5]), EVENTS, {})


INSTANT = datetime(2021, 3, 4, 5, 6, 7, tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    [
        "2021-03-04 05:06:07",
        "2021-03-04T05:06:07Z",
        "2021-03-04T07:06:07+02:00",
        int(INSTANT.timestamp()),
        INSTANT.timestamp(),
        str(int(INSTANT.timestamp())),
        int(INSTANT.timestamp()) * 10**3,
        int(INSTANT.timestamp()) * 10**6,
        int(INSTANT.timestamp()) * 10**9,
        INSTANT.replace(tzinfo=None),
        INSTANT,
    ],
)
def test_every_way_to_write_a_time(value: object) -> None:
    renamed = rename(events(timestamp=[value]), EVENTS, {})
    assert renamed.table.column("timestamp")[0].as_py() == INSTANT
    assert any("epoch" in note for note in renamed.notes) == str(value).replace(".", "").isdigit()


@settings(max_examples=50, deadline=None)
@given(st.datetimes(min_value=datetime(1990, 1, 1), max_value=datetime(2100, 1, 1)))
def test_iso_text_and_microseconds_agree(moment: datetime) -> None:
    micros = (moment - datetime(1970, 1, 1)) // timedelta(microseconds=1)
    for value in (moment.isoformat(), micros):
        got = rename(events(timestamp=[value]), EVENTS, {}).table.column("timestamp").cast(pa.int64())[0].as_py()
        assert got == micros


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"timestamp": ["soon"]}, "row 1: timestamp is 'soon', which is no time"),
        ({"price": ["cheap"]}, "row 1: price is 'cheap'"),
    ],
)
def test_a_value_of_another_kind_names_its_row(columns: dict[str, list], expected: str) -> None:
    with pytest.raises(InputError) as error:
        rename(events(**columns), EVENTS, {})
    assert expected in one_line(error)


def test_milliseconds_become_seconds_and_nan_is_missing() -> None:
    renamed = rename(events(watch_time_ms=[1500], price=[float("nan")]), EVENTS, {})
    assert renamed.table.column("watch_time_s").to_pylist() == [1.5]
    assert renamed.table.column("price").to_pylist() == [None]


def test_vectors_are_of_one_length() -> None:
    kept = rename(items(emb_image=[[1.0, 2.0], None]), ITEMS, {}).table.column("emb_image")
    assert kept.type == pa.list_(pa.float32(), 2)
    assert kept.to_pylist() == [[1.0, 2.0], None]
    for bad in ([[1.0, 2.0], [1.0]], ["x", "y"]):
        with pytest.raises(InputError, match="emb_image"):
            rename(items(emb_image=bad), ITEMS, {})


def test_tags_keep_their_kind() -> None:
    tags = {
        "tag_region": pa.array([" DE ", ""]),
        "tag_brand": pa.array(["x", None]).dictionary_encode(),
        "tag_genres": [["a", "b"], None],
        "tag_stock": [3, None],
        "tag_margin": [0.5, float("inf")],
        "tag_adult": [True, None],
        "tag_empty": pa.nulls(2),
    }
    renamed = rename(items(item_id=["1", "2"], **tags), ITEMS, {"tag_area": "tag_region"})
    kept = {name: renamed.table.column(name) for name in renamed.table.column_names if name.startswith("tag_")}
    assert {name: column.to_pylist() for name, column in kept.items()} == {
        "tag_adult": [True, None],
        "tag_area": ["DE", None],
        "tag_brand": ["x", None],
        "tag_genres": [["a", "b"], None],
        "tag_margin": [0.5, None],
        "tag_region": ["DE", None],
        "tag_stock": [3.0, None],
    }
    assert kept["tag_stock"].type == pa.float64()
    assert kept["tag_genres"].type == pa.list_(pa.string())
    assert "tag_empty is left out" in " ".join(renamed.notes)
    for bad in ([datetime(2020, 1, 2)] * 2, [[1.0], None], [{"a": 1}] * 2):
        with pytest.raises(InputError, match="tag_x is .*; a tag_ column is text") as error:
            rename(items(tag_x=bad), ITEMS, {})
        one_line(error)


def test_users_keep_every_column_as_text() -> None:
    table = pa.table({"user_id": [1], "age": [30], "tags": [["a", "b"]], "since": [datetime(2020, 1, 2, 3)]})
    assert rename(table, USERS, {}).table.to_pylist() == [
        {"user_id": "1", "age": "30", "since": "2020-01-02", "tags": "a b"}
    ]
