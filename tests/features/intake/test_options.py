"""Options: from words to options by noun; what is ambiguous or given twice is refused in one line."""

import pytest

from features.intake.options import DEFAULT_NULLS, Options, find_sources, override, parse_options, settle
from plumline.errors import InputError

BOTH = {"items": ["items.csv"], "events": ["a.csv", "b.csv"]}


def parse(**asked):
    return parse_options({**BOTH, **{name: [text] if isinstance(text, str) else text for name, text in asked.items()}})


def test_files_of_one_noun_are_added():
    options = parse()
    assert options["events"].files == ("a.csv", "b.csv")
    assert set(options) == {"items", "events"}


@pytest.mark.parametrize(
    ("asked", "noun", "field", "value"),
    [
        ({"separator": "items:tab"}, "items", "separator", "\t"),
        ({"separator": "::"}, "events", "separator", "::"),
        ({"separator": ["items:;", "events:|"]}, "events", "separator", "|"),
        ({"encoding": "latin-1"}, "items", "encoding", "latin-1"),
        ({"format": "events:json"}, "events", "format", "json"),
        ({"columns": "events:a, b,c"}, "events", "columns", ("a", "b", "c")),
        ({"quote": "items:none"}, "items", "quote", "none"),
        ({"heading": "events:item_id"}, "events", "heading", "item_id"),
        ({"map": "title=name"}, "items", "map", {"title": "name"}),
        ({"map": "items:price="}, "items", "map", {"price": ""}),
        ({"map": "events.item_id=sku"}, "events", "map", {"item_id": "sku"}),
        (
            {"map": ["topics=genres.name", "tag_size=size"]},
            "items",
            "map",
            {"topics": "genres.name", "tag_size": "size"},
        ),
        ({"map": "title=a=b"}, "items", "map", {"title": "a=b"}),
        ({"constant": "surface=home"}, "events", "constant", {"surface": "home"}),
        ({"constant": "items:channel="}, "items", "constant", {"channel": ""}),
        ({"value": ["rating >= 4", "events:rating < 9"]}, "events", "value", ("rating >= 4", "rating < 9")),
        ({"where": "items:price > 3"}, "items", "where", ("price > 3",)),
        ({"explode": "events:shown,clicked"}, "events", "explode", ("shown", "clicked")),
        ({"pivot": "items:property,value"}, "items", "pivot", ("property", "value")),
        ({"keep": "last"}, "items", "keep", "last"),
        ({"time_format": "%d/%m/%Y"}, "events", "time_format", "%d/%m/%Y"),
        ({"time_zone": "events:Europe/Berlin"}, "events", "time_zone", "Europe/Berlin"),
        ({"null": ["-", "events:?"]}, "events", "null_words", (*DEFAULT_NULLS, "-", "?")),
        ({"null": ["", "-"]}, "items", "null_words", ("", "-")),
    ],
)
def test_values_are_read(asked, noun, field, value):
    assert getattr(parse(**asked)[noun], field) == value


def test_keep_and_value_are_for_some_nouns_only():
    assert parse(keep="last")["events"].keep is None
    assert parse(value="rating >= 4")["items"].value == ()


def test_the_same_value_twice_is_no_contradiction():
    assert parse(separator=[";", ";"])["events"].separator == ";"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"separator": [";", ","]}, ["--separator", "';'", "','", "items:"]),
        ({"encoding": "utf-99"}, ["--encoding", "utf-99", "latin-1"]),
        ({"encoding": "base64"}, ["--encoding", "base64"]),
        ({"encoding": "idna"}, ["--encoding", "idna"]),
        ({"where": "items:a\n== 1"}, ["--where", "one line"]),
        ({"format": "xlsx"}, ["--format", "xlsx", "csv, json, parquet"]),
        ({"columns": "a,b"}, ["--columns items:a,b", "events:a,b"]),
        ({"columns": "events:a,,b"}, ["--columns", "a,,b"]),
        ({"columns": "events:a,a"}, ["--columns", "a,a"]),
        ({"heading": "item_id"}, ["--heading items:item_id"]),
        ({"quote": "'"}, ["--quote", "none"]),
        ({"separator": "\n"}, ["--separator"]),
        ({"map": "titel=name"}, ["--map titel=name", "title", "users:NAME"]),
        ({"map": "title"}, ["--map title", "name=column"]),
        ({"map": "=name"}, ["name=column"]),
        ({"map": ["title=a", "title=b"]}, ["title=b", "title=a"]),
        ({"map": "users:land=country"}, ["users", "items, events"]),
        ({"map": "events:title=name"}, ["events", "'title'", "item_id"]),
        ({"constant": "surface"}, ["--constant surface", "name=value"]),
        ({"constant": "price=3"}, ["items and events", "events:price=3"]),
        ({"constant": "place=3"}, ["'place'"]),
        ({"where": "price >"}, ["--where 'price >'", "value"]),
        ({"value": "rating"}, ["--value 'rating'"]),
        ({"value": "items:price > 3"}, ["--value", "events"]),
        ({"explode": "a,b,c"}, ["--explode a,b,c", "SHOWN,CLICKED"]),
        ({"pivot": "property"}, ["--pivot property", "PROPERTY,VALUE"]),
        ({"keep": "newest"}, ["--keep", "first, last"]),
        ({"keep": "events:last"}, ["--keep last", "every event stays"]),
        ({"time_format": " "}, ["--time-format"]),
        ({"time_format": ["%d", "%m"]}, ["--time-format", "'%d'"]),
        ({"time_zone": "Mars/Base"}, ["--time-zone", "Mars/Base", "Europe/Berlin"]),
    ],
)
def test_what_cannot_be_is_one_line(asked, words):
    with pytest.raises(InputError) as caught:
        parse(**asked)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_one_noun_alone_needs_no_prefix():
    options = parse_options({"events": ["log.csv"], "columns": ["a,b"], "where": ["a == 1"], "explode": ["b"]})
    assert options["events"] == Options(files=("log.csv",), columns=("a", "b"), where=("a == 1",), explode=("b",))


