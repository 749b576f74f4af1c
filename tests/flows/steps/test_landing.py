"""Bad input ends in one clear line a problem and exit 2, or in a quarantine; nothing half-written is visible."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ITEMS = {"item_id": ["a", "b", "c", "d"], "title": ["red cup", "blue cup", "tea pot", "tray"]}
EVENTS = {
    "user_id": ["u", "u", "v", "v"],
    "item_id": ["a", "b", "a", "c"],
    "timestamp": ["2024-01-01T10:00:00Z", "2024-01-02T10:00:00Z", "2024-01-03T10:00:00Z", "2024-01-04T10:00:00Z"],
}


@pytest.fixture
def plumline(home, root):
    def run(*arguments):
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), "HOME": str(home)}
        command = [sys.executable, "-m", "flows", *arguments]
        return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)

    return run


def write(home: Path, name: str, columns: dict, kind: str = "parquet") -> str:
    path = home / f"{name}.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(columns), path)
    else:
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def init(plumline, home, items=ITEMS, events=EVENTS, *extra):
    return plumline("init", "--items", write(home, "items", items), "--events", write(home, "events", events), *extra)


def is_untouched(home):
    return not list((home / "data").rglob("*.parquet")) if (home / "data").exists() else True


def test_init_lands_days_and_writes_params(home, plumline):
    done = init(plumline, home)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    days = sorted(path.name for path in (home / "data" / "landing").rglob("day=*.parquet"))
    assert days == [f"day=2024-01-0{day}.parquet" for day in range(1, 5)]
    params = (home / "params.yaml").read_text()
    assert 'as_of: "2024-01-03"' in params
    assert "# last day" in params
    again = init(plumline, home)
    assert again.returncode == 0
    assert sorted(path.name for path in (home / "data" / "landing").rglob("day=*.parquet")) == days


@pytest.mark.parametrize(
    ("items", "events", "words"),
    [
        ({**ITEMS, "item_id": ["a", "b", "a", "d"]}, EVENTS, ["item_id", "'a'", "row 3"]),
        ({"item_id": ["a", "b"]}, EVENTS, ["describes"]),
        ({"sku": ["a"], "title": ["x"]}, EVENTS, ["item_id", "--map"]),
        (ITEMS, {**EVENTS, "user_id": ["u", None, "v", "v"]}, ["user_id", "row 2"]),
        (ITEMS, {**EVENTS, "timestamp": ["yesterday", *EVENTS["timestamp"][1:]]}, ["timestamp", "yesterday"]),
        (ITEMS, {name: [] for name in EVENTS}, ["events"]),
    ],
)
def test_what_cannot_be_used_is_one_line_a_problem_and_exit_2(home, plumline, items, events, words):
    done = init(plumline, home, items, events)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert is_untouched(home)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("broken.csv", "item_id,title\na,cup\nb,pot,extra,cells\n", ["broken.csv", "line 3"]),
        ("broken.jsonl", '{"item_id": "a", "title": "cup"}\n{"item_id": "b", \n', ["broken.jsonl", "line 2"]),
        ("empty.csv", "", ["empty.csv", "empty"]),
        ("broken.parquet", "PAR1 no parquet", ["broken.parquet"]),
        ("notes.txt", "hello", ["notes.txt", "no row"]),
    ],
)
def test_broken_files_name_the_file_and_the_line(home, plumline, name, content, words):
    (home / name).write_text(content)
    done = plumline("init", "--items", name, "--events", write(home, "events", EVENTS))
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in done.stderr
    assert is_untouched(home)


def test_a_missing_file_and_a_missing_recipe_are_named(home, plumline):
    assert "no such file" in plumline("init", "--items", "none.csv", "--events", "none.csv").stderr
    write(home, "items", ITEMS)
    write(home, "events", EVENTS)
    done = plumline("init", "--items", "items.parquet", "--events", "events.parquet", "--recipe", "huge")
    assert done.returncode == 2
    assert "cpu_tiny" in done.stderr


def test_odd_rows_are_warned_about_and_land_in_a_quarantine_with_reasons(home, plumline, root):
    items = {**ITEMS, "title": ["red cup", None, None, None], "channel": [None, "Acme", None, None]}
    events = {
        name: [*values, *extra]
        for (name, values), extra in zip(
            EVENTS.items(),
            [["w", "w"], ["nobody-knows", "a"], ["2024-01-02T11:00:00Z", "2090-01-01T00:00:00Z"]],
            strict=True,
        )
    }
    done = init(plumline, home, items, events)
    assert done.returncode == 0, done.stderr
    for word in ("'nobody-knows'", "future", "2 such rows"):
        assert word in done.stderr
    base = ["--params", "recipes/cpu_tiny.yaml", "--as-of", "2024-01-03"]
    for module, inputs in (
        ("features.events", ["--landing", "data/landing", "--traffic", "data/traffic", "--lake", "data/events"]),
        ("features.catalog", ["--landing", "data/landing", "--events", "artifacts/events"]),
    ):
        out = ["--out", f"artifacts/{module.split('.')[1]}"]
        command = [sys.executable, "-m", module, *base, *inputs, *out]
        stage = subprocess.run(
            command,
            cwd=home,
            env={"PYTHONPATH": str(root), "PATH": "/usr/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert stage.returncode == 0, stage.stderr
    quarantined = pq.read_table(home / "artifacts" / "events" / "quarantine.parquet").to_pylist()
    assert {row["item_id"]: bool(row["reason"]) for row in quarantined}["nobody-knows"]
    left_out = pq.read_table(home / "artifacts" / "catalog" / "quarantine.parquet").to_pylist()
    assert {row["item_id"] for row in left_out} == {"c", "d"}
    assert all(row["reason"] for row in left_out)
