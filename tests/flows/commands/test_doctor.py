"""What the doctor calls sound: enough disk, and versions within the bounds that were seen to work."""

import shutil
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.commands.doctor import Finding, examine


def found(home: Path, name: str) -> Finding:
    return next(finding for finding in examine(home) if finding.name == name)


@pytest.mark.parametrize(("gib", "passed"), [(2.0, True), (1.99, False)])
def test_two_gibibytes_are_wanted(home: Path, monkeypatch: pytest.MonkeyPatch, gib: float, passed: bool) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=gib * 2**30))
    finding = found(home, "disk")
    assert finding.passed is passed
    assert finding.line().endswith("GiB free" if passed else "2.0 GiB free; at least 2.0 GiB are wanted")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("fastapi", ("0.139.0", "0.150.9"), ("0.138.9", "0.151.0")),
        ("sqlalchemy", ("2.0.1", "2.0.99"), ("1.4.50", "2.1.0b1")),
        ("duckdb", ("1.4.0", "1.4.9"), ("1.3.9", "1.5.0")),
        ("torch", ("2.11.0+cpu", "2.13.9"), ("2.10.1", "2.14.0+cu130")),
    ],
)
def test_versions_outside_the_bounds_are_bad(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, good: tuple[str, ...], bad: tuple[str, ...]
) -> None:
    installed = metadata.version
    for version in (*good, *bad):
        monkeypatch.setattr(
            metadata, "version", lambda asked, told=version: told if asked == name else installed(asked)
        )
        assert found(home, name).passed is (version in good), version


def test_what_is_not_installed_is_bad(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert found(home, "torch").line() == "BAD  torch: not installed; make setup"


def test_a_recipe_with_a_setting_that_is_none_is_bad(home: Path) -> None:
    assert found(home, "recipe").passed
    path = home / "recipes" / "cpu_tiny.yaml"
    path.write_text(path.read_text().replace("sft:\n", "sft:\n  stepps: 3\n"))
    finding = found(home, "recipe")
    assert not finding.passed
    assert "sft.stepps" in finding.found
