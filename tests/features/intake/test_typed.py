import os
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.intake.facts import Facts
from features.intake.options import Options
from features.intake.shapes.sift import Sifted
from features.intake.staged import FILE, LINE, RowsOf
from features.intake.typed import look
from plumline.errors import InputError
from plumline.schema import EVENTS, ITEMS, USERS, Contract, conform

Typed = Callable[..., Any]
NOW = datetime(2026, 12, 1, tzinfo=UTC)
LENIENT = {c.name: Contract(c.name, c.schema, ()) for c in (ITEMS, EVENTS, USERS)}
DAYS = ["2024-01-01", "2024-01-02", "2024-01-03"]
EVENT = {"user_id": ["u", "v", "w"], "item_id": ["1", "2", "3"], "timestamp": DAYS}
NEEDED = {"items": {"item_id": DAYS}, "users": {"user_id": DAYS}, "events": EVENT}

N = int(os.environ.get("N", "0"))  # more examples than usual


def test_blocks_are_the_contract_s_with_file_and_line(typed: Typed) -> None:
    found = typed(EVENTS, EVENT | {"price": ["1", "", "x"], "rank": [1, 2, 3]})
    assert found.table.column_names == [*EVENTS.schema.names, FILE, LINE]
    assert found.table.column(LINE).to_pylist() == [2, 3, 4]
    assert conform(
        found.table.drop_columns([FILE, LINE, "event_id"]).append_column("event_id", pa.array(["a", "b", "c"])), EVENTS
    )
    assert found.table.column("event_id").null_count == 3
    assert found["price"] == [1.0, None, None]
    assert found.said == [
        "events: price is no number and is left empty: 1 row, first log.csv: line 4: 'x'",
        "events: left out, not in the contract: rank",
    ]
    assert found.reading.num_rows == 3
    assert found.reading.span == (1704067200 * 10**6, 1704240000 * 10**6)


def test_blocks_can_be_read_twice_and_count_once(typed: Typed) -> None:
    found = typed(EVENTS, EVENT | {"price": ["1", "x", "y"]})
    again = pa.concat_tables(found.reading.blocks())
    assert again.equals(found.table)
    assert [finding.count for finding in found.reading.findings] == [2]


def test_nothing_is_read_where_there_is_a_problem(typed: Typed) -> None:
    found = typed(EVENTS, EVENT | {"timestamp": ["2024-01-01", "now", "soon"]})
    assert found.table is None
    with pytest.raises(InputError, match=r"line 3: timestamp 'now' .* \(and 1 other problem\)$"):
        next(found.reading.blocks())


def test_no_row_at_all_is_a_problem(typed: Typed) -> None:
    rows = RowsOf(pa.table({name: pa.array([], pa.string()) for name in EVENT}), ["log.csv"])
    reading = look(rows, EVENTS, Options(), Facts(), now=NOW)
    assert [str(f) for f in reading.findings] == ["events: there is no row; give a file with at least one row"]
    assert reading.span is None


def test_users_keep_what_is_known_of_them_as_text(typed: Typed) -> None:
    columns = {
        "user_id": [1, 2],
        "age": [30, None],
        "tags": [["a", "b"], None],
        "since": [datetime(2020, 1, 2, 3), None],
        "note": [" x ", "NULL"],
    }
    found = typed(USERS, columns)
    assert found.table.drop_columns([FILE, LINE]).to_pylist() == [
        {"user_id": "1", "age": "30", "note": "x", "since": "2020-01-02", "tags": "a b"},
        {"user_id": "2", "age": None, "note": None, "since": None, "tags": None},
    ]


def test_items_have_text_tags_and_vectors(typed: Typed) -> None:
    columns = {
        "item_id": ["1", "2"],
        "title": [' "x" ', "none"],
        "emb_x": ["[1]", ""],
        "tag_a": ["", ""],
        "tag_b": ["b", ""],
    }
    found = typed(ITEMS, columns)
    assert found.table.column_names == [*ITEMS.schema.names, "emb_x", "tag_b", FILE, LINE]
    assert found["title"] == ['"x"', None]
    assert sorted(found.reading.seen.tags) == ["tag_b"]


