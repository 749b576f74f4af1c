"""Small files that people really have (tests/features/cases), each through a whole delivery: it is read right, or
refused in one line that is right.

Those about what happens after a delivery are tests of flows/steps: n1_event and n1_item (judged again), t1 and t2 (told
apart at the door), late and new1, one and sparse_log (as_of), kuairand twice (an init that is repeated), e_unk (all
items unknown), feedback_unknown and request_timestamp (the service).
"""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from features.intake.delivery import Delivery, read_delivery
from features.intake.facts import Facts
from features.intake.options import parse_options
from plumline.errors import InputError

CASES = Path(__file__).parent / "cases"
NOW = datetime(2026, 11, 29, tzinfo=UTC)


@pytest.fixture
def deliver(tmp_path, monkeypatch):
    """Reads files of tests/features/cases; options as on the command line."""
    monkeypatch.chdir(CASES)
    count = iter(range(9))

    def run(facts: Facts | None = None, **asked: str | list[str]) -> Delivery:
        given = parse_options({name: [text] if isinstance(text, str) else text for name, text in asked.items()})
        scratch = tmp_path / str(next(count))
        scratch.mkdir()
        sources = {noun: (options,) for noun, options in given.items()}
        return read_delivery(sources, facts=facts or Facts(), scratch=scratch, now=NOW)

    return run


def events_of(delivery: Delivery) -> dict[str, list]:
    """Columns of the events that hold anything."""
    table = pa.concat_tables(delivery.events())
    return {name: values for name, values in table.to_pydict().items() if any(v is not None for v in values)}


def told(delivery: Delivery) -> str:
    return "\n".join(map(str, delivery.findings))


FOUR_DAYS = [datetime(2024, 1, day, 10, tzinfo=UTC) for day in range(1, 5)]


@pytest.mark.parametrize(
    "name", ["ts_utc.csv", "c_blank_first.csv", "c_semi.csv", "c_utf16le.csv", "j_arr_bom.json", "j_late_type.jsonl"]
)
def test_four_events_of_four_days_are_read(deliver, name):
    found = events_of(deliver(items="items.csv", events=name))
    assert found["item_id"] == ["1", "2", "3", "4"]
    assert found["timestamp"] == FOUR_DAYS


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ts_mix_s_ms.csv", ["ts_mix_s_ms.csv: line 4:", "timestamp", "milliseconds"]),
        ("ts_zero.csv", ["ts_zero.csv: line 2:", "'0'", "1970"]),
        ("ts_now.csv", ["ts_now.csv: line 6:", "'now'", "no time"]),
        ("ts_nan.csv", ["ts_nan.csv: line 4:", "'nan'", "timestamp"]),
        ("ts_big.csv", ["ts_big.csv: line 4:", "100000000000000000000"]),
        ("p_fnan.parquet", ["p_fnan.parquet: row 2:", "timestamp"]),
        ("p_floatid.parquet", ["p_floatid.parquet: row 3:", "user_id", "empty"]),
        ("movielens1m.csv", ["movielens1m.csv: line 1:", "looks like data", "--columns"]),
        ("userbehavior_noheader.csv", ["userbehavior_noheader.csv: line 1:", "looks like data", "--columns a,b,c,d,e"]),
        ("j_dupkey.jsonl", ["j_dupkey.jsonl: line 1:", "'user_id'", "twice"]),
        ("u_null.csv", ["u_null.csv: line 2:", "'NULL'", "5 such rows", "--where"]),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_place(deliver, name, words):
    with pytest.raises(InputError) as caught:
        deliver(items="items.csv", events=name)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_calendar_numbers_are_days(deliver):
    delivery = deliver(items="items.csv", events="ts_ymd.csv")
    assert [str(time)[:10] for time in events_of(delivery)["timestamp"]] == [f"2024-01-0{day}" for day in range(1, 5)]
    assert "YYYYMMDD" in told(delivery)


def test_rees46_is_read_by_the_usual_names(deliver):
    found = events_of(deliver(items="items.csv", events="rees46.csv"))
    assert found["item_id"] == ["1", "2"]
    assert found["action"] == ["view", "view"]
    assert [str(time) for time in found["timestamp"]] == ["2019-10-01 00:00:00+00:00", "2019-10-02 00:00:01+00:00"]


def test_two_files_of_events_are_both_there(deliver):
    assert events_of(deliver(items="items.csv", events=["oct.csv", "nov.csv"]))["item_id"] == ["1", "2", "3", "4"]


def test_ids_keep_their_zeros_whatever_the_header_has(deliver):
    delivery = deliver(items="items0.csv", events="c_qhdr2.csv")
    titles = dict(zip(*(delivery.items.column(n).to_pylist() for n in ("item_id", "title")), strict=True))
    assert [titles[item] for item in events_of(delivery)["item_id"]] == ["A thing", "B thing", "C thing"]


