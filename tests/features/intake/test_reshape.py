"""Shapes of real logs: sessions, impressions, properties, fields of objects; conditions and interest."""

import json

import pyarrow as pa
import pytest

from features.intake.options import Options
from features.intake.reshape import reshape, unfold
from plumline.errors import InputError


@pytest.fixture
def shape(tmp_path):
    def run(rows, noun="events", **options):
        return reshape(unfold(rows, Options(**options), noun=noun, scratch=tmp_path), noun=noun)

    return run


# --- explode ---


def test_events_of_a_session_become_rows(rows, read, shape):
    events = [[{"aid": 1517085, "ts": 1659304800025, "type": "clicks"}, {"aid": 7, "ts": 2.50}], [], [{"aid": 9}], None]
    made = shape(
        rows({"session": ["1", "2", "3", "4"], "events": [json.dumps(e) for e in events]}), explode=("events",)
    )
    assert read(made.rows) == {
        "session": ["1", "1", "3"],
        "aid": ["1517085", "7", "9"],
        "ts": ["1659304800025", "2.5", None],
        "type": ["clicks", None, None],
        "line": [2, 2, 4],
    }
    assert made.told == ("2 rows have nothing in events",)


def test_fields_may_be_named_with_the_list_before_them(rows, shape):
    made = shape(
        rows({"s": ["1"], "events": ['[{"aid": 1, "ts": 2}]']}), explode=("events",), map={"item_id": "events.aid"}
    )
    assert made.options.map == {"item_id": "aid"}


def test_a_field_named_like_an_outer_column_keeps_both(rows, read, shape):
    made = shape(rows({"id": ["1"], "events": ['[{"id": 5}]']}), explode=("events",))
    assert read(made.rows) == {"id": ["1"], "events.id": ["5"], "line": [2]}


def test_lists_and_structs_of_parquet_keep_their_types(rows, read, shape):
    kind = pa.list_(pa.struct({"aid": pa.int32(), "ts": pa.timestamp("ms")}))
    events = pa.array([[{"aid": 1, "ts": 5}], None, [{"aid": 2, "ts": 6}, None, {"aid": 3, "ts": 7}]], kind)
    made = shape(rows({"session": ["a", "b", "c"], "events": events}), explode=("events",))
    assert [block.schema.field("aid").type for block in made.rows.blocks()] == [pa.int32()] * 2
    assert read(made.rows)["aid"] == [1, 2, 3]
    assert read(made.rows)["session"] == ["a", "c", "c"]


@pytest.mark.parametrize(
    "cell",
    ['["a", "b"]', "['a', 'b']", "a b", "a,b", "a|b", " a;b; "],
)
def test_ids_in_a_list_become_items(rows, read, shape, cell):
    made = shape(rows({"user": ["u"], "basket": [cell]}), explode=("basket",))
    assert read(made.rows) == {"user": ["u", "u"], "basket": ["a", "b"], "line": [2, 2]}
    assert made.options.map == {"item_id": "basket"}


def test_marks_of_impressions_become_actions(rows, read, shape):
    made = shape(rows({"user": ["u", "v", "w"], "impressions": ["N1-1 N2-0", "N3-0", None]}), explode=("impressions",))
    found = read(made.rows)
    assert found["impressions"] == ["N1", "N2", "N3"]
    assert found["action"] == ["click", "impression", "impression"]
    assert made.options.map == {"item_id": "impressions"}


def test_ids_that_end_like_a_mark_among_others_stay(rows, read, shape):
    assert read(shape(rows({"seen": ["a-1 b-2"]}), explode=("seen",)).rows)["seen"] == ["a-1", "b-2"]


def test_shown_and_clicked_lists(rows, read, shape):
    columns = {"shown": pa.array([[1, 2, 3], [4]]), "clicked": pa.array([[2], None])}
    found = read(shape(rows(columns), explode=("shown", "clicked")).rows)
    assert found["shown"] == ["1", "2", "3", "4"]
    assert found["action"] == ["impression", "click", "impression", "impression"]


