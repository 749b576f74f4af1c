"""`plumline inspect`: what a person sees of a file before anything lands."""

import gzip
import json

import pytest
from click.testing import CliRunner

from flows.commands import cli


@pytest.fixture
def inspect(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(cli.main, ["inspect", *words])
        assert done.exit_code == code, done.output
        return done.output

    return run


def test_kind_columns_rows_and_what_to_say(inspect, tmp_path):
    text = "created_at;user;sku;price\n2026-03-01 10:00:00;u1;007;x\n2026-03-02 11:30:00;u2;008;3\n"
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(text.encode("utf-16")))
    told = inspect("log.csv.gz", "--time-zone", "Europe/Berlin")
    lines = [line.rstrip() for line in told.splitlines()]
    assert lines[0] == "log.csv.gz: csv, gzip, utf-16-le, separator ';', with a header"
    assert "  read as  events, guessed" in lines
    assert "  sku         → item_id       007" in lines
    assert any(line.split() == ["u1", "007", "2026-03-01", "09:00:00+00:00"] for line in lines)  # as UTC
    assert any("price is no number" in line for line in lines)
    assert (
        lines[-1] == "  say      --map=events:user_id=user --map=events:item_id=sku --map=events:timestamp=created_at"
    )


def test_what_is_said_lands(inspect, tmp_path):
    (tmp_path / "log.csv").write_text("when,user,sku\n2026-03-01,u1,007\n")
    found = json.loads(inspect("log.csv", "--map", "timestamp=when", "--json"))[0]
    assert found["suggested"] == {"user_id": "user", "item_id": "sku"}
    assert found["missing"] == []
    found = json.loads(inspect("log.csv", "--map", "timestamp=when", *found["advice"].split(), "--json"))[0]
    assert found["suggested"] == {}
    assert found["rows"] == [{"user_id": "u1", "item_id": "007", "timestamp": "2026-03-01 00:00:00+00:00"}]


@pytest.mark.parametrize(
    ("name", "text", "words", "told"),
    [
        ("a.csv", "x,y\n1,2\n", (), ["unknown", "missing", "no column is called like one"]),
        ("a.csv", "x,y\n1,2\n", ("--as", "items"), ["missing  item_id", "missing  one of title"]),
        ("a.csv", "user_id,item_id,timestamp\n", (), ["missing  a row"]),
        ("a.csv", "user_id,item_id,timestamp\nu,,2026-03-01\n", (), ["refused", "a.csv: line 2: item_id is empty"]),
        ("a.csv", "user_id,item_id,timestamp\nu,i,now\n", (), ["refused", "'now'"]),
        ("a.csv", "user_id,item_id,timestamp\nu,i,2026-03-01\n", ("--map", "rating=stars"), ["refused", "'stars'"]),
        ("a.csv", "id,name\n1,Amber\n", (), ["read as  items", "--map=items:item_id=id --map=items:title=name"]),
        ("a.csv", "user_id,country\nu,Peru\n", (), ["read as  users", "Peru"]),
        ("a.jsonl", '{"s": 1, "events": [{"aid": 2, "ts": 3}]}\n', (), ["--explode events makes each one a row"]),
        (
            "a.jsonl",
            '{"user": 1, "events": [{"aid": 2, "ts": 1772361000}]}\n',
            ("--explode", "events"),
            ["2026-03-01 10:30:00+00:00", "item_id=aid"],
        ),
        (
            "a.txt",
            "7:\nu,5,2026-03-01\n",
            ("--heading", "item_id", "--columns", "user_id,rating,timestamp"),
            ["7", "5.0"],
        ),
    ],
)
def test_what_a_file_is_and_lacks(inspect, tmp_path, name, text, words, told):
    (tmp_path / name).write_text(text)
    shown = inspect(name, *words)
    for word in told:
        assert word in shown


def test_options_for_other_files_are_passed_over(inspect, tmp_path):
    (tmp_path / "log.csv").write_text("user_id,sku,timestamp\nu,1,2026-03-01\n")
    (tmp_path / "things.csv").write_text("sku,name\n1,Amber\n")
    told = inspect("log.csv", "things.csv", "--map", "item_id=sku", "--map", "title=name", "--where", "events:sku == 1")
    assert "refused" not in told
    assert "Amber" in told


def test_a_file_that_cannot_be_read_is_one_line_and_exit_2(inspect, tmp_path):
    (tmp_path / "good.csv").write_text("user_id,item_id,timestamp\nu,i,2026-03-01\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing of it")
    told = inspect("broken.parquet", code=2)
    assert told.count("\n") == 1
    told = inspect("good.csv", "broken.parquet", "none.csv", code=2)
    assert "2026-03-01" in told
    assert told.count("not readable") == 2