def test_null_words_are_asked_for(typed: Typed) -> None:
    assert (
        typed(USERS, {"user_id": ["NULL", "-"]}, null_words=("-",), map={})
        .problems[0]
        .startswith("log.csv: line 3: user_id '-'")
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"time_zone": "Berlin"}, "--time-zone 'Berlin' is not known"),
        ({"time_format": "%Y"}, "--time-format '%Y' does not say year, month and day"),
        ({"map": {"item_id": "x"}}, "--map item_id=x: events have no column 'x'"),
    ],
)
def test_what_is_asked_wrongly_is_refused_at_once(typed: Typed, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        typed(EVENTS, EVENT, **options)
    assert said in str(error.value)


def test_two_contract_columns_may_have_one_source(typed: Typed) -> None:
    found = typed(ITEMS, {"item_id": ["1", "2"]}, map={"title": "item_id"})
    assert found["title"] == ["1", "2"]


def test_rows_of_several_files_are_named_by_theirs() -> None:
    table = pa.table(EVENT | {"timestamp": ["2024-01-01", "x", "x"]})
    table = table.append_column(FILE, pa.array([0, 1, 1], pa.int32())).append_column(LINE, pa.array([2, 9, 10]))
    rows = RowsOf(table, ["oct.csv", "nov.parquet"], ["line", "row"])
    reading = look(rows, EVENTS, Options(), Facts(), now=NOW)
    assert str(reading.findings[0]).startswith("nov.parquet: row 9: timestamp 'x' is no time (2 such rows)")


def test_facts_grow_with_what_is_read(typed: Typed) -> None:
    items = typed(
        ITEMS, {"item_id": ["1", "2"], "tag_x": ["a", "b"], "published_at": ["2024", ""], "emb_x": ["[1, 2]", ""]}
    )
    facts = items.reading.facts
    assert (facts.tags["tag_x"].value, facts.lengths["emb_x"].value) == ("text", "2")
    assert facts.times["items.published_at"].value == "years"
    events = typed(EVENTS, EVENT, facts).reading.facts
    assert events.ids["item_id"].plain == 5
    assert events.ids["item_id"].source == "the items of this delivery"
    assert events.times["events.timestamp"].value == "dates"
    assert Facts.from_json(events.to_json(), "d").ids["item_id"].plain == 5


def test_days_of_the_home_are_compared_with_events_alone(typed: Typed) -> None:
    home = Facts(days=(date(1970, 1, 1), date(1970, 1, 2)), days_source="d")
    assert typed(EVENTS, EVENT, home).problems
    assert not typed(ITEMS, {"item_id": ["1"], "published_at": ["2024-01-01"]}, home).problems


ODD = {
    "nulls": pa.nulls(3),
    "texts": pa.array(["", "[", '{"a": 1}']),
    "wide texts": pa.array(["1", None, "\x00"], pa.large_string()),
    "truths": pa.array([True, None, False]),
    "bytes": pa.array([b"\xff", None, b"a"]),
    "small": pa.array([0, None, -128], pa.int8()),
    "unsigned": pa.array([0, None, 2**64 - 1], pa.uint64()),
    "large": pa.array([-(2**63), None, 2**63 - 1]),
    "floats": pa.array([float("nan"), float("-inf"), 1e300]),
    "float32": pa.array([1.5, None, 3e38], pa.float32()),
    "decimals": pa.array([Decimal("-1.50"), None, Decimal(10) ** 30], pa.decimal256(60, 2)),
    "days": pa.array([2**31 - 1, None, -(2**31)], pa.date32()),
    "milli days": pa.array([2**62, None, -(2**62)], pa.int64()).cast(pa.date64(), safe=False),
    "seconds": pa.array([2**62, None, -(2**63)], pa.timestamp("s")),
    "zoned": pa.array([0, None, -(2**63)], pa.timestamp("ns", "Europe/Berlin")),
    "clocks": pa.array([1, None, 86_399], pa.time32("s")),
    "spans": pa.array([1, None, -5], pa.duration("us")),
    "lists": pa.array([[], None, ["a", None]]),
    "vectors": pa.array([[1.0, float("nan")], None, [2.0]]),
    "fixed": pa.array([[1.0, 2.0], None, [2.0, None]], pa.list_(pa.float64(), 2)),
    "lists of lists": pa.array([[["a"]], None, []]),
    "structs": pa.array([{"a": 1}, None, {"a": None}]),
    "maps": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())),
}


