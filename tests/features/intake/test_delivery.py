"""A delivery: kinds of files of one noun, options without a noun, what is refused, and what is told."""

import io
import json
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from features.intake.delivery import read_delivery
from features.intake.facts import Facts
from features.intake.options import Options, parse_options
from plumline.errors import InputError
from plumline.schema import EVENTS, ITEMS

NOW = datetime(2026, 11, 29, tzinfo=UTC)


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def files(**texts: str) -> None:
        for name, text in texts.items():
            (tmp_path / f"{name}.csv").write_text(text)

    files(
        items="item_id,title\n1,Amber\n2,Basin\n",
        events="user_id,item_id,timestamp\nu,1,2026-03-01\nv,2,2026-03-02\n",
    )
    return files


@pytest.fixture
def deliver(tmp_path):
    def run(given=None, told=None, stdin=None, **asked):
        if given is None:
            asked = {name: [text] if isinstance(text, str) else text for name, text in asked.items()}
            given = {noun: (options,) for noun, options in parse_options(asked).items()}
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        tell = None if told is None else told.append
        return read_delivery(given, facts=Facts(), scratch=scratch, now=NOW, tell=tell, stdin=stdin)

    return run


def test_tables_are_those_of_the_contracts(write, deliver):
    delivery = deliver(items="items.csv", events="events.csv")
    assert delivery.items.schema.names == ITEMS.schema.names
    (block,) = delivery.events()
    assert block.schema == EVENTS.schema
    assert delivery.users is None
    assert delivery.sources == "items.csv, events.csv"
    assert json.loads(json.dumps(delivery.options)) == {
        "items": [{"files": ["items.csv"]}],
        "events": [{"files": ["events.csv"]}],
    }


def test_events_are_read_anew_at_each_call_and_losses_counted_once(write, deliver):
    write(events="user_id,item_id,timestamp,price\nu,1,2026-03-01,x\nv,2,2026-03-02,3\n")
    delivery = deliver(events="events.csv", where="item_id != 3")
    for _ in range(2):
        assert sum(block.num_rows for block in delivery.events()) == 2
        assert [str(f) for f in delivery.findings] == [
            "events: price is no number and is left empty: 1 row, first events.csv: line 2: 'x'"
        ]


def test_items_of_two_kinds_of_files_are_one_row_an_id(write, deliver):
    write(
        names="item_id,title,topics\n1,Amber,lamps\n2,,\n",
        more="id,name,price\n2,Basin,3\n3,Chair,4\n1,Other,5\n",
    )
    kinds = (Options(files=("names.csv",)), Options(files=("more.csv",), map={"item_id": "id", "title": "name"}))
    items = deliver({"items": kinds}).items
    assert items.column("item_id").to_pylist() == ["1", "2", "3"]
    assert items.column("title").to_pylist() == ["Amber", "Basin", "Chair"]
    assert items.column("topics").to_pylist() == [["lamps"], None, None]
    assert items.column("price").to_pylist() == [5.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("text", "titles", "told"),
    [
        ("item_id,description\n2,of stone\n9,of nobody\n2,later\n", [None, "of stone"], ""),
        ("item_id,description\n1,a\n2,b,c\n1,d\n", [None, None], "only tells more and is left out: extra.csv: line 3"),
        ("id,description\n2,of stone\n", [None, None], "no column 'item_id'"),
        ("item_id,description\n,of stone\n", [None, None], "item_id is empty"),
        (None, [None, None], "there is no such file"),
    ],
)
def test_files_that_only_tell_more_never_block_the_others(write, deliver, text, titles, told):
    if text is not None:
        write(extra=text)
    kinds = (Options(files=("extra.csv",), extra=True), Options(files=("items.csv",)))
    delivery = deliver({"items": kinds, "events": (Options(files=("events.csv",)),)})
    assert delivery.items.column("item_id").to_pylist() == ["1", "2"]
    assert delivery.items.column("description").to_pylist() == titles
    said = "\n".join(map(str, delivery.findings))
    assert told in said if told else "left out" not in said
    if text is not None and "stone" in text and not told:  # alone it is not extra
        with pytest.raises(InputError, match="twice"):
            deliver({"items": kinds[:1]})