def test_objects_that_say_whether_they_were_clicked(rows, read, shape):
    shown = [[{"item_id": "a", "clicked": True}, {"item_id": "b", "clicked": False}], [{"item_id": "c"}]]
    made = shape(rows({"impressions": [json.dumps(row) for row in shown]}), explode=("impressions",))
    assert read(made.rows)["action"] == ["click", "impression", "impression"]
    assert any("clicked" in note for note in made.rows.notes)


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"events": ['[{"aid": 1}', '[{"aid": 1}]']}, {"explode": ("events",)}, ["log.csv: line 2", "events"]),
        ({"events": ["[]", None]}, {"explode": ("events",)}, ["no row"]),
        ({"events": ["[]"]}, {"explode": ("event",)}, ["--explode event", "there are events"]),
        ({"events": ['[{"aid": 1}, 3]']}, {"explode": ("events",)}, ["line 2", "another kind"]),
        ({"events": [3, 4]}, {"explode": ("events",)}, ["line 2", "3 is no list"]),
    ],
)
def test_what_cannot_be_exploded_is_one_line(rows, shape, columns, options, words):
    with pytest.raises(InputError) as caught:
        shape(rows(columns), **options)
    for word in words:
        assert word in str(caught.value)


# --- pivot ---

PROPERTIES = {
    "itemid": ["1", "2", "1", "1", "2"],
    "timestamp": ["20", "10", "10", "30", "10"],
    "property": ["categoryid", "categoryid", "categoryid", "790", "888"],
    "value": ["new", "c2", "old", "n5", "x y"],
}


def test_the_last_value_of_a_property_wins(rows, read, shape):
    made = shape(
        rows(PROPERTIES), "items", pivot=("property", "value"), map={"item_id": "itemid", "topics": "categoryid"}
    )
    assert read(made.rows) == {"itemid": ["1", "2"], "categoryid": ["new", "c2"], "line": [2, 3]}
    assert any("timestamp" in note for note in made.rows.notes)


def test_every_property_where_none_is_named_and_the_order_of_rows_without_a_time(rows, read, shape):
    columns = {name: values for name, values in PROPERTIES.items() if name != "timestamp"}
    made = shape(rows(columns), "items", pivot=("property", "value"), map={"item_id": "itemid"})
    found = read(made.rows)
    assert set(found) == {"itemid", "categoryid", "790", "888", "line"}
    assert found["categoryid"] == ["old", "c2"]
    assert found["888"] == [None, "x y"]


def test_a_property_with_the_contract_s_name_comes_along(rows, read, shape):
    columns = {"item_id": ["1", "1", "1"], "p": ["title", "cat", "noise"], "v": ["Lamp", "c", "?"]}
    made = shape(rows(columns), "items", pivot=("p", "v"), map={"topics": "cat"})
    assert set(read(made.rows)) == {"item_id", "title", "cat", "line"}


@pytest.mark.parametrize(
    ("noun", "options", "words"),
    [
        ("events", {"pivot": ("property", "value")}, ["--pivot", "items:"]),
        ("items", {"pivot": ("property", "worth"), "map": {"item_id": "itemid"}}, ["'worth'", "property"]),
        ("items", {"pivot": ("property", "value")}, ["item_id", "itemid"]),
        ("items", {"pivot": ("property", "value"), "map": {"item_id": "itemid", "title": "nope"}}, ["nope"]),
    ],
)
def test_what_cannot_be_pivoted_is_one_line(rows, shape, noun, options, words):
    with pytest.raises(InputError) as caught:
        shape(rows(PROPERTIES), noun, **options)
    for word in words:
        assert word in str(caught.value)


# --- fields, constants, conditions, interest ---


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ('[{"id": 16, "name": "Animation"}, {"id": 18, "name": "Drama"}]', '["Animation", "Drama"]'),
        ("[{'id': 16, 'name': 'Animation'}]", '["Animation"]'),
        ('{"name": "Drama"}', "Drama"),
        ('{"name": {"en": "Drama"}}', '{"en": "Drama"}'),
        ("[]", None),
        ("", None),
        ("no object", None),
    ],
)
def test_a_field_of_a_list_or_an_object(rows, read, shape, cell, found):
    made = shape(rows({"item_id": ["1"], "genres": [cell]}), "items", map={"topics": "genres.name"})
    assert read(made.rows)["genres.name"] == [found]
    assert made.rows.broken["genres.name"] == (cell == "no object")


def test_fields_of_parquet_and_fields_of_fields(rows, read, shape):
    genres = pa.array([{"tags": [{"name": "a"}, {"name": "b"}]}, None])
    made = shape(rows({"item_id": ["1", "2"], "g": genres}), "items", map={"topics": "g.tags.name"})
    assert read(made.rows)["g.tags.name"] == ['["a", "b"]', None]


def test_constants_stand_in_every_row(rows, read, shape):
    made = shape(rows({"user_id": ["u", "v"], "surface": ["x", None]}), constant={"surface": "home", "action": "view"})
    assert read(made.rows) == {"user_id": ["u", "v"], "surface": ["home"] * 2, "action": ["view"] * 2, "line": [2, 3]}