# --- where an option without a noun goes ---


def settled(columns, **asked):
    options = parse(**asked)
    made = settle({noun: [one] for noun, one in options.items()}, {n: [c] for n, c in columns.items()}, KINDS)
    return {noun: one[0] for noun, one in made.items()}


KINDS = ("map", "where", "explode", "pivot")
COLUMNS = {"items": ["sku", "title", "price", "property", "value"], "events": ["sku", "user", "click", "list"]}


def test_a_mapping_goes_to_all_files_that_have_the_column():
    options = settled(COLUMNS, map=["item_id=sku", "price=title"])
    assert options["items"].map == {"item_id": "sku", "price": "title"}
    assert options["events"].map == {"item_id": "sku"}
    assert options["items"].shared == options["events"].shared == ()


def test_conditions_lists_and_properties_find_their_files():
    options = settled(COLUMNS, where=["click == 1", "price > 3"], explode="list", pivot="property,value")
    assert options["items"].where == ("price > 3",)
    assert options["events"].where == ("click == 1",)
    assert (options["items"].explode, options["events"].explode) == ((), ("list",))
    assert (options["items"].pivot, options["events"].pivot) == (("property", "value"), ())


def test_a_condition_may_name_the_contract_s_column():
    options = settled(COLUMNS, map="events:user_id=user", where="user_id != ''")
    assert (options["items"].where, options["events"].where) == ((), ("user_id != ''",))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"map": "item_id=id"}, ["--map item_id=id", "items: sku", "events: sku"]),
        ({"where": "sku != 3"}, ["--where sku != 3", "items and events", "events:"]),
        ({"where": "clack == 1"}, ["--where clack == 1", "no file"]),
        ({"explode": "lists"}, ["--explode lists", "no file"]),
    ],
)
def test_what_fits_nowhere_or_twice_is_one_line(asked, words):
    with pytest.raises(InputError) as caught:
        settled(COLUMNS, **asked)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("a", ("a",)),
        ("a+b", ("a", "b")),
        ("c|b", ("b",)),
        ("x|a+b", ("a", "b")),
        ("g.name", ("g.name",)),
        ("a|b", ("a",)),
        ("p|q", ("p|q",)),
        ("x", ()),
        ("a+x", ()),
        ("x|y", ()),
    ],
)
def test_sources_of_a_mapping(spec, found):
    assert find_sources(spec, ["a", "b", "g", "p|q"]) == found


def test_what_was_asked_wins_over_a_layout_and_conditions_come_on_top():
    layout = Options(files=("x.csv",), separator="::", map={"title": "name", "price": "p"}, where=("a == 1",))
    asked = Options(separator=";", map={"price": ""}, where=("b == 2",))
    made = override(layout, asked)
    assert made.files == ("x.csv",)
    assert made.separator == ";"
    assert made.map == {"title": "name", "price": ""}
    assert made.where == ("a == 1", "b == 2")
    assert made.time_zone == "UTC"


@pytest.mark.parametrize(
    "words", [("item_id=movieId", "events.item_id=film"), ("events:item_id=film", "item_id=movieId")]
)
def test_what_is_said_of_one_kind_of_file_is_the_exception(words: tuple[str, ...]) -> None:
    found = parse_options({"items": ("a.csv",), "events": ("b.csv",), "map": words})
    assert (found["items"].map, found["events"].map) == ({"item_id": "movieId"}, {"item_id": "film"})


def test_two_columns_for_one_name_of_one_kind_of_file_are_refused() -> None:
    with pytest.raises(InputError, match="events have item_id=film already"):
        parse_options({"items": ("a.csv",), "events": ("b.csv",), "map": ("events:item_id=film", "events:item_id=b")})
