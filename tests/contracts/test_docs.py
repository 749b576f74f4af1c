"""What the docs list, the code has: commands, settings, tree, recipes, lines a file."""

import os
import re
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from flows.commands import cli
from plumline.settings import Settings
from plumline.version import read_version

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("plumline", "features", "models", "serving", "monitoring", "flows")


def _tracked() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [Path(line) for line in done.stdout.splitlines() if (ROOT / line).exists()]


def _cli_reference() -> str:
    parts = [
        "# The command line\n",
        "Generated from `plumline --help`; `PLUMLINE_UPDATE=1 pytest tests/contracts` writes it anew.\n",
    ]
    # with the settings of a real call: click keeps a command's help option from its first context on
    settings = {**cli.main.context_settings, "max_content_width": 100, "terminal_width": 100}
    context = click.Context(cli.main, info_name="plumline", **settings)
    parts.append(f"```\n{cli.main.get_help(context)}\n```\n")
    for inner in _contexts(context):
        parts.append(f"## {inner.command_path}\n\n```\n{inner.command.get_help(inner)}\n```\n")
    return "\n".join(parts)


def _contexts(parent: click.Context) -> Iterator[click.Context]:
    """Every verb below a group, and every verb of a verb, by name."""
    assert isinstance(parent.command, click.Group)
    for name, command in sorted(parent.command.commands.items()):
        inner = click.Context(command, info_name=name, parent=parent, max_content_width=100, terminal_width=100)
        yield inner
        if isinstance(command, click.Group):
            yield from _contexts(inner)