def test_rows_that_fail_a_condition_are_left_out_and_counted(rows, read, shape):
    made = shape(
        rows({"sku": ["a", "b", "c", "d"], "is_click": ["1", "0", None, "1"]}),
        where=("is_click == 1", "item_id != d"),
        map={"item_id": "sku"},
    )
    for _ in range(2):  # each pass counts anew
        assert read(made.rows)["sku"] == ["a"]
        assert made.rows.left_out == {"is_click == 1": 2, "item_id != d": 1}
        assert made.rows.first["is_click == 1"] == "log.csv: line 3"


def test_events_that_fail_a_value_are_impressions(rows, read, shape):
    made = shape(
        rows({"rating": ["5", "3", None], "kind": ["rate"] * 3}), value=("rating >= 4",), map={"action": "kind"}
    )
    assert read(made.rows)["action"] == ["rate", "impression", "impression"]
    assert made.rows.without == {"rating >= 4": 2}
    assert made.options.map["action"] == "action"
    alone = shape(rows({"rating": ["5", "3"]}), value=("rating >= 4",))
    assert read(alone.rows)["action"] == [None, "impression"]


def test_a_condition_on_a_column_that_is_not_there(rows, shape):
    with pytest.raises(InputError, match="no column 'clack'; there are is_click"):
        shape(rows({"is_click": ["1"]}), where=("clack == 1",))
    with pytest.raises(InputError, match="no column 'action'"):
        shape(rows({"is_click": ["1"]}), value=("action == buy",))


# --- keep ---


@pytest.mark.parametrize(("which", "titles"), [("first", ["A", "B"]), ("last", ["A2", "B"])])
def test_one_row_an_item_of_a_log(rows, read, shape, which, titles):
    columns = {"sku": ["2", "1", "2"], "name": ["A", "B", "A2"], "user": ["u", "v", "w"]}
    made = shape(rows(columns), "items", keep=which, map={"item_id": "sku"})
    assert read(made.rows)["sku"] == ["2", "1"]
    assert read(made.rows)["name"] == titles


# --- which columns a mapping means ---


def test_the_first_column_that_is_there_is_taken(rows, shape):
    made = shape(
        rows({"Customer ID": ["1"], "a": ["x"], "b": ["y"]}),
        map={"user_id": "CustomerID|Customer ID", "session_id": "a"},
    )
    assert made.options.map == {"user_id": "Customer ID", "session_id": "a"}


# --- columns that are kinds of events ---


def test_columns_of_items_become_events_of_their_name(rows, read, shape):
    columns = {"session": ["7", "8"], "clicks": ["[1, 2]", "5"], "carts": ["[]", None], "orders": [None, "['5']"]}
    made = shape(rows(columns), explode=("clicks+carts+orders",), map={"user_id": "session"})
    found = read(made.rows)
    assert found["session"] == ["7", "7", "8", "8"]
    assert found["item_id"] == ["1", "2", "5", "5"]
    assert found["action"] == ["clicks", "clicks", "clicks", "orders"]
    assert made.options.map == {"user_id": "session", "action": "action", "item_id": "item_id"}


def test_columns_that_say_yes_become_events_of_their_name(rows, read, shape):
    columns = {"video_id": ["1", "2", "3"], "is_like": ["1", "0", None], "is_follow": ["1", "false", "3"]}
    made = shape(rows(columns), explode=("is_like+is_follow",))
    found = read(made.rows)
    assert found["video_id"] == ["1", "1", "3"]
    assert found["action"] == ["is_like", "is_follow", "is_follow"]


def test_columns_where_nothing_happened_are_refused(rows, shape):
    with pytest.raises(InputError, match="nothing stands in these columns"):
        shape(rows({"video_id": ["1"], "a": ["0"], "b": [None]}), explode=("a+b",))
    with pytest.raises(InputError, match="holds objects"):
        shape(rows({"a": ['[{"x": 1}]'], "b": [None]}), explode=("a+b",))


def test_names_of_columns_that_say_yes(rows, read, shape):
    columns = {"item_id": ["1", "2", "3"], "Film-Noir": ["1", "0", "x"], "Children's": ["True", "1", None]}
    made = shape(rows(columns), "items", map={"topics": "?Film-Noir+Children's"})
    assert read(made.rows)["?Film-Noir+Children's"] == ['["Film-Noir", "Children\'s"]', '["Children\'s"]', None]
    assert made.options.map == {"topics": "?Film-Noir+Children's"}
