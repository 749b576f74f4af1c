"""Every example of docs/your-data.md lands, with the counts and values that stand below its command."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from features.batches import ITEMS_FILE, USERS_FILE, list_batches
from features.intake.layouts import list_layouts, read_layout
from flows.commands import cli
from flows.steps.given import FLAGS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "your-data.md"


@dataclass
class Section:
    """A heading's files (path → text) and commands (line → what stands below it)."""

    name: str
    files: dict[str, str] = field(default_factory=dict)
    commands: list[tuple[str, str]] = field(default_factory=list)


def read_sections() -> list[Section]:
    sections = [Section("")]
    for heading, language, name, body in re.findall(
        r"^#{1,3} ([^\n]+)$|^```(\w+) ?(\S*)\n(.*?)^```$", PAGE.read_text(), re.M | re.S
    ):
        if heading:
            sections.append(Section(heading))
        elif language == "text":
            sections[-1].files[name] = body
        else:
            lines = [*body.splitlines(), ""]
            told = [line.removeprefix("# ") if line.startswith("# ") else "" for line in lines[1:]]
            pairs = zip(lines, told, strict=False)
            sections[-1].commands += [pair for pair in pairs if pair[0] and not pair[0].startswith("#")]
    return [section for section in sections if section.commands]


SECTIONS = read_sections()
COMMANDS = [pytest.param(s, c, told, id=f"{s.name}: {c[9:60]}") for s in SECTIONS for c, told in s.commands]


@pytest.fixture
def plumline(home, tmp_path, monkeypatch):
    """Runs a command in an empty folder, with an empty home elsewhere; gives what it printed."""
    monkeypatch.setenv("PLUMLINE_HOME", str(home))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(words: list[str], code: int = 0) -> str:
        done = CliRunner().invoke(cli.main, words)
        assert done.exit_code == code, done.output
        return done.output

    return run


@pytest.mark.parametrize(("section", "command", "told"), COMMANDS)
def test_examples_do_what_stands_below_them(section, command, told, plumline, home):
    for name, text in section.files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    name, *words = shlex.split(command)
    assert name == "plumline"
    if told.startswith("refused: "):
        assert told.removeprefix("refused: ") in plumline(words, code=2)
        assert not (home / "data").exists()
        return
    printed = plumline(words)
    if told.startswith("guessed: "):
        assert f"{told.removeprefix('guessed: ')} fits" in printed
    if words[0] != "init" or "--guess" in words:
        assert not (home / "data").exists()
        return
    (batch,) = list_batches(home / "data" / "landing")
    events = pa.concat_tables([batch.read(name) for name in batch.day_files().values()])
    tables = {"items": batch.read(ITEMS_FILE), "events": events}
    tables |= {"users": batch.read(USERS_FILE)} if batch.holds(USERS_FILE) else {}
    counts, *values = told.split("; ")
    assert ", ".join(f"{table.num_rows} {noun}" for noun, table in tables.items()) == counts
    for text in values:
        column, _, wanted = text.partition("=")
        assert ", ".join(values_of(tables, column)) == wanted
    known = set(tables["items"].column("item_id").to_pylist())
    assert set(events.column("item_id").to_pylist()) <= known


def values_of(tables: dict[str, pa.Table], column: str) -> list[str]:
    table = next(t for t in tables.values() if t is not None and column in t.column_names)
    cells = table.column(column).to_pylist()
    return sorted({one for cell in cells if cell is not None for one in (cell if isinstance(cell, list) else [cell])})


def test_the_page_has_every_option_and_every_layout():
    text = PAGE.read_text()
    commands = " ".join(command for section in SECTIONS for command, _ in section.commands)
    for flag in FLAGS:
        assert re.search(rf"--{flag}\b", commands), f"no example of --{flag}"
    for name in list_layouts(ROOT):
        assert f"--layout {name} " in commands, f"no example of {name}"
        assert f"\n## {name}\n" in text


def layouts() -> Iterator[Path]:
    yield from sorted((ROOT / "layouts").glob("*.yaml"))


def test_of_23_layouts_two_cannot_land_and_say_why():
    found = [read_layout(path) for path in layouts()]
    assert len(found) == 23
    assert [layout.name for layout in found if layout.cannot] == ["book-crossing", "criteo"]
