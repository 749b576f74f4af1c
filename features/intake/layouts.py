"""Named layouts: what `--layout movielens-1m DIR` says about the files of a public log, so that nobody has to.

    layout = find_layout(home, "movielens-1m")            layouts/movielens-1m.yaml: no code, only options
    given  = layout_sources(layout, Path("ml-1m"))        the files of DIR that are there, with their options

A layout is a YAML with `about`, `needs` and the options of items, events and users (features/intake/options.py); a noun
with more than one kind of file has a list of them. Events of all kinds are added up; items and users of one id are one
row, told by all its kinds. `files` are patterns of names: `ratings.csv` is found as ml-25m/ratings.csv.gz and in a zip
archive too, one that begins with ! takes files away again. A file that lies unpacked wins over its archive, a kind
without one is left out. Own layouts lie in layouts/ of the home.
"""

import zipfile
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from features.intake.options import NOUNS, Options
from plumline.errors import InputError
from plumline.stage import CODE_ROOT

COMPRESSIONS = (".gz", ".zst", ".bz2", ".zip", ".xz")
"""Endings after which a file's own name comes; a plain file wins over its compressed copy."""
_MOST_FILES = 20_000
_DEEPEST = 4  # folders below DIR that are looked into
_OF_A_HOME = ("artifacts", "data", "layouts", "recipes", "releases")  # what a home has beside files of people


class Layout(BaseModel):
    """The options of one public log."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Of its file, without .yaml."""
    about: str
    """What it is, in one line."""
    needs: str
    """Which files, in the words of whoever published them."""
    cannot: str = ""
    """Why it cannot land; empty if it can."""
    items: tuple[Options, ...] = ()
    """One entry a kind of file."""
    events: tuple[Options, ...] = ()
    users: tuple[Options, ...] = ()

    @field_validator(*NOUNS, mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    def sources(self, noun: str) -> tuple[Options, ...]:
        """The kinds of files of one noun."""
        found: tuple[Options, ...] = getattr(self, noun)
        return found


def list_layouts(home: Path) -> dict[str, Path]:
    """Name → file of every layout: ours, and those of the home's layouts/, which come first."""
    found: dict[str, Path] = {}
    for folder in (CODE_ROOT / "layouts", home / "layouts"):
        found |= {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return dict(sorted(found.items()))


def find_layout(home: Path, name: str) -> Layout:
    """A layout by name, or by the path of its YAML. Raises InputError where there is none, or one that is broken."""
    known = list_layouts(home)
    path = Path(name) if name.endswith((".yaml", ".yml")) else known.get(name)
    if path is None or not path.is_file():
        near = get_close_matches(name, known, n=1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise InputError(f"--layout {name}: no such layout; {meant} (plumline layouts says what each needs)")
    return read_layout(path)


def read_layout(path: Path) -> Layout:
    """A layout's YAML. Raises InputError naming the file, the key and what is wrong."""
    try:
        about = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Layout(name=path.stem, **about)
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise InputError(f"{path}: no layout ({' '.join(str(error).split())}); see layouts/hm.yaml") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {where}: {first['msg']} (got {first.get('input')!r})") from None


def layout_sources(layout: Layout, folder: Path) -> dict[str, tuple[Options, ...]]:
    """Options by noun with the files of `folder` in them, for `read_delivery`.

    Raises InputError if it cannot land, or where items or events have no file.
    """
    if layout.cannot:
        raise InputError(f"{layout.name} cannot land: {layout.cannot}")
    names = list_files(folder)
    given = match_files(layout, folder, names)
    for noun in ("items", "events"):
        if noun not in given:
            wanted = ", ".join(dict.fromkeys(p for one in layout.sources(noun) for p in one.files if p[0] != "!"))
            there = ", ".join(names[:8]) + (" …" if len(names) > 8 else "") or "nothing"
            raise InputError(
                f"--layout {layout.name}: no {noun} in {folder}: {wanted} is wanted, there is {there}; "
                f"name the file with --{noun} FILE, or see plumline init --guess {folder}"
            )
    return given


def layout_bases(layout: Layout, noun: str) -> tuple[Options, ...]:
    """A layout's options for files that are named by hand. Raises InputError if it knows more than one kind."""
    sources = layout.sources(noun)
    if layout.cannot:
        raise InputError(f"{layout.name} cannot land: {layout.cannot}")
    if len(sources) > 1:
        kinds = "; ".join(", ".join(source.files) for source in sources)
        raise InputError(f"--layout {layout.name} knows {len(sources)} kinds of {noun} ({kinds}); give its folder")
    return sources or (Options(),)


def list_files(folder: Path) -> list[str]:
    """Paths of files below a folder, and in zip archives there, relative to it, sorted; or those in one archive.

    Raises InputError if it is neither.
    """
    if folder.is_file():
        members = _members(folder)
        if not members:
            raise InputError(
                f"{folder} is a file; --layout and --guess take the folder that it lies in, or a zip archive"
            )
        return sorted(members)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found: list[str] = []
    pending = [(folder, 0)]
    while pending and len(found) < _MOST_FILES:
        here, depth = pending.pop()
        ours = _OF_A_HOME if (here / "dvc.yaml").is_file() else ()  # somebody's files may lie in the home itself
        for path in sorted(here.iterdir()):
            if path.name.startswith((".", "__MACOSX")) or path.name in ours:
                continue
            if path.is_dir() and depth < _DEEPEST:
                pending.append((path, depth + 1))
            elif path.is_file():
                name = path.relative_to(folder).as_posix()
                found += [f"{name}/{member}" for member in _members(path)] or [name]
    return sorted(found)


def _members(path: Path) -> list[str]:
    """Files in a zip archive; none where it is not one, or a broken one."""
    if path.suffix.lower() != ".zip":
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        return []
    return [name for name in names if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))]


def match_files(layout: Layout, folder: Path, names: Sequence[str]) -> dict[str, tuple[Options, ...]]:
    """Kinds of files that are among `names` (relative to `folder`), by noun; nouns without any are left out."""
    given: dict[str, tuple[Options, ...]] = {}
    for noun in NOUNS:
        kinds = []
        for source in layout.sources(noun):
            files = _matching(source.files, names)
            if files:
                paths = tuple((folder / name).as_posix() for name in files)
                kinds.append(source.model_copy(update={"files": paths}))
        if kinds:
            given[noun] = tuple(kinds)
    return given


def _matching(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    chosen: dict[str, str] = {}  # name without its compression → name
    for pattern in (pattern for pattern in patterns if not pattern.startswith("!")):
        for name in names:
            plain = plain_name(name)
            out = any(_fits(plain, other[1:]) for other in patterns if other.startswith("!"))
            if _fits(plain, pattern) and not out and (plain not in chosen or len(name) < len(chosen[plain])):
                chosen[plain] = name
    unpacked = {plain.rpartition("/")[2] for plain in chosen if ".zip/" not in plain}
    return [name for plain, name in chosen.items() if ".zip/" not in plain or plain.rpartition("/")[2] not in unpacked]


def plain_name(name: str) -> str:
    """A path in small letters, without the ending of its compression."""
    lower = name.lower()
    return next((lower.removesuffix(ending) for ending in COMPRESSIONS if lower.endswith(ending)), lower)


def _fits(name: str, pattern: str) -> bool:
    """Whether the last parts of a path are those of the pattern."""
    parts = name.split("/")[-(pattern.count("/") + 1) :]
    return fnmatch("/".join(parts), pattern.lower())
