"""What the docs list, the code has: commands, settings, tree, recipes, lines a file."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from flows.commands import cli
from plumline.settings import Settings

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
        "Environment variables; none changes the bytes of an artifact.\n",
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
            assert mirrored[-1].is_dir() or any(module.with_suffix(".py").exists() for module in mirrored), path


def test_help_answers_within_a_second_and_imports_no_vendor():
    code = (
        "import sys; from click.testing import CliRunner; from flows.commands import cli; "
        "assert CliRunner().invoke(cli.main, ['--help']).exit_code == 0; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'torch', 'prefect', 'dvc', 'feast', 'evidently', 'bentoml', 'great_expectations', 'pandas', 'pyarrow'}))"
    )
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


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
