"""The version of a clone is its file's, that of a wheel its metadata's."""

import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from plumline import version


def test_a_clone_says_what_its_file_says(root: Path) -> None:
    assert version.read_version() == tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize("text", [None, '[project]\nname = "another"\nversion = "9"\n', "[tool.x]\ny = 1\n"])
def test_without_a_file_of_ours_it_is_what_was_installed(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.setattr(version, "_PYPROJECT", tmp_path / "pyproject.toml")
    assert version.read_version() == metadata.version("plumline")