def test_files_without_a_header_are_read_with_their_columns(deliver):
    asked = {"items": "items.csv", "events": "movielens1m.csv"}
    found = events_of(deliver(**asked, columns="events:user_id,item_id,rating,timestamp"))
    assert (found["item_id"], found["rating"]) == (["1", "2"], [5.0, 3.0])
    asked |= {"events": "userbehavior_noheader.csv"}
    found = events_of(deliver(**asked, columns="events:user_id,item_id,category,action,timestamp"))
    assert found["user_id"] == ["25", "23", "23"]
    assert found["action"] == ["buy", "pv", "pv"]


def test_a_float_id_is_decided_once_a_home(deliver):
    first = deliver(items="items.csv", events="d1.csv")
    assert events_of(first)["user_id"] == ["13085", "13086", "13086"]
    assert "13085.0 is read as 13085" in told(first)
    second = deliver(first.facts, events="d2.csv")
    assert events_of(second)["user_id"] == ["13085", "guest"]


def test_a_column_can_tell_equal_rows_apart(deliver):
    found = events_of(deliver(items="items.csv", events="e_dup.csv", map="session_id=order_id"))
    assert found["session_id"] == ["o1", "o2", "o3", "o4"]
    assert "order_id" in told(deliver(items="items.csv", events="e_dup.csv"))


def test_a_stray_quote_is_refused_with_its_line(deliver):
    with pytest.raises(InputError, match=r"i_stray.csv: line 2: .*quote"):
        deliver(items="i_stray.csv")


def test_topics_are_lists(deliver):
    delivery = deliver(items="i_topics.csv")
    assert delivery.items.column("topics").to_pylist() == [
        ["Action", "Comedy"],
        ["a"],
        None,
        ["Home, Garden & Tools"],
        None,
        None,
        ["a", "b"],
        None,
        None,
        ["a;b/c"],
        ["Action", "Comedy"],
        ["Toys", "Home, Garden"],
    ]
    assert "topics=topics.name" in told(delivery)
    assert deliver(items="i_topics.csv", map="topics=topics.name").items.column("topics").to_pylist()[2] == [
        "Animation"
    ]


def test_null_words_are_null_in_every_column(deliver):
    delivery = deliver(items="i_null.csv")
    assert delivery.items.column("title").null_count == 5
    assert "5 rows" in told(delivery)
    known = events_of(deliver(items="items.csv", events="u_null.csv", where="user_id != ''"))
    assert known["user_id"] == ["-1", "u1"]


def test_an_optional_column_never_blocks_the_others(deliver):
    delivery = deliver(items="i_addr.csv")
    assert delivery.items.column("price").to_pylist() == [None, 12.0, 3.0, 4.0, 5.0]
    assert "price is no number and is left empty: 1 row" in told(delivery)
    assert deliver(items="i_addr.csv", map="price=").items.column("price").null_count == 5
    assert deliver(items="i_price.csv").items.column("price").to_pylist() == [1299.0, 12.0, 3.0, 4.0, 5.0]
    amazon = deliver(items="amazon18_meta.json", map="item_id=asin").items
    assert amazon.column("price").to_pylist() == [12.99, None]
    assert amazon.column("topics").to_pylist() == [["Home, Garden & Tools"]] * 2


def test_a_string_of_json_stays_one(deliver):
    users = events_of(deliver(items="items.csv", events="j_uid_time.jsonl"))["user_id"]
    assert users == [f"2024-01-01 10:0{minute}:00" for minute in range(4)]


def test_ids_of_mongodb_are_what_they_hold(deliver):
    assert events_of(deliver(items="items.csv", events="j_nested.jsonl"))["item_id"] == ["50", "51", "52", "53"]


def test_uuids_are_text(deliver):
    users = events_of(deliver(items="items.csv", events="p_uuidrand.parquet"))["user_id"]
    assert users == ["6fa459ea-ee8a-3ca4-894e-db77e160355e"] * 4


def test_vectors_and_tags_of_parquet_are_cast_or_refused(deliver):
    items = deliver(items="pi_emb_large.parquet").items
    assert items.schema.field("emb_x").type == pa.list_(pa.float32(), 3)
    with pytest.raises(InputError, match=r"pi_emb_zero.parquet: row 1: emb_x"):
        deliver(items="pi_emb_zero.parquet")
    tags = deliver(items="pi_tags.parquet").items
    kinds = {field.name: field.type for field in tags.schema if field.name.startswith("tag_")}
    assert kinds == {
        "tag_d": pa.string(),
        "tag_n": pa.float64(),
        "tag_sizes": pa.list_(pa.string()),
        "tag_stock": pa.bool_(),
    }


def test_kuairand_by_its_times(deliver):
    asked = {"items": "kuairand_items.csv", "events": "kuairand_log.csv", "map": ["timestamp=time_ms", "topics=tag"]}
    found = events_of(deliver(**asked, value="is_click == 1"))
    assert [str(time)[:10] for time in found["timestamp"]] == ["2022-04-08", "2022-04-09", "2022-04-10"]
    assert found["action"] == [None, "impression", None]