def test_events_of_two_kinds_of_files_are_added_up(write, deliver):
    write(buys="who;what;at\nw;1;2026-03-03\n")
    mapping = {"user_id": "who", "item_id": "what", "timestamp": "at"}
    buys = Options(files=("buys.csv",), map=mapping, constant={"action": "buy"})
    delivery = deliver({"events": (Options(files=("events.csv",)), buys)})
    table = pa.concat_tables(delivery.events())
    assert table.column("user_id").to_pylist() == ["u", "v", "w"]
    assert table.column("action").to_pylist() == [None, None, "buy"]


def test_rows_of_one_id_that_differ_are_refused_with_both_places(write, deliver):
    write(items="item_id,title\n1,Amber\n2,Basin\n1,Amber\n1,Another\n")
    told = []
    with pytest.raises(InputError, match=r"items.csv: line 5: item_id '1' is there twice.*line 2.*--keep items:last"):
        deliver(told=told, items="items.csv", events="events.csv")
    assert any("--keep" in str(finding) for finding in told)
    assert deliver(items="items.csv", keep="last").items.column("title").to_pylist() == ["Another", "Basin"]
    write(items="item_id,title\n1,Amber\n1,Amber\n")
    assert deliver(items="items.csv").items.num_rows == 2  # equal ones are folded when they land


def test_an_option_without_a_noun_goes_where_its_column_is(write, deliver):
    write(events="who,item_id,timestamp,clicked\nu,1,2026-03-01,1\nv,2,2026-03-02,0\n")
    delivery = deliver(items="items.csv", events="events.csv", map=["title=title", "user_id=who"], where="clicked == 1")
    assert sum(block.num_rows for block in delivery.events()) == 1
    assert delivery.items.num_rows == 2
    assert "events: left out by --where clicked == 1: 1 row, first events.csv: line 3" in map(str, delivery.findings)
    assert delivery.options["items"] == [{"files": ["items.csv"], "map": {"title": "title"}}]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"where": "user_id == nobody"}, ["events: --where user_id == nobody leaves no row", "2 do not"]),
        ({"map": "user_id=who"}, ["--map user_id=who", "user_id, item_id, timestamp"]),
        ({"where": "item_id == 1"}, ["items and events"]),
        ({"explode": "lists"}, ["--explode lists"]),
    ],
)
def test_what_fits_no_file_is_one_line(write, deliver, asked, words):
    with pytest.raises(InputError) as caught:
        deliver(items="items.csv", events="events.csv", **asked)
    for word in words:
        assert word in str(caught.value)


def test_a_problem_comes_after_all_findings_were_told(write, deliver):
    write(events="user_id,item_id,timestamp,x\nu,1,2026-03-01,1\nv,,2026-03-02,2\n")
    told = []
    with pytest.raises(InputError, match=r"events.csv: line 3: item_id is empty"):
        deliver(told=told, items="items.csv", events="events.csv")
    assert [finding.kind for finding in told] == ["problem", "note"]


def test_one_file_of_two_nouns_is_staged_once_and_standard_input_read(write, deliver):
    log = b"user_id,item_id,timestamp,title\nu,1,2026-03-01,Amber\nv,1,2026-03-02,Amber\n"
    delivery = deliver(items="-", events="-", keep="items:last", stdin=io.BytesIO(log))
    assert delivery.items.column("title").to_pylist() == ["Amber"]
    assert sum(block.num_rows for block in delivery.events()) == 2


def test_many_files_are_named_shortly(write, deliver):
    names = [f"log{number}" for number in range(9)]
    write(**dict.fromkeys(names, "user_id,item_id,timestamp\nu,1,2026-03-01\n"))
    assert deliver(events=[f"{name}.csv" for name in names]).sources.endswith("log5.csv and 3 more")