def _settings_reference() -> str:
    rows = [
        "# Settings: where Plumline runs\n",
        "Environment variables; none is part of an artifact's key. Device, threads and processes order the sums of\n"
        "floats: weights that another choice trains may differ in their last bits, and in what follows from those.\n",
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        rows.append(f"| `PLUMLINE_{name.upper()}` | `{field.default}` | {field.description} |")
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize(("path", "text"), [("docs/cli.md", _cli_reference), ("docs/settings.md", _settings_reference)])
def test_references_are_the_code_s(path, text):
    if os.environ.get("PLUMLINE_UPDATE"):
        (ROOT / path).write_text(text())
    assert (ROOT / path).read_text() == text(), f"PLUMLINE_UPDATE=1 pytest {__file__} writes {path} anew"


def test_the_tree_of_the_architecture_is_the_tree():
    """Every module of the six packages stands in ARCHITECTURE.md's tree with a word on it, and nothing else does."""
    block = re.search(r"```tree\n(.*?)```", (ROOT / "ARCHITECTURE.md").read_text(), re.S)
    assert block, "ARCHITECTURE.md has no ```tree block"
    listed: dict[str, str] = {}
    folders: list[str] = []
    for line in block[1].splitlines():
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, words = line.strip().partition("  ")
        folders = folders[:depth]
        path = "/".join([*(folder.rstrip("/") for folder in folders), name.rstrip("/")])
        assert words.strip() or name.endswith("/"), f"{path} has no word of explanation"
        listed[path] = words
        if name.endswith("/"):
            folders.append(name)
    modules = {p.as_posix() for p in _tracked() if p.parts[0] in PACKAGES and p.name != "__init__.py"}
    listed_modules = {p for p in listed if p.split("/")[0] in PACKAGES and "." in Path(p).name}
    assert listed_modules == modules
    top = {p.parts[0] for p in _tracked() if not p.parts[0].startswith(".")} | {".ci"}
    assert {p.split("/")[0] for p in listed} == top


def test_a_change_finds_its_room():
    """CONTRIBUTING.md's table has a row for each kind of change, and every path that the page names is there."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines() if line[:1] == "|"]
    head, rule, *kinds = rows
    assert head[0] == "kind of change"
    assert set("".join(rule)) <= set("-|")
    assert len(kinds) >= 12
    for kind in kinds:
        assert len(kind) == 3, kind
        assert all(kind), kind
        assert _paths_in(kind[1]), f"{kind[0]}: no path says where"
    assert len({kind[0] for kind in kinds}) == len(kinds)
    there = {parent.as_posix() for path in _tracked() for parent in (path, *path.parents)}
    missing = {path for path in _paths_in(page) if not any(fnmatch(name, path.rstrip("/")) for name in there)}
    assert not missing


def _paths_in(text: str) -> set[str]:
    """What stands in backticks and looks like a file or a folder; `*` may stand for a part of a name."""
    words = [word for word in re.findall(r"`([\w.*/-]+)`", text) if not word.startswith(".venv/")]  # made by setup
    return {word for word in words if "/" in word or re.search(r"\w\.[a-z]+$", word)}


def test_hooks_before_a_commit_are_the_installed_ruff():
    """Hooks of our own environment alone: nothing to download, and the same ruff that `make lint` runs."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    entries = [hook["entry"].split() for hook in config["repos"][0]["hooks"]]
    assert [entry[:2] for entry in entries] == [[".venv/bin/ruff", "check"], [".venv/bin/ruff", "format"]]
    assert {hook["language"] for hook in config["repos"][0]["hooks"]} == {"system"}


def test_every_page_stands_in_the_index():
    """One line a page: a page that is not in docs/README.md is one that nobody finds."""
    index = ROOT / "docs" / "README.md"
    lines = [line for line in _prose(index).splitlines() if line.startswith("* ")]
    listed = [re.match(r"\* \[[^]]+\]\(([^)]+)\): \S", line) for line in lines]
    assert all(listed), "a line of the index is `* [page](page): what it says`"
    pages = {
        path.relative_to("docs").as_posix() for path in _tracked() if path.parts[0] == "docs" and path.suffix == ".md"
    } - {"README.md"}
    assert sorted(match[1] for match in listed if match) == sorted(pages)


def test_links_between_pages_lead_somewhere():
    """To a file of the repository, and where they name a heading, to one that its page has."""
    broken = []
    for page in (path for path in _tracked() if path.suffix == ".md"):
        for target in re.findall(r"\]\(([^)\s]+)\)", _prose(ROOT / page)):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            file = (ROOT / page.parent / name).resolve() if name else ROOT / page
            if not file.exists() or (anchor and anchor not in _anchors(file)):
                broken.append(f"{page}: {target}")
    assert not broken


def _prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


def _anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them (the number of a repeated heading is not looked at)."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_make_help_lists_every_target_for_people():
    """A target without a word is one that nobody finds; a file that is made on the way is none."""
    makefile = (ROOT / "Makefile").read_text()
    targets = {name for line in re.findall(r"^([^\s#:=][^:=\n]*):(?!=)", makefile, re.M) for name in line.split()}
    for_people = {name for name in targets if re.fullmatch(r"[\w-]+", name)}
    phony = {name for line in re.findall(r"^\.PHONY:(.*)", makefile, re.M) for name in line.split()}
    assert for_people == phony
    told = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = {name: rest.strip() for name, _, rest in (line.partition(" ") for line in told.splitlines())}
    assert words.keys() == phony
    assert all(words.values())


def test_no_file_is_longer_than_450_lines():
    long = {
        str(p): n for p in _tracked() if p.suffix == ".py" and (n := len((ROOT / p).read_text().splitlines())) > 450
    }
    assert not long


def test_no_folder_holds_more_than_20_modules():
    modules = Counter(path.parent for path in _tracked() if path.suffix == ".py" and path.name != "__init__.py")
    assert not {str(folder): number for folder, number in modules.items() if number > 20}


def test_rooms_are_packages_with_nothing_in_them():
    """An `__init__.py` with a word in it would be code that no import closure sees."""
    for path in _tracked():
        if path.parts[0] in PACKAGES and path.suffix == ".py":
            room = ROOT / path.parent / "__init__.py"
            assert room.exists() or path.parts[1] == "store", f"{path.parent} has no __init__.py"
            assert path.name != "__init__.py" or not (ROOT / path).read_text(), path


def test_tests_mirror_the_tree():
    for path in _tracked():
        if path.parts[0] == "tests" and path.parts[1] in PACKAGES and path.name.startswith("test_"):
            words = path.stem.removeprefix("test_").split("_")
            # a module whose tests fill more than one file has test_<module>_<topic>.py beside test_<module>.py
            names = ["_".join(words[:end]) for end in range(1, len(words) + 1)]
            mirrored = [ROOT.joinpath(*path.parts[1:-1], name) for name in names]
            files = ROOT.joinpath(*path.parts[:-1], names[-1])  # tests of files that lie beside them, not of a module
            is_module = any(module.with_suffix(".py").exists() for module in mirrored)
            assert mirrored[-1].is_dir() or files.is_dir() or is_module, path


VENDORS = {"torch", "prefect", "dvc", "feast", "evidently", "bentoml", "great_expectations", "pandas", "pyarrow"}


@pytest.mark.parametrize(("option", "says"), [("--help", "Usage: "), ("--version", "plumline ")])
def test_help_and_version_answer_within_a_second_and_import_no_vendor(option: str, says: str):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # -X importtime tells every module on stderr
    command = [sys.executable, "-X", "importtime", "-m", "flows", option]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.startswith(says)
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not imported & VENDORS
    # of the processor, so that a busy machine does not fail it
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_the_newest_version_of_the_changelog_is_the_version():
    headings = re.findall(r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == ("Unreleased", ""), "the first section is the place for what comes next"
    released = headings[1:]
    assert all(re.fullmatch(r" - \d{4}-\d\d-\d\d", day) for _, day in released)
    assert released[0][0] == read_version()
    numbers = [tuple(map(int, version.split("."))) for version, _ in released]
    assert numbers == sorted(set(numbers), reverse=True)


def test_the_command_line_says_its_version():
    answer = CliRunner().invoke(cli.main, ["--version"])
    assert (answer.exit_code, answer.output) == (0, f"plumline {read_version()}\n")


def test_every_verb_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for context in _contexts(click.Context(cli.main, info_name="plumline")):
        assert context.command_path in readme, f"README does not mention {context.command_path}"


def test_the_lock_names_no_host_and_keeps_the_pins():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    versions = dict(line.split("==") for line in lock.splitlines() if "==" in line)
    assert tuple(map(int, versions["fastapi"].split(".")[:2])) < (0, 151)
    assert versions["sqlalchemy"].startswith("2.0.")
    assert versions["duckdb"].startswith("1.4.")
    for name in ("uv.lock", "package-lock.json", "poetry.lock"):
        assert not (ROOT / name).exists()


def test_nothing_of_ours_uses_pickle():
    banned = re.compile(
        r"\bimport pickle|\bpickle\.[a-z]|torch\.(load|save)\(|allow_pickle=True|trust_remote_code=True|joblib"
    )
    for path in _tracked():
        if path.suffix == ".py" and path.parts[0] in PACKAGES:
            assert not banned.search((ROOT / path).read_text()), path


def test_benchmarks_take_quick_and_json():
    scripts = sorted((ROOT / "benchmarks").glob("*.py"))
    assert scripts
    for script in scripts:
        help_text = subprocess.run(
            [sys.executable, str(script), "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert "--quick" in help_text, script.name
        assert "--json" in help_text, script.name