@pytest.mark.parametrize("kind", list(ODD))
def test_any_arrow_column_is_read_or_refused_in_one_line(kind: str) -> None:
    for contract in (ITEMS, EVENTS, USERS):
        for name in [*contract.schema.names, "emb_x", "tag_x", "other"]:
            table = pa.table(NEEDED[contract.name] | {name: ODD[kind]})
            rows = RowsOf([table.slice(0, 2), table.slice(2), table.slice(3)], ["a.parquet"], "row")
            reading = look(rows, contract, Options(), Facts(), now=NOW)
            if any(finding.fatal for finding in reading.findings):
                assert name in (*contract.required, "emb_x"), (name, reading.findings)
            else:
                found = pa.concat_tables(reading.blocks())
                conform(found.append_column("x", pa.nulls(3)), LENIENT[contract.name])
                found.validate(full=True)
            assert all("\n" not in str(finding) for finding in reading.findings)


CELL = st.one_of(
    st.text(max_size=12),
    st.text("0123456789.,-+eE$€:/TZ []{}\"'|;", max_size=16),
    st.sampled_from(["NULL", "13085.0", "1,299.00", "2024-01-01", "31/12/2024", "1704103200", "0"]),
)


@settings(max_examples=max(8, N), deadline=None)
@given(st.sampled_from([ITEMS, EVENTS, USERS]), st.lists(CELL, min_size=3, max_size=3), st.booleans())
def test_any_text_is_read_or_refused_in_one_line(contract: Contract, cells: list[str], is_json: bool) -> None:
    names = [*contract.schema.names, "emb_x", "tag_x"]
    for columns in [{name: cells} for name in names] + [dict.fromkeys(names, cells)]:
        table = pa.table(NEEDED[contract.name] | columns)
        rows = RowsOf([table.slice(0, 2), table.slice(2)], ["a.jsonl" if is_json else "a.csv"])
        reading = look(rows, contract, Options(), Facts(), now=NOW)
        if not any(finding.fatal for finding in reading.findings):
            for block in reading.blocks():
                conform(block, LENIENT[contract.name]).validate(full=True)
        assert all("\n" not in str(finding) for finding in reading.findings)


@pytest.mark.parametrize(
    ("column", "cells", "left"),
    [
        ("user id", ["u", "NULL", " "], 1),
        ("user id", pa.array([1.0, None, float("nan")]), 1),
        ("timestamp", ["1704103200", "0", "1704276000000"], 1),
        ("timestamp", pa.array([1704103200.0, float("nan"), 1704103200.0]), 2),
        ("timestamp", ["2024-01-01", "", "2024-01-01"], 2),
    ],
)
def test_the_condition_that_a_problem_names_leaves_the_bad_rows_out(column: str, cells: Any, left: int) -> None:
    table = pa.table({"user id": EVENT["user_id"], "item_id": DAYS, "timestamp": DAYS} | {column: cells})
    options = Options(map={"user_id": "user id"})
    (problem, *_) = look(RowsOf(table), EVENTS, options, Facts(), now=NOW).findings
    where = problem.advice.split('--where "events:')[1].split('"')[0]
    sifted = Sifted(RowsOf(table), options.model_copy(update={"where": (where,)}))
    reading = look(sifted, EVENTS, options, Facts(), now=NOW)
    assert not [str(finding) for finding in reading.findings if finding.fatal]
    assert reading.num_rows == left
