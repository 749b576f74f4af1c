"""`plumline doctor`: is this machine, this installation and everything that was made here sound?"""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from flows.steps.graph import read_graph, read_params
from flows.steps.recipe import check_recipe
from plumline import artifact
from plumline.errors import PlumlineError
from plumline.stage import CODE_ROOT

# Held back for a reason: outside these a component breaks in silence (pyproject.toml says how).
_PINS = {
    "fastapi": ((0, 139), (0, 151)),
    "sqlalchemy": ((2, 0), (2, 1)),
    "duckdb": ((1, 4), (1, 5)),
    "torch": ((2, 11), (2, 14)),
}
_FREE_GIB = 2.0


@dataclass(frozen=True)
class Finding:
    """One thing looked at. advice: what to do if it did not pass."""

    name: str
    passed: bool
    found: str
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def line(self) -> str:
        """One line for people."""
        return f"{'ok  ' if self.passed else 'BAD '} {self.name}: {self.found}" + (
            f"; {self.advice}" if not self.passed and self.advice else ""
        )


def examine(home: Path) -> list[Finding]:
    """Look at everything; nothing is changed."""
    return [*_machine(home), *_installation(), *_made(home)]


def _machine(home: Path) -> Iterator[Finding]:
    version = sys.version_info
    yield Finding("python", (3, 11) <= version[:2] <= (3, 12), sys.version.split()[0], "use Python 3.11 or 3.12")
    git = shutil.which("git")
    yield Finding("git", git is not None, git or "not found", "install git; the registry of releases needs it")
    free = shutil.disk_usage(home).free / 2**30
    yield Finding("disk", free >= _FREE_GIB, f"{free:.1f} GiB free", f"at least {_FREE_GIB} GiB are wanted")


def _installation() -> Iterator[Finding]:
    for name, (low, high) in _PINS.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, False, "not installed", "make setup")
            continue
        numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2])
        allowed = f"{'.'.join(map(str, low))} ≤ version < {'.'.join(map(str, high))} is wanted; make setup"
        yield Finding(name, low <= numbers < high, found, allowed)


def _made(home: Path) -> Iterator[Finding]:
    yield _try("recipe", lambda: _recipe(home))
    yield _try("graph", lambda: f"{len(read_graph(home))} stages")
    for parent in (home / "artifacts", home / "data" / "landing", home / "data" / "events"):
        if parent.is_dir():
            for folder in sorted(parent.iterdir()):
                if (folder / artifact.MANIFEST).is_file():
                    yield _try(str(folder.relative_to(home)), partial(_digest, folder))
    sealed = home / "releases" / "sealed"
    from serving.pointers import read_pointer, read_tombstones

    for folder in sorted(sealed.glob("[!.]*")) if sealed.is_dir() else []:
        yield _try(f"release {folder.name}", partial(_release_day, folder))
    yield _try("champion", lambda: getattr(read_pointer(home / "releases"), "release_id", "none yet"))
    yield _try("tombstones", lambda: f"{len(read_tombstones(home / 'releases'))} items")


def _digest(folder: Path) -> str:
    return artifact.verify(folder).digest[:12]


def _release_day(folder: Path) -> str:
    from serving.release import Release

    return str(Release.load(folder).as_of)


def _recipe(home: Path) -> str:
    path = read_params(home)["recipe"]
    return f"{path}: {len(check_recipe(home / path, read_graph(home)))} sections; code in {CODE_ROOT}"


def _try(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, look())
    except PlumlineError as error:
        return Finding(name, False, str(error))
